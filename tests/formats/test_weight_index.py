"""Indexes of both worlds: read in every form, written in theirs, and no name leads out of the prefix."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.weight_index import (
    WeightIndex,
    encode_param_name_map,
    encode_weight_index,
    parse_param_name_map,
    parse_weight_index,
    relative_key_problem,
)

PARSERS = [parse_weight_index, parse_param_name_map]
MAP = {"model.norm.weight": "a.safetensors", "lm_head.weight": "sub/b.safetensors"}

ESCAPES = {
    "": "empty",
    "/etc/passwd": "absolute",
    "//host/share": "absolute",
    "../model.safetensors": "'..' step",
    "a/../../b": "'..' step",
    "a/..": "'..' step",
    "..": "'..' step",
    "./a": "'.' step",
    "a//b": "'' step",
    "a/": "'' step",
    "..\\a": "backslash",
    "C:\\a": "backslash",
    "C:a": "drive letter",
    "file:a": "URL scheme",
    "s3://bucket/a": "URL scheme",
    "a\0b": "control character",
    "a\nb": "control character",
    "a\x7f": "control character",
}


def nested(weight_map, **others):
    return json.dumps({"weight_map": weight_map, **others}).encode()


@pytest.mark.parametrize("parse", PARSERS)
def test_nested_form(parse):
    index = parse(nested(MAP, metadata={"total_size": 12, "note": [1.5, None]}), "index")
    assert index == WeightIndex(MAP, {"total_size": 12, "note": [1.5, None]})
    assert index.objects == ("a.safetensors", "sub/b.safetensors")


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("others", [{}, {"metadata": None}, {"metadata": {}}, {"unknown": 1}])
def test_metadata_may_be_missing(parse, others):
    assert parse(nested(MAP, **others), "index") == WeightIndex(MAP, {})


def test_flat_form():
    assert parse_param_name_map(json.dumps(MAP).encode(), "map") == WeightIndex(MAP, {})
    assert parse_param_name_map(b"{}", "map") == WeightIndex({}, {})


def test_flat_form_with_a_parameter_called_weight_map():
    weight_map = {"weight_map": "a.safetensors", "metadata": "b.safetensors"}
    assert parse_param_name_map(json.dumps(weight_map).encode(), "map") == WeightIndex(weight_map, {})


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        (b'{"a": "b.safetensors"}', ['under "weight_map"', "keys ['a']"]),
        (b'{"weight_map": ["a"]}', ["wrong weight_map", "found an array"]),
        (b'{"weight_map": {}, "metadata": "x"}', ["wrong metadata", "found a string"]),
        (b'{"weight_map": {"a": 1, "b": null}}', ["'a'", "found a number", "'b'", "found null"]),
        (b'{"weight_map": {"a": "b", "a": "c"}}', ["repeated keys", "'a'"]),
        (b"[]", ["expected an object"]),
        (b"\xff", ["UTF-8"]),
    ],
)
def test_malformed_index(data, fragments):
    with pytest.raises(FormatError) as caught:
        parse_weight_index(data, "model.safetensors.index.json")
    assert str(caught.value).startswith("model.safetensors.index.json")
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


@pytest.mark.parametrize("data", [b'{"a": 1}', b'{"weight_map": null}', b'{"metadata": {"total_size": 1}}'])
def test_malformed_param_name_map(data):
    with pytest.raises(FormatError, match=r"^param_name_map\.json"):
        parse_param_name_map(data, "param_name_map.json")


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_leads_out_of_the_prefix(name):
    assert ESCAPES[name] in relative_key_problem(name)
    for parse in PARSERS:
        with pytest.raises(FormatError, match="unusable object names"):
            parse(nested({"w": name}), "index")
    for encode in (encode_weight_index, encode_param_name_map):
        with pytest.raises(FormatError, match="unusable object names"):
            encode({"w": name}, 1)


@pytest.mark.parametrize(
    "name", ["a", "a.b", "...", "..a", "a..b", ".hidden", "rank_0/part 0.safetensors", "é", "x@y=1"]
)
def test_a_plain_name(name):
    assert relative_key_problem(name) == ""


def test_all_problems_are_listed_each_name_once():
    weight_map = {f"w{i}": "../same" for i in range(100)} | {"x": "/other", "y": 5, "z": "fine"}
    with pytest.raises(FormatError) as caught:
        parse_weight_index(nested(weight_map), "index")
    assert len(caught.value.problems) == 3
    assert "of 100 tensors" in str(caught.value)


def test_written_as_transformers_does():
    data = encode_weight_index({"b": "2.safetensors", "a": "1.safetensors"}, 10)
    document = {"metadata": {"total_size": 10}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    assert data.decode() == json.dumps(document, indent=2, sort_keys=True) + "\n"


def test_written_as_mindspore_does():
    data = encode_param_name_map({"b": "part0.safetensors", "a": "part0.safetensors"}, 10)
    document = {"metadata": {"total_size": 10}, "weight_map": {"a": "part0.safetensors", "b": "part0.safetensors"}}
    assert data.decode() == json.dumps(document, indent=4)


names = st.text(st.characters(exclude_categories=["Cs"]))
keys = st.lists(st.from_regex(r"[a-z0-9_.\-]{1,8}", fullmatch=True), min_size=1, max_size=3).map("/".join)


@settings(max_examples=50)
@given(st.dictionaries(names, keys.filter(lambda key: not relative_key_problem(key))), st.integers(0, 2**63))
def test_round_trip(weight_map, total_size_bytes):
    index = WeightIndex(weight_map, {"total_size": total_size_bytes})
    assert parse_weight_index(encode_weight_index(weight_map, total_size_bytes), "index") == index
    assert parse_param_name_map(encode_param_name_map(weight_map, total_size_bytes), "map") == index


@settings(max_examples=100)
@given(st.text())
def test_accepted_names_stay_below_the_prefix(name):
    if not relative_key_problem(name):
        assert all(step not in {"", ".", ".."} for step in name.replace("\\", "/").split("/"))


@settings(max_examples=100)
@given(st.binary(max_size=40) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode()))
def test_arbitrary_bytes_never_crash(data):
    for parse in PARSERS:
        with contextlib.suppress(FormatError):
            assert isinstance(parse(data, "index"), WeightIndex)
