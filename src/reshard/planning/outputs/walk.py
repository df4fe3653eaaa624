"""The tensors that a group of outputs holds, in file order, each in rows that steps can be cut between."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

from ...tensor import Box, Shape, extent_of
from ..limits import Limits
from .output import Output, TargetTensor, group_by_layout

_FEW_SLICES = 8  # of a tensor: quicker to keep than to derive again


@dataclass(frozen=True, slots=True)
class Slice:
    """One output's box of a tensor, in elements of the whole, and in rows: a row is one index into its leading axes.

    ``member`` is the index of the output within the group, ``slot`` that of the tensor within the output.
    """

    member: int
    slot: int
    box: Box
    row_count: int
    row_elements: int


@dataclass(frozen=True, slots=True)
class SliceGroup:
    """The slices of outputs that share a layout: equal rows in the same slot; see :class:`Slice`."""

    members: tuple[int, ...]
    slot: int
    row_count: int
    row_elements: int


class Slices(Sequence[Slice]):
    """The slices of one tensor by member, derived on demand: many outputs of many tensors are too many to keep."""

    __slots__ = ("_kept", "groups", "outputs")

    def __init__(self, outputs: Sequence[Output], groups: tuple[SliceGroup, ...]) -> None:
        self.outputs = outputs
        self.groups = groups
        self._kept: tuple[Slice, ...] = ()

    def __len__(self) -> int:
        """Return the number of outputs that hold some of the tensor."""
        return sum(len(group.members) for group in self.groups)

    def __iter__(self) -> Iterator[Slice]:
        """Yield the slices, ascending by member."""
        if not self._kept and len(self) <= _FEW_SLICES:
            self._kept = tuple(self._derived())
        return iter(self._kept) if self._kept else self._derived()

    def _derived(self) -> Iterator[Slice]:
        every = ((member, group) for group in self.groups for member in group.members)
        for member, group in every if len(self.groups) == 1 else sorted(every, key=lambda one: one[0]):
            box = self.outputs[member].boxes[group.slot]
            yield Slice(member, group.slot, box, group.row_count, group.row_elements)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Slice, ...]: ...
    def __getitem__(self, index: int | slice) -> Slice | tuple[Slice, ...]:
        """Return one slice, or some."""
        return tuple(self)[index]


@dataclass(frozen=True, slots=True)
class WalkItem:
    """One tensor of a walk: its slices, and the rows it can be cut between.

    ``itemsize`` and ``tile_itemsize`` are the bytes of an element, and of the buffers that computing one takes. Rows
    are those of the largest slice; smaller slices are cut at the row nearest before.
    """

    tensor: int
    itemsize: int
    row_count: int
    slices: Slices
    tile_itemsize: int = 0

    def element_of(self, held: Slice, row: int) -> int:
        """Return the first element of a slice at ``row``, which counts in rows of the largest slice."""
        return row * held.row_count // self.row_count * held.row_elements


def walk(outputs: Sequence[Output], tensors: Sequence[TargetTensor], limits: Limits) -> tuple[WalkItem, ...]:
    """List the tensors of a group of outputs in file order; tensors without bytes are left out."""
    held: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for members in map(tuple, group_by_layout(outputs)):
        for slot, tensor in enumerate(outputs[members[0]].tensors):
            held.setdefault(tensor, []).append((members, slot))
    order = sorted(held, key=lambda i: (-tensors[i].spec.dtype.order, tensors[i].spec.name))
    items = (_item(tensor, tensors[tensor], held[tensor], outputs, limits) for tensor in order)
    return tuple(item for item in items if item.row_count)


def _item(
    index: int,
    tensor: TargetTensor,
    holders: Sequence[tuple[tuple[int, ...], int]],
    outputs: Sequence[Output],
    limits: Limits,
) -> WalkItem:
    itemsize = extent_of(tensor.spec)[1]
    # One member represents the others of its layout: their boxes have equal shapes.
    boxes = tuple([outputs[members[0]].boxes[slot] for members, slot in holders])
    rows = _rows(boxes, tensor.unit, limits.row_bytes // itemsize, limits.unit_bytes // itemsize)
    groups = tuple(
        [
            SliceGroup(members, slot, row_count, row_elements)
            for (members, slot), (row_count, row_elements) in zip(holders, rows, strict=True)
            if row_count
        ]
    )
    row_count = max([group.row_count for group in groups], default=0)
    return WalkItem(index, itemsize, row_count, Slices(outputs, groups), tensor.tile_itemsize)


@lru_cache(1 << 12)  # a model has hundreds of layers of a few kinds of tensors
def _rows(
    boxes: tuple[Box, ...], unit: tuple[int, int], row_elements: int, unit_elements: int
) -> tuple[tuple[int, int], ...]:
    """Return the number of rows of each box of a tensor, 0 if it is empty, and the elements of a row."""
    axis, count = unit
    # Where axes are transposed, a few rows of a unit take from all over what the whole unit takes, so units are kept
    # together unless they are too large for one step.
    if count == 1 or not _are_in_units(boxes, axis, count, unit_elements):
        largest = max((box.shape for box in boxes), key=math.prod)
        axis, count = _row_axis(largest, row_elements), 1
    return tuple(
        (0, 0)
        if box.is_empty
        else (math.prod(box.shape[: axis + 1]) // count, count * math.prod(box.shape[axis + 1 :]))
        for box in boxes
    )


def _are_in_units(boxes: Iterable[Box], axis: int, count: int, most_elements: int) -> bool:
    """Return whether boxes are made of whole units that are not too large."""
    return all(
        box.start[axis] % count == 0
        and box.stop[axis] % count == 0
        and count * math.prod(box.shape[axis + 1 :]) <= most_elements
        for box in boxes
    )


def _row_axis(shape: Shape, row_elements: int) -> int:
    """Return the outermost axis whose rows are short enough."""
    for axis in range(len(shape)):
        if math.prod(shape[axis + 1 :]) <= row_elements:
            return axis
    return len(shape) - 1 if shape else 0
