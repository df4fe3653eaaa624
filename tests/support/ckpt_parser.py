"""A second reader of MindSpore's ``.ckpt``, that the first can be compared with: the whole object, a byte at a time.

It knows three messages of protocol buffers and no more, joins values of one name that stand side by side, and
asserts instead of explaining. It uses nothing of the package.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

CRC_MARK = b"crc_num"
CRC_BYTES = len(CRC_MARK) + 10


@dataclass
class Value:
    """One value: MindSpore's name of its type, its extents and its bytes."""

    type_name: str
    extents: tuple[int, ...]
    data: bytes


@dataclass
class Parsed:
    """Everything in one object; ``values`` are in its order, and ``is_checked`` if a checksum was there, and right."""

    values: dict[str, Value] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    is_checked: bool = False


def parse_ckpt(data: bytes) -> Parsed:
    """Read a whole object."""
    parsed = Parsed()
    if data[-CRC_BYTES:].startswith(CRC_MARK):
        body = data[:-CRC_BYTES]
        assert int.from_bytes(data[-10:], "big") == zlib.crc32(body)
        parsed.is_checked, data = True, body
    last = ""
    for number, value in _fields(data):
        assert number == 1, number
        fields = dict(_fields(value))
        assert fields.keys() == {1, 2}, fields.keys()  # a name and a tensor; 3 would be a map
        name = fields[1].decode()
        _take(parsed, name, fields[2], is_more=name == last)
        last = name
    return parsed


def _take(parsed: Parsed, name: str, message: bytes, *, is_more: bool) -> None:
    extents, type_name, content = [], "", b""
    for number, value in _fields(message):
        if number == 1:
            extents.append(value)
        elif number == 2:
            type_name = value.decode()
        else:
            assert number == 3, number
            content += value
    if type_name == "str":
        assert name not in parsed.texts
        assert extents == [0]
        parsed.texts[name] = content.decode("utf-32-le").rstrip("\0")
        return
    made = Value(type_name, () if extents == [0] else tuple(extents), content)
    if is_more and name in parsed.values:
        first = parsed.values[name]
        assert (first.type_name, first.extents) == (made.type_name, made.extents)
        first.data += made.data
        return
    assert name not in parsed.values
    parsed.values[name] = made


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """Every field of a message: its number, and a number or bytes."""
    found, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        assert key & 7 in (0, 2), key
        if key & 7 == 2:
            assert at + value <= len(data)
            value, at = data[at : at + value], at + value
        found.append((key >> 3, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
