"""Counts what a store is asked to do: for figures on the screen, benchmarks and tests."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..tensor import ByteRange
from .copying import not_copied
from .protocol import Body, ObjectInfo, PartCopier, ReadStore, Stoppable, Store, StoreLimits, Upload, identity_of
from .stopping import ShouldStop, never


@dataclass(frozen=True, slots=True)
class Figures:
    """What a store was asked to do so far.

    Parameters
    ----------
    requests
        Calls by kind: ``head list get put create part copy complete abort delete uploads``. A
        listing counts once however many pages it has; a call that had to be tried again counts once.
    read_bytes, written_bytes, copied_bytes
        Of calls that succeeded. What the store copied by itself was neither read nor written.
    """

    requests: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    written_bytes: int = 0
    copied_bytes: int = 0

    @property
    def request_count(self) -> int:
        """Calls of all kinds."""
        return self.requests.total()


class RecordingReadStore:
    """A store for reading that counts; otherwise the one it wraps.

    Parameters
    ----------
    store
        The store that does the work.

    Examples
    --------
    >>> from reshard.storage.memory import MemoryStore
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
        """The store that does the work."""
        return self._inner

    @property
    def should_stop(self) -> ShouldStop:
        """The wrapped store's, if it has one."""
        return self._inner.should_stop if isinstance(self._inner, Stoppable) else never

    @should_stop.setter
    def should_stop(self, should_stop: ShouldStop) -> None:
        if isinstance(self._inner, Stoppable):
            self._inner.should_stop = should_stop

    @property
    def url(self) -> str:
        """The wrapped store's."""
        return self._inner.url

    @property
    def identity(self) -> str:
        """The wrapped store's."""
        return identity_of(self._inner)

    def head(self, key: str) -> ObjectInfo:
        """Count and pass on."""
        self._asked("head")
        return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Count and pass on."""
        self._asked("list")
        yield from self._inner.list(prefix)

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        """Count and pass on."""
        self._asked("get")
        body = self._inner.read(key, span, etag)
        self._moved(read_bytes=len(body))
        return body

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        """Count and pass on."""
        self._asked("get")
        self._inner.read_into(key, span, target, etag)
        self._moved(read_bytes=span.nbytes)

    def _asked(self, kind: str) -> None:
        with self._lock:
            self._figures.requests[kind] += 1

    def _moved(self, *, read_bytes: int = 0, written_bytes: int = 0, copied_bytes: int = 0) -> None:
        with self._lock:
            now = self._figures
            self._figures = replace(
                now,
                read_bytes=now.read_bytes + read_bytes,
                written_bytes=now.written_bytes + written_bytes,
                copied_bytes=now.copied_bytes + copied_bytes,
            )


class RecordingStore(RecordingReadStore):
    """A store for reading and writing that counts; otherwise the one it wraps.

    It copies parts from wherever the wrapped store does, and from nowhere if that one cannot.

    Parameters
    ----------
    store
        The store that does the work.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._writable = store

    @property
    def limits(self) -> StoreLimits:
        """The wrapped store's."""
        return self._writable.limits

    def put(self, key: str, body: Body) -> ObjectInfo:
        """Count and pass on."""
        self._asked("put")
        info = self._writable.put(key, body)
        self._moved(written_bytes=memoryview(body).nbytes)
        return info

    def delete(self, key: str) -> None:
        """Count and pass on."""
        self._asked("delete")
        self._writable.delete(key)

    def create_upload(self, key: str) -> Upload:
        """Count and pass on."""
        self._asked("create")
        return self._writable.create_upload(key)

    def upload_part(self, upload: Upload, number: int, offset: int, body: Body) -> str:
        """Count and pass on."""
        self._asked("part")
        etag = self._writable.upload_part(upload, number, offset, body)
        self._moved(written_bytes=memoryview(body).nbytes)
        return etag

    def copies_from(self, source: ReadStore) -> bool:
        """What the wrapped store says; no, if it cannot copy."""
        return isinstance(self._writable, PartCopier) and self._writable.copies_from(source)

    def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        source: ReadStore,
        key: str,
        span: ByteRange,
        etag: str | None = None,
    ) -> str:
        """Count and pass on."""
        if not isinstance(self._writable, PartCopier):
            raise not_copied(self, source)
        self._asked("copy")
        part = self._writable.copy_part(upload, number, offset, source, key, span, etag)
        self._moved(copied_bytes=span.nbytes)
        return part

    def complete_upload(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> ObjectInfo:
        """Count and pass on."""
        self._asked("complete")
        return self._writable.complete_upload(upload, parts)

    def abort_upload(self, upload: Upload) -> None:
        """Count and pass on."""
        self._asked("abort")
        self._writable.abort_upload(upload)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        """Count and pass on."""
        self._asked("uploads")
        return self._writable.open_uploads(prefix)


def recording(store: ReadStore) -> RecordingReadStore:
    """Wrap a store in whichever of the two classes it can serve."""
    return RecordingStore(store) if isinstance(store, Store) else RecordingReadStore(store)
