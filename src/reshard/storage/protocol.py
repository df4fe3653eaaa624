"""What the rest of the package may ask of an object store: one small protocol, synchronous and thread-safe.

Stopping: a store that is also :class:`Stoppable` asks ``should_stop`` between blocks of a read or
of a part, and while it waits to try again, and raises Interrupted as soon as the answer is yes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..tensor import ByteRange
from .stopping import ShouldStop

__all__ = [
    "Body",
    "Identified",
    "ObjectInfo",
    "ReadStore",
    "Stoppable",
    "Store",
    "StoreLimits",
    "Upload",
    "identity_of",
]

Body = bytes | bytearray | memoryview
"""Bytes to send; a memoryview is contiguous and of format ``B``."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object.

    Parameters
    ----------
    key
        Its full key within the store.
    nbytes
        Its length.
    etag
        Changes whenever the content does; opaque, never compared to a digest.
    """

    key: str
    nbytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What one upload to a store may look like; sizes in bytes.

    ``min_part_bytes`` binds every part but the last, ``max_put_bytes`` a single PUT,
    ``max_object_bytes`` all parts together.
    """

    min_part_bytes: int = 5 << 20
    max_part_bytes: int = 5 << 30
    max_part_count: int = 10_000
    max_put_bytes: int = 5 << 30
    max_object_bytes: int = 5 << 40


@dataclass(frozen=True, slots=True)
class Upload:
    """An open multipart upload; its object is invisible until the upload is completed."""

    key: str
    upload_id: str


@runtime_checkable
class Stoppable(Protocol):
    """A store whose transfers can be broken off from another thread.

    ``should_stop`` may be set at any time, is called often and from many threads, and must keep
    answering yes once it has.

    Examples
    --------
    >>> import threading
    >>> from reshard.storage.memory import MemoryStore
    >>> stop, store = threading.Event(), MemoryStore()
    >>> if isinstance(store, Stoppable):
    ...     store.should_stop = stop.is_set
    """

    should_stop: ShouldStop


@runtime_checkable
class Identified(Protocol):
    """A store that several URLs may lead to, and that can tell that they do."""

    @property
    def identity(self) -> str:
        """Equal for two stores that keep their objects in one place; for comparing, not for opening."""
        ...


@runtime_checkable
class ReadStore(Protocol):
    """What reading needs. Every method may be called from any thread.

    Errors are those of :mod:`reshard.errors`: NotFound, Denied, SourceChanged, Transient (only
    after this store's own retries ran out), Unsupported, StorageError.
    """

    @property
    def url(self) -> str:
        """The root that keys count from, without a slash at the end (``s3://bucket``)."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Describe one object; NotFound when there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with ``prefix``, in key order."""
        ...

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        """Return the bytes of a small range; see :meth:`read_into`."""
        ...

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        """Fill ``target`` with the bytes ``span`` of an object.

        Parameters
        ----------
        span
            Wholly inside the object; an empty span asks the store nothing.
        target
            Writable, contiguous, format ``B``, exactly ``span.nbytes`` long.
        etag
            If given, raise SourceChanged unless the object still has it.

        Raises
        ------
        SourceChanged
            Also when the object changes between two requests of this one read.
        StorageError
            The object ends before ``span.stop``.
        """
        ...


@runtime_checkable
class Store(ReadStore, Protocol):
    """What writing needs besides reading. Nothing becomes visible half-written."""

    @property
    def limits(self) -> StoreLimits:
        """Part and object sizes this store accepts."""
        ...

    def put(self, key: str, body: Body) -> ObjectInfo:
        """Store one object in one request, replacing any other."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        ...

    def create_upload(self, key: str) -> Upload:
        """Open a multipart upload."""
        ...

    def upload_part(self, upload: Upload, number: int, offset: int, body: Body) -> str:
        """Send one part and return its etag; the same number again replaces the part.

        Parameters
        ----------
        number
            From 1; parts are joined by ascending number.
        offset
            Where the part begins in the finished object, in bytes: a store that can write in
            place uses it, others only count on it being right.
        """
        ...

    def complete_upload(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> ObjectInfo:
        """Join the parts ``(number, etag)``, ascending and at least one; the object becomes visible.

        The returned length is the one the store tells, so that a caller can compare it.
        """
        ...

    def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its parts; no error when it is gone already."""
        ...

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        """List uploads that are neither completed nor aborted, by key prefix."""
        ...


def identity_of(store: ReadStore) -> str:
    """Return what tells a store from others: its own answer, or else its URL.

    Examples
    --------
    >>> from reshard.storage.memory import MemoryStore
    >>> identity_of(MemoryStore("lab"))
    'memory://lab'
    """
    return store.identity if isinstance(store, Identified) else store.url
