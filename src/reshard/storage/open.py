"""From a URL to a store and a key: the scheme chooses the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Unsupported, UsageError
from .keys import join_key, normal_key
from .local import LocalStore
from .memory import MemoryStore
from .protocol import ObjectInfo, ReadStore, Store, identity_of

if TYPE_CHECKING:
    from .s3 import S3Store

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]*)://(?P<rest>.*)", re.DOTALL)
_ONE_SLASH = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")  # of two letters at least: C:/ is a drive
_WRITABLE = ("file", "memory", "s3", "obs")
_SHARED: ContextVar[dict[tuple[str, str], S3Store] | None] = ContextVar("_SHARED", default=None)


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a store: one object, or all objects below a prefix.

    Parameters
    ----------
    store
        Where it is; of a target, a store that can be written to.
    key
        Its name there, without slashes at the ends; empty for the whole store.

    Examples
    --------
    >>> place = open_location("memory://lab/models/llama/")
    >>> place.key, place.prefix, place.child("rank_0/a.safetensors").url
    ('models/llama', 'models/llama/', 'memory://lab/models/llama/rank_0/a.safetensors')
    """

    store: ReadStore
    key: str

    @property
    def url(self) -> str:
        """What would open this place again."""
        return f"{self.store.url}/{self.key}" if self.key else self.store.url

    @property
    def identity(self) -> str:
        """Equal for two URLs of one place; for comparing, not for opening.

        A place lies below another if its identity begins with the other's and a slash.

        Examples
        --------
        >>> open_location("memory://lab/a//b/").identity == open_location("memory://lab").child("a/b").identity
        True
        """
        root = identity_of(self.store)
        return f"{root}/{self.key}" if self.key else root

    @property
    def prefix(self) -> str:
        """What the keys below this place begin with."""
        return f"{self.key}/" if self.key else ""

    def child(self, name: str) -> Location:
        """Return the place ``name`` below this one.

        Raises
        ------
        UsageError
            The name has a ``..`` segment.
        """
        return Location(self.store, join_key(self.key, name))

    @property
    def parent(self) -> Location:
        """The place one level up; the whole store is its own parent."""
        return Location(self.store, self.key.rpartition("/")[0])

    def objects(self) -> Iterator[ObjectInfo]:
        """Yield every object below this place, in key order."""
        return self.store.list(self.prefix)

    def named_objects(self) -> Iterator[tuple[str, ObjectInfo]]:
        """Yield every object below this place with its name counted from here, in key order."""
        for info in self.objects():
            yield info.key.removeprefix(self.prefix), info


@contextmanager
def shared_connections() -> Iterator[None]:
    """For the length of a block, or of a call of what this decorates, open each bucket's connections once."""
    outer = _SHARED.get()
    token = _SHARED.set({} if outer is None else outer)
    try:
        yield
    finally:
        _SHARED.reset(token)


def open_location(url: str) -> Location:
    """Open a place, without asking the store anything yet.

    Parameters
    ----------
    url
        ``s3://bucket/key``, ``obs://bucket/key``, ``memory://name/key``, ``file:///path``, a plain
        path, or any URL that fsspec reads.

    Raises
    ------
    UsageError
        The URL is malformed (one slash after its scheme, say), its scheme not known, or the
        settings for it incomplete.
    Unsupported
        A chain of fsspec URLs.
    """
    match = _SCHEME.fullmatch(url)
    if match is None:
        _expect_two_slashes(url)
        return _local(url)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        return _local(_file_path(rest))
    host, _, key = rest.partition("/")
    if not host:
        raise UsageError(f"{url} names no place.", hint=f"Write {scheme}://name/key.")
    if scheme == "memory":
        return Location(MemoryStore(host), normal_key(key))
    if scheme in ("s3", "obs"):
        return Location(_bucket(scheme, host), normal_key(key))
    return Location(_foreign(f"{scheme}://{host}"), normal_key(_no_query(scheme, key)))


def open_source(url: str) -> Location:
    """Open a place to read from; see :func:`open_location`."""
    return open_location(url)


def open_target(url: str) -> Location:
    """Open a place to write to; see :func:`open_location`.

    Raises
    ------
    Unsupported
        The store can only be read.
    UsageError
        As for :func:`open_location`.

    Examples
    --------
    >>> open_target("memory://lab/out").url
    'memory://lab/out'
    """
    match = _SCHEME.fullmatch(url)
    if match and match["scheme"].lower() not in _WRITABLE:
        raise Unsupported(
            f"{match['scheme']}:// URLs can be read at most, not written.",
            hint="Write to s3://bucket/key, obs://bucket/key or a local path.",
        )
    return open_location(url)


def open_target_object(url: str) -> tuple[Location, str]:
    """Open the place above an object to be written; see :func:`open_target`.

    Returns
    -------
    place, name
        ``place.child(name)`` is the object.

    Raises
    ------
    Unsupported
        The store can only be read.
    UsageError
        The URL names a whole store or a folder, or as for :func:`open_location`.

    Examples
    --------
    >>> place, name = open_target_object("memory://lab/out/model.safetensors")
    >>> place.url, name
    ('memory://lab/out', 'model.safetensors')
    """
    place = open_target(url)
    above = place.parent
    name = place.key.removeprefix(above.prefix)
    if not name:
        raise UsageError(
            f"{url} names no object that could be written: it is a whole store.",
            hint="Write the object's name behind it: s3://bucket/model.safetensors, or folder/model.safetensors.",
        )
    if url.endswith(("/", "/.", "/..")) or url in (".", ".."):
        raise UsageError(
            f"{url} names a folder, not an object that could be written.", hint="Write the object's name behind it."
        )
    return above, name


def _expect_two_slashes(path: str) -> None:
    match = _ONE_SLASH.match(path)
    if match:
        # The rest is not shown: of a signed URL it holds a secret.
        scheme = match["scheme"]
        raise UsageError(
            f"{scheme}:/... is not a URL: a URL has two slashes after its scheme.",
            hint=f"Write {'file:///' if scheme.lower() == 'file' else f'{scheme}://'}..., "
            f"or ./{scheme}:/... for a folder of that name.",
        )


def _local(path: str) -> Location:
    if not path or "\0" in path:
        raise UsageError("An empty path names nothing.", hint="Write '.' for the current folder.")
    full = Path(path).expanduser().absolute()
    if full.is_dir():
        full = full.resolve()  # what is written below a linked folder belongs where the link points; a linked
        # object keeps its own name, for in a model cache it points to one that has no meaning
    # Counted from its parent, a path may be an object, a prefix, or not there yet.
    return Location(LocalStore(full.parent), full.name)


def _file_path(rest: str) -> str:
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise UsageError(f"file://{rest} has no absolute path.", hint="Write three slashes: file:///path.")
    return path


def _bucket(scheme: str, bucket: str) -> Store:
    from .s3 import S3Store  # boto3 takes a while to import, and only here is it needed

    shared = _SHARED.get()
    if shared is None:
        return S3Store.find(scheme, bucket)
    if (scheme, bucket) not in shared:
        shared[scheme, bucket] = S3Store.find(scheme, bucket)
    return shared[scheme, bucket].again()


def _foreign(root: str) -> ReadStore:
    from .fsspec_store import FsspecStore

    return FsspecStore(root)


def _no_query(scheme: str, key: str) -> str:
    if scheme in ("http", "https") and ("?" in key or "#" in key):
        raise UsageError(
            f"A {scheme}:// URL with a query cannot be used: a signed URL names one object for a short time only.",
            hint="Use the store's own scheme and credentials: s3://, obs://, gs:// ...",
        )
    return key
