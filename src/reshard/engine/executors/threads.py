"""An executor of threads: reads fill parts within one block of memory, and full parts go to the sink."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

from ...errors import SourceChanged
from ...planning.plan import Plan
from ...planning.steps.steps import CopiedPart, Read, Step, StreamedPart
from ...storage.checksums import read_until_equal
from ..digest import ReadLedger
from ..kernels.compute import compute
from ..kernels.overflow import Found, Overflows
from ..kernels.scatter import repeat, scatter
from ..locations import Locations, stored_since
from ..meter import Meter
from ..workers import POLL_S, Workers
from .arena import Arena, Lease, ThreadBuffers
from .executor import PartSink, Result, StepId

# Sending frees memory and reading takes it, so sending goes first. Copies need none: they fill the gaps.
_COPY_URGENCY, _READ_URGENCY, _SEND_URGENCY = -1, 0, 1


@dataclass(frozen=True, slots=True)
class ThreadExecutor:
    """Moves the bytes of a plan in this process, never holding more than the plan allows.

    The workers carry the requests; the meter counts bytes, and reports them while the executor waits. The ledger, if
    there is one, takes the checksum of every range that is read.
    """

    locations: Locations
    workers: Workers
    meter: Meter
    ledger: ReadLedger | None = None

    def run(self, plan: Plan, sink: PartSink[Result], steps: Iterable[StepId]) -> Iterator[Result]:
        """Run steps, many at once; see :class:`~.executor.Executor`."""
        results: deque[Result] = deque()  # workers append, the leading thread empties it
        transfer = Transfer(plan, sink, self, deliver=lambda _, result: results.append(result))
        for _ in transfer.run(steps):
            while results:
                yield results.popleft()


Deliver = Callable[[StepId, Result], object]
Finish = Callable[[StepId, Found], object]


@dataclass(slots=True)
class _Doing:
    """A step in progress: its buffers, parts first, and a number for each read that arrives and each request that ends.

    ``result_count`` is how many requests give a result.
    """

    step_id: StepId
    step: Step
    result_count: int
    leases: list[Lease] = field(default_factory=list)
    overflows: Overflows = field(default_factory=Overflows)
    arrivals: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # drawing a number is atomic
    endings: Iterator[int] = field(default_factory=lambda: itertools.count(1))


class Transfer(Generic[Result]):
    """One run of an executor, with memory of its own.

    ``deliver`` takes the results of each step from whichever thread has one, and ``finish`` what overflowed in a step
    that has given all its results.
    """

    def __init__(
        self,
        plan: Plan,
        sink: PartSink[Result],
        executor: ThreadExecutor,
        *,
        deliver: Deliver[Result],
        finish: Finish | None = None,
    ) -> None:
        self._plan = plan
        self._sink = sink
        self._deliver = deliver
        self._finish = finish or (lambda _, found: executor.meter.overflows.add_all(found))
        self._locations = executor.locations
        self._workers = executor.workers
        self._meter = executor.meter
        self._ledger = executor.ledger
        self._arena = Arena(plan.cost.peak_bytes // plan.limits.process_count - plan.buffers.fixed_bytes)
        self._buffers = ThreadBuffers(plan.limits.read_bytes)
        self._read_begun = threading.Condition()
        self._waiting_reads = 0

    def run(self, steps: Iterable[StepId]) -> Iterator[None]:
        """Run steps, pausing now and then for the caller to look at what was delivered."""
        for step_id in steps:
            self._workers.check()
            self._start(step_id)
            yield
        while not self._workers.is_idle(POLL_S):
            self._meter.report()
            yield
        self._meter.report()
        yield

    def _start(self, step_id: StepId) -> None:
        """Queue the requests of a step, as soon as reads run short and its buffers fit the arena."""
        step = self._plan.step(*step_id)
        copies = [(key, copied) for copied in step.copies for key in self._sink.keys(copied.output)]
        sent_count = sum(len(self._sink.keys(part.output)) for part in step.parts)
        doing = _Doing(step_id, step, len(copies) + sent_count)
        for key, copied in copies:
            self._workers.submit(partial(self._copy, doing, key, copied), urgency=_COPY_URGENCY)
        if step.parts:
            self._start_reads(doing)
        elif not copies:
            self._finish(step_id, {})

    def _start_reads(self, doing: _Doing) -> None:
        step = doing.step
        self._wait_for_reads()
        sizes = [*(part.range.nbytes for part in step.parts), *step.tile_sizes]
        doing.leases = self._arena.take(sizes, self._wait_for_memory)
        self._workers.check()
        self._fill_literals(step, doing.leases)
        with self._read_begun:
            self._waiting_reads += len(step.reads)
        for read in step.reads:
            self._workers.submit(partial(self._read, doing, read), urgency=_READ_URGENCY)
        if not step.reads:
            self._send_parts(doing)

    def _wait_for_reads(self) -> None:
        """Wait until reads run short: memory that was freed just now is still in the processor's caches."""
        while True:
            with self._read_begun:
                if self._waiting_reads < self._plan.limits.concurrency:
                    return
                has_begun = self._read_begun.wait(POLL_S)
            self._workers.check()
            if not has_begun:
                self._meter.report()

    def _wait_for_memory(self) -> None:
        self._workers.check()
        self._meter.report(waits_for_memory=True)

    def _fill_literals(self, step: Step, leases: list[Lease]) -> None:
        for part, lease in zip(step.parts, leases, strict=False):  # parts come first
            frame = self._plan.outputs[part.output].frame
            for place, data in frame.literals_in(part.range.start, part.range.stop):
                first = place - part.range.start
                lease.view[first : first + len(data)] = data

    def _read(self, doing: _Doing, read: Read) -> None:
        with self._read_begun:
            self._waiting_reads -= 1
            self._read_begun.notify()
        with self._meter.reads.request(self._plan.limits.read_count * read.range.nbytes):
            if read.is_direct:
                only = read.scatters[0]
                self._receive(read, doing.leases[only.buffer].view[only.scatter.target :][: only.scatter.nbytes])
            else:
                scratch = self._buffers.mine()[: read.range.nbytes]
                self._receive(read, scratch)
                for each in read.scatters:
                    scatter(each.scatter, scratch, doing.leases[each.buffer].view)
        if next(doing.arrivals) == len(doing.step.reads):
            self._send_parts(doing)

    def _receive(self, read: Read, target: memoryview) -> None:
        item = self._plan.catalog.objects[read.object]
        place = self._locations.source(item)
        if not item.fill:
            fetch = partial(place.store.read_into, place.key, read.range, target, item.etag)
            fetch()
            if self._plan.limits.read_count > 1:
                read_until_equal(target, fetch, place.url)
            if self._ledger is not None:
                self._ledger.add(read.object, read.range, target)
            return
        # A chunk of one value that the source does not store. No etag pins it, so look whether it is stored by now.
        repeat(item.fill, read.range.start, target)
        for problem in stored_since(place):
            raise SourceChanged(problem, hint="Make a new plan.")

    def _send_parts(self, doing: _Doing) -> None:
        """All reads have arrived: compute tiles, give their buffers back, and hand the parts over."""
        step, leases = doing.step, doing.leases
        first_result = len(leases) - len(step.tiles)  # parts, then inputs of tiles, then their results
        for tile, result in zip(step.tiles, leases[first_result:], strict=True):
            inputs = leases[tile.first_input : tile.first_input + len(tile.inputs)]
            views = [lease.view for lease in inputs]
            compute(tile, self._plan.catalog.entries, views, result.view, doing.overflows)
            for each in tile.scatters:
                scatter(each.scatter, result.view, leases[each.buffer].view)
        for lease in leases[len(step.parts) :]:
            self._arena.give(lease)
        for part, lease in zip(step.parts, leases, strict=False):
            keys = self._sink.keys(part.output)
            ends = itertools.count(len(keys) - 1, -1)
            for key in keys:
                self._workers.submit(partial(self._send, doing, key, part, lease, ends), urgency=_SEND_URGENCY)
            if not keys:
                self._arena.give(lease)
        if not doing.result_count:
            self._finish(doing.step_id, doing.overflows.found)

    def _send(self, doing: _Doing, key: str, part: StreamedPart, lease: Lease, ends: Iterator[int]) -> None:
        with self._meter.writes.request(len(lease.view)):
            result = self._sink.stream(key, part, lease.view, self._buffers.mine())
        if not next(ends):  # the last of all keys
            self._arena.give(lease)
        self._hand_over(doing, result)

    def _copy(self, doing: _Doing, key: str, part: CopiedPart) -> None:
        with self._meter.writes.request(part.range.nbytes):
            result = self._sink.copy(key, part)
        self._meter.copied(part.range.nbytes)
        self._hand_over(doing, result)

    def _hand_over(self, doing: _Doing, result: Result) -> None:
        self._deliver(doing.step_id, result)
        if next(doing.endings) == doing.result_count:
            self._finish(doing.step_id, doing.overflows.found)
