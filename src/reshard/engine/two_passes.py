"""The first of two passes: it writes tensors to a zarr store, which is removed after the second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..errors import FormatError, NotFound, ReshardError, TargetExists, add_problems, option, raise_all
from ..planning.conversion import Conversion
from ..planning.plan import Plan
from ..planning.plan_json import conversion_ids
from ..planning.share_documents import record_key_of
from ..planning.staging import with_etags
from ..storage import Location, never, read_object
from .claim import Watch, claimed, read_record
from .events import Listener, Noted, ignore
from .journal import journal_keys
from .locations import Locations
from .manifest import Manifest, decode_manifest
from .run_record import RunRecord
from .workers import stopped_by, working

_USE_KEY = "reshard-staging-use.json"
_SHOWN = 3  # objects that could not be removed that are named


@contextmanager
def staged(
    plan: Plan,
    locations: Locations,
    *,
    keep: bool,
    keep_unfinished: bool,
    run: Callable[[Plan, Locations], Manifest],
    listener: Listener,
) -> Iterator[Plan]:
    """Write the staged tensors of a plan, and provide the plan that reads them.

    Chunks go to the last of the sources. Those that an earlier run kept of the same source, in the same shapes, are
    used again. With ``keep_unfinished`` they stay if the second pass fails. The listener gets a note of chunks that
    could not be removed: the conversion is complete all the same.
    """
    if plan.staging is None:
        yield plan
        return
    first = plan.staging
    *sources, place = locations.sources
    found = {name: (info.nbytes, info.etag) for name, info in place.named_objects()}
    manifest_key = first.conversion.manifest_key
    record_key = record_key_of(manifest_key)
    ours = {manifest_key, record_key, _USE_KEY, *first.conversion.keys}
    raise_all(  # what others wrote there would be replaced, and removed
        TargetExists,
        f"{place.url}: objects are there that no staging has written",
        sorted(name for name in found if name not in ours and not name.startswith(record_key.removesuffix("json"))),
        hint=f"Choose another place with {option('staging_url')}, or remove them.",
    )
    # Who reads chunks holds them for both passes: nobody else writes or removes them meanwhile.
    with claimed(place.child(_USE_KEY), RunRecord.of(plan.conversion), Watch(listener), listener) as use:
        kept = _kept(first, place, found) if found else None
        if kept:  # a run that was killed right after its manifest has left these
            for key in (*journal_keys(place.child(record_key)), place.child(record_key).key):
                place.writable_store().delete(key)
        try:
            manifest = kept or run(first, Locations(sources, place))
            yield with_etags(plan, {receipt.key: receipt.etag for receipt in manifest.receipts})
        except BaseException as error:
            if not keep and not kept and not keep_unfinished and use.is_held():
                add_problems(error, _remove(first, place))
            raise
        if not keep and use.is_held():
            for problem in _remove(first, place):
                listener(Noted(problem))
        use.release(is_finished=True)


def _kept(first: Plan, place: Location, found: Mapping[str, tuple[int, str]]) -> Manifest | None:
    """Return the manifest of an earlier run that left the very chunks that this one would write, however it did so."""
    at = place.child(first.conversion.manifest_key)
    try:
        manifest = decode_manifest(read_object(at), at.url)
    except (NotFound, FormatError):
        return None
    is_same = manifest.conversion == first.conversion
    is_there = all(found.get(receipt.key) == (receipt.nbytes, receipt.etag) for receipt in manifest.receipts)
    return manifest if is_same and is_there else None


def _remove(first: Plan, place: Location) -> list[str]:
    """Remove all that the first pass wrote, its manifest last; return what could not be removed, in words."""
    store, problems = place.writable_store(), list[str]()

    def remove(key: str) -> None:
        try:
            store.delete(place.child(key).key)
        except ReshardError as error:
            problems.append(f"could not delete {place.child(key).url}: {error.marked_message}")

    with stopped_by(never), working(first.limits.concurrency, store) as workers:  # also on the way out of a stopped run
        workers.map(remove, first.conversion.keys)
    remove(first.conversion.manifest_key)
    shown, more = sorted(problems)[:_SHOWN], len(problems) - _SHOWN
    return [*shown, f"could not delete {more} others below {place.url}"] if more > 0 else shown


def remove_left_chunks(staging: Location, conversion: Conversion) -> None:
    """Remove the chunks that a dead run of a conversion had staged, and held when it ended; others stay."""
    own_id, names = conversion_ids(conversion)[0], [name for name, _ in staging.named_objects()]
    watch = Watch(ignore)
    for use in (name for name in names if name.rpartition("/")[2] == _USE_KEY):
        record, info = read_record(staging.child(use)), staging.child(use).head_or_none()
        if record is None or info is None or record.conversion_id != own_id:
            continue
        if not watch.is_dead(staging.child(use), record, info.etag):
            continue
        folder = use.removesuffix(_USE_KEY)
        for name in [*(name for name in names if name.startswith(folder) and name != use), use]:
            staging.writable_store().delete(staging.child(name).key)
