"""Name maps: an object of names and nothing else."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.name_map import parse_name_map

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.dictionaries(names, names))
def test_what_json_writes(name_map):
    assert parse_name_map(json.dumps(name_map).encode(), "map") == name_map
    assert parse_name_map(json.dumps(name_map, ensure_ascii=False).encode(), "map") == name_map


def test_order_stays():
    assert list(parse_name_map(b'{"b": "x", "a": "y"}', "map")) == ["b", "a"]


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        (b"", ["invalid JSON", "found the end"]),
        (b"\xff", ["UTF-8"]),
        (b'["a"]', ["expected an object", "found an array"]),
        (b'{"a": "b", "a": "c"}', ["repeated keys", "'a'"]),
        (b'{"a": 1}', ["'a': expected a new name, found a number"]),
        (
            b'{"a": null, "b": "c", "d": {"e": "f"}}',
            ["2 problems", "'a'", "found null", "'d'", "found an object"],
        ),
        (b'{"a": ""}', ["'a': expected a new name, found an empty one"]),
        (b'{"": "b"}', ["new name 'b': expected an old name"]),
        (b'{"a": "\\ud800"}', ["surrogate"]),
    ],
)
def test_what_is_refused(data, fragments):
    with pytest.raises(FormatError) as caught:
        parse_name_map(data, "s3://bucket/map.json")
    assert str(caught.value).startswith("s3://bucket/map.json")
    assert not [fragment for fragment in fragments if fragment not in str(caught.value)], str(caught.value)


@given(
    st.one_of(
        st.binary(),
        st.recursive(st.none() | names, lambda inner: st.dictionaries(names, inner)).map(
            lambda value: json.dumps(value).encode()
        ),
    )
)
def test_anything_else_is_a_format_error(data):
    with contextlib.suppress(FormatError):
        made = parse_name_map(data, "map")
        assert all(isinstance(text, str) and text for entry in made.items() for text in entry)
