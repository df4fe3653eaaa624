"""The wire format: what is written is read back, and nothing broken is read at all."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.protobuf import Message, Wire, bytes_field, encode_varint, int_field, read_varint, text_field


def fields(data):
    return list(Message.whole(data, "file").fields())


@given(st.integers(0, 2**64 - 1))
def test_varint_round_trip(value):
    data = encode_varint(value)
    assert read_varint(data, 0, len(data)) == (value, len(data))
    assert len(data) == max(1, -(-value.bit_length() // 7))


@given(st.integers(-(2**31), 2**31 - 1))
def test_negative_numbers_take_ten_bytes(value):
    data = int_field(7, value)
    assert fields(data)[0].integer(32, is_signed=True) == value
    assert len(data) == (11 if value < 0 else 1 + len(encode_varint(value)))


@given(st.lists(st.integers(-(2**31), 2**31 - 1)), st.booleans())
def test_repeated_numbers_packed_or_not(numbers, packed):
    one_by_one = b"".join(int_field(1, number) for number in numbers)
    together = bytes_field(1, b"".join(encode_varint(number % 2**64) for number in numbers))
    found = [n for field in fields(together if packed else one_by_one) for n in field.integers(32, is_signed=True)]
    assert found == numbers


def test_packed_and_single_numbers_mix():
    data = int_field(1, 5) + bytes_field(1, b"\x06\x07") + int_field(1, 8)
    assert [n for field in fields(data) for n in field.integers(32)] == [5, 6, 7, 8]


def test_other_fields_are_stepped_over():
    data = b"\x09" + bytes(8) + b"\x15" + bytes(4) + text_field(3, "é") + int_field(2**29 - 1, 1)
    found = fields(data)
    assert [(field.number, field.wire) for field in found] == [
        (1, Wire.FIXED64),
        (2, Wire.FIXED32),
        (3, Wire.BYTES),
        (2**29 - 1, Wire.VARINT),
    ]
    assert found[2].message().text() == "é"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x08", "byte 1: truncated varint"),
        (b"\x08\x80", "byte 1: truncated varint"),
        (b"\x80", "byte 0: truncated varint"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "byte 1: overlong varint"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "byte 1: overlong varint"),
        (b"\x08\x81\x00", "byte 1: overlong varint"),
        (b"\x0a\x05abcd", "byte 0: field 1 is truncated: .* found 5 bytes, 4 left"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "field 1 is truncated"),
        (b"\x09\x00", "field 1 is truncated"),
        (b"\x0d\x00", "field 1 is truncated"),
        (b"\x0b", "field 1: wire type: expected 0, 1, 2 or 5, found 3"),
        (b"\x0c", "found 4"),
        (b"\x0e", "found 6"),
        (b"\x00\x00", "invalid field number"),
        (b"\x80\x80\x80\x80\x10\x00", "invalid field number"),
        (b"\x08\x01\x0b", "byte 2: field 1: wire type"),
    ],
)
def test_broken_bytes(data, problem):
    with pytest.raises(FormatError, match=problem) as caught:
        fields(data)
    assert str(caught.value).startswith("file, byte ")


def test_a_length_cannot_reach_out_of_its_message():
    inner = b"\x0a\x04"  # says four bytes; the outer message has them, this one does not
    outer = fields(bytes_field(1, inner) + b"\x10\x01\x10\x01")
    with pytest.raises(FormatError, match="byte 2: field 1 is truncated"):
        list(outer[0].message().fields())


@pytest.mark.parametrize("take", ["signed", "unsigned"])
def test_wrong_wire_type(take):
    (text,), (number,) = fields(text_field(1, "a")), fields(int_field(1, 1))
    with pytest.raises(FormatError, match=r"field 1: wire type: expected 0 \(VARINT\), found 2 \(BYTES\)"):
        text.integer(32, is_signed=take == "signed")
    with pytest.raises(FormatError, match=r"expected 2 \(BYTES\), found 0 \(VARINT\)"):
        number.message()


def test_wrong_wire_type_of_repeated_numbers():
    (fixed,) = fields(b"\x0d" + bytes(4))
    with pytest.raises(FormatError, match="wire type"):
        fixed.integers(32)


@pytest.mark.parametrize(
    ("value", "take"), [(2**32, "unsigned"), (-1, "unsigned"), (2**31, "signed"), (-(2**31) - 1, "signed")]
)
def test_number_out_of_bits(value, take):
    with pytest.raises(FormatError, match="field 1: number"):
        fields(int_field(1, value))[0].integer(32, is_signed=take == "signed")


def test_text_must_be_utf8():
    with pytest.raises(FormatError, match="byte 3: not text: expected UTF-8, found ff"):
        fields(bytes_field(1, b"a\xff"))[0].message().text()


def test_lying_lengths_allocate_nothing():
    data = b"\x0a\xff\xff\xff\x7f" + bytes(100)
    tracemalloc.start()
    with pytest.raises(FormatError):
        fields(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@given(st.binary(max_size=200))
def test_any_bytes(data):
    with contextlib.suppress(FormatError):
        for field in fields(data):
            assert 0 <= field.offset < field.payload.start <= field.payload.stop <= len(data)
            with contextlib.suppress(FormatError):
                list(field.message().fields())
                field.message().text()
            with contextlib.suppress(FormatError):
                field.integers(32, is_signed=True)
