"""Finding every value of a ``.ckpt`` object by reading a few ranges of it; the I/O is the caller's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import FormatError
from ...tensor import Box, ByteRange, TensorSpec, row_major_boxes
from ..container_format import Checksum, ContainerHeader, HeaderScan, HeaderTensor
from ..findings import Findings
from ..protobuf import Wire, read_varint
from ..strict_json import shown
from .ckpt import (
    CRC_MARK,
    CRC_TAIL_BYTES,
    DTYPE_OF,
    INT4,
    LARGEST_EXTENT,
    MAX_AXIS_COUNT,
    MAX_TEXT_BYTES,
    TEXT_TYPE,
    CkptField,
    decode_text,
)

READ_AHEAD_BYTES = 4096
"""Length of the first read; later ones adapt."""

# From the start of a value to its content; without a limit, one name could be the whole object.
_LONGEST_HEAD_BYTES = 2**16
_SMALLEST_READ_BYTES = 512  # a head of usual size and no more: after a large tensor comes a large tensor
_LARGEST_READ_BYTES = 2**20
_NEAR_BYTES = 2**16  # a hop this short costs less when read through than as a request of its own
_MAX_VALUE_COUNT = 100_000  # how much memory a header takes must not be a stranger's choice
_VARINT_BYTES = 10

# Source: mindspore 2.10.0, the first four bytes that ``_encrypt`` writes.
_ENCRYPTED = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}

_NOWHERE = ByteRange(0, 0)
_FIRST_BYTE = CkptField.VALUE << 3 | Wire.BYTES
_CHECKPOINT = {CkptField.VALUE: Wire.BYTES}
_VALUE = {CkptField.TAG: Wire.BYTES, CkptField.TENSOR: Wire.BYTES, CkptField.MAP: Wire.BYTES}
_TENSOR = {CkptField.DIMS: Wire.VARINT, CkptField.TYPE: Wire.BYTES, CkptField.CONTENT: Wire.BYTES}


def scan_ckpt(object_nbytes: int, read_ahead_bytes: int = READ_AHEAD_BYTES) -> HeaderScan:
    """Ask for the ranges of an object that hold all but its tensors' bytes, and return its header.

    Ranges come in ascending order, each from the start of a value. While values are small, every read
    is twice as long as the one before, up to 1 MiB, so that one read covers many; a content that
    reaches more than 64 KiB beyond a read is hopped over, and the next read has 512 bytes. That is
    one small read for each large value: only the value itself shows where the next one begins. Text
    values are read last, one range each.

    The scan is strict where MindSpore fills with zeros, cuts off or overwrites silently: contents
    that do not fit their shapes, and names that come again later, are refused.

    Raises
    ------
    FormatError
        The object is encrypted, truncated or no ``.ckpt``; or some of its values cannot be used, and
        ``problems`` names them (the first 10 000 problems).

    Examples
    --------
    >>> next(scan_ckpt(10**9))
    ByteRange(start=0, stop=4096)
    """
    if read_ahead_bytes < 1:
        raise ValueError(f"read_ahead_bytes: expected at least 1, found {read_ahead_bytes}")
    if not object_nbytes:
        raise _error("empty object", 0, "at least one value", "0 bytes", "Did its upload finish?")
    window = _Window(0, b"", object_nbytes)
    values = _Values()
    offset, crc32, nbytes = 0, None, read_ahead_bytes
    while offset < object_nbytes and crc32 is None:
        try:
            crc32 = _read_crc(window, offset)
            if crc32 is None:
                offset = values.add(_read_head(window, offset))
        except _OutOfWindowError:
            if window.data:
                nbytes = _next_read_bytes(nbytes, window, offset, read_ahead_bytes)
            wanted = ByteRange(offset, min(offset + nbytes, object_nbytes))
            data = yield wanted
            if len(data) != wanted.nbytes:
                found, hint = f"{len(data)}", "Did the object change?"
                raise _error("short read", wanted.start, f"{wanted.nbytes} bytes", found, hint) from None
            window = _Window(offset, data, object_nbytes)
    tensors, metadata, text_ranges = values.finish()
    texts = {}
    for name, where in text_ranges.items():
        texts[name] = decode_text((yield where) if where.nbytes else b"", name)
    checksum = None if crc32 is None else Checksum(crc32, object_nbytes - CRC_TAIL_BYTES)
    return ContainerHeader(tensors, metadata, texts, checksum=checksum)


class _OutOfWindowError(Exception):
    """Bytes are needed that have not been read; a request, never shown to anybody."""


@dataclass(frozen=True, slots=True)
class _Window:
    """The bytes that were read last; offsets count from the object's first byte."""

    start: int
    data: bytes
    object_nbytes: int

    @property
    def stop(self) -> int:
        return self.start + len(self.data)

    def bytes_at(self, start: int, stop: int) -> bytes:
        if not self.start <= start <= stop <= self.stop:
            raise _OutOfWindowError
        return self.data[start - self.start : stop - self.start]

    def varint(self, offset: int, stop: int) -> tuple[int, int]:
        """Read a number that must end before ``stop``; return it and the offset of the byte after it."""
        piece = self.bytes_at(offset, min(stop, offset + _VARINT_BYTES))
        if piece and piece[0] < 0x80:  # nearly all of them; a model has hundreds of thousands
            return piece[0], offset + 1
        try:
            number, nbytes = read_varint(piece, 0, len(piece))
        except FormatError as error:  # its offsets count from the piece
            raise _error(error.what, offset, error.expected, piece.hex(" ") or "the end") from error
        return number, offset + nbytes


