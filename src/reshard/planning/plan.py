"""How a conversion is carried out: what is written together, where it is cut, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import OverBudget
from .catalog import Catalog
from .conversion import Conversion
from .cost.cost import Cost, count_cost
from .limits import KERNEL_BYTES, Limits
from .outputs.output import Output, TargetTensor, check_outputs
from .steps.buffers import Buffers, share_memory
from .steps.copies import with_copies
from .steps.draft import Draft, Group
from .steps.group_steps import GroupSteps
from .steps.groups import form_groups, output_families
from .steps.row_reads import RowReader
from .steps.steps import Step


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
    def draft(self) -> Draft:
        """What steps are derived from."""
        return with_copies(Draft(self.catalog, self.tensors, self.outputs, self.limits), self.copy_bases)

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self.draft)

    @property
    def buffers(self) -> Buffers:
        """How the memory is shared out."""
        return share_memory(self.limits)

    @cached_property
    def _recent(self) -> dict[int, GroupSteps]:
        return {}

    def group_steps(self, group: int) -> GroupSteps:
        """Return the steps of one group, to be derived one by one and in any order."""
        steps = self._recent.get(group)
        if steps is None:
            steps = GroupSteps(self.draft, self._reader, group, self.groups[group])
            vars(self)["_recent"] = {group: steps}  # one group may be large; replaced as a whole for other threads
        return steps

    def step(self, group: int, number: int) -> Step:
        """Derive one step; its numbers are ``group_steps(group).numbers``."""
        return self.group_steps(group).step(number)

    def steps(self, group: int) -> Iterator[Step]:
        """Derive the steps of one group: first what the store copies, then those of the cuts in order."""
        steps = self.group_steps(group)
        return map(steps.step, steps.numbers)


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
    tensors, outputs = conversion.tensors, conversion.outputs
    if any(tensor.tile_itemsize for tensor in tensors):
        limits = replace(limits, kernel_bytes=KERNEL_BYTES)
    check_outputs(outputs, (*conversion.documents, *conversion.attachments), limits.max_object_bytes)
    wished = Draft(catalog, tensors, outputs, limits)
    draft, groups, buffers, reader = _grouped(wished, output_families(outputs, tensors), copy_bases)
    cost = count_cost(draft, groups, conversion, buffers, reader)
    copied = tuple(sorted(copy_bases)) if draft.copied_ranges else ()
    plan = Plan(conversion, catalog, buffers.limits, groups, cost, copied)
    vars(plan).update(draft=draft, _reader=reader)  # execution would derive them again
    return plan


def _grouped(
    wished: Draft, families: Sequence[Sequence[int]], copy_bases: Sequence[int]
) -> tuple[Draft, tuple[Group, ...], Buffers, RowReader]:
    """Form groups within the memory: rather stream what could be copied, or read bytes again, than refuse."""
    attempts = [(wished.limits, copy_bases)]
    if copy_bases:
        attempts.append((wished.limits, ()))
    if any(tensor.unit != (0, 1) for tensor in wished.tensors):
        attempts.append((replace(wished.limits, unit_bytes=1), ()))
    refusals: list[OverBudget] = []
    for limits, bases in attempts:
        buffers = share_memory(limits)
        draft = with_copies(replace(wished, limits=buffers.limits), bases)
        reader = RowReader(draft)
        try:
            return draft, form_groups(draft, families, buffers, reader), buffers, reader
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
