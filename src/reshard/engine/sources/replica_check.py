"""Compares copies of tensors that ranks should hold alike: a wrong strategy shows there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from ...errors import CatalogError, raise_all
from ...models.pattern import name_key
from ...planning.catalog import Catalog, Entry, Placement, SourceSharding
from ...planning.outputs.output import sample
from ...planning.sources.rank_source import take_copy_of_rank
from ...storage import Location
from ...tensor import extent_of
from ..workers import Workers
from .headers import read_blocks

_MOST_TENSORS = 16
_MOST_COPIES = 4
_MOST_PIECES = 4096
_SAMPLE_BYTES = 64 << 10
_MOST_KINDS = 4
_TWIN_BYTES = 4 << 10
_LEAST_TWIN_BYTES = 256


def check_replicas(catalog: Catalog, base: Location, workers: Workers) -> None:
    """Compare the beginnings of some copies: the largest tensors', of a few ranks each.

    Raise CatalogError if they differ: the strategy has replicas where there are none, or ranks are of different steps.
    """
    replicated = [
        (entry, replace(placement, holders=placement.holders[:_MOST_COPIES]))
        for entry in sorted(catalog.entries, key=lambda entry: -entry.spec.nbytes)
        if entry.sharding is not SourceSharding.UNLISTED and entry.spec.nbytes
        for placement in [next((place for place in entry.placements if len(place.holders) > 1), None)]
        if placement
    ][:_MOST_TENSORS]
    contents = _distinct_contents(catalog, replicated, base, workers, _SAMPLE_BYTES)
    problems = [
        f"{entry.spec.name}: {' and '.join(keys[0] for keys in found)} differ within "
        f"{min(_SAMPLE_BYTES, _nbytes(entry, placement))} bytes"
        for (entry, placement), found in zip(replicated, contents, strict=True)
        if len(found) > 1
    ]
    raise_all(
        CatalogError,
        f"{catalog.url}: ranks hold different bytes where the source strategy has replicas",
        sorted(problems),
        hint="Is this the strategy that these shards were written under, and are they all of one step?",
    )


def compare_pieces(catalog: Catalog, base: Location, workers: Workers) -> Catalog:
    """Compare the beginnings of pieces that are stored several times, and note how many.

    Raise CatalogError if they differ: nothing says which is right.
    """
    repeated = [
        (entry, replace(placement, holders=placement.holders[:_MOST_COPIES]))
        for entry in catalog.entries
        for placement in entry.placements
        if len(placement.holders) > 1 and _nbytes(entry, placement)
    ]
    if not repeated:
        return catalog
    chosen = repeated[:: -(-len(repeated) // _MOST_PIECES)]
    contents = _distinct_contents(catalog, chosen, base, workers, _SAMPLE_BYTES)
    problems = [
        f"{entry.spec.name}: {placement.box.text} differs between {' and '.join(keys[0] for keys in found)}"
        for (entry, placement), found in zip(chosen, contents, strict=True)
        if len(found) > 1
    ]
    hint = "Are all objects of one save? Keep those of one, without files that an earlier save left."
    raise_all(CatalogError, f"{catalog.url}: pieces that are stored twice, with different bytes", problems, hint)
    note = (
        f"{len(repeated)} pieces are stored more than once; of {len(chosen)} the first {_SAMPLE_BYTES} bytes are equal"
    )
    return replace(catalog, notes=(*catalog.notes, note))


def find_twins(catalog: Catalog, base: Location, workers: Workers) -> str:
    """Compare pieces that should be different parts of a tensor, a few of each of the largest kinds of tensors.

    Where all of these kinds hold the same bytes twice, the strategy takes copies for parts, and its tensors are too
    large. Return what was found then, else nothing; pieces of one value everywhere say nothing.
    """
    kinds: dict[str, Entry] = {}
    for entry in sorted(catalog.entries, key=lambda entry: -entry.spec.nbytes):
        if entry.sharding is SourceSharding.SHARDED and _nbytes(entry, entry.placements[0]) >= _LEAST_TWIN_BYTES:
            kinds.setdefault(name_key(entry.spec.name), entry)
    chosen = [*kinds.values()][:_MOST_KINDS]
    jobs = [(entry, place) for entry in chosen for place in _likely_twins(len(entry.placements))]
    contents: dict[tuple[str, int], bytes] = {}

    def read(job: tuple[Entry, int]) -> None:
        entry, place = job
        index, first = entry.placements[place].holders[0]
        item, nbytes = catalog.objects[index], min(_TWIN_BYTES, _nbytes(entry, entry.placements[place]))
        data = b"".join(read_blocks(base.child(item.key), first, nbytes, item.etag))
        contents[entry.spec.name, place] = data

    workers.map(read, jobs)
    found: list[str] = []
    compared = 0
    for entry in chosen:
        pieces = [contents[entry.spec.name, place] for place in _likely_twins(len(entry.placements))]
        itemsize = extent_of(entry.spec)[1]
        telling = [data for data in pieces if data != data[:itemsize] * (len(data) // itemsize)]
        compared += bool(telling)
        if len(set(telling)) < len(telling):
            found.append(entry.spec.name)
    return f"pieces of {sample(found, 4)} are equal" if found and len(found) == compared else ""


def _likely_twins(count: int) -> list[int]:
    """Return the pieces that are copies of the first if ranks of another axis were taken for cuts."""
    return sorted({0, 1, *(count // ways for ways in (2, 3, 5) if count % ways == 0)} & {*range(count)})


def compare_unlisted(
    catalog: Catalog, base: Location, workers: Workers, hint: str, keep_rank: tuple[int, str] | None = None
) -> Catalog:
    """Read every copy of unlisted tensors, and note that all are equal or whose was taken.

    Of tensors that differ, the copy of the rank and object in ``keep_rank`` is taken; raise CatalogError if no rank
    decides, with a hint.
    """
    placed = [(entry, placement) for entry in catalog.unlisted_copies for placement in entry.placements]
    if not placed:
        return catalog
    differing: dict[str, str] = {}
    for (entry, _), found in zip(placed, _distinct_contents(catalog, placed, base, workers), strict=True):
        if len(found) > 1:
            sides = "; ".join(f"{len(keys)} objects as {keys[0]}" for keys in found)
            differing[entry.spec.name] = f"{len(found)} different contents ({sides})"
    names = list(dict.fromkeys(entry.spec.name for entry, _ in placed))
    nbytes = sum(_nbytes(entry, placement) * len(placement.holders) for entry, placement in placed)
    note = f"{len(names)} unlisted tensors ({sample(names, 5)}) were compared, {nbytes} bytes on all ranks: "
    if keep_rank is not None and differing:
        for name in differing:
            catalog = take_copy_of_rank(catalog, name, *keep_rank)
        note += f"rank {keep_rank[0]}'s copies of {', '.join(differing)} are taken, the others are equal"
        return replace(catalog, notes=(*catalog.notes, note))
    raise_all(
        CatalogError,
        f"{base.url}: tensors that no layout of the source lists differ between ranks",
        [f"{name}: {sides}" for name, sides in differing.items()],
        hint,
    )
    return replace(catalog, notes=(*catalog.notes, f"{note}all copies are equal"))


def _distinct_contents(
    catalog: Catalog,
    placed: Sequence[tuple[Entry, Placement]],
    base: Location,
    workers: Workers,
    most_bytes: int | None = None,
) -> list[list[list[str]]]:
    """Read each placement from all its holders, and group their keys by equal bytes, the first holder's first."""
    digests: dict[tuple[int, int], bytes] = {}

    def read(job: tuple[int, int]) -> None:
        (entry, placement), (index, first) = placed[job[0]], placed[job[0]][1].holders[job[1]]
        item, nbytes = catalog.objects[index], _nbytes(entry, placement)
        digest = hashlib.sha256()
        for block in read_blocks(base.child(item.key), first, min(nbytes, most_bytes or nbytes), item.etag):
            digest.update(block)
        digests[job] = digest.digest()

    jobs = [(number, copy) for number, (_, placement) in enumerate(placed) for copy in range(len(placement.holders))]
    workers.map(read, jobs)
    found: list[dict[bytes, list[str]]] = [{} for _ in placed]
    for number, copy in jobs:
        key = catalog.objects[placed[number][1].holders[copy][0]].key
        found[number].setdefault(digests[number, copy], []).append(key)
    return [list(contents.values()) for contents in found]


def _nbytes(entry: Entry, placement: Placement) -> int:
    return placement.box.element_count * extent_of(entry.spec)[1]
