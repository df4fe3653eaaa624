"""Reads sources and outputs again and compares them bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ..errors import OverBudget, UsageError, counted
from ..figures import in_bytes
from ..notebook import Picture, Shown, Table
from ..planning.outputs.output import Attachment, Document
from ..planning.plan import Plan, make_plan
from ..planning.plan_json import conversion_ids
from ..planning.share_documents import written_ranks
from ..planning.steps.steps import CopiedPart, StreamedPart
from ..planning.targets.zarr_target import ChunkOutput
from ..storage import Location
from ..tensor import ByteRange
from .events import Listener, PhaseStarted, ignore
from .executors.choose import choose_executor, core_count, crew_for
from .executors.executor import StepId
from .kernels.scatter import first_difference
from .locations import Locations, check_source
from .manifest import Manifest, ObjectReceipt
from .meter import Meter
from .workers import Workers, working

_MAX_PROBLEMS = 1000
_BLOCK_BYTES = 1 << 20
_SOURCE_HINT = "There is nothing to compare with: restore the source's objects, or convert the present ones."


@dataclass(frozen=True, slots=True)
class Subset:
    """Every ``of``-th step, beginning with the ``number``-th (from 1)."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Subset:
        """Parse ``n/t``; UsageError if the text is not of that form, or n is not one of 1..t."""
        number, _, of = text.partition("/")
        are_numbers = all(part.isdecimal() and len(part) < 19 for part in (number, of))
        if not (are_numbers and 1 <= int(number) <= int(of)):
            raise UsageError(f"subset {text[:40]!r}: expected n/t with 1 <= n <= t, like 1/10")
        return cls(int(number), int(of))


