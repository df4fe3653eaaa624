"""Reads the headers of single objects by ranges, as their formats ask for them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

from ...errors import FormatError, raise_all
from ...formats.containers import Container, container_of, read_header
from ...planning.catalog import ObjectHeader, SourceObject
from ...storage import Location, ObjectInfo, unwrapped
from ...tensor import ByteRange
from ..locations import read_agreed, read_once
from ..workers import Workers
from .source_format import SourceOptions

_BLOCK_BYTES = 1 << 20
_DAMAGED = "The object is damaged or truncated: copy it again from its origin."


def read_headers(
    base: Location, objects: Mapping[str, ObjectInfo], workers: Workers, options: SourceOptions
) -> list[ObjectHeader]:
    """Read the headers of objects, given by their names relative to ``base``, in their order.

    With ``check_crc``, ``.ckpt`` objects that end in a checksum are read whole and compared with it. Raise one
    FormatError for all objects that break their format.
    """
    headers: dict[str, ObjectHeader] = {}
    problems: dict[str, FormatError] = {}

    def read(name: str) -> None:
        info, place = objects[name], base.child(name)
        try:
            headers[name] = _read(place, info, SourceObject(name, info.nbytes, info.etag), options)
        except FormatError as error:
            problems[name] = error.at(place.url)
            problems[name].marked_hint = error.marked_hint or _DAMAGED

    workers.map(read, objects)
    raise_together(problems, f"{len(problems)} objects cannot be read")
    return [headers[name] for name in objects]


def raise_together(problems: Mapping[str, FormatError], message: str) -> None:
    """Raise one error for several objects, in the order of their names, or return if there are none."""
    if len(problems) == 1:
        raise next(iter(problems.values()))
    lines = ["\n    ".join([p.marked_message, *p.marked_problems[:10]]) for _, p in sorted(problems.items())]
    hints = " ".join(sorted({problem.marked_hint for problem in problems.values() if problem.marked_hint}))
    raise_all(FormatError, message, lines, hints)


def _read(location: Location, info: ObjectInfo, item: SourceObject, options: SourceOptions) -> ObjectHeader:
    read_range = range_reader(location, options)

    def read(span: ByteRange) -> bytes:
        return read_range(location, span, info.etag)

    header = read_header(container_of(info.key) or Container.SAFETENSORS, info.nbytes, read)
    if options.check_crc and (checksum := header.checksum):
        found = 0
        for block in read_blocks(location, 0, checksum.nbytes, info.etag):
            found = zlib.crc32(block, found)
        if found != checksum.crc32:
            expected, recorded = f"{found:08x}", f"{checksum.crc32:08x}"
            raise FormatError("wrong checksum", where=f"byte {checksum.nbytes}", expected=expected, found=recorded)
    return ObjectHeader.of(item, header)


def range_reader(location: Location, options: SourceOptions) -> Callable[[Location, ByteRange, str], bytes]:
    """Return what reads the parts of an object that say what its other bytes mean."""
    return read_agreed if _reads_twice(location, options) else read_once


def _reads_twice(location: Location, options: SourceOptions) -> bool:
    """Whether to prove a header by a second read: it decides what bytes mean that will be proven too."""
    if options.proof != "kept":
        return options.proof == "twice"
    if not unwrapped(location.store).may_keep_checksums:
        return False
    info = location.head_or_none()
    return info is not None and info.checksum is not None


def read_blocks(location: Location, first: int, nbytes: int, etag: str) -> Iterator[bytes]:
    """Read a range in blocks that are held one at a time."""
    for start in range(first, first + nbytes, _BLOCK_BYTES):
        yield read_once(location, ByteRange(start, min(first + nbytes, start + _BLOCK_BYTES)), etag)
