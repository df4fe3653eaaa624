"""Tensors in the zip archives that ``torch.save`` writes: where their bytes are, without reading these.

An archive has a pickle, ``data.pkl``, which says what each tensor is, and a record of bytes for each storage. Records
are stored, not deflated, so a tensor has an address within the archive::

    archive/data.pkl   archive/byteorder   archive/data/0 ...   archive/version   central directory   its end

Local headers say size 0 (the sizes follow the bytes), so sizes come from the central directory. Checksums are not
compared: torch never does, and writes wrong ones on request.

Source: ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc`` of torch 2.4 and 2.13; PKWARE's
APPNOTE 6.3.10.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from ..errors import FormatError
from ..tensor import ByteRange, DType, Shape
from .pickle_values import PERSISTENT, PickledGlobal, PickledObject, parse_pickle
from .safetensors import MAX_AXIS_COUNT
from .strict_json import shown
from .torch_dtypes import TORCH_DTYPES, TORCH_STORAGES

ZIP_START = b"PK\x03\x04"
"""The first bytes of an archive."""

HEAD_BYTES = 1024
"""Bytes at the start of an archive of one tensor that nearly always hold its pickle, and headers up to its bytes."""

TAIL_BYTES = 1024
"""Bytes at the end that nearly always hold the central directory of such an archive."""

_END, _END64, _LOCATOR64, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", ZIP_START
_MAX_DIRECTORY_BYTES = 64 << 20
_MAX_PICKLE_BYTES = 64 << 20
_MAX_COUNT = 2**63
_STORED, _IS_ENCRYPTED = 0, 1
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter")
_GLOBALS = frozenset(
    {
        *_REBUILD,
        "torch.storage.UntypedStorage",
        "collections.OrderedDict",
        "torch.Size",
        *(f"torch.{name}" for name in TORCH_DTYPES),
        *(f"torch.{name}Storage" for name in TORCH_STORAGES),
    }
)
_BYTEWISE = "torch.storage.UntypedStorage"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of an archive: its elements are ``strides`` elements apart, the first at the byte ``start``."""

    dtype: DType
    shape: Shape
    strides: Shape
    start: int

    @property
    def axes(self) -> Shape | None:
        """The axes in the order in which their elements lie together, outermost first; None if there are gaps.

        Examples
        --------
        >>> [StoredTensor(DType.F32, (6, 4), strides, 0).axes for strides in ((4, 1), (1, 6), (8, 1))]
        [(0, 1), (1, 0), None]
        """
        order = sorted(range(len(self.shape)), key=lambda axis: (-self.strides[axis], axis))
        order = sorted(order, key=lambda axis: self.shape[axis] > 1)  # axes of one element go anywhere
        step = 1
        for axis in reversed(order):
            if self.shape[axis] > 1 and self.strides[axis] != step:
                return None
            step *= self.shape[axis]
        longer = [axis for axis in order if self.shape[axis] > 1]
        return tuple(range(len(order))) if longer == sorted(longer) else tuple(order)


@dataclass(frozen=True, slots=True)
class _Record:
    """One record as the central directory has it."""

    header: int
    nbytes: int


ArchiveScan = Generator[ByteRange, bytes, Mapping[str, StoredTensor]]
"""Yields ranges of an archive, takes their bytes, and returns its tensors by name."""


