"""The first of two passes: tensors go to a zarr store, which is removed when the second is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import FormatError, NotFound
from ..planning.plan import Plan
from ..planning.plan_json import plan_id_of
from ..planning.staging import with_etags
from ..storage import Location, Store
from .manifest import Manifest, decode_manifest
from .strategies import read_object
from .workers import working

__all__ = ["staged"]


@contextmanager
def staged(
    plan: Plan, places: Sequence[Location], *, keep: bool, run: Callable[[Plan, Sequence[Location], Location], Manifest]
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
    """
    if plan.staging is None:
        yield plan
        return
    *sources, place = places
    manifest = _kept(plan.staging, place)
    try:
        if manifest is None:
            manifest = run(plan.staging, sources, place)
        yield with_etags(plan, {receipt.key: receipt.etag for receipt in manifest.receipts})
    finally:
        if not keep:
            _remove(plan.staging, place)


def _kept(first: Plan, place: Location) -> Manifest | None:
    """What an earlier run left, if it is just what this one would write."""
    found = place.child(first.manifest_key)
    try:
        manifest = decode_manifest(read_object(found), found.url)
    except (NotFound, FormatError):
        return None
    if plan_id_of(manifest.plan) != plan_id_of(first):
        return None
    there = {name: (info.nbytes, info.etag) for name, info in place.named_objects()}
    is_whole = all(there.get(receipt.key) == (receipt.nbytes, receipt.etag) for receipt in manifest.receipts)
    return manifest if is_whole else None


def _remove(first: Plan, place: Location) -> None:
    """Remove all that the first pass wrote, its manifest first: without it nothing vouches for the rest."""
    store = place.store
    if not isinstance(store, Store):
        return
    keys = [first.manifest_key, *first.keys]
    with working(first.limits.concurrency, store) as workers:
        store.delete(place.child(keys[0]).key)
        workers.map(lambda key: store.delete(place.child(key).key), keys[1:])
