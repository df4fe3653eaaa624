"""A run's claim on its target: nobody else writes there while it lives.

The claim is the run's record. It is written before anything else, and again every few seconds; a run that finds another
one looks whether that is alive: whether its record changes while it is watched. No clock decides that. How old the
store says that a record is only makes the watch shorter. Two runs that claim at the same moment both write the record,
and one of them is last: it stays. Where the store keeps to conditions, the other one is refused; else it notices at the
latest before it makes anything visible, as does a run that was stopped for so long that another one has taken over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from ..errors import NotFound, ReshardError, SourceChanged, TargetInUse, Unsupported
from ..planning.limits import Integrity
from ..storage import Body, Checksum, Location, ObjectInfo
from ..tensor import ByteRange
from .events import Listener, Noted
from .journal import has_journal, last_begun
from .run_record import MAX_RECORD_BYTES, RunRecord, decode_record, encode_record
from .workers import working
from .writer import checked_body

BEAT_S = 10.0
SILENCE_S = 35.0
FRESH_S = 1.0
"""How old an answer may be that a claim is still held, when something is about to become visible."""

_OLD_WATCH_S = 1.5 * BEAT_S  # a record that the store calls old, by a clock that may be wrong
_LOOK_S = 1.0


class Watch:
    """Finds out whether runs that have left records are alive; what it has found dead stays so, unless it changes.

    If it does not wait, it believes how old the store says that a record is: good enough to tell people.
    """

    def __init__(self, listener: Listener, *, waits: bool = True) -> None:
        self._listener = listener
        self._waits = waits
        self._dead: set[tuple[str, str]] = set()  # URLs of records, and their etags

    def is_dead(self, place: Location, record: RunRecord, etag: str) -> bool:
        """Whether the run that has left a record is dead; this may take as long as a run may be silent."""
        if record.has_ended or (place.url, etag) in self._dead:
            return True
        if not self._waits:
            return is_dead(place, record)
        self._listener(Noted(f"A run on {record.host} has left its record here: waiting to see whether it is alive."))
        begun_s = time.monotonic()
        while (info := place.head_or_none()) is not None and info.etag == etag:
            if time.monotonic() - begun_s > (min(_OLD_WATCH_S, SILENCE_S) if _is_old(info) else SILENCE_S):
                self._dead.add((place.url, etag))
                return True
            time.sleep(_LOOK_S)
        return info is None

    def gives_way(self, place: Location, record: RunRecord) -> bool:
        """Wait until another run, which has claimed at the same time, has removed its record or has begun."""
        self._listener(Noted(f"A run on {record.host} has begun here at the same time: waiting for it to give way."))
        end_s = time.monotonic() + SILENCE_S
        while time.monotonic() < end_s and not has_journal(place, record.run_id):
            if place.head_or_none() is None:
                return True
            time.sleep(_LOOK_S)
        return False


class Claim:
    """The claim of one run.

    ``earlier`` is the record of a run that has left one, and is dead; ``left`` is the last run that has begun before
    this one and has not finished, and its conversion.
    """

    def __init__(self, place: Location, record: RunRecord) -> None:
        self.record = record
        self.earlier: RunRecord | None = None
        self.left = ("", "")
        self.place = place
        self._store = place.writable_store()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._is_withdrawn = threading.Event()
        self._written = ""  # the etag of the record as this run wrote it last
        self._seen_s = 0.0  # when a request was sent whose answer has shown that the claim is held
        self.is_lost = False

    def take(self, watch: Watch, listener: Listener) -> None:
        """Claim the target; TargetInUse if another run that lives has it."""
        self.earlier, etag = _left_there(self.place, watch)
        if self.earlier is not None:
            self.record = self.record.after(self.earlier, has_begun=has_journal(self.place, self.earlier.run_id))
            if self.earlier.conversion_id == self.record.conversion_id:
                text = f"This goes on with what a run on {self.earlier.host} has left ({self.earlier.started})."
                listener(Noted(text))
        try:
            with working(1, self._store) as workers:
                workers.call(lambda: self._write_first(etag))
        except SourceChanged:  # another run was faster
            self.is_lost = True
        self.check()
        if self.earlier is not None:  # now it begins nothing any more
            self.left = last_begun(self.place, self.record.runs[1:])

    def check(self, *, within_s: float = 0.0) -> None:
        """Raise TargetInUse unless the claim is still this run's; an answer that is not older than that will do."""
        with self._lock:
            now_s = time.monotonic()
            if not self.is_lost and now_s - self._seen_s < within_s:
                return
            if self._is_mine():
                self._seen_s = now_s
                return
        other = self.other()
        if other is None:
            who = "the record of this run is gone: another run has finished there, or someone removed what it wrote"
        elif other.run_id == self.record.run_id:
            who = "this run was silent for too long, and another run has begun there"
        else:
            who = f"a run on {other.host} has taken over"
        raise TargetInUse(f"{self.place.parent.url}: {who}", hint="Let that run finish, or stop it and start again.")

    def other(self) -> RunRecord | None:
        """Return the record that is there instead of this run's."""
        return read_record(self.place)

    def mark(self) -> RunRecord | None:
        """Return this run's record as another run has marked it, which took it for dead; None if it is not there."""
        found = self.other()
        return found if found is not None and found.run_id == self.record.run_id else None

    def put_back(self) -> None:
        """Write the record of this run, which has ended, where another run has removed it and gone."""
        with suppress(SourceChanged):
            put_record(self.place, self.record.ended(), "")

    def is_held(self) -> bool:
        """Look whether the claim is still this run's; it is, as far as a store that does not answer can tell."""
        try:
            self.check()
        except TargetInUse:
            return False
        except ReshardError:
            return not self.is_lost
        return True

    def beat(self) -> None:
        """Show that the run lives; another run's record is never written over."""
        with self._lock:
            if self.is_lost or self._is_over.is_set():
                return
            try:
                now_s = time.monotonic()
                if not self._is_mine():
                    return
                self.record = replace(self.record, beat=self.record.beat + 1)
                self._write(self._written)
                self._seen_s = now_s
            except SourceChanged:
                self.is_lost = True
            except ReshardError:
                return  # a store that does not answer now shows nobody that this run is silent, either

    def release(self, *, is_finished: bool) -> None:
        """Remove the record, or leave it as that of a run that can be continued."""
        with self._lock:
            self._is_over.set()
            if not self._is_mine() and not (is_finished and self.mark()):
                return
            if is_finished:
                self._store.delete(self.place.key)
            else:
                self.record = self.record.ended()
                self._write(self._written)

    def back_out(self) -> None:
        """Leave the record as it was found, unless the claim has been released."""
        with self._lock:
            was_over = self._is_over.is_set()
            self._is_over.set()
            if was_over or not self._is_mine():
                return
            # An earlier run that was only slow may have finished since.
            if self.earlier is None or not last_begun(self.place, self.record.runs[1:])[0]:
                self._store.delete(self.place.key)
            else:
                put_record(self.place, self.earlier.ended(), self._written)

    def withdraw(self) -> None:
        """Leave the record as it was found, if it may be this run's although no answer has said so."""
        self._is_withdrawn.set()
        try:
            info, found = self.place.head_or_none(), read_record(self.place)
            if info is not None and found is not None and found.run_id == self.record.run_id:
                self._written, self.is_lost = info.etag, False
                self.back_out()
        except ReshardError:  # the error that led here says more
            return

    def _is_mine(self) -> bool:
        """Look at the record once more, right before it is replaced or removed; the lock is held."""
        if not self.is_lost:
            info = self.place.head_or_none()
            self.is_lost = info is None or info.etag != self._written
        return not self.is_lost

    def _write_first(self, replaces: str) -> None:
        self._write(replaces)
        if self._is_withdrawn.is_set():  # whoever withdrew it may have looked before the record was there
            self.withdraw()

    def _write(self, replaces: str) -> None:
        self._written = put_record(self.place, self.record, replaces).etag

    def run(self) -> None:
        """Beat until the run is over."""
        while not self._is_over.wait(BEAT_S):
            self.beat()


