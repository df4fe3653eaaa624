"""The steps of one group by number, each derived for what it alone costs.

The edges of a step in every output are found once for the group, in one walk over its tensors; from then on a step
needs the rows between its two cuts and nothing of any other step. So steps are derived in any order, in any process.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from ...errors import PlanError
from ...tensor import ByteRange, Patch, Scatter
from ..outputs.output import Piece
from ..outputs.streamed import CopiedRange, Streamed, split_evenly
from ..outputs.walk import Slice, WalkItem
from .cuts import Cursor, rows_between
from .draft import Cut, Draft, Group
from .fills import Fill, computation_inputs, input_fills, slice_fills
from .row_reads import Block, RowReader, Rows
from .steps import BufferScatter, CopiedPart, Read, Step, StreamedPart, Tile
from .tiles import TileCollector, TileTarget

_Spans = dict[tuple[int, int], ByteRange]
"""Bytes of one output of each class of members, by the class and the number of copied ranges before them."""


class StepSize(NamedTuple):
    """The reads of a step and the length of its buffers, without its scatters."""

    blocks: list[Block]
    nbytes: int


class GroupSteps:
    """The steps of one group.

    Steps that stream are numbered by the cuts they end at, from 1 on; steps that have the store copy one part
    follow. Outputs that share a layout and its copied ranges advance together, so one represents all of them. The
    reader keeps what is found about the draft, for all groups; ``index`` is the number of this one.
    """

    def __init__(self, draft: Draft, reader: RowReader, index: int, group: Group) -> None:
        self._draft = draft
        self._reader = reader
        self._index = index
        self._group = group
        classes: dict[object, list[int]] = {}
        for member, output in enumerate(group.outputs):
            classes.setdefault(reader.equivalence.member(output), []).append(member)
        self._classes = list(classes.values())
        representatives = [group.outputs[members[0]] for members in self._classes]
        self._streamed = [draft.streamed(output) for output in representatives]
        self._has_copies = draft.has_copies(group.outputs)
        items = draft.walk(representatives)
        self._edges = tuple(pairwise((Cut(0, 0), *group.cuts, Cut(len(items), 0))))
        self._spans = list(self._find_spans(items))

    def _find_spans(self, items: Sequence[WalkItem]) -> Iterator[_Spans]:
        """Yield the bytes that each step fills."""
        cursor = Cursor(self._streamed)
        for begin, end in self._edges:
            for item, first, last in rows_between(items, begin, end):
                cursor.advance(item, first, last)
            if (begin, end) == self._edges[-1]:
                cursor.finish()
            spans = enumerate(zip(self._streamed, cursor.starts, cursor.stops, strict=True))
            yield {
                (class_number, segment): span
                for class_number, (streamed, start, stop) in spans
                for segment, span in streamed.ranges(start, stop)
            }
            cursor.cut()

    @cached_property
    def _copies(self) -> list[tuple[int, CopiedRange]]:
        """Every part that the store copies, with its member of the group."""
        most = self._draft.limits.most_copied_bytes
        return [
            (member, part)
            for member, output in enumerate(self._group.outputs)
            for run in self._draft.copied(output)
            for part in split_evenly(run, most)
        ]

    @cached_property
    def _class_of(self) -> dict[int, int]:
        return {member: class_number for class_number, members in enumerate(self._classes) for member in members}

    @cached_property
    def _part_numbers(self) -> list[dict[int, int]]:
        """The number of each part by its first byte, for each class: in the order of the object, from 1 on."""
        starts: list[list[int]] = [[] for _ in self._classes]
        for member, part in self._copies:
            class_number = self._class_of[member]
            if member == self._classes[class_number][0]:
                starts[class_number].append(part.start)
        for spans in self._spans:
            for (class_number, _), span in spans.items():
                starts[class_number].append(span.start)
        return [{start: number for number, start in enumerate(sorted(found), start=1)} for found in starts]

    @cached_property
    def streaming(self) -> tuple[int, ...]:
        """The numbers of the steps that stream."""
        return tuple(number for number, spans in enumerate(self._spans, start=1) if spans)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all steps, those that copy first: they need no memory."""
        first = len(self._spans) + 1
        return (*range(first, first + len(self._copies)), *self.streaming)

    def numbers_within(self, output: int, ranges: Sequence[ByteRange]) -> tuple[int, ...]:
        """Return the numbers of the steps that have a part of an output with bytes in some ranges."""

        def is_within(span: ByteRange | CopiedRange) -> bool:
            return any(span.start < wanted.stop and wanted.start < span.stop for wanted in ranges)

        member = self._group.outputs.index(output)
        copies = enumerate(self._copies, start=len(self._spans) + 1)
        copying = [number for number, (owner, part) in copies if owner == member and is_within(part)]
        streaming = [
            number
            for number, spans in enumerate(self._spans, start=1)
            if any(of == self._class_of[member] and is_within(span) for (of, _), span in spans.items())
        ]
        return (*copying, *streaming)

    def part_counts(self) -> list[int]:
        """Return how many parts of each output of the group, in order, are streamed."""
        counts = [0] * len(self._group.outputs)
        for spans in self._spans:
            for class_number, _ in spans:
                for member in self._classes[class_number]:
                    counts[member] += 1
        return counts

    def copied_parts(self) -> Iterator[CopiedPart]:
        """Yield every part that the store copies."""
        for number in range(len(self._copies)):
            yield self._copied_part(number)

    def _copied_part(self, number: int) -> CopiedPart:
        member, part = self._copies[number]
        part_number = self._part_numbers[self._class_of[member]][part.start]
        span = ByteRange(part.start, part.stop)
        return CopiedPart(self._group.outputs[member], part_number, span, part.object, part.first)

    # One step.

    def size(self, number: int) -> StepSize:
        """Return the reads and the length of the buffers of a streaming step, without deriving where bytes go."""
        spans = self._spans[number - 1]
        blocks, tile_bytes = self._blocks(self._rows(number))
        parts_bytes = sum(span.nbytes * len(self._classes[class_number]) for (class_number, _), span in spans.items())
        return StepSize(blocks, parts_bytes + tile_bytes)

    def part_sizes(self, number: int) -> Iterator[tuple[int, int]]:
        """Yield the output and the length of each part of a streaming step."""
        for (class_number, _), span in self._spans[number - 1].items():
            for member in self._classes[class_number]:
                yield self._group.outputs[member], span.nbytes

    def step(self, number: int) -> Step:
        """Derive one step."""
        if number > len(self._spans):
            return Step(self._index, number, (), (), (self._copied_part(number - len(self._spans) - 1),))
        spans = self._spans[number - 1]
        here = sorted(
            ((member, segment), span, self._part_numbers[class_number][span.start])
            for (class_number, segment), span in spans.items()
            for member in self._classes[class_number]
        )
        parts = tuple(StreamedPart(self._group.outputs[member], part, span) for (member, _), span, part in here)
        buffers = {where: position for position, (where, _, _) in enumerate(here)}
        rows = list(self._rows(number))
        builder = _Builder(self._draft)
        for item, first, last in rows:
            for held in item.slices:
                start, stop = item.element_of(held, first), item.element_of(held, last)
                for a, b, segment, origin in self._members[held.member].spans(held.slot, start, stop):
                    buffer = buffers[held.member, segment]
                    builder.add(item, held, (a, b), buffer, origin - parts[buffer].range.start)
        tiles, sizes = builder.gather(len(parts))
        blocks, _ = self._blocks(rows)
        step = Step(self._index, number, tuple(builder.reads(blocks)), parts, (), tiles, sizes)
        _check_filled(step, self._draft)
        return step

    @cached_property
    def _items(self) -> tuple[WalkItem, ...]:
        return self._draft.walk(self._group.outputs)

    @cached_property
    def _members(self) -> list[Streamed]:
        return [self._draft.streamed(output) for output in self._group.outputs]

    def _rows(self, number: int) -> Iterator[Rows]:
        return rows_between(self._items, *self._edges[number - 1])

    def _blocks(self, rows: Iterable[Rows]) -> tuple[list[Block], int]:
        return self._reader.blocks(rows, self._members if self._has_copies else None)


