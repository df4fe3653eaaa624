"""The protocol buffer wire format, read strictly and written; the caller knows what the fields mean.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from ..errors import FormatError

_VARINT_BYTES = 10
_LARGEST_FIELD_NUMBER = 2**29 - 1
# A field takes some 200 bytes of memory, and may be two bytes long.
_FIELD_COUNT = 250_000
_BYTES_PER_FIELD = 64
_NUMBER_COUNT = 1 << 17  # rows cut by hand have one a rank


class Wire(IntEnum):
    """How a field's payload is laid out; groups (3 and 4) are refused."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


_WIRES = {wire.value: wire for wire in Wire}


def read_varint(data: bytes, offset: int, stop: int, where: str = "") -> tuple[int, int]:
    """Read one varint that must end before ``stop``; return its value, below 2**64, and the offset after it.

    Raise FormatError if it is truncated, or longer than its value needs.

    Examples
    --------
    >>> read_varint(b"\\xac\\x02", 0, 2)
    (300, 2)
    """
    if offset < stop and data[offset] < 0x80:  # as nearly all are
        return data[offset], offset + 1
    value = shift = 0
    for position in range(offset, min(stop, offset + _VARINT_BYTES)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64 or (byte == 0 and position > offset):
                break
            return value, position + 1
        shift += 7
    else:
        if stop < offset + _VARINT_BYTES:
            raise _error("truncated varint", where, offset, "a last byte below 0x80", f"the end at byte {stop}")
    raise _error("overlong varint", where, offset, "the shortest form of a 64-bit number", data[offset:][:10].hex(" "))


@dataclass(frozen=True, slots=True)
class Message:
    """A message, or any other length-delimited payload: the bytes ``[start, stop)`` of a buffer, never copied.

    Errors name the buffer ``where`` and count offsets from its start.

    Examples
    --------
    >>> [(field.number, field.value) for field in Message.whole(b"\\x08\\x02").fields()]
    [(1, 2)]
    """

    data: bytes
    start: int
    stop: int
    where: str = ""

    @classmethod
    def whole(cls, data: bytes, where: str = "") -> Message:
        """Return the message that fills a buffer."""
        return cls(data, 0, len(data), where)

    def fields(self) -> Iterator[Field]:
        """Yield every field in the order of the bytes; raise FormatError where one breaks the wire format."""
        offset = self.start
        while offset < self.stop:
            field, offset = self._field(offset)
            yield field

    def grouped(self) -> dict[int, list[Field]]:
        """Return the fields by number, in the order of the bytes; raise FormatError for very many short ones."""
        fields: dict[int, list[Field]] = {}
        most = _FIELD_COUNT + (self.stop - self.start) // _BYTES_PER_FIELD
        for count, field in enumerate(self.fields(), 1):
            if count > most:
                raise _error("too many fields", self.where, field.offset, f"at most {most}", "more")
            fields.setdefault(field.number, []).append(field)
        return fields

    @property
    def payload(self) -> bytes:
        """A copy of the bytes."""
        return self.data[self.start : self.stop]

    def text(self) -> str:
        """Return the payload as text; raise FormatError if it is not UTF-8."""
        try:
            return self.payload.decode()
        except UnicodeDecodeError as error:
            found = self.payload[error.start : error.start + 4].hex(" ")
            raise _error("not text", self.where, self.start + error.start, "UTF-8", found) from error

    def _field(self, offset: int) -> tuple[Field, int]:
        tag, payload = read_varint(self.data, offset, self.stop, self.where)
        number, wire = tag >> 3, _WIRES.get(tag & 7)
        if not 1 <= number <= _LARGEST_FIELD_NUMBER:
            raise _error("invalid field number", self.where, offset, f"1..{_LARGEST_FIELD_NUMBER}", str(number))
        if wire is None:
            raise _error(f"field {number}: wire type", self.where, offset, "0, 1, 2 or 5", str(tag & 7))
        if wire is Wire.VARINT:
            value, stop = read_varint(self.data, payload, self.stop, self.where)
            return Field(number, Wire.VARINT, offset, value, Message(self.data, payload, stop, self.where)), stop
        length, start = 8 if wire is Wire.FIXED64 else 4, payload
        if wire is Wire.BYTES:
            length, start = read_varint(self.data, payload, self.stop, self.where)
        if length > self.stop - start:
            found = f"{length} bytes, {self.stop - start} left"
            raise _error(f"field {number} is truncated", self.where, offset, "a payload inside its message", found)
        end = start + length
        return Field(number, wire, offset, 0, Message(self.data, start, end, self.where)), end


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    ``offset`` is that of its tag in the buffer; ``value`` is the number of a varint field, unsigned, and 0 for
    the other wire types.
    """

    number: int
    wire: Wire
    offset: int
    value: int
    payload: Message

    def message(self) -> Message:
        """Return the payload of a length-delimited field: a message, a text or packed numbers."""
        self._check_wire(Wire.BYTES)
        return self.payload

    def integer(self, bits: int, *, is_signed: bool = False) -> int:
        """Return a varint as a number of so many bits; negative ones are always written as 64 bits.

        Raise FormatError if the field has another wire type, or the number needs more bits.

        Examples
        --------
        >>> field, = Message.whole(int_field(1, -1)).fields()
        >>> field.integer(32, is_signed=True)
        -1
        """
        self._check_wire(Wire.VARINT)
        return self._in_bits(self.value, bits, is_signed)

    def integers(self, bits: int, *, is_signed: bool = False) -> list[int]:
        """Return the elements that this field adds to a repeated number, packed or not."""
        if self.wire is Wire.VARINT:
            return [self._in_bits(self.value, bits, is_signed)]
        packed, numbers = self.message(), list[int]()
        offset = packed.start
        while offset < packed.stop:
            value, offset = read_varint(packed.data, offset, packed.stop, packed.where)
            numbers.append(self._in_bits(value, bits, is_signed))
            if len(numbers) > _NUMBER_COUNT:
                raise _error(f"field {self.number}", packed.where, offset, f"at most {_NUMBER_COUNT} numbers", "more")
        return numbers

    def _in_bits(self, value: int, bits: int, is_signed: bool) -> int:
        low, stop = (-(1 << bits - 1), 1 << bits - 1) if is_signed else (0, 1 << bits)
        number = value - 2**64 if is_signed and value >= 2**63 else value
        if not low <= number < stop:
            what = f"field {self.number}: number"
            raise _error(what, self.payload.where, self.offset, f"{low}..{stop - 1}", str(number))
        return number

    def _check_wire(self, expected: Wire) -> None:
        if self.wire is not expected:
            what, found = f"field {self.number}: wire type", f"{self.wire.value} ({self.wire.name})"
            raise _error(what, self.payload.where, self.offset, f"{expected.value} ({expected.name})", found)


def encode_varint(value: int) -> bytes:
    """Write a number, ``0 <= value < 2**64``, in its shortest form."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def int_field(number: int, value: int) -> bytes:
    """Write a varint field; negative numbers take ten bytes, whatever the declared size.

    Examples
    --------
    >>> int_field(1, 2).hex(), len(int_field(1, -1))
    ('0802', 11)
    """
    return encode_varint(number << 3 | Wire.VARINT) + encode_varint(value % 2**64)


def bytes_field(number: int, payload: bytes) -> bytes:
    """Write a length-delimited field: bytes, or a message that is encoded already."""
    return encode_varint(number << 3 | Wire.BYTES) + encode_varint(len(payload)) + payload


def text_field(number: int, text: str) -> bytes:
    """Write a string field."""
    return bytes_field(number, text.encode())


def _error(what: str, where: str, offset: int, expected: str, found: str) -> FormatError:
    place = ", ".join(part for part in (where, f"byte {offset}") if part)
    return FormatError(what, where=place, expected=expected, found=found)
