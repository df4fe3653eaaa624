"""The step between headers and a catalog that all kinds of sources share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import UsageError, option, raise_all
from ...formats.container_format import HeaderTensor
from ...formats.sharding_info import SHARDING_METADATA
from ...tensor import Shape
from ..catalog import Catalog, Entry, ObjectHeader, Placement
from ..outputs.output import sample
from .selection import NameFilter

ALL_NAMES = NameFilter()


@dataclass(frozen=True, slots=True)
class SourceHeaders:
    """The headers of all objects of a source, and which tensors to take; see :class:`Catalog`.

    ``index_bytes`` are those of documents that were read besides the headers.
    """

    url: str
    kind: str
    headers: Sequence[ObjectHeader]
    names: NameFilter = ALL_NAMES
    notes: tuple[str, ...] = ()
    index_bytes: int = 0

    def metadata(self) -> dict[str, str]:
        """Return the metadata that no two objects disagree on; where pieces are is no longer true of what is made."""
        common = _common(header.metadata for header in self.headers)[0]
        return {key: value for key, value in common.items() if key not in SHARDING_METADATA}

    def texts(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return the texts to take, and the names of those that objects disagree on."""
        kept = self.names.is_kept
        return _common({name: text for name, text in header.texts.items() if kept(name)} for header in self.headers)

    def catalog(
        self,
        entries: Iterable[Entry],
        texts: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Catalog:
        """Make the catalog of entries whose holders are indexes of ``headers``."""
        held: dict[str, None] = {}
        for header in self.headers:
            held |= dict.fromkeys(tensor.spec.name for tensor in header.tensors)
            held |= dict.fromkeys(header.texts)
        return Catalog(
            self.url,
            self.kind,
            tuple(header.object for header in self.headers),
            tuple(entries),
            self.metadata() if metadata is None else metadata,
            (*self.notes, *notes),
            self.index_bytes + sum(header.nbytes for header in self.headers),
            texts or {},
            self.names.dropped(held),
        )


def _common(mappings: Iterable[Mapping[str, str]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the values that no two mappings disagree on, and the keys of those that some disagree on."""
    values: dict[str, set[str]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            values.setdefault(key, set()).add(value)
    differing = tuple(key for key, found in values.items() if len(found) > 1)
    return {key: found.pop() for key, found in values.items() if len(found) == 1}, differing


def placements_of(held: Sequence[tuple[int, HeaderTensor]], origin: Shape | None = None) -> tuple[Placement, ...]:
    """Locate the bytes of one box of a tensor, of which several objects may hold copies.

    ``held`` has the index of each such object, and its tensor there; ``origin`` is the box's first element within the
    whole tensor. Formats may cut large tensors into pieces; copies that are not cut like the first are left out, since
    a placement's holders share its box.
    """
    first = [box for box, _ in held[0][1].boxes]
    fitting = [(index, tensor) for index, tensor in held if [box for box, _ in tensor.boxes] == first]
    return tuple(
        Placement(
            box if origin is None else box.shifted(origin),
            tuple((index, tensor.boxes[number][1]) for index, tensor in fitting),
        )
        for number, box in enumerate(first)
    )


def with_selection_notes(catalog: Catalog, names: NameFilter, present: Collection[str] = ()) -> Catalog:
    """Note which tensors a filter drops, and which of its patterns match nothing.

    ``present`` are all names of the source; by default those of the catalog. Raise UsageError if a pattern of ``keep``
    matches none.
    """
    present = present or {*(entry.spec.name for entry in catalog.entries), *catalog.texts, *catalog.dropped}
    missed = names.unmatched_keep(present)
    raise_all(
        UsageError,
        f"{catalog.url}: {option('keep')} matches no tensor",
        missed,
        "Run reshard inspect to list the names.",
    )
    notes = [f"drop pattern {pattern} matches no tensor" for pattern in names.unmatched_drop(present)]
    if catalog.dropped:
        notes.insert(0, f"{len(catalog.dropped)} tensors are left out as requested: {sample(catalog.dropped, 5)}")
    return replace(catalog, notes=(*catalog.notes, *notes))
