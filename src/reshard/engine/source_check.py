"""Checks that objects are still those that a plan was made from."""

from __future__ import annotations

from collections.abc import Iterator

from ..storage import Location


def stored_since(place: Location) -> Iterator[str]:
    """Yield a problem if a chunk that was missing when the plan was made is stored by now."""
    if (info := place.head_or_none()) is not None:
        yield f"{place.url}: expected a chunk that is not stored, found {info.nbytes} bytes"
