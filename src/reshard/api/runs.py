"""Runs that have ended early: what they have left, and how to remove it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..engine.claim import Watch, in_use, is_dead, read_record
from ..engine.events import ignore
from ..engine.journal import Progressed
from ..engine.resume import left_by, remove_left
from ..engine.run_record import RunRecord
from ..errors import StorageError
from ..storage import Location, open_target, open_target_object, shared_connections
from .request import OBJECT_SUFFIXES

_RECORD = re.compile(r"(?:.*/)?(?:reshard-run(?:-[^/]*)?|[^/]+\.run|reshard-staging-use)\.json")


@dataclass(frozen=True, slots=True)
class LeftRun:
    """What one run has left at a target; ``is_alive`` is whether it may still be at work.

    ``sent_bytes`` are in open uploads and in complete objects.
    """

    target_url: str
    record_url: str
    record: RunRecord
    is_alive: bool
    sent_bytes: int
    upload_count: int
    object_count: int


@shared_connections()
def list_runs(url: str) -> tuple[LeftRun, ...]:
    """Find every run below a prefix that has not finished: those that are at work, and those that have ended early."""
    return tuple(_left(place, record) for place, record in _records(open_target(url)))


@shared_connections()
def orphaned_uploads(url: str) -> tuple[str, ...]:
    """Return the keys below a prefix with open uploads that no run has written down."""
    place = open_target(url)
    known = {upload_id for at, record in _records(place) for upload_id in _progress(at, record).uploads.values()}
    uploads = place.writable_store().open_uploads(place.prefix)
    return tuple(upload.key for upload in uploads if upload.upload_id not in known)


@shared_connections()
def abort_run(url: str) -> tuple[LeftRun, ...]:
    """Remove what runs that have ended early have left at a target: uploads, objects, journal and record.

    Objects go only if they are as the run wrote them. Uploads below the target that nobody has written down go, too.
    Raise TargetInUse if a run is still at work, and StorageError if something could not be removed.
    """
    target = _target_of(url)
    places = [target, *([target.parent.child(f"{target.key.rpartition('/')[2]}.staging")] if target.key else [])]
    found = [each for place in places for each in _records(place)]
    watch = Watch(ignore)
    for place, record in found:
        info = place.head_or_none()
        if info is not None and not watch.is_dead(place, record, info.etag):
            raise in_use(place.parent, record)
    left, problems = [], list[str]()
    for place, record in found:
        left.append(_left(place, record))
        problems += remove_left(place.parent, place, _progress(place, record))
        if not problems:
            place.writable_store().delete(place.key)
    for place in places:
        store = place.writable_store()
        for upload in store.open_uploads(place.prefix):
            store.abort_upload(upload)
    if problems:
        raise StorageError(f"{url}: not everything could be removed", problems=problems, hint="Run the command again.")
    return tuple(left)


def _target_of(url: str) -> Location:
    if url.rstrip("/").endswith(OBJECT_SUFFIXES):
        return open_target_object(url.rstrip("/"))[0]
    return open_target(url)


def _records(place: Location) -> Iterator[tuple[Location, RunRecord]]:
    for name, _ in place.named_objects():
        if _RECORD.fullmatch(name):
            at = place.child(name)
            record = read_record(at)
            if record is not None:
                yield at, record


def _left(place: Location, record: RunRecord) -> LeftRun:
    progress = _progress(place, record)
    parts = [part for key, held in progress.parts.items() if key not in progress.objects for part in held.values()]
    sent = sum(part.nbytes for part in parts) + sum(each.nbytes for each in progress.objects.values())
    counts = len(progress.uploads.keys() - progress.objects.keys()), len(progress.objects)
    return LeftRun(place.parent.url, place.url, record, not is_dead(place, record), sent, *counts)


def _progress(place: Location, record: RunRecord) -> Progressed:
    return left_by(place, record)
