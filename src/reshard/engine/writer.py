"""Parts on their way into a store: sent or copied one by one, by whoever has the plan and the upload ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import Interrupted, StorageError, Unsupported
from ..planning.plan import Plan
from ..planning.steps.steps import CopiedPart, StreamedPart
from ..storage import Location, ObjectInfo, ShouldStop, Upload, never
from ..tensor import ByteRange
from .digest import crc32c
from .locations import Locations


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """One part that a store has taken.

    The etag is the object's if it was PUT whole, and ``crc32c`` is None where the store copied the part.
    """

    key: str
    number: int
    etag: str
    nbytes: int
    crc32c: int | None


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
    ``held`` by the store are not sent again, by key and number. ``should_stop``
    answers yes once the run is being undone; a writer in another process does not know.
    """

    def __init__(
        self,
        plan: Plan,
        uploads: Mapping[str, Upload | None],
        locations: Locations,
        should_stop: ShouldStop = never,
        held: Mapping[tuple[str, int], PartReceipt] | None = None,
    ) -> None:
        self._plan = plan
        self._uploads = uploads
        self._locations = locations
        self._held = held or {}
        self._store = locations.target.writable_store()
        self._should_stop = should_stop

    def __reduce__(self) -> tuple[object, ...]:
        return PartWriter, (self._plan, self._uploads, self._locations, never, self._held)

    def keys(self, output: int) -> Sequence[str]:
        """Return those of an output's keys that are written."""
        return [key for key in self._plan.outputs[output].keys if key in self._uploads]

    def stream(self, key: str, part: StreamedPart, data: memoryview, _scratch: memoryview) -> PartReceipt:
        """Send one part, or PUT the object; StorageError if the store fails, or takes another number of bytes."""
        if (held := self._held.get((key, part.number))) is not None:
            return held
        crc, upload = crc32c(data), self._uploads[key]
        if upload is not None:
            etag = self._store.upload_part(upload, part.number, part.range.start, data)
            return PartReceipt(key, part.number, etag, len(data), crc)
        place = self._locations.target.child(key)
        info = self._store.put(place.key, data)
        if self._should_stop():  # whoever undoes the run may have looked before the object was there
            self._store.delete(place.key)
            raise Interrupted("stopped")
        check_length(place, len(data), info)
        return PartReceipt(key, part.number, info.etag, info.nbytes, crc)

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
        return PartReceipt(key, number, made, span.nbytes, None)


def check_length(place: Location, nbytes: int, info: ObjectInfo) -> None:
    """Raise StorageError unless an object has the planned length."""
    if info.nbytes != nbytes:
        raise StorageError(
            f"{place.url}: expected {nbytes} bytes in the store, found {info.nbytes}",
            hint="The store lost or changed bytes; convert again.",
        )