def _next_read_bytes(nbytes: int, window: _Window, offset: int, read_ahead_bytes: int) -> int:
    """Return the length of the next read, for a value at ``offset`` whose head is not all in the window."""
    if offset == window.start and len(window.data) >= _LONGEST_HEAD_BYTES:
        raise _error("endless value", offset, f"a content that starts within {_LONGEST_HEAD_BYTES} bytes", "none")
    if offset - window.stop <= _NEAR_BYTES:
        return min(2 * nbytes, max(read_ahead_bytes, _LARGEST_READ_BYTES))
    return min(read_ahead_bytes, _SMALLEST_READ_BYTES)


@dataclass(slots=True)
class _Head:
    """All of one value ``[start, stop)`` but its content, as written and unchecked; filled while it is read.

    ``seen`` are the fields found so far: name, type and content, or name and map.
    """

    start: int
    stop: int
    name: str = ""
    type_name: str = ""
    extents: list[int] = field(default_factory=list)
    content: ByteRange = _NOWHERE
    seen: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Part:
    """A field of a value: its payload is ``[start, stop)``; ``value`` is a varint's number."""

    number: int
    value: int
    start: int
    stop: int


def _read_crc(window: _Window, offset: int) -> int | None:
    """Return the checksum, if a checksum is all that is left of the object.

    MindSpore's reader goes by the mark alone, wherever the last value ends.
    """
    if window.object_nbytes - offset != CRC_TAIL_BYTES:
        return None
    tail = window.bytes_at(offset, window.object_nbytes)
    if not tail.startswith(CRC_MARK):
        return None
    digits = tail[len(CRC_MARK) :]
    if int.from_bytes(digits, "big") >= 2**32:
        raise _error("invalid checksum", offset + len(CRC_MARK), "32 bits in ten bytes", digits.hex(" "))
    return int.from_bytes(digits, "big")


def _read_head(window: _Window, offset: int) -> _Head:
    """Read the value at ``offset`` up to its content."""
    if window.bytes_at(offset, offset + 1)[0] != _FIRST_BYTE:
        raise _not_a_value(window, offset)
    value = _read_part(window, offset, window.object_nbytes, _CHECKPOINT)
    head = _Head(offset, value.stop)
    at = value.start
    while at < value.stop:
        part = _read_part(window, at, value.stop, _VALUE)
        if part.number == CkptField.TAG:
            head.name = _read_text(window, part, head, "name")
        elif part.number == CkptField.TENSOR:
            _read_tensor(window, part, head)
        else:
            head.seen.add("map")
        at = part.stop
    needed = ("name",) if "map" in head.seen else ("name", "type", "content")
    if missing := [what for what in needed if what not in head.seen]:
        raise _error("incomplete value", offset, f"a {', a '.join(needed)}", f"no {', no '.join(missing)}")
    return head


