"""How a conversion is carried out: what is written together, where it is cut, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from ..errors import OverBudget
from ..figures import in_bytes
from ..notebook import Picture, Shown, Table
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
    """When tensors are staged, and below which URL; ``limits`` are those of the store there, None for the plan's.

    It ``is_near`` if the target's store can copy from there, and the store there from wherever the target's can.
    With ``is_always`` everything is staged that can be, rather than only where it is cheaper.
    """

    url: str
    is_near: bool = True
    is_always: bool = False
    limits: Limits | None = None


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """How a conversion is carried out. Steps are derived on demand.

    Parameters
    ----------
    catalog
        Where steps read: the conversion's catalog or, if tensors are staged, the same with their chunks.
    limits
        Limits in effect: those that the memory does not allow are lowered.
    copy_bases
        Where the target's store copies from: bases of the catalog's objects, and ``REPLICAS`` for
        equal outputs. Empty if it copies nothing.
    staging
        The first of two passes, if there are two: it writes some tensors to a zarr store, which is the last of
        the catalog's other URLs.
    staging_mode, staging_note
        Where the first pass writes, and what that saves, for people; None and empty without staging.
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

    def __getstate__(self) -> dict[str, Any]:
        # Another process derives the rest again, which costs less than carrying it there.
        return {each.name: getattr(self, each.name) for each in fields(self)}

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
        """Remarks for people, to read before the conversion starts."""
        return (*self.conversion.notes, *([self.staging_note] if self.staging_note else []))

    def picture(self) -> Picture:
        """Return what a notebook shows of it."""
        made, cost = self.conversion, self.cost
        line = (
            f"{made.catalog.url} -> {made.target_url}: {len(self.outputs)} outputs, reads {in_bytes(cost.read_bytes)} "
            f"and writes {in_bytes(cost.written_bytes)} in {cost.request_count} requests"
        )
        outputs = ((", ".join(each.keys), in_bytes(each.nbytes), len(each.specs)) for each in self.outputs)
        specs = (tensor.spec for tensor in self.tensors)
        tensors = ((spec.name, spec.dtype.value, list(spec.shape), in_bytes(spec.nbytes)) for spec in specs)
        figures = [(name.replace("_", " "), value) for name, value in asdict(cost).items()]
        tables = (
            Table("outputs", ("keys", "size", "tensors"), outputs, len(self.outputs)),
            Table("tensors", ("name", "dtype", "shape", "size"), tensors, len(self.tensors)),
            Table("cost", ("figure", "value"), figures, len(figures)),
        )
        return Picture(line, tables, self.notes)

    @cached_property
    def draft(self) -> Draft:
        """What steps are derived from, besides the groups."""
        return with_copies(Draft(self.catalog, self.tensors, self.outputs, self.limits), self.copy_bases)

    @cached_property
    def reader(self) -> RowReader:
        """It keeps what is found about the draft."""
        return RowReader(self.draft)

    def after(self, first: Plan, mode: StagingMode | None, note: str = "") -> Plan:
        """Return this plan as the second pass after another."""
        plan = replace(self, staging=first, staging_mode=mode, staging_note=note)
        vars(plan).update({name: found for name, found in vars(self).items() if name in ("draft", "reader")})
        return plan

    @property
    def buffers(self) -> Buffers:
        """How the memory is divided."""
        return share_memory(self.limits)

    @cached_property
    def _recent(self) -> dict[int, GroupSteps]:
        return {}

    def group_steps(self, group: int) -> GroupSteps:
        """Return the steps of one group, to be derived one by one and in any order."""
        steps = self._recent.get(group)
        if steps is None:
            steps = GroupSteps(self.draft, self.reader, group, self.groups[group])
            # One group may be large, so only the last is kept; the dict is replaced as a whole for other threads.
            vars(self)["_recent"] = {group: steps}
        return steps

    def step(self, group: int, number: int) -> Step:
        """Derive one step; its numbers are ``group_steps(group).numbers``."""
        return self.group_steps(group).step(number)

    def steps(self, group: int) -> Iterator[Step]:
        """Derive the steps of one group: first those that copy, then those of the cuts in order."""
        steps = self.group_steps(group)
        return map(steps.step, steps.numbers)


@dataclass(frozen=True)
class Grouping:
    """A plan whose groups are formed and whose cost is not yet counted.

    The draft reads the conversion's catalog, or another with the same tensors; ``reader`` keeps what forming the
    groups found about it.
    """

    conversion: Conversion
    draft: Draft
    copy_bases: tuple[int, ...]
    groups: tuple[Group, ...]
    buffers: Buffers
    reader: RowReader

    def plan(self) -> Plan:
        """Count the cost; OverBudget if a step does not fit the memory, known only now where values are computed."""
        draft, limits = self.draft, self.buffers.limits
        cost = count_cost(draft, self.groups, self.conversion, self.buffers, self.reader)
        plan = Plan(self.conversion, draft.catalog, limits, self.groups, cost, self.copy_bases)
        vars(plan).update(draft=draft, reader=self.reader)  # deriving steps would find them again
        return plan


def make_plan(
    conversion: Conversion, limits: Limits, copy_bases: Sequence[int] = (), catalog: Catalog | None = None
) -> Plan:
    """Decide how to carry out a conversion, or refuse; the same inputs always give the same plan.

    ``copy_bases`` are what the target's store can copy from, see :class:`Plan`. ``catalog`` is where to read instead of
    the conversion's catalog: the same tensors, some of them staged in chunks.

    Raises
    ------
    StrategyError
        Layouts do not fit the tensors.
    OverBudget
        The memory limit is too small; the error carries the limit that would suffice.
    PlanError
        Two outputs would have one key, or cannot hold their content.
    """
    return group_outputs(conversion, limits, copy_bases, catalog).plan()


def group_outputs(
    conversion: Conversion, limits: Limits, copy_bases: Sequence[int] = (), catalog: Catalog | None = None
) -> Grouping:
    """Form groups within the memory: rather stream what could be copied, or read bytes again, than refuse.

    Parameters and errors are those of :func:`make_plan`.
    """
    tensors, outputs = conversion.tensors, conversion.outputs
    if any(tensor.tile_itemsize for tensor in tensors):
        limits = replace(limits, kernel_bytes=KERNEL_BYTES)
    check_outputs(outputs, (*conversion.documents, *conversion.attachments), limits.max_object_bytes)
    families = output_families(outputs, tensors)
    attempts = [(limits, copy_bases)]
    if copy_bases:
        attempts.append((limits, ()))
    if any(tensor.unit != (0, 1) for tensor in tensors):
        attempts.append((replace(limits, unit_bytes=1), ()))
    refusals: list[OverBudget] = []
    for attempt, bases in attempts:
        buffers = share_memory(attempt)
        draft = with_copies(Draft(catalog or conversion.catalog, tensors, outputs, buffers.limits), bases)
        reader = RowReader(draft)
        try:
            groups = form_groups(draft, families, buffers, reader)
        except OverBudget as refusal:
            refusals.append(refusal)
        else:
            return Grouping(conversion, draft, tuple(sorted(bases)), groups, buffers, reader)
    raise min(refusals, key=lambda refusal: refusal.needed_bytes)


def without_copies(plan: Plan) -> Plan:
    """Return the same conversion for a store that copies nothing.

    Raise OverBudget if what was to be copied cannot be streamed within the memory.
    """
    if not plan.copy_bases:
        return plan
    streamed = make_plan(plan.conversion, plan.limits, catalog=plan.catalog)
    return streamed.after(plan.staging, plan.staging_mode, plan.staging_note) if plan.staging else streamed
