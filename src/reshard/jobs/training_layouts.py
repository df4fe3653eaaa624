"""Whether shards are cut as a job's strategy cuts, so that each rank could load its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from ..errors import counted
from ..planning.catalog import Catalog, Entry, SourceSharding
from ..tensor import Box, Layout, Shape, Strategy

_RANK = re.compile(r"(?:.*/)?rank_(?P<rank>[0-9]+)/[^/]+", re.DOTALL)


def find_mismatch(catalog: Catalog, strategy: Strategy) -> str:
    """Say in words where the shards of a catalog differ from a strategy; empty if they are cut the same.

    Copies that are missing are no difference where the shards' headers say that redundancy was removed.
    """
    holders = [_rank_of(item.key) for item in catalog.objects]
    ranks = {rank for rank in holders if rank is not None}
    if None in holders or not ranks:
        return "the source does not consist of ranks"
    if not ranks <= set(range(strategy.rank_count)):
        return f"the source has rank {max(ranks)}, the job has {counted(strategy.rank_count, 'rank')}"
    may_lack = catalog.metadata.get("remove_redundancy") == "True"
    if not may_lack and len(ranks) != strategy.rank_count:
        return f"the source has {counted(len(ranks), 'rank')}, the job has {strategy.rank_count}"
    boxes: dict[tuple[Layout, Shape, int], Box] = {}
    for entry in catalog.entries:
        if entry.sharding is not SourceSharding.UNLISTED:
            for found in _differences(entry, holders, strategy, boxes, may_lack=may_lack):
                return found
    return ""


def _differences(
    entry: Entry,
    holders: list[int | None],
    strategy: Strategy,
    boxes: dict[tuple[Layout, Shape, int], Box],
    *,
    may_lack: bool,
) -> Iterator[str]:
    """Yield how a tensor's pieces differ from those of the strategy."""
    name, shape = entry.spec.name, entry.spec.shape
    held: dict[int, list[Box]] = {}
    for placement in entry.placements:
        for index, _ in placement.holders:
            rank = holders[index]
            assert rank is not None
            held.setdefault(rank, []).append(placement.box)
    for rank in range(strategy.rank_count):
        layout, pieces = strategy.layout(name, rank), held.get(rank, [])
        if layout is None:
            if pieces and name in strategy.names:
                yield f"{name}: rank {rank} has it, but it belongs to another stage of the job"
            elif pieces and not _is_whole(pieces, shape):
                yield f"{name}: rank {rank} has a slice, and the job does not cut it"
            continue
        if not pieces:
            if not may_lack:
                yield f"{name}: rank {rank} does not have it"
            continue
        device = rank % strategy.device_count
        key = layout, shape, device
        wanted = boxes.get(key)
        if wanted is None:
            wanted = boxes[key] = layout.box_of(shape, device)
        if not _tile(pieces, wanted):
            yield f"{name}: rank {rank} has {_hull(pieces).text}, and the job needs {wanted.text}"


def _rank_of(key: str) -> int | None:
    match = _RANK.fullmatch(key)
    return int(match["rank"]) if match else None


def _hull(pieces: list[Box]) -> Box:
    """Return the box around all pieces: a large tensor of a .ckpt lies in several."""
    starts, stops = zip(*((piece.start, piece.stop) for piece in pieces), strict=True)
    return Box(tuple(map(min, zip(*starts, strict=True))), tuple(map(max, zip(*stops, strict=True))))


def _tile(pieces: list[Box], wanted: Box) -> bool:
    return _hull(pieces) == wanted and sum(map(_count, pieces)) == _count(wanted)


def _is_whole(pieces: list[Box], shape: Shape) -> bool:
    return sum(map(_count, pieces)) == prod(shape)


def _count(box: Box) -> int:
    return prod(stop - start for start, stop in zip(box.start, box.stop, strict=True))
