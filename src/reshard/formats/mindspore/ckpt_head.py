"""All of one ``.ckpt`` value but its content, from bytes that may not reach far enough yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import FormatError
from ...tensor import ByteRange
from ..protobuf import Wire, read_varint
from .ckpt_values import CRC_MARK, CRC_TAIL_BYTES, CkptField

LONGEST_HEAD_BYTES = 2**16
"""Most bytes from the start of a value to its content; without an end, a name could be the whole object."""

_VARINT_BYTES = 10

# Source: mindspore 2.10.0, the first four bytes that ``_encrypt`` writes.
_ENCRYPTED = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}

_NOWHERE = ByteRange(0, 0)
_FIRST_BYTE = CkptField.VALUE << 3 | Wire.BYTES
_CHECKPOINT = {CkptField.VALUE: Wire.BYTES}
_VALUE = {CkptField.TAG: Wire.BYTES, CkptField.TENSOR: Wire.BYTES, CkptField.MAP: Wire.BYTES}
_TENSOR = {CkptField.DIMS: Wire.VARINT, CkptField.TYPE: Wire.BYTES, CkptField.CONTENT: Wire.BYTES}


class OutOfWindowError(Exception):
    """Bytes are needed that have not been read; a request, never shown to anybody."""


@dataclass(frozen=True, slots=True)
class Window:
    """The bytes of the object that were read last; offsets count from the object's first byte.

    Examples
    --------
    >>> Window(100, b"\\xac\\x02", object_nbytes=102).varint(100, stop=102)
    (300, 102)
    """

    start: int
    data: bytes
    object_nbytes: int

    @property
    def stop(self) -> int:
        """One past the last byte."""
        return self.start + len(self.data)

    def bytes_at(self, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)``.

        Raises
        ------
        OutOfWindowError
            Not all of them are here.
        """
        if not self.start <= start <= stop <= self.stop:
            raise OutOfWindowError
        return self.data[start - self.start : stop - self.start]

    def varint(self, offset: int, stop: int) -> tuple[int, int]:
        """Read a number that must end before ``stop``; return it and the offset of the byte after it."""
        piece = self.bytes_at(offset, min(stop, offset + _VARINT_BYTES))
        if piece and piece[0] < 0x80:  # nearly all of them; a model has hundreds of thousands
            return piece[0], offset + 1
        try:
            number, nbytes = read_varint(piece, 0, len(piece))
        except FormatError as error:  # its offsets count from the piece
            raise ckpt_error(error.what, offset, error.expected, piece.hex(" ") or "the end") from error
        return number, offset + nbytes


@dataclass(slots=True)
class Head:
    """What one value says about itself; filled while it is read.

    Parameters
    ----------
    start, stop
        The bytes of the whole value.
    name, type_name, extents
        As written, unchecked.
    content
        Where the content is.
    seen
        Which of its fields were there: name, type and content, or name and map.
    """

    start: int
    stop: int
    name: str = ""
    type_name: str = ""
    extents: list[int] = field(default_factory=list)
    content: ByteRange = _NOWHERE
    seen: set[str] = field(default_factory=set)

    @property
    def is_map(self) -> bool:
        """Whether the value is a map parameter."""
        return "map" in self.seen


@dataclass(frozen=True, slots=True)
class _Part:
    """A field: its payload is ``[start, stop)``; ``value`` is a varint's number."""

    number: int
    value: int
    start: int
    stop: int


def read_crc(window: Window, offset: int) -> int | None:
    """Return the checksum, if a checksum is all that is left of the object.

    MindSpore's reader goes by the mark alone, wherever the last value ends.

    Raises
    ------
    OutOfWindowError
        More bytes are needed.
    FormatError
        The checksum has more than 32 bits.
    """
    if window.object_nbytes - offset != CRC_TAIL_BYTES:
        return None
    tail = window.bytes_at(offset, window.object_nbytes)
    if not tail.startswith(CRC_MARK):
        return None
    digits = tail[len(CRC_MARK) :]
    if int.from_bytes(digits, "big") >= 2**32:
        raise ckpt_error("wrong checksum", offset + len(CRC_MARK), "32 bits in ten bytes", digits.hex(" "))
    return int.from_bytes(digits, "big")


