"""From a URL to a catalog: finds out what kind of checkpoint lies there and reads its headers, nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...errors import CatalogError, UsageError, raise_all
from ...formats.containers import Container, container_of
from ...formats.mindspore.iteration import CommonValue
from ...formats.mindspore.iteration_metadata import IterationMetadata
from ...formats.mindspore.rank_objects import RankMeta, RankObjects, choose, find_rank_objects, parse_meta
from ...formats.weight_index import parse_param_name_map, parse_weight_index
from ...planning.catalog import Catalog
from ...planning.sources.full_source import Opened, full_catalog, tree_catalog
from ...planning.sources.iteration_source import iteration_catalog
from ...planning.sources.rank_source import of_rank, rank_catalog
from ...planning.sources.selection import NameFilter
from ...planning.targets.full_target import HYPER_NAME, MAP_NAME
from ...planning.targets.tree_target import tree_name
from ...storage import Location, ObjectInfo
from ...tensor import Shape
from ..workers import Workers
from .headers import read_all
from .iteration_folder import Iteration, find_iteration
from .replica_check import check_replicas, differing_copies
from .strategy_files import StrategySource, read_object
from .zarr_store import ZarrStore, find_zarr

_HF_INDEX = "model.safetensors.index.json"
_TREE_OBJECT = re.compile(r"rank[^/]*/[^/]+")
_INDEXES = (
    (_HF_INDEX, "Hugging Face checkpoint", parse_weight_index),
    (MAP_NAME, "MindSpore full checkpoint", parse_param_name_map),
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What is asked of a source.

    Parameters
    ----------
    strategy
        How rank shards are cut; none for a full checkpoint.
    names
        Which tensors to take.
    file_suffix
        End of the objects' names, without format, where a rank has several.
    keep_rank
        Whose copy to take of tensors without a layout that differ between ranks.
    check_crc
        Whether ``.ckpt`` objects that end in a checksum are read whole and compared with it.
    """

    strategy: StrategySource | None = None
    names: NameFilter = field(default_factory=NameFilter)
    file_suffix: str | None = None
    keep_rank: int | None = None
    check_crc: bool = False


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
    metadata: IterationMetadata | None = None
    counters: Mapping[str, CommonValue] = field(default_factory=dict)
    zarr: ZarrStore | None = None


def read_catalog(location: Location, wanted: SourceOptions, workers: Workers) -> Catalog:
    """Describe a source from its headers.

    Tensors of rank shards that have no layout are read from every rank: they must be the same.

    Parameters
    ----------
    location
        One object, or a prefix: with an index (Hugging Face's or MindSpore's), with a single
        object, with ``rank_<R>/`` below it, or with a zarr group.

    Raises
    ------
    CatalogError
        Nothing there, or nothing that makes one checkpoint.
    FormatError
        A header or an index that breaks its format; all of them in one error.
    StrategyError
        Shards that do not fit the strategy.
    """
    return _catalog(_look(location, wanted, workers), wanted, workers, compare=True)


def read_contents(location: Location, wanted: SourceOptions, workers: Workers) -> Catalog:
    """Describe what lies at a URL from headers alone, also rank shards whose strategy is not known.

    Such shards are not joined: every rank's tensors are entries of their own, named ``rank_R/name``.
    """
    found = _look(location, wanted, workers)
    if found.ranks in ((), (0,)) or wanted.strategy is not None:
        return _catalog(found, wanted, workers, compare=False)
    _check_asked(found, wanted)
    opened = read_all(found.base, found.infos, found.names, workers, check_crc=wanted.check_crc)
    kind = f"rank shards ({len(found.ranks)} ranks), not joined: their strategy is not given"
    rank_of = dict(zip(found.names, found.ranks, strict=True))
    made = tree_catalog(
        found.base.url, kind, opened, lambda key, name: f"rank_{rank_of[key]}/{name}", found.notes, names=wanted.names
    )
    notes = (*made.notes, *_notes(opened, made, wanted))
    return replace(made, header_bytes=_header_bytes(found, opened), notes=notes)


