"""From a URL to a catalog: finds out what kind of checkpoint lies there and reads its headers, nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import CatalogError, FormatError, UsageError, raise_all
from ..formats.safetensors import LENGTH_BYTES, Header, header_range, parse_header
from ..formats.weight_index import parse_param_name_map, parse_weight_index
from ..planning.catalog import Catalog, Entry, Placement, SourceObject, extent_of
from ..planning.sources import common_metadata, full_catalog, rank_catalog
from ..storage import Location, ObjectInfo
from ..tensor import Box, ByteRange, Shape
from .strategies import StrategySource, read_object
from .workers import Workers

__all__ = ["read_catalog", "read_contents"]

_SUFFIX = ".safetensors"
_HF_INDEX = "model.safetensors.index.json"
_NAME_MAP = "param_name_map.json"
_INDEXES = (
    (_HF_INDEX, "Hugging Face checkpoint", parse_weight_index),
    (_NAME_MAP, "MindSpore full checkpoint", parse_param_name_map),
)
_HYPER = "hyper_param.safetensors"
_RANK_OBJECT = re.compile(r"rank_(\d+)/[^/]+\.safetensors")
_COMPARE_BYTES = 1 << 20
_DAMAGED = "It was damaged, or not copied to its end: write it again from where it came from."

Opened = tuple[SourceObject, Header]


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies at a URL, before any header is read; names count from ``base``."""

    base: Location
    kind: str
    names: tuple[str, ...]
    infos: Mapping[str, ObjectInfo]
    weight_map: Mapping[str, str]
    ranks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    index_bytes: int = 0


def read_catalog(location: Location, strategy: StrategySource | None, workers: Workers) -> Catalog:
    """Describe a source from its headers.

    Tensors of rank shards that have no layout are read from every rank: they must be the same.

    Parameters
    ----------
    location
        One ``.safetensors`` object, or a prefix: with an index (Hugging Face's or MindSpore's),
        with a single object, or with ``rank_<R>/`` below it.
    strategy
        How rank shards are cut; none for a full checkpoint.

    Raises
    ------
    CatalogError
        Nothing there, or nothing that makes one checkpoint.
    FormatError
        A header or an index that breaks its format; all of them in one error.
    StrategyError
        Shards that do not fit the strategy.
    """
    return _catalog(_look(location, wants_ranks=strategy is not None), strategy, workers, compare=True)


def read_contents(location: Location, strategy: StrategySource | None, workers: Workers) -> Catalog:
    """Describe what lies at a URL from headers alone, also rank shards whose strategy is not known.

    Such shards are not joined: every rank's tensors are entries of their own, named ``rank_R/name``.
    """
    found = _look(location, wants_ranks=strategy is not None)
    if found.ranks in ((), (0,)) or strategy is not None:
        return _catalog(found, strategy, workers, compare=False)
    opened = _read_headers(found, workers)
    entries = [
        Entry(
            replace(stored.spec, name=f"rank_{rank}/{stored.spec.name}"),
            (Placement(Box.whole(extent_of(stored.spec)[0]), ((index, stored.range.start),)),),
        )
        for index, (rank, (_, header)) in enumerate(zip(found.ranks, opened, strict=True))
        for stored in header.tensors
    ]
    kind = f"rank shards ({len(found.ranks)} ranks), not joined: their strategy is not given"
    objects = tuple(item for item, _ in opened)
    metadata = common_metadata(opened)
    return Catalog(found.base.url, kind, objects, tuple(entries), metadata, found.notes, _header_bytes(found, opened))


def _catalog(found: _Found, strategy: StrategySource | None, workers: Workers, *, compare: bool) -> Catalog:
    if strategy is None and found.ranks and found.ranks != (0,):
        raise UsageError(
            f"{found.base.url}: these are shards of {len(found.ranks)} ranks, and how they are cut is not known",
            hint="Give the source's strategy: --src-strategy STRATEGY, or --src-layout LAYOUT.yaml.",
        )
    if strategy is not None and not found.ranks:
        raise UsageError(
            f"{found.base.url}: a source strategy is given, but this is a full checkpoint ({found.kind})",
            hint="Leave --src-strategy and --src-layout out, or name the prefix that holds rank_0/.",
        )
    opened = _read_headers(found, workers)
    if strategy is None:
        catalog = full_catalog(found.base.url, found.kind, opened, found.weight_map, found.notes)
    else:
        catalog = _joined(found, opened, strategy, workers if compare else None)
    return replace(catalog, header_bytes=_header_bytes(found, opened))


