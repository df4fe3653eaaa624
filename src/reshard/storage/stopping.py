"""Breaking off a transfer: one question, asked between blocks of bytes and while waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import Interrupted

ShouldStop = Callable[[], bool]
"""Whether to break off; once it answers yes it keeps doing so."""

_SLICE_S = 0.1


def never() -> bool:
    """Answer no: nobody can stop the transfer."""
    return False


def check(should_stop: ShouldStop) -> None:
    """Raise Interrupted if the transfer is to be broken off."""
    if should_stop():
        raise Interrupted("Stopped in the middle of a transfer.")


def pause(duration_s: float, should_stop: ShouldStop) -> None:
    """Sleep; wake up and raise Interrupted soon after ``should_stop`` says yes."""
    deadline = time.monotonic() + duration_s
    check(should_stop)
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE_S))
        check(should_stop)
