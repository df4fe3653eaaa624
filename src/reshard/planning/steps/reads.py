"""Which byte ranges to request: whole rows rather than slivers, neighbours together, none too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from ...errors import PlanError
from ...tensor import ByteRange, Runs, Shape
from ..limits import Limits

# Far beyond any sensible conversion. Anyone can write a saved plan, and reading it plans anew.
_MAX_RANGES = 1 << 20
_MAX_WORK = 1 << 24


class NeededRange(NamedTuple):
    """Bytes ``[start, stop)``, of which at least ``needed_bytes`` are needed; the others are gaps between those."""

    start: int
    stop: int
    needed_bytes: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


def score(nbytes: int, request_count: int, limits: Limits) -> int:
    """Return the cost of moving some bytes in so many requests, in bytes.

    A request weighs as much as the longest gap that is read to avoid one, so that choices by this score agree
    with the choice of gaps to read.
    """
    return nbytes + limits.max_gap_bytes * request_count


def needed_ranges(wanted: Iterable[Runs], limits: Limits) -> list[NeededRange]:
    """Return byte ranges that cover some runs of one object, ascending.

    Runs that are side by side (the column slices of all ranks, say) are read together; otherwise the
    gaps between a box's runs are read if that costs less than another request.

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
    return spread(bridge(runs, limits) for runs in join_runs(wanted))


def spread(bridged: Iterable[tuple[Runs, int]]) -> list[NeededRange]:
    """Return the single ranges of what :func:`bridge` returned, coalesced."""
    bridged = tuple(bridged)
    check_range_count(sum(runs.run_count for runs, _ in bridged))
    return coalesce(
        NeededRange(start, start + runs.nbytes, needed_bytes)
        for runs, needed_bytes in bridged
        for start in runs.starts()
    )


def check_range_count(count: int) -> None:
    """Raise PlanError before more ranges are listed at once than memory should hold."""
    if count > _MAX_RANGES:
        raise PlanError(f"{count} ranges would be read for one step: at most {_MAX_RANGES} are supported")


def check_work(count: int) -> None:
    """Raise PlanError when planning has derived too many cuts or ranges to come to an end soon."""
    if count > _MAX_WORK:
        raise PlanError("this conversion is too large to plan: it has too many parts, or too many reads for them")


def join_runs(wanted: Iterable[Runs]) -> tuple[Runs, ...]:
    """Join runs of equal steps if one begins at every step where the other ends; bytes that several want count once.

    Examples
    --------
    >>> join_runs([Runs(0, 2, (3,), (8,)), Runs(2, 2, (3,), (8,)), Runs(4, 4, (3,), (8,))])
    (Runs(first=0, nbytes=24, counts=(), strides=()),)
    """
    before = set(wanted)
    while True:
        by_steps: dict[tuple[Shape, Shape], list[Runs]] = {}
        for runs in before:
            by_steps.setdefault((runs.counts, runs.strides), []).append(runs)
        joined = {runs for some in by_steps.values() for runs in _joined_runs(some)}
        if joined == before:
            return tuple(joined)
        before = joined  # runs that touch now have fewer steps, and may join others


def _joined_runs(same_steps: list[Runs]) -> Iterator[Runs]:
    same_steps.sort(key=lambda runs: runs.first)
    last = same_steps[0]
    for runs in same_steps[1:]:
        # Not beyond the next step: the next run of ``last`` begins there.
        fits = not last.counts or last.nbytes + runs.nbytes <= last.strides[-1]
        if fits and runs.first == last.first + last.nbytes:
            last = Runs(last.first, last.nbytes + runs.nbytes, last.counts, last.strides)
        else:
            yield _flattened(last)
            last = runs
    yield _flattened(last)


def _flattened(runs: Runs) -> Runs:
    """Return the same bytes in fewer dimensions, if runs touch."""
    nbytes, counts, strides = runs.nbytes, runs.counts, runs.strides
    if not counts or strides[-1] != nbytes:
        return runs
    while counts and strides[-1] == nbytes:
        nbytes, counts, strides = nbytes * counts[-1], counts[:-1], strides[:-1]
    return Runs(runs.first, nbytes, counts, strides)


def bridge(runs: Runs, limits: Limits) -> tuple[Runs, int]:
    """Join runs over their gaps, innermost level first, while that costs less than another request.

    Return the runs to read, and the needed bytes in each of them.
    """
    nbytes, counts, strides, needed_bytes = runs.nbytes, runs.counts, runs.strides, runs.nbytes
    while counts:
        stride = strides[-1]
        if stride - nbytes > limits.max_gap_bytes or stride > needed_bytes * limits.max_over_read:
            break
        nbytes += (counts[-1] - 1) * stride
        needed_bytes *= counts[-1]
        counts, strides = counts[:-1], strides[:-1]
    return Runs(runs.first, nbytes, counts, strides), needed_bytes


def coalesce(
    ranges: Iterable[NeededRange], *, max_gap_bytes: int = 0, max_over_read: int = 1, read_bytes: int | None = None
) -> list[NeededRange]:
    """Sort ranges, and join those that overlap, touch or are close.

    What is joined over a gap has at most ``max_over_read`` bytes for each needed one. ``read_bytes`` is the longest
    range to make of two that do not overlap; None for any length.

    Examples
    --------
    >>> near = [NeededRange(0, 4, 4), NeededRange(6, 9, 3), NeededRange(30, 31, 1)]
    >>> coalesce(near, max_gap_bytes=2, max_over_read=2, read_bytes=16)
    [NeededRange(start=0, stop=9, needed_bytes=7), NeededRange(start=30, stop=31, needed_bytes=1)]
    """
    joined: list[NeededRange] = []
    for item in sorted(ranges):
        if joined and (gap := item.start - joined[-1].stop) <= max_gap_bytes:
            both = _joined(joined[-1], item)
            fits = read_bytes is None or both.nbytes <= read_bytes
            is_worth_it = gap <= 0 or both.nbytes <= max_over_read * both.needed_bytes
            if gap < 0 or (fits and is_worth_it):
                joined[-1] = both
                continue
        joined.append(item)
    return joined


def _joined(first: NeededRange, second: NeededRange) -> NeededRange:
    """Return one range for two, the second not beginning earlier; bytes that both need count once at least."""
    overlap = max(0, min(first.stop, second.stop) - second.start)
    needed_bytes = max(first.needed_bytes, second.needed_bytes, first.needed_bytes + second.needed_bytes - overlap)
    return NeededRange(first.start, max(first.stop, second.stop), needed_bytes)


def split(ranges: Iterable[NeededRange], read_bytes: int) -> list[ByteRange]:
    """Divide ranges that are longer than ``read_bytes`` into equal ones.

    Examples
    --------
    >>> split([NeededRange(0, 9, 9)], 4)
    [ByteRange(start=0, stop=3), ByteRange(start=3, stop=6), ByteRange(start=6, stop=9)]
    """
    found = []
    for item in ranges:
        count = -(-item.nbytes // read_bytes)
        if count == 1:  # as most are
            found.append(ByteRange(item.start, item.stop))
            continue
        edges = [item.start + item.nbytes * i // count for i in range(count + 1)]
        found += [ByteRange(a, b) for a, b in pairwise(edges)]
    return found
