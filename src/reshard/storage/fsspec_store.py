"""Any other fsspec URL (http, gs, az, hf, sftp ...), for reading only.

fsspec has neither conditional reads nor uploads by parts. So each read is followed by a look at the
object: the bytes belong to the object that is there afterwards, or the read fails.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec.core
from botocore.exceptions import BotoCoreError, ClientError

from ..errors import Denied, NotFound, ReshardError, StorageError, Transient, Unsupported, UsageError
from ..tensor import ByteRange
from .availability import Availability
from .checksums import read_until_equal
from .connections import current_policy, report_outages, shared
from .protocol import ObjectInfo, ReadStore
from .range_checks import beyond_end, check_buffer, check_etag
from .retry import Retries, RetryPolicy, retrying
from .s3_errors import RequestLabel, explain
from .stopping import ShouldStop, never

T = TypeVar("T")

_BLOCK_BYTES = 8 << 20

_DIGESTS = ("ETag", "etag", "checksum", "md5Hash", "blob_id", "generation")
_TIMES = ("Content-MD5", "Digest", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created")
"""The fields by which fsspec's file systems show that content changed: surely, and to the clock's tick."""


def open_store(url: str) -> FsspecStore:
    """Open the root of an fsspec URL."""
    return FsspecStore(url, policy=current_policy(), availability=shared(("availability", url), Availability))


class FsspecStore(ReadStore):
    """Objects below one fsspec URL.

    A password in the URL ``root`` is not shown, and not part of :attr:`url`: another process that opens the URL
    needs other credentials. ``options`` are passed to the file system.

    Examples
    --------
    >>> FsspecStore("https://models.example").url
    'https://models.example'
    """

    def __init__(
        self,
        root: str,
        options: Mapping[str, Any] | None = None,
        *,
        policy: RetryPolicy | None = None,
        availability: Availability | None = None,
    ) -> None:
        self.should_stop: ShouldStop = never
        self._shown = _without_password(root)
        self._policy = policy or RetryPolicy()
        self._availability = availability or Availability()
        self._fs, path = _file_system(root, self._shown, dict(options or {}))
        self._root = path.rstrip("/")

    @property
    def url(self) -> str:
        return self._shown

    @property
    def provider(self) -> str:
        """The scheme; fsspec names no service."""
        return f"{self._shown.partition('://')[0]}://"

    def head(self, key: str) -> ObjectInfo:
        return self._try("find", key, lambda: self._info(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        found = self._try("list", prefix, lambda: self._found(folder))
        for key in sorted(key for key in found if key.startswith(prefix)):
            # A listing may have fewer fields than a look at the object, or other ones, and then etags would differ.
            is_enough = any(found[key].get(name) for name in _DIGESTS) and found[key].get("size") is not None
            yield _object(key, found[key]) if is_enough else self.head(key)

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        check_buffer(span, target)
        pinned = etag
        for start in range(span.start, span.stop, _BLOCK_BYTES):
            block = ByteRange(start, min(start + _BLOCK_BYTES, span.stop))
            body = self._block(key, block)
            found = self.head(key)
            check_etag(self._name(key), pinned, found.etag)
            if len(body) != block.nbytes:
                raise beyond_end(self._name(key), span, found.nbytes)
            target[start - span.start : block.stop - span.start] = body
            pinned = found.etag

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        """Return the bytes of a small range once they came twice: nothing else proves them."""
        buffer = bytearray(span.nbytes)
        fetch = partial(self.read_into, key, span, memoryview(buffer), etag)
        fetch()
        read_until_equal(memoryview(buffer), fetch, self._name(key))
        return bytes(buffer)

    def _name(self, key: str) -> str:
        return f"{self._shown}/{key}"

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        self._fs.invalidate_cache(path)  # a listing in memory would hide a change
        info = self._fs.info(path)
        if info.get("type") == "directory":
            raise NotFound(f"{self._name(key)} is a directory, not an object.")
        return _object(key, info)

    def _block(self, key: str, block: ByteRange) -> bytes:
        path = self._path(key)
        try:
            body: bytes = self._try("read", key, lambda: self._fs.cat_file(path, start=block.start, end=block.stop))
            return body
        except (NotFound, Denied, Transient):
            raise
        except StorageError:
            if block.stop > self.head(key).nbytes:
                return b""  # some file systems raise, some return what there is
            raise

    def _found(self, folder: str) -> dict[str, Mapping[str, Any]]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._path(folder).rstrip("/") or "/", detail=True)
        except FileNotFoundError:  # an object store has no empty folders either
            return {}
        skipped = len(self._root.rstrip("/")) + 1
        return {path[skipped:]: info for path, info in found.items()}

    def _try(self, doing: str, key: str, action: Callable[[], T]) -> T:
        label = RequestLabel(doing, self._name(key), "fsspec")

        def attempt() -> T:
            try:
                return action()
            except ReshardError:
                raise
            except Exception as error:
                raise _explained(error, label) from error

        return retrying(attempt, Retries(self._policy, self._availability, self.should_stop, report_outages))


def _object(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    size = info.get("size")
    if size is None:
        raise Unsupported(f"{key}: the server does not report its length.", hint="Ranges of it cannot be read.")
    if not isinstance(size, int) or size < 0:
        raise StorageError(f"{key}: the server reports a length that is none.")
    etag = next((str(info[name]) for name in _DIGESTS + _TIMES if info.get(name)), "")
    return ObjectInfo(key, size, etag.strip('"') or f"length-{size}")


def _explained(error: Exception, label: RequestLabel) -> ReshardError:
    """Translate an error of a file system, by its type or by the HTTP status in it."""
    if isinstance(error, (ClientError, BotoCoreError)):
        return explain(error, label)
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        kind = _STATUS.get(status, StorageError)
    else:
        kind = next((kind for types, kind in _KINDS if isinstance(error, types)), StorageError)
        # aiohttp is no dependency of ours, so its errors go by name.
        if kind is StorageError and type(error).__name__.startswith(("Client", "Server")):
            kind = Transient
    return kind(f"{label}: {type(error).__name__}{f' {status}' if status else ''}.")


_STATUS: dict[int, type[StorageError]] = {
    **dict.fromkeys((429, 500, 502, 503, 504), Transient),
    **dict.fromkeys((401, 403), Denied),
    **dict.fromkeys((404, 410), NotFound),
    501: Unsupported,
}

_KINDS: tuple[tuple[tuple[type[Exception], ...], type[StorageError]], ...] = (
    ((FileNotFoundError,), NotFound),
    ((PermissionError,), Denied),
    ((NotImplementedError,), Unsupported),
    ((ssl.SSLCertVerificationError,), StorageError),
    ((ConnectionError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError), Transient),
)


def _file_system(root: str, shown: str, options: dict[str, Any]) -> tuple[Any, str]:
    if "::" in root:
        raise Unsupported(
            f"{shown} is a chain of file systems, which may cache on local disk.", hint="Name the inner URL."
        )
    scheme = root.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UsageError(f"Reading {scheme}:// needs another package: {error}") from error
    except ValueError as error:
        raise UsageError(
            f"{shown}: the scheme {scheme}:// is unknown.",
            hint="Write s3://bucket/key, obs://bucket/key, a path, or a URL that fsspec reads.",
        ) from error
    try:
        file_system, path = fsspec.core.url_to_fs(root, **options)
    except ImportError as error:
        raise UsageError(f"Reading {scheme}:// needs another package: {error}") from error
    except Exception as error:  # packages raise what they like; their texts may hold secrets
        raise _explained(error, RequestLabel("open", shown, "fsspec")) from error
    return file_system, path


def _without_password(url: str) -> str:
    """Return a URL to show: without a password, and of the web without a user, which may be a token."""
    scheme, _, rest = url.partition("://")
    try:
        urlsplit(url)
    except ValueError as error:
        raise UsageError(f"The URL is malformed ({scheme}://).") from error
    host, slash, path = rest.partition("/")
    user, at, name = host.rpartition("@")
    user = "" if scheme in ("http", "https") else user.partition(":")[0]
    return f"{scheme}://{f'{user}{at}' if user else ''}{name}{slash}{path}".rstrip("/")
