"""Which tensors and outputs are equivalent, so that what is derived for one serves all of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from ..outputs.layouts import OutputLayout
from ..outputs.output import Computation, TargetTensor
from .draft import Draft, Group

MANY_SLICES = 1 << 20
"""Slices over all outputs from which on one group of each equivalence class is counted for all of its class."""


class Equivalence:
    """Numbers the equivalence classes of tensors and outputs.

    Equivalent tensors are made in the same way of entries that are stored in the same boxes, each at its own
    address. Equivalent outputs hold equal slices of equivalent tensors, in the same order and at the same bytes.
    """

    def __init__(self, draft: Draft, many_slices: int) -> None:
        self._draft = draft
        self._many_slices = many_slices
        self._numbers: dict[Hashable, int] = {}
        self._tensors: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._entries: dict[int, int] = {}
        self._layouts: dict[int, int] = {}
        slice_count = sum(len(output.tensors) for output in draft.outputs)
        # The sizes of tiles differ a little from place to place, and must fit the memory: there each group counts.
        self._is_exact = slice_count <= many_slices or any(tensor.tile_itemsize for tensor in draft.tensors)

    def group(self, group: Group) -> Hashable:
        """Return what groups have in common of which one is counted for all."""
        if self._is_exact or self._draft.has_copies(group.outputs):
            return group.outputs
        return group.cuts, tuple(self.output(i) for i in group.outputs)

    def is_many(self, outputs: Sequence[int]) -> bool:
        """Return whether outputs hold very many slices."""
        return sum(len(self._draft.outputs[i].tensors) for i in outputs) > self._many_slices

    def tensor(self, tensor: int) -> int:
        """Return the class of a target's tensor."""
        return self._known(tensor)[0]

    def entries(self, tensor: int) -> tuple[int, ...]:
        """Return the entries that a tensor is made of; those of equivalent tensors correspond one by one."""
        return self._known(tensor)[1]

    def output(self, output: int) -> Hashable:
        """Return the class of an output: that of its layout, and which of its bytes the store copies."""
        layout = self._draft.outputs[output].layout
        if layout is None:
            return "alone", output
        if copied := self._copied(output):
            return self._layout(layout), copied
        return self._layout(layout)

    def member(self, output: int) -> Hashable:
        """Return what outputs of one group share that always advance together: their layout and copied ranges."""
        found = self._draft.outputs[output]
        return id(found.layout or found), self._copied(output)

    def _copied(self, output: int) -> tuple[tuple[int, int], ...]:
        return tuple((run.start, run.stop) for run in self._draft.copied(output))

    def _layout(self, layout: OutputLayout) -> int:
        if id(layout) not in self._layouts:
            held = tuple(
                (self.tensor(tensor), id(partition))
                for tensor, partition in zip(layout.tensors, layout.partitions, strict=True)
            )
            self._layouts[id(layout)] = self._number(("output", held, layout.frame.extents, layout.frame.nbytes))
        return self._layouts[id(layout)]

    def _known(self, tensor: int) -> tuple[int, tuple[int, ...]]:
        if tensor not in self._tensors:
            target = self._draft.tensors[tensor]
            slots: dict[int, int] = {}
            for piece in target.pieces:
                for entry in (piece.source, *(piece.computation.extras if piece.computation else ())):
                    slots.setdefault(entry, len(slots))
            self._tensors[tensor] = self._number(self._key(target, slots)), tuple(slots)
        return self._tensors[tensor]

    def _key(self, tensor: TargetTensor, slots: Mapping[int, int]) -> Hashable:
        """Return all of a tensor except its name and the addresses of its entries."""
        pieces = tuple(
            (piece.patch, slots[piece.source], _renumbered(piece.computation, slots)) for piece in tensor.pieces
        )
        entries = tuple(self._entry(entry) for entry in slots)
        return "tensor", tensor.spec.dtype, tensor.spec.shape, tensor.tile_itemsize, tensor.unit, pieces, entries

    def _entry(self, index: int) -> int:
        if index not in self._entries:
            entry = self._draft.catalog.entries[index]
            boxes = tuple(placement.box for placement in entry.placements)
            self._entries[index] = self._number(("entry", entry.spec.dtype, entry.spec.shape, boxes))
        return self._entries[index]

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _renumbered(computation: Computation | None, slots: Mapping[int, int]) -> Computation | None:
    if computation is None:
        return None
    return replace(computation, extras=tuple(slots[entry] for entry in computation.extras))