def _read_tensor(window: _Window, tensor: _Part, head: _Head) -> None:
    # Protocol buffers may hold fields in any order; but to find one behind a content would mean to read the content.
    if tensor.stop != head.stop:
        raise _error("bytes after a tensor", tensor.start, "the tensor last in its value", "more fields")
    at = tensor.start
    while at < tensor.stop:
        part = _read_part(window, at, tensor.stop, _TENSOR)
        if part.number == CkptField.DIMS:
            head.extents.append(part.value)
        elif part.number == CkptField.TYPE:
            head.type_name = _read_text(window, part, head, "type")
        elif part.stop != tensor.stop:
            raise _error("bytes after a content", part.start, "the content last in its tensor", "more fields")
        else:
            head.content = ByteRange(part.start, part.stop)
            head.seen.add("content")
        at = part.stop


def _read_part(window: _Window, offset: int, stop: int, known: Mapping[int, Wire]) -> _Part:
    key, at = window.varint(offset, stop)
    number, wire = key >> 3, key & 7
    if known.get(number) != wire:
        expected = " or ".join(f"field {number} of wire type {wire.value}" for number, wire in known.items())
        raise _error("unknown field", offset, expected, f"field {number} of wire type {wire}")
    value, at = window.varint(at, stop)
    if wire == Wire.VARINT:
        return _Part(number, value, at, at)
    if value > stop - at:
        hint = "" if stop < window.object_nbytes else "Is the object truncated? Compare its size."
        raise _error("length beyond the end", offset, f"at most {stop - at} bytes", f"{value} bytes", hint)
    return _Part(number, value, at, at + value)


def _read_text(window: _Window, part: _Part, head: _Head, what: str) -> str:
    if what in head.seen:
        raise _error("repeated field", part.start, f"one {what}", "a second one")
    head.seen.add(what)
    if part.value > _LONGEST_HEAD_BYTES:
        raise _error(f"{what} too long", part.start, f"at most {_LONGEST_HEAD_BYTES} bytes", f"{part.value} bytes")
    payload = window.bytes_at(part.start, part.stop)
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        found = payload[error.start : error.start + 4].hex(" ")
        raise _error("not text", part.start + error.start, "UTF-8", found) from error


