"""Which tensors and outputs are alike, so that what is found out about one need not be found out again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

from ..catalog import Entry
from ..outputs.layouts import OutputLayout
from ..outputs.output import Computation, TargetTensor
from .recipe import Recipe


class Kinds:
    """Numbers tensors and outputs by kind.

    Tensors of one kind are made in the same way of entries that lie in the source in the same way, each
    in its own place. Outputs of one kind hold equal slices of tensors of one kind, in the same order and
    at the same bytes.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._numbers: dict[Hashable, int] = {}
        self._tensors: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._entries: dict[int, int] = {}
        self._forms: dict[int, int] = {}

    def of_tensor(self, tensor: int) -> int:
        """The kind of a target's tensor."""
        return self._known(tensor)[0]

    def entries(self, tensor: int) -> tuple[int, ...]:
        """The entries that a tensor is made of; those of tensors of one kind match, one by one."""
        return self._known(tensor)[1]

    def of_output(self, output: int) -> Hashable:
        """The kind of an output: its form's, and which of its bytes are copied."""
        found = self._recipe.outputs[output]
        form = found.form
        if form is None:
            return "alone", output
        if copied := self._copied(output):
            return self._of_form(form), copied
        return self._of_form(form)

    def _copied(self, output: int) -> tuple[tuple[int, int], ...]:
        return tuple((run.start, run.stop) for run in self._recipe.copied[output]) if self._recipe.copied else ()

    def _of_form(self, form: OutputLayout) -> int:
        if id(form) not in self._forms:
            held = tuple(
                (self.of_tensor(t), id(cutting)) for t, cutting in zip(form.tensors, form.partitions, strict=True)
            )
            self._forms[id(form)] = self._number(("output", held, form.frame.extents, form.frame.nbytes))
        return self._forms[id(form)]

    def of_member(self, output: int) -> Hashable:
        """What outputs of one group have in common that are always filled alike: their form, and what is copied."""
        found = self._recipe.outputs[output]
        return id(found.form or found), self._copied(output)

    def _known(self, tensor: int) -> tuple[int, tuple[int, ...]]:
        if tensor not in self._tensors:
            target = self._recipe.tensors[tensor]
            slots: dict[int, int] = {}
            for piece in target.pieces:
                for entry in (piece.source, *(piece.computation.extras if piece.computation else ())):
                    slots.setdefault(entry, len(slots))
            self._tensors[tensor] = self._number(self._told(target, slots)), tuple(slots)
        return self._tensors[tensor]

    def _told(self, tensor: TargetTensor, slots: Mapping[int, int]) -> Hashable:
        """All of a tensor but its name and where its entries lie."""
        pieces = tuple((piece.patch, slots[piece.source], _making(piece.computation, slots)) for piece in tensor.pieces)
        entries = tuple(self._entry(entry) for entry in slots)
        return "tensor", tensor.spec.dtype, tensor.spec.shape, tensor.tile_itemsize, tensor.unit, pieces, entries

    def _entry(self, index: int) -> int:
        if index not in self._entries:
            entry: Entry = self._recipe.catalog.entries[index]
            boxes = tuple(placement.box for placement in entry.placements)
            self._entries[index] = self._number(("entry", entry.spec.dtype, entry.spec.shape, boxes))
        return self._entries[index]

    def _number(self, told: Hashable) -> int:
        return self._numbers.setdefault(told, len(self._numbers))


def _making(computation: Computation | None, slots: Mapping[int, int]) -> Computation | None:
    if computation is None:
        return None
    return replace(computation, extras=tuple(slots[entry] for entry in computation.extras))