@dataclass(frozen=True, slots=True, repr=False)
class Report(Shown):
    """Findings of a verification: bytes of the outputs, objects that were looked at, every difference in words.

    ``missing_ranks`` are those that no run has finished, where several runs write one target.
    """

    conversion_id: str
    checked_bytes: int
    total_bytes: int
    object_count: int
    problems: tuple[str, ...]
    missing_ranks: tuple[int, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether the outputs are all there, and agree with the sources."""
        return not self.problems and not self.missing_ranks

    @property
    def verdict(self) -> str:
        """The outcome in words."""
        if self.problems:
            return counted(len(self.problems), "difference")
        if self.missing_ranks:
            return f"incomplete: no run has finished ranks {written_ranks(self.missing_ranks)}"
        return "all compared bytes match" if self.checked_bytes else "nothing was compared"

    @property
    def compared(self) -> str:
        """What was compared, in words."""
        objects = counted(self.object_count, "object")
        return f"{in_bytes(self.checked_bytes)} of {in_bytes(self.total_bytes)} in {objects}"

    def picture(self) -> Picture:
        """Return what a notebook shows of it."""
        problems = Table("differences", ("difference",), ((each,) for each in self.problems), len(self.problems))
        return Picture(f"{self.verdict}: {self.compared}", (problems,))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome for one part: how many bytes are right, or which is not."""

    nbytes: int
    problem: str = ""


def verify_manifest(
    manifest: Manifest,
    source: Location,
    target: Location,
    *,
    others: Sequence[Location] = (),
    subset: Subset = Subset(),
    listener: Listener = ignore,
) -> Report:
    """Compare every output with its sources, within the limits of the conversion.

    Raise SourceChanged if the source is no longer what was converted, so that nothing can be compared.
    """
    # By streaming, however the run had filled the outputs: staged chunks are gone, and a plan that copies would compare
    # ranges with the places that it chose itself.
    # It may have been made on a larger machine, or on many: each process has the memory that it had there.
    made = manifest.limits
    process_count = min(made.process_count, core_count())
    memory_bytes = made.memory_bytes // made.process_count * process_count
    # What is damaged on its way differs from the outputs.
    limits = replace(made, read_count=1, process_count=process_count, memory_bytes=memory_bytes)
    try:
        plan = make_plan(manifest.conversion, limits)
    except OverBudget as error:  # the store had copied what the run's memory could not stream
        plan = make_plan(manifest.conversion, replace(limits, memory_bytes=error.needed_bytes))
    locations = Locations((source, *others), target)
    with crew_for(plan, locations) as crew, working(plan.limits.concurrency, *locations.stores) as workers:
        check_source(plan, locations, workers, _SOURCE_HINT)
        wrong = _check_objects(manifest, target, workers)
        listener(PhaseStarted("verify"))
        executor = choose_executor(crew, locations, workers, Meter(plan.cost, listener))
        parts = executor.run(plan, PartComparer(plan, locations, wrong), _chosen(plan, subset))
        checked_bytes, problems = 0, list[str]()
        for compared in chain(parts, _compare_documents(plan, locations, wrong, workers)):
            checked_bytes += compared.nbytes
            if compared.problem:
                problems.append(compared.problem)
    total_bytes = sum(output.nbytes * len(output.keys) for output in plan.outputs)
    total_bytes += sum(len(document.data) for document in plan.conversion.documents)
    total_bytes += sum(attachment.nbytes for attachment in plan.conversion.attachments)
    found = (*sorted(wrong.values()), *sorted(problems))[:_MAX_PROBLEMS]
    return Report(conversion_ids(manifest.conversion)[1], checked_bytes, total_bytes, len(manifest.receipts), found)


def join_reports(reports: Sequence[Report], missing_ranks: tuple[int, ...]) -> Report:
    """Return one report of the shares of a target that are finished."""
    return Report(
        reports[0].conversion_id,
        sum(report.checked_bytes for report in reports),
        sum(report.total_bytes for report in reports),
        sum(report.object_count for report in reports),
        tuple(chain.from_iterable(report.problems for report in reports))[:_MAX_PROBLEMS],
        missing_ranks,
    )


def _chosen(plan: Plan, subset: Subset) -> Iterator[StepId]:
    position = 0
    for group in range(len(plan.groups)):
        for number in plan.group_steps(group).numbers:
            if position % subset.of == subset.number - 1:
                yield group, number
            position += 1


def _check_objects(manifest: Manifest, target: Location, workers: Workers) -> dict[str, str]:
    """Return a problem by key for each object that is gone or has another length than was written."""
    problems: dict[str, str] = {}

    def check(receipt: ObjectReceipt) -> None:
        place = target.child(receipt.key)
        info = place.head_or_none()
        if info is None:
            problems[receipt.key] = f"{place.url}: expected {receipt.nbytes} bytes, the object is gone"
        elif info.nbytes != receipt.nbytes:
            problems[receipt.key] = f"{place.url}: expected {receipt.nbytes} bytes, found {info.nbytes}"

    workers.map(check, manifest.receipts)
    return problems


class PartComparer:
    """A sink that compares parts with the objects at a target, except skipped ones."""

    def __init__(self, plan: Plan, locations: Locations, skipped: Collection[str]) -> None:
        self._plan = plan
        self._locations = locations
        self._skipped = skipped

    def keys(self, output: int) -> Sequence[str]:
        """Return those of an output's keys that are compared."""
        return [key for key in self._plan.outputs[output].keys if key not in self._skipped]

    def stream(self, key: str, part: StreamedPart, data: memoryview, scratch: memoryview) -> Comparison:
        """Compare one part."""
        place = self._locations.target.child(key)
        byte = _different_byte(place, part.range.start, data, scratch)
        if byte is None:
            return Comparison(len(data))
        return Comparison(0, f"{place.url}: byte {byte} differs{self._tensor_at(part.output, byte)}")

    def copy(self, key: str, part: CopiedPart) -> Comparison:
        """Refuse: plans are compared without copies."""
        raise NotImplementedError(f"{key}: part {part.number} is copied")

    def _tensor_at(self, number: int, byte: int) -> str:
        output = self._plan.outputs[number]
        place = output.frame.place_of(byte)
        if place is None:
            if isinstance(output, ChunkOutput):
                return " (in the padding)"
            extents = output.frame.extents
            return " (in the header)" if not extents or byte < extents[0].start else " (between tensors)"
        slot, position = place
        return f" (in tensor {output.specs[slot].name}, its byte {position})"


def _compare_documents(
    plan: Plan, locations: Locations, skipped: Collection[str], workers: Workers
) -> Iterator[Comparison]:
    found: list[Comparison] = []

    def compare(item: Document | Attachment) -> None:
        data = item.data if isinstance(item, Document) else locations.read(plan, item)
        place = locations.target.child(item.key)
        byte = _different_byte(place, 0, memoryview(data), memoryview(bytearray(min(max(1, len(data)), _BLOCK_BYTES))))
        found.append(Comparison(len(data)) if byte is None else Comparison(0, f"{place.url}: byte {byte} differs"))

    items: list[Document | Attachment] = [*plan.conversion.documents, *plan.conversion.attachments]
    workers.map(compare, [item for item in items if item.key not in skipped])
    yield from found


def _different_byte(place: Location, start: int, expected: memoryview, buffer: memoryview) -> int | None:
    """Read an object from byte ``start`` on, a buffer's length at a time; return the first byte that differs."""
    for first in range(0, len(expected), len(buffer)):
        block = expected[first : first + len(buffer)]
        found = buffer[: len(block)]
        place.store.read_into(place.key, ByteRange(start + first, start + first + len(block)), found)
        differs_at = first_difference(block, found)
        if differs_at is not None:
            return start + first + differs_at
    return None
