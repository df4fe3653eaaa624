"""Places that jobs read and write: which are one place, and which lie inside another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from ..errors import ReshardError
from ..storage import open_location

_SLASHES = re.compile(r"(?<!:)//+|/\./")


def identity_of(url: str) -> str:
    """Return a text that is equal for two URLs of one place: ``out`` and ``./out``, ``s3://`` and ``obs://``.

    No request is sent. A store that cannot be opened here is compared by its URL.

    Examples
    --------
    >>> identity_of("memory://lab/a//b/") == identity_of("memory://lab/./a/b")
    True
    """
    try:
        return open_location(url).identity
    except ReshardError:
        return _SLASHES.sub("/", url).rstrip("/")


def is_within(url: str, other: str) -> bool:
    """Whether one place is another, or inside it.

    Examples
    --------
    >>> is_within("memory://lab/a/b", "memory://lab/a"), is_within("memory://lab/ab", "memory://lab/a")
    (True, False)
    """
    return f"{identity_of(url)}/".startswith(f"{identity_of(other)}/")


class PlaceIndex:
    """Names by the place that each has written to it, for looking up what is at a place or around it."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._identities = {name: identity_of(url) for name, url in urls.items()}
        self._names: dict[str, list[str]] = {}
        for name, identity in self._identities.items():
            self._names.setdefault(identity, []).append(name)

    def around(self, url: str) -> Iterable[str]:
        """Return the names whose places are this one or hold it, the innermost first."""
        return (name for place in _outwards(identity_of(url)) for name in self._names.get(place, ()))

    def same(self) -> Iterator[list[str]]:
        """Yield the names of each place that has several."""
        return (names for names in self._names.values() if len(names) > 1)

    def nested(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of names where the place of the first lies inside that of the second."""
        for name, identity in self._identities.items():
            outer = [
                other for place in _outwards(identity) if place != identity for other in self._names.get(place, ())
            ]
            if outer:
                yield name, outer[0]


def _outwards(identity: str) -> Iterator[str]:
    """Yield a place, and every place around it."""
    while identity:
        yield identity
        identity = identity.rpartition("/")[0]
