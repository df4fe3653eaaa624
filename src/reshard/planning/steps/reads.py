"""Which bytes to ask a store for: whole rows rather than slivers, neighbours together, none too long."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from ...errors import PlanError
from ...tensor import ByteRange, Runs, Shape
from ..limits import Limits

_MAX_RANGES = 1 << 20
_MAX_WORK = 1 << 24


def check_range_count(count: int) -> None:
    """Refuse to list more ranges at once than memory should hold: no step of a sensible conversion has so many."""
    if count > _MAX_RANGES:
        raise PlanError(f"{count} ranges would be read for one step: at most {_MAX_RANGES} are supported")


def check_work(count: int) -> None:
    """Refuse to plan without end: anyone can write a saved plan, and reading it plans anew."""
    if count > _MAX_WORK:
        raise PlanError("this conversion is too large to plan: it has too many parts, or too many reads for them")


class NeededRange(NamedTuple):
    """Bytes ``[start, stop)``, of which at least ``needed_bytes`` are needed; the others lie between those."""

    start: int
    stop: int
    needed_bytes: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


def score(nbytes: int, request_count: int, limits: Limits) -> int:
    """What it costs to move some bytes in so many requests, in bytes.

    A request weighs as much as the longest gap that is read rather than asking anew, so what is chosen by
    this score agrees with which gaps are read.

    Examples
    --------
    >>> score(1000, 3, Limits(max_gap_bytes=100))
    1300
    """
    return nbytes + limits.max_gap_bytes * request_count


def whole_score(nbytes: int, range_count: int, limits: Limits) -> int:
    """The score by which readers of one stored box are compared.

    Only requests that start anew within the box count: its first range may be joined to a neighbour's, and
    long ranges are cut by steps, whoever shares them.

    Examples
    --------
    >>> limits = Limits(max_gap_bytes=100)
    >>> whole_score(1000, 1, limits), whole_score(1000, 3, limits)
    (1000, 1200)
    """
    return score(nbytes, range_count - 1, limits)


def needed_ranges(wanted: Iterable[Runs], limits: Limits) -> list[NeededRange]:
    """Byte ranges that cover some runs of one object, ascending.

    Runs that lie side by side (the column slices of all ranks, say) are read together; otherwise the
    gaps between a box's runs are read where that costs less than asking anew.

    Examples
    --------
    >>> halves = [Runs(0, 4, (4,), (8,)), Runs(4, 4, (4,), (8,))]
    >>> needed_ranges(halves, Limits())
    [NeededRange(start=0, stop=32, needed_bytes=32)]
    >>> needed_ranges(halves[:1], Limits(max_gap_bytes=0))[:2]
    [NeededRange(start=0, stop=4, needed_bytes=4), NeededRange(start=8, stop=12, needed_bytes=4)]
    >>> needed_ranges(halves[:1], Limits())
    [NeededRange(start=0, stop=28, needed_bytes=16)]
    """
    ranges: list[NeededRange] = []
    for runs, needed_bytes in bridged(wanted, limits):
        check_range_count(len(ranges) + runs.run_count)
        ranges += [NeededRange(start, start + runs.nbytes, needed_bytes) for start in runs.starts()]
    return coalesce(ranges)


def bridged(wanted: Iterable[Runs], limits: Limits) -> Iterator[tuple[Runs, int]]:
    """Join what lies side by side, then read over gaps where it is worth it; tell also what each run needs."""
    for runs in _side_by_side(set(wanted)):
        yield _bridge(runs, limits)


def _side_by_side(wanted: set[Runs]) -> Collection[Runs]:
    """Join runs of equal steps where one begins at every step as the other ends."""
    while True:
        group_by_layout: dict[tuple[Shape, Shape], list[Runs]] = {}
        for runs in wanted:
            group_by_layout.setdefault((runs.counts, runs.strides), []).append(runs)
        joined = [runs for group in group_by_layout.values() for runs in _joined_runs(group)]
        if len(joined) == len(wanted) and set(joined) == wanted:
            return joined
        wanted = set(joined)


def _joined_runs(group_by_layout: list[Runs]) -> Iterator[Runs]:
    group_by_layout.sort(key=lambda runs: runs.first)
    last = group_by_layout[0]
    for runs in group_by_layout[1:]:
        # Not across the next step: there the neighbour's own next run begins.
        if runs.first == last.first + last.nbytes and (
            not last.counts or last.nbytes + runs.nbytes <= last.strides[-1]
        ):
            last = Runs(last.first, last.nbytes + runs.nbytes, last.counts, last.strides)
        else:
            yield _flattened(last)
            last = runs
    yield _flattened(last)


def _flattened(runs: Runs) -> Runs:
    """The same bytes in fewer dimensions, where runs touch."""
    nbytes, counts, strides = runs.nbytes, runs.counts, runs.strides
    if not counts or strides[-1] != nbytes:
        return runs
    while counts and strides[-1] == nbytes:
        nbytes, counts, strides = nbytes * counts[-1], counts[:-1], strides[:-1]
    return Runs(runs.first, nbytes, counts, strides)


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
