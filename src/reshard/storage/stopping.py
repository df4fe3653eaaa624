"""Breaking off a transfer: one question, asked between blocks of bytes and while waiting."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Interrupted

ShouldStop = Callable[[], bool]
"""Whether to break off; once it answers yes it keeps doing so."""


def never() -> bool:
    """Answer no: nobody can stop the transfer."""
    return False


def check(should_stop: ShouldStop) -> None:
    """Raise Interrupted if the transfer is to be broken off."""
    if should_stop():
        raise Interrupted("Stopped in the middle of a transfer.")
