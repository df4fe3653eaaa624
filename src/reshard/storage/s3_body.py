"""A part as a file, so that boto3 sends it from the caller's own memory."""

from __future__ import annotations

import io

from .protocol import Body
from .stopping import ShouldStop, check, never

__all__ = ["PartBody"]

_BLOCK_BYTES = 256 << 10
"""Handed to the socket at once. The HTTP library asks for 16 KiB, which costs a system call each."""


class PartBody:
    """A seekable, read-only file over a buffer; reading hands out views, never copies.

    boto3 takes no memoryview, and would copy it into bytes. A file it asks for its length, reads
    to the end, and winds back before it sends it again.

    Parameters
    ----------
    body
        What to send.
    should_stop
        Asked before each block.

    Examples
    --------
    >>> body = PartBody(b"hello")
    >>> len(body), bytes(body.read(-1)), body.read(1).nbytes, body.seek(1), bytes(body.read(2))
    (5, b'hello', 0, 1, b'el')
    """

    def __init__(self, body: Body, should_stop: ShouldStop = never) -> None:
        self._view = memoryview(body).cast("B")
        self._at = 0
        self._should_stop = should_stop

    def __len__(self) -> int:
        return self._view.nbytes

    def read(self, size: int | None = None) -> memoryview:
        """Return the next bytes.

        Raises
        ------
        Interrupted
            The transfer is to be broken off.
        """
        check(self._should_stop)
        left = self._view.nbytes - self._at
        count = left if size is None or size < 0 else min(size, left)
        view = self._view[self._at : self._at + count]
        self._at += count
        return view

    def tell(self) -> int:
        """Position of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another byte, as files do."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._view.nbytes}[whence]
        self._at = max(0, start + offset)
        return self._at
