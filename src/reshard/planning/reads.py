"""Which bytes to ask a store for: whole rows rather than slivers, neighbours together, none too long."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise

from ..tensor import Box, ByteRange, Runs, Shape, byte_runs
from .limits import Limits

__all__ = ["coalesce", "needed_ranges", "split"]


def needed_ranges(boxes: Collection[Box], shape: Shape, itemsize: int, limits: Limits) -> list[ByteRange]:
    """Byte ranges of one row-major tensor that cover some boxes of it, ascending.

    Boxes that together fill their hull (the column slices of all ranks, say) are read as that
    hull; otherwise the gaps between a box's runs are read where that costs less than asking anew.

    Examples
    --------
    >>> halves = [Box((0, 0), (4, 2)), Box((0, 2), (4, 4))]
    >>> needed_ranges(halves, (8, 4), 2, Limits())
    [ByteRange(start=0, stop=32)]
    >>> needed_ranges(halves[:1], (8, 4), 2, Limits(max_gap_bytes=0))[:2]
    [ByteRange(start=0, stop=4), ByteRange(start=8, stop=12)]
    """
    if len(boxes) > 1:
        hull = _hull(boxes)
        if sum(box.element_count for box in set(boxes)) >= hull.element_count:
            boxes = (hull,)
    ranges = []
    for box in boxes:
        runs = _bridge(byte_runs(box, shape, itemsize), limits)
        ranges += [ByteRange(start, start + runs.nbytes) for start in runs.starts()]
    return coalesce(ranges, max_gap_bytes=0, read_bytes=0)


def coalesce(ranges: Iterable[ByteRange], *, max_gap_bytes: int, read_bytes: int) -> list[ByteRange]:
    """Join ranges that overlap, touch or lie close, and sort them.

    Parameters
    ----------
    max_gap_bytes
        Largest gap to bridge, as long as the joined range stays within ``read_bytes``. Ranges
        that overlap or touch are joined whatever the length when both are 0.

    Examples
    --------
    >>> near = [ByteRange(0, 4), ByteRange(6, 9), ByteRange(30, 31)]
    >>> coalesce(near, max_gap_bytes=2, read_bytes=16)
    [ByteRange(start=0, stop=9), ByteRange(start=30, stop=31)]
    """
    joined: list[ByteRange] = []
    for item in sorted(ranges):
        if joined:
            last = joined[-1]
            gap = item.start - last.stop
            fits = max(item.stop, last.stop) - last.start <= read_bytes
            if gap < 0 or (gap <= max_gap_bytes and (fits or read_bytes == 0)):
                joined[-1] = ByteRange(last.start, max(last.stop, item.stop))
                continue
        joined.append(item)
    return joined


def split(ranges: Iterable[ByteRange], read_bytes: int) -> list[ByteRange]:
    """Cut ranges longer than ``read_bytes`` into equal ones.

    Examples
    --------
    >>> split([ByteRange(0, 9)], 4)
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


def _bridge(runs: Runs, limits: Limits) -> Runs:
    """Join runs level by level, innermost first, where their gap is worth reading."""
    first, nbytes, counts, strides = runs.first, runs.nbytes, runs.counts, runs.strides
    while counts:
        stride = strides[-1]
        if stride - nbytes > limits.max_gap_bytes or stride > runs.nbytes * limits.max_over_read:
            break
        nbytes += (counts[-1] - 1) * stride
        counts, strides = counts[:-1], strides[:-1]
    return Runs(first, nbytes, counts, strides)
