"""Breaks off answers whose bodies trickle or that nobody wants any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from .stopping import ShouldStop

_LOOK_EVERY_S = 0.2
_IDLE_S = 5.0


@dataclass(slots=True, eq=False)
class WatchedBlock:
    """A block of a body on its way, and whether the watch broke it off for being slow."""

    answer: Any
    should_stop: ShouldStop
    end_s: float
    is_too_slow: bool = False

    def look(self, now_s: float) -> None:
        """Break off if it is time: the thread that reads sees the end of the body."""
        self.is_too_slow = now_s > self.end_s
        if self.is_too_slow or self.should_stop():
            with suppress(OSError, ValueError, RuntimeError):  # it has just ended by itself
                self.answer.shutdown()


class BodyWatch:
    """Looks at all blocks that are being read, from one thread that lives while there are any.

    A block that takes longer than ``limit_s`` is broken off. A timeout of the socket would not do: a byte now and then
    keeps it from striking.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._blocks: set[WatchedBlock] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def block(self, answer: Any, should_stop: ShouldStop) -> Iterator[WatchedBlock]:
        """Watch an answer of urllib3 while a block of it is read."""
        block = WatchedBlock(answer, should_stop, time.monotonic() + self.limit_s)
        with self._lock:
            self._blocks.add(block)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="reshard-body-watch", daemon=True)
                self._thread.start()
        try:
            yield block
        finally:
            with self._lock:
                self._blocks.discard(block)

    def _run(self) -> None:
        busy_s = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            now_s = time.monotonic()
            with self._lock:
                for block in self._blocks:
                    block.look(now_s)
                busy_s = now_s if self._blocks else busy_s
                if now_s - busy_s > _IDLE_S:
                    self._thread = None
                    return
