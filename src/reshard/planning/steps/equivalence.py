"""Which tensors and outputs are equivalent, so that what is derived for one serves all of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from operator import sub

from ..outputs.layouts import OutputLayout
from ..outputs.output import Computation, TargetTensor
from .draft import Draft, Group
from .fills import whole_placement

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
        self._outputs: dict[int, int] = {}
        self._shapes: dict[int, int] = {}
        slice_count = sum(len(output.tensors) for output in draft.outputs)
        # The sizes of tiles differ a little from place to place, and must fit the memory: there each group counts.
        self._is_exact = slice_count <= many_slices or any(tensor.tile_itemsize for tensor in draft.tensors)

    def group(self, group: Group) -> Hashable:
        """Return what groups have in common of which one is counted for all."""
        if (moved := self._moved(group.outputs)) is not None:
            return group.cuts, moved
        if self._is_exact or self._draft.has_copies(group.outputs):
            return group.outputs
        return group.cuts, tuple(map(self.output, group.outputs))

    def together(self, outputs: Sequence[int]) -> Hashable:
        """Return the class of outputs that are written together, which decides where they can be cut."""
        if (moved := self._moved(outputs)) is not None:
            return moved
        first = self._draft.outputs[outputs[0]].tensors
        if all(self._draft.outputs[i].tensors == first for i in outputs[1:]):
            return tuple(map(self.output, outputs))
        # Their classes do not say which of the tensors they have in common.
        return tuple(map(self.member, outputs))

    def family(self, outputs: Sequence[int]) -> Hashable:
        """Return what families of outputs share that are divided into equal groups."""
        # Ranks read different boxes, which the class of their outputs does not say.
        if self._draft.outputs[outputs[0]].layout:
            return tuple(outputs)
        return self.together(outputs)

    def is_many(self, outputs: Sequence[int]) -> bool:
        """Return whether outputs hold very many slices."""
        return sum(len(self._draft.outputs[i].tensors) for i in outputs) > self._many_slices

    def scored(self, members: Sequence[int], *, is_many: bool) -> Hashable:
        """Return the class of outputs by what they read; if slices are many, that of their layouts."""
        if (moved := self._moved(members)) is not None:
            return moved
        return tuple(map(self.output, members)) if is_many else members[0]

    def tensor(self, tensor: int) -> int:
        """Return the class of a target's tensor."""
        return self._known(tensor)[0]

    def entries(self, tensor: int) -> tuple[int, ...]:
        """Return the entries that a tensor is made of; those of equivalent tensors correspond one by one."""
        return self._known(tensor)[1]

    def output(self, output: int) -> Hashable:
        """Return the class of an output, which includes the ranges that the store copies."""
        layout = self._draft.outputs[output].layout
        if layout is None:
            return self._alone(output)
        if copied := self._copied(output):
            return self._layout(layout), copied
        return self._layout(layout)

    def member(self, output: int) -> Hashable:
        """Return what outputs of one group share that always advance together: their layout and copied ranges.

        Chunks of a tensor that is stored in one piece, and so has no units, do if their shapes are equal.
        """
        found = self._draft.outputs[output]
        if found.layout is None and len(found.tensors) == 1 and whole_placement(self._draft, found.tensors[0]):
            return found.tensors[0], self._shape(output)  # bands of a zarr array
        return id(found.layout or found), self._copied(output)

    def _copied(self, output: int) -> tuple[tuple[int, int], ...]:
        return tuple((run.start, run.stop) for run in self._draft.copied(output))

    def _moved(self, outputs: Sequence[int]) -> Hashable | None:
        """Return the class of outputs that hold boxes of one tensor, up to where in it they are; None for others.

        The tensor is stored in one piece: what is read for boxes elsewhere is the same at other addresses, and no
        neighbour in the object matters. So are the bands of chunks of a zarr array.
        """
        drafted = self._draft.outputs
        first = drafted[outputs[0]]
        if len(first.tensors) != 1 or whole_placement(self._draft, first.tensors[0]) is None:
            return None
        if any(drafted[i].tensors != first.tensors for i in outputs):
            return None
        origin = first.boxes[0].start
        return tuple([(self._shape(i), *map(sub, drafted[i].boxes[0].start, origin)) for i in outputs])

    def _shape(self, index: int) -> int:
        """Return the class of an output of one tensor, up to where in the tensor its box is."""
        if index not in self._shapes:
            output = self._draft.outputs[index]
            held = self.tensor(output.tensors[0]), output.boxes[0].shape, self._copied(index)
            self._shapes[index] = self._number(("shape", held, output.frame.extents, output.frame.nbytes))
        return self._shapes[index]

    def _alone(self, index: int) -> int:
        """Return the class of an output without a layout; those that hold several tensors have one each."""
        if index not in self._outputs:
            output = self._draft.outputs[index]
            key: Hashable = "output", index
            if len(output.tensors) == 1:  # the chunks of a zarr array: many, and the same in every layer of a model
                held = self.tensor(output.tensors[0]), output.boxes[0], self._copied(index)
                key = "output", held, output.frame.extents, output.frame.nbytes
            self._outputs[index] = self._number(key)
        return self._outputs[index]

    def _layout(self, layout: OutputLayout) -> int:
        if id(layout) not in self._layouts:
            held = tuple(
                (self.tensor(tensor), id(partition))
                for tensor, partition in zip(layout.tensors, layout.partitions, strict=True)
            )
            self._layouts[id(layout)] = self._number(("layout", held, layout.frame.extents, layout.frame.nbytes))
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
            self._entries[index] = self._number(("entry", entry.spec.dtype, entry.spec.shape, boxes, entry.axes))
        return self._entries[index]

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _renumbered(computation: Computation | None, slots: Mapping[int, int]) -> Computation | None:
    if computation is None:
        return None
    return replace(computation, extras=tuple(slots[entry] for entry in computation.extras))
