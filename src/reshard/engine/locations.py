"""The locations that a plan's keys count from, and whether its source is still there unchanged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import SourceChanged, raise_all
from ..planning.catalog import SourceObject
from ..planning.outputs.output import Attachment
from ..planning.plan import Plan
from ..storage import KeptChecksum, Location, ReadStore, open_source, open_target
from ..storage.checksums import read_until_equal
from ..tensor import ByteRange
from .workers import Workers


@dataclass(frozen=True, slots=True)
class Locations:
    """Where the keys of a plan count from: the catalog's URL and its others, and the target.

    In another process they are opened again by their URLs.
    """

    sources: Sequence[Location]
    target: Location

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (tuple(place.url for place in self.sources), self.target.url)

    def source(self, item: SourceObject) -> Location:
        """Return the location of one of the catalog's objects."""
        return self.sources[item.base].child(item.key)

    @property
    def stores(self) -> Collection[ReadStore]:
        """Every store, once."""
        return {id(place.store): place.store for place in (*self.sources, self.target)}.values()

    def read(self, plan: Plan, attachment: Attachment) -> bytes:
        """Read a small object of the source whole."""
        item = plan.catalog.objects[attachment.index]
        place = self.source(item)
        read = read_agreed if plan.limits.read_count > 1 else read_once
        return read(place, ByteRange(0, item.nbytes), item.etag)


def read_once(place: Location, span: ByteRange, etag: str) -> bytes:
    """Read a small range of an object that must still have its etag."""
    return place.store.read(place.key, span, etag)


def read_agreed(place: Location, span: ByteRange, etag: str) -> bytes:
    """Read a small range until two reads bring the same bytes: it decides what other bytes mean."""
    data = bytearray(read_once(place, span, etag))

    def fetch() -> None:
        data[:] = read_once(place, span, etag)

    read_until_equal(memoryview(data), fetch, place.url)
    return bytes(data)


def _opened(source_urls: Sequence[str], target_url: str) -> Locations:
    return Locations([open_source(url) for url in source_urls], open_target(target_url))


def stored_since(place: Location) -> Iterator[str]:
    """Yield a problem if a chunk that was missing when the plan was made is stored by now."""
    if (info := place.head_or_none()) is not None:
        yield f"{place.url}: expected a chunk that is not stored, found {info.nbytes} bytes"


def check_source(
    plan: Plan, locations: Locations, workers: Workers, hint: str = "Make a new plan."
) -> Mapping[int, KeptChecksum]:
    """Raise SourceChanged unless every object of the source is the one that the plan was made from.

    Return the checksums that stores keep of them, by their position in the catalog.
    """
    problems: list[str] = []
    kept: dict[int, KeptChecksum] = {}

    def check(index: int) -> None:
        item = plan.catalog.objects[index]
        place = locations.source(item)
        if item.fill:
            problems.extend(stored_since(place))
            return
        info = place.head_or_none()
        if info is None:
            problems.append(f"{place.url}: gone")
        elif (info.nbytes, info.etag) != (item.nbytes, item.etag):
            problems.append(
                f"{place.url}: expected {item.nbytes} bytes with etag {item.etag}, found {info.nbytes} with {info.etag}"
            )
        elif info.checksum:
            kept[index] = info.checksum

    # Staged chunks are this run's own; each read and copy of one is pinned to its etag.
    staged_base = len(plan.catalog.others) if plan.staging else None
    workers.map(check, [index for index, item in enumerate(plan.catalog.objects) if item.base != staged_base])
    raise_all(SourceChanged, "the source is not what the plan was made from", sorted(problems), hint=hint)
    return kept
