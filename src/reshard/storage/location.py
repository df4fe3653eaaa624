"""Places in stores: one object, or all objects below a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import FormatError, NotFound, Unsupported, UsageError
from ..tensor import ByteRange
from .protocol import ObjectInfo, ReadStore, Store

_MAX_DOCUMENT_BYTES = 64 << 20
_LOCAL = "file://"


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a store.

    ``key`` is the name of the object, or the prefix, without slashes at the ends; empty for the whole store.

    Examples
    --------
    >>> from reshard.storage import open_location
    >>> place = open_location("memory://lab/models/llama/")
    >>> place.key, place.prefix, place.child("rank_0/a.safetensors").url
    ('models/llama', 'models/llama/', 'memory://lab/models/llama/rank_0/a.safetensors')
    """

    store: ReadStore
    key: str

    @property
    def url(self) -> str:
        """The URL that opens this place again."""
        return f"{self.store.url}/{self.key}" if self.key else self.store.url

    @property
    def identity(self) -> str:
        """Equal for two URLs of one place; for comparing, not for opening.

        A place is below another if its identity begins with the other's and a slash.

        Examples
        --------
        >>> from reshard.storage import open_location
        >>> open_location("memory://lab/a//b/").identity == open_location("memory://lab").child("a/b").identity
        True
        """
        root = self.store.identity
        return f"{root}/{self.key}" if self.key else root

    def shares_store(self, other: Location) -> bool:
        """Whether two places are in one bucket of one service, on one host, or both on this machine.

        Examples
        --------
        >>> from reshard.storage import open_location
        >>> here = open_location("memory://lab/a")
        >>> here.shares_store(open_location("memory://lab/b")), here.shares_store(open_location("memory://other/b"))
        (True, False)
        >>> open_location("/data/a").shares_store(open_location("/mnt/b"))
        True
        """
        are_local = self.store.url.startswith(_LOCAL) and other.store.url.startswith(_LOCAL)
        return are_local or self.store.identity == other.store.identity

    @property
    def prefix(self) -> str:
        """The prefix of all keys below this place."""
        return f"{self.key}/" if self.key else ""

    @property
    def parent(self) -> Location:
        """The place one level up; the whole store is its own parent."""
        return Location(self.store, self.key.rpartition("/")[0])

    def child(self, name: str) -> Location:
        """Return the place ``name`` below this one; raise UsageError if the name has a ``..`` segment."""
        return Location(self.store, normal_key(f"{self.key}/{name}"))

    def head_or_none(self) -> ObjectInfo | None:
        """Describe the object here, or return None if there is none."""
        try:
            return self.store.head(self.key)
        except NotFound:
            return None

    def objects(self) -> Iterator[ObjectInfo]:
        """Yield every object below this place, in key order."""
        return self.store.list(self.prefix)

    def named_objects(self) -> Iterator[tuple[str, ObjectInfo]]:
        """Yield every object below this place with its name relative to here, in key order."""
        for info in self.objects():
            yield info.key.removeprefix(self.prefix), info

    def writable_store(self) -> Store:
        """Return the store as one that can be written to; raise Unsupported if it is read-only."""
        if not isinstance(self.store, Store):
            raise Unsupported(
                f"{self.url}: this store is read-only.", hint="Write to s3://, obs:// or a local path instead."
            )
        return self.store


def read_object(location: Location, max_nbytes: int = _MAX_DOCUMENT_BYTES) -> bytes:
    """Read one small object whole; FormatError if it is too long to be a document."""
    info = location.store.head(location.key)
    if info.nbytes > max_nbytes:
        raise FormatError(
            "too long for a document", where=location.url, expected=f"<= {max_nbytes} bytes", found=str(info.nbytes)
        )
    return location.store.read(info.key, ByteRange(0, info.nbytes), info.etag) if info.nbytes else b""


def normal_key(text: str) -> str:
    """Bring a key as a user writes it into the one form that cannot climb out of its root.

    Slashes at both ends, doubled slashes and ``.`` segments are dropped; a ``..`` segment or a NUL character is a
    UsageError.

    Examples
    --------
    >>> normal_key("/models//llama/./v1/")
    'models/llama/v1'
    >>> normal_key("a/../../etc")
    Traceback (most recent call last):
    ...
    reshard.errors.UsageError: 'a/../../etc' is not a key: it has a '..' segment.
    Name objects below their root without '..'.
    """
    segments = [segment for segment in text.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise UsageError(
            f"{text!r} is not a key: it has a '..' segment.", hint="Name objects below their root without '..'."
        )
    if "\0" in text:
        raise UsageError(f"{text!r} is not a key: it has a NUL character.")
    return "/".join(segments)
