"""Objects as local files: for small work without a store, and for what must run everywhere."""

from __future__ import annotations

import errno
import io
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import Denied, NotFound, ReshardError, StorageError
from ..tensor import ByteRange
from .copying import checked_span, not_copied
from .local_copy import FileCopy
from .local_paths import Temporary, is_temporary, make_folder, object_path, remove_empty, walk, writable_path
from .protocol import Body, ObjectInfo, ReadStore, StoreLimits, Upload, unwrapped
from .reading import beyond_end, changed, checked_target, expect_etag
from .stopping import ShouldStop, check, never

_BLOCK_BYTES = 8 << 20
"""Read or written between two looks at ``should_stop``: a few milliseconds."""

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # else opening a named pipe would wait for its writer
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


class LocalStore:
    """Files below one folder; see :class:`reshard.storage.protocol.Store`.

    A part is written straight to its place in a hidden file beside the object; completing flushes
    that file and renames it. An upload may be continued by another process.

    Parameters
    ----------
    root
        Folder that keys count from; made when the first object is written.
    limits
        Part sizes to tell to planners. A file system needs none, so by default they are the ones
        of S3, and one plan fits both.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = LocalStore(folder)
    ...     _ = store.put("rank_0/a.bin", b"hello")
    ...     [info.key for info in store.list("")], store.read("rank_0/a.bin", ByteRange(0, 2))
    (['rank_0/a.bin'], b'he')
    """

    def __init__(self, root: str | Path, *, limits: StoreLimits | None = None) -> None:
        self._root = Path(root).resolve()
        self._limits = limits or StoreLimits()
        self._lock = threading.Lock()  # keeps one thread from removing the folder another is about to use
        self._made: set[Path] = set()  # folders that were not there before this store wrote below them
        self.should_stop: ShouldStop = never

    @property
    def url(self) -> str:
        """``file:///path/of/root``."""
        return "file://" + str(self._root).rstrip("/")

    @property
    def identity(self) -> str:
        """The URL: links on the way to the root are resolved in it."""
        return self.url

    @property
    def root(self) -> Path:
        """Folder that keys count from, links resolved."""
        return self._root

    @property
    def limits(self) -> StoreLimits:
        """Part sizes for planners."""
        return self._limits

    def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        path = object_path(self._root, key)
        with _explained("describe", path):
            return _info(key, _regular(path.stat(), path))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with ``prefix``, in key order."""
        with _explained("list", self._root):
            for key, path in walk(self._root, prefix):
                if not is_temporary(path.name):
                    yield from self._listed(key, path)

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        """Return the bytes of a small range."""
        buffer = bytearray(span.nbytes)
        self.read_into(key, span, memoryview(buffer), etag)
        return bytes(buffer)

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        """Fill ``target`` with the bytes ``span`` of an object."""
        checked_target(span, target)
        path = object_path(self._root, key)
        if not span.nbytes:
            return
        with _explained("read", path), _pinned(path, span, etag) as file:
            reader = io.FileIO(file, closefd=False)
            reader.seek(span.start)
            done = self._blocks(target, lambda block, _: reader.readinto(block) or 0)
        if done < span.nbytes:
            raise beyond_end(f"{path}", span)

    def put(self, key: str, body: Body) -> ObjectInfo:
        """Store one object, replacing any other."""
        upload = self.create_upload(key)
        try:
            return self.complete_upload(upload, [(1, self.upload_part(upload, 1, 0, body))])
        except BaseException:
            self.abort_upload(upload)
            raise

    def delete(self, key: str) -> None:
        """Remove an object, and the folders that this store made for it if nothing else is in them."""
        path = writable_path(self._root, key)
        with self._lock, _explained("delete", path):
            path.unlink(missing_ok=True)
            self._remove_made(path.parent)

    def create_upload(self, key: str) -> Upload:
        """Make the hidden file that parts are written to."""
        path = writable_path(self._root, key)
        with self._lock, _explained("write", path):
            if path.is_dir():
                raise StorageError(f"{path} is a folder; no object can have its name.")
            made = make_folder(path.parent)
            self._made.update(made)
            temporary = Temporary.fresh(path, len(made))
            try:
                os.close(os.open(temporary.path, _NEW, 0o666))
            except OSError:
                self._remove_made(path.parent)
                raise
        return Upload(key, temporary.token)

    def upload_part(self, upload: Upload, number: int, offset: int, body: Body) -> str:  # noqa: ARG002
        """Write one part to its place in the hidden file."""
        view, path = memoryview(body), self._temporary(upload).path
        with _explained("write", path), _opened(path, os.O_RDWR) as file:
            done = self._blocks(view, lambda block, at: os.pwrite(file, block, offset + at))
        if done < view.nbytes:
            raise StorageError(f"{path} took {done} of {view.nbytes} bytes.")
        return f"{offset}+{view.nbytes}"

    def copies_from(self, source: ReadStore) -> bool:
        """Whether ``source`` is on this machine too."""
        return self.limits.can_copy and isinstance(unwrapped(source), LocalStore)

    def copy_part(
        self,
        upload: Upload,
        number: int,  # noqa: ARG002
        offset: int,
        source: ReadStore,
        key: str,
        span: ByteRange,
        etag: str | None = None,
    ) -> str:
        """Let the kernel copy bytes of a file to their place in the hidden one; see :class:`.protocol.PartCopier`."""
        peer = unwrapped(source)
        if not (isinstance(peer, LocalStore) and self.copies_from(peer)):
            raise not_copied(self, source)
        path, target = object_path(peer.root, key), self._temporary(upload).path
        with (
            _explained("copy", path),
            _pinned(path, checked_span(span), etag) as file,
            _explained("write", target),
            _opened(target, os.O_RDWR) as hidden,
        ):
            done = FileCopy(file, hidden, self.should_stop).run(span.start, offset, span.nbytes)
        if done < span.nbytes:
            raise beyond_end(f"{path}", span)
        return f"{offset}+{span.nbytes}"

    def complete_upload(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> ObjectInfo:
        """Flush the hidden file and give it its name."""
        temporary = self._temporary(upload)
        nbytes = _joined_nbytes(temporary, parts)
        with _explained("complete", temporary.target):
            with _opened(temporary.path, os.O_RDWR) as file:
                if os.fstat(file).st_size < nbytes:
                    raise StorageError(f"{temporary.path} is shorter than the {nbytes} bytes of its parts.")
                os.ftruncate(file, nbytes)
                os.fsync(file)
                info = _info(upload.key, os.fstat(file))
            temporary.path.replace(temporary.target)
            with _opened(temporary.target.parent, os.O_RDONLY) as folder:
                os.fsync(folder)
        return info

    def abort_upload(self, upload: Upload) -> None:
        """Remove the hidden file, and the folders made for it if nothing else is in them."""
        temporary = self._temporary(upload)
        with self._lock, _explained("abort", temporary.target):
            try:
                temporary.path.unlink()
            except FileNotFoundError:
                return
            remove_empty(temporary.target.parent, temporary.made_count)
            self._remove_made(temporary.target.parent)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        """List unfinished uploads by key prefix."""
        folder = prefix.rpartition("/")[0]
        with _explained("list", self._root):
            found = [(key, Temporary.of(path)) for key, path in walk(self._root, folder)]
        uploads = [
            Upload("/".join([*key.split("/")[:-1], temporary.target.name]), temporary.token)
            for key, temporary in found
            if temporary
        ]
        return [upload for upload in uploads if upload.key.startswith(prefix)]

    def _remove_made(self, folder: Path) -> None:
        """Remove the folders from ``folder`` upwards that this store made and that are empty."""
        made = tuple(itertools.takewhile(self._made.__contains__, (folder, *folder.parents)))
        remove_empty(folder, len(made))
        self._made.difference_update(parent for parent in made if not parent.exists())  # another may make them anew

    def _temporary(self, upload: Upload) -> Temporary:
        temporary = Temporary(writable_path(self._root, upload.key), upload.upload_id)
        if not is_temporary(temporary.name):
            raise StorageError(f"{upload.upload_id!r} is not an upload of {self.url}.")
        return temporary

    def _blocks(self, view: memoryview, move: Callable[[memoryview, int], int]) -> int:
        """Let ``move`` take the view block by block; return the bytes moved before it took none."""
        done = 0
        while done < view.nbytes:
            check(self.should_stop)
            moved = move(view[done : done + _BLOCK_BYTES], done)
            if not moved:
                break
            done += moved
        return done

    @staticmethod
    def _listed(key: str, path: Path) -> Iterator[ObjectInfo]:
        try:
            found = path.stat()
        except FileNotFoundError:  # removed meanwhile, or a link to nothing
            return
        if stat.S_ISREG(found.st_mode):
            yield _info(key, found)


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}")


def _regular(found: os.stat_result, path: Path) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        raise NotFound(f"{path} is not a file but a folder or a device.")
    return found


def _joined_nbytes(temporary: Temporary, parts: Sequence[tuple[int, str]]) -> int:
    """Length of the object; its parts must lie end to end from its first byte on."""
    end = 0
    for _, etag in sorted(parts):
        start, _, nbytes = etag.partition("+")
        if start != str(end) or not nbytes.isdecimal():
            raise StorageError(f"{temporary.target}: a part begins at {start}, the one before it ends at {end}.")
        end += int(nbytes)
    if not parts:
        raise StorageError(f"{temporary.target}: an upload needs at least one part.")
    return end


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _pinned(path: Path, span: ByteRange, etag: str | None) -> Iterator[int]:
    """Open an object that has these bytes; at the end it must still be the one it was."""
    with _opened(path, _READ) as file:
        before = _info("", _regular(os.fstat(file), path))
        expect_etag(f"{path}", etag, before.etag)
        if span.stop > before.nbytes:
            raise beyond_end(f"{path}", span, before.nbytes)
        yield file
        after = _info("", os.fstat(file))
        if after != before:
            raise changed(f"{path}", before.etag, after.etag)


@contextmanager
def _explained(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into one of ours that says what could not be done to which file."""
    try:
        yield
    except ReshardError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"Cannot {doing} {path}: it does not exist.") from error
    except PermissionError as error:
        raise Denied(f"Cannot {doing} {path}: permission denied.", hint="Check its owner and mode.") from error
    except OSError as error:
        hint = "Free some space, or write elsewhere." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"Cannot {doing} {path}: {error.strerror}.", hint=hint) from error
