"""What lies below a URL, as a store lists it."""

from __future__ import annotations

from dataclasses import dataclass

from ..storage import open_location, shared_connections
from .connecting import connecting
from .request import Request


@dataclass(frozen=True, slots=True)
class Listed:
    """An object, or a prefix with the objects below it; ``name`` counts from the URL, a prefix ends in a slash."""

    name: str
    nbytes: int
    object_count: int = 1


def list_below(url: str, *, is_deep: bool = False, give_up_after: str | float | None = None) -> tuple[Listed, ...]:
    """List the objects and the prefixes right below a URL, or with ``is_deep`` every object below it, in key order.

    Examples
    --------
    >>> from reshard.storage import MemoryStore
    >>> store = MemoryStore("listing")
    >>> _ = store.put("m/config.json", b"{}"), store.put("m/rank_0/a", b"123"), store.put("m/rank_0/b", b"4")
    >>> [(each.name, each.nbytes, each.object_count) for each in list_below("memory://listing/m")]
    [('config.json', 2, 1), ('rank_0/', 4, 2)]
    """
    with connecting(Request.of(give_up_after=give_up_after)):
        return _list_below(url, is_deep)


@shared_connections()
def _list_below(url: str, is_deep: bool) -> tuple[Listed, ...]:
    place = open_location(url)
    found: dict[str, Listed] = {}
    for name, info in place.named_objects():
        head, slash, _ = name.partition("/")
        shown = name if is_deep else head + slash
        before = found.get(shown, Listed(shown, 0, 0))
        found[shown] = Listed(shown, before.nbytes + info.nbytes, before.object_count + 1)
    if not found and place.key and (info_or_none := place.head_or_none()):
        return (Listed(place.key.rpartition("/")[2], info_or_none.nbytes),)
    return tuple(found.values())