def scan_torch_zip(nbytes: int) -> ArchiveScan:
    """Ask for the ranges of an archive of ``nbytes`` bytes that describe its tensors, and return them by name.

    An archive of a single tensor has one whose name is empty, one of a dictionary those of its keys. Raise FormatError
    for anything else, and for compressed or overlapping records.
    """
    records, data_stop = yield from _directory(nbytes)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise _error("no archive of torch", "one data.pkl", str(len(pickles)))
    root = pickles[0].removesuffix("data.pkl")
    starts = sorted({record.header for record in records.values()} | {data_stop})
    stops = dict(itertools.pairwise(starts))

    def content(name: str) -> Generator[ByteRange, bytes, int]:
        return _content(name, records[name], stops[records[name].header])

    if f"{root}byteorder" in records:
        order = yield from _read((yield from content(f"{root}byteorder")), records[f"{root}byteorder"].nbytes, 16)
        if order != b"little":
            raise _error("unsupported byte order", "little", shown(order))
    first = yield from content(pickles[0])
    data = yield from _read(first, records[pickles[0]].nbytes, _MAX_PICKLE_BYTES)
    value = parse_pickle(data, "data.pkl", _GLOBALS)
    places: dict[str, int] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, item in value.items() if isinstance(value, dict) else [("", value)]:
        if not isinstance(name, str):
            raise _error("no archive of tensors", "text as keys", type(name).__name__)
        try:
            key, tensor = _tensor(item, root, records)
        except FormatError as error:
            raise error.at(shown(name)) if name else error from None
        if key not in places:
            places[key] = yield from content(key)
        tensors[name] = StoredTensor(tensor.dtype, tensor.shape, tensor.strides, places[key] + tensor.start)
    return tensors


def _error(what: str, expected: str, found: str, where: str = "") -> FormatError:
    return FormatError(what, where=where, expected=expected, found=found)


def _read(first: int, nbytes: int, most: int) -> Generator[ByteRange, bytes, bytes]:
    if nbytes > most:
        raise _error("record too long", f"at most {most} bytes", f"{nbytes}")
    return (yield ByteRange(first, first + nbytes)) if nbytes else b""


def _directory(nbytes: int) -> Generator[ByteRange, bytes, tuple[dict[str, _Record], int]]:
    """Return every record by name, and where the directory starts."""
    tail_start = max(0, nbytes - TAIL_BYTES)
    tail = (yield ByteRange(tail_start, nbytes)) if nbytes else b""
    if len(tail) < 22 or tail[-22:-18] != _END:
        raise _error("no end of a zip archive", f"{_END!r} 22 bytes before the end", shown(tail[-22:-18]))
    _, _, _, count, size, start = struct.unpack("<HHHHII", tail[-18:-2])
    if tail[-42:-38] == _LOCATOR64:
        [at] = struct.unpack("<Q", tail[-34:-26])
        if at > nbytes - 56:
            raise _error("broken zip archive", f"an end record within {nbytes} bytes", f"byte {at}")
        end = yield ByteRange(at, at + 56)
        if end[:4] != _END64:
            raise _error("broken zip archive", repr(_END64), shown(end[:4]), f"byte {at}")
        count, size, start = struct.unpack("<QQQ", end[32:56])
    if size > _MAX_DIRECTORY_BYTES or start + size > nbytes or count * 46 > size:
        found = f"{count} records, {size} bytes from {start}"
        raise _error("broken zip archive", f"a directory within {nbytes} bytes", found)
    inside = start >= tail_start
    data = tail[start - tail_start :][:size] if inside else (yield ByteRange(start, start + size))
    return _records(data, count, start), start


def _records(data: bytes, count: int, directory_start: int) -> dict[str, _Record]:
    records: dict[str, _Record] = {}
    at = 0
    for _ in range(count):
        head = data[at : at + 46]
        if len(head) < 46 or head[:4] != _ENTRY:
            raise _error("broken zip archive", f"{count} records in its directory", f"{len(records)}")
        flags, method = struct.unpack("<HH", head[8:12])
        packed, size, name_length, extra_length, comment_length = struct.unpack("<IIHHH", head[20:34])
        [header] = struct.unpack("<I", head[42:46])
        name = data[at + 46 : at + 46 + name_length].decode("utf-8", "replace")
        extra = data[at + 46 + name_length :][:extra_length]
        size, packed, header = _wide(extra, [size, packed, header])
        if method != _STORED or flags & _IS_ENCRYPTED or packed != size:
            found = f"method {method}, {packed} bytes for {size}"
            raise _error("unsupported record", "stored bytes, neither compressed nor encrypted", found, shown(name))
        if header + 30 + size > directory_start or name in records:
            raise _error("broken zip archive", "each record once, before the directory", f"byte {header}", shown(name))
        records[name] = _Record(header, size)
        at += 46 + name_length + extra_length + comment_length
    return records


