"""Reads sources and outputs again and compares them bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..errors import OverBudget, UsageError
from ..formats.containers import Container
from ..planning.outputs.output import Attachment, Document
from ..planning.plan import Plan, without_copies
from ..planning.staging import without_staging
from ..planning.steps.steps import CopiedPart, Step, StreamedPart
from ..planning.targets.zarr_target import ChunkOutput
from ..storage import Location
from ..tensor import ByteRange
from .events import Listener, PhaseStarted, ignore
from .execute import check_source, read_attachment
from .executors.arena import ThreadBuffers
from .executors.threads import ThreadExecutor
from .kernels.scatter import first_difference
from .manifest import Manifest, Receipt
from .workers import Task, Workers, working

_MAX_PROBLEMS = 1000
_SOURCE_HINT = "There is nothing to compare with: bring the source's objects back, or convert anew what is there now."


@dataclass(frozen=True, slots=True)
class Subset:
    """Every ``of``-th step, beginning with the ``number``-th (from 1).

    Examples
    --------
    >>> Subset.parse("2/10")
    Subset(number=2, of=10)
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Subset:
        """Read ``n/t``.

        Raises
        ------
        UsageError
            Not of that form, or n is not one of 1..t.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(f"subset {text!r}: expected n/t with 1 <= n <= t, like 1/10")
        return cls(int(number), int(of))


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found.

    Parameters
    ----------
    plan_id
        Of the conversion.
    checked_bytes, total_bytes
        Of the outputs.
    object_count
        Outputs that were looked at.
    problems
        Every difference, in words; empty when all is right.
    """

    plan_id: str
    checked_bytes: int
    total_bytes: int
    object_count: int
    problems: tuple[str, ...]

    @property
    def is_ok(self) -> bool:
        """Whether outputs and sources agree."""
        return not self.problems


def verify_manifest(
    manifest: Manifest,
    plan_id: str,
    source: Location,
    target: Location,
    *,
    others: Sequence[Location] = (),
    subset: Subset = Subset(),
    listener: Listener = ignore,
) -> Report:
    """Compare every output with its sources, in the memory that the plan was made for.

    Raises
    ------
    SourceChanged
        The source is no longer what was converted, so nothing can be compared.
    """
    plan = _streamed(manifest.plan)
    manifest = replace(manifest, plan=plan)
    sources = (source, *others)
    stores = {id(place.store): place.store for place in (*sources, target)}.values()
    with working(plan.limits.concurrency, *stores) as workers:
        check_source(plan, sources, workers, _SOURCE_HINT)
        problems = _check_objects(manifest, target, workers)
        transfer = ThreadExecutor(plan, sources, workers, listener)
        comparison = _Comparison(plan, sources, target, frozenset(problems), transfer.buffers)
        listener(PhaseStarted("verify"))
        transfer.run(_chosen(plan, subset), comparison)
        _check_documents(plan, sources, comparison, workers)
    found = sorted(problems.values()) + sorted(comparison.problems)
    total = sum(output.nbytes * len(output.keys) for output in plan.outputs)
    total += sum(len(document.data) for document in plan.conversion.documents)
    total += sum(attachment.nbytes for attachment in plan.conversion.attachments)
    return Report(plan_id, comparison.checked_bytes, total, len(manifest.receipts), tuple(found[:_MAX_PROBLEMS]))


def _streamed(plan: Plan) -> Plan:
    """The plan that makes the same of the source by reading it: what was staged is gone, and whether the right
    bytes were copied is not for the plan to say that chose them."""
    streamed = without_staging(plan)
    try:
        return without_copies(streamed)
    except OverBudget:
        return streamed


def _chosen(plan: Plan, subset: Subset) -> Iterator[Step]:
    position = 0
    for index in range(len(plan.groups)):
        for step in plan.steps(index):
            if position % subset.of == subset.number - 1:
                yield step
            position += 1


