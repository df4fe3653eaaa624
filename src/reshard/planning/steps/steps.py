"""Steps: what to read and which parts it fills, derived from a recipe whenever they are wanted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ...errors import PlanError
from ...models.lora import adapter_boxes
from ...tensor import (
    Box,
    ByteRange,
    Patch,
    Scatter,
    plain_patch,
    row_major_boxes,
    slice_scatters,
)
from ..catalog import Placement
from ..limits import Limits
from ..outputs.output import Computation
from ..outputs.streamed import CopiedRange, Streamed, split_evenly
from .cuts import Cursor, Cut, Slice, WalkItem
from .reads import coalesce, needed_ranges, split
from .recipe import Group, Recipe, sources_of, stored_as_it_is, stored_at

_MOST_HULL = 1.25
"""Elements that are computed for each one that is needed, at most, rather than starting another tile."""
_LEAST_TILE = 1 << 16
"""Elements that are not worth a tile of their own: scales and adapters are gathered anew for each tile."""


class BufferScatter(NamedTuple):
    """Bytes that go to one of a step's buffers, parts first, then what tiles take in.

    Source addresses count in the read or in what a tile gives out, targets in the buffer.
    """

    buffer: int
    scatter: Scatter


@dataclass(frozen=True, slots=True)
class Read:
    """One ranged GET and what becomes of its bytes."""

    object: int
    range: ByteRange
    scatters: tuple[BufferScatter, ...]

    @property
    def is_direct(self) -> bool:
        """Whether the bytes stand in one part as they come, and can be received there."""
        if len(self.scatters) != 1:
            return False
        only = self.scatters[0].scatter
        return not only.counts and only.nbytes == self.range.nbytes


@dataclass(frozen=True, slots=True)
class StreamedPart:
    """One piece of an output, filled from reads; ``range`` counts in the output."""

    output: int
    number: int
    range: ByteRange


@dataclass(frozen=True, slots=True)
class CopiedPart:
    """One piece of an output that the store makes itself; ``range`` counts in the output.

    Its bytes stand in the catalog's ``object``-th object, from byte ``first`` on.
    """

    output: int
    number: int
    range: ByteRange
    object: int
    first: int

    @property
    def source_range(self) -> ByteRange:
        """Where its bytes stand in the source."""
        return ByteRange(self.first, self.first + self.range.nbytes)


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

    computation: Computation
    source: int
    box: Box
    inputs: tuple[tuple[int, Box], ...]
    first_input: int
    nbytes: int
    scatters: tuple[BufferScatter, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The reads and parts between two cuts, or parts that are copied; needs nothing of any other step."""

    group: int
    number: int
    reads: tuple[Read, ...]
    parts: tuple[StreamedPart, ...]
    copies: tuple[CopiedPart, ...] = ()
    tiles: tuple[Tile, ...] = ()
    tile_sizes: tuple[int, ...] = ()
    """Bytes of each buffer for tiles: all their inputs, then all results."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its buffers."""
        return sum(part.range.nbytes for part in self.parts) + sum(self.tile_sizes)


def group_steps(recipe: Recipe, index: int, group: Group) -> Iterator[Step]:
    """Derive the steps of one group: first what is copied, which needs no memory, then those of the cuts in order."""
    outputs = [recipe.streamed(i) for i in group.outputs]
    items = recipe.walk(group.outputs)
    edges = (Cut(0, 0), *group.cuts, Cut(len(items), 0))
    ranges = list(_ranges(outputs, items, edges))
    copies = [list(_copies(streamed, recipe.limits)) for streamed in outputs]
    numbers = _numbers(ranges, copies)
    for member, found in enumerate(copies):
        for number, run in enumerate(found, start=len(edges)):
            span = ByteRange(run.start, run.stop)
            copy = CopiedPart(group.outputs[member], numbers[member][run.start], span, run.object, run.first)
            yield Step(index, number, (), (), (copy,))
    for number, ((begin, end), here) in enumerate(zip(pairwise(edges), ranges, strict=True), start=1):
        if not here:
            continue
        buffers = {where: position for position, where in enumerate(here)}
        parts = tuple(StreamedPart(group.outputs[m], numbers[m][span.start], span) for (m, _), span in here.items())
        builder = _Builder(recipe)
        for item, first_row, last_row in rows_between(items, begin, end):
            for share in item.shares:
                elements = item.element_of(share, first_row), item.element_of(share, last_row)
                for first, last, segment, origin in outputs[share.member].spans(share.slot, *elements):
                    buffer = buffers[share.member, segment]
                    builder.add(item, share, (first, last), buffer, origin - parts[buffer].range.start)
        step = builder.step(index, number, parts)
        _check_filled(step, recipe)
        yield step


