"""What a store can do, tried with small objects, and what reshard makes of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ..errors import NotFound, ReshardError, SourceChanged, StorageError, Unsupported
from ..storage import Checksum, Location, Store, open_location, shared_connections
from ..storage.checksums import crc_of
from ..tensor import ByteRange
from .access import describe_access
from .connecting import connecting
from .request import Request

Outcome = Literal["yes", "no", "failed"]

_BODY = b"0123456789"
_MOST_PART_BYTES = 5 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One ability of a store: whether it has it, and what follows for conversions.

    ``is_needed`` is whether nothing works without it.
    """

    name: str
    outcome: Outcome
    meaning: str
    is_needed: bool = True

    @property
    def is_wrong(self) -> bool:
        """Whether conversions to or from this place cannot work."""
        return self.outcome == "failed" or (self.is_needed and self.outcome == "no")


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found out about the store behind a URL."""

    url: str
    access: str
    checks: tuple[Check, ...]

    @property
    def is_ok(self) -> bool:
        """Whether conversions can read and write there."""
        return not any(check.is_wrong for check in self.checks)


def examine(url: str, *, give_up_after: str | float | None = None) -> Examination:
    """Try what the store behind a URL can do, with objects of a few MiB below it that are removed again.

    Parameters
    ----------
    give_up_after
        As in :class:`reshard.api.Request`.

    Raises
    ------
    UsageError
        The URL, or the settings for it, cannot be used.

    Examples
    --------
    >>> found = examine("memory://doctor/models")
    >>> found.is_ok, [check.name for check in found.checks if check.outcome == "no"]
    (True, ['kept checksums'])
    """
    with connecting(Request.of(give_up_after=give_up_after)):
        return _examine(url)


@shared_connections()
def _examine(url: str) -> Examination:
    place = open_location(url)
    examiner = _Examiner(place)
    if not examiner.listing():  # some services make a bucket that is missing when something is written to it
        return Examination(place.url, describe_access(url), tuple(examiner.checks))
    if isinstance(place.store, Store):
        try:
            examiner.writing()
        finally:
            examiner.clean()
    else:
        examiner.note("writing", "no", "this kind of store is only read", is_needed=False)
    return Examination(place.url, describe_access(url), tuple(examiner.checks))


class _Examiner:
    """Makes the checks one after the other; what fails is one of the findings."""

    def __init__(self, place: Location) -> None:
        self.checks: list[Check] = []
        self._place = place
        self._room = place.child(f"reshard-doctor-{uuid.uuid4().hex[:12]}")
        self._keys: list[str] = []

    def note(self, name: str, outcome: Outcome, meaning: str, *, is_needed: bool = True) -> None:
        """Note a finding."""
        self.checks.append(Check(name, outcome, meaning, is_needed))

    def listing(self) -> bool:
        """Look for one object below the place; return whether the store answers."""
        return self._try("listing", lambda: ("yes", f"{self._first()} below this URL"))

    def writing(self) -> None:
        """Write small objects, and find out what the store makes of conditions, parts and copies."""
        if not self._try("write and read back", self._small):
            return
        self._try("ranges", self._ranges)
        self._try("If-Match", self._if_match)
        self._try("conditional writes", self._conditions, is_needed=False)
        self._try("checksums of what is sent", self._sent, is_needed=False)
        self._try("kept checksums", self._kept, is_needed=False)
        self._try("multipart uploads", self._parts)
        self._try("copies of ranges", self._copies, is_needed=False)
        self._try("open uploads are listed", self._open_uploads, is_needed=False)

    def clean(self) -> None:
        """Remove all that was written."""

        def remove() -> tuple[Outcome, str]:
            for upload in self._store.open_uploads(self._room.prefix):
                self._store.abort_upload(upload)
            for key in self._keys:
                self._store.delete(key)
            return "yes", "nothing of this examination is left"

        self._try("delete", remove)

    @property
    def _store(self) -> Store:
        return self._place.writable_store()

    def _try(self, name: str, check: Callable[[], tuple[Outcome, str]], *, is_needed: bool = True) -> bool:
        try:
            outcome, meaning = check()
        except Unsupported as error:
            outcome, meaning = "no", error.marked_message
        except ReshardError as error:
            outcome, meaning = "failed", " ".join((error.marked_message, error.marked_hint)).strip()
        self.note(name, outcome, meaning, is_needed=is_needed)
        return outcome == "yes"

    def _key(self, name: str) -> str:
        key = self._room.child(name).key
        if key not in self._keys:
            self._keys.append(key)
        return key

    def _first(self) -> str:
        return "objects are" if next(iter(self._place.objects()), None) else "no object is"

    def _small(self) -> tuple[Outcome, str]:
        begun_s = time.monotonic()
        info = self._store.put(self._key("small"), _BODY)
        read = self._store.read(info.key, ByteRange(0, info.nbytes), self._store.head(info.key).etag)
        took_ms = 1e3 * (time.monotonic() - begun_s) / 3
        if read != _BODY:
            raise StorageError(f"{self._room.url}/small holds other bytes than were sent")
        return "yes", f"the same bytes come back; {took_ms:.0f} ms a request"

    def _ranges(self) -> tuple[Outcome, str]:
        if self._store.read(self._key("small"), ByteRange(3, 6)) != _BODY[3:6]:
            raise StorageError("a ranged read gave other bytes")
        return "yes", "only the bytes that are needed are read"

    def _if_match(self) -> tuple[Outcome, str]:
        with suppress(SourceChanged):
            self._store.read(self._key("small"), ByteRange(0, 4), '"00000000000000000000000000000000"')
            return "no", "a source that changes while it is read is not noticed"
        return "yes", "a source that changes while it is read stops the run"

    def _conditions(self) -> tuple[Outcome, str]:
        with suppress(SourceChanged):
            self._store.put(self._key("small"), _BODY, replaces="")
            return "no", "two runs with one target find out by reading the run's record again"
        return "yes", "of two runs with one target the store lets one write the run's record"

    def _sent(self) -> tuple[Outcome, str]:
        proof = self._store.put(self._key("checked"), _BODY, Checksum(crc_of(_BODY))).proof
        words = {"crc32c": "each part by CRC-32C", "md5": "each part by MD5", "local": "no network lies between"}
        return (
            ("yes", words[proof]) if proof in words else ("no", "lengths alone are compared, unless --verify is given")
        )

    def _kept(self) -> tuple[Outcome, str]:
        kept = self._store.head(self._key("checked")).checksum
        if kept is None:
            return "no", "bytes read are not compared with a checksum, unless --verify is given"
        return "yes", f"bytes read are compared with the {kept.algorithm} that the store keeps"

    def _parts(self) -> tuple[Outcome, str]:
        key, limits = self._key("parts"), self._store.limits
        first = bytes(min(max(limits.min_part_bytes, limits.min_copy_source_bytes), _MOST_PART_BYTES + 1))
        upload = self._store.create_upload(key)
        begun_s = time.monotonic()
        parts = [self._store.upload_part(upload, 1, 0, first)]
        rate = len(first) / (time.monotonic() - begun_s) / (1 << 20)
        parts.append(self._store.upload_part(upload, 2, len(first), _BODY))
        self._invisible(key)
        info = self._store.complete_upload(upload, [(part.number, part.etag) for part in parts])
        end = self._store.read(key, ByteRange(info.nbytes - len(_BODY), info.nbytes))
        if info.nbytes != len(first) + len(_BODY) or end != _BODY:
            raise StorageError("the parts of an upload were not joined as they were sent")
        return "yes", f"objects become visible whole; {rate:.0f} MiB/s over one connection"

    def _invisible(self, key: str) -> None:
        with suppress(NotFound):
            self._store.head(key)
            raise StorageError("an object is visible before its upload is complete")

    def _copies(self) -> tuple[Outcome, str]:
        if not self._store.limits.can_copy or not self._store.copies_from(self._store):
            return "no", "all bytes pass through this machine"
        source = self._store.head(self._key("parts"))
        upload = self._store.create_upload(self._key("copy"))
        span = ByteRange(0, source.nbytes)
        part = self._store.copy_part(upload, 1, 0, self._store, source.key, span, source.etag)
        info = self._store.complete_upload(upload, [(1, part.etag)])
        if info.nbytes != source.nbytes:
            raise StorageError("the store copied fewer bytes than it was asked for")
        return "yes", "bytes that only move within this store do not pass through this machine"

    def _open_uploads(self) -> tuple[Outcome, str]:
        upload = self._store.create_upload(self._key("open"))
        found = any(each.upload_id == upload.upload_id for each in self._store.open_uploads(self._room.prefix))
        self._store.abort_upload(upload)
        what = "what a run leaves is found by `reshard runs`" if found else "`reshard abort` goes by the run's record"
        return ("yes" if found else "no"), what
