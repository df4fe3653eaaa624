"""Objects in this process's memory: for tests, examples and dry runs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import NotFound, StorageError, Unsupported
from ..tensor import ByteRange
from .protocol import Body, Checksum, ObjectInfo, PartInfo, ReadStore, Store, StoreLimits, Upload, unwrapped
from .range_checks import (
    SEND_INSTEAD,
    beyond_end,
    cannot_copy,
    check_buffer,
    check_copied_span,
    check_etag,
    check_replaced,
)
from .stopping import ShouldStop, check, never


@dataclass(slots=True)
class _Pending:
    key: str
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class _Space:
    """Everything that stores of one name share."""

    limits: StoreLimits = field(default_factory=StoreLimits)
    objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, _Pending] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_spaces: dict[str, _Space] = {}
_spaces_lock = threading.Lock()
_numbers = itertools.count(1)


def open_store(url: str) -> MemoryStore:
    """Open the store that a ``memory://`` URL names."""
    return MemoryStore(url.removeprefix("memory://"))


class MemoryStore(Store):
    """A store whose objects live as long as this process.

    Stores of one name hold the same objects, so ``memory://name/key`` means the same everywhere in
    a process. Without a name it is a store of its own. All of one name insist on the same part sizes, those of S3
    unless ``limits`` are given.

    Examples
    --------
    >>> MemoryStore("shared").put("a/b", b"hello").nbytes
    5
    >>> MemoryStore("shared").read("a/b", ByteRange(1, 3))
    b'el'
    >>> MemoryStore("shared").clear()
    """

    provider = "memory"

    def __init__(self, name: str = "", *, limits: StoreLimits | None = None) -> None:
        self._name = name or f"private-{next(_numbers)}"
        with _spaces_lock:
            self._space = _spaces.setdefault(self._name, _Space())
        if limits is not None:
            self._space.limits = limits
        self.should_stop: ShouldStop = never

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    @property
    def limits(self) -> StoreLimits:
        return self._space.limits

    def clear(self) -> None:
        """Forget every object and upload under this name."""
        with self._space.lock:
            self._space.objects.clear()
            self._space.uploads.clear()

    def head(self, key: str) -> ObjectInfo:
        etag, body = self._object(key)
        return ObjectInfo(key, len(body), etag)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._space.lock:
            found = sorted((key, value) for key, value in self._space.objects.items() if key.startswith(prefix))
        for key, (etag, body) in found:
            yield ObjectInfo(key, len(body), etag)

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        check_buffer(span, target)
        check(self.should_stop)
        if span.nbytes:
            found, body = self._object(key)
            check_etag(f"{self.url}/{key}", etag, found)
            if span.stop > len(body):
                raise beyond_end(f"{self.url}/{key}", span, len(body))
            target[:] = memoryview(body)[span.start : span.stop]

    def put(
        self,
        key: str,
        body: Body,
        checksum: Checksum | None = None,  # noqa: ARG002
        replaces: str | None = None,
    ) -> ObjectInfo:
        check(self.should_stop)
        return self._store(key, bytes(body), replaces)

    def delete(self, key: str) -> None:
        with self._space.lock:
            self._space.objects.pop(key, None)

    def create_upload(self, key: str, *, is_checked: bool = False) -> Upload:  # noqa: ARG002
        upload = Upload(key, f"upload-{next(_numbers)}")
        with self._space.lock:
            self._space.uploads[upload.upload_id] = _Pending(key)
        return upload

    def upload_part(
        self,
        upload: Upload,
        number: int,
        offset: int,  # noqa: ARG002
        body: Body,
        checksum: Checksum | None = None,  # noqa: ARG002
    ) -> PartInfo:
        return self._keep(upload, number, bytes(body))

    def copies_from(self, source: ReadStore) -> bool:
        """Whether ``source`` is in this process's memory too."""
        return self.limits.can_copy and isinstance(unwrapped(source), MemoryStore)

    def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,  # noqa: ARG002
        source: ReadStore,
        key: str,
        span: ByteRange,
        etag: str | None = None,
    ) -> PartInfo:
        peer = unwrapped(source)
        if not self.copies_from(peer):
            raise cannot_copy(self, source)
        check_copied_span(span)
        body = peer.read(key, span, etag)
        if peer.head(key).nbytes < self.limits.min_copy_source_bytes:
            raise Unsupported(
                f"{peer.url}/{key} is shorter than {self.limits.min_copy_source_bytes} bytes: no range of it can be "
                "copied.",
                hint=SEND_INSTEAD,
            )
        return replace(self._keep(upload, number, body), proof="copy")

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        with self._space.lock:
            parts = sorted(self._pending(upload).parts.items())
        return [PartInfo(number, etag, len(body)) for number, (etag, body) in parts]

    def complete_upload(
        self,
        upload: Upload,
        parts: Sequence[tuple[int, str]],
        crcs: Mapping[int, tuple[int, int]] | None = None,  # noqa: ARG002
    ) -> ObjectInfo:
        url, numbers = f"{self.url}/{upload.key}", [number for number, _ in parts]
        with self._space.lock:
            held = dict(self._pending(upload).parts)
        if not parts or numbers != sorted(set(numbers)):
            raise StorageError(f"{url}: parts must be at least one, each once and ascending.")
        lost = [str(number) for number, etag in parts if held.get(number, ("", b""))[0] != etag]
        if lost:
            raise StorageError(f"{url}: parts {', '.join(lost)} are not the ones uploaded.")
        bodies = [held[number][1] for number in numbers]
        if any(len(body) < self.limits.min_part_bytes for body in bodies[:-1]):
            raise StorageError(f"{url}: a part other than the last is below {self.limits.min_part_bytes} bytes.")
        info = self._store(upload.key, b"".join(bodies))
        self.abort_upload(upload)
        return info

    def abort_upload(self, upload: Upload) -> None:
        with self._space.lock:
            self._space.uploads.pop(upload.upload_id, None)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        with self._space.lock:
            pending = [Upload(value.key, upload_id) for upload_id, value in self._space.uploads.items()]
        return [upload for upload in pending if upload.key.startswith(prefix)]

    def _object(self, key: str) -> tuple[str, bytes]:
        with self._space.lock:
            if key not in self._space.objects:
                raise NotFound(f"{self.url}/{key} does not exist.")
            return self._space.objects[key]

    def _store(self, key: str, body: bytes, replaces: str | None = None) -> ObjectInfo:
        etag = f"{next(_numbers):08x}"
        with self._space.lock:
            found = self._space.objects.get(key, ("", b""))[0]
            check_replaced(f"{self.url}/{key}", replaces, found)
            self._space.objects[key] = (etag, body)
        return ObjectInfo(key, len(body), etag, proof="local")

    def _keep(self, upload: Upload, number: int, body: bytes) -> PartInfo:
        check(self.should_stop)
        if not 1 <= number <= self.limits.max_part_count:
            raise StorageError(
                f"{self.url}/{upload.key}: part number {number} is not in 1..{self.limits.max_part_count}."
            )
        etag = f"{next(_numbers):08x}"
        with self._space.lock:
            self._pending(upload).parts[number] = (etag, body)
        return PartInfo(number, etag, len(body), proof="local")

    def _pending(self, upload: Upload) -> _Pending:
        """Return an open upload; the lock is held."""
        pending = self._space.uploads.get(upload.upload_id)
        if pending is None or pending.key != upload.key:
            raise NotFound(f"{self.url}/{upload.key}: its upload {upload.upload_id} is not open any more.")
        return pending
