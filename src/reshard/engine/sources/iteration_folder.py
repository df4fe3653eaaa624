"""An iteration of MindSpore Transformers: a folder of shards whose metadata gives their layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from ...errors import CatalogError, UsageError, option, raise_all
from ...formats.containers import Container
from ...formats.mindspore.iteration import (
    COMMON_NAME,
    METADATA_NAME,
    TRACKER_NAME,
    CommonValue,
    ObjectName,
    iteration_name,
    parse_common,
    parse_iteration_name,
    parse_object_name,
    parse_tracker,
)
from ...formats.mindspore.iteration_metadata import IterationMetadata, parse_metadata
from ...planning.catalog import Catalog
from ...planning.sources.full_source import full_catalog
from ...planning.sources.iteration_source import iteration_catalog
from ...planning.sources.source_headers import SourceHeaders, with_selection_notes
from ...storage import Location, ObjectInfo, read_object
from ..workers import Workers
from .headers import read_headers
from .replica_check import compare_unlisted
from .source_format import Listing, SourceFormat, SourceOptions, refuse_other_format, refuse_rank_options

# Metadata lists every shard of every tensor.
_DOCUMENT_BYTES = {COMMON_NAME: 1 << 20, METADATA_NAME: 256 << 20}
_MOST_NAMED = 10_000  # a hostile name may promise more objects than anyone could list


@dataclass(frozen=True, slots=True)
class IterationFolder(SourceFormat):
    """One saved iteration: the objects with tensors by their names relative to ``base``, and its documents.

    A single device writes no ``metadata.json``: its objects hold whole tensors.
    """

    expected: ClassVar[str] = TRACKER_NAME

    base: Location
    objects: Mapping[str, ObjectInfo]
    metadata: IterationMetadata | None
    training_state: Mapping[str, CommonValue]
    index_bytes: int
    notes: tuple[str, ...]

    @classmethod
    def detect(cls, listing: Listing, _options: SourceOptions, _workers: Workers) -> Self | None:
        """Take the iteration that the tracker names, or the one that the location is itself."""
        location, infos = listing.location, listing.objects
        folders = {name.split("/")[0] for name in infos}
        folders = {folder for folder in folders if parse_iteration_name(folder) is not None}
        if TRACKER_NAME in infos:
            tracker = location.child(TRACKER_NAME)
            data = read_object(tracker)
            folder = iteration_name(parse_tracker(data, tracker.url))
            inside = {name[len(folder) + 1 :]: info for name, info in infos.items() if name.startswith(f"{folder}/")}
            others = sorted(folders - {folder})
            if not inside:
                hint = "Was the checkpoint copied whole?"
                raise CatalogError(f"{tracker.url} names {folder}, which is not there", hint=hint, problems=others)
            note = f"{folder} as the tracker says; other iterations are ignored: {', '.join(others[:5])}"
            return cls._open(location.child(folder), inside, (note,) if others else (), len(data))
        if any(parse_object_name(name) for name in infos):
            return cls._open(location, infos)
        if folders:
            raise CatalogError(
                f"{location.url}: expected {TRACKER_NAME} beside {', '.join(sorted(folders)[:5])}, found none: "
                "it is written last",
                hint=f"Name one iteration, like {location.child(max(folders)).url}, if you know that it is complete.",
            )
        return None

    @classmethod
    def _open(
        cls, base: Location, infos: Mapping[str, ObjectInfo], notes: tuple[str, ...] = (), index_bytes: int = 0
    ) -> Self:
        documents = {
            name: read_object(base.child(name), most) for name, most in _DOCUMENT_BYTES.items() if name in infos
        }
        training_state, metadata = {}, None
        names = sorted(name for name in infos if parse_object_name(name))
        if COMMON_NAME in documents:
            training_state = parse_common(documents[COMMON_NAME], base.child(COMMON_NAME).url)
        if METADATA_NAME not in documents:
            _check_complete(base, names)
        else:
            metadata = parse_metadata(documents[METADATA_NAME], base.child(METADATA_NAME).url)
            missing = [name for name in metadata.file_names if name not in infos]
            if missing:
                notes += (f"{len(missing)} objects that {METADATA_NAME} names are not there: {', '.join(missing[:5])}",)
            known = set(metadata.file_names)
            raise_all(
                CatalogError,
                f"{base.url}: objects of weights that {METADATA_NAME} does not name",
                [name for name in names if name not in known],
                hint="They are of another save, or the metadata is: keep what belongs together.",
            )
            names = [name for name in metadata.file_names if name in infos]
        if state := [f"{name} {value}" for name, value in training_state.items() if value is not None]:
            notes += (f"{COMMON_NAME}: {', '.join(state)}",)
        index_bytes += sum(map(len, documents.values()))
        return cls(base, {name: infos[name] for name in names}, metadata, training_state, index_bytes, notes)

    def read(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the shards, and compare unlisted tensors that several objects hold."""
        hint = f"Leave them out with {option('drop')}."
        catalog = compare_unlisted(self._catalog(options, workers), self.base, workers, hint)
        return with_selection_notes(catalog, options.names)

    def contents(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the shards without comparing copies."""
        return with_selection_notes(self._catalog(options, workers), options.names)

    def _catalog(self, options: SourceOptions, workers: Workers) -> Catalog:
        url, kind = self.base.url, "iteration of MindSpore Transformers"
        if self.metadata is None:
            kind += " of one device"
        elif options.strategy is not None:
            raise UsageError(
                f"{url}: a source strategy is given, but an iteration carries its own layouts",
                hint=f"Omit {option('src_strategy')} and {option('src_layout')}.",
            )
        refuse_rank_options(url, kind, options)
        refuse_other_format(url, kind, Container.SAFETENSORS, options)
        headers = read_headers(self.base, self.objects, workers, options)
        source = SourceHeaders(url, kind, headers, options.names, self.notes, self.index_bytes)
        catalog = full_catalog(source) if self.metadata is None else iteration_catalog(source, self.metadata)
        return replace(catalog, training_state={} if options.names.network_only else self.training_state)


def _check_complete(base: Location, names: list[str]) -> None:
    """Raise CatalogError if objects are missing or of several saves.

    Without metadata only their names tell how many there are: a single device writes one set of each kind.
    """
    found = [parsed for name in names if (parsed := parse_object_name(name))]
    there = {(item.prefix, item.kind, item.number, item.count) for item in found}
    missing = {
        str(ObjectName(item.kind, number, item.count, item.prefix))
        for item in found
        for number in range(min(item.count, _MOST_NAMED))
        if (item.prefix, item.kind, number, item.count) not in there
    }
    raise_all(
        CatalogError,
        f"{base.url}: there is no {METADATA_NAME}, and objects are missing",
        sorted(missing),
        hint="Was the iteration copied whole?",
    )
    if len({(item.prefix, item.kind) for item in found}) < len({(i.prefix, i.kind, i.count) for i in found}):
        raise CatalogError(f"{base.url}: objects of different saves", problems=names)
