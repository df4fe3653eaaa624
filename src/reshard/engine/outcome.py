"""The outcome of an earlier run of the same conversion: whether it is complete and unchanged."""

from __future__ import annotations

from dataclasses import replace

from ..errors import FormatError, NotFound, TargetExists, option, raise_all
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.plan_json import conversion_ids
from ..planning.share_documents import record_key_of
from ..storage import Location, ObjectInfo, read_object
from ..tensor import ByteRange
from .claim import Watch, read_record
from .events import ignore
from .journal import journal_keys
from .manifest import START_BYTES, Manifest, decode_manifest, ids_at_start
from .resume import drop_strangers
from .shares import join_shares
from .workers import Workers


def find_outcome(conversion: Conversion, target: Location, workers: Workers) -> tuple[Manifest, int] | None:
    """Return the manifest of an earlier run of this conversion, and how many of its objects are missing.

    None if there is no such manifest. Raise TargetExists if objects were changed since that run.
    """
    manifest = _manifest(conversion, target)
    if manifest is None:
        return None
    infos: dict[str, ObjectInfo | None] = {}

    def look(key: str) -> None:
        infos[key] = target.child(key).head_or_none()

    workers.map(look, [receipt.key for receipt in manifest.receipts])
    found = [(receipt, info) for receipt in manifest.receipts if (info := infos[receipt.key])]
    raise_all(
        TargetExists,
        f"{target.url}: objects were changed since this conversion was finished",
        [
            f"{receipt.key}: expected {receipt.nbytes} bytes with etag {receipt.etag}, "
            f"found {info.nbytes} with {info.etag}"
            for receipt, info in found
            if (receipt.nbytes, receipt.etag) != (info.nbytes, info.etag)
        ],
        hint=f"Give {option('overwrite')} to convert again, or another destination.",
    )
    return replace(manifest, was_done=True), len(manifest.receipts) - len(found)


def finish_outcome(manifest: Manifest, target: Location) -> None:
    """Do what a run does after its manifest, in case that it ended right there."""
    place = target.child(record_key_of(manifest.conversion.manifest_key))
    info, record = place.head_or_none(), read_record(place)
    own_id = conversion_ids(manifest.conversion)[0]
    # A run that lives removes its record itself, and that of another conversion is about to replace this one.
    if info and record and record.conversion_id == own_id and Watch(ignore).is_dead(place, record, info.etag):
        drop_strangers(target, manifest.conversion.keys, ())  # it may have begun to write all this again
        for key in (*journal_keys(place), place.key):
            place.writable_store().delete(key)
    join_shares(manifest, target)


def _manifest(conversion: Conversion, target: Location) -> Manifest | None:
    """Return the manifest that says that a conversion is finished: its own, or that of the whole it is a share of."""
    own_id, whole_id = conversion_ids(conversion)
    if conversion_at(target, conversion.manifest_key) == own_id:
        return _decoded(target, conversion.manifest_key)
    if own_id == whole_id or conversion_at(target, MANIFEST_KEY) != whole_id:
        return None
    whole = _decoded(target, MANIFEST_KEY)
    if whole is None:
        return None
    wanted = set(conversion.keys)
    receipts = tuple(receipt for receipt in whole.receipts if receipt.key in wanted)
    return replace(whole, conversion=conversion, receipts=receipts)


def conversion_at(target: Location, key: str) -> str:
    """Return the id of the conversion that a manifest is about, empty if there is no manifest."""
    place = target.child(key)
    info = place.head_or_none()
    if info is None or not info.nbytes:
        return ""
    try:
        start = place.store.read(place.key, ByteRange(0, min(info.nbytes, START_BYTES)), info.etag)
    except NotFound:  # removed a moment ago
        return ""
    ids = ids_at_start(start)
    return ids[0] if ids else ""


def _decoded(target: Location, key: str) -> Manifest | None:
    place = target.child(key)
    try:
        return decode_manifest(read_object(place), place.url)
    except (FormatError, NotFound):
        return None
