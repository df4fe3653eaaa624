"""Reads the headers of single objects by ranges: of safetensors the header, of ``.ckpt`` every value's head."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from ...errors import FormatError, raise_all
from ...formats.containers import Container
from ...formats.mindspore.ckpt_read import read_index
from ...formats.mindspore.ckpt_values import INT4, CkptIndex, crc_tail, decode_text
from ...formats.safetensors import LENGTH_BYTES, header_range, parse_header
from ...planning.catalog import HeaderTensor, ObjectHeader, SourceObject
from ...planning.sources.source_headers import safetensors_header
from ...storage import Location, ObjectInfo
from ...tensor import ByteRange
from ..workers import Workers

_BLOCK_BYTES = 1 << 20
_DAMAGED = "The object is damaged or truncated: copy it again from its origin."


def container_of(name: str) -> Container | None:
    """Return the format of an object by its name, None for others."""
    return next((container for container in Container if name.endswith(container.suffix)), None)


def read_headers(
    base: Location, objects: Mapping[str, ObjectInfo], workers: Workers, *, check_crc: bool = False
) -> list[ObjectHeader]:
    """Read the headers of objects, in their order.

    Parameters
    ----------
    objects
        By their names relative to ``base``.
    check_crc
        Whether ``.ckpt`` objects that end in a checksum are read whole and compared with it.

    Raises
    ------
    FormatError
        Objects that break their format, all of them in one error.
    """
    headers: dict[str, ObjectHeader] = {}
    problems: dict[str, FormatError] = {}

    def read(name: str) -> None:
        info, place = objects[name], base.child(name)
        try:
            headers[name] = _read(place, info, SourceObject(name, info.nbytes, info.etag), check_crc=check_crc)
        except FormatError as error:
            problems[name] = error.at(place.url)
            problems[name].hint = error.hint or _DAMAGED

    workers.map(read, objects)
    raise_together(problems, f"{len(problems)} objects cannot be read")
    return [headers[name] for name in objects]


def raise_together(problems: Mapping[str, FormatError], message: str) -> None:
    """Raise one error for several objects, in the order of their names, or return if there are none."""
    if len(problems) == 1:
        raise next(iter(problems.values()))
    lines = ["\n    ".join([p.message, *p.problems[:10]]) for _, p in sorted(problems.items())]
    hints = " ".join(sorted({problem.hint for problem in problems.values() if problem.hint}))
    raise_all(FormatError, message, lines, hints)


def _read(location: Location, info: ObjectInfo, item: SourceObject, *, check_crc: bool) -> ObjectHeader:
    if container_of(info.key) is Container.CKPT:
        return _read_ckpt(location, info, item, check_crc=check_crc)
    length = ByteRange(0, min(LENGTH_BYTES, info.nbytes))
    first = location.store.read(info.key, length, info.etag) if length.nbytes else b""
    span = header_range(first, info.nbytes)
    data = first + location.store.read(info.key, span, info.etag)
    return safetensors_header(item, parse_header(data, info.nbytes))


def _read_ckpt(location: Location, info: ObjectInfo, item: SourceObject, *, check_crc: bool) -> ObjectHeader:
    read_bytes = 0

    def read(span: ByteRange) -> bytes:
        nonlocal read_bytes
        read_bytes += span.nbytes
        return location.store.read(info.key, span, info.etag)

    index = read_index(info.nbytes, read)
    texts = {text.name: decode_text(read(text.range) if text.range.nbytes else b"", text.name) for text in index.texts}
    if check_crc and index.crc32 is not None:
        _check_crc(location, info, index)
    tensors = tuple(
        HeaderTensor(tensor.spec, tuple((box, span.start) for box, span in tensor.boxes())) for tensor in index.tensors
    )
    packed = {tensor.spec.name: INT4 for tensor in index.tensors if tensor.type_name == INT4}
    return ObjectHeader(item, tensors, packed, texts, read_bytes)


def _check_crc(location: Location, info: ObjectInfo, index: CkptIndex) -> None:
    found = 0
    for block in read_blocks(location, index.crc_range.start, index.crc_range.nbytes, info.etag):
        found = zlib.crc32(block, found)
    if found != index.crc32:
        tail = f"byte {index.crc_range.stop}, {len(crc_tail(0))} bytes"
        raise FormatError("wrong checksum", where=tail, expected=f"{found:08x}", found=f"{index.crc32:08x}")


def read_blocks(location: Location, first: int, nbytes: int, etag: str) -> Iterator[bytes]:
    """Read a range in blocks that are held one at a time."""
    for start in range(first, first + nbytes, _BLOCK_BYTES):
        span = ByteRange(start, min(first + nbytes, start + _BLOCK_BYTES))
        yield location.store.read(location.key, span, etag)
