"""Breaks off answers whose bodies trickle or that nobody wants any more."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from .stopping import ShouldStop

WATCH_THREAD = "reshard-body-watch"
"""Name of the threads that look at bodies. They hold no lock that a forked process would need."""

_LOOK_EVERY_S = 0.2
_IDLE_S = 5.0


@dataclass(slots=True, eq=False)
class WatchedBody:
    """A body on its way, block by block, and whether the watch broke it off for being slow."""

    answer: Any
    should_stop: ShouldStop
    limit_s: float
    end_s: float = math.inf
    is_too_slow: bool = False

    def begin_block(self) -> float:
        """Start the time of the next block; return the time now."""
        now_s = time.monotonic()
        self.end_s = now_s + self.limit_s
        return now_s

    def look(self, now_s: float) -> None:
        """Break off if it is time: the thread that reads sees the end of the body."""
        self.is_too_slow |= now_s > self.end_s
        if self.is_too_slow or self.should_stop():
            with suppress(OSError, ValueError, RuntimeError):  # it has just ended by itself
                self.answer.shutdown()


class BodyWatch:
    """Looks at all bodies that are being read, from one thread that lives while there are any.

    A block that takes longer than ``limit_s`` is broken off. A timeout of the socket would not do: a byte now and then
    keeps it from striking.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._bodies: set[WatchedBody] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def body(self, answer: Any, should_stop: ShouldStop) -> Iterator[WatchedBody]:
        """Watch an answer of urllib3 while it is read."""
        body = WatchedBody(answer, should_stop, self.limit_s)
        with self._lock:
            self._bodies.add(body)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=WATCH_THREAD, daemon=True)
                self._thread.start()
        try:
            yield body
        finally:
            with self._lock:
                self._bodies.discard(body)

    def _run(self) -> None:
        busy_s = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            now_s = time.monotonic()
            with self._lock:
                for body in self._bodies:
                    body.look(now_s)
                busy_s = now_s if self._bodies else busy_s
                if now_s - busy_s > _IDLE_S:
                    self._thread = None
                    return
