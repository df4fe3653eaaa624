"""The first of two passes: tensors go to a zarr store, which is removed when the second is done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..errors import FormatError, NotFound, ReshardError, TargetExists, add_problems, raise_all
from ..planning.plan import Plan
from ..planning.staging import with_etags
from ..storage import Location
from .events import Listener, Noted
from .manifest import Manifest, decode_manifest
from .sources.strategy_files import read_object
from .workers import working

_TOLD = 3
"""How many objects that could not be removed are named."""


@contextmanager
def staged(
    plan: Plan,
    places: Sequence[Location],
    *,
    keep: bool,
    run: Callable[[Plan, Sequence[Location], Location], Manifest],
    listener: Listener,
) -> Iterator[Plan]:
    """Write what a plan stages, and give the plan that reads it.

    What an earlier run kept of the same source in the same chunks is used as it is.

    Parameters
    ----------
    places
        Where the catalog's keys count from; the staged ones' is the last.
    keep
        Whether to leave it there.
    run
        Carries out one pass.
    listener
        Told what could not be removed in the end: the conversion is complete all the same.
    """
    if plan.staging is None:
        yield plan
        return
    *sources, place = places
    there = {name: (info.nbytes, info.etag) for name, info in place.named_objects()}
    _check_ours(plan.staging, place, there)
    before = _manifest(plan.staging, place) if there else None
    kept = before if before and _is_kept(plan.staging, before, there) else None
    try:
        manifest = kept or run(plan.staging, sources, place)
        yield with_etags(plan, {receipt.key: receipt.etag for receipt in manifest.receipts})
    except BaseException as error:
        if not keep and not kept:
            add_problems(error, _remove(plan.staging, place))
        raise
    if not keep:
        for problem in _remove(plan.staging, place):
            listener(Noted(problem))


def _manifest(first: Plan, place: Location) -> Manifest | None:
    """What an earlier run told that it left here."""
    found = place.child(first.conversion.manifest_key)
    try:
        return decode_manifest(read_object(found), found.url)
    except (NotFound, FormatError):
        return None


def _check_ours(first: Plan, place: Location, there: Collection[str]) -> None:
    """Refuse a place with objects that staging this source has not written: they would be replaced, and removed."""
    ours = {first.conversion.manifest_key, *first.conversion.keys}
    raise_all(
        TargetExists,
        f"{place.url}: objects are there that no staging has written",
        sorted(name for name in there if name not in ours),
        hint="Choose another place with --staging-url, or remove them.",
    )


def _is_kept(first: Plan, before: Manifest, there: Mapping[str, tuple[int, str]]) -> bool:
    """Whether an earlier run left just what this one would write, in whatever way and memory it did so."""
    if _chunks_of(before.plan) != _chunks_of(first):
        return False
    return all(there.get(receipt.key) == (receipt.nbytes, receipt.etag) for receipt in before.receipts)


def _chunks_of(plan: Plan) -> tuple[object, ...]:
    """What decides the keys and the bytes of chunks."""
    return (
        plan.catalog,
        plan.conversion.target,
        plan.conversion.renamed,
        plan.conversion.change,
        plan.conversion.attachments,
    )


def _remove(first: Plan, place: Location) -> list[str]:
    """Remove all that the first pass wrote, its manifest last; returns what could not be removed, in words."""
    store, problems = place.writable_store(), list[str]()

    def remove(key: str) -> None:
        try:
            store.delete(place.child(key).key)
        except ReshardError as error:
            problems.append(f"could not delete {place.child(key).url}: {error.message}")

    with working(first.limits.concurrency, store) as workers:
        workers.map(remove, first.conversion.keys)
    remove(first.conversion.manifest_key)
    told, more = sorted(problems)[:_TOLD], len(problems) - _TOLD
    return [*told, f"could not delete {more} others below {place.url}"] if more > 0 else told
