"""What rows of a walk read, found once for tensors that are equivalent and cut alike over the same devices.

A model has hundreds of layers of a few kinds of tensors, and hundreds of ranks. What some rows of a tensor read is
therefore found relative to the first byte of each stored box, and placed at the box's address when a step is derived.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...errors import PlanError
from ...tensor import Box, ByteRange, Patch, Runs, Scatter
from ..limits import Limits
from ..outputs.layouts import DeviceBoxes
from ..outputs.output import Output, Piece
from ..outputs.streamed import Streamed
from ..outputs.walk import Slice, SliceGroup, WalkItem
from .draft import Draft
from .equivalence import MANY_SLICES, Equivalence
from .fills import Fill, box_fills, computation_inputs, input_fills, slice_fills
from .reads import NeededRange, bridged, check_range_count, check_work, coalesce, needed_ranges, split, whole_score
from .tiles import TileCollector, TileTarget

Rows = tuple[WalkItem, int, int]
"""A tensor of a walk, its first row, and one past the last."""


@dataclass(frozen=True, slots=True)
class BoxReads:
    """What is read of one stored box; addresses count from its first byte.

    Parameters
    ----------
    runs
        What is needed, each run once, whoever takes it.
    ranges
        What to read for the runs.
    needed_bytes
        In all runs.
    is_dense
        Whether the runs fill the ranges, each byte once.
    """

    runs: frozenset[Runs]
    ranges: tuple[NeededRange, ...]
    needed_bytes: int
    is_dense: bool

    @classmethod
    def of(cls, runs: Iterable[Runs], limits: Limits) -> BoxReads:
        """Find the ranges that cover some runs."""
        once = frozenset(runs)
        found = list(bridged(once, limits))
        check_range_count(sum(runs.run_count for runs, _ in found))
        ranges = coalesce(
            NeededRange(start, start + one.nbytes, nbytes) for one, nbytes in found for start in one.starts()
        )
        needed = sum(one.total_nbytes for one in once)
        has_gaps = any(one.counts or nbytes < one.nbytes for one, nbytes in found)
        is_dense = not has_gaps and needed == sum(one.nbytes for one in ranges)
        return cls(once, tuple(ranges), needed, is_dense)


@dataclass(frozen=True, slots=True)
class RowReads:
    """What some rows of one tensor read, for all outputs of a group together.

    Parameters
    ----------
    boxes
        Of which of the tensor's entries, of which of its placements, what.
    tile_bytes
        Bytes of buffers for what is computed.
    computed
        Which of the tensor's entries values are computed of.
    """

    boxes: tuple[tuple[int, int, BoxReads], ...]
    tile_bytes: int
    computed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """One read of a step: bytes of an object, of which ``needed_bytes`` reach some output."""

    object: int
    range: ByteRange
    needed_bytes: int


class RowReader:
    """Finds what rows read, and the blocks that a step reads for its rows.

    ``work`` counts the ranges that it has listed, for planning to bound.
    """

    def __init__(self, draft: Draft, many_slices: int = MANY_SLICES) -> None:
        self.equivalence = Equivalence(draft, many_slices)
        self._draft = draft
        self._found: dict[Hashable, RowReads] = {}
        self._whole: dict[Hashable, int] = {}
        self._devices: dict[int, tuple[Sequence[int], Hashable]] = {}
        self._tokens: dict[Hashable, int] = {}
        self._samples: dict[int, list[tuple[int, int, int]]] = {}
        self.work = 0

    # The reads of a step.

    def blocks(self, rows: Iterable[Rows], streamed: Sequence[Streamed] | None = None) -> tuple[list[Block], int]:
        """Return the reads of a step, by object and range, and the bytes of its buffers for what is computed.

        Parameters
        ----------
        streamed
            The outputs of the group, if the store copies some of their bytes.
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
            found[at] = BoxReads.of(found[at].runs | one.runs, self._draft.limits) if at in found else one
        by_object: dict[int, list[tuple[int, BoxReads]]] = {}
        for (entry, place), one in found.items():
            # Always the first replica: neighbours are together in it, and outputs share what is read.
            index, first_byte = self._draft.catalog.entries[entry].placements[place].holders[0]
            by_object.setdefault(index, []).append((first_byte, one))
        limits = self._draft.limits
        blocks = [block for index in sorted(by_object) for block in _blocks(index, by_object[index], limits)]
        self.work += len(boxes) + len(blocks)
        return blocks, tile_bytes

    def _by_tiles(
        self, rows: Iterable[Rows], streamed: Sequence[Streamed] | None
    ) -> tuple[list[tuple[tuple[int, ...], RowReads]], list[Rows]]:
        """Find what rows read, each with its entries; apart from rows that share tiles, being computed of the same."""
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
        key = self.equivalence.tensor(item.tensor), self._holders(item), first, last
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._find(item, first, last, None)
        return found

    def _find(self, item: WalkItem, first: int, last: int, streamed: Sequence[Streamed] | None) -> RowReads:
        found = _Collector(self._draft, streamed)
        found.add_rows(item, first, last)
        slots = {entry: slot for slot, entry in enumerate(self.equivalence.entries(item.tensor))}
        computed = tuple(slots[entry] for entry in found.tiles.entries)
        tile_bytes = found.add_inputs()
        boxes = tuple((slots[entry], place, one) for entry, place, one in found.boxes())
        self.work += len(item.slices) + sum(len(one.ranges) for _, _, one in boxes)
        return RowReads(boxes, tile_bytes, computed)

    def _holders(self, item: WalkItem) -> Hashable:
        """Return who holds what of a tensor, whichever tensor it is."""
        return tuple(self._holder(item.slices.outputs, group) for group in item.slices.groups)

    def _holder(self, outputs: Sequence[Output], group: SliceGroup) -> Hashable:
        boxes = outputs[group.members[0]].boxes
        if not isinstance(boxes, DeviceBoxes):
            return tuple(outputs[member].boxes[group.slot] for member in group.members)
        if id(group.members) not in self._devices:
            devices = tuple(outputs[member].boxes.device for member in group.members)  # type: ignore[attr-defined]
            # The members are kept, or others could get their identity.
            self._devices[id(group.members)] = group.members, self._token(devices)
        return id(boxes.partitions[group.slot]), self._devices[id(group.members)][1]

    def _token(self, devices: tuple[int, ...]) -> int:
        return self._tokens.setdefault(devices, len(self._tokens))

    # Whole tensors, to compare groupings.

    def group_score(self, members: Sequence[int]) -> int:
        """Return the score of what is read to write some outputs together, apart from what neighbours share."""
        if self._draft.has_copies(members):
            limits = self._draft.limits
            return sum(
                whole_score(sum(one.nbytes for one in ranges), len(ranges), limits)
                for _, ranges in group_ranges(self._draft, members)
            )
        outputs = [self._draft.outputs[i] for i in members]
        layout = outputs[0].layout
        if layout is None or any(output.layout is not layout for output in outputs):
            return self._score_apart(outputs)
        devices = self._token(tuple(output.boxes.device for output in outputs))  # type: ignore[attr-defined]
        if id(layout) not in self._samples:
            found: dict[tuple[int, int], list[int]] = {}
            for slot, (tensor, partition) in enumerate(zip(layout.tensors, layout.partitions, strict=True)):
                found.setdefault((self.equivalence.tensor(tensor), id(partition)), []).append(slot)
            self._samples[id(layout)] = [(key[0], slots[0], len(slots)) for key, slots in found.items()]
        total = 0
        for tensor_class, slot, count in self._samples[id(layout)]:
            key = tensor_class, id(layout.partitions[slot]), devices
            if key not in self._whole:
                boxes = {output.boxes[slot] for output in outputs}
                self._whole[key] = self._whole_tensor(layout.tensors[slot], boxes)
            total += count * self._whole[key]
        return total

    def _score_apart(self, outputs: Sequence[Output]) -> int:
        """Return the same for outputs that have no layout in common."""
        held: dict[int, set[Box]] = {}
        for output in outputs:
            for tensor, box in zip(output.tensors, output.boxes, strict=True):
                held.setdefault(tensor, set()).add(box)
        total = 0
        for tensor, boxes in held.items():
            key = self.equivalence.tensor(tensor), frozenset(boxes)
            if key not in self._whole:
                self._whole[key] = self._whole_tensor(tensor, boxes)
            total += self._whole[key]
        return total

    def _whole_tensor(self, tensor: int, boxes: Iterable[Box]) -> int:
        runs: dict[tuple[int, int], set[Runs]] = {}
        for box in boxes:
            if not box.is_empty:
                _add_runs(runs, box_fills(self._draft, tensor, box, box))
        self.work += sum(map(len, runs.values()))
        check_work(self.work)
        return sum(_score_of(some, self._draft.limits) for some in runs.values())


