"""Checks of byte ranges, and the errors about them, that every store shares."""

from __future__ import annotations

from ..errors import SourceChanged, StorageError, Unsupported, UsageError
from ..tensor import ByteRange
from .protocol import ReadStore

SEND_INSTEAD = "Read the bytes and upload them."


def check_buffer(span: ByteRange, buffer: memoryview) -> None:
    """Raise UsageError unless ``buffer`` can take exactly the bytes of ``span``."""
    if span.start < 0 or span.nbytes < 0:
        raise UsageError(f"[{span.start}, {span.stop}) is not a byte range.")
    if buffer.readonly or buffer.format != "B" or not buffer.c_contiguous or buffer.nbytes != span.nbytes:
        raise UsageError(
            f"The read buffer must have {span.nbytes} writable contiguous bytes of format 'B'; "
            f"it has {buffer.nbytes} bytes of format {buffer.format!r}."
        )


def check_copied_span(span: ByteRange) -> None:
    """Raise UsageError unless ``span`` is a range that can be copied: one of at least a byte."""
    if span.start < 0 or span.nbytes <= 0:
        raise UsageError(f"[{span.start}, {span.stop}) is not a range of bytes that can be copied.")


def check_etag(url: str, expected: str | None, found: str) -> None:
    """Raise SourceChanged if both etags are known and differ."""
    if expected and found and expected != found:
        raise changed(url, expected, found)


def check_replaced(url: str, replaces: str | None, found: str) -> None:
    """Raise SourceChanged if an object is not the one that a write may replace; both etags are empty without one."""
    if replaces is not None and replaces != found:
        raise SourceChanged(f"{url} has changed: expected {replaces or 'no object'}, found {found or 'none'}.")


def changed(url: str, expected: str, found: str = "") -> SourceChanged:
    """Make the error for an object that is no longer the same."""
    now = f", it is {found} now" if found else ""
    return SourceChanged(
        f"{url} has changed: its etag was {expected}{now}.",
        hint="Make a new plan, or restore the old object.",
    )


def beyond_end(url: str, span: ByteRange, nbytes: int | None = None) -> StorageError:
    """Make the error for a range that passes the end of an object."""
    length = "is shorter" if nbytes is None else f"is {nbytes} bytes long"
    return StorageError(
        f"{url} {length}: bytes [{span.start}, {span.stop}) cannot be read.",
        hint="The object is truncated, or the index that names these bytes belongs to another object.",
    )


def cannot_copy(target: ReadStore, source: ReadStore) -> Unsupported:
    """Make the error for a store that does not copy from another."""
    return Unsupported(f"{target.url} cannot copy bytes from {source.url}.", hint=SEND_INSTEAD)
