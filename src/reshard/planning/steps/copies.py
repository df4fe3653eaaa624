"""Which bytes of outputs the store copies by itself: what is contiguous and unchanged in one object of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ...tensor import Box, ByteRange, Layout, Scatter, Shape, extent_of
from ..catalog import Placement
from ..limits import Limits
from ..outputs.output import Output, group_by_layout
from ..outputs.streamed import CopiedRange
from .draft import Draft
from .fills import box_fills, whole_placement

REPLICAS = -1
"""Among the bases to copy from, the target itself: equal outputs are copied from the first of them."""

_MOST_PARTS = 1 << 20
_MOST_SLICES = 1 << 24
_SHORT, _LONG = -1, -2


class _Run(NamedTuple):
    """Bytes ``[start, stop)`` of an output and every place that holds them: an object, and the first byte there."""

    start: int
    stop: int
    places: tuple[tuple[int, int], ...]


def with_copies(draft: Draft, copy_bases: Sequence[int]) -> Draft:
    """Return the same draft with everything left to the target's store that it can copy from objects of these bases."""
    if not copy_bases:
        return draft
    finder = CopyFinder(draft, copy_bases)
    copied: list[tuple[CopiedRange, ...]] = [()] * len(draft.outputs)
    part_count = slice_count = 0
    for positions in group_by_layout(draft.outputs):
        if _may_hold_any(draft, draft.outputs[positions[0]]):
            for position in positions:
                slice_count += len(draft.outputs[position].tensors)
                # Bounds the work for any catalog; what is beyond is streamed.
                if part_count <= _MOST_PARTS and slice_count <= _MOST_SLICES:
                    copied[position] = finder.find(draft.outputs[position])
                part_count += sum(-(-run.nbytes // draft.limits.most_copied_bytes) for run in copied[position])
    return replace(draft, copied_ranges=tuple(copied))


class CopyFinder:
    """Chooses the ranges of outputs that the store copies."""

    def __init__(self, draft: Draft, copy_bases: Sequence[int]) -> None:
        limits, entries = draft.limits, draft.catalog.entries
        self._draft = draft
        shortest = max(limits.min_part_bytes, limits.min_copy_source_bytes)
        self._objects = frozenset(
            index
            for index, item in enumerate(draft.catalog.objects)
            if item.base in copy_bases and item.nbytes >= shortest and not item.fill
        )
        self._entries = frozenset(
            index
            for index, entry in enumerate(entries)
            if any(holder in self._objects for placement in entry.placements for holder, _ in placement.holders)
        )

    def find(self, output: Output) -> tuple[CopiedRange, ...]:
        """Choose the ranges of an output that the store copies, ascending.

        Every range, and every gap between two, is at least as long as the store's smallest part.
        """
        limits = self._draft.limits
        least = limits.min_part_bytes
        found = [run for run in _joined(sorted(self._runs(output))) if run.nbytes >= least]
        while found:
            chosen = _choose(found, output, least)
            parts = sum(-(-run.nbytes // limits.most_copied_bytes) for run in chosen)
            if parts + len(chosen) <= limits.max_part_count // 2:  # the other half is for what is streamed between them
                return tuple(chosen)
            least *= 2  # fewer ranges, longer ones
            found = [run for run in found if run.nbytes >= least]
        return ()

    def _runs(self, output: Output) -> Iterator[_Run]:
        """Yield the bytes of an output that are contiguous in objects that can be copied from."""
        draft = self._draft
        for slot, (tensor, box) in enumerate(zip(output.tensors, output.boxes, strict=True)):
            if box.is_empty or not any(piece.source in self._entries for piece in draft.tensors[tensor].pieces):
                continue
            whole = whole_placement(draft, tensor)
            if whole is not None:  # nearly all tensors: no fill needs to be derived for them
                first_byte = _first_byte(box, *extent_of(draft.tensors[tensor].spec), draft.limits.min_part_bytes)
                if first_byte == _SHORT:
                    continue
                if first_byte >= 0:
                    yield from self._one_run(output, slot, first_byte, whole)
                    continue
            count = box.element_count
            itemsize = output.specs[slot].nbytes // count
            spans = [(a * itemsize, b * itemsize, origin) for a, b, origin in output.frame.spans(slot, 0, count)]
            for fill in box_fills(draft, tensor, box, box, lambda _piece, _patch: None):  # what is computed is streamed
                holders = self._holders(fill.placement)
                if not holders or not _may_be_parts(fill.scatter, draft.limits):
                    continue
                starts = zip(fill.scatter.source_runs.starts(), fill.scatter.target_runs.starts(), strict=True)
                for source, target in starts:
                    for low, high, origin in spans:
                        a, b = max(low, target), min(high, target + fill.scatter.nbytes)
                        if a < b:
                            places = tuple((index, first + source + a - target) for index, first in holders)
                            yield _Run(origin + a, origin + b, places)

    def _one_run(self, output: Output, slot: int, first_byte: int, placement: Placement) -> Iterator[_Run]:
        """Yield what an output holds of a tensor that is contiguous in the output and in the source."""
        holders = self._holders(placement)
        nbytes = output.specs[slot].nbytes
        itemsize = nbytes // output.boxes[slot].element_count
        for a, b, origin in output.frame.spans(slot, 0, nbytes // itemsize) if holders else ():
            start, stop = a * itemsize, b * itemsize
            places = tuple((index, first + first_byte + start) for index, first in holders)
            yield _Run(origin + start, origin + stop, places)

    def _holders(self, placement: Placement) -> tuple[tuple[int, int], ...]:
        return tuple(holder for holder in placement.holders if holder[0] in self._objects)


def _may_hold_any(draft: Draft, output: Output) -> bool:
    """Return whether neighbours in an output could form a run as long as a part, wherever they are stored.

    Where the source stores tensors whole, a run continues from a cut tensor only if it is the end of that tensor, and
    into one only if it is its beginning. So a run holds two cut tensors at most, and not two of the same layout: the
    rank that holds the end of the first does not hold the beginning of the second.
    """
    least, entries = draft.limits.min_part_bytes, draft.catalog.entries
    partitions = output.layout.partitions if output.layout else None
    chain_bytes = slice_bytes = 0  # whole tensors since the last cut one, and that one
    layout: Layout | None = None
    for slot, (tensor, box, spec) in enumerate(zip(output.tensors, output.boxes, output.specs, strict=True)):
        extent, itemsize = extent_of(draft.tensors[tensor].spec)
        is_whole = box.shape == extent
        if whole_placement(draft, tensor) and _first_byte(box, extent, itemsize, least) == _SHORT:
            chain_bytes, slice_bytes, layout = 0, 0, None
            continue
        if is_whole or any(len(entries[p.source].placements) > 1 for p in draft.tensors[tensor].pieces):
            chain_bytes += spec.nbytes
            reached = slice_bytes + chain_bytes
        else:
            own = partitions[slot].layout if partitions else None
            reached = chain_bytes + spec.nbytes + (0 if own is not None and own is layout else slice_bytes)
            chain_bytes, slice_bytes, layout = 0, spec.nbytes, own
        if reached >= least:
            return True
    return False


def _first_byte(box: Box, shape: Shape, itemsize: int, least: int) -> int:
    """Return where a box begins in a row-major tensor if it is one run, else ``_LONG`` or ``_SHORT`` for its runs."""
    first, stride, nbytes, is_cut = 0, itemsize, itemsize, False
    for low, high, extent in zip(reversed(box.start), reversed(box.stop), reversed(shape), strict=True):
        if is_cut and high - low > 1:
            return _SHORT if nbytes < least else _LONG
        first += low * stride
        stride *= extent
        nbytes *= high - low
        is_cut = is_cut or high - low < extent
    return first


def _may_be_parts(scatter: Scatter, limits: Limits) -> bool:
    """Return whether runs may become parts: one run may join its neighbours, several must each be long enough."""
    if not scatter.counts:
        return True
    return scatter.nbytes >= limits.min_part_bytes and scatter.source_runs.run_count <= limits.max_part_count


def _joined(runs: Iterable[_Run]) -> Iterator[CopiedRange]:
    """Join runs that follow each other in the output and in an object, in whichever replica reaches furthest."""
    start = stop = 0
    places: dict[int, int] = {}  # the objects that hold all of the run so far, and its first byte there
    for low, high, sources in runs:
        here = dict(sources)
        continued = {index: first for index, first in places.items() if here.get(index) == first + low - start}
        if low == stop and continued:
            places, stop = continued, high
            continue
        if places:
            yield CopiedRange(start, stop, *next(iter(places.items())))
        start, stop, places = low, high, here
    if places:
        yield CopiedRange(start, stop, *next(iter(places.items())))


def _choose(runs: Sequence[CopiedRange], output: Output, least: int) -> list[CopiedRange]:
    """Choose most bytes of runs that are each as long as a part, so that no gap between two is shorter than a part.

    Gaps are streamed, in parts of their own. One that is too short takes the bytes that it lacks from the run after it.
    Only if that leaves too little of the run is there a choice: to leave out this run or the one before.
    """
    taken: list[CopiedRange] = []
    for run in runs:
        end = taken[-1].stop if taken else 0
        trimmed = _trim(run, end, output, least)
        if trimmed is not None:
            taken.append(trimmed)
        elif taken and run.nbytes > taken[-1].nbytes:
            before = taken[-2].stop if len(taken) > 1 else 0
            instead = _trim(run, before, output, least)
            if instead is not None and instead.nbytes > taken[-1].nbytes:
                taken[-1] = instead
    return taken


def _trim(run: CopiedRange, end: int, output: Output, least: int) -> CopiedRange | None:
    """Return a run without the bytes that a short gap after ``end`` needs, None if too little is left."""
    start = run.start
    if start != end and start - end < least:
        start = end + least
        if (place := output.frame.place_of(start)) is not None:  # streamed and copied bytes meet between elements
            slot, position = place
            start += -position % (output.specs[slot].nbytes // max(1, output.boxes[slot].element_count))
    return run.within(ByteRange(start, run.stop)) if run.stop - start >= least else None
