"""The layout of an object before its tensors' bytes exist: literal bytes, and where each tensor's elements go."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Extent:
    """Consecutive elements of one row-major tensor, at least one, that are contiguous in an object.

    ``slot`` is the index of the tensor in the object, ``start`` the object's byte at which the first element begins.
    """

    slot: int
    first_element: int
    element_count: int
    itemsize: int
    start: int

    @property
    def stop(self) -> int:
        """One past the last byte."""
        return self.start + self.element_count * self.itemsize

    def byte_of(self, element: int) -> int:
        """Return the byte of an element, as if this extent held the whole tensor."""
        return self.start + (element - self.first_element) * self.itemsize


@dataclass(frozen=True)
class Frame:
    """All of an object but the elements of its tensors.

    ``literals`` are runs of known bytes, each with its place in the object, none empty; ``extents`` are the tensors'
    elements between them. Both ascend, and no tensor's elements are out of order.

    Examples
    --------
    >>> frame = make_frame([(0, b"head", 0, 3, 2), (1, b"", 0, 1, 2)], tail=b"end")
    >>> frame.literals, frame.nbytes
    (((0, b'head'), (12, b'end')), 15)
    >>> frame.address(0, 1), frame.end_of(0, 3), frame.place_of(11)
    (6, 10, (1, 1))
    """

    literals: tuple[tuple[int, bytes], ...]
    extents: tuple[Extent, ...]
    nbytes: int

    @cached_property
    def _of_slot(self) -> dict[int, tuple[int, int]]:
        """The first and one past the last extent of each tensor."""
        found: dict[int, tuple[int, int]] = {}
        for index, extent in enumerate(self.extents):
            first, _ = found.get(extent.slot, (index, index))
            found[extent.slot] = (first, index + 1)
        return found

    def _extent(self, slot: int, element: int) -> Extent:
        first, stop = self._of_slot[slot]
        if stop - first == 1:
            return self.extents[first]
        index = bisect_right(self.extents, element, first, stop, key=lambda extent: extent.first_element)
        return self.extents[index - 1]

    def address(self, slot: int, element: int) -> int:
        """Return the byte of an element; one past an extent's last element counts as part of it."""
        return self._extent(slot, element).byte_of(element)

    def end_of(self, slot: int, count: int) -> int:
        """Return the byte just after the first ``count`` elements of a tensor, at least one."""
        return self._extent(slot, count - 1).byte_of(count)

    def spans(self, slot: int, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut the elements ``[first, stop)`` of a tensor between its extents.

        Yields first element, one past the last, and the byte that the tensor's element 0 would have if all its
        elements were contiguous with these.
        """
        low, high = self._of_slot[slot]
        if high - low > 1:
            low = max(low, bisect_right(self.extents, first, low, high, key=lambda extent: extent.first_element) - 1)
        for index in range(low, high):
            extent = self.extents[index]
            if extent.first_element >= stop:
                return
            a, b = max(first, extent.first_element), min(stop, extent.first_element + extent.element_count)
            if a < b:
                yield a, b, extent.byte_of(0)

    def literals_in(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield the known bytes within ``[start, stop)``, each with its place in the object."""
        first_index = bisect_right(self.literals, start, key=lambda literal: literal[0]) - 1
        for place, data in self.literals[max(0, first_index) :]:
            if place >= stop:
                return
            first, last = max(start, place), min(stop, place + len(data))
            if first < last:
                yield first, memoryview(data)[first - place : last - place]

    def place_of(self, byte: int) -> tuple[int, int] | None:
        """Return the tensor of a byte of the object and the byte within the tensor; None for a literal byte."""
        index = bisect_right(self.extents, byte, key=lambda extent: extent.start) - 1
        if index < 0 or byte >= self.extents[index].stop:
            return None
        extent = self.extents[index]
        return extent.slot, byte - extent.byte_of(0)


def make_frame(pieces: Iterable[tuple[int, bytes, int, int, int]], tail: bytes = b"") -> Frame:
    """Lay out an object from front to back; ``tail`` are the bytes after the last piece.

    A piece is ``(slot, literal bytes before it, first element, element count, itemsize)``; without elements it
    only adds its bytes.
    """
    literals: list[tuple[int, bytes]] = []
    extents: list[Extent] = []
    known: list[bytes] = []
    end = 0  # of the last extent

    def close(known: list[bytes], end: int) -> int:
        data = b"".join(known)
        if data:
            literals.append((end, data))
        return end + len(data)

    for slot, lead, first, count, itemsize in pieces:
        known.append(lead)
        if count:
            extents.append(Extent(slot, first, count, itemsize, close(known, end)))
            known, end = [], extents[-1].stop
    nbytes = close([*known, tail], end)
    return Frame(tuple(literals), tuple(extents), nbytes)