def read_tree(
    location: Location, container: Container, pattern: re.Pattern[str] | None, wanted: SourceOptions, workers: Workers
) -> Catalog:
    """Describe every object of one format below ``rank*/``, each on its own; see :class:`TreeTarget`.

    Parameters
    ----------
    pattern
        Found somewhere in the name of each object to take; None for all.

    Raises
    ------
    CatalogError
        There is no such object.

    Source: mindspore 2.10.0 ``ckpt_to_safetensors``: direct subdirectories whose names start with ``rank``.
    """
    infos = dict(location.named_objects())
    names = [name for name in infos if _TREE_OBJECT.fullmatch(name) and container_of(name) is container]
    chosen = tuple(sorted(name for name in names if pattern is None or pattern.search(name.rsplit("/", 1)[-1])))
    if not chosen:
        asked = f" whose names match {pattern.pattern!r}" if pattern else ""
        raise CatalogError(
            f"{location.url}: expected rank*/*{container.suffix} objects{asked}, "
            f"found {len(names)} of that format among {len(infos)} objects",
            hint="Name one object, or the prefix that holds rank_0/.",
        )
    opened = read_all(location, infos, chosen, workers, check_crc=wanted.check_crc)
    kind = f"{len(chosen)} {container.suffix} objects, each on its own"
    made = tree_catalog(location.url, kind, opened, tree_name, names=wanted.names)
    filled = {placement.holders[0][0] for entry in made.entries for placement in entry.placements}
    empty = [item.key for index, item in enumerate(made.objects) if index not in filled]
    hint = "Each object is converted on its own: keep some tensor of each, or choose objects by name."
    raise_all(UsageError, f"{location.url}: objects of which no tensor is left", empty, hint)
    return replace(made, header_bytes=sum(contents.index_bytes for _, contents in opened))


def _catalog(found: _Found, wanted: SourceOptions, workers: Workers, *, compare: bool) -> Catalog:
    strategy = wanted.strategy
    if strategy is None and found.ranks and found.ranks != (0,):
        raise UsageError(
            f"{found.base.url}: these are shards of {len(found.ranks)} ranks, and how they are cut is not known",
            hint="Give the source's strategy: --src-strategy STRATEGY, or --src-layout LAYOUT.yaml.",
        )
    if strategy is not None and found.metadata is not None:
        raise UsageError(
            f"{found.base.url}: a source strategy is given, but an iteration carries its own layouts",
            hint="Leave --src-strategy and --src-layout out.",
        )
    _check_asked(found, wanted)
    if strategy is not None and not found.ranks:
        raise UsageError(
            f"{found.base.url}: a source strategy is given, but this is a full checkpoint ({found.kind})",
            hint="Leave --src-strategy and --src-layout out, or name the prefix that holds rank_0/.",
        )
    opened = read_all(found.base, found.infos, found.names, workers, check_crc=wanted.check_crc)
    if found.zarr is not None:
        catalog = found.zarr.catalog(wanted.names)
    elif found.metadata is not None:
        catalog = _iteration(found, found.metadata, opened, wanted, workers if compare else None)
    elif strategy is None:
        catalog = full_catalog(
            found.base.url,
            found.kind,
            opened,
            found.weight_map,
            found.notes,
            names=wanted.names,
            hyper_key=HYPER_NAME,
        )
    else:
        catalog = _joined(found, opened, strategy, wanted, workers if compare else None)
    notes = (*catalog.notes, *_notes(opened, catalog, wanted))
    return replace(catalog, header_bytes=_header_bytes(found, opened), notes=notes, counters=found.counters)


def _check_asked(found: _Found, wanted: SourceOptions) -> None:
    """Refuse what only rank shards have, or a rank that is not there."""
    if wanted.file_suffix is not None and not found.ranks:
        raise UsageError(f"{found.base.url}: --file-suffix chooses among rank shards; this is {found.kind}")
    if wanted.keep_rank is not None and wanted.keep_rank not in found.ranks:
        there = f"ranks {found.ranks[0]}..{found.ranks[-1]}" if found.ranks else f"{found.kind}, without ranks"
        raise UsageError(f"{found.base.url}: --keep-rank {wanted.keep_rank}, but there are {there}")


