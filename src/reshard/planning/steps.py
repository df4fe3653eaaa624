"""Steps: what to read and which parts it fills, derived from a recipe whenever they are wanted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import PlanError
from ..models.lora import adapter_boxes
from ..tensor import Box, ByteRange, Patch, Transfer, plain_patch, row_major_boxes, view_boxes
from ..tensor.patch import Views
from .catalog import Catalog, Placement
from .cuts import Cut, Reach, Rows, Share, walk
from .limits import Limits
from .output import Making, Output, Piece, TargetTensor
from .reads import coalesce, needed_ranges, split

__all__ = [
    "Computed",
    "Copy",
    "FilledPart",
    "Group",
    "Read",
    "Recipe",
    "Step",
    "Tile",
    "group_steps",
    "inputs_of",
    "rows_between",
    "sources_of",
    "stored_at",
]

_MOST_HULL = 1.25
"""Elements that are computed for each one that is needed, at most, rather than starting another tile."""
_LEAST_TILE = 1 << 16
"""Elements that are not worth a tile of their own: scales and adapters are gathered anew for each tile."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that steps are derived from, besides the cuts."""

    catalog: Catalog
    tensors: tuple[TargetTensor, ...]
    outputs: tuple[Output, ...]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Group:
    """Outputs that are written together, by index, and where they are cut."""

    outputs: tuple[int, ...]
    cuts: tuple[Cut, ...]

    @property
    def is_small(self) -> bool:
        """Whether one step writes the outputs whole, so that none needs a multipart upload."""
        return not self.cuts


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes that go to one of a step's buffers, parts first, then what tiles take in.

    Source addresses count in the read or in what a tile gives out, targets in the buffer.
    """

    part: int
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class Read:
    """One ranged GET and what becomes of its bytes."""

    object: int
    range: ByteRange
    copies: tuple[Copy, ...]

    @property
    def is_direct(self) -> bool:
        """Whether the bytes stand in one part as they come, and can be received there."""
        if len(self.copies) != 1:
            return False
        only = self.copies[0].transfer
        return not only.counts and only.nbytes == self.range.nbytes


@dataclass(frozen=True, slots=True)
class FilledPart:
    """One piece of an output, filled from reads; ``range`` counts in the output."""

    output: int
    number: int
    range: ByteRange


@dataclass(frozen=True, slots=True)
class Tile:
    """A box of values that are computed.

    Parameters
    ----------
    making
        How.
    source
        Entry of the tensor whose values they are.
    box
        In that tensor's elements.
    inputs
        What the kernel takes: of each entry a box, gathered into a buffer of its own, row-major.
    first_input
        The buffer of the first of them.
    nbytes
        Of the result.
    lays
        Where the result goes.
    """

    making: Making
    source: int
    box: Box
    inputs: tuple[tuple[int, Box], ...]
    first_input: int
    nbytes: int
    lays: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The reads and parts between two cuts; needs nothing of any other step."""

    group: int
    number: int
    reads: tuple[Read, ...]
    parts: tuple[FilledPart, ...]
    tiles: tuple[Tile, ...] = ()
    tile_sizes: tuple[int, ...] = ()
    """Bytes of each buffer for tiles: all their inputs, then all results."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its buffers."""
        return sum(part.range.nbytes for part in self.parts) + sum(self.tile_sizes)


def sources_of(recipe: Recipe, tensor: int, box: Box) -> Iterator[tuple[Piece, Patch]]:
    """Find the patches that fill a box of a target tensor, each with its piece."""
    cut: dict[Views, list[Box]] = {}  # pieces of a tensor mostly have the same factors
    for piece in recipe.tensors[tensor].pieces_near(box):
        patch = piece.patch
        if patch.is_plain:
            common = patch.within_target(box)
            if common is not None:
                yield piece, common
            continue
        if patch.target_views not in cut:
            cut[patch.target_views] = list(view_boxes(patch.target_views, box))
        for part in cut[patch.target_views]:
            common = patch.within_target(part)
            if common is not None:
                yield piece, common


def stored_at(recipe: Recipe, entry: int, patch: Patch) -> Iterator[tuple[Placement, Patch]]:
    """Find the stored boxes that a patch takes from, each with the part of the patch it fills."""
    placements = recipe.catalog.entries[entry].placements
    if len(placements) == 1:  # it holds all of the tensor
        yield placements[0], patch
        return
    for placement in placements:
        if patch.is_plain:
            common = patch.within_source(placement.box)
            if common is not None:
                yield placement, common
            continue
        for part in view_boxes(patch.source_views, placement.box):
            common = patch.within_source(part)
            if common is not None:
                yield placement, common


