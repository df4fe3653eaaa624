"""Rank shards: one object a rank, joined by the strategy that cut them, or each on its own.

The strategy is the one that is given, else the one in the manifest that reshard left beside shards that it wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from ...errors import CatalogError, UsageError, option, raise_all
from ...formats.containers import Container, container_of
from ...formats.mindspore.rank_objects import RankMeta, choose, parse_meta
from ...planning.catalog import Catalog
from ...planning.sources.bounded_expression import BoundedExpression
from ...planning.sources.full_source import full_catalog, tree_catalog
from ...planning.sources.rank_source import rank_catalog
from ...planning.sources.source_headers import SourceHeaders, with_selection_notes
from ...planning.targets.tree_target import tree_name
from ...storage import Location, ObjectInfo, read_object
from ...tensor import TensorSpec
from ..workers import Workers
from .full_checkpoint import has_full_checkpoint
from .headers import read_headers
from .replica_check import check_replicas, compare_unlisted, find_twins
from .shard_manifest import ShardManifest, read_shard_manifest
from .source_format import Listing, SourceFormat, SourceOptions

_COMPARE_HINT = (
    "They were cut, or every rank has its own: add their layouts to the source strategy, leave them out with "
    f"{option('drop')}, or take one rank's copy with {option('keep_rank')}."
)
_TREE_OBJECT = re.compile(r"rank[^/]*/[^/]+")


@dataclass(frozen=True, slots=True)
class RankShards(SourceFormat):
    """One object of each rank, all of one checkpoint; names are relative to ``base``, in the order of the ranks."""

    expected: ClassVar[str] = "rank_<R>/"

    base: Location
    kind: str
    keys: Mapping[int, str]
    objects: Mapping[str, ObjectInfo]
    notes: tuple[str, ...]
    manifest: ShardManifest | None = None
    unused: str = ""
    """Why the manifest that is there is not used."""

    @classmethod
    def detect(cls, listing: Listing, options: SourceOptions, _workers: Workers) -> Self | None:
        """Take rank shards unless a full checkpoint is beside them and no strategy asks for them."""
        location, ranked = listing.location, listing.rank_objects
        has_full = has_full_checkpoint(listing)
        if not any(ranked.by_rank.values()) or (has_full and options.strategy is None):
            return None
        recorded: dict[int, RankMeta] = {}
        if options.file_suffix is None and any(len(names) > 1 for names in ranked.by_rank.values()):
            for rank, name in ranked.metas.items():
                place = location.child(name)
                recorded[rank] = parse_meta(read_object(place), place.url)
        try:
            chosen = choose(ranked, options.file_suffix, recorded)
        except CatalogError as error:
            raise CatalogError(
                f"{location.url}: {error.marked_message}", hint=error.marked_hint, problems=error.marked_problems
            ) from error
        keys = dict(sorted(chosen.by_rank.items()))
        kind = f"one rank's {chosen.container} object" if tuple(keys) == (0,) else "rank shards"
        aside = "a full checkpoint beside the rank shards is ignored"
        notes = (*chosen.notes, aside) if has_full else chosen.notes
        objects = {key: listing.objects[key] for key in keys.values()}
        manifest, unused = read_shard_manifest(location, ranked.root, objects, listing.objects)
        if manifest is not None and options.strategy is None:
            kind, notes = "rank shards", (*notes, manifest.note)
        return cls(location, kind, keys, objects, (*notes, *[unused] * bool(unused)), manifest, unused)

    def read(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the shards, and compare copies that must be equal; a lone rank 0 is a full checkpoint."""
        if self.manifest is not None and self.manifest.is_served:
            message = f"{self.base.url}: these ranks were written for networks that serve a model, which repeat heads"
            raise CatalogError(message, hint="Convert the checkpoint that they were made of.")
        is_cut, notes = options.strategy is not None, list[str]()
        if not is_cut and self.manifest is not None:
            unused, compared = self.manifest.find_exchanged(self.base, self.objects, workers)
            is_cut, notes = not unused, [note for note in (unused, compared) if note]
        if not is_cut and tuple(self.keys) != (0,):
            ways = f"{option('src_strategy')}, {option('src_layout')} or {option('src_parallel')}"
            raise UsageError(
                f"{self.base.url}: these are shards of {len(self.keys)} ranks, and no strategy says how they are cut",
                problems=[why for why in (self.unused, *notes) if why],
                hint=f"Give the source's strategy with {ways}.",
            )
        source = self._headers(options, workers)
        source = replace(source, notes=(*source.notes, *notes))
        if not is_cut:
            catalog = full_catalog(source)
        else:
            catalog = self._join(source, options)
            check_replicas(catalog, self.base, workers)
            catalog = self._check_twins(catalog, options, workers)
            keep = None if options.keep_rank is None else (options.keep_rank, self.keys[options.keep_rank])
            catalog = compare_unlisted(catalog, self.base, workers, _COMPARE_HINT, keep)
        return with_selection_notes(catalog, options.names)

    def _check_twins(self, catalog: Catalog, options: SourceOptions, workers: Workers) -> Catalog:
        """Refuse a strategy that takes copies for parts; training's own files, and the manifest, are believed."""
        if self.manifest is not None or not (found := find_twins(catalog, self.base, workers)):
            return catalog
        problem = f"{found}, and by the source strategy they are different parts"
        if options.strategy is not None and options.strategy.files:
            return replace(catalog, notes=(*catalog.notes, problem))
        hint = "Is this the strategy that these shards were written under? One with fewer cuts and more copies fits."
        raise CatalogError(f"{self.base.url}: {problem}", hint=hint)

    def contents(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the shards without comparing copies, or list each rank's tensors where no strategy is given."""
        source = self._headers(options, workers)
        why = "no strategy is given"
        if options.strategy is not None or self.manifest is not None:
            try:
                catalog = self._join(source, options)
            except CatalogError as error:
                if options.strategy is not None:
                    raise
                # The manifest may be of more ranks than are here: what is here can be shown all the same.
                missing = (error.marked_message.removeprefix(f"{self.base.url}: "), *error.marked_problems)
                source = replace(source, notes=(*source.notes, *missing))
                why = "parts are missing"
            else:
                catalog = replace(catalog, notes=(*catalog.notes, *self._not_compared(catalog, options)))
                return with_selection_notes(catalog, options.names)
        elif tuple(self.keys) == (0,):
            return with_selection_notes(full_catalog(source), options.names)
        return self._apart(source, options, why)

    def _not_compared(self, catalog: Catalog, options: SourceOptions) -> Iterator[str]:
        """Yield notes on what is compared only when the source is converted."""
        if unlisted := catalog.unlisted_copies:
            yield f"{len(unlisted)} unlisted tensors were not compared between ranks"
        if options.strategy is None and self.manifest is not None and self.manifest.copied:
            count = f"{len(self.manifest.copied)} of {len(self.objects)}"
            yield f"{count} have other etags than the manifest records, as copies may: converting compares bytes"

    def _apart(self, source: SourceHeaders, options: SourceOptions, why: str) -> Catalog:
        """List each rank's tensors."""
        source = replace(source, kind=f"rank shards ({len(self.keys)} ranks), not joined: {why}")
        rank_of = {key: rank for rank, key in self.keys.items()}
        catalog = tree_catalog(source, lambda key, name: f"rank_{rank_of[key]}/{name}")
        present = {name for header in source.headers for name in header.texts}
        present |= {tensor.spec.name for header in source.headers for tensor in header.tensors}
        return with_selection_notes(catalog, options.names, present)

    def _headers(self, options: SourceOptions, workers: Workers) -> SourceHeaders:
        if options.keep_rank is not None and options.keep_rank not in self.keys:
            there = f"ranks {min(self.keys)}..{max(self.keys)}"
            raise UsageError(f"{self.base.url}: {option('keep_rank', options.keep_rank)}, but there are {there}")
        headers = read_headers(self.base, self.objects, workers, options)
        read_before = 0 if self.manifest is None else self.manifest.nbytes
        return SourceHeaders(self.base.url, self.kind, headers, options.names, self.notes, read_before)

    def _join(self, source: SourceHeaders, options: SourceOptions) -> Catalog:
        """Join the shards by the given strategy, which must agree with the manifest, or else by the manifest's."""
        strategy = self.manifest.strategy if self.manifest is not None else None
        if options.strategy is not None:
            specs: dict[str, TensorSpec] = {}
            for header in source.headers:
                for tensor in header.tensors:
                    specs.setdefault(tensor.spec.name, tensor.spec)
            strategy = options.strategy.strategy(specs, local=True)
            if self.manifest is not None:
                self.manifest.check_agrees(strategy, self.base.url)
        assert strategy is not None
        return rank_catalog(source, tuple(self.keys), strategy, options.keep_rank)


def read_tree(
    location: Location,
    container: Container,
    pattern: BoundedExpression | None,
    options: SourceOptions,
    workers: Workers,
) -> Catalog:
    """Describe every object of one format below ``rank*/``, each on its own; see :class:`TreeTarget`.

    Without any such, those directly below the prefix. The pattern matches somewhere in the name of each object to
    take. Raise CatalogError if there is none.

    Source: mindspore 2.10.0 ``ckpt_to_safetensors``: direct subdirectories whose names start with ``rank``. Its
    documentation promises any directory that holds checkpoint files.
    """
    infos = dict(location.named_objects())
    of_format = [name for name in infos if container_of(name) is container]
    flat = [name for name in of_format if "/" not in name]
    names = [name for name in of_format if _TREE_OBJECT.fullmatch(name)] or flat
    chosen = sorted(name for name in names if pattern is None or pattern.search(name.rsplit("/", 1)[-1]))
    if not chosen:
        asked = f" whose names match {pattern.text!r}" if pattern else ""
        raise CatalogError(
            f"{location.url}: expected *{container.suffix} or rank*/*{container.suffix} objects{asked}, "
            f"found {len(names)} of that format among {len(infos)} objects",
            hint="Name one object, or the prefix that holds rank_0/.",
        )
    headers = read_headers(location, {name: infos[name] for name in chosen}, workers, options)
    kind = f"{len(chosen)} {container.suffix} objects, each on its own"
    catalog = tree_catalog(SourceHeaders(location.url, kind, headers, options.names), tree_name)
    filled = {placement.holders[0][0] for entry in catalog.entries for placement in entry.placements}
    empty = [item.key for index, item in enumerate(catalog.objects) if index not in filled]
    hint = "Each object is converted on its own: keep a tensor of each, or choose objects by name."
    raise_all(UsageError, f"{location.url}: objects of which no tensor is left", empty, hint)
    passed_over = sorted(flat) if names is not flat else []
    note = f"objects beside rank*/ are not converted: {', '.join(passed_over[:5])}"
    return replace(catalog, notes=(*catalog.notes, note)) if passed_over else catalog
