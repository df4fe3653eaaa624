"""The small protocol between object stores and the rest of the package: synchronous and thread-safe.

A store that can only be read is a :class:`ReadStore`, any other one a :class:`Store`. Stores of this
package derive from them; wrappers and test doubles only have their methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ..tensor import ByteRange
from .stopping import ShouldStop

Body = bytes | bytearray | memoryview
"""Bytes to send; a memoryview is contiguous and of format ``B``."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object; its etag changes whenever the content does, and is never compared to a digest.

    ``age_s`` is how long ago it was written, by the store's own clock, where a HEAD tells.
    """

    key: str
    nbytes: int
    etag: str
    age_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One part of an open upload, as the store has it; ``number`` and ``etag`` complete the upload."""

    number: int
    etag: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds on one upload; sizes in bytes.

    ``min_part_bytes`` binds every part but the last, ``max_put_bytes`` a single PUT, ``max_object_bytes``
    all parts together. ``can_copy`` is False for a service that is known not to copy ranges
    (:class:`PartCopier`); ``min_copy_source_bytes`` is the length of the shortest object that it copies
    ranges of.
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
    """An open multipart upload; its object is invisible until the upload is completed.

    It holds no connection: any process that opens the store can continue it.
    """

    key: str
    upload_id: str


@runtime_checkable
class ReadStore(Protocol):
    """A store that can be read. Every method may be called from any thread.

    :func:`reshard.storage.open_store` opens an equal store from :attr:`url`, in any process with the same
    environment: that is how a store travels to another process.

    Errors are those of :mod:`reshard.errors`: NotFound, Denied, SourceChanged, Transient (only after this
    store's own retries ran out), Unsupported, StorageError; Interrupted once :attr:`should_stop` says so.
    """

    should_stop: ShouldStop
    """Asked between blocks of a transfer and between tries, often and from many threads; may be set at any
    time. Once it answers yes it must keep doing so."""

    @property
    def url(self) -> str:
        """The root that keys count from, without a trailing slash and without a password (``s3://bucket``)."""
        ...

    @property
    def identity(self) -> str:
        """Equal for two stores that keep their objects in one place; for comparing, not for opening."""
        return self.url

    @property
    def provider(self) -> str:
        """Name of the service, for price tables; sends no request."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Describe one object; raise NotFound if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with ``prefix``, in key order."""
        ...

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        """Return the bytes of a small range; see :meth:`read_into`."""
        buffer = bytearray(span.nbytes)
        self.read_into(key, span, memoryview(buffer), etag)
        return bytes(buffer)

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        """Fill ``target`` with the bytes ``span`` of an object.

        Parameters
        ----------
        span
            Inside the object; an empty span sends no request.
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
class PartCopier(Protocol):
    """A store that makes a part from bytes that it, or another store of its service, holds already.

    Nothing passes through the client. A store that never copies answers no and raises Unsupported; even
    one that says yes may do so, if its service turns out not to have the operation.

    Examples
    --------
    >>> from reshard.storage import MemoryStore
    >>> store, source = MemoryStore(limits=StoreLimits(min_copy_source_bytes=1)), MemoryStore()
    >>> _ = source.put("a", b"0123456789")
    >>> store.copies_from(source)
    True
    >>> upload = store.create_upload("b")
    >>> part = store.copy_part(upload, 1, 0, source, "a", ByteRange(2, 5))
    >>> _ = store.complete_upload(upload, [(1, part)])
    >>> store.read("b", ByteRange(0, 3))
    b'234'
    """

    def copies_from(self, source: ReadStore) -> bool:
        """Whether :meth:`copy_part` may be asked to copy from ``source``; sends no request."""
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
        """Make one part from the bytes ``span`` of the object ``key`` in ``source``; return the part's etag.

        Parameters
        ----------
        number, offset
            As in :meth:`Store.upload_part`; copied and uploaded parts may be mixed in one upload.
        span
            Not empty, inside an object of at least ``limits.min_copy_source_bytes``.
        etag
            If given, raise SourceChanged when the object has another. Some services ignore it:
            a caller that must be sure checks the source again afterwards.

        Raises
        ------
        NotFound
            There is no such object.
        SourceChanged
            The object does not have ``etag``.
        Unsupported
            The service does not copy ranges, or not from ``source``.
        StorageError
            The object ends before ``span.stop``. Some services notice nothing and make a shorter
            part: the length that completing the upload returns shows it.
        """
        ...


@runtime_checkable
class Store(ReadStore, PartCopier, Protocol):
    """A store that can also be written to. Nothing becomes visible half-written."""

    @property
    def limits(self) -> StoreLimits:
        """Part and object sizes that this store accepts."""
        ...

    def put(self, key: str, body: Body) -> ObjectInfo:
        """Store one object in one request, replacing any other."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
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
            Where the part begins in the finished object, in bytes. A store that writes in place
            uses it; others rely on the caller.
        """
        ...

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        """List the parts of an open upload by ascending number, whichever process made them.

        A number that was sent several times is left out if the store does not show which part is the last. Raise
        NotFound if the upload is completed or aborted.
        """
        ...

    def complete_upload(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> ObjectInfo:
        """Join the parts ``(number, etag)``, ascending and at least one; the object becomes visible.

        The length returned is the one that the store reports, so that a caller can compare it.
        """
        ...

    def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its parts; no error if it is gone already."""
        ...

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        """List uploads that are neither completed nor aborted, by key prefix."""
        ...


@runtime_checkable
class Wrapper(Protocol):
    """A store that delegates to another."""

    @property
    def wrapped(self) -> ReadStore:
        """The other store."""
        ...


def unwrapped(store: ReadStore) -> ReadStore:
    """Return the store that does the work, below any number of wrappers."""
    while isinstance(store, Wrapper):
        store = store.wrapped
    return store