def group_steps(recipe: Recipe, index: int, group: Group) -> Iterator[Step]:
    """Derive the steps of one group, in order."""
    outputs = [recipe.outputs[i] for i in group.outputs]
    items = walk(outputs, recipe.tensors, recipe.limits)
    edges = (Cut(0, 0), *group.cuts, Cut(len(items), 0))
    reach = Reach([output.frame for output in outputs])
    for number, (begin, end) in enumerate(pairwise(edges), start=1):
        builder = _Builder(recipe)
        for item, first_row, last_row in rows_between(items, begin, end):
            for share in item.shares:
                elements = item.element_of(share, first_row), item.element_of(share, last_row)
                for first, last, origin in outputs[share.member].frame.spans(share.slot, *elements):
                    builder.add(item, share, (first, last), origin - reach.starts[share.member])
            reach.advance(item, first_row, last_row)
        if end == edges[-1]:
            reach.finish()
        parts: list[FilledPart] = []
        renumbered: dict[int, int] = {}
        for member, (start, stop) in enumerate(zip(reach.starts, reach.stops, strict=True)):
            if start < stop:
                renumbered[member] = len(parts)
                parts.append(FilledPart(group.outputs[member], number, ByteRange(start, stop)))
        step = builder.step(index, number, tuple(parts), renumbered)
        _check_filled(step, recipe)
        yield step
        reach.cut()


def _check_filled(step: Step, recipe: Recipe) -> None:
    """Raise PlanError unless reads and known bytes fill every byte of the parts.

    A byte that nothing fills would be whatever its buffer held before: another tensor's.
    """
    filled = sum(copy.transfer.total_nbytes for read in step.reads for copy in read.copies)
    filled += sum(lay.transfer.total_nbytes for tile in step.tiles for lay in tile.lays)
    filled += sum(tile.nbytes for tile in step.tiles)
    for part in step.parts:
        known = recipe.outputs[part.output].frame.literals_in(part.range.start, part.range.stop)
        filled += sum(len(data) for _, data in known)
    if filled != step.nbytes:
        raise PlanError(
            f"step {step.number} of group {step.group} fills {filled} of {step.nbytes} bytes: "
            "the catalog's boxes do not tile their tensors"
        )


def rows_between(items: Sequence[Rows], begin: Cut, end: Cut) -> Iterator[tuple[Rows, int, int]]:
    """The tensors between two cuts, each with its first row and one past the last."""
    for index in range(begin.item, min(end.item + 1, len(items))):
        first = begin.row if index == begin.item else 0
        last = end.row if index == end.item else items[index].row_count
        if first < last:
            yield items[index], first, last


