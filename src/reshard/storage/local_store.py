"""Objects as local files: for small work without a service, and for what must run everywhere."""

from __future__ import annotations

import errno
import io
import itertools
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ..errors import Denied, NotFound, ReshardError, StorageError
from ..tensor import ByteRange
from .local_files import (
    BLOCK_BYTES,
    TOKEN,
    HiddenFiles,
    copy_range,
    is_hidden,
    make_folder,
    object_path,
    remove_empty,
    walk,
    writable_path,
)
from .protocol import Body, Checksum, ObjectInfo, PartInfo, ReadStore, Store, StoreLimits, Upload, unwrapped
from .range_checks import beyond_end, cannot_copy, changed, check_buffer, check_copied_span, check_etag, check_replaced
from .stopping import ShouldStop, check, never

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # else opening a named pipe would wait for its writer
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
# A line of the record: number and etag, which is offset and length.
_PART = re.compile(r"([0-9]{1,9}) ([0-9]{1,18}\+([0-9]{1,18}))\n")

_sync_data = getattr(os, "fdatasync", os.fsync)


def open_store(url: str) -> LocalStore:
    """Open the folder that a ``file://`` URL names."""
    return LocalStore(url.removeprefix("file://") or "/")


class LocalStore(Store):
    """Files below one folder.

    A part is written straight to its place in a hidden file beside the object, and then recorded in
    another; completing flushes the hidden file and renames it. Any process can continue an upload.

    The folder ``root`` is made when the first object is written. A file system needs no part sizes: by default
    ``limits`` are those of S3, so that one plan fits both.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = LocalStore(folder)
    ...     _ = store.put("rank_0/a.bin", b"hello")
    ...     [info.key for info in store.list("")], store.read("rank_0/a.bin", ByteRange(0, 2))
    (['rank_0/a.bin'], b'he')
    """

    provider = "local"

    def __init__(self, root: str | Path, *, limits: StoreLimits | None = None) -> None:
        self._root = Path(root).resolve()
        self._limits = limits or StoreLimits()
        self._lock = threading.Lock()  # keeps one thread from removing the folder another is about to use
        self._made: set[Path] = set()  # folders that were not there before this store wrote below them
        self.should_stop: ShouldStop = never

    @property
    def url(self) -> str:
        """``file:///path/of/root``, with links on the way resolved."""
        return "file://" + str(self._root).rstrip("/")

    @property
    def root(self) -> Path:
        """Folder that keys count from, links resolved."""
        return self._root

    @property
    def limits(self) -> StoreLimits:
        return self._limits

    def head(self, key: str) -> ObjectInfo:
        path = object_path(self._root, key)
        with _explained("find", path):
            found = _regular(path.stat(), path)
            return replace(_info(key, found), age_s=time.time() - found.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with _explained("list", self._root):
            for key, path in walk(self._root, prefix):
                if is_hidden(path.name):
                    continue
                try:
                    found = path.stat()
                except FileNotFoundError:  # removed meanwhile, or a link to nothing
                    continue
                if stat.S_ISREG(found.st_mode):
                    yield _info(key, found)

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        check_buffer(span, target)
        path = object_path(self._root, key)
        if not span.nbytes:
            return
        with _explained("read", path), _pinned(path, span, etag) as file:
            reader = io.FileIO(file, closefd=False)
            reader.seek(span.start)
            done = self._blocks(target, lambda block, _: reader.readinto(block) or 0)
        if done < span.nbytes:
            raise beyond_end(f"{path}", span)

    def put(
        self,
        key: str,
        body: Body,
        checksum: Checksum | None = None,  # noqa: ARG002
        replaces: str | None = None,
    ) -> ObjectInfo:
        upload = self.create_upload(key)
        hidden = self._hidden(upload)
        try:
            return self._finish(hidden, key, self._write(hidden, 0, body), replaces)
        except BaseException:
            self.abort_upload(upload)
            raise

    def delete(self, key: str) -> None:
        """Remove an object, and the folders that this store made for it if nothing else is in them."""
        path = writable_path(self._root, key)
        with self._lock, _explained("delete", path):
            path.unlink(missing_ok=True)
            self._remove_made(path.parent)

    def create_upload(self, key: str, *, is_checked: bool = False) -> Upload:  # noqa: ARG002
        path = writable_path(self._root, key)
        with self._lock, _explained("write", path):
            if path.is_dir():
                raise StorageError(f"{path} is a folder; no object can have its name.")
            made = make_folder(path.parent)
            self._made.update(made)
            hidden = HiddenFiles(path, f"{secrets.token_hex(8)}-{len(made)}")
            try:
                for file in (hidden.data, hidden.record):
                    os.close(os.open(file, _NEW, 0o666))
            except OSError:
                with suppress(OSError):
                    hidden.data.unlink()
                self._remove_made(path.parent)
                raise
        return Upload(key, hidden.token)

    def upload_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        body: Body,
        checksum: Checksum | None = None,  # noqa: ARG002
    ) -> PartInfo:
        hidden = self._hidden(upload)
        return self._recorded(hidden, number, offset, self._write(hidden, offset, body))

    def copies_from(self, source: ReadStore) -> bool:
        """Whether ``source`` is on this machine too."""
        return self.limits.can_copy and isinstance(unwrapped(source), LocalStore)

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
        """Let the kernel copy bytes of a file to their place in the hidden one."""
        peer = unwrapped(source)
        if not (isinstance(peer, LocalStore) and self.copies_from(peer)):
            raise cannot_copy(self, source)
        check_copied_span(span)
        path, hidden = object_path(peer.root, key), self._hidden(upload)
        with (
            _explained("copy", path),
            _pinned(path, span, etag) as file,
            _explained("write", hidden.data),
            _opened(hidden.data, os.O_RDWR) as target,
        ):
            done = copy_range(file, target, span, offset, self.should_stop)
        if done < span.nbytes:
            raise beyond_end(f"{path}", span)
        return replace(self._recorded(hidden, number, offset, span.nbytes), proof="copy")

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        hidden = self._hidden(upload)
        with _explained("list the parts of", hidden.target):
            text = hidden.record.read_bytes().decode("ascii", "replace")
        lines = [_PART.fullmatch(line) for line in text.splitlines(keepends=True)]
        # A line that a crash cut short is no part. Of two lines for one part the later one counts.
        found = {int(line[1]): PartInfo(int(line[1]), line[2], int(line[3])) for line in lines if line}
        return [found[number] for number in sorted(found)]

    def complete_upload(
        self,
        upload: Upload,
        parts: Sequence[tuple[int, str]],
        crcs: Mapping[int, tuple[int, int]] | None = None,  # noqa: ARG002
    ) -> ObjectInfo:
        hidden = self._hidden(upload)
        if not parts:
            raise StorageError(f"{hidden.target}: an upload needs at least one part.")
        end = 0
        for _, etag in sorted(parts):
            start, _, nbytes = etag.partition("+")
            if start != str(end) or not nbytes.isdecimal():
                raise StorageError(f"{hidden.target}: a part begins at {start}, the one before it ends at {end}.")
            end += int(nbytes)
        return self._finish(hidden, upload.key, end)

    def abort_upload(self, upload: Upload) -> None:
        """Remove the hidden files, and the folders made for them if nothing else is in them."""
        hidden = self._hidden(upload)
        with self._lock, _explained("abort", hidden.target):
            hidden.record.unlink(missing_ok=True)
            try:
                hidden.data.unlink()
            except FileNotFoundError:
                return
            remove_empty(hidden.target.parent, hidden.made_count)
            self._remove_made(hidden.target.parent)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        with _explained("list", self._root):
            found = [(key, HiddenFiles.of(path)) for key, path in walk(self._root, prefix.rpartition("/")[0])]
        uploads = [
            Upload("/".join([*key.split("/")[:-1], hidden.target.name]), hidden.token)
            for key, hidden in found
            if hidden
        ]
        return [upload for upload in uploads if upload.key.startswith(prefix)]

    def _hidden(self, upload: Upload) -> HiddenFiles:
        if not TOKEN.fullmatch(upload.upload_id):
            raise StorageError(f"{upload.upload_id!r} is not an upload of {self.url}.")
        return HiddenFiles(writable_path(self._root, upload.key), upload.upload_id)

    def _write(self, hidden: HiddenFiles, offset: int, body: Body) -> int:
        view = memoryview(body)
        with _explained("write", hidden.data), _opened(hidden.data, os.O_RDWR) as file:
            done = self._blocks(view, lambda block, at: os.pwrite(file, block, offset + at))
        if done < view.nbytes:
            raise StorageError(f"{hidden.data} took {done} of {view.nbytes} bytes.")
        return done

    def _recorded(self, hidden: HiddenFiles, number: int, offset: int, nbytes: int) -> PartInfo:
        """Record a part that has been written."""
        etag = f"{offset}+{nbytes}"
        with _explained("write", hidden.data):
            with _opened(hidden.data, os.O_RDWR) as file:
                _sync_data(file)  # the record must not outlive the bytes when the machine goes down
            # One short append is atomic, whichever threads and processes write. The record is not made here: a part
            # that arrives after an abort would leave it behind.
            with _opened(hidden.record, os.O_WRONLY | os.O_APPEND) as record:
                os.write(record, f"{number} {etag}\n".encode())
        return PartInfo(number, etag, nbytes, proof="local")

    def _finish(self, hidden: HiddenFiles, key: str, nbytes: int, replaces: str | None = None) -> ObjectInfo:
        """Give the hidden file its length and its name.

        No system call renames only over a certain file, so the one there is looked at right before.
        """
        with _explained("complete", hidden.target):
            with _opened(hidden.data, os.O_RDWR) as file:
                if os.fstat(file).st_size < nbytes:
                    raise StorageError(f"{hidden.data} is shorter than the {nbytes} bytes of its parts.")
                os.ftruncate(file, nbytes)
                os.fsync(file)
                info = replace(_info(key, os.fstat(file)), proof="local")
            if replaces is not None:
                check_replaced(f"{hidden.target}", replaces, self._etag(hidden.target))
            # The record goes first: without the bytes nothing would lead to it any more.
            hidden.record.unlink(missing_ok=True)
            hidden.data.replace(hidden.target)
            with _opened(hidden.target.parent, os.O_RDONLY) as folder:
                os.fsync(folder)
        return info

    def _etag(self, path: Path) -> str:
        try:
            return _info("", path.stat()).etag
        except FileNotFoundError:
            return ""

    def _remove_made(self, folder: Path) -> None:
        """Remove the folders from ``folder`` upwards that this store made and that are empty."""
        made = tuple(itertools.takewhile(self._made.__contains__, (folder, *folder.parents)))
        remove_empty(folder, len(made))
        self._made.difference_update(parent for parent in made if not parent.exists())  # another may make them anew

    def _blocks(self, view: memoryview, move: Callable[[memoryview, int], int]) -> int:
        """Let ``move`` take the view block by block; return the bytes moved before it took none."""
        done = 0
        while done < view.nbytes:
            check(self.should_stop)
            moved = move(view[done : done + BLOCK_BYTES], done)
            if not moved:
                break
            done += moved
        return done


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}")


def _regular(found: os.stat_result, path: Path) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        raise NotFound(f"{path} is a folder or a device, not a file.")
    return found


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _pinned(path: Path, span: ByteRange, etag: str | None) -> Iterator[int]:
    """Open an object that has these bytes; at the end it must still be the same."""
    with _opened(path, _READ) as file:
        before = _info("", _regular(os.fstat(file), path))
        check_etag(f"{path}", etag, before.etag)
        if span.stop > before.nbytes:
            raise beyond_end(f"{path}", span, before.nbytes)
        yield file
        after = _info("", os.fstat(file))
        if after != before:
            raise changed(f"{path}", before.etag, after.etag)


@contextmanager
def _explained(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into an error of ours that names the action and the file."""
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
