"""Reads boxes of a conversion's tensors into memory, as a run would write them: planned, pinned and in parallel."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, replace

from ..engine.events import Listener, Noted, ignore
from ..engine.executors.threads import ThreadExecutor
from ..engine.locations import Locations
from ..engine.meter import Meter
from ..engine.workers import working
from ..planning.conversion import Conversion
from ..planning.limits import Limits
from ..planning.outputs.output import Output
from ..planning.plan import Plan, make_plan
from ..planning.steps.steps import CopiedPart, StreamedPart
from ..storage import open_source
from .boxes import BoxesTarget, WantedBox

Allocate = Callable[[int], memoryview]
"""Gives the memory of a box, by its position among those that are read: writable bytes, exactly its length."""


def limits_for(memory_bytes: int | None, concurrency: int | None, max_gap_bytes: int, read_count: int = 1) -> Limits:
    """Return the limits of reading into memory, which takes parts of any length and number."""
    default = Limits()
    return replace(
        default,
        memory_bytes=memory_bytes or default.memory_bytes,
        concurrency=concurrency or default.concurrency,
        max_gap_bytes=max_gap_bytes,
        min_part_bytes=1,
        max_part_count=1 << 16,
        read_count=read_count,
    )


@dataclass(frozen=True, slots=True)
class BoxReader:
    """Reads boxes of the tensors of a conversion.

    Parameters
    ----------
    limits
        Of every single read: its memory comes on top of what it returns.
    context
        Where stores were opened for the conversion, so that their connections are used again.
    """

    conversion: Conversion
    limits: Limits
    context: Context
    listener: Listener = ignore

    def plan(self, wanted: Sequence[WantedBox]) -> Plan:
        """Plan to read boxes, none of them empty; errors are those of :func:`reshard.planning.plan.make_plan`."""
        return make_plan(self.conversion.for_target(BoxesTarget(tuple(wanted))), self.limits)

    def read(self, wanted: Sequence[WantedBox], allocate: Allocate) -> Iterator[int]:
        """Read boxes into memory, and yield the position of each as soon as it is complete.

        Whoever takes them slowly slows reading down. ``allocate`` is called once for each, from any thread, when its
        first bytes arrive.
        """
        if not wanted:
            return
        plan = self.plan(wanted)
        target = plan.conversion.target
        assert isinstance(target, BoxesTarget)
        sink = BoxSink(plan.outputs, target.positions(plan.tensors), allocate)
        steps = ((group, number) for group in range(len(plan.groups)) for number in plan.group_steps(group).numbers)
        locations = self.open()
        meter = Meter(plan.cost, self.listener)
        with working(plan.limits.concurrency, *locations.stores) as workers:
            results, context = ThreadExecutor(locations, workers, meter).run(plan, sink, steps), self.context.copy()
            while (complete := context.run(next, results, None)) is not None:  # there someone hears of outages
                yield from complete
        if note := meter.overflows.note(self.conversion.change.on_overflow):
            self.listener(Noted(note))

    def open(self) -> Locations:
        """Open the source anew: reads at the same time must not stop each other, only share connections."""
        catalog = self.conversion.catalog
        sources = self.context.copy().run(lambda: [open_source(url) for url in (catalog.url, *catalog.others)])
        return Locations(sources, sources[0])


class BoxSink:
    """A sink that puts parts where their boxes are in memory; its results are the boxes that became complete.

    ``positions`` name the box of each slot of each output.
    """

    def __init__(self, outputs: Sequence[Output], positions: Sequence[Sequence[int]], allocate: Allocate) -> None:
        self._outputs = outputs
        self._positions = positions
        self._allocate = allocate
        self._lock = threading.Lock()
        self._memory: dict[int, memoryview] = {}
        self._missing: dict[int, int] = {}

    def keys(self, output: int) -> Sequence[str]:
        """Return the only key of an output."""
        return self._outputs[output].keys

    def stream(self, key: str, part: StreamedPart, data: memoryview, scratch: memoryview) -> list[int]:
        """Put the bytes of one part into the boxes that they belong to."""
        complete = []
        extents = self._outputs[part.output].frame.extents
        first = bisect_right(extents, part.range.start, key=lambda extent: extent.start) - 1
        for extent in extents[first:]:
            start, stop = max(part.range.start, extent.start), min(part.range.stop, extent.stop)
            if start >= stop:
                break
            position = self._positions[part.output][extent.slot]
            memory, first_byte = self._memory_of(position, extent.stop - extent.start), extent.start
            memory[start - first_byte : stop - first_byte] = data[start - part.range.start :][: stop - start]
            if self._is_complete(position, stop - start):
                complete.append(position)
        return complete

    def copy(self, key: str, part: CopiedPart) -> list[int]:
        """Refuse: no store copies into memory."""
        raise NotImplementedError(f"{key}: part {part.number} is copied")

    def _memory_of(self, position: int, nbytes: int) -> memoryview:
        with self._lock:
            if position not in self._memory:
                self._memory[position], self._missing[position] = self._allocate(position), nbytes
            return self._memory[position]

    def _is_complete(self, position: int, nbytes: int) -> bool:
        with self._lock:
            self._missing[position] -= nbytes
            if self._missing[position]:
                return False
            del self._memory[position]  # it belongs to whoever gave it
            return True