def read_head(window: Window, offset: int) -> Head:
    """Read the value at ``offset`` up to its content.

    Raises
    ------
    OutOfWindowError
        More bytes are needed.
    FormatError
        There is no value, or it breaks the format.
    """
    if window.bytes_at(offset, offset + 1)[0] != _FIRST_BYTE:
        raise _not_a_value(window, offset)
    value = _read_part(window, offset, window.object_nbytes, _CHECKPOINT)
    head = Head(offset, value.stop)
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
    _check_complete(head)
    return head


def _read_tensor(window: Window, tensor: _Part, head: Head) -> None:
    # Protocol buffers may hold fields in any order; but to find some behind a content would mean to read it.
    if tensor.stop != head.stop:
        raise ckpt_error("bytes after a tensor", tensor.start, "the tensor last in its value", "more fields")
    at = tensor.start
    while at < tensor.stop:
        part = _read_part(window, at, tensor.stop, _TENSOR)
        if part.number == CkptField.DIMS:
            head.extents.append(part.value)
        elif part.number == CkptField.TYPE:
            head.type_name = _read_text(window, part, head, "type")
        elif part.stop != tensor.stop:
            raise ckpt_error("bytes after a content", part.start, "the content last in its tensor", "more fields")
        else:
            head.content = ByteRange(part.start, part.stop)
            head.seen.add("content")
        at = part.stop


def _read_part(window: Window, offset: int, stop: int, known: Mapping[int, Wire]) -> _Part:
    key, at = window.varint(offset, stop)
    number, wire = key >> 3, key & 7
    if known.get(number) != wire:
        expected = " or ".join(f"field {number} of wire type {wire.value}" for number, wire in known.items())
        raise ckpt_error("unknown field", offset, expected, f"field {number} of wire type {wire}")
    value, at = window.varint(at, stop)
    if wire == Wire.VARINT:
        return _Part(number, value, at, at)
    if value > stop - at:
        hint = "" if stop < window.object_nbytes else "Is the object cut short? Compare its size."
        raise ckpt_error("length beyond the end", offset, f"at most {stop - at} bytes", f"{value} bytes", hint)
    return _Part(number, value, at, at + value)


def _read_text(window: Window, part: _Part, head: Head, what: str) -> str:
    if what in head.seen:
        raise ckpt_error("repeated field", part.start, f"one {what}", "a second one")
    head.seen.add(what)
    if part.value > LONGEST_HEAD_BYTES:
        raise ckpt_error(f"{what} too long", part.start, f"at most {LONGEST_HEAD_BYTES} bytes", f"{part.value} bytes")
    payload = window.bytes_at(part.start, part.stop)
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        found = payload[error.start : error.start + 4].hex(" ")
        raise ckpt_error("not text", part.start + error.start, "UTF-8", found) from error


def _check_complete(head: Head) -> None:
    needed = ("name",) if head.is_map else ("name", "type", "content")
    missing = [what for what in needed if what not in head.seen]
    if missing:
        raise ckpt_error("incomplete value", head.start, f"a {', a '.join(needed)}", f"no {', no '.join(missing)}")


def _not_a_value(window: Window, offset: int) -> FormatError:
    found = window.bytes_at(offset, min(offset + 4, window.object_nbytes))
    mode = _ENCRYPTED.get(int.from_bytes(found, "little")) if offset == 0 else None
    if mode:
        hint = f"Load it in MindSpore, load_checkpoint(..., dec_key=..., dec_mode={mode!r}), and save it without a key."
        return ckpt_error("encrypted object", 0, "a plain .ckpt", f"one that MindSpore encrypted with {mode}", hint)
    is_strategy = offset == 0 and found.startswith(b"\x08")
    hint = "MindSpore's strategy files end in .ckpt and start like this, too." if is_strategy else ""
    return ckpt_error("not a value of a .ckpt", offset, "0a, or a checksum at the end", found.hex(" "), hint)


def ckpt_error(what: str, offset: int, expected: str, found: str, hint: str = "") -> FormatError:
    """Make the error for a broken rule at a byte of the object."""
    return FormatError(what, where=f"byte {offset}", expected=expected, found=found, hint=hint)
