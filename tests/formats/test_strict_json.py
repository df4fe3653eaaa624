"""JSON that two readers could understand differently is refused, with the place and the finding."""

import pytest

from reshard.errors import FormatError
from reshard.formats.strict_json import json_kind, parse_json_object, shown

REFUSED = {
    "nothing": (b"", "invalid JSON", "the end"),
    "not text": (b'{"a": "\xff"}', "where, byte 7", "UTF-8"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "byte 0", "UTF-8"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "invalid JSON", "BOM"),
    "array": (b"[1]", "expected an object", "found an array"),
    "string": (b'"a"', "expected an object", "found a string"),
    "null": (b"null", "expected an object", "found null"),
    "true": (b"true", "expected an object", "found a boolean"),
    "number": (b"1", "expected an object", "found a number"),
    "repeated key": (b'{"a": 1, "a": 1}', "repeated keys", "'a'"),
    "repeated key, escaped once": (b'{"a": 1, "\\u0061": 1}', "repeated keys", "'a'"),
    "repeated key, deep": (b'{"a": [{"b": {"c": 1, "c": 2}}]}', "repeated keys", "'c'"),
    "NaN": (b'{"a": NaN}', "finite", "found NaN"),
    "Infinity": (b'{"a": [Infinity]}', "finite", "found Infinity"),
    "-Infinity": (b'{"a": -Infinity}', "finite", "found -Infinity"),
    "float overflow": (b'{"a": 1e400}', "finite", "'1e400'"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}", "out of bounds", "digits"),
    "deep arrays": (b'{"a": ' + b"[" * 100_000, "nested too deeply", "a few levels"),
    "deep objects": (b'{"a":' * 100_000, "nested too deeply", "a few levels"),
    "lone surrogate": (b'{"a": "\\ud800"}', "surrogate", r"\ud800"),
    "lone surrogate in a key": (b'{"\\uDFFF": 1}', "surrogate", r"\udfff"),
    "control character": (b'{"a": "\n"}', "invalid JSON", "byte 7"),
    "trailing text": (b'{"a": 1} x', "invalid JSON (Extra data)", "found 'x'"),
    "trailing object": (b"{}{}", "byte 2", "nothing after it"),
    "trailing NUL": (b"{}\0", "byte 2", r"'\x00'"),
    "trailing comma": (b'{"a": 1,}', "invalid JSON", "byte"),
    "single quotes": (b"{'a': 1}", "invalid JSON", "byte 1"),
    "comment": (b'{"a": 1 /* one */}', "invalid JSON", "byte 8"),
    "cut short": (b'{"a": {"b": 1', "invalid JSON", "the end"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    data, *fragments = REFUSED[case]
    with pytest.raises(FormatError) as caught:
        parse_json_object(data, "where")
    message = str(caught.value)
    assert message.startswith("where")
    assert caught.value.expected
    assert caught.value.found
    assert all(fragment in message for fragment in fragments), message
    assert len(message) < 400
    message.encode("utf-8")


def test_everything_json_has_is_kept():
    data = '{"é": [1, -2, 1.5, 1e3, true, false, null, "\\ud83d\\ude00", {}], "": ""}'.encode()
    expected = {"é": [1, -2, 1.5, 1000.0, True, False, None, "😀", {}], "": ""}
    assert parse_json_object(data, "where") == expected
    assert parse_json_object(b" \t\r\n{} \n", "where") == {}


def test_the_same_key_in_two_objects_is_fine():
    assert parse_json_object(b'{"a": {"x": 1}, "b": {"x": 1}}', "where") == {"a": {"x": 1}, "b": {"x": 1}}


def test_byte_offsets_count_bytes_from_the_objects_start():
    with pytest.raises(FormatError, match=r"^header, byte 16: invalid JSON"):
        parse_json_object('{"é": x}'.encode(), "header", first_byte=9)
    with pytest.raises(FormatError, match=r"^header, byte 15: not text"):
        parse_json_object(b'{"a": "\xff"}', "header", first_byte=8)


def test_all_repeated_keys_are_listed_once():
    with pytest.raises(FormatError) as caught:
        parse_json_object(b'{"a": 1, "a": 2, "a": 3, "b": {"c": 1, "c": 2}}', "where")
    assert sorted(caught.value.problems) == ["'a'", "'c'"]


@pytest.mark.parametrize(
    "value", ["x" * 10**6, ["y" * 1000] * 1000, [[[[1] * 100] * 100] * 100] * 100, 10**4000, {"k": {"l": ["m"] * 99}}]
)
def test_whatever_is_shown_is_short(value):
    assert len(shown(value)) <= 120


def test_what_is_shown_cannot_drive_a_terminal():
    assert shown("\x1b[31m\n\ud800") == r"'\x1b[31m\n\ud800'"


def test_kinds_have_json_names():
    kinds = [json_kind(value) for value in ({}, [], "", True, None, 1, 1.5)]
    assert kinds == ["an object", "an array", "a string", "a boolean", "null", "a number", "a number"]


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'{"a":0},', b"[0],"])
def test_dense_text_is_refused_before_it_is_parsed(unit):
    with pytest.raises(FormatError, match="too many values"):
        parse_json_object(b'{"a":[' + unit * 2_000_000 + b"0]}", "f")
    assert len(parse_json_object(b'{"a":[' + unit * 10_000 + b"0]}", "f")["a"]) == 10_001
