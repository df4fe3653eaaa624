"""Pieces of tensors in safetensors below a prefix, as ``torch.distributed.checkpoint`` saves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from ...errors import CatalogError, raise_all
from ...formats.containers import Container, container_of
from ...formats.sharding_info import SHARDING_KEY, ShardName
from ...planning.catalog import Catalog
from ...planning.sources.sharded_source import sharded_catalog
from ...planning.sources.source_headers import SourceHeaders, with_selection_notes
from ...storage import Location, ObjectInfo
from ..workers import Workers
from .full_checkpoint import has_index
from .headers import read_headers
from .replica_check import compare_pieces
from .source_format import Listing, SourceFormat, SourceOptions, refuse_other_format, refuse_rank_options

_KIND = "sharded safetensors of torch"


@dataclass(frozen=True, slots=True)
class ShardedSafetensors(SourceFormat):
    """Objects of pieces, by their names relative to ``base``; any names will do."""

    expected: ClassVar[str] = "shard-00001-model-00001-of-00001.safetensors"

    base: Location
    objects: Mapping[str, ObjectInfo]
    notes: tuple[str, ...]

    @classmethod
    def detect(cls, listing: Listing, options: SourceOptions, workers: Workers) -> Self | None:
        """Take objects with torch's names, or with other names if the first of several says that it has pieces."""
        names = [n for n in listing.tensor_names if "/" not in n and container_of(n) is Container.SAFETENSORS]
        shards = [shard for name in names if (shard := ShardName.parse(name))]
        if not names or has_index(listing):
            return None
        objects = {name: listing.objects[name] for name in names}
        if len(shards) < len(names):
            if len(names) < 2:
                return None
            [first] = read_headers(listing.location, {names[0]: objects[names[0]]}, workers, options)
            if SHARDING_KEY not in first.metadata:
                return None
        missing = [f"file {n} of {count}" for count, n in _missing_files(shards)]
        raise_all(CatalogError, f"{listing.location.url}: no rank's object of some files is there", missing)
        return cls(listing.location, objects, tuple(_notes(shards)))

    def read(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the pieces, and compare those that are stored several times."""
        catalog = compare_pieces(self._catalog(options, workers), self.base, workers)
        return with_selection_notes(catalog, options.names)

    def contents(self, options: SourceOptions, workers: Workers) -> Catalog:
        """Join the pieces without comparing copies."""
        return with_selection_notes(self._catalog(options, workers), options.names)

    def _catalog(self, options: SourceOptions, workers: Workers) -> Catalog:
        refuse_rank_options(self.base.url, _KIND, options)
        refuse_other_format(self.base.url, _KIND, Container.SAFETENSORS, options)
        headers = read_headers(self.base, self.objects, workers, options)
        return sharded_catalog(SourceHeaders(self.base.url, _KIND, headers, options.names, self.notes))


def _missing_files(shards: Sequence[ShardName]) -> Iterator[tuple[int, int]]:
    """Yield files of which no rank wrote anything: each has tensors, since numbers are given to tensors."""
    for count in sorted({shard.count for shard in shards}):
        there = {shard.file for shard in shards if shard.count == count}
        for number in range(1, min(count, len(shards) + 1) + 1):
            if number not in there:
                yield count, number


def _notes(shards: Sequence[ShardName]) -> Iterator[str]:
    yield (
        "sizes of tensors are stored nowhere and are inferred: each ends where its last piece does, "
        "so the object of a last rank would not be missed"
    )
    ranks = {shard.rank for shard in shards}
    gaps = [rank for rank in range(1, min(max(ranks, default=0), 2 * len(ranks) + 1)) if rank not in ranks]
    if gaps:
        numbers = ", ".join(map(str, gaps[:5]))
        yield f"no object of shard {numbers}: it had nothing to write, or its tensors of one piece are lost"
