"""Where outputs that are written together may be cut into upload parts at one stroke.

A group's tensors are walked in file order, each in rows of its local shape. A cut is a place in
that walk; it is legal when every output of the group has nothing, or at least the store's
smallest part, since the cut before. Between two cuts lies a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..tensor import Box, Shape
from .catalog import extent_of
from .limits import Limits
from .target import Output, TargetTensor

__all__ = ["Cut", "Cuts", "Rows", "Share", "find_cuts", "walk"]


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
class Share:
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
class Rows:
    """One tensor of a walk: who holds it, and in how many rows it can be cut."""

    tensor: int
    itemsize: int
    row_count: int
    shares: tuple[Share, ...]

    def element_of(self, share: Share, row: int) -> int:
        """First local element of ``row``, which counts in rows of the largest share."""
        return row * share.row_count // self.row_count * share.row_elements


def walk(outputs: Sequence[Output], tensors: Sequence[TargetTensor], limits: Limits) -> tuple[Rows, ...]:
    """List the tensors of a group of outputs in file order; tensors without bytes are left out."""
    held: dict[int, list[tuple[int, int]]] = {}
    for member, output in enumerate(outputs):
        for slot, tensor in enumerate(output.tensors):
            held.setdefault(tensor, []).append((member, slot))
    order = sorted(held, key=lambda i: (-tensors[i].spec.dtype.order, tensors[i].spec.name))
    rows = [_rows(tensor, held[tensor], outputs, tensors, limits) for tensor in order]
    return tuple(item for item in rows if item.row_count)


def _rows(
    tensor: int,
    holders: Sequence[tuple[int, int]],
    outputs: Sequence[Output],
    tensors: Sequence[TargetTensor],
    limits: Limits,
) -> Rows:
    _, itemsize = extent_of(tensors[tensor].spec)
    boxes = [outputs[member].boxes[slot] for member, slot in holders]
    largest = max((box.shape for box in boxes), key=math.prod)
    axis = _row_axis(largest, itemsize, limits.row_bytes)
    shares = tuple(
        Share(member, slot, box, math.prod(box.shape[: axis + 1]), math.prod(box.shape[axis + 1 :]))
        for (member, slot), box in zip(holders, boxes, strict=True)
        if not box.is_empty
    )
    return Rows(tensor, itemsize, max((share.row_count for share in shares), default=0), shares)


def _row_axis(shape: Shape, itemsize: int, row_bytes: int) -> int:
    """The outermost axis whose rows are short enough."""
    for axis in range(len(shape)):
        if math.prod(shape[axis + 1 :]) * itemsize <= row_bytes:
            return axis
    return len(shape) - 1 if shape else 0


def find_cuts(items: Sequence[Rows], header_nbytes: Sequence[int], part_bytes: int, min_part_bytes: int) -> Cuts:
    """Cut a walk as soon as every output has a part's worth.

    Parameters
    ----------
    items
        The walk.
    header_nbytes
        Of each output; headers belong to the first step.
    part_bytes
        Wished bytes in each part, at least ``min_part_bytes``.
    """
    pending = list(header_nbytes)
    cuts: list[Cut] = []
    step_bytes = longest = 0
    for index, item in enumerate(items):
        row = 0
        while (cut := _next_cut(item, row, pending, part_bytes, min_part_bytes)) is not None:
            _advance(item, row, cut, pending)
            step_bytes, longest = max(step_bytes, sum(pending)), max(longest, *pending)
            pending = [0] * len(pending)
            cuts.append(Cut(index, cut))
            row = cut
        _advance(item, row, item.row_count, pending)
    if cuts and not any(pending):
        cuts.pop()
    return Cuts(tuple(cuts), max(step_bytes, sum(pending)), max(longest, *pending))


def _next_cut(item: Rows, row: int, pending: Sequence[int], part_bytes: int, min_part_bytes: int) -> int | None:
    """The first row after ``row`` where every output has enough, or None within this tensor."""
    cut = row
    waiting = {member for member, nbytes in enumerate(pending) if 0 < nbytes < min_part_bytes}
    for share in item.shares:
        waiting.discard(share.member)
        row_nbytes = share.row_elements * item.itemsize
        missing_rows = max(0, -(-(part_bytes - pending[share.member]) // row_nbytes))
        wanted = row * share.row_count // item.row_count + missing_rows
        if wanted > share.row_count:
            return None
        cut = max(cut, -(-wanted * item.row_count // share.row_count))
    return None if waiting or (cut == row and not any(pending)) else cut


def _advance(item: Rows, row: int, stop: int, pending: list[int]) -> None:
    for share in item.shares:
        elements = item.element_of(share, stop) - item.element_of(share, row)
        pending[share.member] += elements * item.itemsize
