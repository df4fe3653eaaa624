"""Which of the boxes that an entry is stored in are near a box, and which of those are alike.

The chunks of a zarr array, and the slices of most ranks, are a grid: the product of cuts of each axis. Of a grid,
neighbours are found by bisection, and cells that a set of boxes covers in the same way are counted, not listed:
what is read of one of them serves all.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import ge
from typing import NamedTuple

from ...tensor import Box, Shape

_FEW_BOXES = 8  # quicker to compare one by one than to bisect


@dataclass(frozen=True, slots=True)
class _Axis:
    """The cells of a grid along one axis: where each starts and stops, ascending, and from one place to the next.

    They are even if all but the last have one length, with no gap between them.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    stride: int
    is_even: bool

    @classmethod
    def of(cls, starts: tuple[int, ...], stops: tuple[int, ...], stride: int) -> _Axis:
        length = stops[0] - starts[0]
        is_even = starts == tuple(range(starts[0], starts[-1] + 1, max(1, length))) and starts[1:] == stops[:-1]
        return cls(starts, stops, stride, is_even)

    @property
    def length(self) -> int:
        """Length of the first cell, in elements."""
        return self.stops[0] - self.starts[0]

    def shift(self, start: int, stop: int) -> int:
        """Return how many cells an interval can be moved towards the first and still cover others in the same way."""
        cells = self.cells(start, stop)
        has_all = self.stops[-1] - self.starts[-1] == self.length
        return cells.start if has_all or cells.stop < len(self.starts) else 0

    def cells(self, start: int, stop: int) -> range:
        """Return the cells that overlap an interval."""
        return range(bisect_right(self.stops, start), bisect_left(self.starts, stop))


class AlikeBoxes(NamedTuple):
    """Cells of a grid: their places are the sums of one number of each range."""

    ranges: tuple[range, ...]

    @property
    def first_place(self) -> int:
        """The first place."""
        return sum([along.start for along in self.ranges])

    @property
    def place_count(self) -> int:
        """The number of places."""
        return math.prod(map(len, self.ranges))

    def places(self) -> Iterator[int]:
        """Yield every place, ascending."""
        return (sum(numbers) for numbers in product(*self.ranges))


