"""What a source holds: every tensor, and where each of its boxes lies in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..tensor import Box, TensorSpec


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of one object, and where its bytes lie.

    ``boxes`` tile ``extent_of(spec)``, in order, each with the first byte of its row-major elements;
    an empty tensor may have none.
    """

    spec: TensorSpec
    boxes: tuple[tuple[Box, int], ...]


@dataclass(frozen=True, slots=True)
class ObjectHeader:
    """What one object holds, whatever its format.

    Parameters
    ----------
    tensors
        In the order of their bytes.
    metadata
        Free text of the writer; packed int4 is noted here under the tensor's name.
    texts
        Values that are text (``.ckpt`` only).
    index_bytes
        Bytes that were read to learn all this.
    """

    tensors: tuple[Stored, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    index_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of a source.

    Parameters
    ----------
    key
        Counts from the catalog's URL, or from its ``base``-th other one.
    fill
        An element that all of the object would consist of if it were there: it is a chunk that zarr leaves out,
        and has no etag. Empty for objects that are stored.
    """

    key: str
    nbytes: int
    etag: str
    base: int = 0
    fill: bytes = b""


@dataclass(frozen=True, slots=True)
class Placement:
    """One box of a tensor and every place that holds its bytes, row-major and contiguous.

    ``holders`` are ``(index of the object in the catalog, first byte)``; they hold equal bytes. A box may hang
    over its tensor's end, as the last chunks of zarr do: what lies there is padding, and never read.
    """

    box: Box
    holders: tuple[tuple[int, int], ...]


class SourceSharding(StrEnum):
    """How the source held a tensor; it decides where a tensor goes that a target has no word for.

    ``WHOLE``: in one piece. ``SHARDED``: in different pieces on different ranks. ``UNLISTED``: in no layout of
    the source's strategy, as hyper-parameters (``global_step``, ``loss_scale``) are.
    """

    WHOLE = "whole"
    SHARDED = "sharded"
    UNLISTED = "unlisted"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the source; its placements tile ``extent_of(spec)``, each element once."""

    spec: TensorSpec
    placements: tuple[Placement, ...]
    sharding: SourceSharding = SourceSharding.WHOLE


@dataclass(frozen=True, slots=True)
class Catalog:
    """A checkpoint as its headers describe it.

    Parameters
    ----------
    url
        Where the objects' keys count from.
    others
        More places that objects may count from (an adapter's): the first is base 1.
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
    texts
        Values that are text (``.ckpt`` only).
    dropped
        Names of the source that were asked to be left out.
    counters
        What training had counted (``global_step``), where the source keeps it beside its tensors.
    """

    url: str
    kind: str
    objects: tuple[SourceObject, ...]
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    header_bytes: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    counters: Mapping[str, int | float | str | bool | None] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; what several ranks hold is counted once."""
        return sum(entry.spec.nbytes for entry in self.entries)
