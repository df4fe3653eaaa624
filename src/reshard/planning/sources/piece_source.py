"""Catalogs of checkpoints that say for themselves which box of which tensor every piece is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import CatalogError, option, raise_all
from ...models.training_names import is_counter
from ...tensor import Box, Shape, TensorSpec, extent_of
from ..catalog import Catalog, Entry, Placement, SourceObject, SourceSharding
from .selection import NameFilter
from .tiling import find_flaw


@dataclass(frozen=True, slots=True)
class HeldPiece:
    """A box of a tensor, in one object from a byte on; row-major, or with its axes in another order."""

    box: Box
    key: str
    start: int
    axes: Shape = ()

    def is_in_order(self, axes: Shape) -> bool:
        """Whether its elements are in the order of some axes, too: one that is one element long can be anywhere."""
        shape = self.box.shape
        own, others = (each or range(len(shape)) for each in (self.axes, axes))
        return [axis for axis in own if shape[axis] > 1] == [axis for axis in others if shape[axis] > 1]


@dataclass(frozen=True, slots=True)
class PieceSource:
    """A source of pieces, and which tensors to take; see :class:`Catalog`.

    ``objects`` are those that may hold pieces, by key; ``present`` all names of the source, those of values too.
    """

    url: str
    kind: str
    objects: Mapping[str, SourceObject]
    present: Iterable[str]
    names: NameFilter
    notes: tuple[str, ...] = ()
    read_bytes: int = 0


def piece_catalog(
    source: PieceSource, pieces: Mapping[TensorSpec, Sequence[HeldPiece]], metadata: Mapping[str, str] | None = None
) -> Catalog:
    """Describe a source whose tensors are in pieces; equal boxes are copies of one another.

    Raise CatalogError for tensors that their pieces do not fill, or fill twice, naming the region, and for those whose
    pieces are in different orders; all are listed.
    """
    held = {piece.key for each in pieces.values() for piece in each}
    objects = [item for key, item in source.objects.items() if key in held]
    indexes = {item.key: index for index, item in enumerate(objects)}
    problems: list[str] = []
    entries: list[Entry] = []
    for spec, some in pieces.items():
        holders: dict[Box, list[tuple[int, int]]] = {}
        for piece in sorted(some, key=lambda piece: (piece.box.start, piece.box.stop)):
            if not piece.box.is_empty:
                holders.setdefault(piece.box, []).append((indexes[piece.key], piece.start))
        if flaw := find_flaw(extent_of(spec)[0], list(holders)):
            problems.append(f"{spec.name} {list(spec.shape)}: {flaw}")
        axes = next((piece.axes for piece in some if piece.axes), ())
        problems += [
            f"{spec.name} {piece.box.text}: elements in another order than those of other pieces"
            for piece in some
            if not piece.is_in_order(axes)
        ]
        placements = tuple(Placement(box, tuple(places)) for box, places in holders.items())
        is_whole = SourceSharding.UNLISTED if is_counter(spec.name, spec.shape) else SourceSharding.WHOLE
        sharding = SourceSharding.SHARDED if len(placements) > 1 else is_whole
        entries.append(Entry(spec, placements, sharding, axes=axes))
    raise_all(
        CatalogError,
        f"{source.url}: the pieces of these tensors do not fill them",
        problems,
        hint="Was the checkpoint copied whole, and are all objects of one save? "
        f"Tensors can be left out with {option('drop')}.",
    )
    return Catalog(
        source.url,
        source.kind,
        tuple(objects),
        tuple(entries),
        metadata or {},
        source.notes,
        source.read_bytes,
        dropped=source.names.dropped(source.present),
    )
