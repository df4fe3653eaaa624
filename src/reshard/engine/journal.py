"""The journal of a run: what the store has taken, so that another run can go on where this one ended.

It lies beside the run's record, in objects that are written every second or so: an append-only log on stores that
cannot append. What was sent since the last of them is asked of the store itself.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import FormatError, NotFound
from ..formats.strict_json import parse_json_object
from ..planning.codec import decode
from ..planning.limits import Integrity, Limits
from ..storage import PROOFS, Location, Proof, read_object
from .manifest import ObjectReceipt
from .writer import PartReceipt, checked_body

_FORMAT = "reshard-journal/1"
_EVERY_S = 1.0
_NAME = re.compile(r"[0-9a-f]{16}\.[0-9]{6,}\.json")
_MAX_ENTRIES = 5_000  # of one object, so that a long outage makes several


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the parts of a run follow from, besides the conversion: with it the same plan can be made again."""

    plan_id: str
    limits: Limits
    copy_bases: tuple[int, ...]


@dataclass(slots=True)
class Progressed:
    """What runs have left so far: their plan, open uploads, parts and complete objects, and what was there before.

    Keys in ``anew`` were begun with one plan and went on with another: their uploads are of no use.
    """

    beginning: Beginning | None = None
    before: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[int, PartReceipt]] = field(default_factory=dict)
    objects: dict[str, ObjectReceipt] = field(default_factory=dict)
    anew: set[str] = field(default_factory=set)


class Journal:
    """The journal of one run. Any thread may note; who leads the run has it written."""

    def __init__(self, record_place: Location, run_id: str) -> None:
        self._place = record_place
        self._store = record_place.writable_store()
        self._run_id = run_id
        self._lock = threading.Lock()
        self._entries: list[list[Any]] = []
        self._keys: list[str] = []
        self._count = 0
        self._last_s = time.monotonic()
        self._is_removed = False

    def begin(self, progressed: Progressed) -> None:
        """Write down where this run begins: what earlier ones have left, too."""
        begun = progressed.beginning
        assert begun is not None
        with self._lock:
            self._entries = [
                ["begin", begun.plan_id, asdict(begun.limits), list(begun.copy_bases)],
                *(["before", key, etag] for key, etag in progressed.before.items()),
                *(["upload", key, upload_id] for key, upload_id in progressed.uploads.items()),
                *(_part(receipt) for parts in progressed.parts.values() for receipt in parts.values()),
                *(_object(receipt) for receipt in progressed.objects.values()),
            ]
        self.write()

    def upload(self, key: str, upload_id: str) -> None:
        """Note an open upload."""
        self._note(["upload", key, upload_id])

    def part(self, receipt: PartReceipt) -> None:
        """Note a part that the store has taken."""
        self._note(_part(receipt))

    def object(self, receipt: ObjectReceipt) -> None:
        """Note an object that is complete."""
        self._note(_object(receipt))

    def anew(self, key: str) -> None:
        """Note that the parts of an object so far are of no use."""
        self._note(["anew", key])

    def _note(self, entry: list[Any]) -> None:
        with self._lock:
            self._entries.append(entry)

    @property
    def is_due(self) -> bool:
        """Whether it is time to write."""
        return bool(self._entries) and time.monotonic() - self._last_s > _EVERY_S

    def write(self) -> None:
        """Write what was noted since the last time."""
        while True:
            with self._lock:
                entries, self._entries = self._entries[:_MAX_ENTRIES], self._entries[_MAX_ENTRIES:]
                self._last_s = time.monotonic()
                if not entries or self._is_removed:
                    return
                key = journal_key(self._place.key, self._run_id, self._count)
                self._keys.append(key)
                self._count += 1
            data = json.dumps({"format": _FORMAT, "entries": entries}, separators=(",", ":")).encode()
            self._store.put(key, *checked_body(data, Integrity.AUTO))
            if self._is_removed:  # whoever removes it may have done so before the object was there
                self._store.delete(key)

    def remove(self, *, only_own: bool = False) -> None:
        """Remove the journal of this run, and those of all others at this target unless ``only_own``."""
        with self._lock:
            self._is_removed = True
        for key in self._keys if only_own else journal_keys(self._place):
            self._store.delete(key)