def _wide(extra: bytes, numbers: list[int]) -> list[int]:
    """Replace numbers that are too large for 32 bits by those of the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1:
            wide = iter(
                struct.unpack(f"<{length // 8}Q", extra[at + 4 : at + 4 + length // 8 * 8].ljust(length // 8 * 8))
            )
            return [next(wide, number) if number == 0xFFFFFFFF else number for number in numbers]
        at += 4 + length
    return numbers


def _content(name: str, record: _Record, stop: int) -> Generator[ByteRange, bytes, int]:
    """Return where a record's bytes begin: only its local header tells."""
    head = yield ByteRange(record.header, record.header + 30)
    if head[:4] != _LOCAL:
        raise _error("broken zip archive", "a local header", shown(head[:4]), f"byte {record.header}")
    name_length, extra_length = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    first = record.header + 30 + name_length + extra_length
    if first + record.nbytes > stop:
        found = f"{first}..{first + record.nbytes}"
        raise _error("broken zip archive", f"bytes before the next record at {stop}", found, shown(name))
    return first


def _tensor(value: object, root: str, records: Mapping[str, _Record]) -> tuple[str, StoredTensor]:
    """Return the record of a tensor's bytes, and the tensor, whose start counts from the record's."""
    while isinstance(value, PickledObject) and value.path == "torch._utils._rebuild_parameter" and value.args:
        value = value.args[0]
    if not isinstance(value, PickledObject) or value.path not in _REBUILD or len(value.args) < 6:
        found = value.path if isinstance(value, PickledObject) else type(value).__name__
        raise _error("no tensor", "a tensor", found)
    storage, offset, shape, strides = value.args[:4]
    key, dtype, count = _storage(storage, value)
    if not _is_shape(shape) or not _is_shape(strides) or type(offset) is not int or offset < 0:
        raise _error("broken tensor", "a size, strides and an offset", shown([shape, strides, offset]))
    assert isinstance(shape, tuple)
    assert isinstance(strides, tuple)
    if len(shape) != len(strides):
        raise _error("broken tensor", f"{len(shape)} strides", f"{len(strides)}")
    record = records.get(f"{root}data/{key}")
    if record is None or record.nbytes != count:
        found = "none" if record is None else f"{record.nbytes}"
        raise _error("broken tensor", f"a record data/{key} of {count} bytes", found)
    last = sum((extent - 1) * step for extent, step in zip(shape, strides, strict=True))
    if math.prod(shape) and (offset + last + 1) * dtype.itemsize > record.nbytes:
        raise _error(
            "broken tensor", f"elements within {record.nbytes} bytes", f"{(offset + last + 1) * dtype.itemsize}"
        )
    return f"{root}data/{key}", StoredTensor(dtype, shape, strides, offset * dtype.itemsize)


def _is_shape(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) > MAX_AXIS_COUNT:
        return False
    return all(type(extent) is int and 0 <= extent < _MAX_COUNT for extent in value)


def _storage(storage: object, tensor: PickledObject) -> tuple[str, DType, int]:
    """Return a storage's key, the dtype of the tensor in it, and its bytes."""
    reference = storage.args[0] if isinstance(storage, PickledObject) and storage.path == PERSISTENT else None
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise _error("broken tensor", "a storage", shown(reference))
    _, kind, key, _, count = reference
    path = kind.path if isinstance(kind, PickledGlobal) else ""
    dtype = TORCH_STORAGES.get(path.removeprefix("torch.").removesuffix("Storage"))
    size = dtype.itemsize if dtype else 1
    if path == _BYTEWISE and len(tensor.args) > 6:  # of a tensor of _rebuild_tensor_v3, which says its dtype itself
        named = tensor.args[6]
        dtype = TORCH_DTYPES.get(named.path.removeprefix("torch.")) if isinstance(named, PickledGlobal) else None
    if dtype is None or not isinstance(key, str) or type(count) is not int or not 0 <= count < _MAX_COUNT:
        raise _error("broken tensor", "a storage of a dtype that is whole bytes", shown([path, key, count]))
    return key, dtype, count * size
