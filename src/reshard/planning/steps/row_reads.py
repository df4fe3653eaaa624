"""What rows of a walk read, found once for tensors that are equivalent and cut alike over the same devices.

A model has hundreds of layers of a few kinds of tensors, and hundreds of ranks. What some rows of a tensor read is
therefore found relative to the first byte of each stored box, and placed at the box's address when a step is derived.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import PlanError
from ...tensor import Box, ByteRange, Patch, Runs, row_major_boxes
from ..limits import Limits
from ..outputs.layouts import DeviceBoxes
from ..outputs.output import Output, Piece
from ..outputs.streamed import Streamed
from ..outputs.walk import Slice, SliceGroup, WalkItem
from .draft import Draft
from .equivalence import MANY_SLICES, Equivalence
from .fills import Fill, alike_fills, computation_inputs, input_fills, moved_boxes, slice_fills
from .read_scores import ReadScores
from .reads import NeededRange, bridge, check_range_count, coalesce, join_runs, split, spread
from .stored_boxes import AlikeBoxes
from .tiles import TileCollector, TileTarget

Rows = tuple[WalkItem, int, int]
"""A tensor of a walk, its first row, and one past the last."""


@dataclass(frozen=True, slots=True)
class BoxReads:
    """What is read of one stored box; addresses count from its first byte.

    ``runs`` are the needed bytes, whoever needs them, joined where they touch; ``ranges`` are read for them, and are
    dense if the runs fill them, each byte once.
    """

    runs: tuple[Runs, ...]
    ranges: tuple[NeededRange, ...]
    needed_bytes: int
    is_dense: bool

    @classmethod
    def of(cls, wanted: Iterable[Runs], limits: Limits) -> BoxReads:
        """Find the ranges that cover some runs."""
        runs = join_runs(wanted)
        bridged = [bridge(one, limits) for one in runs]
        ranges = spread(bridged)
        needed = sum(one.total_nbytes for one in runs)
        has_gaps = any(one.counts or nbytes < one.nbytes for one, nbytes in bridged)
        is_dense = not has_gaps and needed == sum(one.nbytes for one in ranges)
        return cls(runs, tuple(ranges), needed, is_dense)


@dataclass(frozen=True, slots=True)
class RowReads:
    """What some rows of one tensor read, for all outputs of a group together.

    ``boxes`` has what is read of each stored box, after the slot of its entry (:meth:`Equivalence.entries`) and its
    placement. ``computed`` are the slots of entries whose values are computed, in buffers of ``tile_bytes``.
    """

    boxes: tuple[tuple[int, int, BoxReads], ...]
    tile_bytes: int
    computed: tuple[int, ...] = ()

    def moved(self, place_count: int) -> RowReads:
        """Return the same reads of stored boxes so many places further on."""
        return replace(self, boxes=tuple([(slot, place + place_count, one) for slot, place, one in self.boxes]))


@dataclass(frozen=True, slots=True)
class Block:
    """One read of a step: bytes of an object, of which ``needed_bytes`` reach some output."""

    object: int
    range: ByteRange
    needed_bytes: int


class RowReader:
    """Finds what rows read, and the blocks that a step reads for its rows.

    ``work`` counts the ranges that it has listed.
    """

    def __init__(self, draft: Draft, many_slices: int = MANY_SLICES) -> None:
        self.equivalence = Equivalence(draft, many_slices)
        self.scores = ReadScores(draft, self.equivalence)
        self._draft = draft
        self._found: dict[Hashable, tuple[RowReads, int]] = {}
        self._moved: dict[Hashable, tuple[Hashable, int]] = {}
        self._devices: dict[int, tuple[Sequence[int], Hashable]] = {}
        self._tokens: dict[Hashable, int] = {}
        self.work = 0

    def blocks(self, rows: Iterable[Rows], streamed: Sequence[Streamed] | None = None) -> tuple[list[Block], int]:
        """Return the reads of a step, by object and range, and the bytes of its buffers for what is computed.

        ``streamed`` are the outputs of the group, if the store copies some of their bytes.
        """
        found: dict[tuple[int, int], BoxReads] = {}
        alone, sharing = self._by_tiles(rows, streamed)
        tile_bytes = sum(reads.tile_bytes for _, reads in alone)
        boxes = [(entries[slot], place, one) for entries, reads in alone for slot, place, one in reads.boxes]
        if sharing:
            collector = _Collector(self._draft, streamed)
            for some in sharing:
                collector.add_rows(*some)
            tile_bytes += collector.add_inputs()
            boxes += collector.boxes()
        for entry, place, one in boxes:
            at = entry, place
            # Two tensors of the target may be made of one of the source.
            found[at] = BoxReads.of((*found[at].runs, *one.runs), self._draft.limits) if at in found else one
        by_object: dict[int, list[tuple[int, BoxReads]]] = {}
        for (entry, place), one in found.items():
            # Always the first replica: neighbours are together in it, and outputs share what is read.
            index, first_byte = self._draft.catalog.entries[entry].placements[place].holders[0]
            by_object.setdefault(index, []).append((first_byte, one))
        blocks = list(_all_blocks(by_object, self._draft.limits))
        self.work += len(boxes) + len(blocks)
        return blocks, tile_bytes

    def _by_tiles(
        self, rows: Iterable[Rows], streamed: Sequence[Streamed] | None
    ) -> tuple[list[tuple[tuple[int, ...], RowReads]], list[Rows]]:
        """Find what rows read, each with its entries; apart from rows that compute values of the same entry.

        Those share tiles, so that what they read depends on all of them.
        """
        found = [(some, self.equivalence.entries(some[0].tensor), self._rows(*some, streamed)) for some in rows]
        users = Counter(entries[slot] for _, entries, reads in found for slot in reads.computed)
        if all(count == 1 for count in users.values()):
            return [(entries, reads) for _, entries, reads in found], []
        alone, sharing = [], []
        for some, entries, reads in found:
            if any(users[entries[slot]] > 1 for slot in reads.computed):
                sharing.append(some)
            else:
                alone.append((entries, reads))
        return alone, sharing

    def _rows(self, item: WalkItem, first: int, last: int, streamed: Sequence[Streamed] | None) -> RowReads:
        if streamed is not None:  # which of a slice's bytes are copied differs from tensor to tensor
            return self._find(item, first, last, streamed)
        # Who holds what of a tensor, whichever tensor it is.
        holders = tuple(self._holder(item.slices.outputs, group) for group in item.slices.groups)
        held = self.equivalence.tensor(item.tensor), holders
        if held not in self._moved:
            self._moved[held] = self._towards_first(item, holders)
        alike, moved = self._moved[held]
        key = held[0], alike, first, last
        if key not in self._found:
            self._found[key] = self._find(item, first, last, None), moved
        found, there = self._found[key]
        return found if there == moved else found.moved(moved - there)

    def _towards_first(self, item: WalkItem, holders: Hashable) -> tuple[Hashable, int]:
        """Return what slices of a tensor have in common that take alike from a grid, and from which of its places on.

        Ranks that hold other columns take from other chunks what these take from theirs.
        """
        boxes = [held.box for held in item.slices]
        return moved_boxes(self._draft, item.tensor, boxes) or (holders, 0)

    def _find(self, item: WalkItem, first: int, last: int, streamed: Sequence[Streamed] | None) -> RowReads:
        found = _Collector(self._draft, streamed)
        found.add_rows(item, first, last)
        slots = {entry: slot for slot, entry in enumerate(self.equivalence.entries(item.tensor))}
        computed = tuple(slots[entry] for entry in found.tiles.entries)
        tile_bytes = found.add_inputs()
        boxes = tuple((slots[entry], place, one) for entry, place, one in found.boxes())
        self.work += len(item.slices) + sum(len(one.ranges) for _, _, one in boxes)
        return RowReads(boxes, tile_bytes, computed)

    def _holder(self, outputs: Sequence[Output], group: SliceGroup) -> Hashable:
        boxes = outputs[group.members[0]].boxes
        if not isinstance(boxes, DeviceBoxes):
            return tuple(outputs[member].boxes[group.slot] for member in group.members)
        if id(group.members) not in self._devices:
            devices = tuple(outputs[member].boxes.device for member in group.members)  # type: ignore[attr-defined]
            token = self._tokens.setdefault(devices, len(self._tokens))
            # The members are kept, or others could get their identity.
            self._devices[id(group.members)] = group.members, token
        return id(boxes.partitions[group.slot]), self._devices[id(group.members)][1]


class _Collector:
    """Collects what rows read, by entry and placement."""

    def __init__(self, draft: Draft, streamed: Sequence[Streamed] | None) -> None:
        self._draft = draft
        self._streamed = streamed
        self._runs: dict[tuple[int, int], set[Runs]] = {}
        self._alike: list[tuple[int, AlikeBoxes, set[Runs]]] = []  # of an entry that has no other runs
        self.tiles = TileCollector()

    def boxes(self) -> Iterator[tuple[int, int, BoxReads]]:
        """Yield what is read of each stored box, after its entry and its placement."""
        for (entry, place), runs in self._runs.items():
            yield entry, place, BoxReads.of(runs, self._draft.limits)
        for entry, cells, runs in self._alike:
            reads = BoxReads.of(runs, self._draft.limits)
            for place in cells.places():
                yield entry, place, reads

    def add_rows(self, item: WalkItem, first: int, last: int) -> None:
        """Add some rows of what all outputs hold."""
        seen: set[tuple[Box, int, int]] = set()
        wanted: list[tuple[Slice, int, int]] = []
        for held in item.slices:
            start, stop = item.element_of(held, first), item.element_of(held, last)
            if start < stop and (self._streamed is not None or (held.box, start, stop) not in seen):
                seen.add((held.box, start, stop))
                wanted += [(held, a, b) for a, b in self._spans(item, held.member, held.slot, start, stop)]
        if not self._add_alike(item, wanted):
            for held, a, b in wanted:
                self._add(item, held, a, b)

    def _add_alike(self, item: WalkItem, wanted: Sequence[tuple[Slice, int, int]]) -> bool:
        """Add elements of slices, if what is read of many stored boxes is alike; return whether it is."""
        if any(piece.computation for piece in self._draft.tensors[item.tensor].pieces):
            return False
        boxes = [
            (local.shifted(held.box.start), held.box)
            for held, a, b in wanted
            for local in row_major_boxes(held.box.shape, a, b)
        ]
        alike = alike_fills(self._draft, item.tensor, boxes)
        if alike is None:
            return False
        filled = 0
        for cells, fills in alike:
            self._alike.append((fills[0].entry, cells, {fill.scatter.source_runs for fill in fills}))
            filled += cells.place_count * sum(fill.element_count for fill in fills)
        self._check_filled(item, filled, sum(b - a for _, a, b in wanted))
        return True

    def _spans(self, item: WalkItem, member: int, slot: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if self._streamed is not None:
            return ((a, b) for a, b, _, _ in self._streamed[member].spans(slot, start, stop))
        return ((a, b) for a, b, _ in item.slices.outputs[member].frame.spans(slot, start, stop))

    def _add(self, item: WalkItem, held: Slice, start: int, stop: int) -> None:
        computed_count = 0

        def on_computed(piece: Piece, patch: Patch) -> None:
            nonlocal computed_count
            computed_count += patch.element_count
            self.tiles.add(piece, TileTarget(patch, held.box, item.itemsize, 0, 0))

        filled = self._add_fills(slice_fills(self._draft, item, held, (start, stop), on_computed))
        self._check_filled(item, filled + computed_count, stop - start)

    def _check_filled(self, item: WalkItem, filled: int, wanted: int) -> None:
        if filled != wanted:
            name = self._draft.tensors[item.tensor].spec.name
            raise PlanError(
                f"{name}: {filled} of {wanted} elements are filled: the boxes of the source do not tile the tensor"
            )

    def _add_fills(self, fills: Iterable[Fill]) -> int:
        """Add what fills something; return how many elements it fills."""
        count = 0
        for fill in fills:
            self._runs.setdefault((fill.entry, fill.place), set()).add(fill.scatter.source_runs)
            count += fill.element_count
        return count

    def add_inputs(self) -> int:
        """Add the inputs of all tiles; return the bytes of the tiles' buffers."""
        nbytes, entries = 0, self._draft.catalog.entries
        for source, computation, box, _ in self.tiles.tiles():
            nbytes += computation.dtype.nbytes(box.element_count)
            for entry, wanted in computation_inputs(source, computation, box):
                nbytes += entries[entry].spec.dtype.nbytes(wanted.element_count)
                self._add_fills(input_fills(self._draft, entry, wanted))
        return nbytes


