"""Checks that objects are still those that a plan was made from."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import NotFound
from ..storage import Location, ObjectInfo


def head_or_none(location: Location) -> ObjectInfo | None:
    """Describe an object, or return None when there is none."""
    try:
        return location.store.head(location.key)
    except NotFound:
        return None


def stored_since(place: Location) -> Iterator[str]:
    """Yield a problem if a chunk that was missing when the plan was made is stored by now."""
    if (info := head_or_none(place)) is not None:
        yield f"{place.url}: expected a chunk that is not stored, found {info.nbytes} bytes"
