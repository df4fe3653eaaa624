"""Catalogs of zarr groups: every chunk is a box of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import CatalogError, FormatError, option, raise_all
from ...formats.strict_json import shown
from ...formats.zarr import ZarrArray
from ...formats.zarr_read import ZarrGroup
from ..catalog import Catalog, Entry, Placement, SourceObject, SourceSharding
from ..outputs.output import sample
from ..targets.zarr_target import MAX_CHUNK_COUNT
from .selection import NameFilter

_SHOWN = 3
_MOST_FILLED_BYTES = 1 << 44  # a document of a few bytes may promise any number


def zarr_catalog(
    url: str,
    group: ZarrGroup,
    arrays: Sequence[ZarrArray],
    stored: Mapping[str, SourceObject],
    names: NameFilter,
    index_bytes: int = 0,
) -> Catalog:
    """Describe a source of zarr arrays: all that are below the group, each under a path of its own.

    ``stored`` are the objects of the store by key; only those of arrays that are taken become the catalog's.
    ``index_bytes`` are those of the documents that were read.

    Raise CatalogError for two arrays of one name or one inside another, chunks of a wrong length, missing chunks of
    arrays that this package wrote, and more missing chunks of others' arrays than is plausible.
    """
    _check_apart(url, arrays)
    chunks = _Chunks(stored)
    entries = tuple(chunks.entry(array) for array in arrays if names.is_kept(array.spec.name))
    chunks.raise_problems(url)
    return Catalog(
        url,
        "zarr store",
        tuple(chunks.objects),
        entries,
        dict(group.metadata),
        chunks.notes(),
        index_bytes,
        texts={name: text for name, text in group.texts.items() if names.is_kept(name)},
        dropped=names.dropped((*(array.spec.name for array in arrays), *group.texts)),
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
    inside = [path for path in paths if any(path[:at] in paths for at, sign in enumerate(path) if sign == "/")]
    raise_all(CatalogError, f"{url}: zarr arrays inside others", sorted(inside))


class _Chunks:
    """Finds each array's chunks, fills those that were left out, and collects problems.

    A missing chunk is lost if this package wrote the array, since it stores every chunk. Other writers leave chunks
    out that hold the fill value only: such a chunk becomes an object without an etag, which is never read.
    """

    def __init__(self, stored: Mapping[str, SourceObject]) -> None:
        self._stored = stored
        self._filled: list[str] = []
        self._filled_bytes = 0
        self._spare = MAX_CHUNK_COUNT  # missing chunks that may still be filled, over all arrays
        self.objects: list[SourceObject] = []
        self._lost: list[str] = []
        self._unfillable: list[str] = []
        self._uneven: list[str] = []

    def entry(self, array: ZarrArray) -> Entry:
        """Join the chunks of a tensor."""
        sharding = SourceSharding.UNLISTED if array.is_outside else SourceSharding.WHOLE
        # A hostile shape may promise more chunks than could be counted: compare before walking them.
        if array.chunk_count > len(self._stored) + (0 if array.fill is None else max(0, self._spare)):
            problem = f"{array.spec.name}: {array.chunk_count} chunks in {len(self._stored)} objects altogether"
            (self._lost if array.fill is None else self._unfillable).append(problem)
            return Entry(array.spec, (), sharding)
        element, problem = b"", ""
        if array.fill is not None:
            try:
                element = array.fill.element()
            except FormatError as error:
                problem = error.marked_message  # which matters only if a chunk is missing
        placements: list[Placement] = []
        missing: list[str] = []
        most = _SHOWN if array.fill is None else self._spare
        for key, box in array.chunks():
            item = self._stored.get(key)
            if item is None:
                missing.append(key)
                if len(missing) > most:
                    break
                item = SourceObject(key, array.chunk_nbytes, "", fill=element)
            elif item.nbytes != array.chunk_nbytes:
                self._uneven.append(f"{key}: expected {array.chunk_nbytes} bytes, found {item.nbytes}")
            placements.append(Placement(box, ((len(self.objects), 0),)))
            self.objects.append(item)
        if missing:
            self._fill(array, missing, problem)
        return Entry(array.spec, tuple(placements), sharding)

    def _fill(self, array: ZarrArray, missing: Sequence[str], problem: str) -> None:
        """Account for chunks that are not stored, or note why they cannot be filled."""
        name, count = array.spec.name, len(missing)
        if array.fill is None:
            self._lost.append(f"{name}: of {array.chunk_count} chunks {sample(missing, _SHOWN)}")
            return
        self._spare -= count
        self._filled_bytes += count * array.chunk_nbytes
        if self._spare < 0 or self._filled_bytes > _MOST_FILLED_BYTES:
            problem = f"at most {MAX_CHUNK_COUNT} chunks and {_MOST_FILLED_BYTES} bytes of all arrays can be"
        if problem:
            self._unfillable.append(f"{name}: {problem}")
        self._filled.append(f"{name} ({count} of {array.chunk_count}, {shown(array.fill.value)})")

    def raise_problems(self, url: str) -> None:
        """Raise what is wrong with the chunks, worst first."""
        leave_out = f"leave these tensors out with {option('drop')}"
        hint = (
            f"reshard stores every chunk, so these are lost or were removed: copy the store again, or {leave_out}. "
            "If other tools changed it since, they must write empty chunks too, as zarr-python does with "
            "zarr.config.set({'array.write_empty_chunks': True})."
        )
        raise_all(CatalogError, f"{url}: chunks of zarr arrays are missing", self._lost, hint)
        hint = f"Have chunks written that hold the fill value only, or {leave_out}."
        raise_all(CatalogError, f"{url}: missing chunks of zarr arrays cannot be filled", self._unfillable, hint)
        hint = "Were they written without compression, and copied to their end?"
        raise_all(CatalogError, f"{url}: chunks of zarr arrays have a wrong length", self._uneven, hint)

    def notes(self) -> tuple[str, ...]:
        """Return a note of filled chunks: in another writer's store nothing shows whether they were lost."""
        if not self._filled:
            return ()
        count, arrays = MAX_CHUNK_COUNT - self._spare, sample(self._filled, _SHOWN)
        return (f"{count} of {len(self.objects)} chunks are not stored and read as fill values: {arrays}",)