def group_ranges(draft: Draft, members: Sequence[int]) -> Iterator[tuple[int, list[NeededRange]]]:
    """Yield what some outputs read together, copies left out: an entry, and ranges of one of its boxes."""
    streamed = [draft.streamed(i) for i in members]
    for item in draft.walk(members):
        runs: dict[tuple[int, int], set[Runs]] = {}
        for held in item.slices:
            for first, last, _, _ in streamed[held.member].spans(held.slot, 0, held.box.element_count):
                _add_runs(runs, slice_fills(draft, item, held, (first, last)))
        for (entry, _), some in runs.items():
            yield entry, needed_ranges(some, draft.limits)


def _add_runs(runs: dict[tuple[int, int], set[Runs]], fills: Iterable[Fill]) -> int:
    """Add the runs that fill something, by entry and placement; return how many elements they fill."""
    count = 0
    for fill in fills:
        runs.setdefault((fill.entry, fill.place), set()).add(fill.scatter.source_runs)
        count += fill.element_count
    return count


class _Collector:
    """Collects what rows read, by entry and placement."""

    def __init__(self, draft: Draft, streamed: Sequence[Streamed] | None) -> None:
        self._draft = draft
        self._streamed = streamed
        self._runs: dict[tuple[int, int], set[Runs]] = {}
        self.tiles = TileCollector()

    def boxes(self) -> Iterator[tuple[int, int, BoxReads]]:
        """Yield what is read of which entry and which of its placements."""
        for (entry, place), runs in self._runs.items():
            yield entry, place, BoxReads.of(runs, self._draft.limits)

    def add_rows(self, item: WalkItem, first: int, last: int) -> None:
        """Add some rows of what all outputs hold."""
        seen: set[tuple[Box, int, int]] = set()
        for held in item.slices:
            start, stop = item.element_of(held, first), item.element_of(held, last)
            if start < stop and (self._streamed is not None or (held.box, start, stop) not in seen):
                seen.add((held.box, start, stop))
                for a, b in self._spans(item, held.member, held.slot, start, stop):
                    self._add(item, held, a, b)

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

        filled = _add_runs(self._runs, slice_fills(self._draft, item, held, (start, stop), on_computed))
        if filled + computed_count != stop - start:
            name = self._draft.tensors[item.tensor].spec.name
            raise PlanError(
                f"{name}: {filled + computed_count} of {stop - start} elements are filled: the boxes of the source "
                "do not tile the tensor"
            )

    def add_inputs(self) -> int:
        """Add what kernels take; return the bytes of their buffers."""
        nbytes, entries = 0, self._draft.catalog.entries
        for source, computation, box, _ in self.tiles.tiles():
            nbytes += computation.dtype.nbytes(box.element_count)
            for entry, wanted in computation_inputs(source, computation, box):
                nbytes += entries[entry].spec.dtype.nbytes(wanted.element_count)
                _add_runs(self._runs, input_fills(self._draft, entry, wanted))
        return nbytes


