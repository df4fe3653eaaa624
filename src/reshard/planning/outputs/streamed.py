"""The bytes of an object that pass through the client: all but the ranges that the store copies."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from ...formats.frame import Frame
from ...tensor import ByteRange
from ..limits import Limits


@dataclass(frozen=True, slots=True, order=True)
class CopiedRange:
    """Bytes ``[start, stop)`` of an output that are contiguous and unchanged in one object of the source.

    ``object`` is the catalog's index, ``first`` the byte there.
    """

    start: int
    stop: int
    object: int
    first: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start

    def within(self, span: ByteRange) -> CopiedRange:
        """Return the part of it that makes some of its bytes."""
        return CopiedRange(span.start, span.stop, self.object, self.first + span.start - self.start)


@dataclass(frozen=True)
class Streamed:
    """An output without its copied ranges, addressed as if the streamed ranges between them were joined.

    Such addresses are called places here; methods that :class:`Frame` has too return places instead of bytes of
    the object. A seam is a place where a copied range was left out: an upload part is contiguous in the object,
    so that none extends over a seam.

    Examples
    --------
    >>> from reshard.formats.frame import make_frame
    >>> streamed = Streamed(make_frame([(0, b"head", 0, 8, 2)]), (CopiedRange(8, 16, 0, 0),))
    >>> streamed.nbytes, streamed.seams, streamed.address(0, 7)
    (12, (8,), 10)
    >>> list(streamed.spans(0, 0, 8)), list(streamed.ranges(4, 12))
    ([(0, 2, 0, 4), (6, 8, 1, 4)], [(0, ByteRange(start=4, stop=8)), (1, ByteRange(start=16, stop=20))])
    """

    frame: Frame
    copied: tuple[CopiedRange, ...] = ()

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(item.start for item in self.copied)

    @cached_property
    def _removed(self) -> tuple[int, ...]:
        """Copied bytes before each copied range, and all."""
        return tuple(accumulate((item.nbytes for item in self.copied), initial=0))

    @cached_property
    def seams(self) -> tuple[int, ...]:
        """Places where copied ranges were left out, ascending."""
        return tuple(start - removed for start, removed in zip(self._starts, self._removed, strict=False))

    @property
    def nbytes(self) -> int:
        """Number of bytes that are streamed."""
        return self.frame.nbytes - self._removed[-1]

    def _place(self, byte: int) -> int:
        index = bisect_right(self._starts, byte) - 1
        if index < 0:
            return byte
        return max(self.seams[index], byte - self._removed[index + 1])

    def address(self, slot: int, element: int) -> int:
        """Return the place of an element; of a copied one that of the seam."""
        byte = self.frame.address(slot, element)
        return self._place(byte) if self.copied else byte

    def end_of(self, slot: int, count: int) -> int:
        """Return the place just after the first ``count`` elements of a tensor, at least one."""
        byte = self.frame.end_of(slot, count)
        return self._place(byte) if self.copied else byte

    def spans(self, slot: int, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Find which of the elements ``[first, stop)`` of a tensor are streamed.

        Yield the first element, one past the last, the number of copied ranges before them, and the byte of the object
        where the tensor's element 0 would be if all elements before these were contiguous with them.
        """
        for a, b, origin in self.frame.spans(slot, first, stop):
            if not self.copied:
                yield a, b, 0, origin
                continue
            itemsize = (self.frame.end_of(slot, b) - origin) // b
            low, high = origin + a * itemsize, origin + b * itemsize
            for segment, span in self._uncopied(low, high):
                yield (span.start - origin) // itemsize, (span.stop - origin) // itemsize, segment, origin

    def _uncopied(self, low: int, high: int) -> Iterator[tuple[int, ByteRange]]:
        """Yield the streamed ranges among bytes of the object, each with the number of copied ranges before it."""
        index = max(0, bisect_right(self._starts, low) - 1)
        if index < len(self.copied) and low >= self.copied[index].start:
            low, index = max(low, self.copied[index].stop), index + 1
        while low < high:
            end = min(high, self._starts[index]) if index < len(self.copied) else high
            if low < end:
                yield index, ByteRange(low, end)
            if index == len(self.copied):
                return
            low, index = self.copied[index].stop, index + 1

    def ranges(self, start: int, stop: int) -> Iterator[tuple[int, ByteRange]]:
        """Yield the bytes of the object at some places, each range with the number of copied ranges before it."""
        index = bisect_right(self.seams, start)
        while start < stop:
            end = min(stop, self.seams[index]) if index < len(self.seams) else stop
            if start < end:
                yield index, ByteRange(start + self._removed[index], end + self._removed[index])
            start, index = end, index + 1

    def aligned(self, start: int, place: int, least: int) -> int:
        """Return the first place from ``place`` on where a part may end that began at ``start`` or at a seam since.

        Neither the part that ends there nor one from there to the next seam is shorter than ``least``.
        """
        while True:
            index = bisect_right(self.seams, place)
            before = max(start, self.seams[index - 1]) if index else start
            after = self.seams[index] if index < len(self.seams) else None
            if 0 < place - before < least:  # the part that ends here
                place = before + least
            elif after is not None and after - place < least:  # what would be left up to the seam
                place = after
            else:
                return place


def split_evenly(item: CopiedRange, most: int) -> Sequence[CopiedRange]:
    """Divide a copied range into equal ones of at most ``most`` bytes."""
    return [item.within(ByteRange(item.start + a, item.start + b)) for a, b in _even_edges(item.nbytes, most)]


def whole_copies(nbytes: int, limits: Limits) -> Sequence[ByteRange]:
    """Return the parts in which a whole object is copied."""
    most = max(limits.most_copied_bytes, -(-nbytes // limits.max_part_count))
    return [ByteRange(a, b) for a, b in _even_edges(nbytes, most)]


def _even_edges(nbytes: int, most: int) -> Sequence[tuple[int, int]]:
    count = -(-nbytes // most)
    return list(pairwise(nbytes * i // count for i in range(count + 1)))
