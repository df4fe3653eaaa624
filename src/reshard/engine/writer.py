"""Parts on their way into a store: sent or copied one by one, by whoever has the plan and the upload ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import StorageError, Unsupported, option
from ..planning.limits import Integrity
from ..planning.plan import Plan
from ..planning.steps.steps import CopiedPart, StreamedPart
from ..storage import PROOFS, Body, Checksum, Location, ObjectInfo, Proof, Upload
from ..storage.checksums import crc_of
from ..tensor import ByteRange
from .locations import Locations

Put = Callable[[str, Body, Checksum | None], ObjectInfo]
"""Stores an object by its key at the target, and checks its length."""

_SMALL_BYTES = 1 << 20
"""Bodies whose MD5 costs nothing to speak of."""


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """One part that a store has taken.

    The etag is the object's if it was PUT whole. ``crc32c`` is None where the store copied the part and does not tell;
    ``proof`` is what shows that it has these bytes.
    """

    key: str
    number: int
    etag: str
    nbytes: int
    crc32c: int | None
    proof: Proof = ""


@dataclass(frozen=True, slots=True)
class CopyRefusal:
    """One part that the store would not copy."""

    key: str
    number: int
    nbytes: int
    message: str
    problems: tuple[str, ...] = ()


class PartWriter:
    """A sink that writes parts to the target's store. It needs nothing else of the run, so it can be in any process.

    ``uploads`` has each key to write with its open upload, or with None if the object is PUT whole. Parts that are
    ``held`` by the store are not sent again, by key and number. Objects are PUT by ``put`` where it is given, as they
    become visible; a writer in another process sends them as they are.
    """

    def __init__(
        self,
        plan: Plan,
        uploads: Mapping[str, Upload | None],
        locations: Locations,
        put: Put | None = None,
        held: Mapping[tuple[str, int], PartReceipt] | None = None,
    ) -> None:
        self._plan = plan
        self._uploads = uploads
        self._locations = locations
        self._held = held or {}
        self._store = locations.target.writable_store()
        self._put = put or self._put_plainly

    def __reduce__(self) -> tuple[object, ...]:
        return PartWriter, (self._plan, self._uploads, self._locations, None, self._held)

    def keys(self, output: int) -> Sequence[str]:
        """Return those of an output's keys that are written."""
        return [key for key in self._plan.outputs[output].keys if key in self._uploads]

    def stream(self, key: str, part: StreamedPart, data: memoryview, _scratch: memoryview) -> PartReceipt:
        """Send one part, or PUT the object; StorageError if the store fails, or takes another number of bytes."""
        if (held := self._held.get((key, part.number))) is not None:
            return held
        crc, upload, place = crc_of(data), self._uploads[key], self._locations.target.child(key)
        integrity = self._plan.limits.integrity
        checksum = checksum_to_send(crc, len(data), integrity)
        if upload is not None:
            made = self._store.upload_part(upload, part.number, part.range.start, data, checksum)
            check_proof(place, made.proof, integrity)
            return PartReceipt(key, part.number, made.etag, len(data), crc, made.proof)
        info = self._put(key, data, checksum)
        check_proof(place, info.proof, integrity)
        return PartReceipt(key, part.number, info.etag, info.nbytes, crc, info.proof)

    def _put_plainly(self, key: str, data: Body, checksum: Checksum | None) -> ObjectInfo:
        place = self._locations.target.child(key)
        info = self._store.put(place.key, data, checksum)
        check_length(place, len(data), info)
        return info

    def copy(self, key: str, part: CopiedPart) -> PartReceipt | CopyRefusal:
        """Have the store copy one part from the source."""
        if (held := self._held.get((key, part.number))) is not None:
            return held
        item = self._plan.catalog.objects[part.object]
        place = self._locations.source(item)
        return self.copy_range(key, part.number, part.range.start, place, part.source_range, item.etag)

    def copy_range(
        self, key: str, number: int, offset: int, place: Location, span: ByteRange, etag: str
    ) -> PartReceipt | CopyRefusal:
        """Have the store copy the bytes ``span`` of an object, to become one part that begins at ``offset``."""
        upload = self._uploads[key]
        assert upload is not None
        try:
            made = self._store.copy_part(upload, number, offset, place.store, place.key, span, etag)
        except Unsupported as error:
            return CopyRefusal(key, number, span.nbytes, error.marked_message, error.marked_problems)
        return PartReceipt(key, number, made.etag, span.nbytes, made.crc32c, made.proof)


def checksum_to_send(crc: int, nbytes: int, integrity: Integrity) -> Checksum | None:
    """Return the checksum that a store shall check of a body, by its CRC-32C and length."""
    if integrity is Integrity.OFF:
        return None
    return Checksum(crc, may_hash=integrity is not Integrity.FAST or nbytes <= _SMALL_BYTES)


def checked_body(data: Body, integrity: Integrity) -> tuple[Body, Checksum | None]:
    """Return a small body with the checksum that a store shall check, as arguments of a request that sends it."""
    return data, checksum_to_send(crc_of(data), len(data), integrity)


def check_proof(place: Location, proof: Proof, integrity: Integrity) -> None:
    """Raise Unsupported if nothing proves that a store has received what it was sent, and something must."""
    if integrity is Integrity.STRICT and not proof:
        raise Unsupported(
            f"{place.url}: the store checks neither a CRC-32C nor an MD5 of what it receives, and "
            f"{option('integrity', 'strict')} is given",
            hint=f"Give {option('integrity', 'auto')}, and compare afterwards with reshard verify.",
        )


def weakest(receipts: Iterable[PartReceipt]) -> Proof:
    """Return what proves every part of an object."""
    return min((receipt.proof for receipt in receipts), key=PROOFS.index)


def check_length(place: Location, nbytes: int, info: ObjectInfo) -> None:
    """Raise StorageError unless an object has the planned length."""
    if info.nbytes != nbytes:
        raise StorageError(
            f"{place.url}: expected {nbytes} bytes in the store, found {info.nbytes}",
            hint="The store lost or changed bytes; convert again.",
        )
