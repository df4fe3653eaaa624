"""Compares copies of tensors that ranks should hold alike: a wrong strategy shows there."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from ...errors import CatalogError, raise_all
from ...planning.catalog import Catalog, Entry, Placement, SourceSharding
from ...planning.outputs.output import sample
from ...planning.sources.rank_source import take_copy_of_rank
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
        Copies differ: the strategy has replicas where there are none, or ranks are of different steps.
    """
    problems: list[str] = []

    def compare(entry: Entry) -> None:
        placement = next(place for place in entry.placements if len(place.holders) > 1)
        nbytes = min(_SAMPLE_BYTES, _nbytes(entry, placement))
        found: dict[bytes, str] = {}
        for index, first in placement.holders[:_MOST_COPIES]:
            item = catalog.objects[index]
            data = base.store.read(base.child(item.key).key, ByteRange(first, first + nbytes), item.etag)
            found.setdefault(data, item.key)
        if len(found) > 1:
            problems.append(f"{entry.spec.name}: {' and '.join(found.values())} differ within {nbytes} bytes")

    replicated = [
        entry
        for entry in catalog.entries
        if entry.sharding is not SourceSharding.UNLISTED
        and entry.spec.nbytes
        and any(len(placement.holders) > 1 for placement in entry.placements)
    ]
    workers.map(compare, sorted(replicated, key=lambda entry: -entry.spec.nbytes)[:_MOST_TENSORS])
    raise_all(
        CatalogError,
        f"{catalog.url}: ranks hold different bytes where the source strategy has replicas",
        sorted(problems),
        hint="Is this the strategy that these shards were written under, and are they all of one step?",
    )


def compare_unlisted(
    catalog: Catalog, base: Location, workers: Workers, hint: str, keep_rank: tuple[int, str] | None = None
) -> Catalog:
    """Read every copy of unlisted tensors, and note that all are equal or whose was taken.

    Parameters
    ----------
    hint
        What to do about copies that differ.
    keep_rank
        The rank whose copy to take of tensors that differ, and its object; None where no rank decides.

    Raises
    ------
    CatalogError
        Copies differ, and no rank decides.
    """
    entries = catalog.unlisted_copies
    if not entries:
        return catalog
    nbytes, differing = _compare_copies(catalog, entries, base, workers)
    note = (
        f"{len(entries)} unlisted tensors ({sample([entry.spec.name for entry in entries], 5)}) were compared, "
        f"{nbytes} bytes on all ranks: "
    )
    if keep_rank is not None and differing:
        for name in differing:
            catalog = take_copy_of_rank(catalog, name, *keep_rank)
        note += f"rank {keep_rank[0]}'s copies of {', '.join(differing)} are taken, the others are equal"
        return replace(catalog, notes=(*catalog.notes, note))
    raise_all(
        CatalogError,
        f"{base.url}: unlisted tensors, which are in no layout of the source, differ between ranks",
        [f"{name}: {sides}" for name, sides in differing.items()],
        hint,
    )
    return replace(catalog, notes=(*catalog.notes, f"{note}all copies are equal"))


def _compare_copies(
    catalog: Catalog, entries: tuple[Entry, ...], base: Location, workers: Workers
) -> tuple[int, dict[str, str]]:
    """Return the bytes that were read, and who differs from whom by the tensor's name."""
    digests: dict[tuple[str, int, int], str] = {}

    def read(job: tuple[Entry, int, Placement, tuple[int, int]]) -> None:
        entry, number, placement, (index, first) = job
        item, digest = catalog.objects[index], hashlib.sha256()
        for span in blocks(ByteRange(first, first + _nbytes(entry, placement))):
            digest.update(base.store.read(base.child(item.key).key, span, item.etag))
        digests[entry.spec.name, number, index] = digest.hexdigest()

    placed = [(entry, *numbered) for entry in entries for numbered in enumerate(entry.placements)]
    workers.map(read, [(e, number, p, holder) for e, number, p in placed for holder in p.holders])
    differing = {}
    for entry, number, placement in placed:
        keys: dict[str, list[str]] = {}
        for index, _ in placement.holders:
            keys.setdefault(digests[entry.spec.name, number, index], []).append(catalog.objects[index].key)
        if len(keys) > 1:
            sides = "; ".join(f"{len(held)} objects as {held[0]}" for held in keys.values())
            differing[entry.spec.name] = f"{len(keys)} different contents ({sides})"
    return sum(_nbytes(entry, placement) * len(placement.holders) for entry, _, placement in placed), differing


def _nbytes(entry: Entry, placement: Placement) -> int:
    return placement.box.element_count * extent_of(entry.spec)[1]
