"""A source's tensors as networks hold them that serve the model, after all other changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..models.compiling import CompiledTarget
from ..models.composition import compose
from ..models.serving_rules import Serving
from ..models.serving_tensors import FILL_PREFIX, FilledTensor, ServedModel, served_model
from ..tensor import Box
from .catalog import Catalog, Entry, Placement, SourceObject, SourceSharding
from .outputs.output import Computation, Piece, TargetTensor


def model_of(tensors: Sequence[TargetTensor], serving: Serving, config: Mapping[str, object]) -> ServedModel:
    """Apply an engine's rules to tensors of Hugging Face's form; errors are those of :func:`served_model`."""
    return served_model(serving, config, {tensor.spec.name: tensor.spec for tensor in tensors})


def is_fill(name: str) -> bool:
    """Whether an entry of a catalog is what :func:`with_fills` adds."""
    return name.startswith(FILL_PREFIX)


def with_fills(catalog: Catalog, fills: Sequence[FilledTensor]) -> Catalog:
    """Add what serving networks have besides the source's tensors: objects of one tensor each that are not stored."""
    objects, entries = list(catalog.objects), list(catalog.entries)
    for fill in fills:
        box = Box.whole(fill.spec.shape)
        entries.append(Entry(fill.spec, (Placement(box, ((len(objects), 0),)),)))
        objects.append(SourceObject(fill.spec.name, fill.spec.nbytes, "", fill=fill.element))
    return replace(catalog, objects=tuple(objects), entries=tuple(entries))


def serve(model: ServedModel, tensors: Sequence[TargetTensor], catalog: Catalog) -> Iterator[TargetTensor]:
    """Make the tensors of all ranks of others, in a catalog that has the fills."""
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    fills = {entry.spec.name: index for index, entry in enumerate(catalog.entries) if is_fill(entry.spec.name)}
    for target in model.tensors:
        yield _served(target, by_name, fills, catalog)


def _served(
    target: CompiledTarget, by_name: Mapping[str, TargetTensor], fills: Mapping[str, int], catalog: Catalog
) -> TargetTensor:
    dtype = target.spec.dtype
    pieces: list[Piece] = []
    tile_itemsize = 0
    for part in target.parts:
        if part.source in fills:
            pieces.append(Piece(part.patch, fills[part.source]))
            continue
        made = by_name[part.source]
        for piece in made.pieces:
            computation = piece.computation
            if computation is not None:
                computation = replace(computation, dtype=dtype)
            elif made.spec.dtype is not dtype:
                computation = Computation("cast", dtype)
            if computation is not None:
                # Twice: the hull of a patch has more elements than the patch.
                itemsizes = catalog.entries[piece.source].spec.dtype.itemsize + dtype.itemsize
                tile_itemsize = max(tile_itemsize, 2 * itemsizes, 2 * made.tile_itemsize)
            pieces += (Piece(patch, piece.source, computation) for patch in compose(part.patch, piece.patch))
    pieces.sort(key=lambda piece: piece.patch.target_hull.start)
    return TargetTensor(target.spec, tuple(pieces), SourceSharding.WHOLE, tile_itemsize, pieces[0].patch.unit)
