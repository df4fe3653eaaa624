"""Reads what single objects hold, by ranges: headers of safetensors, the values of ``.ckpt``."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from ...errors import FormatError, raise_all
from ...formats.container_format import Checksum
from ...formats.containers import Container, container_of, read_header
from ...planning.catalog import ObjectHeader, SourceObject, Stored
from ...planning.sources.full_source import Opened
from ...storage import Location, ObjectInfo
from ...tensor import ByteRange
from ..workers import Workers

_BLOCK_BYTES = 1 << 20
_DAMAGED = "It was damaged, or not copied to its end: write it again from where it came from."


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
    def read(span: ByteRange) -> bytes:
        return location.store.read(info.key, span, info.etag)

    header = read_header(container_of(info.key) or Container.SAFETENSORS, info.nbytes, read)
    if check_crc and header.checksum:
        _check_crc(header.checksum, read)
    tensors = tuple(Stored(tensor.spec, tensor.boxes) for tensor in header.tensors)
    return ObjectHeader(tensors, header.metadata, header.texts, header.read_bytes)


def _check_crc(checksum: Checksum, read: Callable[[ByteRange], bytes]) -> None:
    """Raise FormatError unless the bytes have the checksum that their object records."""
    found = 0
    for span in blocks(ByteRange(0, checksum.nbytes)):
        found = zlib.crc32(read(span), found)
    if found != checksum.crc32:
        raise FormatError(
            "wrong checksum", where=f"byte {checksum.nbytes}", expected=f"{found:08x}", found=f"{checksum.crc32:08x}"
        )


def blocks(span: ByteRange) -> Iterator[ByteRange]:
    """Cut a range into blocks that are held one at a time."""
    for start in range(span.start, span.stop, _BLOCK_BYTES):
        yield ByteRange(start, min(span.stop, start + _BLOCK_BYTES))
