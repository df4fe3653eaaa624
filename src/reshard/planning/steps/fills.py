"""The stored bytes that fill a box of a target's tensor: objects, ranges, and where they go.

A tensor of the target is made of pieces, each a patch of one entry of the catalog; an entry is stored in boxes, each
row-major somewhere in an object. What fills a box is therefore the intersection of three tilings: the box itself,
the pieces, and the stored boxes. Steps, cost, copies, staging and explanations all take it from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import add, sub
from typing import NamedTuple

from ...models.lora import adapter_boxes
from ...tensor import (
    Box,
    Patch,
    Scatter,
    box_scatter,
    extent_of,
    plain_patch,
    row_major_boxes,
    slice_scatters,
    view_boxes,
)
from ...tensor.patch import Views
from ..catalog import Entry, Placement
from ..outputs.output import Computation, Piece
from ..outputs.walk import Slice, WalkItem
from .draft import Draft
from .stored_boxes import AlikeBoxes

OnComputed = Callable[[Piece, Patch], None]
"""Takes a piece whose values are computed, and the part of its patch that is in the box."""


class Fill(NamedTuple):
    """Stored bytes that fill part of a box: those of the ``place``-th placement of the catalog's ``entry``-th entry.

    They are scattered from the placement's first byte to the row-major box that is filled.
    """

    entry: int
    place: int
    placement: Placement
    scatter: Scatter
    element_count: int


def pieces_in(draft: Draft, tensor: int, box: Box) -> Iterator[tuple[Piece, Patch]]:
    """Find the pieces that fill a box of a target's tensor, each with the part of its patch in the box."""
    cut: dict[Views, list[Box]] = {}  # most pieces of a tensor have the same factors
    for piece in draft.tensors[tensor].pieces_near(box):
        patch = piece.patch
        if patch.is_plain:
            boxes = [box]
        elif patch.target_views in cut:
            boxes = cut[patch.target_views]
        else:
            boxes = cut[patch.target_views] = list(view_boxes(patch.target_views, box))
        for part in boxes:
            if (common := patch.within_target(part)) is not None:
                yield piece, common


def box_fills(draft: Draft, tensor: int, box: Box, held: Box, on_computed: OnComputed | None = None) -> Iterator[Fill]:
    """Find the stored bytes that fill a box of a target's tensor.

    Scatters count in ``held``, the box that the target buffer holds, row-major. ``on_computed`` takes what is computed
    instead of moved; without it such pieces count as if they were moved.
    """
    for piece, patch in pieces_in(draft, tensor, box):
        if piece.computation is not None and on_computed is not None:
            on_computed(piece, patch)
        elif piece.computation is not None and piece.computation.packed > 1:
            yield from input_fills(draft, piece.source, stored_hull(piece, patch))
        else:
            yield from _stored(draft, piece.source, patch, held)


def made_of(draft: Draft, tensor: int, box: Box) -> Iterator[tuple[Fill, str]]:
    """Find all stored bytes that a box of a target's tensor is made of, scales and adapters included.

    Each fill comes with the kernel that takes it, empty where it is moved unchanged.
    """
    if box.is_empty:
        return
    computed: list[tuple[Piece, Patch]] = []
    for fill in box_fills(draft, tensor, box, box, lambda piece, patch: computed.append((piece, patch))):
        yield fill, ""
    for piece, patch in computed:
        assert piece.computation is not None
        for entry, wanted in computation_inputs(piece.source, piece.computation, patch.source_hull):
            for fill in input_fills(draft, entry, wanted):
                yield fill, piece.computation.kernel


def alike_fills(
    draft: Draft, tensor: int, boxes: Sequence[tuple[Box, Box]]
) -> Iterator[tuple[AlikeBoxes, list[Fill]]] | None:
    """Find what stored boxes give to boxes of a target's tensor: those that give alike, and what the first one gives.

    Each box comes with the one that its target buffer holds; what is computed counts as if it were moved. None where
    boxes have to be looked at one by one: the entries are not stored in grids, or pieces are not plain or share one.
    """
    pieces = draft.tensors[tensor].pieces
    if any(piece.computation is not None and piece.computation.packed > 1 for piece in pieces):
        return None
    if len({piece.source for piece in pieces}) < len(pieces):
        return None
    if not all(piece.patch.is_plain and draft.stored(piece.source).is_even_grid for piece in pieces):
        return None
    return _alike_fills(draft, pieces, boxes)


def _alike_fills(
    draft: Draft, pieces: Sequence[Piece], boxes: Sequence[tuple[Box, Box]]
) -> Iterator[tuple[AlikeBoxes, list[Fill]]]:
    for piece in pieces:
        parts = [(patch, held) for box, held in boxes if (patch := piece.patch.within_target(box)) is not None]
        entry = draft.catalog.entries[piece.source]
        for alike, positions in draft.stored(piece.source).alike([patch.source_box for patch, _ in parts]):
            place = (alike.first_place,)
            some = (_stored_plainly(piece.source, entry, *parts[position], place) for position in positions)
            yield alike, list(chain.from_iterable(some))