def _notes(opened: Sequence[Opened], catalog: Catalog, wanted: SourceOptions) -> Iterable[str]:
    """What was left out, and patterns that found nothing."""
    names = {stored.spec.name for _, contents in opened for stored in contents.tensors}
    names |= {name for _, contents in opened for name in contents.texts}
    names |= {entry.spec.name for entry in catalog.entries} | catalog.texts.keys() | set(catalog.dropped)
    missed = wanted.names.unmatched_keep(names)
    raise_all(UsageError, f"{catalog.url}: --keep asks for what is not there", missed, "reshard inspect lists names.")
    if catalog.dropped:
        yield f"{len(catalog.dropped)} tensors are left out as asked: {', '.join(catalog.dropped[:5])}" + (
            ", ..." if len(catalog.dropped) > 5 else ""
        )
    for pattern in wanted.names.unmatched_drop(names):
        yield f"--drop {pattern} matches no tensor"


def _look(location: Location, wanted: SourceOptions, workers: Workers) -> _Found:
    """Find out what lies at a URL; where both forms do, a strategy asks for rank shards."""
    container = container_of(location.key)
    if container is not None:
        info = location.store.head(location.key)
        name = location.key.rsplit("/", 1)[-1]
        return _Found(location.parent, f"one {container.value} object", (name,), {name: info}, {})
    infos = dict(location.named_objects())
    zarr = find_zarr(location, infos, workers)
    if zarr is not None:
        return _Found(location, "zarr store", (), infos, {}, index_bytes=zarr.index_bytes, zarr=zarr)
    iteration = find_iteration(location, infos)
    if iteration is not None:
        return _of_iteration(iteration)
    tensors = [name for name in infos if container_of(name)]
    ranked = find_rank_objects(infos)
    has_ranks = any(ranked.by_rank.values())
    # A .ckpt right beside ranks is a strategy.
    full = [n for n in tensors if "/" not in n and not (has_ranks and container_of(n) is Container.CKPT)]
    has_full = bool(full) or any(name in infos for name, _, _ in _INDEXES)
    if has_ranks and (wanted.strategy is not None or not has_full):
        found = _ranks(location, infos, ranked, wanted.file_suffix)
        note = "a full checkpoint beside the rank shards is left aside"
        return replace(found, notes=(*found.notes, note)) if has_full else found
    found = _full(location, infos, tensors)
    note = "rank shards beside the full checkpoint are left aside: a source strategy would ask for them"
    return replace(found, notes=(*found.notes, note)) if has_ranks else found


def _of_iteration(found: Iteration) -> _Found:
    kind = "iteration of MindSpore Transformers"
    return _Found(
        found.base,
        kind if found.metadata else f"{kind} of one device",
        found.names,
        found.infos,
        {},
        notes=found.notes,
        index_bytes=found.index_bytes,
        metadata=found.metadata,
        counters=found.counters,
    )


def _ranks(location: Location, infos: Mapping[str, ObjectInfo], ranked: RankObjects, suffix: str | None) -> _Found:
    """The object of each rank that belongs to one checkpoint."""
    recorded: dict[int, RankMeta] = {}
    if suffix is None and any(len(names) > 1 for names in ranked.by_rank.values()):
        for rank, name in ranked.metas.items():
            place = location.child(name)
            recorded[rank] = parse_meta(read_object(place), place.url)
    try:
        chosen = choose(ranked, suffix, recorded)
    except CatalogError as error:
        raise CatalogError(f"{location.url}: {error.message}", hint=error.hint, problems=error.problems) from error
    by_rank = dict(sorted(chosen.by_rank.items()))
    kind = f"one rank's {chosen.container} object" if tuple(by_rank) == (0,) else "rank shards"
    return _Found(location, kind, tuple(by_rank.values()), infos, {}, tuple(by_rank), chosen.notes)


def _full(location: Location, infos: Mapping[str, ObjectInfo], tensors: Sequence[str]) -> _Found:
    for name, kind, parse in _INDEXES:
        if name in infos:
            data = read_object(location.child(name))
            index = parse(data, location.child(name).url)
            return replace(_indexed(location, kind, infos, index.weight_map, tensors), index_bytes=len(data))
    return _unindexed(location, infos, tensors)


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
    if HYPER_NAME in infos and HYPER_NAME not in names:
        names.append(HYPER_NAME)
    aside = [name for name in tensors if name not in names]
    notes = (f"{len(aside)} objects that the index does not name are left aside: {', '.join(aside[:5])}",)
    return _Found(location, kind, tuple(names), infos, weight_map, notes=notes if aside else ())


