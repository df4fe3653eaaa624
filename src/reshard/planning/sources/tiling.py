"""Whether boxes fill a tensor, each element once, and where they do not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ...tensor import Box, Shape

_MOST_VISITS = 20_000_000


class _Tangled(Exception):
    """Boxes that are too many and too irregular to compare."""


def find_flaw(shape: Shape, boxes: Sequence[Box]) -> str:
    """Return what is wrong with boxes that should tile a tensor: a region that none has, or two; nothing if they do.

    The boxes are not empty, and within the tensor.

    Examples
    --------
    >>> find_flaw((4, 6), [Box((0, 0), (4, 3)), Box((0, 3), (3, 6))])
    'no piece has [3:4, 3:6]'
    >>> find_flaw((4,), [Box((0,), (3,)), Box((2,), (4,))]), find_flaw((), [Box((), ())])
    ('2 pieces have [2:3]', '')
    """
    if 0 in shape:
        return ""
    try:
        return _Sweep(shape).flaw(sorted(boxes, key=lambda box: box.start), ())
    except _Tangled:
        return f"{len(boxes)} pieces are too irregular to compare"


class _Sweep:
    """Walks along one axis after another: between two edges the same boxes are open, and must tile what is left."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._visits = 0

    def flaw(self, boxes: Sequence[Box], before: tuple[tuple[int, int], ...]) -> str:
        """Return the first flaw of boxes, all of which cover the intervals of the axes before."""
        axis = len(before)
        if not boxes:
            return f"no piece has {self._region(before)}"
        if axis == len(self._shape):
            return f"{len(boxes)} pieces have {self._region(before)}" if len(boxes) > 1 else ""
        edges = sorted({0, self._shape[axis], *(b.start[axis] for b in boxes), *(b.stop[axis] for b in boxes)})
        coming = sorted(boxes, key=lambda box: box.start[axis])
        at, is_open = 0, list[Box]()
        for start, stop in itertools.pairwise(edges):
            is_open = [box for box in is_open if box.stop[axis] > start]
            while at < len(coming) and coming[at].start[axis] <= start:
                is_open.append(coming[at])
                at += 1
            self._visits += len(is_open) + 1
            if self._visits > _MOST_VISITS:
                raise _Tangled
            if found := self.flaw(is_open, (*before, (start, stop))):
                return found
        return ""

    def _region(self, intervals: tuple[tuple[int, int], ...]) -> str:
        starts = [start for start, _ in intervals] + [0] * (len(self._shape) - len(intervals))
        stops = [stop for _, stop in intervals] + list(self._shape[len(intervals) :])
        return Box(tuple(starts), tuple(stops)).text
