"""Where outputs that are written together may be cut into upload parts at one stroke.

A group's tensors are walked in file order, each in rows of its local shape. A cut is a place in
that walk; it is legal when every output of the group has nothing, or at least the store's
smallest part, since the cut before. Between two cuts lies a step. What the store copies by itself takes
no part in this: each output is walked as if the stretches between stood end to end.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from ...tensor import Box, Shape, extent_of
from ..limits import Limits
from ..outputs.output import Output, TargetTensor, group_by_layout
from ..outputs.streamed import Streamed

_FEW_SHARES = 8  # of a tensor, that are quicker kept than derived again


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A place in a group's walk: before row ``row`` of its ``item``-th tensor."""

    item: int
    row: int


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a walk is cut, and the most bytes in one step and in one part of one output."""

    cuts: tuple[Cut, ...]
    step_bytes: int
    part_bytes: int


@dataclass(frozen=True, slots=True)
class Slice:
    """What one output of a group holds of a tensor, in rows.

    Parameters
    ----------
    member
        Index of the output within the group.
    slot
        Index of the tensor within that output.
    box
        In elements of the whole tensor.
    row_count, row_elements
        The local slice as rows: a row is one index into its leading axes.
    """

    member: int
    slot: int
    box: Box
    row_count: int
    row_elements: int


@dataclass(frozen=True, slots=True)
class SliceGroup:
    """Outputs of one form that hold a tensor: which, in which slot, and their slices as rows, see :class:`Slice`."""

    members: tuple[int, ...]
    slot: int
    row_count: int
    row_elements: int


class Slices(Sequence[Slice]):
    """Shares by member, derived whenever they are asked for: many outputs of many tensors are too many to keep."""

    __slots__ = ("_kept", "holdings", "outputs")

    def __init__(self, outputs: Sequence[Output], holdings: tuple[SliceGroup, ...]) -> None:
        self.outputs = outputs
        self.holdings = holdings
        self._kept: tuple[Slice, ...] = ()

    def __len__(self) -> int:
        """As many as outputs hold some of the tensor."""
        return sum(len(holding.members) for holding in self.holdings)

    def __iter__(self) -> Iterator[Slice]:
        """Ascending by member."""
        if not self._kept and len(self) <= _FEW_SHARES:
            self._kept = tuple(self._derived())
        return iter(self._kept) if self._kept else self._derived()

    def _derived(self) -> Iterator[Slice]:
        every = ((member, holding) for holding in self.holdings for member in holding.members)
        for member, holding in every if len(self.holdings) == 1 else sorted(every, key=lambda one: one[0]):
            box = self.outputs[member].boxes[holding.slot]
            yield Slice(member, holding.slot, box, holding.row_count, holding.row_elements)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Slice, ...]: ...
    def __getitem__(self, index: int | slice) -> Slice | tuple[Slice, ...]:
        """One, or some."""
        return tuple(self)[index]


@dataclass(frozen=True, slots=True)
class WalkItem:
    """One tensor of a walk: who holds it, and in how many rows it can be cut."""

    tensor: int
    itemsize: int
    row_count: int
    shares: Sequence[Slice]
    tile_itemsize: int = 0

    def element_of(self, share: Slice, row: int) -> int:
        """First local element of ``row``, which counts in rows of the largest share."""
        return row * share.row_count // self.row_count * share.row_elements


def walk(outputs: Sequence[Output], tensors: Sequence[TargetTensor], limits: Limits) -> tuple[WalkItem, ...]:
    """List the tensors of a group of outputs in file order; tensors without bytes are left out."""
    held: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for members in map(tuple, group_by_layout(outputs)):
        for slot, tensor in enumerate(outputs[members[0]].tensors):
            held.setdefault(tensor, []).append((members, slot))
    order = sorted(held, key=lambda i: (-tensors[i].spec.dtype.order, tensors[i].spec.name))
    rows = [_rows(tensor, held[tensor], outputs, tensors, limits) for tensor in order]
    return tuple(item for item in rows if item.row_count)


def _rows(
    tensor: int,
    holders: Sequence[tuple[tuple[int, ...], int]],
    outputs: Sequence[Output],
    tensors: Sequence[TargetTensor],
    limits: Limits,
) -> WalkItem:
    _, itemsize = extent_of(tensors[tensor].spec)
    boxes = [outputs[members[0]].boxes[slot] for members, slot in holders]  # others of a form are cut alike
    largest = max((box.shape for box in boxes), key=math.prod)
    axis, count = tensors[tensor].unit
    if count == 1 or not _are_in_units(boxes, axis, count, limits.unit_bytes // itemsize):
        axis, count = _row_axis(largest, itemsize, limits.row_bytes), 1
    holdings = tuple(
        SliceGroup(members, slot, math.prod(box.shape[: axis + 1]) // count, count * math.prod(box.shape[axis + 1 :]))
        for (members, slot), box in zip(holders, boxes, strict=True)
        if not box.is_empty
    )
    row_count = max((holding.row_count for holding in holdings), default=0)
    return WalkItem(tensor, itemsize, row_count, Slices(outputs, holdings), tensors[tensor].tile_itemsize)


def _are_in_units(boxes: Iterable[Box], axis: int, count: int, most_elements: int) -> bool:
    """Whether boxes are made of whole units that are not too large."""
    return all(
        box.start[axis] % count == 0
        and box.stop[axis] % count == 0
        and count * math.prod(box.shape[axis + 1 :]) <= most_elements
        for box in boxes
    )


def _row_axis(shape: Shape, itemsize: int, row_bytes: int) -> int:
    """The outermost axis whose rows are short enough."""
    for axis in range(len(shape)):
        if math.prod(shape[axis + 1 :]) * itemsize <= row_bytes:
            return axis
    return len(shape) - 1 if shape else 0


class Cursor:
    """How far each output of a group has been filled while its walk goes on, in places (see :class:`Streamed`).

    Bytes that a format puts before a tensor go with the tensor's first elements, those at the
    object's end with the last step. An output may stand for several that are filled alike: as many as
    ``counts`` says.
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
        """Bytes of all outputs since the last cut, and what computing them takes besides."""
        return sum(count * nbytes for count, nbytes in zip(self._counts, self.pending, strict=True)) + self._tile_bytes

    def advance(self, item: WalkItem, row: int, stop: int) -> None:
        """Fill the rows ``[row, stop)`` of a tensor."""
        for share in item.shares:
            first, last = item.element_of(share, row), item.element_of(share, stop)
            self._tile_bytes += (last - first) * item.tile_itemsize * self._counts[share.member]
            if last > first:
                self.stops[share.member] = self._outputs[share.member].end_of(share.slot, last)

    def with_lead(self, item: WalkItem, share: Slice, row: int) -> int:
        """Bytes since the last cut up to the first byte of a row."""
        return self._outputs[share.member].address(share.slot, item.element_of(share, row)) - self.starts[share.member]

    def row_with(self, item: WalkItem, share: Slice, row: int, nbytes: int) -> int | None:
        """The first row after ``row`` with so many bytes of an output since the last cut, None if there is none."""
        output = self._outputs[share.member]
        if output.copied:
            return self._row_at(item, share, row + 1, self.starts[share.member] + nbytes)
        missing_bytes = nbytes - self.with_lead(item, share, row)
        missing_rows = max(1, -(-missing_bytes // (share.row_elements * item.itemsize)))
        wanted = row * share.row_count // item.row_count + missing_rows
        return -(-wanted * item.row_count // share.row_count) if wanted <= share.row_count else None

    def settled_row(self, item: WalkItem, share: Slice, row: int, least: int) -> int | None:
        """The first row from ``row`` on where parts of an output may end, None if there is none."""
        output = self._outputs[share.member]
        if not output.copied:
            return row
        here = self._place_of(item, share, row)
        place = output.settled(self.starts[share.member], here, least)
        return row if place == here else self._row_at(item, share, row, place)

    def is_settled(self, member: int, least: int) -> bool:
        """Whether parts of an output may end where it has been filled to."""
        stop = self.stops[member]
        return self._outputs[member].settled(self.starts[member], stop, least) == stop

    def _place_of(self, item: WalkItem, share: Slice, row: int) -> int:
        element = item.element_of(share, row)
        if not element:
            return self.stops[share.member]
        return self._outputs[share.member].end_of(share.slot, element)

    def _row_at(self, item: WalkItem, share: Slice, row: int, place: int) -> int | None:
        rows = range(row, item.row_count + 1)
        found = bisect_left(rows, place, key=lambda row: self._place_of(item, share, row))
        return rows[found] if found < len(rows) else None

    def finish(self) -> None:
        """Fill what is left: what stands after the last tensor."""
        self.stops = [output.nbytes for output in self._outputs]

    def cut(self) -> None:
        """Begin anew from here."""
        self.starts = list(self.stops)
        self._tile_bytes = 0


def find_cuts(
    items: Sequence[WalkItem],
    outputs: Sequence[Streamed],
    part_bytes: int,
    min_part_bytes: int,
    counts: Sequence[int] | None = None,
) -> Cuts:
    """Cut a walk as soon as every output has a part's worth.

    Parameters
    ----------
    items
        The walk.
    outputs
        What is streamed of each.
    part_bytes
        Wished bytes in each part, at least ``min_part_bytes``.
    counts
        How many outputs each stands for, one if not given.
    """
    reach, before = Cursor(outputs, counts), [0] * len(outputs)
    cuts: list[Cut] = []
    step_bytes = longest = 0
    for index, item in enumerate(items):
        row = 0
        while (cut := _next_cut(item, row, reach, part_bytes, min_part_bytes)) is not None:
            reach.advance(item, row, cut)
            step_bytes, longest = max(step_bytes, reach.step_bytes), max(longest, *reach.pending)
            before = reach.starts
            reach.cut()
            cuts.append(Cut(index, cut))
            row = cut
        reach.advance(item, row, item.row_count)
    if cuts and not any(reach.pending):  # no step is for the objects' ends alone
        cuts.pop()
        reach.starts = before
    reach.finish()
    return Cuts(tuple(cuts), max(step_bytes, reach.step_bytes), max(longest, *reach.pending))


def _next_cut(item: WalkItem, row: int, reach: Cursor, part_bytes: int, min_part_bytes: int) -> int | None:
    """The first row from ``row`` on where every output has enough, or None within this tensor."""
    cut, pending, here = row, reach.pending, set[int]()
    for share in item.shares:
        here.add(share.member)
        if pending[share.member] < part_bytes:
            wanted = reach.row_with(item, share, row, part_bytes)
            if wanted is None:
                return None
            cut = max(cut, wanted)
    for member, nbytes in enumerate(pending):
        if nbytes and member not in here and not reach.is_settled(member, min_part_bytes):
            return None
    return _settled(item, cut, reach, min_part_bytes)


def _settled(item: WalkItem, row: int, reach: Cursor, min_part_bytes: int) -> int | None:
    """The first row from ``row`` on where parts of every output may end, None if there is none."""
    while True:
        before = row
        for share in item.shares:
            settled = reach.settled_row(item, share, row, min_part_bytes)
            if settled is None:
                return None
            row = settled
        if row == before:
            return row
