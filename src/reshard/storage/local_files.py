"""The files of a LocalStore: paths of objects, hidden files of uploads, and no way out of the root."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Denied, UsageError
from ..tensor import ByteRange
from .stopping import ShouldStop, check

BLOCK_BYTES = 8 << 20
"""Moved between two looks at ``should_stop``: a few milliseconds."""

# Both hidden files of an upload have names of one length, so that a name too long for one is too long for the other.
TOKEN = re.compile(r"[0-9a-f]{16}-\d+")
_HIDDEN = re.compile(rf"\.reshard-(?P<token>{TOKEN.pattern})(?P<kind>[-+])(?P<name>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HiddenFiles:
    """The two hidden files of an upload, beside the object: its bytes, and the record of its parts.

    ``target`` is the path of the finished object, ``token`` the upload's id; it ends in the number of folders made
    for the upload, so that any process can remove them again.

    Examples
    --------
    >>> files = HiddenFiles(Path("/data/a.bin"), "0123456789abcdef-2")
    >>> files.data.name, files.made_count
    ('.reshard-0123456789abcdef-2-a.bin', 2)
    """

    target: Path
    token: str

    @classmethod
    def of(cls, data: Path) -> HiddenFiles | None:
        """Return those of a file that holds an upload's bytes; None for any other file."""
        match = _HIDDEN.fullmatch(data.name)
        return cls(data.with_name(match["name"]), match["token"]) if match and match["kind"] == "-" else None

    @property
    def data(self) -> Path:
        """Path of the bytes."""
        return self.target.with_name(f".reshard-{self.token}-{self.target.name}")

    @property
    def record(self) -> Path:
        """Path of the record of parts."""
        return self.target.with_name(f".reshard-{self.token}+{self.target.name}")

    @property
    def made_count(self) -> int:
        """How many of the folders above were made for the upload."""
        return int(self.token.rpartition("-")[2])


def is_hidden(name: str) -> bool:
    """Whether a file of this name belongs to an upload.

    Examples
    --------
    >>> is_hidden(".reshard-0123456789abcdef-0-a.bin"), is_hidden("a.bin")
    (True, False)
    """
    return _HIDDEN.fullmatch(name) is not None


def object_path(root: Path, key: str) -> Path:
    """Return the path of an object.

    Raise UsageError for a key that is absolute, has ``.``, ``..`` or empty segments, or names a hidden file.

    Examples
    --------
    >>> object_path(Path("/data"), "rank_0/a.ckpt").as_posix()
    '/data/rank_0/a.ckpt'
    """
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or "\0" in key or is_hidden(segments[-1]):
        raise UsageError(f"{key!r} cannot be a key below {root}.", hint="Use names joined by single slashes.")
    return root.joinpath(*segments)


def writable_path(root: Path, key: str) -> Path:
    """Return the path of an object to write or to remove.

    Whoever opens the store names the first step of a key, a target's folder mostly; the steps below it may come from a
    document. Raise Denied if one of those begins with a dot, or if a symbolic link leads out of the root or of the
    target's folder.
    """
    path = object_path(root, key)
    first, *below = key.split("/")
    if any(step.startswith(".") for step in below):
        raise Denied(f"{path}: a name below a target must not begin with a dot.", hint="Rename what it is made of.")
    folder = root / first if below else root
    if not (path.parent.resolve().is_relative_to(folder.resolve()) and folder.resolve().is_relative_to(root)):
        raise Denied(
            f"{path} is outside {folder}: a folder on the way is a symbolic link.",
            hint="Write to the folder that the link points to.",
        )
    return path


def make_folder(folder: Path) -> tuple[Path, ...]:
    """Make a folder and those above it; return the ones that were made, from ``folder`` upwards."""
    missing = tuple(itertools.takewhile(lambda parent: not parent.is_dir(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folder: Path, count: int) -> None:
    """Remove up to ``count`` folders, from ``folder`` upwards, while they are empty."""
    for parent in (folder, *folder.parents)[:count]:
        try:
            parent.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def walk(
    folder: Path, prefix: str = "", *, start: str = "", above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Path]]:
    """Yield ``(key, path)`` of every file whose key starts with ``prefix``, in key order.

    Hidden files are among them. Links to folders are followed, except back into a folder that the walk is in: the
    folders ``above``. ``start`` is the part of the keys that leads to ``folder``.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            # In the order of the keys below them: a folder counts with its slash.
            found = sorted((entry.name + "/" * entry.is_dir(), entry.is_dir()) for entry in entries)
    except FileNotFoundError:
        return
    for name, is_folder in found:
        key = start + name
        if is_folder and (key.startswith(prefix) or prefix.startswith(key)):
            yield from walk(folder / name, prefix, start=key, above=above | {real})
        elif not is_folder and key.startswith(prefix):
            yield key, folder / name


def copy_range(source: int, target: int, span: ByteRange, offset: int, should_stop: ShouldStop) -> int:
    """Copy a range of one open file to ``offset`` in another; return how many of its bytes there were.

    The kernel copies where it can (shared blocks, where the file system has them), else the bytes pass
    through memory. The files' own positions are not used.
    """
    in_kernel, done = hasattr(os, "copy_file_range"), 0
    while done < span.nbytes:
        check(should_stop)
        nbytes, start, at = min(span.nbytes - done, BLOCK_BYTES), span.start + done, offset + done
        moved = 0
        if in_kernel:
            try:
                moved = os.copy_file_range(source, target, nbytes, start, at)
            except OSError:
                # File systems refuse with EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, in old containers EPERM. Any other failure
                # (a full disk, say) is met again below.
                in_kernel = False
        if not moved:  # refused, at the end, or a file whose length the kernel does not know
            block = memoryview(os.pread(source, nbytes, start))
            while moved < block.nbytes:
                moved += os.pwrite(target, block[moved:], at + moved)
        if not moved:
            break
        done += moved
    return done