def _check_objects(manifest: Manifest, target: Location, workers: Workers) -> dict[str, str]:
    """Objects that are gone or have another length than was written, by key."""
    problems: dict[str, str] = {}

    def check(receipt: Receipt) -> None:
        place = target.child(receipt.key)
        info = place.head_or_none()
        if info is None:
            problems[receipt.key] = f"{place.url}: expected {receipt.nbytes} bytes, the object is gone"
        elif info.nbytes != receipt.nbytes:
            problems[receipt.key] = f"{place.url}: expected {receipt.nbytes} bytes, found {info.nbytes}"

    workers.map(check, manifest.receipts)
    return problems


def _check_documents(plan: Plan, sources: Sequence[Location], comparison: _Comparison, workers: Workers) -> None:
    def check(item: Document | Attachment) -> None:
        if item.key not in comparison.skipped:
            data = item.data if isinstance(item, Document) else read_attachment(plan, sources, item)
            comparison.compare(item.key, 0, memoryview(data))

    items: list[Document | Attachment] = [*plan.conversion.documents, *plan.conversion.attachments]
    workers.map(check, items)


@dataclass
class _Comparison:
    """A sink that compares parts with what the target holds."""

    plan: Plan
    sources: Sequence[Location]
    target: Location
    skipped: frozenset[str]
    buffers: ThreadBuffers
    checked_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tasks(self, _step: Step, part: StreamedPart, data: memoryview) -> Iterable[Task]:
        """Compare a part in every replica."""
        for key in self.plan.outputs[part.output].keys:
            if key not in self.skipped:
                yield partial(self._compare_part, key, part, data)

    def _compare_part(self, key: str, part: StreamedPart, data: memoryview) -> None:
        self.compare(key, part.range.start, data, part.output)

    def copies(self, _step: Step, part: CopiedPart) -> Iterable[Task]:
        """Compare a part with where it was copied from, in every replica."""
        for key in self.plan.outputs[part.output].keys:
            if key not in self.skipped:
                yield partial(self._compare_copy, key, part)

    def _compare_copy(self, key: str, part: CopiedPart) -> None:
        item = self.plan.catalog.objects[part.object]
        place = self.sources[item.base].child(item.key)
        buffer = self.buffers.mine()
        half = len(buffer) // 2
        for first in range(part.first, part.source_range.stop, half):
            expected = buffer[half : half + min(half, part.source_range.stop - first)]
            place.store.read_into(place.key, ByteRange(first, first + len(expected)), expected, item.etag)
            start = part.range.start + first - part.first
            if not self.compare(key, start, expected, part.output, buffer[:half]):
                return

    def compare(
        self,
        key: str,
        start: int,
        expected: memoryview,
        output: int | None = None,
        buffer: memoryview | None = None,
    ) -> bool:
        """Read what the target has at ``start`` block by block and compare; whether it is the same."""
        location, buffer = self.target.child(key), self.buffers.mine() if buffer is None else buffer
        for first in range(0, len(expected), len(buffer)):
            wanted = expected[first : first + len(buffer)]
            span, found = ByteRange(start + first, start + first + len(wanted)), buffer[: len(wanted)]
            location.store.read_into(location.key, span, found)
            differs_at = first_difference(wanted, found)
            if differs_at is not None:
                at = span.start + differs_at
                with self._lock:
                    self.problems.append(f"{location.url}: byte {at} differs{self._tensor_at(output, at)}")
                return False
        with self._lock:
            self.checked_bytes += len(expected)
        return True

    def _tensor_at(self, number: int | None, byte: int) -> str:
        if number is None:
            return ""
        output = self.plan.outputs[number]
        place = output.frame.place_of(byte)
        if place is None:
            if isinstance(output, ChunkOutput):
                return " (in the padding)"
            return " (in the header)" if output.container is Container.SAFETENSORS else " (between tensors)"
        slot, position = place
        return f" (in tensor {output.specs[slot].name}, its byte {position})"
