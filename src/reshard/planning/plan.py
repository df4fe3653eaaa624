"""How a conversion is carried out: what is written together, where it is cut, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import OverBudget, PlanError, raise_all
from ..formats.containers import Container
from ..tensor import Box, Shape, extent_of
from .catalog import Catalog
from .conversion import Conversion
from .cost.cost import Cost, count_cost
from .cost.memory import Buffers, share_memory
from .limits import KERNEL_BYTES, Limits
from .outputs.output import Output, TargetTensor, check_outputs, group_by_layout
from .steps.copies import with_copies
from .steps.groups import form_groups
from .steps.needs import Needs
from .steps.recipe import Group, Recipe
from .steps.steps import Step, group_steps


@dataclass(frozen=True, slots=True)
class StagingMode:
    """Whether to stage: only where it is cheaper, or all that is cut across its rows; and where.

    Parameters
    ----------
    url
        Where chunks go.
    is_near
        Whether the target's store can copy from there, and that one from wherever the target's can.
    is_always
        Whether to stage all that can be.
    limits
        Those of the store there; the plan's own if None.
    """

    url: str
    is_near: bool = True
    is_always: bool = False
    limits: Limits | None = None


@dataclass(frozen=True)
class GroupSteps:
    """The steps of one group."""

    by_number: dict[int, Step]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(self.by_number)


@dataclass(frozen=True)
class Plan:
    """How a conversion is carried out. Steps are derived when they are asked for.

    Parameters
    ----------
    conversion
        What is made.
    catalog
        Where steps read: the conversion's catalog or, if tensors are staged, the same with their chunks.
    limits
        As used: what the memory did not allow has been lowered.
    groups
        Which outputs are written together and where they are cut.
    cost
        Counted from the steps.
    copy_bases
        Where the target's store copies from by itself: bases of the catalog's objects, and ``REPLICAS`` for
        equal outputs. Empty if it copies nothing.
    staging
        The first of two passes, if there are two: it writes some tensors to a zarr store, which is the last of
        the catalog's other URLs.
    staging_mode
        Where the first pass writes; None without staging.
    staging_note
        How staging pays, for the reader; empty without staging.
    """

    conversion: Conversion
    catalog: Catalog
    limits: Limits
    groups: tuple[Group, ...]
    cost: Cost
    copy_bases: tuple[int, ...] = ()
    staging: Plan | None = None
    staging_mode: StagingMode | None = None
    staging_note: str = ""

    @property
    def tensors(self) -> tuple[TargetTensor, ...]:
        """Every tensor of the target, whole."""
        return self.conversion.tensors

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Every distinct object of the target."""
        return self.conversion.outputs

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know before starting."""
        return (*self.conversion.notes, *([self.staging_note] if self.staging_note else []))

    @cached_property
    def recipe(self) -> Recipe:
        """What steps are derived from."""
        return with_copies(Recipe(self.catalog, self.tensors, self.outputs, self.limits), self.copy_bases)

    @property
    def buffers(self) -> Buffers:
        """How the memory is shared out."""
        return share_memory(self.limits)

    @property
    def draft(self) -> Recipe:
        """What steps are derived from."""
        return self.recipe

    def group_steps(self, group: int) -> GroupSteps:
        """Return the steps of one group by number."""
        if group not in (found := vars(self).setdefault("_recent", {})):
            found.clear()
            steps = group_steps(self.recipe, group, self.groups[group])
            found[group] = GroupSteps({n: replace(step, number=n) for n, step in enumerate(steps, start=1)})
        made: GroupSteps = found[group]
        return made

    def step(self, group: int, number: int) -> Step:
        """Derive one step."""
        return self.group_steps(group).by_number[number]

    def steps(self, group: int) -> Iterator[Step]:
        """Derive the steps of one group, in order."""
        return iter(self.group_steps(group).by_number.values())


def make_plan(
    conversion: Conversion, limits: Limits, copy_bases: Sequence[int] = (), catalog: Catalog | None = None
) -> Plan:
    """Decide how to carry out a conversion, or refuse.

    Parameters
    ----------
    limits
        Memory, concurrency and what the target's store accepts.
    copy_bases
        What the target's store can copy from; see :class:`Plan`.
    catalog
        Where to read instead of the conversion's catalog: the same tensors, some of them staged in chunks.

    Returns
    -------
    Plan
        The same inputs always give the same plan.

    Raises
    ------
    StrategyError
        Layouts do not fit the tensors.
    OverBudget
        The memory limit is too small; the error carries the limit that would do.
    PlanError
        Two outputs would have one key, or cannot hold what they should.
    """
    catalog = catalog or conversion.catalog
    tensors, outputs, documents = conversion.tensors, conversion.outputs, conversion.documents
    if any(tensor.tile_itemsize for tensor in tensors):
        limits = replace(limits, kernel_bytes=KERNEL_BYTES)
    check_texts(outputs)
    check_outputs(outputs, (*documents, *conversion.attachments), limits.max_object_bytes)
    families = _families(outputs, tensors)
    recipe, groups, buffers, needs = _grouped(Recipe(catalog, tensors, outputs, limits), families, copy_bases)
    cost = count_cost(recipe, groups, documents, conversion.attachments, buffers, needs)
    copied = tuple(sorted(copy_bases)) if recipe.copied else ()
    plan = Plan(conversion, catalog, buffers.limits, groups, cost, copied)
    vars(plan).update(recipe=recipe)  # execution would derive it again
    return plan


def _grouped(
    wished: Recipe, families: Sequence[Sequence[int]], copy_bases: Sequence[int]
) -> tuple[Recipe, tuple[Group, ...], Buffers, Needs]:
    """Form groups within the memory: rather stream what could be copied, or read bytes again, than refuse."""
    attempts = [(wished.limits, copy_bases)]
    if copy_bases:
        attempts.append((wished.limits, ()))
    if any(tensor.unit != (0, 1) for tensor in wished.tensors):
        attempts.append((replace(wished.limits, unit_bytes=1), ()))
    refusals: list[OverBudget] = []
    for limits, bases in attempts:
        buffers = share_memory(limits)
        recipe = with_copies(replace(wished, limits=buffers.limits), bases)
        needs = Needs(recipe)
        try:
            return recipe, form_groups(recipe, families, buffers, needs), buffers, needs
        except OverBudget as refusal:
            refusals.append(refusal)
    raise min(refusals, key=lambda refusal: refusal.needed_bytes)


def without_copies(plan: Plan) -> Plan:
    """The same conversion by a store that copies nothing by itself.

    Raises
    ------
    OverBudget
        What was to be copied cannot be streamed within the memory.
    """
    if not plan.copy_bases:
        return plan
    streamed = make_plan(plan.conversion, plan.limits, catalog=plan.catalog)
    return replace(streamed, staging=plan.staging, staging_mode=plan.staging_mode, staging_note=plan.staging_note)


def check_texts(outputs: Sequence[Output]) -> None:
    """Refuse text where the format has no place for it."""
    lost = {name for output in _distinct(outputs) if output.container is Container.SAFETENSORS for name in output.texts}
    raise_all(
        PlanError,
        "safetensors cannot hold values that are text",
        sorted(lost),
        hint="Leave them out with --drop, or write .ckpt.",
    )


def _families(outputs: Sequence[Output], tensors: Sequence[TargetTensor]) -> list[list[int]]:
    """Outputs that gain from being written together.

    They do where their boxes of a tensor lie between each other's bytes (one pipeline stage's column
    slices of the same rows). Outputs that hold each box as one run go with those of the same tensors.
    """
    families: dict[Hashable, list[int]] = {}
    for positions in group_by_layout(outputs):
        output = outputs[positions[0]]
        held = zip(output.tensors, output.boxes, strict=True)
        scattered = [slot for slot, (t, box) in enumerate(held) if not _is_one_run(box, extent_of(tensors[t].spec)[0])]
        telling = _telling_rows(output, scattered, tensors)
        which = tuple(output.tensors[slot] for slot in scattered) or output.tensors
        for position in positions:
            rows = tuple(outputs[position].boxes[slot].start[0] for slot in telling)
            families.setdefault((which, rows), []).append(position)
    return sorted(map(sorted, families.values()))


def _telling_rows(output: Output, slots: Sequence[int], tensors: Sequence[TargetTensor]) -> list[int]:
    """Slots that tell which rows an output holds, one for all tensors that are cut alike.

    Outputs that hold other rows of a tensor have no bytes between its own, unless its axes are turned over.
    """
    kept = [slot for slot in slots if all(p.patch.keeps_order for p in tensors[output.tensors[slot]].pieces)]
    if output.form is None:
        return kept
    return list({id(output.form.partitions[slot]): slot for slot in kept}.values())


def _distinct(outputs: Sequence[Output]) -> list[Output]:
    """One output of each form."""
    return [outputs[positions[0]] for positions in group_by_layout(outputs)]


def _is_one_run(box: Box, shape: Shape) -> bool:
    """Whether a box is contiguous in a row-major tensor."""
    for axis, extent in enumerate(box.shape):
        if extent != 1:
            return math.prod(box.shape[axis + 1 :]) == math.prod(shape[axis + 1 :])
    return True