def _all_blocks(by_object: Mapping[int, Sequence[tuple[int, BoxReads]]], limits: Limits) -> Iterator[Block]:
    """Join and divide what is read of each object; where it is one box, as of chunks, once for all that are alike."""
    alone: dict[tuple[int, int], list[Block]] = {}
    for index in sorted(by_object):
        placed = by_object[index]
        if len(placed) > 1:
            yield from _blocks(index, placed, limits)
            continue
        [(first, reads)] = placed
        if reads.is_dense and len(reads.ranges) == 1:  # as most are
            start, stop, needed = reads.ranges[0]
            check_range_count(-(-(stop - start) // limits.read_bytes))
            for span in split([NeededRange(first + start, first + stop, needed)], limits.read_bytes):
                yield Block(index, span, span.nbytes)
            continue
        if (first, id(reads)) not in alone:
            alone[first, id(reads)] = list(_blocks(index, placed, limits))
        for block in alone[first, id(reads)]:
            yield Block(index, block.range, block.needed_bytes)


def _blocks(index: int, placed: Sequence[tuple[int, BoxReads]], limits: Limits) -> Iterator[Block]:
    """Join and divide what is read of one object, given the first byte of each stored box and what is read of it."""
    ranges = coalesce(
        NeededRange(first + one.start, first + one.stop, one.needed_bytes)
        for first, reads in placed
        for one in reads.ranges
    )
    joined = coalesce(
        ranges, max_gap_bytes=limits.max_gap_bytes, max_over_read=limits.max_over_read, read_bytes=limits.read_bytes
    )
    check_range_count(sum(-(-one.nbytes // limits.read_bytes) for one in joined))
    spans = split(joined, limits.read_bytes)
    needed = [0] * len(spans)
    starts = [span.start for span in spans]
    for first, reads in placed:
        for position, nbytes in _needed_in(first, reads, spans, starts):
            needed[position] += nbytes
    for span, nbytes in zip(spans, needed, strict=True):
        if nbytes:  # a span may be a gap alone, once a long range is divided
            # Runs that overlap without being equal count more than once: no more than is read is needed.
            yield Block(index, span, min(span.nbytes, nbytes))


def _needed_in(
    first: int, reads: BoxReads, spans: Sequence[ByteRange], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield how many of the needed bytes of a stored box are in which span, by its position."""
    start, stop = first + reads.ranges[0].start, first + reads.ranges[-1].stop
    position = bisect_right(starts, start) - 1
    if stop <= spans[position].stop:
        yield position, reads.needed_bytes
    elif reads.is_dense:
        for one in reads.ranges:
            start, stop = first + one.start, first + one.stop
            position = bisect_right(starts, start) - 1
            while position < len(spans) and starts[position] < stop:
                yield position, min(stop, spans[position].stop) - max(start, starts[position])
                position += 1
    else:
        for runs in reads.runs:
            position, before = bisect_right(starts, first + runs.first) - 1, 0
            stop = first + runs.stop
            while position < len(spans) and spans[position].start < stop:
                reached = runs.bytes_before(spans[position].stop - first)
                yield position, reached - before
                position, before = position + 1, reached
