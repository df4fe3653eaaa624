"""Looks whether ranks that should hold the same do: a wrong strategy shows there."""

from __future__ import annotations

import hashlib

from ...errors import CatalogError, raise_all
from ...planning.catalog import Catalog, Entry, Placement, SourceSharding
from ...storage import Location
from ...tensor import ByteRange, extent_of
from ..workers import Workers
from .headers import blocks

_MOST_TENSORS = 16
_MOST_COPIES = 4
_SAMPLE_BYTES = 64 << 10


def check_replicas(catalog: Catalog, base: Location, workers: Workers) -> None:
    """Compare the beginnings of some copies: the largest tensors', of a few ranks each.

    Raises
    ------
    CatalogError
        Copies differ: the strategy calls equal what is not, or ranks are of different steps.
    """
    problems: list[str] = []

    def compare(entry: Entry) -> None:
        placement = next(place for place in entry.placements if len(place.holders) > 1)
        nbytes = min(_SAMPLE_BYTES, placement.box.element_count * extent_of(entry.spec)[1])
        found: dict[bytes, str] = {}
        for index, first in placement.holders[:_MOST_COPIES]:
            item = catalog.objects[index]
            data = base.store.read(base.child(item.key).key, ByteRange(first, first + nbytes), item.etag)
            found.setdefault(data, item.key)
        if len(found) > 1:
            problems.append(f"{entry.spec.name}: {' and '.join(found.values())} differ within {nbytes} bytes")

    replicated = [
        e for e in catalog.entries if e.sharding is not SourceSharding.UNLISTED and e.spec.nbytes and _is_copied(e)
    ]
    workers.map(compare, sorted(replicated, key=lambda entry: -entry.spec.nbytes)[:_MOST_TENSORS])
    raise_all(
        CatalogError,
        f"{catalog.url}: ranks hold different bytes of what the source strategy says is one",
        sorted(problems),
        hint="Is this the strategy that these shards were written under, and are they all of one step?",
    )


def _is_copied(entry: Entry) -> bool:
    return any(len(placement.holders) > 1 for placement in entry.placements)


def differing_copies(catalog: Catalog, names: set[str], base: Location, workers: Workers) -> tuple[int, dict[str, str]]:
    """The bytes read to compare copies, and of tensors that differ who has what, in words."""
    digests: dict[tuple[str, int, int], str] = {}

    def read(job: tuple[Entry, int, Placement, tuple[int, int]]) -> None:
        entry, number, placement, (index, first) = job
        item, digest = catalog.objects[index], hashlib.sha256()
        nbytes = placement.box.element_count * extent_of(entry.spec)[1]
        for span in blocks(ByteRange(first, first + nbytes)):
            digest.update(base.store.read(base.child(item.key).key, span, item.etag))
        digests[entry.spec.name, number, index] = digest.hexdigest()

    entries = [entry for entry in catalog.entries if entry.spec.name in names]
    placed = [(entry, *numbered) for entry in entries for numbered in enumerate(entry.placements)]
    workers.map(read, [(e, number, p, holder) for e, number, p in placed for holder in p.holders])
    differing = {}
    for entry, number, placement in placed:
        keys: dict[str, list[str]] = {}
        for index, _ in placement.holders:
            key = catalog.objects[index].key
            keys.setdefault(digests[entry.spec.name, number, index], []).append(key)
        if len(keys) > 1:
            sides = "; ".join(f"{len(held)} objects as {held[0]}" for held in keys.values())
            differing[entry.spec.name] = f"{len(keys)} different contents ({sides})"
    nbytes = sum(
        placement.box.element_count * extent_of(entry.spec)[1] * len(placement.holders)
        for entry, _, placement in placed
    )
    return nbytes, differing
