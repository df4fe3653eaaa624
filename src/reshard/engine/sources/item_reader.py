"""Reads what describes many items of one object, in few requests: the ends of neighbours lie side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from ...formats.torch_zip import HEAD_BYTES, TAIL_BYTES, ArchiveScan, StoredTensor
from ...tensor import ByteRange

_GAP_BYTES = 16 << 10
_MOST_BYTES = 4 << 20

Read = Callable[[ByteRange], bytes]


class ItemReader:
    """Answers reads of one object from ranges that were read ahead, and reads the others; counts all bytes."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._starts: list[int] = []
        self._blocks: list[bytes] = []
        self.read_bytes = 0

    def read_ahead(self, items: Iterable[ByteRange]) -> None:
        """Read the heads and tails of items, joined where they are close; nothing else is kept."""
        wanted: list[ByteRange] = []
        for item in items:
            wanted.append(ByteRange(item.start, min(item.stop, item.start + HEAD_BYTES)))
            wanted.append(ByteRange(max(item.start, item.stop - TAIL_BYTES), item.stop))
        spans = _joined(sorted(wanted))
        self._blocks = [self._fetch(span) for span in spans]
        self._starts = [span.start for span in spans]

    def read(self, span: ByteRange) -> bytes:
        """Return the bytes of a range."""
        index = bisect_right(self._starts, span.start) - 1
        if index >= 0:
            first = span.start - self._starts[index]
            if first + span.nbytes <= len(self._blocks[index]):
                return self._blocks[index][first : first + span.nbytes]
        return self._fetch(span)

    def scan(self, scan: ArchiveScan, first: int) -> dict[str, StoredTensor]:
        """Have an archive that begins at a byte of the object read by its format."""
        try:
            wanted = next(scan)
            while True:
                wanted = scan.send(self.read(ByteRange(first + wanted.start, first + wanted.stop)))
        except StopIteration as finished:
            return dict(finished.value)

    def _fetch(self, span: ByteRange) -> bytes:
        self.read_bytes += span.nbytes
        return self._read(span) if span.nbytes else b""


def _joined(spans: Sequence[ByteRange]) -> list[ByteRange]:
    joined: list[ByteRange] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last and span.start <= last.stop + _GAP_BYTES and span.stop - last.start <= _MOST_BYTES:
            joined[-1] = ByteRange(last.start, max(last.stop, span.stop))
        else:
            joined.append(span)
    return joined