@contextmanager
def claimed(place: Location, record: RunRecord, watch: Watch, listener: Listener) -> Iterator[Claim]:
    """Hold a claim for the length of a block; if nobody has released it there, all is as it was before."""
    claim = Claim(place, record)
    try:
        claim.take(watch, listener)
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


def _left_there(place: Location, watch: Watch) -> tuple[RunRecord | None, str]:
    """Return the record of a run that is dead, None if there is none, and its etag; TargetInUse if the run lives."""
    info = place.head_or_none()
    if info is None:
        return None, ""
    record = read_record(place)
    if record is not None and not watch.is_dead(place, record, info.etag):
        raise in_use(place.parent, record)
    now = place.head_or_none()
    if now is None:
        return None, ""
    if record is not None and now.etag != info.etag:  # another run has just taken over
        raise in_use(place.parent, record)
    return record, now.etag


def put_over(place: Location, data: Body, checksum: Checksum | None, replaces: str) -> ObjectInfo:
    """Write an object over one with a certain etag, or where there is none if the etag is empty.

    Raise SourceChanged if another one is there, as far as the store keeps to that condition. It may be the very one
    that was sent, if the first answer was lost.
    """
    store = place.writable_store()
    try:
        return store.put(place.key, data, checksum, replaces)
    except Unsupported:  # it refuses conditions
        return store.put(place.key, data, checksum)
    except NotFound as error:
        raise SourceChanged(f"{place.url} is not there any more.") from error


def put_document_over(place: Location, data: bytes, integrity: Integrity, replaces: str) -> ObjectInfo:
    """Write a document over one with a certain etag; SourceChanged if another one is there that differs from it."""
    try:
        return put_over(place, *checked_body(data, integrity), replaces)
    except SourceChanged:
        info = place.head_or_none()
        with suppress(SourceChanged, NotFound):
            if info and info.nbytes == len(data) and place.store.read(place.key, ByteRange(0, len(data))) == data:
                return info
        raise


def put_record(place: Location, record: RunRecord, replaces: str) -> ObjectInfo:
    """Write a record over one with a certain etag; SourceChanged if another one is there."""
    return put_document_over(place, encode_record(record), Integrity.AUTO, replaces)


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
