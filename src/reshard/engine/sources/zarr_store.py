"""A zarr group below a prefix: its documents are read, its chunks only listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from ...errors import CatalogError, FormatError, raise_all
from ...formats.zarr import DOCUMENT, ZarrArray
from ...formats.zarr_read import ZarrGroup, is_group, parse_array, parse_group, parse_node
from ...planning.catalog import Catalog, SourceObject
from ...planning.sources.source_headers import with_selection_notes
from ...planning.sources.zarr_source import zarr_catalog
from ...storage import Location, ObjectInfo, read_object
from ..workers import Workers
from .headers import raise_together
from .source_format import Listing, SourceFormat, SourceOptions, refuse_other_format, refuse_rank_options

_VERSION_2 = (".zmetadata", ".zgroup", ".zarray")
_MAX_DOCUMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ZarrStore(SourceFormat):
    """A group of arrays, and all objects of the store by their names relative to ``base``."""

    expected: ClassVar[str] = DOCUMENT

    base: Location
    objects: Mapping[str, ObjectInfo]
    group: ZarrGroup
    arrays: tuple[ZarrArray, ...]
    index_bytes: int

    @classmethod
    def detect(cls, listing: Listing, _options: SourceOptions, workers: Workers) -> Self | None:
        """Find the group whose document is at the location, and read the documents of its arrays."""
        location, infos = listing.location, listing.objects
        if DOCUMENT not in infos:
            found = [name for name in _VERSION_2 if name in infos]
            if found and not listing.tensor_names:
                raise CatalogError(
                    f"{location.url}: expected a zarr store of version 3, found {found[0]}, which is of version 2",
                    hint="Write it anew as version 3 without compression, with zarr-python's "
                    "create_array(..., zarr_format=3, compressors=None).",
                )
            return None
        raise_all(
            CatalogError,
            f"{location.url}: a zarr store, and objects of another checkpoint beside it",
            listing.tensor_names[:50],
            "Move one of them away, or name a single object.",
        )
        root = location.child(DOCUMENT)
        data = read_object(root, _MAX_DOCUMENT_BYTES)
        group = parse_group(parse_node(data, root.url), root.url)
        nodes, read_bytes = group.nodes, len(data)
        paths = [name.removesuffix(f"/{DOCUMENT}") for name in infos if name.endswith(f"/{DOCUMENT}")]
        if nodes is None:
            nodes = _read_nodes(location, paths, workers)
            read_bytes += sum(infos[f"{path}/{DOCUMENT}"].nbytes for path in paths)
        else:
            raise_all(
                CatalogError,
                f"{location.url}: the group's consolidated metadata does not know arrays that are there",
                [path for path in paths if path not in nodes],
                "The group was changed since: consolidate it anew, as zarr.consolidate_metadata does.",
            )
        arrays = _parse_arrays(location, nodes)
        if not arrays:
            raise CatalogError(f"{location.url}: a zarr group without arrays", hint="Check the prefix.")
        return cls(location, infos, group, arrays, read_bytes)

    def read(self, options: SourceOptions, _workers: Workers) -> Catalog:
        """See :meth:`SourceFormat.read`; every document was read to detect the store."""
        refuse_rank_options(self.base.url, "zarr store", options)
        refuse_other_format(self.base.url, "zarr store", None, options)
        stored = {name: SourceObject(name, info.nbytes, info.etag) for name, info in self.objects.items()}
        catalog = zarr_catalog(self.base.url, self.group, self.arrays, stored, options.names, self.index_bytes)
        return with_selection_notes(catalog, options.names)


def _read_nodes(location: Location, paths: list[str], workers: Workers) -> dict[str, Mapping[str, object]]:
    """Read every node's own document."""
    found: dict[str, Mapping[str, object]] = {}
    problems: dict[str, FormatError] = {}

    def read(path: str) -> None:
        place = location.child(f"{path}/{DOCUMENT}")
        try:
            found[path] = parse_node(read_object(place), place.url)
        except FormatError as error:
            problems[path] = error

    workers.map(read, paths)
    raise_together(problems, f"{location.url}: {len(problems)} zarr documents cannot be read")
    return {path: found[path] for path in paths}


def _parse_arrays(location: Location, nodes: Mapping[str, Mapping[str, object]]) -> tuple[ZarrArray, ...]:
    arrays, problems = [], {}
    for path, node in nodes.items():
        if is_group(node):
            continue
        try:
            arrays.append(parse_array(node, path, path))
        except FormatError as error:
            problems[path] = error.at(location.url)
    raise_together(problems, f"{location.url}: {len(problems)} zarr arrays cannot be read")
    return tuple(arrays)
