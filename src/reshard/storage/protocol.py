"""The small protocol between object stores and the rest of the package: synchronous and thread-safe.

A store that can only be read is a :class:`ReadStore`, any other one a :class:`Store`. Stores of this
package derive from them; wrappers and test doubles only have their methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from ..tensor import ByteRange
from .stopping import ShouldStop

Body = bytes | bytearray | memoryview
"""Bytes to send; a memoryview is contiguous and of format ``B``."""


Proof = Literal["", "md5", "crc32c", "copy", "local"]
"""What proves that a store has the bytes it was sent, the weakest first.

An MD5 or a CRC-32C that the store checked; ``copy`` where the store made them of bytes that it holds; ``local`` where
no network lies between. Nothing, if they were sent unproven."""

PROOFS: tuple[Proof, ...] = ("", "md5", "crc32c", "copy", "local")


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32C of a body that is sent, for the store to check; ``may_hash`` allows an MD5 where it checks no CRC."""

    crc32c: int
    may_hash: bool = True


@dataclass(frozen=True, slots=True)
class KeptChecksum:
    """A checksum of all bytes of an object that its store keeps."""

    algorithm: Literal["crc32c", "crc64nvme", "crc32"]
    value: int

    def __str__(self) -> str:
        return f"{self.algorithm} {self.value:0{16 if self.algorithm == 'crc64nvme' else 8}x}"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object; its etag changes whenever the content does.

    ``checksum`` is known where the store keeps one and tells it; ``proof`` is that of the request that wrote it.
    ``age_s`` is how long ago it was written, by the store's own clock, where a HEAD tells.
    """

    key: str
    nbytes: int
    etag: str
    checksum: KeptChecksum | None = field(default=None, compare=False)
    proof: Proof = field(default="", compare=False)
    age_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One part of an open upload, as the store has it; ``number`` and ``etag`` complete the upload.

    ``crc32c`` is what the store confirmed, or computed of a part that it copied.
    """

    number: int
    etag: str
    nbytes: int
    crc32c: int | None = field(default=None, compare=False)
    proof: Proof = field(default="", compare=False)


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

    @property
    def may_keep_checksums(self) -> bool:
        """Whether :meth:`head` may tell the checksum of an object; sends no request."""
        return False

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
    >>> _ = store.complete_upload(upload, [(1, part.etag)])
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
    ) -> PartInfo:
        """Make one part from the bytes ``span`` of the object ``key`` in ``source``.

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

    def put(self, key: str, body: Body, checksum: Checksum | None = None, replaces: str | None = None) -> ObjectInfo:
        """Store one object in one request, replacing any other.

        The length returned is the one that the store reports, unless it has checked the ``checksum``. With
        ``replaces``, the object there must have that etag, or be absent if it is empty: raise SourceChanged if the
        store finds that it is not so. Many services do not look; a caller that must know asks afterwards.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        ...

    def create_upload(self, key: str, *, is_checked: bool = False) -> Upload:
        """Open a multipart upload; all of its parts are sent with a checksum, or none is."""
        ...

    def upload_part(
        self, upload: Upload, number: int, offset: int, body: Body, checksum: Checksum | None = None
    ) -> PartInfo:
        """Send one part; the same number again replaces the part.

        Parameters
        ----------
        number
            From 1; parts are joined by ascending number.
        offset
            Where the part begins in the finished object, in bytes. A store that writes in place
            uses it; others rely on the caller.
        checksum
            For the store to check; what it did is the ``proof`` of the part. A body that fails the check is sent again.
        """
        ...

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        """List the parts of an open upload by ascending number, whichever process made them.

        A number that was sent several times is left out if the store does not show which part is the last. Raise
        NotFound if the upload is completed or aborted.
        """
        ...

    def complete_upload(
        self, upload: Upload, parts: Sequence[tuple[int, str]], crcs: Mapping[int, tuple[int, int]] | None = None
    ) -> ObjectInfo:
        """Join the parts ``(number, etag)``, ascending and at least one; the object becomes visible.

        The length returned is the one that the store reports, so that a caller can compare it. ``crcs`` are CRC-32C and
        length of parts, by number: those of checked ones. If all are known, a store that keeps the checksum of the
        whole checks theirs joined.
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
