"""Looks whether ranks that should hold the same do: a wrong strategy shows there."""

from __future__ import annotations

from ..errors import CatalogError, raise_all
from ..planning.catalog import Catalog, Entry, Origin
from ..storage import Location
from ..tensor import ByteRange, extent_of
from .workers import Workers

__all__ = ["check_replicas"]

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

    replicated = [e for e in catalog.entries if e.origin is not Origin.OUTSIDE and e.spec.nbytes and _is_copied(e)]
    workers.map(compare, sorted(replicated, key=lambda entry: -entry.spec.nbytes)[:_MOST_TENSORS])
    raise_all(
        CatalogError,
        f"{catalog.url}: ranks hold different bytes of what the source strategy says is one",
        sorted(problems),
        hint="Is this the strategy that these shards were written under, and are they all of one step?",
    )


def _is_copied(entry: Entry) -> bool:
    return any(len(placement.holders) > 1 for placement in entry.placements)