_Ranges = dict[tuple[int, int], ByteRange]
"""Bytes of outputs, by member of the group and number of copied ranges before them."""


def _ranges(outputs: Sequence[Streamed], items: Sequence[WalkItem], edges: Sequence[Cut]) -> Iterator[_Ranges]:
    """What each step fills."""
    reach = Cursor(outputs)
    for begin, end in pairwise(edges):
        for item, first_row, last_row in rows_between(items, begin, end):
            reach.advance(item, first_row, last_row)
        if end == edges[-1]:
            reach.finish()
        bounds = enumerate(zip(outputs, reach.starts, reach.stops, strict=True))
        yield {
            (member, segment): span
            for member, (streamed, start, stop) in bounds
            for segment, span in streamed.ranges(start, stop)
        }
        reach.cut()


def _copies(streamed: Streamed, limits: Limits) -> Iterator[CopiedRange]:
    for run in streamed.copied:
        yield from split_evenly(run, limits.most_copied_bytes)


def _numbers(ranges: Sequence[_Ranges], copies: Sequence[Sequence[CopiedRange]]) -> list[dict[int, int]]:
    """Number the parts of each output by where they begin: as they stand in it, from 1 on."""
    starts = [[run.start for run in found] for found in copies]
    for here in ranges:
        for (member, _), span in here.items():
            starts[member].append(span.start)
    return [{start: number for number, start in enumerate(sorted(found), start=1)} for found in starts]


def _check_filled(step: Step, recipe: Recipe) -> None:
    """Raise PlanError unless reads and known bytes fill every byte of the parts.

    A byte that nothing fills would be whatever its buffer held before: another tensor's.
    """
    filled = sum(each.scatter.total_nbytes for read in step.reads for each in read.scatters)
    filled += sum(lay.scatter.total_nbytes for tile in step.tiles for lay in tile.scatters)
    filled += sum(tile.nbytes for tile in step.tiles)
    for part in step.parts:
        known = recipe.outputs[part.output].frame.literals_in(part.range.start, part.range.stop)
        filled += sum(len(data) for _, data in known)
    if filled != step.nbytes:
        raise PlanError(
            f"step {step.number} of group {step.group} fills {filled} of {step.nbytes} bytes: "
            "the catalog's boxes do not tile their tensors"
        )


