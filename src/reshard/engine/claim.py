"""A run's claim on its target: nobody else writes there while it lives.

The claim is the run's record. It is written before anything else, and again every few seconds; a run that finds another
one looks whether that is alive. No clock is compared: what shows life is that the record changes, or how old the store
itself says it is. Two runs that claim at the same moment both write the record, and one of them is last: it
stays, and the other one notices at the latest before it makes anything visible.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..errors import NotFound, ReshardError, SourceChanged, TargetInUse
from ..planning.limits import Integrity
from ..storage import Location, ObjectInfo
from ..tensor import ByteRange
from .events import Listener, Noted
from .run_record import MAX_RECORD_BYTES, RunRecord, decode_record, encode_record
from .writer import checked_body

BEAT_S = 10.0
SILENCE_S = 35.0
_LOOK_S = 1.0


class Claim:
    """The claim of one run; ``earlier`` is the record of a run that has left one, and is dead."""

    def __init__(self, place: Location, record: RunRecord) -> None:
        self.record = record
        self.earlier: RunRecord | None = None
        self._place = place
        self._store = place.writable_store()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._written: str | None = None  # the etag of the record as this run wrote it last
        self._is_lost = False

    def take(self, listener: Listener) -> None:
        """Claim the target; TargetInUse if another run that lives has it."""
        self.earlier = _await_silence(self._place, listener)
        if self.earlier is not None and self.earlier.conversion_id == self.record.conversion_id:
            listener(Noted(f"This goes on with what a run on {self.earlier.host} has left ({self.earlier.started})."))
        self._write()
        self.check()

    def check(self) -> None:
        """Raise TargetInUse unless the claim is still this run's."""
        with self._lock:
            info = self._place.head_or_none()
            if not self._is_lost and info is not None and info.etag == self._written:
                return
            self._is_lost = True
        other = read_record(self._place)
        who = f"a run on {other.host} has taken over" if other else "its record is gone: someone removed what it wrote"
        raise TargetInUse(f"{self._place.parent.url}: {who}", hint="Let that run finish, or stop it and start again.")

    def is_held(self) -> bool:
        """Look whether the claim is still this run's; it is, as far as a store that does not answer can tell."""
        try:
            self.check()
        except TargetInUse:
            return False
        except ReshardError:
            return not self._is_lost
        return True

    def beat(self) -> None:
        """Show that the run lives; another run's record is never written over."""
        with self._lock:
            if self._is_lost or self._is_over.is_set():
                return
            try:
                info = self._place.head_or_none()
                if info is None or info.etag != self._written:
                    self._is_lost = True
                    return
                self.record = replace(self.record, beat=self.record.beat + 1)
                self._write()
            except ReshardError:
                return  # a store that does not answer now shows nobody that this run is silent, either

    def release(self, *, is_finished: bool) -> None:
        """Remove the record, or leave it as that of a run that can be continued."""
        with self._lock:
            self._is_over.set()
            if self._is_lost:
                return
            if is_finished:
                self._store.delete(self._place.key)
            else:
                self.record = self.record.ended()
                self._write()

    def back_out(self) -> None:
        """Leave the record as it was found, unless the claim has been released."""
        with self._lock:
            if self._is_over.is_set() or self._is_lost:
                self._is_over.set()
                return
            self._is_over.set()
            if self.earlier is None:
                self._store.delete(self._place.key)
            else:
                self._store.put(self._place.key, *checked_body(encode_record(self.earlier.ended()), Integrity.AUTO))

    def withdraw(self) -> None:
        """Leave the record as it was found, if it may be this run's although no answer has said so."""
        try:
            found = read_record(self._place)
            if found is not None and found.run_id == self.record.run_id:
                self._written = None
                self.back_out()
        except ReshardError:  # the error that led here says more
            return

    def _write(self) -> None:
        data = encode_record(self.record)
        self._written = self._store.put(self._place.key, *checked_body(data, Integrity.AUTO)).etag

    def run(self) -> None:
        """Beat until the run is over."""
        while not self._is_over.wait(BEAT_S):
            self.beat()


@contextmanager
def claimed(place: Location, record: RunRecord, listener: Listener) -> Iterator[Claim]:
    """Hold a claim for the length of a block; if nobody has released it there, all is as it was before."""
    claim = Claim(place, record)
    try:
        claim.take(listener)
    except BaseException:
        claim.withdraw()
        raise
    thread = threading.Thread(target=claim.run, name="reshard-claim", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        claim.back_out()


def read_record(place: Location) -> RunRecord | None:
    """Read the record at a place; None if there is none that can be read."""
    info = place.head_or_none()
    if info is None or info.nbytes > MAX_RECORD_BYTES:
        return None
    try:
        return decode_record(place.store.read(place.key, ByteRange(0, info.nbytes), info.etag), place.url)
    except (NotFound, SourceChanged):  # written anew meanwhile, or removed
        return None


def _await_silence(place: Location, listener: Listener) -> RunRecord | None:
    """Return the record of a run that is dead, None if there is none; TargetInUse if it lives."""
    first = place.head_or_none()
    if first is None:
        return None
    record = read_record(place)
    if record is None or record.has_ended or _is_old(first):
        return record
    listener(Noted(f"A run on {record.host} has left its record here: waiting to see whether it is alive."))
    end_s = time.monotonic() + SILENCE_S
    while time.monotonic() < end_s:
        time.sleep(_LOOK_S)
        info = place.head_or_none()
        if info is None:
            return None
        if info.etag != first.etag:
            raise in_use(place.parent, record)
        if _is_old(info):
            break
    return record


def is_dead(place: Location, record: RunRecord) -> bool:
    """Whether the run that has left a record is dead, as far as that shows at once; NotFound if the record is gone."""
    return record.has_ended or _is_old(place.store.head(place.key))


def in_use(target: Location, record: RunRecord) -> TargetInUse:
    """Make the error for a target where another run is writing."""
    return TargetInUse(
        f"{target.url}: a run on {record.host} is writing there (since {record.started})",
        hint="Wait until it has ended, or choose another destination.",
    )


def _is_old(info: ObjectInfo) -> bool:
    return info.age_s is not None and info.age_s > SILENCE_S