class _Builder:
    """Collects the scatters of one step."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        # By object: the buffer, and the scatter with the source address in the object.
        self._scatters: dict[int, list[tuple[int, Scatter]]] = {}
        self._tiles = TileCollector()

    def add(self, item: WalkItem, held: Slice, elements: tuple[int, int], buffer: int, first_byte: int) -> None:
        """Add elements of a slice whose first element would be at ``first_byte`` of the buffer."""

        def on_computed(piece: Piece, patch: Patch) -> None:
            self._tiles.add(piece, TileTarget(patch, held.box, item.itemsize, buffer, first_byte))

        for fill in slice_fills(self._draft, item, held, elements, on_computed):
            self._add(fill, buffer, first_byte)

    def _add(self, fill: Fill, buffer: int, first_byte: int = 0) -> None:
        # Always the first replica: neighbours are together in it, and outputs share what is read.
        index, source = fill.placement.holders[0]
        self._scatters.setdefault(index, []).append((buffer, fill.scatter.moved(source, first_byte)))

    def gather(self, first_buffer: int) -> tuple[tuple[Tile, ...], tuple[int, ...]]:
        """Add the inputs of all tiles; return the tiles and the bytes of their buffers."""
        tiles: list[Tile] = []
        sizes: list[int] = []
        entries = self._draft.catalog.entries
        for source, computation, box, targets in self._tiles.tiles():
            inputs = computation_inputs(source, computation, box)
            for position, (entry, wanted) in enumerate(inputs, start=first_buffer + len(sizes)):
                for fill in input_fills(self._draft, entry, wanted):
                    self._add(fill, position)
            scatters = tuple(
                BufferScatter(each.buffer, each.patch.scatter(box, each.held, each.itemsize).moved(0, each.first_byte))
                for each in targets
            )
            nbytes = computation.dtype.nbytes(box.element_count)
            tiles.append(Tile(computation, source, box, inputs, first_buffer + len(sizes), nbytes, scatters))
            sizes += [entries[entry].spec.dtype.nbytes(wanted.element_count) for entry, wanted in inputs]
        return tuple(tiles), (*sizes, *(tile.nbytes for tile in tiles))

    def reads(self, blocks: Sequence[Block]) -> Iterator[Read]:
        """Divide the scatters over the reads that bring their bytes."""
        found: dict[int, list[ByteRange]] = {}
        for block in blocks:
            found.setdefault(block.object, []).append(block.range)
        for index, scatters in sorted(self._scatters.items()):
            spans = found[index]
            starts = [span.start for span in spans]
            held: list[list[BufferScatter]] = [[] for _ in spans]
            for buffer, move in scatters:
                position, stop = bisect_right(starts, move.source) - 1, move.source_stop
                if stop <= spans[position].stop:  # as most are
                    held[position].append(BufferScatter(buffer, move.moved(source=-starts[position])))
                    continue
                while position < len(spans) and starts[position] < stop:
                    for piece in move.clip_source(spans[position].start, spans[position].stop):
                        held[position].append(BufferScatter(buffer, piece.moved(source=-starts[position])))
                    position += 1
            for span, some in zip(spans, held, strict=True):
                yield Read(index, span, tuple(some))


def _check_filled(step: Step, draft: Draft) -> None:
    """Raise PlanError unless reads and literals fill every byte of the parts.

    A byte that nothing fills would keep what its buffer held before: a byte of another tensor.
    """
    filled = sum(each.scatter.total_nbytes for read in step.reads for each in read.scatters)
    filled += sum(each.scatter.total_nbytes for tile in step.tiles for each in tile.scatters)
    filled += sum(tile.nbytes for tile in step.tiles)
    for part in step.parts:
        known = draft.outputs[part.output].frame.literals_in(part.range.start, part.range.stop)
        filled += sum(len(data) for _, data in known)
    if filled != step.nbytes:
        raise PlanError(
            f"step {step.number} of group {step.group} fills {filled} of {step.nbytes} bytes: "
            "the boxes of the source do not tile their tensors"
        )
