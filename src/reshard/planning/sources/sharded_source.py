"""Catalogs of safetensors whose metadata says which box of its tensor each stored one is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import CatalogError, raise_all
from ...formats.container_format import HeaderTensor
from ...formats.sharding_info import SHARDING_KEY, parse_sharding_info
from ...tensor import Box, Shape, TensorSpec, extent_of
from ..catalog import Catalog
from .piece_source import HeldPiece, PieceSource, piece_catalog
from .source_headers import SourceHeaders

_Held = tuple[str, HeaderTensor, Shape]


def sharded_catalog(source: SourceHeaders) -> Catalog:
    """Describe a source of pieces whose offsets are in the objects' metadata.

    The size of a tensor is where its farthest piece ends. Raise CatalogError for pieces without offsets, or of
    different dtypes, and for tensors that they do not fill; FormatError for offsets that are none.
    """
    held: dict[str, list[_Held]] = {}
    problems: list[str] = []
    for header in source.headers:
        key, text = header.object.key, header.metadata.get(SHARDING_KEY, "{}")
        offsets = parse_sharding_info(text, f"{source.url}/{key}")
        for tensor in header.tensors:
            name, start = tensor.spec.name, offsets.get(tensor.spec.name)
            if not source.names.is_kept(name):
                continue
            if start is None or len(start) != len(tensor.spec.shape):
                found = "none" if start is None else f"{list(start)}"
                problems.append(f"{key}: {name}: expected offsets of {len(tensor.spec.shape)} axes, found {found}")
            else:
                held.setdefault(name, []).append((key, tensor, start))
    pieces: dict[TensorSpec, list[HeldPiece]] = {}
    for name, some in held.items():
        kinds = {(tensor.spec.dtype, len(start)) for _, tensor, start in some}
        if len(kinds) > 1:
            problems.append(f"{name}: pieces of {' and '.join(sorted(f'{dtype}, {n} axes' for dtype, n in kinds))}")
            continue
        spec = _whole(name, some)
        if spec.dtype.is_sub_byte and any(tensor.spec != spec for _, tensor, _ in some):
            problems.append(f"{name}: pieces of {spec.dtype}, whose elements share bytes")
            continue
        pieces[spec] = list(_pieces(some))
    hint = "Were all objects written by one save?"
    raise_all(CatalogError, f"{source.url}: the objects do not make one checkpoint", problems, hint)
    joined = PieceSource(
        source.url,
        source.kind,
        {header.object.key: header.object for header in source.headers},
        list(dict.fromkeys(tensor.spec.name for header in source.headers for tensor in header.tensors)),
        source.names,
        source.notes,
        source.index_bytes + sum(header.nbytes for header in source.headers),
    )
    return piece_catalog(joined, pieces, source.metadata())


def _whole(name: str, some: Sequence[_Held]) -> TensorSpec:
    stops = [tuple(a + n for a, n in zip(start, tensor.spec.shape, strict=True)) for _, tensor, start in some]
    return TensorSpec(name, some[0][1].spec.dtype, tuple(map(max, zip(*stops, strict=True))))


def _pieces(some: Sequence[_Held]) -> Iterator[HeldPiece]:
    for key, tensor, start in some:
        origin = start if len(start) == len(extent_of(tensor.spec)[0]) and not tensor.spec.dtype.is_sub_byte else (0,)
        for box, first in tensor.boxes:
            yield HeldPiece(Box(box.start, box.stop).shifted(origin), key, first)