class _Builder:
    """Collects the copies of one step and makes reads of them."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        # By object: the buffer, and the transfer with the source address in the object.
        self._copies: dict[int, list[tuple[int, Transfer]]] = {}
        self._tiles: dict[tuple[int, Making], Computed] = {}

    def add(self, item: Rows, share: Share, elements: tuple[int, int], part_start: int) -> None:
        """Add what one output holds of one tensor; ``elements`` counts in its local slice."""
        for local in row_major_boxes(share.box.shape, *elements):
            for piece, patch in sources_of(self._recipe, item.tensor, local.shifted(share.box.start)):
                if piece.making is not None:
                    computed = self._tiles.setdefault((piece.source, piece.making), Computed())
                    computed.lays.append((share, patch, item.itemsize, part_start))
                    continue
                for placement, common in stored_at(self._recipe, piece.source, patch):
                    move = common.transfer(placement.box, share.box, item.itemsize)
                    self._add_copy(piece.source, placement, share.member, move.moved(target=part_start))

    def _add_copy(self, entry: int, placement: Placement, buffer: int, move: Transfer) -> None:
        # Replicas take turns by tensor: outputs share what is read, and none mixes two replicas.
        holder, first_byte = placement.holders[entry % len(placement.holders)]
        self._copies.setdefault(holder, []).append((buffer, move.moved(source=first_byte)))

    def step(self, group: int, number: int, parts: tuple[FilledPart, ...], buffer_of: dict[int, int]) -> Step:
        """Make the step; ``buffer_of`` tells the part that each member fills."""
        self._copies = {
            holder: [(buffer_of[member], move) for member, move in moves] for holder, moves in self._copies.items()
        }
        tiles, sizes = self._gather(len(parts), buffer_of)
        return Step(group, number, tuple(self._reads()), parts, tiles, sizes)

    def _gather(self, first_buffer: int, buffer_of: dict[int, int]) -> tuple[tuple[Tile, ...], tuple[int, ...]]:
        tiles: list[Tile] = []
        sizes: list[int] = []
        entries = self._recipe.catalog.entries
        every = ((*key, box, lays) for key, computed in self._tiles.items() for box, lays in computed.boxes())
        for source, making, box, lays_of_box in every:
            inputs = inputs_of(source, making, box)
            for position, (entry, wanted) in enumerate(inputs, start=first_buffer + len(sizes)):
                self._gather_input(entry, wanted, position)
            lays = tuple(
                Copy(buffer_of[share.member], patch.transfer(box, share.box, itemsize).moved(target=part_start))
                for share, patch, itemsize, part_start in lays_of_box
            )
            nbytes = making.dtype.nbytes(box.element_count)
            tiles.append(Tile(making, source, box, inputs, first_buffer + len(sizes), nbytes, lays))
            sizes += [entries[entry].spec.dtype.nbytes(wanted.element_count) for entry, wanted in inputs]
        return tuple(tiles), (*sizes, *(tile.nbytes for tile in tiles))

    def _gather_input(self, entry: int, wanted: Box, buffer: int) -> None:
        found = self._recipe.catalog.entries[entry]
        patch = plain_patch(found.spec.shape).within_target(wanted)
        assert patch is not None
        for placement, common in stored_at(self._recipe, entry, patch):
            move = common.transfer(placement.box, wanted, found.spec.dtype.itemsize)
            self._add_copy(entry, placement, buffer, move)

    def _reads(self) -> Iterator[Read]:
        limits = self._recipe.limits
        for holder in sorted(self._copies):
            copies = self._copies[holder]
            joined = coalesce(
                needed_ranges((move.source_runs for _, move in copies), limits),
                max_gap_bytes=limits.max_gap_bytes,
                max_over_read=limits.max_over_read,
                read_bytes=limits.read_bytes,
            )
            yield from _with_copies(holder, split(joined, limits.read_bytes), copies)


Lay = tuple[Share, Patch, int, int]


@dataclass(slots=True)
class Computed:
    """Where values of one tensor go that are computed in one step."""

    lays: list[Lay] = field(default_factory=list)

    def boxes(self) -> Iterator[tuple[Box, list[Lay]]]:
        """What of the tensor is needed, each box with who takes its values.

        Boxes that fill their hull together are one, computed once for all who take from it; those that
        lie apart (row slices of several ranks) stay apart, or all between them would be read for nothing.
        """
        hulls: dict[Box, list[Lay]] = {}
        for lay in self.lays:
            hulls.setdefault(lay[1].source_hull, []).append(lay)
        joined: list[tuple[Box, list[Lay]]] = []
        for one in sorted(hulls.items(), key=lambda item: (item[0].start, item[0].stop)):
            while joined and (box := _filled_hull(joined[-1][0], one[0])) is not None:
                one = box, [*joined.pop()[1], *one[1]]
            joined.append(one)
        yield from joined


def _filled_hull(a: Box, b: Box) -> Box | None:
    """The hull of two boxes, None if more than a little of it is in neither."""
    hull = Box(tuple(map(min, a.start, b.start)), tuple(map(max, a.stop, b.stop)))
    most = _MOST_HULL * (a.element_count + b.element_count)
    return hull if hull.element_count <= max(most, _LEAST_TILE) else None


def inputs_of(source: int, making: Making, box: Box) -> tuple[tuple[int, Box], ...]:
    """What a kernel needs to compute a box: of each entry, the tensor itself first, a box."""
    if making.kernel == "dequantise":
        start = tuple(a // n for a, n in zip(box.start, making.blocks, strict=True))
        stop = tuple(-(-b // n) for b, n in zip(box.stop, making.blocks, strict=True))
        return (source, box), (making.extras[0], Box(start, stop))
    if making.kernel == "merge_lora":
        boxes = adapter_boxes(box, making.rank, transposed=making.transposed)
        return (source, box), *zip(making.extras, boxes, strict=True)
    return ((source, box),)


def _with_copies(holder: int, blocks: Sequence[ByteRange], copies: Sequence[tuple[int, Transfer]]) -> Iterator[Read]:
    starts = [block.start for block in blocks]
    held: list[list[Copy]] = [[] for _ in blocks]
    for buffer, move in copies:
        first = bisect_right(starts, move.source) - 1
        for index in range(first, len(blocks)):
            block = blocks[index]
            if block.start >= move.source_stop:
                break
            for piece in move.clip_source(block.start, block.stop):
                held[index].append(Copy(buffer, piece.moved(source=-block.start)))
    for block, found in zip(blocks, held, strict=True):
        if found:
            yield Read(holder, block, tuple(found))