def _unindexed(location: Location, infos: Mapping[str, ObjectInfo], tensors: Sequence[str]) -> _Found:
    # A .ckpt beside safetensors is a strategy, say; alone it is the checkpoint.
    direct = [name for name in tensors if "/" not in name]
    direct = [name for name in direct if container_of(name) is Container.SAFETENSORS] or direct
    if len(direct) == 1:
        aside = [name for name in tensors if name != direct[0]]
        note = f"{len(aside)} other objects are left aside: {', '.join(aside[:5])}"
        kind = f"one {direct[0].rsplit('.', 1)[-1]} object"
        return _Found(location, kind, tuple(direct), infos, {}, notes=(note,) if aside else ())
    if direct:
        raise CatalogError(
            f"{location.url}: {len(direct)} {direct[0].rsplit('.', 1)[-1]} objects and no index "
            "that says how they belong together",
            problems=direct,
            hint=f"Expected {_HF_INDEX} or {MAP_NAME} beside them; or name one object.",
        )
    others = ", ".join(sorted(infos)[:5])
    raise CatalogError(
        f"{location.url}: no checkpoint there: expected *.safetensors, {_HF_INDEX}, {MAP_NAME}, rank_<R>/ "
        f"or zarr.json, found {f'{len(infos)} other objects ({others})' if infos else 'nothing'}",
        hint="Is the prefix right?",
    )


def _header_bytes(found: _Found, opened: Sequence[Opened]) -> int:
    return found.index_bytes + sum(contents.index_bytes for _, contents in opened)


def _joined(
    found: _Found, opened: Sequence[Opened], source: StrategySource, wanted: SourceOptions, workers: Workers | None
) -> Catalog:
    """The catalog of rank shards; workers, if given, compare the copies of tensors without a layout."""
    shapes: dict[str, Shape] = {}
    for _, contents in opened:
        for stored in contents.tensors:
            shapes.setdefault(stored.spec.name, stored.spec.shape)
    strategy = source.strategy(shapes, local=True)
    shards = dict(zip(found.ranks, opened, strict=True))
    catalog, names = rank_catalog(
        found.base.url, shards, strategy, found.notes, names=wanted.names, keep_rank=wanted.keep_rank
    )
    if workers is not None:
        check_replicas(catalog, found.base, workers)
    if not names:
        return catalog
    if workers is None:
        note = f"{len(names)} tensors have no layout in the source; their bytes were not compared"
        return replace(catalog, notes=(*catalog.notes, note))
    return _compared(catalog, names, found, wanted.keep_rank, workers)


def _iteration(
    found: _Found, metadata: IterationMetadata, opened: Sequence[Opened], wanted: SourceOptions, workers: Workers | None
) -> Catalog:
    catalog, names = iteration_catalog(found.base.url, found.kind, metadata, opened, found.notes, wanted.names)
    return _compared(catalog, names, found, None, workers) if names and workers else catalog


def _compared(
    catalog: Catalog, names: Sequence[str], found: _Found, keep_rank: int | None, workers: Workers
) -> Catalog:
    """Raise CatalogError unless tensors without a layout are the same on every rank, or one rank decides."""
    nbytes, differing = differing_copies(catalog, set(names), found.base, workers)
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    told = f"{len(names)} tensors have no layout in the source ({some}); {nbytes} bytes on all ranks were read"
    if keep_rank in found.ranks:
        key = found.names[found.ranks.index(keep_rank)]
        for name in differing:
            catalog = of_rank(catalog, name, keep_rank, key)
        told += f": rank {keep_rank}'s of {', '.join(differing)} are taken, the others are equal" if differing else ""
        differing = {}
    raise_all(
        CatalogError,
        f"{found.base.url}: tensors without a layout in the source differ between ranks",
        [f"{name}: {sides}" for name, sides in differing.items()],
        hint="Leave them out with --drop."
        if found.metadata
        else "They were cut or are each rank's own: add their layouts to the strategy, leave them out with --drop, "
        "or take one rank's with --keep-rank.",
    )
    return replace(catalog, notes=(*catalog.notes, told if keep_rank in found.ranks else f"{told} and found equal"))
