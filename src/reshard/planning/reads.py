"""Which bytes to ask a store for: whole rows rather than slivers, neighbours together, none too long."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice, pairwise
from typing import NamedTuple

from ..tensor import Box, ByteRange, Runs, Shape, byte_runs
from .limits import Limits

__all__ = ["NeededRange", "coalesce", "needed_ranges", "split"]


class NeededRange(NamedTuple):
    """Bytes ``[start, stop)``, of which at least ``needed_bytes`` are needed; the others lie between those."""

    start: int
    stop: int
    needed_bytes: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


def needed_ranges(boxes: Collection[Box], shape: Shape, itemsize: int, limits: Limits) -> list[NeededRange]:
    """Byte ranges of one row-major tensor that cover some boxes of it, ascending.

    Boxes that together fill their hull (the column slices of all ranks, say) are read as that
    hull; otherwise the gaps between a box's runs are read where that costs less than asking anew.

    Examples
    --------
    >>> halves = [Box((0, 0), (4, 2)), Box((0, 2), (4, 4))]
    >>> needed_ranges(halves, (8, 4), 2, Limits())
    [NeededRange(start=0, stop=32, needed_bytes=32)]
    >>> needed_ranges(halves[:1], (8, 4), 2, Limits(max_gap_bytes=0))[:2]
    [NeededRange(start=0, stop=4, needed_bytes=4), NeededRange(start=8, stop=12, needed_bytes=4)]
    >>> needed_ranges(halves[:1], (8, 4), 2, Limits())
    [NeededRange(start=0, stop=28, needed_bytes=16)]
    """
    boxes = set(boxes)
    if len(boxes) > 1:
        hull = _hull(boxes)
        if sum(box.element_count for box in boxes) == hull.element_count and _are_apart(boxes):
            boxes = {hull}
    ranges = []
    for box in boxes:
        runs, needed_bytes = _bridge(byte_runs(box, shape, itemsize), limits)
        ranges += [NeededRange(start, start + runs.nbytes, needed_bytes) for start in runs.starts()]
    return coalesce(ranges)


def coalesce(
    ranges: Iterable[NeededRange], *, max_gap_bytes: int = 0, max_over_read: int = 1, read_bytes: int | None = None
) -> list[NeededRange]:
    """Join what overlaps, touches or lies close, and sort it.

    Parameters
    ----------
    max_gap_bytes
        Largest gap to bridge.
    max_over_read
        Bytes for each needed byte in what is joined over a gap, at most.
    read_bytes
        Longest range to make of two that do not overlap; None for any length.

    Examples
    --------
    >>> near = [NeededRange(0, 4, 4), NeededRange(6, 9, 3), NeededRange(30, 31, 1)]
    >>> coalesce(near, max_gap_bytes=2, max_over_read=2, read_bytes=16)
    [NeededRange(start=0, stop=9, needed_bytes=7), NeededRange(start=30, stop=31, needed_bytes=1)]
    """
    joined: list[NeededRange] = []
    for item in sorted(ranges):
        if joined:
            last = joined[-1]
            both = _joined(last, item)
            gap = item.start - last.stop
            fits = read_bytes is None or both.nbytes <= read_bytes
            is_worth_it = gap <= max_gap_bytes and (gap <= 0 or both.nbytes <= max_over_read * both.needed_bytes)
            if gap < 0 or (fits and is_worth_it):
                joined[-1] = both
                continue
        joined.append(item)
    return joined


def _joined(first: NeededRange, second: NeededRange) -> NeededRange:
    """One range of two, the second not beginning earlier; needed bytes in both are counted once at least."""
    overlap = max(0, min(first.stop, second.stop) - second.start)
    needed_bytes = max(first.needed_bytes, second.needed_bytes, first.needed_bytes + second.needed_bytes - overlap)
    return NeededRange(first.start, max(first.stop, second.stop), needed_bytes)


def split(ranges: Iterable[NeededRange], read_bytes: int) -> list[ByteRange]:
    """Cut what is longer than ``read_bytes`` into equal ranges.

    Examples
    --------
    >>> split([NeededRange(0, 9, 9)], 4)
    [ByteRange(start=0, stop=3), ByteRange(start=3, stop=6), ByteRange(start=6, stop=9)]
    """
    blocks = []
    for item in ranges:
        count = -(-item.nbytes // read_bytes)
        edges = [item.start + item.nbytes * i // count for i in range(count + 1)]
        blocks += [ByteRange(a, b) for a, b in pairwise(edges)]
    return blocks


def _hull(boxes: Collection[Box]) -> Box:
    starts, stops = zip(*[(box.start, box.stop) for box in boxes], strict=True)
    return Box(tuple(map(min, zip(*starts, strict=True))), tuple(map(max, zip(*stops, strict=True))))


def _are_apart(boxes: Collection[Box]) -> bool:
    """Whether no two boxes share an element; two stages may cut one tensor in ways that overlap."""
    axis = max(range(len(next(iter(boxes)).start)), key=lambda a: len({box.start[a] for box in boxes}))
    ordered = sorted(boxes, key=lambda box: box.start[axis])
    for index, box in enumerate(ordered, start=1):
        for other in islice(ordered, index, None):
            if other.start[axis] >= box.stop[axis]:
                break
            if box.intersect(other):
                return False
    return True


def _bridge(runs: Runs, limits: Limits) -> tuple[Runs, int]:
    """Join runs level by level, innermost first, where their gap is worth reading; tell also what each needs."""
    nbytes, counts, strides, needed_bytes = runs.nbytes, runs.counts, runs.strides, runs.nbytes
    while counts:
        stride = strides[-1]
        if stride - nbytes > limits.max_gap_bytes or stride > needed_bytes * limits.max_over_read:
            break
        nbytes += (counts[-1] - 1) * stride
        needed_bytes *= counts[-1]
        counts, strides = counts[:-1], strides[:-1]
    return Runs(runs.first, nbytes, counts, strides), needed_bytes
