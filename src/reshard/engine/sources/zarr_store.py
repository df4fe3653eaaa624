"""Finds a zarr store at a prefix and reads its documents; of its chunks it needs no more than the listing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import CatalogError, FormatError, raise_all
from ...formats.containers import container_of
from ...formats.zarr import DOCUMENT, ZarrArray
from ...formats.zarr_read import ZarrGroup, is_group, parse_array, parse_group, parse_node
from ...planning.catalog import Catalog, SourceObject
from ...planning.sources.selection import NameFilter
from ...planning.sources.zarr_source import zarr_catalog
from ...storage import Location, ObjectInfo
from ..workers import Workers
from .strategy_files import read_object

_VERSION_2 = (".zmetadata", ".zgroup", ".zarray")
_MAX_DOCUMENT_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class ZarrStore:
    """A group of arrays.

    Parameters
    ----------
    base
        Where the arrays' paths count from.
    infos
        All objects there, by name.
    group, arrays
        What the documents say.
    index_bytes
        Bytes of all documents that were read.
    """

    base: Location
    infos: Mapping[str, ObjectInfo]
    group: ZarrGroup
    arrays: tuple[ZarrArray, ...]
    index_bytes: int

    def catalog(self, names: NameFilter) -> Catalog:
        """The store as a source; see :func:`zarr_catalog`."""
        stored = {name: SourceObject(name, info.nbytes, info.etag) for name, info in self.infos.items()}
        return zarr_catalog(self.base.url, self.group, self.arrays, stored, (), names)


def find_zarr(location: Location, infos: Mapping[str, ObjectInfo], workers: Workers) -> ZarrStore | None:
    """Find the group whose document lies at a location.

    Raises
    ------
    CatalogError
        It is of zarr's version 2, or another checkpoint lies beside it.
    FormatError
        Documents that break their format, or arrays that cannot be read; all of them in one error.
    """
    if DOCUMENT not in infos:
        _refuse_version_2(location, infos)
        return None
    raise_all(
        CatalogError,
        f"{location.url}: a zarr store, and objects of another checkpoint beside it",
        [name for name in infos if container_of(name)][:50],
        "Move one of them away, or name a single object.",
    )
    root = location.child(DOCUMENT)
    data = read_object(root, _MAX_DOCUMENT_BYTES)
    group = parse_group(parse_node(data, root.url), root.url)
    nodes, read_bytes = group.nodes, len(data)
    if nodes is None:
        nodes, read_bytes = _read_nodes(location, infos, workers, read_bytes)
    else:
        _check_complete(location, infos, nodes)
    arrays = _arrays(location, nodes)
    if not arrays:
        raise CatalogError(f"{location.url}: a zarr group without arrays", hint="Is the prefix right?")
    return ZarrStore(location, infos, group, arrays, read_bytes)


def _refuse_version_2(location: Location, infos: Mapping[str, ObjectInfo]) -> None:
    found = [name for name in _VERSION_2 if name in infos]
    if found and not any(container_of(name) for name in infos):
        raise CatalogError(
            f"{location.url}: expected a zarr store of version 3, found {found[0]}, which is of version 2",
            hint="Write it anew as version 3 without compression, with zarr-python's "
            "create_array(..., zarr_format=3, compressors=None).",
        )


def _read_nodes(
    location: Location, infos: Mapping[str, ObjectInfo], workers: Workers, read_bytes: int
) -> tuple[dict[str, Mapping[str, object]], int]:
    """Read every node's own document."""
    found: dict[str, Mapping[str, object]] = {}
    problems: dict[str, FormatError] = {}
    paths = _listed(infos)

    def read(path: str) -> None:
        place = location.child(f"{path}/{DOCUMENT}")
        try:
            found[path] = parse_node(read_object(place), place.url)
        except FormatError as error:
            problems[path] = error

    workers.map(read, paths)
    _raise(location, problems)
    read_bytes += sum(infos[f"{path}/{DOCUMENT}"].nbytes for path in paths)
    return {path: found[path] for path in paths}, read_bytes


def _listed(infos: Mapping[str, ObjectInfo]) -> list[str]:
    """Paths of all nodes but the root that have a document of their own."""
    end = f"/{DOCUMENT}"
    return [name.removesuffix(end) for name in infos if name.endswith(end)]


def _check_complete(
    location: Location, infos: Mapping[str, ObjectInfo], nodes: Mapping[str, Mapping[str, object]]
) -> None:
    """Refuse a group that tells of all its nodes but does not know some: it was changed since."""
    raise_all(
        CatalogError,
        f"{location.url}: the group's consolidated metadata does not know arrays that are there",
        [path for path in _listed(infos) if path not in nodes],
        "Consolidate it anew, as zarr.consolidate_metadata does.",
    )


def _arrays(location: Location, nodes: Mapping[str, Mapping[str, object]]) -> tuple[ZarrArray, ...]:
    arrays, problems = [], {}
    for path, node in nodes.items():
        if is_group(node):
            continue
        try:
            arrays.append(parse_array(node, path, path))
        except FormatError as error:
            problems[path] = error
    _raise(location, problems)
    return tuple(arrays)


def _raise(location: Location, problems: Mapping[str, FormatError]) -> None:
    """Raise what was found in several documents as one error."""
    if len(problems) == 1:
        [error] = problems.values()
        raise error.at(location.url)
    hints = " ".join(sorted({error.hint for error in problems.values() if error.hint}))
    told = [error.message for _, error in sorted(problems.items())]
    raise_all(FormatError, f"{location.url}: {len(problems)} zarr arrays cannot be read", told, hints)
