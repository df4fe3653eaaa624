"""Steps: what to read and which parts it fills, derived from a recipe whenever they are wanted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import PlanError
from ..tensor import Box, ByteRange, Shape, Transfer, row_major_boxes, transfer
from .catalog import Catalog, Placement
from .cuts import Cut, Reach, Rows, Share, walk
from .limits import Limits
from .output import Output, TargetTensor
from .reads import NeededRange, coalesce, needed_ranges, split

__all__ = [
    "Copy",
    "FilledPart",
    "Group",
    "Read",
    "Recipe",
    "Step",
    "group_steps",
    "rows_between",
    "sources_of",
    "whole_reads",
]


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
    """Bytes of a read that go to a part: source addresses count in the read, targets in the part."""

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
class Step:
    """The reads and parts between two cuts; needs nothing of any other step."""

    group: int
    number: int
    reads: tuple[Read, ...]
    parts: tuple[FilledPart, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return sum(part.range.nbytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Found:
    """Where one box of a target tensor comes from.

    ``box`` counts in the placement, which is one of the catalog's ``entry``; its first element is
    the target tensor's element ``target_start``.
    """

    entry: int
    placement: Placement
    box: Box
    target_start: Shape


def sources_of(recipe: Recipe, tensor: int, box: Box) -> Iterator[Found]:
    """Find every stored box that fills some of a target tensor's ``box``."""
    for piece in recipe.tensors[tensor].pieces:
        wanted = box.intersect(piece.target_box)
        if wanted is None:
            continue
        shift = tuple(a - b for a, b in zip(piece.source_start, piece.target_box.start, strict=True))
        at_source = wanted.shifted(shift)
        for placement in recipe.catalog.entries[piece.source].placements:
            common = at_source.intersect(placement.box)
            if common is not None:
                target_start = tuple(a - b for a, b in zip(common.start, shift, strict=True))
                yield Found(piece.source, placement, common.relative_to(placement.box.start), target_start)


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
        step = Step(index, number, builder.reads(renumbered), tuple(parts))
        _check_filled(step, recipe)
        yield step
        reach.cut()


def _check_filled(step: Step, recipe: Recipe) -> None:
    """Raise PlanError unless reads and known bytes fill every byte of the parts.

    A byte that nothing fills would be whatever its buffer held before: another tensor's.
    """
    filled = sum(copy.transfer.total_nbytes for read in step.reads for copy in read.copies)
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
        # Copies by object, as (member, transfer with the source address in the object).
        self._copies: dict[int, list[tuple[int, Transfer]]] = {}
        # Needed boxes by (object, first byte of the placement): the placement's shape, and boxes in it.
        self._needed: dict[tuple[int, int], tuple[tuple[int, ...], int, set[Box]]] = {}

    def add(self, item: Rows, share: Share, elements: tuple[int, int], part_start: int) -> None:
        """Add what one output holds of one tensor; ``elements`` counts in its local slice."""
        for local in row_major_boxes(share.box.shape, *elements):
            for found in sources_of(self._recipe, item.tensor, local.shifted(share.box.start)):
                placement = found.placement
                # Replicas take turns by tensor: outputs share what is read, and none mixes two replicas.
                holder, first_byte = placement.holders[found.entry % len(placement.holders)]
                at_target = tuple(a - b for a, b in zip(found.target_start, share.box.start, strict=True))
                move = transfer(
                    found.box.shape,
                    (placement.box.shape, found.box.start),
                    (share.box.shape, at_target),
                    item.itemsize,
                )
                self._copies.setdefault(holder, []).append((share.member, move.moved(first_byte, part_start)))
                wanted = self._needed.setdefault((holder, first_byte), (placement.box.shape, item.itemsize, set()))
                wanted[2].add(found.box)

    def reads(self, parts: dict[int, int]) -> tuple[Read, ...]:
        """Make the reads; ``parts`` tells the part that each member fills."""
        limits, needed = self._recipe.limits, dict[int, list[NeededRange]]()
        for (holder, first_byte), (shape, itemsize, boxes) in self._needed.items():
            needed.setdefault(holder, []).extend(
                NeededRange(first_byte + found.start, first_byte + found.stop, found.needed_bytes)
                for found in needed_ranges(boxes, shape, itemsize, limits)
            )
        made: list[Read] = []
        for holder in sorted(needed):
            joined = coalesce(
                needed[holder],
                max_gap_bytes=limits.max_gap_bytes,
                max_over_read=limits.max_over_read,
                read_bytes=limits.read_bytes,
            )
            blocks = split(joined, limits.read_bytes)
            made += _with_copies(holder, blocks, self._copies[holder], parts)
        return tuple(made)


def _with_copies(
    holder: int, blocks: Sequence[ByteRange], copies: Sequence[tuple[int, Transfer]], parts: dict[int, int]
) -> Iterator[Read]:
    starts = [block.start for block in blocks]
    held: list[list[Copy]] = [[] for _ in blocks]
    for member, move in copies:
        first = bisect_right(starts, move.source) - 1
        for index in range(first, len(blocks)):
            block = blocks[index]
            if block.start >= move.source_stop:
                break
            for piece in move.clip_source(block.start, block.stop):
                held[index].append(Copy(parts[member], piece.moved(source=-block.start)))
    for block, found in zip(blocks, held, strict=True):
        if found:
            yield Read(holder, block, tuple(found))


def whole_reads(recipe: Recipe, outputs: Sequence[Output]) -> int:
    """Bytes read to write some outputs together, apart from what neighbouring tensors share."""
    total = 0
    for item in walk(outputs, recipe.tensors, recipe.limits):
        wanted: dict[int, tuple[Placement, set[Box]]] = {}
        for share in item.shares:
            for source in sources_of(recipe, item.tensor, share.box):
                wanted.setdefault(id(source.placement), (source.placement, set()))[1].add(source.box)
        for placement, boxes in wanted.values():
            found = needed_ranges(boxes, placement.box.shape, item.itemsize, recipe.limits)
            total += sum(one.nbytes for one in found)
    return total