def rows_between(items: Sequence[WalkItem], begin: Cut, end: Cut) -> Iterator[tuple[WalkItem, int, int]]:
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
        self._copies: dict[int, list[tuple[int, Scatter]]] = {}
        self._tiles: dict[tuple[int, Computation], Computed] = {}

    def add(self, item: WalkItem, share: Slice, elements: tuple[int, int], buffer: int, first_byte: int) -> None:
        """Add what one output holds of one tensor.

        Parameters
        ----------
        elements
            Those to fill, counted in its local slice.
        buffer, first_byte
            Where they go: the part, and where in it the slice would begin.
        """
        as_it_is = stored_as_it_is(self._recipe, item.tensor)
        if as_it_is is not None:
            for move in slice_scatters(as_it_is.box.stop, share.box.start, share.box.stop, elements, item.itemsize):
                self._add_copy(as_it_is, buffer, move, first_byte)
            return
        for local in row_major_boxes(share.box.shape, *elements):
            box = local.shifted(share.box.start)
            for piece, patch in sources_of(self._recipe, item.tensor, box):
                if piece.computation is not None:
                    computed = self._tiles.setdefault((piece.source, piece.computation), Computed())
                    computed.scatters.append((share, patch, item.itemsize, buffer, first_byte))
                    continue
                for placement, common in stored_at(self._recipe, piece.source, patch):
                    move = common.scatter(placement.box, share.box, item.itemsize)
                    self._add_copy(placement, buffer, move, first_byte)

    def _add_copy(self, placement: Placement, buffer: int, move: Scatter, target: int = 0) -> None:
        # Always the first replica: neighbours stand together in it, and outputs share what is read.
        holder, source = placement.holders[0]
        self._copies.setdefault(holder, []).append((buffer, move.moved(source, target)))

    def step(self, group: int, number: int, parts: tuple[StreamedPart, ...]) -> Step:
        """Make the step of these parts."""
        tiles, sizes = self._gather(len(parts))
        return Step(group, number, tuple(self._reads()), parts, (), tiles, sizes)

    def _gather(self, first_buffer: int) -> tuple[tuple[Tile, ...], tuple[int, ...]]:
        tiles: list[Tile] = []
        sizes: list[int] = []
        entries = self._recipe.catalog.entries
        every = ((*key, box, scatters) for key, computed in self._tiles.items() for box, scatters in computed.boxes())
        for source, computation, box, lays_of_box in every:
            inputs = inputs_of(source, computation, box)
            for position, (entry, wanted) in enumerate(inputs, start=first_buffer + len(sizes)):
                self._gather_input(entry, wanted, position)
            scatters = tuple(
                BufferScatter(buffer, patch.scatter(box, share.box, itemsize).moved(target=first_byte))
                for share, patch, itemsize, buffer, first_byte in lays_of_box
            )
            nbytes = computation.dtype.nbytes(box.element_count)
            tiles.append(Tile(computation, source, box, inputs, first_buffer + len(sizes), nbytes, scatters))
            sizes += [entries[entry].spec.dtype.nbytes(wanted.element_count) for entry, wanted in inputs]
        return tuple(tiles), (*sizes, *(tile.nbytes for tile in tiles))

    def _gather_input(self, entry: int, wanted: Box, buffer: int) -> None:
        found = self._recipe.catalog.entries[entry]
        patch = plain_patch(found.spec.shape).within_target(wanted)
        assert patch is not None
        for placement, common in stored_at(self._recipe, entry, patch):
            move = common.scatter(placement.box, wanted, found.spec.dtype.itemsize)
            self._add_copy(placement, buffer, move)

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


Lay = tuple[Slice, Patch, int, int, int]


@dataclass(slots=True)
class Computed:
    """Where values of one tensor go that are computed in one step."""

    scatters: list[Lay] = field(default_factory=list)

    def boxes(self) -> Iterator[tuple[Box, list[Lay]]]:
        """What of the tensor is needed, each box with who takes its values.

        Boxes that fill their hull together are one, computed once for all who take from it; those that
        lie apart (row slices of several ranks) stay apart, or all between them would be read for nothing.
        """
        hulls: dict[Box, list[Lay]] = {}
        for lay in self.scatters:
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


def inputs_of(source: int, computation: Computation, box: Box) -> tuple[tuple[int, Box], ...]:
    """What a kernel needs to compute a box: of each entry, the tensor itself first, a box."""
    if computation.kernel == "dequantise":
        start = tuple(a // n for a, n in zip(box.start, computation.blocks, strict=True))
        stop = tuple(-(-b // n) for b, n in zip(box.stop, computation.blocks, strict=True))
        return (source, box), (computation.extras[0], Box(start, stop))
    if computation.kernel == "merge_lora":
        boxes = adapter_boxes(box, computation.rank, transposed=computation.transposed)
        return (source, box), *zip(computation.extras, boxes, strict=True)
    return ((source, box),)


def _with_copies(holder: int, blocks: Sequence[ByteRange], copies: Sequence[tuple[int, Scatter]]) -> Iterator[Read]:
    starts = [block.start for block in blocks]
    held: list[list[BufferScatter]] = [[] for _ in blocks]
    for buffer, move in copies:
        first, stop = bisect_right(starts, move.source) - 1, move.source_stop
        if stop <= blocks[first].stop:  # as most are
            held[first].append(BufferScatter(buffer, move.moved(source=-starts[first])))
            continue
        for index in range(first, len(blocks)):
            block = blocks[index]
            if block.start >= stop:
                break
            for piece in move.clip_source(block.start, block.stop):
                held[index].append(BufferScatter(buffer, piece.moved(source=-block.start)))
    for block, found in zip(blocks, held, strict=True):
        if found:
            yield Read(holder, block, tuple(found))
