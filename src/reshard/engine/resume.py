"""Going on where earlier runs of a conversion ended: with their plan, their open uploads and their objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import NotFound, PlanError, ReshardError
from ..planning.plan import Plan, make_plan, without_copies
from ..planning.plan_json import plan_id_of
from ..storage import Location, Upload
from ..storage.checksums import joined_crc
from .journal import Progressed, journal_keys, last_begun, read_journal
from .locations import Locations
from .manifest import ObjectReceipt
from .run_record import RunRecord
from .workers import Workers
from .writer import PartReceipt, weakest


@dataclass(frozen=True, slots=True)
class Adopted:
    """What this run takes over: open uploads, the parts in them, and objects that are complete, by key."""

    uploads: Mapping[str, Upload] = field(default_factory=dict)
    parts: Mapping[str, Mapping[int, PartReceipt]] = field(default_factory=dict)
    objects: Mapping[str, ObjectReceipt] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that need not be sent again."""
        in_parts = sum(
            part.nbytes for key, parts in self.parts.items() if key not in self.objects for part in parts.values()
        )
        return in_parts + sum(receipt.nbytes for receipt in self.objects.values())


def plan_of_earlier(plan: Plan, earlier: Progressed) -> Plan | None:
    """Make the plan of earlier runs again, whose parts are in the store.

    None if it cannot be made any more, or needs more memory than this run may use; ``plan`` is that of this run.
    """
    begun = earlier.beginning
    if begun is None:
        return None
    if begun.plan_id == plan_id_of(plan):
        return plan
    if plan.staging is not None:  # chunks that are staged again have other etags
        return None
    try:
        made = make_plan(plan.conversion, begun.limits, begun.copy_bases)
        if not begun.copy_bases:
            made = without_copies(made)
    except (PlanError, ReshardError):
        return None
    # Each process has the memory that its plan gives to one, however many of them this run has.
    count = min(made.limits.process_count, plan.limits.process_count)
    fits = made.cost.peak_bytes // made.limits.process_count * count <= plan.limits.memory_bytes
    return made if fits and begun.plan_id == plan_id_of(made) else None


def adopt(
    earlier: Progressed, plan: Plan, locations: Locations, before: Mapping[str, str], workers: Workers
) -> Adopted:
    """Find out what the store still has of what earlier runs of a plan have left.

    A part counts if the store lists it as the journal has it, and an object if it has the etag that the journal has. An
    upload of this plan's keys that no journal knows is aborted: a run was killed right after it had opened it.
    """
    return _Adoption(earlier, plan, locations, before).make(workers)


class _Adoption:
    def __init__(self, earlier: Progressed, plan: Plan, locations: Locations, before: Mapping[str, str]) -> None:
        self._earlier = earlier
        self._target = locations.target
        self._store = locations.target.writable_store()
        self._before = before
        self._nbytes = {key: output.nbytes for output in plan.outputs for key in output.keys}
        self._uploads: dict[str, Upload] = {}
        self._parts: dict[str, dict[int, PartReceipt]] = {}
        self._objects: dict[str, ObjectReceipt] = {}

    def make(self, workers: Workers) -> Adopted:
        workers.map(self._adopt_object, list(self._earlier.objects.values()))
        keys = [key for key in self._earlier.uploads if key in self._nbytes and key not in self._objects]
        workers.map(self._adopt_upload, keys)
        drop_strangers(self._target, self._nbytes, self._uploads.values())
        return Adopted(self._uploads, self._parts, self._objects)

    def _adopt_object(self, receipt: ObjectReceipt) -> None:
        info = self._target.child(receipt.key).head_or_none()
        if info is not None and (info.nbytes, info.etag) == (receipt.nbytes, receipt.etag):
            self._objects[receipt.key] = receipt

    def _adopt_upload(self, key: str) -> None:
        place = self._target.child(key)
        upload = Upload(place.key, self._earlier.uploads[key])
        journalled = self._earlier.parts.get(key, {})
        if key in self._earlier.anew:
            self._store.abort_upload(upload)
            return
        try:
            listed = {part.number: part for part in self._store.list_parts(upload)}
        except NotFound:
            self._adopt_completed(place, key, journalled)
            return
        self._uploads[key] = upload
        self._parts[key] = {
            number: receipt
            for number, receipt in journalled.items()
            if number in listed and (listed[number].nbytes, listed[number].etag) == (receipt.nbytes, receipt.etag)
        }

    def _adopt_completed(self, place: Location, key: str, parts: Mapping[int, PartReceipt]) -> None:
        """Take an object for complete whose upload is gone, and all of whose parts had been sent."""
        info = place.head_or_none()
        if info is None or info.etag == self._before.get(key) or info.nbytes != self._nbytes[key]:
            return
        if sum(receipt.nbytes for receipt in parts.values()) == info.nbytes:
            crcs = [(p.crc32c, p.nbytes) for _, p in sorted(parts.items()) if p.crc32c is not None]
            crc = joined_crc(crcs) if len(crcs) == len(parts) else None
            self._objects[key] = ObjectReceipt(key, info.nbytes, info.etag, crc, weakest(parts.values()))


def drop_strangers(target: Location, keys: Iterable[str], uploads: Iterable[Upload]) -> None:
    """Abort open uploads of some keys that are none of those known, as runs leave that end right after opening them."""
    store, known = target.writable_store(), {upload.upload_id for upload in uploads}
    full_keys = {target.child(key).key for key in keys}
    for upload in store.open_uploads(target.prefix):
        if upload.key in full_keys and upload.upload_id not in known:
            store.abort_upload(upload)


def left_by(record_place: Location, record: RunRecord) -> Progressed:
    """Read what the run of a record has left; if it had not begun, what the one before it has left."""
    run_id, _ = last_begun(record_place, record.runs)
    return read_journal(record_place, run_id) if run_id else Progressed()


def remove_left(target: Location, record_place: Location, progressed: Progressed, *, journals: str = "") -> list[str]:
    """Remove what a run has left at a target, except its record; return what could not be removed, in words.

    Objects go only if they are as that run wrote them. Of the journals only those of one run go if ``journals`` names
    it.
    """
    store, problems = target.writable_store(), list[str]()
    for key, upload_id in progressed.uploads.items():
        try:
            store.abort_upload(Upload(target.child(key).key, upload_id))
        except ReshardError as error:
            problems.append(f"could not abort the upload of {target.child(key).url}: {error.marked_message}")
    for key, receipt in progressed.objects.items():
        place = target.child(key)
        try:
            info = place.head_or_none()
            if info is not None and info.etag == receipt.etag and info.etag != progressed.before.get(key):
                store.delete(place.key)
        except ReshardError as error:
            problems.append(f"could not delete {place.url}: {error.marked_message}")
    for key in [] if problems else journal_keys(record_place, journals):
        store.delete(key)
    return problems
