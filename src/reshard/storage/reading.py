"""What every store's reads have in common."""

from __future__ import annotations

from ..errors import SourceChanged, StorageError, UsageError
from ..tensor import ByteRange


def checked_target(span: ByteRange, target: memoryview) -> memoryview:
    """Return ``target`` if it can take exactly the bytes of ``span``.

    Raises
    ------
    UsageError
        It is of another length or format, or read-only; or the span is none.

    Examples
    --------
    >>> len(checked_target(ByteRange(4, 8), memoryview(bytearray(4))))
    4
    """
    if span.start < 0 or span.nbytes < 0:
        raise UsageError(f"[{span.start}, {span.stop}) is not a byte range.")
    if target.readonly or target.format != "B" or not target.c_contiguous or target.nbytes != span.nbytes:
        raise UsageError(
            f"The buffer to read into must be {span.nbytes} writable contiguous bytes of format 'B'; "
            f"it is {target.nbytes} bytes of format {target.format!r}."
        )
    return target


def beyond_end(url: str, span: ByteRange, nbytes: int | None = None) -> StorageError:
    """Make the error for a read past the end of an object."""
    length = "is shorter" if nbytes is None else f"is {nbytes} bytes long"
    return StorageError(
        f"{url} {length}: bytes [{span.start}, {span.stop}) cannot be read.",
        hint="The object is cut off, or the file that names these bytes belongs to another one.",
    )


def changed(url: str, expected: str, found: str = "") -> SourceChanged:
    """Make the error for an object that is no longer the same."""
    now = f", it is {found} now" if found else ""
    return SourceChanged(
        f"{url} has changed: its etag was {expected}{now}.",
        hint="Plan again from the new object, or put the old one back.",
    )


def expect_etag(url: str, expected: str | None, found: str) -> None:
    """Return if the object is the one expected, or nothing can be told.

    Raises
    ------
    SourceChanged
        Both etags are known and differ.
    """
    if expected and found and expected != found:
        raise changed(url, expected, found)