def _look(location: Location, *, wants_ranks: bool) -> _Found:
    """Find out what lies at a URL; where both forms do, a strategy asks for rank shards."""
    if location.key.endswith(_SUFFIX):
        info = location.store.head(location.key)
        name = location.key.rsplit("/", 1)[-1]
        return _Found(location.parent, "one safetensors object", (name,), {name: info}, {})
    infos = dict(location.named_objects())
    tensors = [name for name in infos if name.endswith(_SUFFIX)]
    has_full = any("/" not in name for name in tensors) or any(name in infos for name, _, _ in _INDEXES)
    has_ranks = any(_RANK_OBJECT.fullmatch(name) for name in tensors)
    if has_ranks and (wants_ranks or not has_full):
        found = _ranks(location, infos, tensors)
        return replace(found, notes=("a full checkpoint beside the rank shards is left aside",) if has_full else ())
    found = _full(location, infos, tensors)
    note = "rank shards beside the full checkpoint are left aside: a source strategy would ask for them"
    return replace(found, notes=(*found.notes, note)) if has_ranks else found


def _ranks(location: Location, infos: Mapping[str, ObjectInfo], tensors: Sequence[str]) -> _Found:
    ranks = _rank_names(location, tensors)
    kind = "one rank's object" if tuple(ranks) == (0,) else "rank shards"
    return _Found(location, kind, tuple(ranks.values()), infos, {}, tuple(ranks))


def _full(location: Location, infos: Mapping[str, ObjectInfo], tensors: Sequence[str]) -> _Found:
    for name, kind, parse in _INDEXES:
        if name in infos:
            data = read_object(location.child(name))
            index = parse(data, location.child(name).url)
            return replace(_indexed(location, kind, infos, index.weight_map, tensors), index_bytes=len(data))
    return _unindexed(location, infos, tensors)


def _rank_names(location: Location, tensors: Sequence[str]) -> dict[int, str]:
    """The one object of each rank, by rank."""
    found: dict[int, list[str]] = {}
    for name in tensors:
        match = _RANK_OBJECT.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), []).append(name)
    several = [f"rank_{rank}: {', '.join(names)}" for rank, names in sorted(found.items()) if len(names) > 1]
    hint = "Keep one checkpoint's objects there: move the others to a prefix of their own."
    raise_all(CatalogError, f"{location.url}: expected one safetensors object in each rank's prefix", several, hint)
    return {rank: names[0] for rank, names in sorted(found.items())}


def _indexed(
    location: Location,
    kind: str,
    infos: Mapping[str, ObjectInfo],
    weight_map: Mapping[str, str],
    tensors: Sequence[str],
) -> _Found:
    names = sorted(set(weight_map.values()))
    missing = [f"{location.child(name).url}" for name in names if name not in infos]
    hint = "Copy them there, or name one object to take it alone."
    raise_all(CatalogError, f"{location.url}: the index names objects that are not there", missing, hint)
    if _HYPER in infos and _HYPER not in names:
        names.append(_HYPER)
    aside = [name for name in tensors if name not in names]
    notes = (f"{len(aside)} objects that the index does not name are left aside: {', '.join(aside[:5])}",)
    return _Found(location, kind, tuple(names), infos, weight_map, notes=notes if aside else ())


def _unindexed(location: Location, infos: Mapping[str, ObjectInfo], tensors: Sequence[str]) -> _Found:
    direct = [name for name in tensors if "/" not in name]
    if len(direct) == 1:
        return _Found(location, "one safetensors object", tuple(direct), infos, {})
    if direct:
        raise CatalogError(
            f"{location.url}: {len(direct)} safetensors objects and no index that says how they belong together",
            problems=direct,
            hint=f"Expected {_HF_INDEX} or {_NAME_MAP} beside them; or name one object.",
        )
    others = ", ".join(sorted(infos)[:5])
    raise CatalogError(
        f"{location.url}: no checkpoint there: expected *.safetensors, {_HF_INDEX}, {_NAME_MAP} or rank_<R>/, "
        f"found {f'{len(infos)} other objects ({others})' if infos else 'nothing'}",
        hint="Is the prefix right?",
    )


