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
    ``max_object_bytes`` all parts together. ``can_copy`` is whether the service is believed to make
    parts of bytes it holds (:class:`PartCopier`), and ``min_copy_source_bytes`` the length that an
    object must have at least for a range of it to be copied.
    """

    min_part_bytes: int = 5 << 20
    max_part_bytes: int = 5 << 30
    max_part_count: int = 10_000
    max_put_bytes: int = 5 << 30
    max_object_bytes: int = 5 << 40
    min_copy_source_bytes: int = (5 << 20) + 1
    can_copy: bool = True


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
class Wrapper(Protocol):
    """A store that lets another do the work."""

    @property
    def wrapped(self) -> ReadStore:
        """The other one."""
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


@runtime_checkable
class PartCopier(Protocol):
    """A store that can make a part of bytes that it, or a store of the same service, holds already.

    Nothing passes through the client. That the class has the methods does not say that the service
    has the operation: be ready for Unsupported, and send the bytes instead.

    Examples
    --------
    >>> from reshard.storage.memory import MemoryStore
    >>> store, source = MemoryStore(limits=StoreLimits(min_copy_source_bytes=1)), MemoryStore()
    >>> _ = source.put("a", b"0123456789")
    >>> isinstance(store, PartCopier) and store.copies_from(source)
    True
    >>> upload = store.create_upload("b")
    >>> part = store.copy_part(upload, 1, 0, source, "a", ByteRange(2, 5))
    >>> _ = store.complete_upload(upload, [(1, part)])
    >>> store.read("b", ByteRange(0, 3))
    b'234'
    """

    def copies_from(self, source: ReadStore) -> bool:
        """Whether :meth:`copy_part` may be asked to copy from ``source``; asks no service anything."""
        ...

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
        """Make one part of the bytes ``span`` of the object ``key`` in ``source``; return the part's etag.

        Parameters
        ----------
        number, offset
            As in :meth:`Store.upload_part`; copied and sent parts may be mixed in one upload.
        source
            One that :meth:`copies_from` says yes to.
        span
            Not empty, and wholly inside an object of at least ``limits.min_copy_source_bytes``.
        etag
            If given, raise SourceChanged when the object has another. Some services ignore it:
            who must be sure looks at the source again afterwards.

        Returns
        -------
        str
            What :meth:`Store.complete_upload` wants to know of the part.

        Raises
        ------
        NotFound
            There is no such object.
        SourceChanged
            It is not the one with ``etag``.
        Unsupported
            The service cannot copy ranges, or not from ``source``.
        StorageError
            The object ends before ``span.stop``. Some services notice nothing and make a shorter
            part: the length that completing the upload returns tells.
        Transient
            The tries ran out.
        """
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


def unwrapped(store: ReadStore) -> ReadStore:
    """Return the store that does the work for another, however many are in between.

    Examples
    --------
    >>> from reshard.storage.memory import MemoryStore
    >>> from reshard.storage.recording import recording
    >>> store = MemoryStore()
    >>> unwrapped(recording(recording(store))) is store, unwrapped(store) is store
    (True, True)
    """
    while isinstance(store, Wrapper):
        store = store.wrapped
    return store
