"""Where a LocalStore keeps what: paths of objects, names of unfinished ones, and no way out of the root."""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Denied, UsageError

_TEMPORARY = re.compile(r"\.reshard-(?P<token>[0-9a-f]{16}-\d+)-(?P<name>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Temporary:
    """The hidden file that an unfinished object is written to, beside the object itself.

    Parameters
    ----------
    target
        Path of the finished object.
    token
        Tells this attempt from others; ends in the number of folders made for it, so that any
        process can take them away again.

    Examples
    --------
    >>> Temporary(Path("/data/a.bin"), "0123456789abcdef-2").path.name
    '.reshard-0123456789abcdef-2-a.bin'
    >>> Temporary(Path("/data/a.bin"), "0123456789abcdef-2").made_count
    2
    """

    target: Path
    token: str

    @classmethod
    def fresh(cls, target: Path, made_count: int) -> Temporary:
        """Name a new one."""
        return cls(target, f"{secrets.token_hex(8)}-{made_count}")

    @classmethod
    def of(cls, path: Path) -> Temporary | None:
        """Read back the name of one; None for any other file."""
        match = _TEMPORARY.fullmatch(path.name)
        return cls(path.with_name(match["name"]), match["token"]) if match else None

    @property
    def name(self) -> str:
        """Its name in the folder of its target."""
        return f".reshard-{self.token}-{self.target.name}"

    @property
    def path(self) -> Path:
        """Where its bytes are."""
        return self.target.with_name(self.name)

    @property
    def made_count(self) -> int:
        """How many of the folders above it were made for it."""
        return int(self.token.rpartition("-")[2])


def is_temporary(name: str) -> bool:
    """Whether a file of this name is an unfinished object.

    Examples
    --------
    >>> is_temporary(".reshard-0123456789abcdef-0-a.bin"), is_temporary("a.bin")
    (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None


def object_path(root: Path, key: str) -> Path:
    """Return the path of an object.

    Raises
    ------
    UsageError
        The key is empty, absolute, has ``.``, ``..`` or empty segments, or is the name of an
        unfinished object.

    Examples
    --------
    >>> object_path(Path("/data"), "rank_0/a.ckpt").as_posix()
    '/data/rank_0/a.ckpt'
    """
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or "\0" in key or is_temporary(segments[-1]):
        raise UsageError(f"{key!r} cannot be a key below {root}.", hint="Use names joined by single slashes.")
    return root.joinpath(*segments)


def writable_path(root: Path, key: str) -> Path:
    """Return the path of an object that may be written.

    Raises
    ------
    Denied
        A symbolic link on the way leads out of the root.
    UsageError
        As for :func:`object_path`.
    """
    path = object_path(root, key)
    if not path.parent.resolve().is_relative_to(root):
        raise Denied(
            f"{path} lies outside {root}: a folder on the way is a symbolic link.",
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


def walk(root: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield ``(key, path)`` of every file whose key starts with ``prefix``, in key order.

    Unfinished objects are among them. Links to folders are followed, except back into a folder
    that the walk is in.
    """
    yield from _walk(root, "", prefix, frozenset())


def _walk(folder: Path, start: str, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, Path]]:
    real = os.path.realpath(folder)
    if real in above:
        return
    for name, is_folder in _entries(folder):
        key = start + name
        if is_folder and (key.startswith(prefix) or prefix.startswith(key)):
            yield from _walk(folder / name, key, prefix, above | {real})
        elif not is_folder and key.startswith(prefix):
            yield key, folder / name


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Names in the order of the keys below them: a folder counts with its slash."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name + "/" * entry.is_dir(), entry.is_dir()) for entry in entries]
    except FileNotFoundError:
        return []
    return sorted(found)
