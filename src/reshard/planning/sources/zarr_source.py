"""From a zarr store to one catalog of whole tensors: every chunk is a box of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...errors import CatalogError, FormatError, raise_all
from ...formats.strict_json import shown
from ...formats.zarr import ZarrArray
from ...formats.zarr_read import ZarrGroup
from ..catalog import Catalog, Entry, Placement, SourceObject, SourceSharding
from ..outputs.output import sample
from ..targets.zarr_target import MAX_CHUNK_COUNT
from .selection import NameFilter

_SHOWN = 3
_LOST = (
    "reshard stores every chunk, so these are lost or were removed: copy the store again, or leave these tensors out "
    "with --drop. If other tools changed it since, they must write empty chunks too, as zarr-python does with "
    "zarr.config.set({'array.write_empty_chunks': True})."
)
_MOST_FILLED_BYTES = 1 << 44  # a document of a few bytes may tell of any number


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
        Two arrays of one name or one inside another, chunks of another length, missing chunks of arrays that
        this package wrote, or more missing ones of others' than could be meant.
    """
    kept = [array for array in arrays if names.is_kept(array.spec.name)]
    _check_apart(url, arrays)
    builder = _ZarrCatalog(stored)
    entries = tuple(builder.entry(array) for array in kept)
    raise_all(CatalogError, f"{url}: chunks of zarr arrays are missing", builder.lost, _LOST)
    hint = "Have chunks written that hold the fill value only, or leave these tensors out with --drop."
    raise_all(CatalogError, f"{url}: missing chunks of zarr arrays cannot be filled", builder.unfilled, hint)
    hint = "Were they written without compression, and copied to their end?"
    raise_all(CatalogError, f"{url}: chunks of zarr arrays have another length than they should", builder.uneven, hint)
    known = [array.spec.name for array in arrays]
    return Catalog(
        url,
        "zarr store",
        tuple(builder.objects),
        entries,
        dict(group.metadata),
        (*notes, *builder.notes()),
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
        self._filled: list[str] = []
        self._filled_bytes, self._spare = 0, MAX_CHUNK_COUNT
        self.objects: list[SourceObject] = []
        self.lost: list[str] = []
        self.unfilled: list[str] = []
        self.uneven: list[str] = []

    def entry(self, array: ZarrArray) -> Entry:
        """Put a tensor together of its chunks."""
        sharding = SourceSharding.UNLISTED if array.is_outside else SourceSharding.WHOLE
        if not self._is_countable(array):
            return Entry(array.spec, (), sharding)
        fill, problem = _element(array)
        placements: list[Placement] = []
        missing: list[str] = []
        most = _SHOWN if array.fill is None else self._spare
        for key, box in array.chunks():
            item = self._stored.get(key)
            if item is None:
                missing.append(key)
                if len(missing) > most:
                    break
                item = SourceObject(key, array.chunk_nbytes, "", fill=fill)
            elif item.nbytes != array.chunk_nbytes:
                self.uneven.append(f"{key}: expected {array.chunk_nbytes} bytes, found {item.nbytes}")
            placements.append(Placement(box, ((len(self.objects), 0),)))
            self.objects.append(item)
        if missing:
            self._filled_in(array, missing, problem)
        return Entry(array.spec, tuple(placements), sharding)

    def _is_countable(self, array: ZarrArray) -> bool:
        """Whether an array's chunks can be counted out, and listed."""
        spare = 0 if array.fill is None else max(0, self._spare)
        if array.chunk_count <= len(self._stored) + spare:
            return True
        told = f"{array.spec.name}: {array.chunk_count} chunks in {len(self._stored)} objects altogether"
        (self.lost if array.fill is None else self.unfilled).append(told)
        return False

    def _filled_in(self, array: ZarrArray, missing: Sequence[str], problem: str) -> None:
        """Take down what is not stored, or why it cannot be told from other chunks."""
        name, count = array.spec.name, len(missing)
        if array.fill is None:
            self.lost.append(f"{name}: of {array.chunk_count} chunks {sample(missing, _SHOWN)}")
            return
        self._spare -= count
        self._filled_bytes += count * array.chunk_nbytes
        if self._spare < 0 or self._filled_bytes > _MOST_FILLED_BYTES:
            problem = f"at most {MAX_CHUNK_COUNT} chunks and {_MOST_FILLED_BYTES} bytes of all arrays can be"
        if problem:
            self.unfilled.append(f"{name}: {problem}")
        self._filled.append(f"{name} ({count} of {array.chunk_count}, {shown(array.fill.value)})")

    def notes(self) -> Iterator[str]:
        """What is filled: whether chunks were left out or lost, another writer's store does not tell."""
        if self._filled:
            count, told = MAX_CHUNK_COUNT - self._spare, sample(self._filled, _SHOWN)
            yield f"{count} of {len(self.objects)} chunks are not stored and read as fill values: {told}"


def _element(array: ZarrArray) -> tuple[bytes, str]:
    """What chunks consist of that are not stored; or why that cannot be told, which matters only if there are any."""
    if array.fill is None:
        return b"", ""
    try:
        return array.fill.element(), ""
    except FormatError as error:
        return b"", error.message
