"""Runs steps: reads fill parts, and each filled part goes to a sink (an upload, or a comparison)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ...errors import SourceChanged
from ...planning.catalog import SourceObject
from ...planning.plan import Plan
from ...planning.steps.steps import CopiedPart, Read, Step, StreamedPart
from ...storage import Location
from ..events import Listener, Progress
from ..kernels.scatter import repeat, scatter
from ..kernels.tiles import compute
from ..source_check import stored_since
from ..workers import Task, Workers
from .arena import Arena, Lease, ThreadBuffers

# Sending frees memory, reading takes it: so sending goes first. What the store does by itself fills the gaps.
_COPY_URGENCY, _READ_URGENCY, _SEND_URGENCY = -1, 0, 1
_POLL_S = 0.2


class Sink(Protocol):
    """What becomes of filled parts."""

    def tasks(self, step: Step, part: StreamedPart, data: memoryview) -> Iterable[Task]:
        """Say what is to be done with one part; the bytes stay valid until all of it is done."""
        ...

    def copies(self, step: Step, part: CopiedPart) -> Iterable[Task]:
        """Say what is to be done with one part whose bytes do not pass through here."""
        ...


@dataclass(slots=True)
class _Filling:
    """A step on its way: its buffers, and how many of its reads are still out."""

    step: Step
    leases: list[Lease]
    reads_left: int
    lock: threading.Lock = field(default_factory=threading.Lock)


class ThreadExecutor:
    """Moves the bytes of a plan, never holding more than the plan says.

    Parameters
    ----------
    plan
        What to move.
    sources
        Where the catalog's keys count from: its URL, then the others.
    workers
        Threads that carry the requests.
    listener
        Told where things stand, a few times a second.

    Attributes
    ----------
    buffers
        One for each thread, of a read's size; free for the sink while a thread deals with a part.
    """

    def __init__(self, plan: Plan, sources: Sequence[Location], workers: Workers, listener: Listener) -> None:
        self._plan = plan
        self._sources = sources
        self._workers = workers
        self._listener = listener
        self._outputs = plan.outputs
        self._arena = Arena(plan.cost.peak_bytes - plan.buffers.fixed_bytes)
        self.buffers = ThreadBuffers(max(2, plan.limits.read_bytes))  # who compares two sides halves it
        self._lock = threading.Lock()
        self._begun = threading.Condition()
        self._waiting_reads = 0
        self._read_bytes = self._written_bytes = self._reading = self._writing = 0

    def run(self, steps: Iterable[Step], sink: Sink) -> None:
        """Run steps, many at once, and return when all their parts have been dealt with.

        Raises
        ------
        ReshardError
            The first failure; other steps may have been left half done.
        """
        for step in steps:
            self._workers.check()
            self._copy(step, sink)
            if not step.parts:
                continue
            self._wait_for_reads()
            sizes = [*(part.range.nbytes for part in step.parts), *step.tile_sizes]
            leases = self._arena.take(sizes, self._wait_for_memory)
            self._workers.check()
            self._fill_known(step, leases)
            filling = _Filling(step, leases, len(step.reads))
            with self._begun:
                self._waiting_reads += len(step.reads)
            for read in step.reads:
                self._workers.submit(self._reading_task(filling, read, sink), urgency=_READ_URGENCY)
            if not step.reads:
                self._finish(filling, sink)
        self._workers.wait(self._tell)
        self._tell()

    def do(self, task: Task, nbytes: int) -> None:
        """Do at once what makes so many bytes of an output."""
        self._counted_task(task, nbytes)()

    def do_all(self, tasks: Iterable[tuple[Task, int]]) -> None:
        """Do the same with many at a time; returns when all are done."""
        for task, nbytes in tasks:
            self._workers.submit(self._counted_task(task, nbytes))
        self._workers.wait(self._tell)
        self._tell()

    def _copy(self, step: Step, sink: Sink) -> None:
        for part in step.copies:
            for task in sink.copies(step, part):
                self._workers.submit(self._counted_task(task, part.range.nbytes), urgency=_COPY_URGENCY)

    def _wait_for_reads(self) -> None:
        """Take memory only when reads run short: what was used just before costs the kernel and the caches least."""
        while True:
            with self._begun:
                if self._waiting_reads < self._plan.limits.concurrency:
                    return
                is_slow = not self._begun.wait(_POLL_S)
            self._workers.check()
            if is_slow:
                self._tell()

    def _wait_for_memory(self) -> None:
        self._workers.check()
        self._tell(waits_for_memory=True)

    def _tell(self, *, waits_for_memory: bool = False) -> None:
        cost = self._plan.cost
        with self._lock:
            progress = Progress(
                self._read_bytes,
                self._written_bytes,
                max(cost.read_bytes, self._read_bytes),  # replicas that cannot be copied are read for again
                max(cost.written_bytes + cost.copied_bytes, self._written_bytes),  # and sent, if begun to be copied
                self._reading,
                self._writing,
                waits_for_memory,
            )
        self._listener(progress)

    def _fill_known(self, step: Step, leases: list[Lease]) -> None:
        for part, lease in zip(step.parts, leases, strict=False):  # parts come first
            for place, data in self._outputs[part.output].frame.literals_in(part.range.start, part.range.stop):
                first = place - part.range.start
                lease.view[first : first + len(data)] = data

    def _reading_task(self, filling: _Filling, read: Read, sink: Sink) -> Task:
        def task() -> None:
            with self._begun:
                self._waiting_reads -= 1
                self._begun.notify()
            with self._counted("_reading"):
                self._receive(read, filling.leases)
            with self._lock:
                self._read_bytes += read.range.nbytes
            with filling.lock:
                filling.reads_left -= 1
                is_last = not filling.reads_left
            if is_last:
                self._finish(filling, sink)

        return task

    def _receive(self, read: Read, leases: list[Lease]) -> None:
        item = self._plan.catalog.objects[read.object]
        place = self._sources[item.base].child(item.key)
        if read.is_direct:
            only = read.scatters[0]
            _read_into(place, item, read, leases[only.buffer].view[only.scatter.target :][: only.scatter.nbytes])
            return
        scratch = self.buffers.mine()[: read.range.nbytes]
        _read_into(place, item, read, scratch)
        for each in read.scatters:
            scatter(each.scatter, scratch, leases[each.buffer].view)

    def _finish(self, filling: _Filling, sink: Sink) -> None:
        """All reads are in: compute what is to be computed, and hand the parts over."""
        step, leases = filling.step, filling.leases
        first_result = len(leases) - len(step.tiles)
        for tile, result in zip(step.tiles, leases[first_result:], strict=True):
            inputs = leases[tile.first_input : tile.first_input + len(tile.inputs)]
            compute(tile, self._plan.catalog.entries, [lease.view for lease in inputs], result.view)
            for each in tile.scatters:
                scatter(each.scatter, result.view, leases[each.buffer].view)
        for lease in leases[len(step.parts) :]:
            self._arena.give(lease)
        self._send(filling, sink)

    def _send(self, filling: _Filling, sink: Sink) -> None:
        for part, lease in zip(filling.step.parts, filling.leases, strict=False):  # parts come first
            tasks = list(sink.tasks(filling.step, part, lease.view))
            left = _Countdown(len(tasks), lambda lease=lease: self._arena.give(lease))  # type: ignore[misc]
            for task in tasks:
                self._workers.submit(self._sending_task(task, len(lease.view), left), urgency=_SEND_URGENCY)

    def _sending_task(self, task: Task, nbytes: int, left: _Countdown) -> Task:
        counted = self._counted_task(task, nbytes)

        def last_frees_memory() -> None:
            counted()
            left.one_done()

        return last_frees_memory

    def _counted_task(self, task: Task, nbytes: int) -> Task:
        def counted() -> None:
            with self._counted("_writing"):
                task()
            with self._lock:
                self._written_bytes += nbytes

        return counted

    def _counted(self, name: str) -> _Count:
        return _Count(self, self._lock, name)


def _read_into(place: Location, item: SourceObject, read: Read, target: memoryview) -> None:
    """Receive a read, or make its bytes where the source left out what holds one value only."""
    if item.fill:
        repeat(item.fill, read.range.start, target)
        for problem in stored_since(place):  # no etag pins what is not there
            raise SourceChanged(problem, hint="Make the plan anew.")
        return
    place.store.read_into(place.key, read.range, target, item.etag)


class _Countdown:
    """Calls back when as many have finished as were announced."""

    def __init__(self, count: int, at_zero: Callable[[], None]) -> None:
        self._left = count
        self._at_zero = at_zero
        self._lock = threading.Lock()
        if not count:
            at_zero()

    def one_done(self) -> None:
        with self._lock:
            self._left -= 1
            is_last = not self._left
        if is_last:
            self._at_zero()


class _Count:
    """One more of something for the length of a block."""

    def __init__(self, holder: object, lock: threading.Lock, name: str) -> None:
        self._holder, self._lock, self._name = holder, lock, name

    def __enter__(self) -> None:
        self._add(1)

    def __exit__(self, *_: object) -> None:
        self._add(-1)

    def _add(self, change: int) -> None:
        with self._lock:
            setattr(self._holder, self._name, getattr(self._holder, self._name) + change)
