"""What every store's copies of parts have in common."""

from __future__ import annotations

from ..errors import Unsupported, UsageError
from ..tensor import ByteRange
from .protocol import ReadStore


def checked_span(span: ByteRange) -> ByteRange:
    """Return a span that a part may be made of.

    Raises
    ------
    UsageError
        It is empty, or none.

    Examples
    --------
    >>> checked_span(ByteRange(4, 8)).nbytes
    4
    """
    if span.start < 0 or span.nbytes <= 0:
        raise UsageError(f"[{span.start}, {span.stop}) is not a range of bytes that can be copied.")
    return span


def not_copied(target: ReadStore, source: ReadStore) -> Unsupported:
    """Make the error for a store that another cannot copy from."""
    return Unsupported(
        f"{target.url} cannot copy bytes from {source.url}.", hint="Read them there, and send them from here."
    )


def too_short(url: str, fewest_bytes: int) -> Unsupported:
    """Make the error for an object that the service copies as a whole only."""
    return Unsupported(
        f"{url} is shorter than {fewest_bytes} bytes: no range of it can be copied.", hint="Read it and send its bytes."
    )
