"""From a zarr store to one catalog of whole tensors: every chunk is a box of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import CatalogError, raise_all
from ..formats.zarr import ZarrArray
from ..formats.zarr_read import ZarrGroup
from .catalog import Catalog, Entry, Origin, Placement, SourceObject
from .selection import NameFilter

__all__ = ["zarr_catalog"]

_SHOWN_CHUNKS = 3
_ABSENT = (
    "zarr leaves out chunks that hold nothing but the fill value: write them too, as zarr-python does with "
    "zarr.config.set({'array.write_empty_chunks': True}), or leave these tensors out with --drop."
)


def zarr_catalog(
    url: str,
    group: ZarrGroup,
    arrays: Sequence[ZarrArray],
    stored: Mapping[str, SourceObject],
    notes: Iterable[str],
    names: NameFilter,
) -> Catalog:
    """Describe a source of zarr arrays.

    Parameters
    ----------
    arrays
        All that are below the group, each under a path of its own.
    stored
        Objects of the store by key; only those of arrays that are taken become the catalog's.
    names
        Which tensors to take.

    Raises
    ------
    CatalogError
        Two arrays of one name or one inside another, chunks that are missing or of another length.
    """
    kept = [array for array in arrays if names.is_kept(array.spec.name)]
    _check_apart(url, arrays)
    builder = _ZarrCatalog(stored)
    entries = tuple(builder.entry(array) for array in kept)
    raise_all(CatalogError, f"{url}: chunks of zarr arrays are missing", builder.absent, _ABSENT)
    hint = "Were they written without compression, and copied to their end?"
    raise_all(CatalogError, f"{url}: chunks of zarr arrays have another length than they should", builder.uneven, hint)
    known = [array.spec.name for array in arrays]
    return Catalog(
        url,
        "zarr store",
        tuple(builder.objects),
        entries,
        dict(group.metadata),
        tuple(notes),
        texts={name: text for name, text in group.texts.items() if names.is_kept(name)},
        dropped=names.dropped((*known, *group.texts)),
    )


def _check_apart(url: str, arrays: Sequence[ZarrArray]) -> None:
    """Refuse arrays that readers could take for one another."""
    first: dict[str, str] = {}
    problems = []
    for array in arrays:
        other = first.setdefault(array.spec.name, array.path)
        if other != array.path:
            problems.append(f"{array.spec.name}: {other} and {array.path}")
    raise_all(CatalogError, f"{url}: several zarr arrays of one name", problems)
    paths = {array.path for array in arrays}
    inside = sorted(path for path in paths if any(path[:end] in paths for end in _ends(path)))
    raise_all(CatalogError, f"{url}: zarr arrays inside others", inside)


def _ends(path: str) -> Iterable[int]:
    """Where the paths above a path end."""
    return [at for at, character in enumerate(path) if character == "/"]


class _ZarrCatalog:
    """Finds each array's chunks, and what is wrong with them."""

    def __init__(self, stored: Mapping[str, SourceObject]) -> None:
        self._stored = stored
        self.objects: list[SourceObject] = []
        self.absent: list[str] = []
        self.uneven: list[str] = []

    def entry(self, array: ZarrArray) -> Entry:
        """Put a tensor together of its chunks."""
        origin = Origin.OUTSIDE if array.is_outside else Origin.WHOLE
        placements: list[Placement] = []
        missing: list[str] = []
        if array.chunk_count > len(self._stored):  # not to be counted out, nor to be listed
            self.absent.append(
                f"{array.spec.name}: {array.chunk_count} chunks in {len(self._stored)} objects altogether"
            )
            return Entry(array.spec, (), origin)
        for key, box in array.chunks():
            item = self._stored.get(key)
            if item is None:
                missing.append(key)
                if len(missing) > _SHOWN_CHUNKS:
                    break
                continue
            if item.nbytes != array.chunk_nbytes:
                self.uneven.append(f"{key}: expected {array.chunk_nbytes} bytes, found {item.nbytes}")
            placements.append(Placement(box, ((len(self.objects), 0),)))
            self.objects.append(item)
        if missing:
            some = ", ".join(missing[:_SHOWN_CHUNKS]) + (", ..." if len(missing) > _SHOWN_CHUNKS else "")
            self.absent.append(f"{array.spec.name}: of {array.chunk_count} chunks {some}")
        return Entry(array.spec, tuple(placements), origin)
