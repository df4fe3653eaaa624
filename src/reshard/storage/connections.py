"""What the places that a block of code opens share: connections, how long to wait for a store, and whom to tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .availability import Availability, Outage, ToldOutage
from .retry import RetryPolicy

T = TypeVar("T")
OnOutage = Callable[[Outage | None], None]
"""Is told about once a second of a store that does not answer, and once with None when all answer again."""

_TELL_EVERY_S = 1.0


@dataclass(slots=True)
class _Sharing:
    """One block: what was made in it, which blocks within it see too."""

    made: dict[Hashable, Any]
    policy: RetryPolicy
    on_outage: OnOutage | None
    thread: int = field(default_factory=threading.get_ident)
    told_s: float = 0.0
    is_waiting: bool = False

    def report(self) -> None:
        """Tell of the longest outage, now and then."""
        if self.on_outage is None or self.thread != threading.get_ident():
            return
        now_s = time.monotonic()
        if now_s - self.told_s < _TELL_EVERY_S:
            return
        self.told_s = now_s
        stores = [each for each in list(self.made.values()) if isinstance(each, Availability | ToldOutage)]
        outages = [outage for store in stores if (outage := store.outage())]
        if outages or self.is_waiting:
            self.is_waiting = bool(outages)
            self.on_outage(max(outages, key=lambda outage: outage.seconds, default=None))


_SHARING: ContextVar[_Sharing | None] = ContextVar("_SHARING", default=None)


@contextmanager
def shared_connections(policy: RetryPolicy | None = None, on_outage: OnOutage | None = None) -> Iterator[None]:
    """Open the connections to each bucket once, for the length of a block or of a call of what this decorates.

    Places that are opened in the block retry by ``policy``. ``on_outage`` is called in the thread that entered the
    block, from whatever that thread waits in. A block within another shares the other's connections, and has its policy
    and its ``on_outage`` unless it has its own.
    """
    outer = _SHARING.get()
    if outer is None:
        inner = _Sharing({}, policy or RetryPolicy(), on_outage)
    else:
        inner = _Sharing(outer.made, policy or outer.policy, on_outage or outer.on_outage)
    token = _SHARING.set(inner)
    try:
        yield
    finally:
        _SHARING.reset(token)
    if outer is not None and outer.on_outage:  # which goes on telling
        outer.is_waiting |= inner.is_waiting
    elif inner.is_waiting and inner.on_outage:
        inner.on_outage(None)


@contextmanager
def fresh_connections(policy: RetryPolicy, on_outage: OnOutage) -> Iterator[None]:
    """Share connections as :func:`shared_connections` does, but none with what this process was forked from."""
    token = _SHARING.set(None)
    try:
        with shared_connections(policy, on_outage):
            yield
    finally:
        _SHARING.reset(token)


def shared(name: Hashable, make: Callable[[], T]) -> T:
    """Return what ``make`` returns; within :func:`shared_connections`, call it once for each ``name``."""
    sharing = _SHARING.get()
    if sharing is None:
        return make()
    if name not in sharing.made:
        sharing.made[name] = make()
    found: T = sharing.made[name]
    return found


def current_policy() -> RetryPolicy:
    """Return the policy of the block that runs, or the default outside of any."""
    sharing = _SHARING.get()
    return sharing.policy if sharing else RetryPolicy()


def report_outages() -> None:
    """Tell whoever the block that runs names whether a store does not answer; to be called often while waiting."""
    if sharing := _SHARING.get():
        sharing.report()
