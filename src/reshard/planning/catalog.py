"""What a source holds: every tensor, and where each of its boxes lies in the store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..tensor import Box, Shape, TensorSpec

__all__ = ["Catalog", "Entry", "Placement", "SourceObject", "extent_of"]


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of a source; ``key`` counts from the source's URL."""

    key: str
    nbytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class Placement:
    """One box of a tensor and every place that holds its bytes, row-major and contiguous.

    ``holders`` are ``(index of the object in the catalog, first byte)``; they hold equal bytes.
    """

    box: Box
    holders: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the source; its placements tile ``extent_of(spec)`` exactly."""

    spec: TensorSpec
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """A checkpoint as its headers describe it.

    Parameters
    ----------
    url
        Where the objects' keys count from.
    kind
        What the source is, in words: shown to people, never decided upon.
    objects, entries
        Everything read from; entries keep the order of the source.
    metadata
        Header metadata that no two objects disagree on.
    notes
        What a person should know about the source: objects left aside, say.
    header_bytes
        Bytes of headers and of the index that were read to learn all this.
    """

    url: str
    kind: str
    objects: tuple[SourceObject, ...]
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    header_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; what several ranks hold is counted once."""
        return sum(entry.spec.nbytes for entry in self.entries)


def extent_of(spec: TensorSpec) -> tuple[Shape, int]:
    """The shape and bytes per element by which a tensor's bytes are addressed.

    Elements smaller than a byte cannot be addressed: such a tensor is one row of bytes.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> extent_of(TensorSpec("a", DType.F32, (2, 3))), extent_of(TensorSpec("b", DType.F4, (2, 8)))
    (((2, 3), 4), ((8,), 1))
    """
    if spec.dtype.is_sub_byte:
        return (spec.dtype.nbytes(math.prod(spec.shape)),), 1
    return spec.shape, spec.dtype.itemsize
