"""From a catalog and a target to a plan: a value that tells everything a conversion will do."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..errors import OverBudget, PlanError, raise_all
from ..formats.containers import Container
from ..formats.mindspore.ckpt import INT4
from ..tensor import Box, Shape, extent_of
from .catalog import Catalog
from .change import NO_CHANGE, Change, make_tensors
from .cost.cost import Cost, count_cost
from .cost.memory import Buffers, share_memory
from .limits import KERNEL_BYTES, Limits
from .outputs.output import (
    BOOKKEEPING,
    Attachment,
    Document,
    Output,
    SourceMetadata,
    TargetTensor,
    check_outputs,
    group_by_layout,
)
from .steps.copies import with_copies
from .steps.groups import form_groups
from .steps.needs import Needs
from .steps.recipe import Group, Recipe
from .steps.steps import Step, group_steps
from .targets.target import Target

MANIFEST_KEY = "reshard-manifest.json"


@dataclass(frozen=True)
class Plan:
    """A conversion, decided: recipe, cuts and cost. Steps are derived when wanted.

    Parameters
    ----------
    catalog
        The source.
    target, target_url
        What is made of it, and where.
    limits
        As used: what the memory did not allow has been lowered.
    groups
        Which outputs are written together and where they are cut.
    cost
        Counted from the steps.
    notes
        What a person should know before starting.
    manifest_key
        Of the manifest, counted from the target's URL.
    renamed
        The source's names of tensors that are called otherwise, with their new names.
    change
        What becomes of the tensors under these names before they are cut.
    attachments
        Small objects that are copied besides.
    copied_from
        Whose bytes the target's store copies by itself: bases of the catalog's objects, and
        ``REPLICAS`` for equal outputs. Empty if it copies nothing.
    staging
        The first of two passes, if there are two: it writes some tensors to a zarr store, which is the last of
        the catalog's other places.
    """

    catalog: Catalog
    target: Target
    target_url: str
    limits: Limits
    groups: tuple[Group, ...]
    cost: Cost
    notes: tuple[str, ...]
    manifest_key: str = MANIFEST_KEY
    renamed: Mapping[str, str] = field(default_factory=dict)
    change: Change = NO_CHANGE
    attachments: tuple[Attachment, ...] = ()
    copy_bases: tuple[int, ...] = ()
    staging: Plan | None = None

    @cached_property
    def tensors(self) -> tuple[TargetTensor, ...]:
        """Every tensor of the target, whole."""
        return make_tensors(self.catalog, self.renamed, self.change).tensors

    @cached_property
    def source_metadata(self) -> SourceMetadata:
        """What the target holds besides tensors."""
        return SourceMetadata.of(self.catalog, self.renamed)

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """Every distinct object of the target."""
        return self.target.outputs(self.tensors, self.source_metadata)

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """Indices that are written beside the outputs."""
        return self.target.documents(self.outputs, self.tensors, self.source_metadata)

    @cached_property
    def recipe(self) -> Recipe:
        """What steps are derived from."""
        return with_copies(Recipe(self.catalog, self.tensors, self.outputs, self.limits), self.copy_bases)

    @property
    def buffers(self) -> Buffers:
        """How the memory is shared out."""
        return share_memory(self.limits)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every object that will be written but the manifest, counted from the target's URL."""
        beside = (*(document.key for document in self.documents), *(each.key for each in self.attachments))
        return (*(key for output in self.outputs for key in output.keys), *beside)

    def steps(self, group: int) -> Iterator[Step]:
        """Derive the steps of one group, in order."""
        return group_steps(self.recipe, group, self.groups[group])


