"""A store that fails when told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import Transient
from reshard.storage import Body, Checksum, ObjectInfo, PartInfo, ReadStore, ShouldStop, Store, StoreLimits, Upload
from reshard.tensor import ByteRange


@dataclass(frozen=True)
class Fault:
    """What goes wrong: the ``call``-th call of ``verb`` (a method's name), counted from 1.

    ``error`` is raised, or called with no argument if it is a function (to block, say). With ``after``
    the work is done first, as when an answer is lost. A faulty ``read_into`` fills half its buffer.
    """

    verb: str
    call: int = 1
    error: BaseException | Callable[[], object] = field(default_factory=lambda: Transient("made up"))
    after: bool = False


class FaultyStore:
    """Passes everything on to ``store`` but for the faults.

    ``calls`` counts calls by verb; ``log`` lists ``(verb, key)`` in order.
    """

    def __init__(self, store: Store, *faults: Fault) -> None:
        self.inner = store
        self.faults = list(faults)
        self.calls: Counter[str] = Counter()
        self.log: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    @property
    def wrapped(self) -> ReadStore:
        return self.inner

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def identity(self) -> str:
        return self.inner.identity

    @property
    def provider(self) -> str:
        return self.inner.provider

    @property
    def may_keep_checksums(self) -> bool:
        return self.inner.may_keep_checksums

    @property
    def limits(self) -> StoreLimits:
        return self.inner.limits

    @property
    def should_stop(self) -> ShouldStop:
        return self.inner.should_stop

    @should_stop.setter
    def should_stop(self, should_stop: ShouldStop) -> None:
        self.inner.should_stop = should_stop

    def head(self, key: str) -> ObjectInfo:
        return self._do("head", key, lambda: self.inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._do("list", prefix, lambda: [*self.inner.list(prefix)])

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        return self._do("read", key, lambda: self.inner.read(key, span, etag))

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        def cut() -> None:
            half = span.nbytes // 2
            self.inner.read_into(key, ByteRange(span.start, span.start + half), target[:half], etag)

        self._do("read_into", key, lambda: self.inner.read_into(key, span, target, etag), before_fault=cut)

    def put(self, key: str, body: Body, checksum: Checksum | None = None, replaces: str | None = None) -> ObjectInfo:
        return self._do("put", key, lambda: self.inner.put(key, body, checksum, replaces))

    def delete(self, key: str) -> None:
        self._do("delete", key, lambda: self.inner.delete(key))

    def create_upload(self, key: str, *, is_checked: bool = False) -> Upload:
        return self._do("create_upload", key, lambda: self.inner.create_upload(key, is_checked=is_checked))

    def upload_part(
        self, upload: Upload, number: int, offset: int, body: Body, checksum: Checksum | None = None
    ) -> PartInfo:
        send = self.inner.upload_part
        return self._do("upload_part", upload.key, lambda: send(upload, number, offset, body, checksum))

    def copies_from(self, source: ReadStore) -> bool:
        return self.inner.copies_from(source)

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
        copy = self.inner.copy_part
        return self._do("copy_part", upload.key, lambda: copy(upload, number, offset, source, key, span, etag))

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        return self._do("list_parts", upload.key, lambda: self.inner.list_parts(upload))

    def complete_upload(
        self, upload: Upload, parts: Sequence[tuple[int, str]], crcs: Mapping[int, tuple[int, int]] | None = None
    ) -> ObjectInfo:
        return self._do("complete_upload", upload.key, lambda: self.inner.complete_upload(upload, parts, crcs))

    def abort_upload(self, upload: Upload) -> None:
        self._do("abort_upload", upload.key, lambda: self.inner.abort_upload(upload))

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        return self._do("open_uploads", prefix, lambda: self.inner.open_uploads(prefix))

    def _do(self, verb, key, action, before_fault=lambda: None):
        fault = self._next_fault(verb, key)
        if fault is None:
            return action()
        if fault.after:
            action()
        else:
            before_fault()
        if isinstance(fault.error, BaseException):
            raise fault.error
        fault.error()
        return action()

    def _next_fault(self, verb: str, key: str) -> Fault | None:
        with self._lock:
            self.calls[verb] += 1
            self.log.append((verb, key))
            return next((each for each in self.faults if (each.verb, each.call) == (verb, self.calls[verb])), None)
