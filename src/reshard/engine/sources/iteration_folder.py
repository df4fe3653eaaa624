"""Finds an iteration of MindSpore Transformers below a prefix, and reads what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import CatalogError, raise_all
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
from ...storage import Location, ObjectInfo
from .strategy_files import read_object

_MOST_NAMED = 10_000  # a hostile name may promise more objects than anyone could list


@dataclass(frozen=True, slots=True)
class Iteration:
    """One saved iteration.

    Parameters
    ----------
    base
        Where the objects' names count from.
    infos
        The objects there, by name.
    metadata
        What ``metadata.json`` says; None where a single device wrote none.
    counters
        What ``common.json`` says.
    index_bytes
        Bytes of all that was read.
    notes
        Which iteration it is, and which objects are missing.
    """

    base: Location
    infos: Mapping[str, ObjectInfo]
    metadata: IterationMetadata | None
    counters: Mapping[str, CommonValue]
    index_bytes: int
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Objects that hold tensors."""
        if self.metadata is None:
            return tuple(sorted(name for name in self.infos if parse_object_name(name)))
        return tuple(name for name in self.metadata.file_names if name in self.infos)


def find_iteration(location: Location, infos: Mapping[str, ObjectInfo]) -> Iteration | None:
    """Find the iteration that the tracker names, or the one that the location is itself.

    Raises
    ------
    CatalogError
        Iterations without a tracker, or a tracker without its iteration.
    FormatError
        Documents that break their format.
    """
    if TRACKER_NAME in infos:
        return _tracked(location, infos)
    if any(parse_object_name(name) for name in infos):
        return _read(location, infos, ())
    folders = sorted({name.split("/")[0] for name in infos if parse_iteration_name(name.split("/")[0]) is not None})
    if folders:
        raise CatalogError(
            f"{location.url}: expected {TRACKER_NAME} beside {', '.join(folders[:5])}, found none: it is written last",
            hint=f"Name one iteration, like {location.child(folders[-1]).url}, if you know that it is complete.",
        )
    return None


def _tracked(location: Location, infos: Mapping[str, ObjectInfo]) -> Iteration:
    place = location.child(TRACKER_NAME)
    folder = iteration_name(parse_tracker(read_object(place), place.url))
    inside = {name[len(folder) + 1 :]: info for name, info in infos.items() if name.startswith(f"{folder}/")}
    others = {name.split("/")[0] for name in infos if parse_iteration_name(name.split("/")[0]) is not None} - {folder}
    if not inside:
        raise CatalogError(
            f"{place.url} names {folder}, which is not there",
            hint="Was the checkpoint copied whole?",
            problems=sorted(others),
        )
    note = f"{folder} as the tracker says; other iterations are left aside: {', '.join(sorted(others)[:5])}"
    return _read(location.child(folder), inside, (note,) if others else ())


def _read(base: Location, infos: Mapping[str, ObjectInfo], notes: tuple[str, ...]) -> Iteration:
    documents = {name: read_object(base.child(name)) for name in (COMMON_NAME, METADATA_NAME) if name in infos}
    counters, metadata = {}, None
    if COMMON_NAME in documents:
        counters = parse_common(documents[COMMON_NAME], base.child(COMMON_NAME).url)
    if METADATA_NAME not in documents:
        _check_complete(base, infos)
    else:
        metadata = parse_metadata(documents[METADATA_NAME], base.child(METADATA_NAME).url)
        missing = [name for name in metadata.file_names if name not in infos]
        if missing:
            notes += (f"{len(missing)} objects that {METADATA_NAME} names are not there: {', '.join(missing[:5])}",)
        unknown = sorted(name for name in infos if parse_object_name(name) and name not in metadata.file_names)
        raise_all(
            CatalogError,
            f"{base.url}: objects of weights that {METADATA_NAME} does not name",
            unknown,
            hint="They are of another save, or the metadata is: keep what belongs together.",
        )
    told = [f"{name} {value}" for name, value in counters.items() if value is not None]
    if told:
        notes += (f"{COMMON_NAME}: {', '.join(told)}",)
    return Iteration(base, infos, metadata, counters, sum(map(len, documents.values())), notes)


def _check_complete(base: Location, infos: Mapping[str, ObjectInfo]) -> None:
    """Without metadata the names alone say how many objects there are: of a single device, one of each kind.

    Raises
    ------
    CatalogError
        Some are missing, or belong to different saves.
    """
    found = [parsed for name in infos if (parsed := parse_object_name(name))]
    there = {(item.prefix, item.kind, item.number, item.count) for item in found}
    missing = [
        str(ObjectName(item.kind, number, item.count, item.prefix))
        for item in found
        for number in range(min(item.count, _MOST_NAMED))
        if (item.prefix, item.kind, number, item.count) not in there
    ]
    raise_all(
        CatalogError,
        f"{base.url}: there is no {METADATA_NAME}, and objects are missing",
        sorted(set(missing)),
        hint="Was the iteration copied whole?",
    )
    if len({(item.prefix, item.kind) for item in found}) < len({(i.prefix, i.kind, i.count) for i in found}):
        raise CatalogError(f"{base.url}: objects of different saves", problems=sorted(infos))