def journal_key(record_key: str, run_id: str, number: int) -> str:
    """Return the key of one object of a journal.

    Examples
    --------
    >>> journal_key("to/reshard-run.json", "0123456789abcdef", 3)
    'to/reshard-run.0123456789abcdef.000003.json'
    """
    return f"{record_key.removesuffix('.json')}.{run_id}.{number:06d}.json"


def journal_keys(record_place: Location, run_id: str = "") -> list[str]:
    """Return the keys of the journals of a target, or of one run, in the order in which they were written."""
    start = f"{record_place.key.removesuffix('.json')}."
    keys = (info.key for info in record_place.store.list(start + run_id))
    return [key for key in keys if _NAME.fullmatch(key.removeprefix(start))]


def has_journal(record_place: Location, run_id: str) -> bool:
    """Whether a run has written down where it begins, and so has taken over what there was to take over."""
    return Location(record_place.store, journal_key(record_place.key, run_id, 0)).head_or_none() is not None


def last_begun(record_place: Location, runs: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Return the first of some runs that has begun, and its conversion; both are empty if none has."""
    return next((each for each in runs if has_journal(record_place, each[0])), ("", ""))


def read_journal(record_place: Location, run_id: str) -> Progressed:
    """Read what a run has left; an object that cannot be read ends it there."""
    found = Progressed()
    for key in journal_keys(record_place, run_id):
        place = Location(record_place.store, key)
        try:
            body = parse_json_object(read_object(place), place.url)
            if body.get("format") != _FORMAT:
                break
            entries: Any = body["entries"]
            for name, *values in entries:
                _READERS[name](found, *values)
        except (FormatError, NotFound, LookupError, TypeError, ValueError, AttributeError):
            break
    return found


def _part(receipt: PartReceipt) -> list[Any]:
    return ["part", receipt.key, receipt.number, receipt.etag, receipt.nbytes, receipt.crc32c, receipt.proof]


def _object(receipt: ObjectReceipt) -> list[Any]:
    return ["object", receipt.key, receipt.nbytes, receipt.etag, receipt.crc32c, receipt.proof]


def _read_begin(found: Progressed, plan_id: str, limits: Any, copy_bases: list[int]) -> None:
    if not isinstance(plan_id, str) or not all(type(base) is int for base in copy_bases):
        raise ValueError("no beginning")
    found.beginning = Beginning(plan_id, decode(Limits, limits), tuple(copy_bases))


def _read_upload(found: Progressed, key: str, upload_id: str) -> None:
    _check_texts(key, upload_id)
    found.uploads[key] = upload_id
    found.anew.discard(key)


def _proof_of(text: Any) -> Proof:
    return PROOFS[PROOFS.index(text)]


def _read_part(found: Progressed, key: str, number: int, etag: str, nbytes: int, *rest: Any) -> None:
    crc, proof = rest
    _check_texts(key, etag)
    found.parts.setdefault(key, {})[int(number)] = PartReceipt(
        key, int(number), etag, int(nbytes), crc, _proof_of(proof)
    )


def _read_object(found: Progressed, key: str, nbytes: int, etag: str, crc: int | None, proof: Proof) -> None:
    _check_texts(key, etag)
    found.objects[key] = ObjectReceipt(key, int(nbytes), etag, crc, _proof_of(proof))


def _read_anew(found: Progressed, key: str) -> None:
    _check_texts(key)
    found.parts.pop(key, None)
    found.anew.add(key)


def _read_before(found: Progressed, key: str, etag: str) -> None:
    _check_texts(key, etag)
    found.before[key] = etag


def _check_texts(*values: object) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ValueError("expected text")


_READERS: Mapping[str, Callable[..., None]] = {
    "begin": _read_begin,
    "before": _read_before,
    "upload": _read_upload,
    "part": _read_part,
    "object": _read_object,
    "anew": _read_anew,
}
