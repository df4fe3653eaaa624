"""A store that counts what it is asked to do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reshard.storage import Body, Checksum, ObjectInfo, PartInfo, ReadStore, ShouldStop, Store, StoreLimits, Upload
from reshard.tensor import ByteRange


@dataclass(frozen=True, slots=True)
class Figures:
    """What a store was asked to do so far.

    Parameters
    ----------
    requests
        Calls by kind: ``head list get put create part copy parts complete abort delete uploads``. A listing
        counts once however many pages it has; a call that had to be tried again counts once.
    read_bytes, written_bytes, copied_bytes
        Of calls that succeeded. Bytes that the store copied were neither read nor written.
    """

    requests: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    written_bytes: int = 0
    copied_bytes: int = 0

    @property
    def request_count(self) -> int:
        """Calls of all kinds."""
        return self.requests.total()


class RecordingReadStore(ReadStore):
    """A store for reading that counts and delegates.

    Examples
    --------
    >>> from reshard.storage import MemoryStore
    >>> store = RecordingStore(MemoryStore())
    >>> _ = store.put("a", b"hello")
    >>> store.read("a", ByteRange(0, 2))
    b'he'
    >>> figures = store.figures
    >>> dict(figures.requests), figures.read_bytes, figures.written_bytes
    ({'put': 1, 'get': 1}, 2, 5)
    """

    def __init__(self, store: ReadStore) -> None:
        self._inner = store
        self._lock = threading.Lock()
        self._figures = Figures()

    @property
    def figures(self) -> Figures:
        """A snapshot; later calls do not change it."""
        with self._lock:
            return replace(self._figures, requests=Counter(self._figures.requests))

    @property
    def wrapped(self) -> ReadStore:
        return self._inner

    @property
    def should_stop(self) -> ShouldStop:
        return self._inner.should_stop

    @should_stop.setter
    def should_stop(self, should_stop: ShouldStop) -> None:
        self._inner.should_stop = should_stop

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def identity(self) -> str:
        return self._inner.identity

    @property
    def provider(self) -> str:
        return self._inner.provider

    @property
    def may_keep_checksums(self) -> bool:
        return self._inner.may_keep_checksums

    def head(self, key: str) -> ObjectInfo:
        self._count("head")
        return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._count("list")
        yield from self._inner.list(prefix)

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        self._count("get")
        body = self._inner.read(key, span, etag)
        self._add(read_bytes=len(body))
        return body

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        self._count("get")
        self._inner.read_into(key, span, target, etag)
        self._add(read_bytes=span.nbytes)

    def _count(self, kind: str) -> None:
        with self._lock:
            self._figures.requests[kind] += 1

    def _add(self, *, read_bytes: int = 0, written_bytes: int = 0, copied_bytes: int = 0) -> None:
        with self._lock:
            now = self._figures
            self._figures = replace(
                now,
                read_bytes=now.read_bytes + read_bytes,
                written_bytes=now.written_bytes + written_bytes,
                copied_bytes=now.copied_bytes + copied_bytes,
            )


class RecordingStore(RecordingReadStore, Store):
    """A store for reading and writing that counts and delegates."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._writable = store

    @property
    def limits(self) -> StoreLimits:
        return self._writable.limits

    def put(self, key: str, body: Body, checksum: Checksum | None = None, replaces: str | None = None) -> ObjectInfo:
        self._count("put")
        info = self._writable.put(key, body, checksum, replaces)
        self._add(written_bytes=memoryview(body).nbytes)
        return info

    def delete(self, key: str) -> None:
        self._count("delete")
        self._writable.delete(key)

    def create_upload(self, key: str, *, is_checked: bool = False) -> Upload:
        self._count("create")
        return self._writable.create_upload(key, is_checked=is_checked)

    def upload_part(
        self, upload: Upload, number: int, offset: int, body: Body, checksum: Checksum | None = None
    ) -> PartInfo:
        self._count("part")
        part = self._writable.upload_part(upload, number, offset, body, checksum)
        self._add(written_bytes=memoryview(body).nbytes)
        return part

    def copies_from(self, source: ReadStore) -> bool:
        return self._writable.copies_from(source)

    def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        source: ReadStore,
        key: str,
        span: ByteRange,
        etag: str | None = None,
    ) -> PartInfo:
        self._count("copy")
        part = self._writable.copy_part(upload, number, offset, source, key, span, etag)
        self._add(copied_bytes=span.nbytes)
        return part

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        self._count("parts")
        return self._writable.list_parts(upload)

    def complete_upload(
        self, upload: Upload, parts: Sequence[tuple[int, str]], crcs: Mapping[int, tuple[int, int]] | None = None
    ) -> ObjectInfo:
        self._count("complete")
        return self._writable.complete_upload(upload, parts, crcs)

    def abort_upload(self, upload: Upload) -> None:
        self._count("abort")
        self._writable.abort_upload(upload)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        self._count("uploads")
        return self._writable.open_uploads(prefix)


def recording(store: ReadStore) -> RecordingReadStore:
    """Wrap a store in whichever of the two classes it can serve."""
    return RecordingStore(store) if isinstance(store, Store) else RecordingReadStore(store)
