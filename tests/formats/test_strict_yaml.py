"""YAML without its surprises."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.strict_yaml import parse_yaml


def test_plain_values():
    text = b"a: [1, -2, x, '3', true, No, ~, null, '']\nb: {c: 0-11}\n"
    assert parse_yaml(text, "f") == {"a": [1, -2, "x", "3", True, False, None, None, ""], "b": {"c": "0-11"}}
    assert parse_yaml(b"", "f") is None
    assert parse_yaml(b"\xef\xbb\xbfa: 1", "f") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"a: 1\nb: 2\na: 3", "f, line 3: repeated key: found 'a'"),
        (b"a: {b: 1, b: 2}", "repeated key"),
        (b"a: &x 1\nb: *x", "f, line 2: .*aliases are not allowed"),
        (b"<<: {a: 1}", "line 1: value"),
        (b"a: !!python/object/apply:os.system [ls]", "line 1: value"),
        (b"a: !!int ''", "line 1: value"),
        (b"a: !!bool maybe", "line 1: value"),
        (b"a: 1.5", "found '1.5'"),
        (b"a: 010", "found '010'"),
        (b"a: 0x10", "found '0x10'"),
        (b"a: 1_000", "found '1_000'"),
        (b"a: 12:30", "found '12:30'"),
        (b"a: 2020-01-02", "found '2020-01-02'"),
        (b"a: " + b"9" * 5000, "line 1: value"),
        (b"1: a", "line 1: key: expected a string, found 1"),
        (b"null: a", "line 1: key"),
        (b"? [a]\n: 1", "line 1: key"),
        (b"[" * 1000, "nested too deeply"),
        (b"a: 'x", "invalid YAML"),
        (b"--- a\n--- b", "another document"),
        (b"\xff", "f, byte 0: not text"),
        (b"a: \x00", "invalid YAML"),
        (b" " * (4 * 2**20 + 1), "too long"),
    ],
)
def test_refused(text, problem):
    with pytest.raises(FormatError, match=problem):
        parse_yaml(text, "f")


def test_too_many_values(monkeypatch):
    monkeypatch.setitem(parse_yaml.__globals__, "_LARGEST_NODE_COUNT", 10)
    assert parse_yaml(b"[" + b"1," * 9 + b"]", "f") == [1] * 9
    with pytest.raises(FormatError, match="more than 10 values"):
        parse_yaml(b"[" + b"1," * 10 + b"]", "f")


def test_foreign_files_have_aliases_and_merge_keys():
    text = b"""
base: &base {a: 1, b: {c: 2}}
more: &more {a: 7, d: !!python/name:os.system x}
list: [&one 1.5, *one]
merged: {b: 3, <<: *base}
both: {<<: [*base, *more]}
again: {<<: {e: 1}, <<: {e: 2, f: 3}}
"""
    found = parse_yaml(text, "f", foreign=True)
    assert found["merged"] == {"a": 1, "b": 3}
    assert found["both"] == {"a": 1, "b": {"c": 2}, "d": "x"}
    assert found["list"] == ["1.5", "1.5"]
    assert found["again"] == {"e": 1, "f": 3}


BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)
)
MERGE_BOMB = b"a0: &a0 {x: 1}\n" + b"".join(
    b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "aliases expand to more than 50000 values"),
        (MERGE_BOMB, "aliases expand to more than 50000 values"),
        (b"a: &a [*a]", "an alias nests too deeply"),
        (b"a: &a {<<: *a}", "an alias nests too deeply"),
        (b"a: {<<: 3}", "merge key: expected a mapping"),
        (b"a: {<<: [{b: 1}, 3]}", "merge key: expected a mapping"),
        (b"a: *unknown", "invalid YAML"),
        (b"a: &a 1\nb: &a 2", "invalid YAML"),
    ],
)
def test_foreign_files_that_expand_without_end(text, problem):
    with pytest.raises(FormatError, match=problem):
        parse_yaml(text, "f", foreign=True)


@settings(max_examples=300)
@given(st.text("ab:-[]{}&*!|>#?,'\"%@`~01. \n\t", max_size=60) | st.text(max_size=30))
def test_any_text(text):
    with contextlib.suppress(FormatError):
        parse_yaml(text.encode(errors="surrogatepass"), "f")
    with contextlib.suppress(FormatError):
        parse_yaml(text.encode(errors="surrogatepass"), "f", foreign=True)


@pytest.mark.parametrize("foreign", [False, True])
def test_surrogates(foreign):
    assert parse_yaml(b'a: "\\ud83d\\ude00"', "f", foreign=foreign) == {"a": "\U0001f600"}
    for text in (b'a: "\\ud800"', b'"\\ud800": a', b'a: !x "\\ud800"'):
        with pytest.raises(FormatError):
            parse_yaml(text, "f", foreign=foreign)
