"""What steps are derived from, and where the bytes of a target's tensor lie in the source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ...tensor import Box, Patch, view_boxes
from ...tensor.patch import Views
from ..catalog import Catalog, Placement
from ..limits import Limits
from ..outputs.output import Output, Piece, TargetTensor
from ..outputs.streamed import CopiedRange, Streamed
from .cuts import Cut, WalkItem, walk


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that steps are derived from, besides the cuts.

    ``copied`` tells for each output what its store copies by itself; where it is empty, the store copies
    nothing, equal outputs neither. The last two walks are kept: a group is cut, counted and gone through step
    by step, as a whole and with one output standing for all of its kind.
    """

    catalog: Catalog
    tensors: tuple[TargetTensor, ...]
    outputs: tuple[Output, ...]
    limits: Limits
    copied: tuple[tuple[CopiedRange, ...], ...] = ()
    # One tuple that is exchanged whole: plans are used from several threads.
    _walks: list[tuple[tuple[tuple[int, ...], tuple[WalkItem, ...]], ...]] = field(
        init=False, repr=False, compare=False, default_factory=lambda: [()]
    )

    def walk(self, outputs: Sequence[int]) -> tuple[WalkItem, ...]:
        """The tensors of a group of outputs, see :func:`reshard.planning.steps.cuts.walk`."""
        key, kept = tuple(outputs), self._walks[0]
        for known, rows in kept:
            if known == key:
                return rows
        rows = walk([self.outputs[i] for i in key], self.tensors, self.limits)
        self._walks[0] = (*kept[-1:], (key, rows))
        return rows

    def streamed(self, output: int) -> Streamed:
        """What of an output passes through the client."""
        return Streamed(self.outputs[output].frame, self.copied[output] if self.copied else ())

    def has_copies(self, outputs: Sequence[int]) -> bool:
        """Whether the store copies some of these outputs from the source."""
        return any(self.copied[i] for i in outputs) if self.copied else False

    def is_small(self, group: Group) -> bool:
        """Whether one step writes a group's outputs whole, so that none needs a multipart upload."""
        return not group.cuts and not self.has_copies(group.outputs)

    def is_replicated(self, group: Group, output: int) -> bool:
        """Whether an output is written under its first key, and copied from there to the others."""
        found = self.outputs[output]
        is_long = found.nbytes >= self.limits.min_copy_source_bytes
        return bool(self.copied) and is_long and len(found.keys) > 1 and not self.is_small(group)

    def written_keys(self, group: Group, output: int) -> tuple[str, ...]:
        """Return the keys of an output that its parts are sent to; replicas are copied from the first."""
        keys = self.outputs[output].keys
        return keys[:1] if self.is_replicated(group, output) else keys


@dataclass(frozen=True, slots=True)
class Group:
    """Outputs that are written together, by index, and where they are cut."""

    outputs: tuple[int, ...]
    cuts: tuple[Cut, ...]


def sources_of(recipe: Recipe, tensor: int, box: Box) -> Iterator[tuple[Piece, Patch]]:
    """Find the patches that fill a box of a target tensor, each with its piece."""
    cut: dict[Views, list[Box]] = {}  # pieces of a tensor mostly have the same factors
    for piece in recipe.tensors[tensor].pieces_near(box):
        patch = piece.patch
        if patch.is_plain:
            common = patch.within_target(box)
            if common is not None:
                yield piece, common
            continue
        if patch.target_views not in cut:
            cut[patch.target_views] = list(view_boxes(patch.target_views, box))
        for part in cut[patch.target_views]:
            common = patch.within_target(part)
            if common is not None:
                yield piece, common


def stored_as_it_is(recipe: Recipe, tensor: int) -> Placement | None:
    """Where a target's tensor lies in one piece, if it is taken as it is; nearly all are."""
    pieces = recipe.tensors[tensor].pieces
    if len(pieces) != 1 or pieces[0].computation is not None or not pieces[0].patch.is_plain:
        return None
    placements = recipe.catalog.entries[pieces[0].source].placements
    # A single zarr chunk may hang over the tensor's end: its rows are longer than the tensor's.
    is_whole = len(placements) == 1 and pieces[0].patch.shape == placements[0].box.shape
    return placements[0] if is_whole else None


def stored_at(recipe: Recipe, entry: int, patch: Patch) -> Iterator[tuple[Placement, Patch]]:
    """Find the stored boxes that a patch takes from, each with the part of the patch it fills."""
    placements = recipe.catalog.entries[entry].placements
    if len(placements) == 1:  # it holds all of the tensor
        yield placements[0], patch
        return
    for placement in placements:
        if patch.is_plain:
            common = patch.within_source(placement.box)
            if common is not None:
                yield placement, common
            continue
        for part in view_boxes(patch.source_views, placement.box):
            common = patch.within_source(part)
            if common is not None:
                yield placement, common
