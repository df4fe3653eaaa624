"""The memory of an executor: one block for all parts, where taking waits, and one buffer per thread for reads."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """A stretch of an arena, to be given back once."""

    start: int
    stop: int
    view: memoryview


class Arena:
    """A fixed block of memory that hands out stretches of itself and takes them back.

    Its pages are touched once and then reused. With a new buffer for every part the kernel would
    zero new pages all the time, which costs up to a third of the whole transfer.

    Examples
    --------
    >>> arena = Arena(8192)
    >>> [lease] = arena.take([5000], lambda: None)
    >>> len(lease.view), arena.free_bytes
    (5000, 3192)
    >>> arena.give(lease)
    >>> arena.free_bytes
    8192
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._memory = _map(nbytes)
        self._free = [(0, nbytes)]
        self._changed = threading.Condition()

    @property
    def free_bytes(self) -> int:
        """Bytes that are not in use."""
        return sum(stop - start for start, stop in self._free)

    def take(self, sizes: Sequence[int], on_wait: Callable[[], None], wait_s: float = 0.2) -> list[Lease]:
        """Hand out one stretch for each size in bytes, all or none, waiting until they fit.

        ``on_wait`` is called every ``wait_s`` seconds of waiting; an error in it ends the waiting. Raise ValueError
        for sizes that could never fit.
        """
        if sum(sizes) > self._nbytes:
            raise ValueError(f"{sum(sizes)} bytes do not fit an arena of {self._nbytes}")
        while True:
            with self._changed:
                leases = self._try_take(sizes)
                if leases is None:
                    self._changed.wait(wait_s)
            if leases is not None:
                return leases
            on_wait()

    def give(self, lease: Lease) -> None:
        """Take a stretch back."""
        with self._changed:
            # Free stretches are kept sorted and joined: first fit then reuses the lowest pages, which are warm.
            merged: list[tuple[int, int]] = []
            for start, stop in sorted([*self._free, (lease.start, lease.stop)]):
                if merged and merged[-1][1] == start:
                    merged[-1] = (merged[-1][0], stop)
                elif start < stop:
                    merged.append((start, stop))
            self._free = merged
            self._changed.notify_all()

    def _try_take(self, sizes: Sequence[int]) -> list[Lease] | None:
        # All or none: steps that each held some of their buffers could wait for each other forever.
        free = list(self._free)
        leases: list[Lease] = []
        for size in sizes:
            for index, (start, stop) in enumerate(free):
                if stop - start >= size:
                    free[index : index + 1] = [(start + size, stop)] if stop - start > size else []
                    leases.append(Lease(start, start + size, self._memory[start : start + size]))
                    break
            else:
                return None
        self._free = free
        return leases


class ThreadBuffers:
    """One buffer per thread, allocated when the thread first asks for it."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._local = threading.local()

    def mine(self) -> memoryview:
        """Return the calling thread's buffer."""
        if not hasattr(self._local, "view"):
            self._local.view = _map(self._nbytes)
        view: memoryview = self._local.view
        return view


def _map(nbytes: int) -> memoryview:
    """Map private memory: what mmap gives by default is shared, and the kernel has no huge pages for that."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return memoryview(mmap.mmap(-1, max(1, nbytes)))
    memory = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
