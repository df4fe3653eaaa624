"""What all requests of a run know of one store together: whether it answers."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

SLICE_S = 0.1
"""Longest wait between two looks at whether to stop."""

_DOWN_AFTER = 3
"""Failures in a row, of all requests, that tell a store that is down from a request that was lost."""

_SILENT_S = 15.0
"""Without a byte or an answer for so long, requests in flight count as waiting."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A store that does not answer: for how long by now, and what its last answer or failure was, if it gave one."""

    seconds: float
    reason: str = ""


@dataclass(slots=True, eq=False)
class ToldOutage:
    """An outage that another process has told of, as it is now."""

    now: Outage | None = None

    def outage(self) -> Outage | None:
        """Return the outage, or None if stores answer there."""
        return self.now


@dataclass(slots=True, eq=False)
class Try:
    """One try of one request; ``may_begin_s`` is when it may begin by itself, while the store is up."""

    may_begin_s: float = 0.0
    begun_s: float = field(default=0.0, init=False)


class Availability:
    """Admits tries to one store: all of them while it answers, one after the other while it does not.

    A store counts as down after some failures in a row, and as up with the next answer. While it is down, tries that
    want to begin stand in a line, and only the first of it probes the store, after a wait that grows from failure to
    failure: a store that comes back meets one request, and a request that fails for a reason of its own goes to the
    end of the line and keeps no other waiting. Any thread may call any method.

    Examples
    --------
    >>> store = Availability()
    >>> for _ in range(3):
    ...     store.failed(store.admit(Try(), lambda: None), "no connection", 0.0)
    >>> store.outage().reason
    'no connection'
    >>> store.answered(store.admit(Try(), lambda: None))
    >>> store.outage() is None
    True
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[Try] = deque()
        self._in_flight: set[Try] = set()
        self._probe: Try | None = None
        self._probe_at_s = 0.0
        self._failures = 0
        self._round = 1
        self._reason = ""
        self._failing_since_s = 0.0
        self._busy_since_s = 0.0
        self._heard_s = 0.0
        self._sent_s = 0.0
        self.has_answered = False
        """Whether the store has ever answered: its address is right then."""

    @property
    def round(self) -> int:
        """The number of the next probe of a store that is down, from 1."""
        return self._round

    @property
    def down_since_s(self) -> float | None:
        """When the first request failed, on the monotonic clock; None while the store is up."""
        return self._failing_since_s if self._failures >= _DOWN_AFTER else None

    def outage(self) -> Outage | None:
        """Tell whether requests wait for the store: it is down, or silent while requests are in flight."""
        with self._changed:
            since_s = max(self._heard_s, self._busy_since_s)
            if not self._failures:  # what takes bytes is there; after a failure that may be this machine alone
                since_s = max(since_s, self._sent_s)
            seconds = time.monotonic() - since_s
            is_silent = bool(self._in_flight) and seconds > _SILENT_S
            is_down = self._failures >= _DOWN_AFTER
            return Outage(seconds, self._reason if self._failures else "") if is_down or is_silent else None

    def admit(self, one: Try, on_wait: Callable[[], None]) -> Try:
        """Wait until a try may begin; ``on_wait`` is called often meanwhile, and an error in it ends the wait."""
        with self._changed:
            if not (self._line or self._in_flight or self._failures):
                self._busy_since_s = time.monotonic()
            self._line.append(one)
        try:
            while not self._begins(one):
                on_wait()
        except BaseException:  # a signal may come just when it has begun
            self.broke_off(one)
            raise
        finally:
            with self._changed:
                self._line.remove(one)
        return one

    def _begins(self, one: Try) -> bool:
        """Begin a try if it may, or else wait a little."""
        with self._changed:
            now_s = time.monotonic()
            if self.down_since_s is None:
                wait_s = one.may_begin_s - now_s
            elif self._probe is None and self._line[0] is one:
                wait_s = self._probe_at_s - now_s
            else:
                wait_s = SLICE_S
            if wait_s > 0:
                self._changed.wait(min(wait_s, SLICE_S))
                return False
            if self.down_since_s is not None:
                self._probe = one
            one.begun_s = now_s
            self._in_flight.add(one)
            return True

    def sent(self) -> None:
        """Note that bytes are on their way."""
        self._sent_s = time.monotonic()

    def progressed(self) -> None:
        """Note that the store answers, if not yet to the end: whoever waits goes on."""
        if self.has_answered and not self._failures:  # asked for every block
            self._heard_s = time.monotonic()
            return
        with self._changed:
            self._failures, self._round = 0, 1
            self._heard_s = time.monotonic()
            self.has_answered = True
            self._changed.notify_all()

    def answered(self, one: Try) -> None:
        """End a try that the store answered, if only with a refusal."""
        self.progressed()
        self.broke_off(one)

    def failed(self, one: Try, reason: str, longest_wait_s: float) -> None:
        """End a try that is worth another; if the store is down, the next begins within ``longest_wait_s``."""
        with self._changed:
            is_probe = one is self._probe
            self._end(one)
            if not self._failures:
                self._failing_since_s = time.monotonic()
            self._failures += 1
            self._round += is_probe
            self._reason = reason
            if is_probe or self._failures == _DOWN_AFTER:  # those in flight since before fail later, and say no more
                self._probe_at_s = time.monotonic() + random.uniform(0, longest_wait_s)  # noqa: S311
            self._changed.notify_all()

    def broke_off(self, one: Try) -> None:
        """End a try that says nothing about the store."""
        with self._changed:
            self._end(one)
            self._changed.notify_all()

    def _end(self, one: Try) -> None:
        self._in_flight.discard(one)
        if self._probe is one:
            self._probe = None