class _Values:
    """The values so far; neighbours of one name are one tensor, so the last of them is still open."""

    def __init__(self) -> None:
        self._tensors: list[HeaderTensor] = []
        self._texts: dict[str, ByteRange] = {}
        self._int4: dict[str, str] = {}
        self._names: set[str] = set()
        self._open: list[_Head] = []
        self._value_count = 0
        self._findings = Findings()
        self._hints: dict[str, None] = {}  # a set in the order of its making

    def add(self, head: _Head) -> int:
        """Take one more value; return where it ends."""
        self._value_count += 1
        if self._value_count > _MAX_VALUE_COUNT:
            raise _error("too many values", head.start, f"at most {_MAX_VALUE_COUNT}", "more")
        if self._open and self._open[0].name != head.name:
            self._close()
        self._open.append(head)
        return head.stop

    def finish(self) -> tuple[tuple[HeaderTensor, ...], dict[str, str], dict[str, ByteRange]]:
        """Return tensors, notes of packed int4, and the ranges of texts; raise FormatError for unusable values."""
        if not self._open:
            raise _error("no values", 0, "at least one value", "a checksum only")
        self._close()
        expected = "tensors and texts with unique names and bytes that fit"
        self._findings.raise_any("unusable values", expected=expected, hint=" ".join(self._hints))
        return tuple(self._tensors), self._int4, self._texts

    def _close(self) -> None:
        values, self._open = self._open, []
        first, contents = values[0], tuple(value.content for value in values)
        if first.name in self._names:
            self._problem(first, "a unique name", "the name of an earlier value")
        self._names.add(first.name)
        if any("map" in value.seen for value in values):
            hint = "Map parameters fit no other format: save the model without them."
            self._problem(first, "a tensor or a text", "a map parameter (an embedding's hash table)", hint)
        elif any((value.type_name, value.extents) != (first.type_name, first.extents) for value in values):
            self._problem(first, "one type and one shape", f"several, in {len(values)} neighbours of this name")
        elif first.type_name == TEXT_TYPE:
            nbytes = sum(where.nbytes for where in contents)
            if len(contents) > 1 or nbytes > MAX_TEXT_BYTES or nbytes % 4:
                expected = f"a text of at most {MAX_TEXT_BYTES} bytes, 4 a character, in one value"
                self._problem(first, expected, f"{nbytes} bytes in {len(contents)} values")
            else:
                self._texts[first.name] = contents[0]
        elif first.type_name not in DTYPE_OF:
            self._problem(first, f"a type of {', '.join(DTYPE_OF)}, {TEXT_TYPE}", shown(first.type_name))
        elif len(first.extents) > MAX_AXIS_COUNT or max(first.extents, default=0) > LARGEST_EXTENT:
            expected = f"at most {MAX_AXIS_COUNT} extents from 0 to 2**63 - 1"
            self._problem(first, expected, f"{len(first.extents)}: {shown(first.extents)}")
        else:
            self._add_tensor(first, contents)

    def _add_tensor(self, value: _Head, contents: tuple[ByteRange, ...]) -> None:
        dtype, nbytes = DTYPE_OF[value.type_name], sum(where.nbytes for where in contents)
        # MindSpore before 2.5 wrote scalars as [0]. So is an empty tensor of one axis, but without content.
        is_old_scalar = value.extents == [0] and nbytes == dtype.itemsize
        spec = TensorSpec(value.name, dtype, () if is_old_scalar else tuple(value.extents))
        if math.prod(spec.shape) * dtype.itemsize != nbytes:
            expected = f"{spec.nbytes} bytes for {value.type_name} {shown(value.extents)}"
            self._problem(value, expected, f"{nbytes}", "MindSpore would pad or truncate these tensors.")
        elif any(where.nbytes % dtype.itemsize for where in contents):
            self._problem(value, "whole elements in every piece", f"pieces that split an element of {value.type_name}")
        else:
            self._tensors.append(HeaderTensor(spec, _boxes(spec, contents)))
            if value.type_name == INT4:
                self._int4[value.name] = INT4

    def _problem(self, value: _Head, expected: str, found: str, hint: str = "") -> None:
        self._findings.add(f"{shown(value.name)}, byte {value.start}", expected, found)
        if hint:
            self._hints[hint] = None


def _boxes(spec: TensorSpec, contents: tuple[ByteRange, ...]) -> tuple[tuple[Box, int], ...]:
    """Place the elements of consecutive contents: a content need not end with a row, and is then several boxes."""
    boxes, first, itemsize = [], 0, spec.dtype.itemsize
    for where in contents:
        stop, start = first + where.nbytes // itemsize, where.start
        for box in row_major_boxes(spec.shape, first, stop):
            boxes.append((box, start))
            start += box.element_count * itemsize
        first = stop
    return tuple(boxes)


def _not_a_value(window: _Window, offset: int) -> FormatError:
    found = window.bytes_at(offset, min(offset + 4, window.object_nbytes))
    mode = _ENCRYPTED.get(int.from_bytes(found, "little")) if offset == 0 else None
    if mode:
        hint = f"Load it in MindSpore, load_checkpoint(..., dec_key=..., dec_mode={mode!r}), and save it without a key."
        return _error("encrypted object", 0, "a plain .ckpt", f"one that MindSpore encrypted with {mode}", hint)
    is_strategy = offset == 0 and found.startswith(b"\x08")
    hint = "MindSpore's strategy files end in .ckpt and start like this, too." if is_strategy else ""
    return _error("not a value of a .ckpt", offset, "0a, or a checksum at the end", found.hex(" "), hint)


def _error(what: str, offset: int, expected: str, found: str, hint: str = "") -> FormatError:
    return FormatError(what, where=f"byte {offset}", expected=expected, found=found, hint=hint)
