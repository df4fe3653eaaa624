"""Which bytes a store can copy by itself: what stands together and unchanged in one object of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ...tensor import Box, Layout, Patch, Scatter, Shape, extent_of
from ..catalog import Placement
from ..limits import Limits
from ..outputs.output import Output, Piece, group_by_layout
from ..outputs.streamed import CopiedRange
from .draft import Draft
from .fills import box_fills, whole_placement

REPLICAS = -1
"""Stands among the bases of a catalog's objects for the target itself."""


def with_copies(draft: Draft, copy_bases: Sequence[int]) -> Draft:
    """The same draft with all that can be copied left to the store.

    Parameters
    ----------
    copied_from
        Bases of the catalog's objects that the target's store can reach.
    """
    if not copy_bases:
        return draft
    copied: list[tuple[CopiedRange, ...]] = [()] * len(draft.outputs)
    part_count = slice_count = 0
    for positions in group_by_layout(draft.outputs):
        if _may_hold_any(draft, draft.outputs[positions[0]]):
            for position in positions:
                slice_count += len(draft.outputs[position].tensors)
                if part_count <= _MOST_PARTS and slice_count <= _MOST_SLICES:  # whatever a plan says, this ends
                    copied[position] = find_copies(draft, draft.outputs[position], copy_bases)
                part_count += sum(-(-run.nbytes // draft.limits.most_copied_bytes) for run in copied[position])
    return replace(draft, copied_ranges=tuple(copied))


def find_copies(draft: Draft, output: Output, copy_bases: Sequence[int]) -> tuple[CopiedRange, ...]:
    """Choose what of an output the store copies, ascending.

    Every range, and every stretch between two, is at least a part long.
    """
    limits = draft.limits
    least = limits.min_part_bytes
    found = [run for run in _joined(sorted(_runs(draft, output, copy_bases))) if run.nbytes >= least]
    while found:
        chosen = _chosen(found, output, least)
        parts = sum(-(-run.nbytes // limits.most_copied_bytes) for run in chosen)
        if parts + len(chosen) <= limits.max_part_count // 2:
            return tuple(chosen)
        least *= 2  # fewer, longer ones
        found = [run for run in found if run.nbytes >= least]
    return ()


def _may_hold_any(draft: Draft, output: Output) -> bool:
    """Whether any neighbours in an output could be one run together, told without looking where they lie.

    Of a full source, slices of tensors that are cut meet at their ends at most: only two of them can, and
    none that are cut alike, of which one rank has no end of the first and beginning of the second.
    """
    least, entries = draft.limits.min_part_bytes, draft.catalog.entries
    partitions = output.layout.partitions if output.layout else None
    chain = slice_bytes = 0  # whole tensors since the last slice, and that slice
    layout: Layout | None = None
    for slot, (tensor, box, spec) in enumerate(zip(output.tensors, output.boxes, output.specs, strict=True)):
        extent, itemsize = extent_of(draft.tensors[tensor].spec)
        is_whole = box.shape == extent
        if whole_placement(draft, tensor) and _first_byte(box, extent, itemsize, least) == _SHORT:
            chain, slice_bytes, layout = 0, 0, None
            continue
        if is_whole or any(len(entries[p.source].placements) > 1 for p in draft.tensors[tensor].pieces):
            chain += spec.nbytes
            reached = slice_bytes + chain
        else:
            own = partitions[slot].layout if partitions else None
            reached = chain + spec.nbytes + (0 if own is not None and own is layout else slice_bytes)
            chain, slice_bytes, layout = 0, spec.nbytes, own
        if reached >= least:
            return True
    return False


_SHORT, _LONG = -1, -2
_MOST_PARTS = 1 << 20
_MOST_SLICES = 1 << 24
_Run = tuple[int, int, tuple[tuple[int, int], ...]]
"""Bytes ``[start, stop)`` of an output, and every place that has them: an object, and the first byte there."""


def _runs(draft: Draft, output: Output, copy_bases: Sequence[int]) -> Iterator[_Run]:
    """Bytes of an output that stand together in objects that can be copied from."""
    limits, reachable = draft.limits, _reachable(draft, copy_bases)
    for slot, (tensor, box) in enumerate(zip(output.tensors, output.boxes, strict=True)):
        if box.is_empty:
            continue
        as_it_is = whole_placement(draft, tensor)
        if as_it_is is not None:
            first_byte = _first_byte(box, *extent_of(draft.tensors[tensor].spec), limits.min_part_bytes)
            if first_byte == _SHORT:
                continue
            if first_byte >= 0:
                yield from _taken_together(output, slot, first_byte, as_it_is, reachable)
                continue
        count = box.element_count
        itemsize = output.specs[slot].nbytes // count
        extents = [(a * itemsize, b * itemsize, first) for a, b, first in output.frame.spans(slot, 0, count)]
        for fill in box_fills(draft, tensor, box, box, _ignore):
            holders = tuple(holder for holder in fill.placement.holders if holder[0] in reachable)
            if not holders or not _is_worth_it(fill.scatter, limits):
                continue
            starts = zip(fill.scatter.source_runs.starts(), fill.scatter.target_runs.starts(), strict=True)
            for source, target in starts:
                for start, stop, begin in _laid(target, fill.scatter.nbytes, extents):
                    yield start, stop, tuple((index, first + source + begin) for index, first in holders)


def _ignore(_piece: Piece, _patch: Patch) -> None:
    """Leave out what is computed: no store can copy it."""


def _first_byte(box: Box, shape: Shape, itemsize: int, least: int) -> int:
    """Where a box begins in a tensor, if it is one run; else whether its runs are too short."""
    first, stride, nbytes, is_cut = 0, itemsize, itemsize, False
    for low, high, extent in zip(reversed(box.start), reversed(box.stop), reversed(shape), strict=True):
        if is_cut and high - low > 1:
            return _SHORT if nbytes < least else _LONG
        first += low * stride
        stride *= extent
        nbytes *= high - low
        is_cut = is_cut or high - low < extent
    return first


def _taken_together(
    output: Output, slot: int, first_byte: int, placement: Placement, reachable: frozenset[int]
) -> Iterator[_Run]:
    """What an output holds of a tensor that lies in one piece, from a byte on."""
    holders = [(index, first + first_byte) for index, first in placement.holders if index in reachable]
    if not holders:
        return
    nbytes = output.specs[slot].nbytes
    itemsize = nbytes // output.boxes[slot].element_count
    for first, last, origin in output.frame.spans(slot, 0, nbytes // itemsize):
        begin, stop = first * itemsize, last * itemsize
        yield origin + begin, origin + stop, tuple((index, there + begin) for index, there in holders)


def _is_worth_it(move: Scatter, limits: Limits) -> bool:
    """Whether runs may become parts: runs apart from each other must each be long enough."""
    is_one = not move.counts
    return is_one or (move.nbytes >= limits.min_part_bytes and move.source_runs.run_count <= limits.max_part_count)


def _laid(target: int, nbytes: int, extents: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Where an object has a run of a tensor's bytes, each piece with the first byte of the run that is in it."""
    for low, high, origin in extents:
        a, b = max(low, target), min(high, target + nbytes)
        if a < b:
            yield origin + a, origin + b, a - target


def _reachable(draft: Draft, copy_bases: Sequence[int]) -> frozenset[int]:
    least = draft.limits.min_copy_source_bytes
    return frozenset(
        index
        for index, item in enumerate(draft.catalog.objects)
        if item.base in copy_bases and item.nbytes >= least and not item.fill
    )


def _joined(runs: Iterable[_Run]) -> Iterator[CopiedRange]:
    """Make one of runs that follow each other on both sides, each from whichever replica takes it furthest."""
    start = stop = 0
    places: dict[int, int] = {}  # what has all of the run so far: objects, and the first byte there
    for low, high, sources in runs:
        here = dict(sources)
        going = {index: first for index, first in places.items() if here.get(index) == first + low - start}
        if low == stop and going:
            places, stop = going, high
            continue
        yield from _first_of(start, stop, places)
        start, stop, places = low, high, here
    yield from _first_of(start, stop, places)


def _first_of(start: int, stop: int, places: Mapping[int, int]) -> Iterator[CopiedRange]:
    for index, first in places.items():
        yield CopiedRange(start, stop, index, first)
        return


def _chosen(runs: Sequence[CopiedRange], output: Output, least: int) -> list[CopiedRange]:
    """Of runs that are parts each, those to copy: most bytes, with no stretch between that is no part.

    A stretch that is too short takes what it lacks from the run after it. Only if that leaves too little
    of this run is there a choice: whether to leave out this one or the one before.
    """
    taken: list[CopiedRange] = []
    for run in runs:
        end = taken[-1].stop if taken else 0
        trimmed = _trimmed(run, end, output, least)
        if trimmed is not None:
            taken.append(trimmed)
        elif taken and run.nbytes > taken[-1].nbytes:
            before = taken[-2].stop if len(taken) > 1 else 0
            instead = _trimmed(run, before, output, least)
            if instead is not None and instead.nbytes > taken[-1].nbytes:
                taken[-1] = instead
    return taken


def _trimmed(run: CopiedRange, end: int, output: Output, least: int) -> CopiedRange | None:
    """The run without what a short stretch before it needs; None if too little is left."""
    start = run.start if run.start == end or run.start - end >= least else _element_at(output, end + least)
    if run.stop - start < least:
        return None
    return CopiedRange(start, run.stop, run.object, run.first + start - run.start)


def _element_at(output: Output, byte: int) -> int:
    """The first byte of an element, from some byte on."""
    place = output.frame.place_of(byte)
    if place is None:
        return byte
    slot, position = place
    spec = output.specs[slot]
    itemsize = spec.nbytes // max(1, output.boxes[slot].element_count)
    return byte + -position % itemsize