def moved_boxes(draft: Draft, tensor: int, boxes: Sequence[Box]) -> tuple[tuple[Box, ...], int] | None:
    """Move boxes of a target's tensor, in its entry, to where the first stored boxes give to them alike.

    Return them, and the number of places that they were moved by; None if what fills them is not one grid that moves.
    """
    piece, *others = draft.tensors[tensor].pieces
    if others or not boxes or piece.computation is not None or not piece.patch.is_plain:
        return None
    stored = draft.stored(piece.source)
    if not stored.is_even_grid:
        return None
    offset = tuple(map(sub, piece.patch.source_start, piece.patch.target_start))
    return stored.moved([box.shifted(offset) for box in boxes])


def slice_fills(
    draft: Draft, item: WalkItem, held: Slice, elements: tuple[int, int], on_computed: OnComputed | None = None
) -> Iterator[Fill]:
    """Find the stored bytes that fill the elements ``[first, stop)`` of a slice, counted in its row-major order."""
    whole = whole_placement(draft, item.tensor)
    if whole is not None:  # nearly all tensors: arithmetic that is cached for equal slices
        entry = draft.tensors[item.tensor].pieces[0].source
        for scatter in slice_scatters(whole.box.stop, held.box.start, held.box.stop, elements, item.itemsize):
            yield Fill(entry, 0, whole, scatter, scatter.total_nbytes // item.itemsize)
        return
    for local in row_major_boxes(held.box.shape, *elements):
        yield from box_fills(draft, item.tensor, local.shifted(held.box.start), held.box, on_computed)


def input_fills(draft: Draft, entry: int, box: Box) -> Iterator[Fill]:
    """Find the stored bytes of a box of an entry, gathered row-major as a kernel takes them."""
    patch = plain_patch(draft.catalog.entries[entry].spec.shape).within_target(box)
    if patch is not None:
        yield from _stored(draft, entry, patch, box)


def computation_inputs(source: int, computation: Computation, box: Box) -> tuple[tuple[int, Box], ...]:
    """Return what a kernel needs to compute a box: a box of each entry, that of the tensor itself first."""
    if computation.kernel == "dequantise":
        packs = (*(1,) * (len(box.start) - 1), computation.packed)
        stored = box if computation.packed == 1 else box.in_blocks(packs)
        return (source, stored), (computation.extras[0], box.in_blocks(computation.blocks))
    if computation.kernel == "merge_lora":
        boxes = adapter_boxes(box, computation.rank, transposed=computation.transposed)
        return (source, box), *zip(computation.extras, boxes, strict=True)
    return ((source, box),)


def stored_hull(piece: Piece, patch: Patch) -> Box:
    """Return the box of a piece's own entry that a part of its patch takes from."""
    if piece.computation is None or piece.computation.packed == 1:
        return patch.source_hull
    return computation_inputs(piece.source, piece.computation, patch.source_hull)[0][1]


def whole_placement(draft: Draft, tensor: int) -> Placement | None:
    """Return where a target's tensor is stored in one piece, if it is moved unchanged."""
    pieces = draft.tensors[tensor].pieces
    if len(pieces) != 1 or pieces[0].computation is not None or not pieces[0].patch.is_plain:
        return None
    placements = draft.catalog.entries[pieces[0].source].placements
    # A single zarr chunk may extend past the tensor's end: its rows are then longer than the tensor's.
    is_whole = len(placements) == 1 and pieces[0].patch.shape == placements[0].box.shape
    return placements[0] if is_whole and not draft.catalog.entries[pieces[0].source].axes else None


def _stored(draft: Draft, index: int, patch: Patch, held: Box) -> Iterator[Fill]:
    """Find the stored boxes that a patch takes from."""
    entry = draft.catalog.entries[index]
    itemsize = extent_of(entry.spec)[1]
    placements = entry.placements
    if len(placements) == 1:  # it holds all of the tensor
        scatter = patch.scatter(placements[0].box, held, itemsize, entry.axes)
        yield Fill(index, 0, placements[0], scatter, patch.element_count)
        return
    places = draft.stored(index).near(patch.source_hull)
    if patch.is_plain and not entry.axes:
        yield from _stored_plainly(index, entry, patch, held, places)
        return
    for place in places:
        placement = placements[place]
        for part in view_boxes(patch.source_views, placement.box):
            common = patch.within_source(part)
            if common is not None:
                scatter = common.scatter(placement.box, held, itemsize, entry.axes)
                yield Fill(index, place, placement, scatter, common.element_count)


def _stored_plainly(index: int, entry: Entry, patch: Patch, held: Box, places: Iterable[int]) -> Iterator[Fill]:
    """Find what stored boxes give to a plain patch: as :func:`_stored` does, without factors, and quicker."""
    itemsize, held_shape = extent_of(entry.spec)[1], held.shape
    hull = patch.source_box
    # From an element of the entry to its place in the target's buffer.
    offset = tuple(a - b - c for a, b, c in zip(patch.target_start, patch.source_start, held.start, strict=True))
    for place in places:
        placement = entry.placements[place]
        box = placement.box
        start, stop = tuple(map(max, box.start, hull.start)), tuple(map(min, box.stop, hull.stop))
        source, target = tuple(map(sub, start, box.start)), tuple(map(add, start, offset))
        shape = tuple(map(sub, stop, start))
        scatter = box_scatter(shape, (box.shape, source), (held_shape, target), itemsize)
        yield Fill(index, place, placement, scatter, math.prod(shape))
