"""Where outputs that are written together are cut into upload parts, all at the same place.

A group's tensors are walked in file order, each in rows of its local shape. A cut is a place in that walk; it is
legal if every output of the group has received nothing, or at least the store's smallest part, since the cut before.
Between two cuts is a step. Copied ranges take no part in this: each output is walked as if the ranges
between them were joined (see :class:`Streamed`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd

from ..outputs.streamed import Streamed
from ..outputs.walk import Slice, WalkItem
from .draft import Cut, Draft
from .equivalence import Equivalence
from .reads import check_work


@dataclass(frozen=True, slots=True)
class Cuts:
    """The cuts of a walk, and the most bytes in one step and in one part of one output."""

    cuts: tuple[Cut, ...]
    step_bytes: int
    part_bytes: int


class Cursor:
    """How far each output of a group is filled as its walk advances, in places (see :class:`Streamed`).

    Bytes that a format puts before a tensor count with the tensor's first elements, those at the object's end with
    the last step. An output may represent several that advance together: as many as ``counts`` says.
    """

    def __init__(self, outputs: Sequence[Streamed], counts: Sequence[int] | None = None) -> None:
        self._outputs = outputs
        self._counts = counts or [1] * len(outputs)
        self.starts = [0] * len(outputs)
        self.stops = [0] * len(outputs)
        self._tile_bytes = 0

    @property
    def pending(self) -> list[int]:
        """Bytes of each output since the last cut."""
        return [stop - start for start, stop in zip(self.starts, self.stops, strict=True)]

    @property
    def step_bytes(self) -> int:
        """Bytes of all outputs since the last cut, and of the buffers for what is computed."""
        return sum(count * nbytes for count, nbytes in zip(self._counts, self.pending, strict=True)) + self._tile_bytes

    def advance(self, item: WalkItem, row: int, stop: int) -> None:
        """Fill the rows ``[row, stop)`` of a tensor."""
        for held in item.slices:
            first, last = item.element_of(held, row), item.element_of(held, stop)
            self._tile_bytes += (last - first) * item.tile_itemsize * self._counts[held.member]
            if last > first:
                self.stops[held.member] = self._outputs[held.member].end_of(held.slot, last)

    def row_with(self, item: WalkItem, held: Slice, row: int, nbytes: int) -> int | None:
        """Return the first row after ``row`` with ``nbytes`` of an output since the last cut, None if there is none."""
        output, start = self._outputs[held.member], self.starts[held.member]
        if output.copied:
            return self._row_at(item, held, row + 1, start + nbytes)
        missing_bytes = nbytes - (output.address(held.slot, item.element_of(held, row)) - start)
        missing_rows = max(1, -(-missing_bytes // (held.row_elements * item.itemsize)))
        wanted = row * held.row_count // item.row_count + missing_rows
        # Back from rows of this slice to rows of the largest one, by which the walk is cut.
        return -(-wanted * item.row_count // held.row_count) if wanted <= held.row_count else None

    def aligned_row(self, item: WalkItem, held: Slice, row: int, least: int) -> int | None:
        """Return the first row from ``row`` on where parts of an output may end, None if there is none."""
        output = self._outputs[held.member]
        if not output.copied:
            return row
        here = self._place_of(item, held, row)
        place = output.aligned(self.starts[held.member], here, least)
        return row if place == here else self._row_at(item, held, row, place)

    def is_aligned(self, member: int, least: int) -> bool:
        """Return whether parts of an output may end where it is filled to."""
        stop = self.stops[member]
        return self._outputs[member].aligned(self.starts[member], stop, least) == stop

    def _place_of(self, item: WalkItem, held: Slice, row: int) -> int:
        element = item.element_of(held, row)
        if not element:
            return self.stops[held.member]
        return self._outputs[held.member].end_of(held.slot, element)

    def _row_at(self, item: WalkItem, held: Slice, row: int, place: int) -> int | None:
        rows = range(row, item.row_count + 1)
        found = bisect_left(rows, place, key=lambda row: self._place_of(item, held, row))
        return rows[found] if found < len(rows) else None

    def finish(self) -> None:
        """Fill the rest: what follows the last tensor."""
        self.stops = [output.nbytes for output in self._outputs]

    def cut(self) -> None:
        """Begin a new step here."""
        self.starts = list(self.stops)
        self._tile_bytes = 0


def find_cuts(
    items: Sequence[WalkItem],
    outputs: Sequence[Streamed],
    part_bytes: int,
    min_part_bytes: int,
    counts: Sequence[int] | None = None,
) -> Cuts:
    """Cut a walk as soon as every output has enough bytes for a part of the wished size, at least the smallest one.

    ``counts`` says how many outputs each of ``outputs`` represents; one if omitted.
    """
    cursor, before = Cursor(outputs, counts), [0] * len(outputs)
    cuts: list[Cut] = []
    step_bytes = longest = 0
    for index, item in enumerate(items):
        row = 0
        while (cut := _next_cut(item, row, cursor, part_bytes, min_part_bytes)) is not None:
            cursor.advance(item, row, cut)
            step_bytes, longest = max(step_bytes, cursor.step_bytes), max(longest, *cursor.pending)
            before = cursor.starts
            cursor.cut()
            cuts.append(Cut(index, cut))
            row = cut
        cursor.advance(item, row, item.row_count)
    if cuts and not any(cursor.pending):  # the objects' ends belong to the last step that has elements
        cuts.pop()
        cursor.starts = before
    cursor.finish()
    return Cuts(tuple(cuts), max(step_bytes, cursor.step_bytes), max(longest, *cursor.pending))


def _next_cut(item: WalkItem, row: int, cursor: Cursor, part_bytes: int, min_part_bytes: int) -> int | None:
    """Return the first row from ``row`` on where every output has enough, None if there is none in this tensor."""
    cut, pending, here = row, cursor.pending, set[int]()
    for held in item.slices:
        here.add(held.member)
        if pending[held.member] < part_bytes:
            wanted = cursor.row_with(item, held, row, part_bytes)
            if wanted is None:
                return None
            cut = max(cut, wanted)
    # An output that holds nothing of this tensor must already be at a place where a part may end.
    for member, nbytes in enumerate(pending):
        if nbytes and member not in here and not cursor.is_aligned(member, min_part_bytes):
            return None
    return _aligned(item, cut, cursor, min_part_bytes)


def _aligned(item: WalkItem, row: int, cursor: Cursor, min_part_bytes: int) -> int | None:
    """Return the first row from ``row`` on where parts of every output may end, None if there is none."""
    while True:
        before = row
        for held in item.slices:
            aligned = cursor.aligned_row(item, held, row, min_part_bytes)
            if aligned is None:
                return None
            row = aligned
        if row == before:  # no output moved the row further, so it suits all of them
            return row


def rows_between(items: Sequence[WalkItem], begin: Cut, end: Cut) -> Iterator[tuple[WalkItem, int, int]]:
    """Yield the tensors between two cuts, each with its first row and one past the last."""
    for index in range(begin.item, min(end.item + 1, len(items))):
        first = begin.row if index == begin.item else 0
        last = end.row if index == end.item else items[index].row_count
        if first < last:
            yield items[index], first, last


class CutFinder:
    """Cuts groups, once for groups that are equivalent: ranks of one stage are, and most stages are."""

    def __init__(self, draft: Draft, equivalence: Equivalence) -> None:
        self._draft = draft
        self._equivalence = equivalence
        self._found: dict[Hashable, Cuts] = {}
        self._work = 0

    def cut(self, members: Sequence[int], part_bytes: int) -> Cuts:
        """Cut a group of outputs, given by index, as :func:`find_cuts` does."""
        counts = Counter(self._equivalence.member(i) for i in members)
        first = {self._equivalence.member(i): i for i in reversed(members)}
        representatives = [first[member] for member in counts]
        # Cuts do not change if every output is there twice; the bytes of a step double.
        times = gcd(*counts.values())
        reduced = [count // times for count in counts.values()]
        key = self._equivalence.together(representatives), tuple(reduced), part_bytes
        if key not in self._found:
            streamed = [self._draft.streamed(i) for i in representatives]
            items = self._draft.walk(representatives)
            rows, parts = sum(item.row_count for item in items), max(each.nbytes for each in streamed) // part_bytes
            self._work += (len(items) + min(rows, parts)) * len(streamed)
            check_work(self._work)
            self._found[key] = find_cuts(items, streamed, part_bytes, self._draft.limits.min_part_bytes, reduced)
        return replace(self._found[key], step_bytes=self._found[key].step_bytes * times)