def make_plan(
    catalog: Catalog,
    target: Target,
    target_url: str,
    limits: Limits,
    manifest_key: str = MANIFEST_KEY,
    renamed: Mapping[str, str] | None = None,
    change: Change = NO_CHANGE,
    attachments: Sequence[Attachment] = (),
    copy_bases: Sequence[int] = (),
) -> Plan:
    """Decide how to make a target of a source, or refuse.

    Parameters
    ----------
    catalog
        What the source holds.
    target
        What to make.
    target_url
        Where outputs' keys count from.
    limits
        Memory, concurrency and what the target's store accepts.
    renamed
        New names of tensors, by those of the source.
    change
        What becomes of the tensors under these names.
    attachments
        Small objects to copy besides.
    copied_from
        What the target's store can copy from; see :class:`Plan`.

    Returns
    -------
    Plan
        The same inputs always give the same plan.

    Raises
    ------
    StrategyError
        Layouts do not fit the tensors.
    OverBudget
        The memory limit is too small; the error tells the number that would do.
    PlanError
        Two outputs would have one key, or cannot hold what they should.
    """
    renamed = {old: new for old, new in (renamed or {}).items() if old != new}
    made = make_tensors(catalog, renamed, change)
    tensors = made.tensors
    if any(tensor.tile_itemsize for tensor in tensors):
        limits = replace(limits, kernel_bytes=KERNEL_BYTES)
    source_metadata = SourceMetadata.of(catalog, renamed)
    outputs = target.outputs(tensors, source_metadata)
    check_texts(outputs)
    documents = target.documents(outputs, tensors, source_metadata)
    check_outputs(outputs, (*documents, *attachments), limits.max_object_bytes)
    families = _families(outputs, tensors)
    recipe, groups, buffers, needs = _grouped(Recipe(catalog, tensors, outputs, limits), families, copy_bases)
    cost = count_cost(recipe, groups, documents, attachments, buffers, needs)
    plan = Plan(
        catalog,
        target,
        target_url,
        buffers.limits,
        groups,
        cost,
        (*catalog.notes, *made.notes, *target.notes(tensors), *_unloadable(outputs), *_unwritten(outputs)),
        manifest_key,
        renamed,
        change,
        tuple(attachments),
        tuple(sorted(copy_bases)) if recipe.copied else (),
    )
    # What it would find anew when it is carried out.
    vars(plan).update(
        tensors=tensors, source_metadata=source_metadata, outputs=outputs, documents=documents, recipe=recipe
    )
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
    made = make_plan(
        plan.catalog,
        plan.target,
        plan.target_url,
        plan.limits,
        plan.manifest_key,
        plan.renamed,
        plan.change,
        plan.attachments,
    )
    return replace(made, notes=plan.notes)


def check_texts(outputs: Sequence[Output]) -> None:
    """Refuse text where the format has no place for it."""
    lost: dict[Container, set[str]] = {}
    for output in _distinct(outputs):
        if not output.container.definition.has_texts:
            lost.setdefault(output.container, set()).update(output.texts)
    for container, names in lost.items():
        message = f"{container} cannot hold values that are text"
        raise_all(PlanError, message, sorted(names), hint="Leave them out with --drop, or write .ckpt.")


def _unloadable(outputs: Sequence[Output]) -> tuple[str, ...]:
    """Tell of names that MindSpore takes for its metadata: its ``load_checkpoint`` raises KeyError."""
    ours = [o for o in _distinct(outputs) if o.container is Container.SAFETENSORS and o.metadata.get("format") == "ms"]
    names = sorted({spec.name for output in ours for spec in output.specs} & BOOKKEEPING)
    return (f"MindSpore cannot load tensors of these names from safetensors: {', '.join(names)}",) if names else ()


def _unwritten(outputs: Sequence[Output]) -> tuple[str, ...]:
    """Note metadata that the outputs' format has no place for."""
    lost: dict[Container, set[str]] = {}
    for output in _distinct(outputs):
        if not output.container.definition.has_metadata:
            keys = {key for key, value in output.metadata.items() if value != INT4}
            lost.setdefault(output.container, set()).update(keys - BOOKKEEPING)
    return tuple(
        f"metadata that {container.suffix} cannot hold is not written: {', '.join(sorted(keys))}"
        for container, keys in lost.items()
        if keys
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
