"""Reads what single objects hold, by ranges: headers of safetensors, the values of ``.ckpt``."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

from ...errors import FormatError, raise_all
from ...formats.containers import Container
from ...formats.mindspore.ckpt_read import read_index
from ...formats.mindspore.ckpt_values import INT4, CkptIndex, crc_tail, decode_text
from ...formats.safetensors import LENGTH_BYTES, header_range, parse_header
from ...planning.catalog import ObjectHeader, SourceObject, Stored
from ...planning.sources.full_source import Opened
from ...storage import Location, ObjectInfo
from ...tensor import Box, ByteRange, extent_of
from ..workers import Workers

_BLOCK_BYTES = 1 << 20
_DAMAGED = "It was damaged, or not copied to its end: write it again from where it came from."


def container_of(name: str) -> Container | None:
    """The format of an object by its name, None for others."""
    return next((container for container in Container if name.endswith(container.suffix)), None)


def read_all(
    base: Location, infos: Mapping[str, ObjectInfo], names: Sequence[str], workers: Workers, *, check_crc: bool = False
) -> list[Opened]:
    """Read what every object holds; all that break their format are told in one error.

    Parameters
    ----------
    base
        Where the names count from.
    check_crc
        Whether ``.ckpt`` objects that end in a checksum are read whole and compared with it.
    """
    opened: dict[str, Opened] = {}
    problems: dict[str, FormatError] = {}

    def read(name: str) -> None:
        info, place = infos[name], base.child(name)
        try:
            opened[name] = (SourceObject(name, info.nbytes, info.etag), _read(place, info, check_crc=check_crc))
        except FormatError as error:
            problems[name] = error.at(place.url)
            problems[name].hint = error.hint or _DAMAGED

    workers.map(read, names)
    if len(problems) == 1:
        raise next(iter(problems.values()))
    told = ["\n    ".join([p.message, *p.problems[:10]]) for _, p in sorted(problems.items())]
    hints = " ".join(sorted({problem.hint for problem in problems.values()}))
    raise_all(FormatError, f"{len(problems)} objects cannot be read", told, hints)
    return [opened[name] for name in names]


def _read(location: Location, info: ObjectInfo, *, check_crc: bool) -> ObjectHeader:
    if container_of(info.key) is Container.CKPT:
        return _read_ckpt(location, info, check_crc=check_crc)
    return _read_safetensors(location, info)


def _read_safetensors(location: Location, info: ObjectInfo) -> ObjectHeader:
    length = ByteRange(0, min(LENGTH_BYTES, info.nbytes))
    first = location.store.read(info.key, length, info.etag) if length.nbytes else b""
    span = header_range(first, info.nbytes)
    header = parse_header(first + location.store.read(info.key, span, info.etag), info.nbytes)
    tensors = tuple(
        Stored(stored.spec, ((Box.whole(extent_of(stored.spec)[0]), stored.range.start),)) for stored in header.tensors
    )
    return ObjectHeader(tensors, header.metadata, index_bytes=header.data_start)


def _read_ckpt(location: Location, info: ObjectInfo, *, check_crc: bool) -> ObjectHeader:
    read_bytes = 0

    def read(span: ByteRange) -> bytes:
        nonlocal read_bytes
        read_bytes += span.nbytes
        return location.store.read(info.key, span, info.etag)

    index = read_index(info.nbytes, read)
    texts = {text.name: decode_text(read(text.range) if text.range.nbytes else b"", text.name) for text in index.texts}
    if check_crc:
        _check_crc(location, info, index)
    tensors = tuple(
        Stored(tensor.spec, tuple((box, where.start) for box, where in tensor.boxes())) for tensor in index.tensors
    )
    packed = {tensor.spec.name: INT4 for tensor in index.tensors if tensor.type_name == INT4}
    return ObjectHeader(tensors, packed, texts, read_bytes)


def _check_crc(location: Location, info: ObjectInfo, index: CkptIndex) -> None:
    """Raise FormatError unless the bytes are those the checksum is of; an object without one passes."""
    if index.crc32 is None:
        return
    found = 0
    for span in blocks(index.crc_range):
        found = zlib.crc32(location.store.read(info.key, span, info.etag), found)
    if found != index.crc32:
        tail = f"byte {index.crc_range.stop}, {len(crc_tail(0))} bytes"
        raise FormatError("wrong checksum", where=tail, expected=f"{found:08x}", found=f"{index.crc32:08x}")


def blocks(span: ByteRange) -> Iterator[ByteRange]:
    """Cut a range into blocks that are held one at a time."""
    for start in range(span.start, span.stop, _BLOCK_BYTES):
        yield ByteRange(start, min(span.stop, start + _BLOCK_BYTES))