def _read_headers(found: _Found, workers: Workers) -> list[Opened]:
    """Read every object's header; all that break the format are told in one error."""
    opened: dict[str, Opened] = {}
    problems: dict[str, FormatError] = {}

    def read(name: str) -> None:
        info = found.infos[name]
        try:
            opened[name] = (SourceObject(name, info.nbytes, info.etag), _read_header(found.base.child(name), info))
        except FormatError as error:
            problems[name] = error.at(found.base.child(name).url)
            problems[name].hint = _DAMAGED

    workers.map(read, found.names)
    if len(problems) == 1:
        raise next(iter(problems.values()))
    told = ["\n    ".join([p.message, *p.problems[:10]]) for _, p in sorted(problems.items())]
    raise_all(FormatError, f"{len(problems)} objects are not sound safetensors", told, _DAMAGED)
    return [opened[name] for name in found.names]


def _read_header(location: Location, info: ObjectInfo) -> Header:
    length = ByteRange(0, min(LENGTH_BYTES, info.nbytes))
    first = location.store.read(info.key, length, info.etag) if length.nbytes else b""
    span = header_range(first, info.nbytes)
    return parse_header(first + location.store.read(info.key, span, info.etag), info.nbytes)


def _header_bytes(found: _Found, opened: Sequence[Opened]) -> int:
    return found.index_bytes + sum(header.data_start for _, header in opened)


def _joined(found: _Found, opened: Sequence[Opened], source: StrategySource, workers: Workers | None) -> Catalog:
    """The catalog of rank shards; workers, if given, compare the copies of tensors without a layout."""
    shapes: dict[str, Shape] = {}
    for _, header in opened:
        for stored in header.tensors:
            shapes.setdefault(stored.spec.name, stored.spec.shape)
    strategy = source.strategy(shapes, local=True)
    shards = dict(zip(found.ranks, opened, strict=True))
    catalog, names = rank_catalog(found.base.url, shards, strategy, found.notes)
    if not names:
        return catalog
    if workers is None:
        told = "their bytes on different ranks were not compared"
    else:
        nbytes = _compare_copies(catalog, set(names), found.base, workers)
        told = f"their {nbytes} bytes on all ranks were read and found equal"
    note = f"{len(names)} tensors have no layout in the source strategy; {told}"
    return replace(catalog, notes=(*catalog.notes, note))


def _compare_copies(catalog: Catalog, names: set[str], base: Location, workers: Workers) -> int:
    """Raise CatalogError unless tensors without a layout are the same on every rank; return the bytes read."""
    digests: dict[tuple[str, str], str] = {}

    def read(job: tuple[Entry, int, int]) -> None:
        entry, index, first = job
        item = catalog.objects[index]
        digest = hashlib.sha256()
        stop = first + entry.spec.nbytes
        for start in range(first, stop, _COMPARE_BYTES):
            span = ByteRange(start, min(stop, start + _COMPARE_BYTES))
            digest.update(base.store.read(base.child(item.key).key, span, item.etag))
        digests[entry.spec.name, item.key] = digest.hexdigest()

    entries = [entry for entry in catalog.entries if entry.spec.name in names]
    workers.map(read, [(e, *holder) for e in entries for holder in e.placements[0].holders])
    problems = []
    for entry in entries:
        keys: dict[str, list[str]] = {}
        for index, _ in entry.placements[0].holders:
            key = catalog.objects[index].key
            keys.setdefault(digests[entry.spec.name, key], []).append(key)
        if len(keys) > 1:
            sides = "; ".join(f"{len(held)} objects as {held[0]}" for held in keys.values())
            problems.append(f"{entry.spec.name}: {len(keys)} different contents ({sides})")
    raise_all(
        CatalogError,
        f"{base.url}: tensors without a layout in the source strategy differ between ranks",
        problems,
        hint="They were cut or are each rank's own: add their layouts to the strategy.",
    )
    return sum(entry.spec.nbytes * len(entry.placements[0].holders) for entry in entries)
