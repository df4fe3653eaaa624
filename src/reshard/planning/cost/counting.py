"""Counts what steps read without making them: tensor by tensor, and tensors that are alike once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ...tensor import ByteRange, Runs, Scatter
from ..limits import Limits
from ..steps.cuts import Cursor, Cut, WalkItem
from ..steps.needs import BoxNeed, Needs
from ..steps.reads import NeededRange, coalesce, split
from ..steps.recipe import Group, Recipe
from ..steps.steps import rows_between

_Rows = tuple[WalkItem, int, int]

MANY_SLICES = 1 << 20
"""Tensors over all outputs from which on one group of each kind is counted for all of its kind."""


@dataclass(slots=True)
class Counts:
    """What the steps of one group come to; see :class:`reshard.planning.cost.cost.Cost`.

    Parameters
    ----------
    part_counts
        Of each output of the group, in order.
    filled_bytes
        Of all steps' buffers.
    largest_bytes
        Of one step's.
    """

    needed_bytes: int = 0
    read_bytes: int = 0
    get_count: int = 0
    step_count: int = 0
    filled_bytes: int = 0
    largest_bytes: int = 0
    part_counts: list[int] = field(default_factory=list)


class StepCounter:
    """Counts groups, each by itself or, where slices are many, one of each kind.

    Parameters
    ----------
    recipe
        Of the plan.
    needs
        What has been found out already, if anything has.
    """

    def __init__(self, recipe: Recipe, needs: Needs | None = None) -> None:
        self._recipe = recipe
        self._needs = needs or Needs(recipe)
        self._kinds = self._needs.kinds
        self._counted: dict[Hashable, Counts] = {}
        slice_count = sum(len(output.tensors) for output in recipe.outputs)
        # Sizes of tiles differ a little from place to place, and must fit the memory: there each group is counted.
        self._is_exact = slice_count <= MANY_SLICES or any(tensor.tile_itemsize for tensor in recipe.tensors)

    def kind(self, group: Group) -> Hashable:
        """What groups have in common of which one is counted for all."""
        if self._is_exact:
            return group.outputs
        return group.cuts, tuple(self._kinds.of_output(i) for i in group.outputs)

    def count(self, group: Group) -> Counts:
        """Count one group."""
        kind = self.kind(group)
        if kind not in self._counted:
            self._counted[kind] = self._count(group)
        return self._counted[kind]

    def _count(self, group: Group) -> Counts:
        counts = Counts()
        standing = Standing(self._recipe, self._needs, group)
        for items in standing.steps():
            tile_bytes = self._count_reads(items, counts)
            nbytes = standing.step_bytes + tile_bytes
            counts.step_count += 1
            counts.filled_bytes += nbytes
            counts.largest_bytes = max(counts.largest_bytes, nbytes)
        counts.part_counts = standing.part_counts()
        return counts

    def _count_reads(self, items: Iterable[_Rows], counts: Counts) -> int:
        """Add up what some rows read; returns the bytes of buffers for tiles."""
        found: dict[tuple[int, int], BoxNeed] = {}
        tile_bytes = 0
        for rows in self._apart(items):
            taken, nbytes = self._taken(rows)
            tile_bytes += nbytes
            for entry, place, one in taken:
                at = entry, place
                # Two tensors of the target may share one of the source.
                found[at] = BoxNeed.of(found[at].runs | one.runs, self._recipe.limits) if at in found else one
        by_object: dict[int, list[tuple[int, BoxNeed]]] = {}
        for (entry, place), one in found.items():
            holders = self._recipe.catalog.entries[entry].placements[place].holders
            holder, first_byte = holders[0]
            by_object.setdefault(holder, []).append((first_byte, one))
        for placed in by_object.values():
            _count_object(placed, self._recipe.limits, counts)
        return tile_bytes

    def _taken(self, rows: Sequence[_Rows]) -> tuple[Iterable[tuple[int, int, BoxNeed]], int]:
        if len(rows) > 1:
            return self._needs.together(rows)
        [(item, first, last)] = rows
        need, entries = self._needs.of(item, first, last), self._kinds.entries(item.tensor)
        return ((entries[slot], place, taken) for slot, place, taken in need.taken), need.tile_bytes

    def _apart(self, items: Iterable[_Rows]) -> Iterator[Sequence[_Rows]]:
        """Put those together that values are computed for from the same entries: they share tiles."""
        alone, of_entry = [], dict[int, list[_Rows]]()
        for rows in items:
            need, entries = self._needs.of(*rows), self._kinds.entries(rows[0].tensor)
            for slot in need.computed:
                of_entry.setdefault(entries[slot], []).append(rows)
            alone.append(rows)
        shared = {id(rows): rows for sharers in of_entry.values() if len(sharers) > 1 for rows in sharers}
        yield from ([rows] for rows in alone if id(rows) not in shared)
        if shared:
            yield list(shared.values())


class Standing:
    """A walk over a group in which one output stands for all that are filled alike.

    Attributes
    ----------
    items
        The walk, of all outputs.
    output_count
        Of the group.
    step_bytes, part_bytes
        Of the parts of the step that :meth:`steps` yielded last, all together and the longest.
    """

    def __init__(self, recipe: Recipe, needs: Needs, group: Group) -> None:
        of_member: dict[Hashable, list[int]] = {}
        for position, output in enumerate(group.outputs):
            of_member.setdefault(needs.kinds.of_member(output), []).append(position)
        self._positions = list(of_member.values())
        self.output_count = len(group.outputs)
        standing = [group.outputs[positions[0]] for positions in self._positions]
        self._few = recipe.walk(standing)
        self.items = recipe.walk(group.outputs)  # item by item the same, with more shares
        self._cuts = group.cuts
        streamed = [recipe.streamed(i) for i in standing]
        self._reach = Cursor(streamed, [len(each) for each in self._positions])
        self._parts = [0] * len(standing)
        self.step_bytes = self.part_bytes = 0

    def steps(self) -> Iterator[Iterator[_Rows]]:
        """Yield the rows of each step."""
        last_edge = Cut(len(self.items), 0)
        for begin, end in pairwise((Cut(0, 0), *self._cuts, last_edge)):
            for item, first, last in rows_between(self._few, begin, end):
                self._reach.advance(item, first, last)
            if end == last_edge:
                self._reach.finish()
            pending = self._reach.pending
            self._parts = [count + (nbytes > 0) for count, nbytes in zip(self._parts, pending, strict=True)]
            self.part_bytes = max(pending)
            self.step_bytes = sum(
                nbytes * len(positions) for nbytes, positions in zip(pending, self._positions, strict=True)
            )
            yield rows_between(self.items, begin, end)
            self._reach.cut()

    def part_counts(self) -> list[int]:
        """Parts of each output of the group, after the last step."""
        found = {at: n for positions, n in zip(self._positions, self._parts, strict=True) for at in positions}
        return [found[position] for position in range(len(found))]


def _count_object(placed: Sequence[tuple[int, BoxNeed]], limits: Limits, counts: Counts) -> None:
    """Count the reads of one step in one object, from the first byte of each stored box and what it takes."""
    ranges = coalesce(
        (
            NeededRange(first + one.start, first + one.stop, one.needed_bytes)
            for first, taken in placed
            for one in taken.ranges
        ),
    )
    joined = coalesce(
        ranges,
        max_gap_bytes=limits.max_gap_bytes,
        max_over_read=limits.max_over_read,
        read_bytes=limits.read_bytes,
    )
    blocks = split(joined, limits.read_bytes)
    needed = [0] * len(blocks)
    starts = [block.start for block in blocks]
    for first, taken in placed:
        for index, nbytes in _shared_out(first, taken, blocks, starts):
            needed[index] += nbytes
    for block, nbytes in zip(blocks, needed, strict=True):
        if nbytes:
            counts.get_count += 1
            counts.read_bytes += block.nbytes
            # What several outputs take is one needed byte; sets of runs that differ are taken to be disjoint.
            counts.needed_bytes += min(block.nbytes, nbytes)


def _shared_out(
    first: int, taken: BoxNeed, blocks: Sequence[ByteRange], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield how many needed bytes are in which block."""
    start, stop = first + taken.ranges[0].start, first + taken.ranges[-1].stop
    index = bisect_right(starts, start) - 1
    if stop <= blocks[index].stop:
        yield index, taken.needed_bytes
    elif taken.is_dense:
        for one in taken.ranges:
            yield from _overlaps(first + one.start, first + one.stop, blocks, starts)
    else:
        yield from _clipped(first, taken.runs, blocks, starts)


def _overlaps(start: int, stop: int, blocks: Sequence[ByteRange], starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    index = bisect_right(starts, start) - 1
    while index < len(blocks) and blocks[index].start < stop:
        yield index, min(stop, blocks[index].stop) - max(start, blocks[index].start)
        index += 1


def _clipped(
    first: int, every: frozenset[Runs], blocks: Sequence[ByteRange], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    found: dict[int, set[Runs]] = {}
    for runs in every:
        move = Scatter(first + runs.first, 0, runs.nbytes, runs.counts, runs.strides, runs.strides)
        for index in range(bisect_right(starts, move.source) - 1, len(blocks)):
            if blocks[index].start >= move.source_stop:
                break
            pieces = move.clip_source(blocks[index].start, blocks[index].stop)
            found.setdefault(index, set()).update(piece.source_runs for piece in pieces)
    for index, here in found.items():
        yield index, sum(runs.total_nbytes for runs in here)
