"""A target that was never written, as a read-only file system of fsspec: a virtual checkpoint."""

from __future__ import annotations

from os import PathLike
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from ..errors import NotFound, Unsupported
from ..loading.files import BLOCK_BYTES, TargetFiles
from ..planning.plan import Plan
from .connecting import connecting
from .loads import Reading, conversion_of, request_of
from .option_field import parse_size

_OF_FILES = ("form", "format", "iteration", "prefix", "ranks", "part_size")


def filesystem(
    src: str | None = None,
    *,
    plan: Plan | str | PathLike[str] | None = None,
    cache: int | str = "256MiB",
    max_gap: int | str = 0,
    **options: Any,
) -> ReshardFileSystem:
    """Open the objects that a conversion would write as files, without writing them.

    They have the names, sizes and bytes of the objects; each byte is read from the source when it is asked for.
    ``fsspec.open("reshard://rank_3/checkpoint_3.safetensors", src=..., dst_layout=...)`` opens one.

    Parameters
    ----------
    src
        URL of the source.
    plan
        A plan, or the URL of a saved one, instead of ``src`` and of options that describe a conversion.
    cache
        Most bytes of blocks to keep, in bytes or like ``256MiB``.
    max_gap
        As for :func:`reshard.load`.
    options
        Those of :func:`reshard.load`, and ``form``, ``format``, ``iteration``, ``prefix``, ``ranks`` and ``part_size``.

    Raises
    ------
    UsageError, SourceError, PlanError, StorageError
        As for :func:`reshard.plan`.
    """
    return ReshardFileSystem(src, plan=plan, cache=cache, max_gap=max_gap, **options)


class ReshardFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The objects of a target, made when they are read; see :func:`filesystem` for the parameters.

    An instance is for the source as it was when it was opened: once that changes, reads raise SourceChanged.
    """

    protocol = "reshard"
    cachable = False  # an instance that fsspec kept would be for a source that may have changed
    root_marker = ""
    blocksize = 8 * BLOCK_BYTES

    def __init__(
        self,
        src: str | None = None,
        *,
        plan: Plan | str | PathLike[str] | None = None,
        cache: int | str = "256MiB",
        max_gap: int | str = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        request = request_of(src, None, plan, options, more=_OF_FILES)
        reading = Reading(request, "numpy", max_gap)
        with connecting(request):
            conversion = conversion_of(request, plan)
            self._files = TargetFiles(reading.reader(conversion), parse_size(cache))
        self._folders: dict[str, dict[str, None]] = {"": {}}
        for key in self._files.sizes:
            child = key
            while child:
                above = self._parent(child)
                self._folders.setdefault(above, {})[child] = None
                child = above

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name, size in bytes and type of a file or folder; NotFound if there is none."""
        key = self._strip_protocol(path)
        if key in self._files.sizes:
            return {"name": key, "size": self._files.sizes[key], "type": "file"}
        if key in self._folders:
            return {"name": key, "size": 0, "type": "directory"}
        raise NotFound(f"{key}: the target has no such object", hint="ls() lists those that it has.")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a folder, or one file."""
        key = self._strip_protocol(path)
        names = sorted(self._folders[key]) if key in self._folders else [self.info(key)["name"]]
        return [self.info(name) for name in names] if detail else names

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the bytes ``[start, end)`` of a file; negative ones count from its end."""
        info = self.info(path)
        first, last, _step = slice(start, end).indices(info["size"])
        return self._files.read(info["name"], first, last)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> _File:
        if mode != "rb":
            raise Unsupported(f"reshard://{path}: a virtual checkpoint is read-only", hint="Write it with convert.")
        info = self.info(path)
        if info["type"] != "file":
            raise IsADirectoryError(path)
        return _File(self, path, "rb", block_size or self.blocksize, cache_type="none", size=info["size"])


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """One object, open for reading; blocks are cached by its file system."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        found: bytes = self.fs.cat_file(self.path, start, end)
        return found