def _score_of(wanted: Iterable[Runs], limits: Limits) -> int:
    """Return the score of reading some runs of one stored box."""
    found = list(bridged(wanted, limits))
    if len(found) == 1:  # ranges of one length that are apart, perhaps very many
        runs = found[0][0]
        return whole_score(runs.total_nbytes, runs.run_count, limits)
    ranges = needed_ranges(wanted, limits)
    return whole_score(sum(one.nbytes for one in ranges), len(ranges), limits)


# From what is needed of stored boxes to the reads of an object.


def _blocks(index: int, placed: Sequence[tuple[int, BoxReads]], limits: Limits) -> Iterator[Block]:
    """Join and cut what is read of one object, given the first byte of each stored box and what is read of it."""
    check_range_count(sum(len(reads.ranges) for _, reads in placed))
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
        for position, nbytes in _shares(first, reads, spans, starts):
            needed[position] += nbytes
    for span, nbytes in zip(spans, needed, strict=True):
        if nbytes:
            # What several outputs take is needed once; sets of runs that differ count as disjoint.
            yield Block(index, span, min(span.nbytes, nbytes))


def _shares(
    first: int, reads: BoxReads, spans: Sequence[ByteRange], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield how many of the needed bytes of a stored box are in which block."""
    start, stop = first + reads.ranges[0].start, first + reads.ranges[-1].stop
    position = bisect_right(starts, start) - 1
    if stop <= spans[position].stop:
        yield position, reads.needed_bytes
    elif reads.is_dense:
        for one in reads.ranges:
            yield from _overlaps(first + one.start, first + one.stop, spans, starts)
    else:
        yield from _clipped(first, reads.runs, spans, starts)


def _overlaps(start: int, stop: int, spans: Sequence[ByteRange], starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    position = bisect_right(starts, start) - 1
    while position < len(spans) and spans[position].start < stop:
        yield position, min(stop, spans[position].stop) - max(start, spans[position].start)
        position += 1


def _clipped(
    first: int, every: frozenset[Runs], spans: Sequence[ByteRange], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    found: dict[int, set[Runs]] = {}
    for runs in every:
        move = Scatter(first + runs.first, 0, runs.nbytes, runs.counts, runs.strides, runs.strides)
        for position in range(bisect_right(starts, move.source) - 1, len(spans)):
            if spans[position].start >= move.source_stop:
                break
            pieces = move.clip_source(spans[position].start, spans[position].stop)
            found.setdefault(position, set()).update(piece.source_runs for piece in pieces)
    for position, here in found.items():
        yield position, sum(runs.total_nbytes for runs in here)
