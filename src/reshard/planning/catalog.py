"""The content of a source: every tensor, and the objects and bytes that hold each of its boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..figures import in_bytes
from ..formats.container_format import ContainerHeader, HeaderTensor
from ..notebook import Picture, Shown, Table
from ..tensor import Box, Shape, TensorSpec


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of a source, pinned by its etag; its key is relative to the catalog's URL or ``base``-th other URL.

    ``fill`` is empty for stored objects. A chunk that zarr leaves out has no etag and consists of this element.
    """

    key: str
    nbytes: int
    etag: str
    base: int = 0
    fill: bytes = b""


@dataclass(frozen=True, slots=True)
class ObjectHeader:
    """The header of one object of a source; see :class:`ContainerHeader`. ``nbytes`` were read for it."""

    object: SourceObject
    tensors: tuple[HeaderTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    nbytes: int = 0

    @classmethod
    def of(cls, item: SourceObject, header: ContainerHeader) -> ObjectHeader:
        """Return the header of an object that its format has read."""
        return cls(item, header.tensors, header.metadata, header.texts, header.read_bytes)


@dataclass(frozen=True, slots=True)
class Placement:
    """One box of a tensor and every place that holds its bytes, contiguous and row-major.

    Or in the order that :attr:`Entry.axes` says.
    ``holders`` are ``(index of the object in the catalog, first byte)``; they hold equal bytes. A box may hang
    over its tensor's end, as the last chunks of zarr do: the elements beyond are padding, and never read.
    """

    box: Box
    holders: tuple[tuple[int, int], ...]


class SourceSharding(StrEnum):
    """How the source held a tensor; it decides the placement of tensors that the target does not list.

    ``WHOLE``: in one piece. ``SHARDED``: in different pieces on different ranks. ``UNLISTED``: in no layout of
    the source, as hyper-parameters (``global_step``, ``loss_scale``) are.
    """

    WHOLE = "whole"
    SHARDED = "sharded"
    UNLISTED = "unlisted"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the source; its placements tile ``extent_of(spec)``, each element once.

    ``cuts`` are the pieces of each axis before the optimizer's, where a layout says so; plans do not keep them.
    ``axes`` is the order of the axes in which each box is stored, outermost first, unless it is row-major.
    """

    spec: TensorSpec
    placements: tuple[Placement, ...]
    sharding: SourceSharding = SourceSharding.WHOLE
    cuts: Shape = field(default=(), compare=False)
    axes: Shape = ()


@dataclass(frozen=True, slots=True, repr=False)
class Catalog(Shown):
    """A checkpoint as its headers describe it.

    Parameters
    ----------
    url, others
        The objects' keys are relative to it, or to one of more such URLs (an adapter's): the first is base 1.
    kind, notes
        For people: shown, never decided upon.
    entries
        In the order of the source.
    metadata, texts
        Header metadata that no two objects disagree on, and values that are text (``.ckpt`` only).
    header_bytes
        Bytes of headers and indexes that were read to learn all this.
    dropped
        Names in the source that the request leaves out.
    training_state
        Numbers of training (``global_step``) that the source keeps apart from its tensors.
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
    training_state: Mapping[str, int | float | str | bool | None] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; copies on several ranks count once."""
        return sum(entry.spec.nbytes for entry in self.entries)

    def picture(self) -> Picture:
        """Return what a notebook shows of it."""
        stored = [item for item in self.objects if not item.fill]
        line = f"{self.url}: {self.kind}, {len(self.entries)} tensors, {in_bytes(self.nbytes)}, {len(stored)} objects"
        specs = (entry.spec for entry in self.entries)
        tensors = ((spec.name, spec.dtype.value, list(spec.shape), in_bytes(spec.nbytes)) for spec in specs)
        objects = ((item.key, in_bytes(item.nbytes), item.etag) for item in stored)
        tables = (
            Table("tensors", ("name", "dtype", "shape", "size"), tensors, len(self.entries)),
            Table("objects", ("key", "size", "etag"), objects, len(stored)),
            Table("dropped", ("name",), ((name,) for name in self.dropped), len(self.dropped)),
        )
        return Picture(line, tables, self.notes)

    @property
    def unlisted_copies(self) -> tuple[Entry, ...]:
        """Unlisted tensors that several objects hold: their headers agree, their bytes may differ."""
        return tuple(
            entry
            for entry in self.entries
            if entry.sharding is SourceSharding.UNLISTED
            and any(len(placement.holders) > 1 for placement in entry.placements)
        )
