"""Bytes and requests of a run, counted as they happen."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..planning.cost.cost import Cost
from .events import Event, Listener, Progress
from .kernels.overflow import Overflows


class Traffic:
    """Requests in one direction. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.in_flight = self.done_bytes = self.expected_bytes = 0

    @contextmanager
    def request(self, nbytes: int) -> Iterator[None]:
        """Count a request: in flight for the length of the block, and done unless the block raises."""
        with self._lock:
            self.in_flight += 1
        try:
            yield
        except BaseException:
            nbytes = 0
            raise
        finally:
            with self._lock:
                self.in_flight -= 1
                self.done_bytes += nbytes

    def add(self, *, done_bytes: int = 0, expected_bytes: int = 0, in_flight: int = 0) -> None:
        """Count bytes apart from their request, or requests of another process."""
        with self._lock:
            self.done_bytes += done_bytes
            self.expected_bytes += expected_bytes
            self.in_flight += in_flight


class Meter:
    """Counts reads and writes, and reports them to a listener from the thread that leads.

    In a verification a comparison counts as a write. ``overflows`` are values that did not fit their dtype.
    """

    def __init__(self, cost: Cost, listener: Listener) -> None:
        self._listener = listener
        self.overflows = Overflows()
        self.begin(cost)

    def begin(self, cost: Cost) -> None:
        """Count from zero, for a plan of this cost."""
        self.reads, self.writes, self.copies = Traffic(), Traffic(), Traffic()
        self.resumed_bytes = 0
        self._machine_bytes: Counter[str] = Counter()
        self.reads.expected_bytes = cost.read_bytes
        self.writes.expected_bytes = cost.written_bytes + cost.copied_bytes

    def resume(self, nbytes: int) -> None:
        """Count what an earlier run has sent."""
        self.resumed_bytes += nbytes
        self.writes.add(done_bytes=nbytes)

    def copied(self, nbytes: int) -> None:
        """Note that the store has copied some of the bytes that count as written."""
        self.copies.add(done_bytes=nbytes)

    def moved_at(self, machine: str, nbytes: int) -> None:
        """Note where bytes were moved; called by the thread that leads."""
        self._machine_bytes[machine] += nbytes

    def tell(self, event: Event) -> None:
        """Send another event to the listener."""
        self._listener(event)

    def report(self, *, waits_for_memory: bool = False) -> None:
        """Send a :class:`Progress` to the listener."""
        read_bytes, written_bytes = self.reads.done_bytes, self.writes.done_bytes
        self._listener(
            Progress(
                read_bytes,
                written_bytes,
                max(read_bytes, self.reads.expected_bytes),  # what the store refuses to copy is read, beyond the plan
                max(written_bytes, self.writes.expected_bytes),
                self.reads.in_flight,
                self.writes.in_flight,
                waits_for_memory,
                self.copies.done_bytes,
                self.resumed_bytes,
                dict(self._machine_bytes) if len(self._machine_bytes) > 1 else {},
            )
        )