@dataclass(frozen=True, slots=True)
class StoredBoxes:
    """The boxes that an entry is stored in, by place; ``axes`` are those of the grid that they are, if they are one."""

    boxes: Sequence[Box]
    axes: tuple[_Axis, ...] = ()

    @classmethod
    def of(cls, boxes: Sequence[Box]) -> StoredBoxes:
        """Find out whether boxes are a grid in row-major order."""
        if len(boxes) <= _FEW_BOXES or not boxes[0].start:
            return cls(boxes)
        corners = [box.start for box in boxes]
        starts = [tuple(sorted(set(along))) for along in zip(*corners, strict=True)]
        if corners != list(product(*starts)):
            return cls(boxes)
        strides = [1] * len(starts)
        for axis in range(len(starts) - 1, 0, -1):
            strides[axis - 1] = strides[axis] * len(starts[axis])
        stops = [
            tuple(boxes[index * stride].stop[axis] for index in range(len(starts[axis])))
            for axis, stride in enumerate(strides)
        ]
        if [box.stop for box in boxes] != list(product(*stops)):
            return cls(boxes)
        return cls(boxes, tuple(map(_Axis.of, starts, stops, strides)))

    def near(self, hull: Box) -> Iterator[int]:
        """Yield the places whose boxes overlap another, ascending; that one is not empty.

        Examples
        --------
        >>> rows = StoredBoxes.of([Box((row,), (row + 10,)) for row in range(0, 100, 10)])
        >>> list(rows.near(Box((35,), (51,))))
        [3, 4, 5]
        >>> list(StoredBoxes.of([Box((0,), (2,)), Box((2,), (2,)), Box((2,), (5,))]).near(Box((1,), (4,))))
        [0, 2]
        """
        if not self.axes:
            for place, box in enumerate(self.boxes):
                if any(map(ge, box.start, hull.stop)) or any(map(ge, hull.start, box.stop)):
                    continue
                if not box.is_empty:  # as of a rank that a split by hand gives no rows
                    yield place
            return
        cells = map(_Axis.cells, self.axes, hull.start, hull.stop)
        yield from AlikeBoxes(tuple(map(_places, self.axes, cells))).places()

    @property
    def is_even_grid(self) -> bool:
        """Whether they are a grid of equal cells, of which the last along each axis may be shorter."""
        return bool(self.axes) and all(axis.is_even for axis in self.axes)

    def alike(self, wanted: Sequence[Box]) -> Iterator[tuple[AlikeBoxes, list[int]]]:
        """Divide the boxes of an even grid that some others overlap into those that all of them cover alike.

        Yield the boxes that are alike, and the positions of the others that overlap them.

        Examples
        --------
        >>> rows = StoredBoxes.of([Box((row,), (row + 10,)) for row in range(0, 1000, 10)])
        >>> for boxes, positions in rows.alike([Box((5,), (100,)), Box((50,), (990,))]):
        ...     print(boxes.first_place, boxes.place_count, positions)
        0 1 [0]
        1 4 [0]
        5 5 [0, 1]
        10 89 [1]
        """
        sections = [
            _sections(axis, {(box.start[number], box.stop[number]) for box in wanted})
            for number, axis in enumerate(self.axes)
        ]
        found: dict[Shape, list[int]] = {}
        for position, box in enumerate(wanted):
            for chosen in product(*map(_overlapped, self.axes, sections, box.start, box.stop)):
                found.setdefault(chosen, []).append(position)
        for chosen, positions in found.items():
            cells = [range(edges[n], edges[n + 1]) for edges, n in zip(sections, chosen, strict=True)]
            yield AlikeBoxes(tuple(map(_places, self.axes, cells))), positions

    def moved(self, boxes: Sequence[Box]) -> tuple[tuple[Box, ...], int]:
        """Move boxes towards the first cells of an even grid, as far as they cover other cells in the same way.

        Return the boxes, and the number of places that they were moved by.

        Examples
        --------
        >>> rows = StoredBoxes.of([Box((row,), (row + 10,)) for row in range(0, 1000, 10)])
        >>> rows.moved([Box((55,), (70,)), Box((61,), (62,))])
        ((Box(start=(5,), stop=(20,)), Box(start=(11,), stop=(12,))), 5)
        """
        low = map(min, zip(*(box.start for box in boxes), strict=True))
        high = map(max, zip(*(box.stop for box in boxes), strict=True))
        cells = [axis.shift(a, b) for axis, a, b in zip(self.axes, low, high, strict=True)]
        back = tuple(-axis.length * count for axis, count in zip(self.axes, cells, strict=True))
        place_count = sum(axis.stride * count for axis, count in zip(self.axes, cells, strict=True))
        return tuple([box.shifted(back) for box in boxes]), place_count


def _places(axis: _Axis, cells: range) -> range:
    return range(cells.start * axis.stride, cells.stop * axis.stride, axis.stride)


def _sections(axis: _Axis, intervals: set[tuple[int, int]]) -> list[int]:
    """Divide the cells of an axis so that in a section each interval covers all cells alike; return the edges.

    A cell that an interval begins or ends in is a section of its own, and so is the last, which may be shorter.
    """
    count = len(axis.starts)
    edges = {0, count - 1, count}
    for interval in intervals:
        for at in interval:
            cell = bisect_right(axis.starts, at) - 1
            if cell < 0 or at >= axis.stops[cell]:  # outside the grid
                continue
            edges.add(cell)
            if at > axis.starts[cell]:
                edges.add(cell + 1)
    return sorted(edges)


def _overlapped(axis: _Axis, edges: Sequence[int], start: int, stop: int) -> range:
    """Return the sections that an interval overlaps, each of which it covers wholly or is one cell."""
    cells = axis.cells(start, stop)
    if not cells:
        return range(0)
    return range(bisect_right(edges, cells.start) - 1, bisect_left(edges, cells.stop))
