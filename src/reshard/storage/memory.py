"""Objects in this process's memory: for tests, examples and dry runs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import NotFound, StorageError
from ..tensor import ByteRange
from .copying import checked_span, not_copied, too_short
from .protocol import Body, ObjectInfo, ReadStore, StoreLimits, Upload, unwrapped
from .reading import beyond_end, checked_target, expect_etag
from .stopping import ShouldStop, check, never


@dataclass(slots=True)
class _Pending:
    key: str
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class _Space:
    """What all stores of one name share."""

    name: str
    limits: StoreLimits = field(default_factory=StoreLimits)
    objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, _Pending] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"memory://{self.name}"

    def object(self, key: str) -> tuple[str, bytes]:
        """Etag and body of one object."""
        with self.lock:
            if key not in self.objects:
                raise NotFound(f"{self.url}/{key} does not exist.")
            return self.objects[key]


_spaces: dict[str, _Space] = {}
_spaces_lock = threading.Lock()
_numbers = itertools.count(1)


def _space(name: str) -> _Space:
    with _spaces_lock:
        return _spaces.setdefault(name, _Space(name))


def _space_at(url: str) -> _Space:
    return _space(url.removeprefix("memory://"))


class MemoryStore:
    """A store whose objects live as long as this process; see :class:`reshard.storage.protocol.Store`.

    Stores of one name hold the same objects, so ``memory://name/key`` means the same everywhere in
    a process. Without a name it is a store of its own.

    Parameters
    ----------
    name
        What stands after ``memory://``.
    limits
        Part sizes to insist on, for every store of this name.

    Examples
    --------
    >>> MemoryStore("shared").put("a/b", b"hello").nbytes
    5
    >>> MemoryStore("shared").read("a/b", ByteRange(1, 3))
    b'el'
    >>> MemoryStore("shared").clear()
    """

    def __init__(self, name: str = "", *, limits: StoreLimits | None = None) -> None:
        self._space = _space(name or f"private-{next(_numbers)}")
        if limits is not None:
            self._space.limits = limits
        self.should_stop: ShouldStop = never

    @property
    def url(self) -> str:
        """``memory://name``."""
        return self._space.url

    @property
    def identity(self) -> str:
        """The URL: stores of one name are one."""
        return self.url

    @property
    def limits(self) -> StoreLimits:
        """Those given when a store of this name was made, else the ones of S3."""
        return self._space.limits

    def clear(self) -> None:
        """Forget every object and upload under this name."""
        with self._space.lock:
            self._space.objects.clear()
            self._space.uploads.clear()

    def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        etag, body = self._space.object(key)
        return ObjectInfo(key, len(body), etag)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with ``prefix``, in key order."""
        with self._space.lock:
            found = sorted((key, value) for key, value in self._space.objects.items() if key.startswith(prefix))
        for key, (etag, body) in found:
            yield ObjectInfo(key, len(body), etag)

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        """Return the bytes of a small range."""
        buffer = bytearray(span.nbytes)
        self.read_into(key, span, memoryview(buffer), etag)
        return bytes(buffer)

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        """Fill ``target`` with the bytes ``span`` of an object."""
        checked_target(span, target)
        check(self.should_stop)
        if span.nbytes:
            found, body = self._space.object(key)
            expect_etag(self._name(key), etag, found)
            if span.stop > len(body):
                raise beyond_end(self._name(key), span, len(body))
            target[:] = memoryview(body)[span.start : span.stop]

    def put(self, key: str, body: Body) -> ObjectInfo:
        """Store one object, replacing any other."""
        check(self.should_stop)
        return self._store(key, bytes(body))

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._space.lock:
            self._space.objects.pop(key, None)

    def create_upload(self, key: str) -> Upload:
        """Open a multipart upload."""
        upload = Upload(key, f"upload-{next(_numbers)}")
        with self._space.lock:
            self._space.uploads[upload.upload_id] = _Pending(key)
        return upload

    def upload_part(self, upload: Upload, number: int, offset: int, body: Body) -> str:  # noqa: ARG002
        """Keep one part."""
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
    ) -> str:
        """Keep one part of the bytes of an object; see :class:`.protocol.PartCopier`."""
        peer = unwrapped(source)
        if not (isinstance(peer, MemoryStore) and self.copies_from(peer)):
            raise not_copied(self, source)
        name, (found, body) = f"{peer.url}/{key}", _space_at(peer.url).object(key)
        expect_etag(name, etag, found)
        if checked_span(span).stop > len(body):
            raise beyond_end(name, span, len(body))
        if len(body) < self.limits.min_copy_source_bytes:
            raise too_short(name, self.limits.min_copy_source_bytes)
        return self._keep(upload, number, body[span.start : span.stop])

    def complete_upload(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> ObjectInfo:
        """Join the parts; the object becomes visible."""
        bodies = self._chosen(upload, parts)
        if any(len(body) < self.limits.min_part_bytes for body in bodies[:-1]):
            raise StorageError(
                f"{self._name(upload.key)}: a part that is not the last is below {self.limits.min_part_bytes} bytes."
            )
        info = self._store(upload.key, b"".join(bodies))
        self.abort_upload(upload)
        return info

    def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its parts."""
        with self._space.lock:
            self._space.uploads.pop(upload.upload_id, None)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        """List unfinished uploads by key prefix."""
        with self._space.lock:
            pending = [Upload(value.key, upload_id) for upload_id, value in self._space.uploads.items()]
        return [upload for upload in pending if upload.key.startswith(prefix)]

    def _name(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _store(self, key: str, body: bytes) -> ObjectInfo:
        etag = f"{next(_numbers):08x}"
        with self._space.lock:
            self._space.objects[key] = (etag, body)
        return ObjectInfo(key, len(body), etag)

    def _keep(self, upload: Upload, number: int, body: bytes) -> str:
        check(self.should_stop)
        if not 1 <= number <= self.limits.max_part_count:
            raise StorageError(
                f"{self._name(upload.key)}: part number {number} is not in 1..{self.limits.max_part_count}."
            )
        etag = f"{next(_numbers):08x}"
        self._pending(upload).parts[number] = (etag, body)
        return etag

    def _pending(self, upload: Upload) -> _Pending:
        with self._space.lock:
            pending = self._space.uploads.get(upload.upload_id)
        if pending is None or pending.key != upload.key:
            raise NotFound(f"{self._name(upload.key)}: its upload {upload.upload_id} is not open (any more).")
        return pending

    def _chosen(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> tuple[bytes, ...]:
        held = self._pending(upload).parts
        numbers = [number for number, _ in parts]
        if not parts or numbers != sorted(set(numbers)):
            raise StorageError(f"{self._name(upload.key)}: parts must be at least one, each once and ascending.")
        lost = [str(number) for number, etag in parts if held.get(number, ("", b""))[0] != etag]
        if lost:
            raise StorageError(f"{self._name(upload.key)}: parts {', '.join(lost)} are not the ones uploaded.")
        return tuple(held[number][1] for number in numbers)
