import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.zarr import (
    ChunkKeys,
    ZarrArray,
    array_document,
    encode_array,
    encode_group,
    node_of,
)
from reshard.formats.zarr_read import is_group, parse_array, parse_group, parse_node
from reshard.tensor import DType, TensorSpec

ARRAY = ZarrArray("w", TensorSpec("w", DType.F32, (5, 4)), (2, 4))


def document(**changes):
    return {**array_document(ARRAY), "attributes": {}, **changes}


def parsed(body, path="w"):
    return parse_array(parse_node(json.dumps(body).encode(), "here"), path, "here")


@given(st.text(max_size=20), st.text(max_size=20))
def test_nodes_are_safe_and_tell_names_apart(one, other):
    node = node_of(one)
    assert node
    assert set(node) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-%")
    assert not node.startswith((".", "__"))
    assert not node.endswith(".json") or node.startswith("%")
    assert (node == node_of(other)) == (one == other)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "adam_m.w", "a-b_c.D9"])
def test_usual_names_stay(name):
    assert node_of(name) == name


SPECS = st.builds(
    TensorSpec,
    st.text(max_size=20),
    st.sampled_from(list(DType)),
    st.lists(st.integers(0, 9).map(lambda n: n * 8), max_size=4).map(tuple),
).filter(lambda spec: not spec.dtype.is_sub_byte or spec.shape)


@given(st.lists(SPECS, max_size=5, unique_by=lambda spec: spec.name), st.data())
def test_what_is_written_is_read(specs, data):
    arrays = []
    for spec in specs:
        array = ZarrArray(node_of(spec.name), spec, ())
        chunk_shape = tuple(data.draw(st.integers(1, max(1, n))) for n in array.extent)
        arrays.append(replace(array, chunk_shape=chunk_shape, is_outside=data.draw(st.booleans())))
    metadata = data.draw(st.dictionaries(st.text(max_size=9), st.text(max_size=9)))
    node = parse_node(encode_group(arrays, metadata, {"t": "text"}), "here")
    group = parse_group(node, "here")
    assert is_group(node)
    assert (group.metadata, group.texts) == (metadata, {"t": "text"})
    assert [parse_array(each, path, "here") for path, each in group.nodes.items()] == arrays
    for array in arrays:
        assert parse_array(parse_node(encode_array(array), "here"), array.path, "here") == array


@given(SPECS, st.data())
def test_chunks_cover_each_element_once(spec, data):
    array = ZarrArray("w", spec, ())
    array = replace(array, chunk_shape=tuple(data.draw(st.integers(max(1, n // 3), n + 1)) for n in array.extent))
    chunks = list(array.chunks())
    assert len(chunks) == array.chunk_count == len({key for key, _ in chunks})
    inside = [
        math.prod(min(b, n) - a for a, b, n in zip(box.start, box.stop, array.extent, strict=True)) for _, box in chunks
    ]
    assert sum(inside) == math.prod(array.extent)
    assert all(n > 0 for n in inside)


def test_names_of_chunks():
    assert [ChunkKeys(".", has_start=True).name(i) for i in [(), (3,), (1, 2)]] == ["c", "c.3", "c.1.2"]
    assert [ChunkKeys(".", has_start=False).name(i) for i in [(), (3,), (1, 2)]] == ["0", "3", "1.2"]


@pytest.mark.parametrize(
    ("called", "dtype"),
    [
        ("bfloat16", DType.BF16),
        ("float8_e4m3fn", DType.F8_E4M3),
        ("float8_e5m2", DType.F8_E5M2),
        ({"name": "float8_e8m0fnu"}, DType.F8_E8M0),
    ],
)
def test_types_of_other_writers(called, dtype):
    found = parsed(document(data_type=called), "a/b")
    assert found.spec == TensorSpec("a/b", dtype, (5, 4))


def test_what_other_writers_may_say_besides():
    keys = {"name": "v2", "configuration": {"separator": "/"}}
    more = {"dimension_names": ["a", None], "storage_transformers": [], "attributes": {"units": "m"}}
    found = parsed(document(chunk_key_encoding=keys, note={"must_understand": False}, **more))
    assert found.keys == ChunkKeys("/", has_start=False)
    assert parsed(document(data_type="int8", codecs=["bytes"])).spec.dtype is DType.I8


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
REFUSED = {
    "gzip": ({"codecs": [LITTLE, {"name": "gzip", "configuration": {"level": 5}}]}, "expected only bytes"),
    "sharding": ({"codecs": [{"name": "sharding_indexed", "configuration": {}}]}, "'sharding_indexed'"),
    "transpose": ({"codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}, LITTLE]}, "'transpose'"),
    "no codec": ({"codecs": []}, "found none"),
    "big endian": ({"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}, "expected endian little"),
    "no endian": ({"codecs": [{"name": "bytes"}]}, "expected endian little"),
    "codecs no list": ({"codecs": {}}, "codecs: expected an array"),
    "nameless codec": ({"codecs": [{"configuration": {}}]}, "codec: name"),
    "version 2": ({"zarr_format": 2}, "zarr_format: expected 3"),
    "version true": ({"zarr_format": True}, "zarr_format"),
    "node type": ({"node_type": "table"}, "expected group or array"),
    "type": ({"data_type": "complex128"}, "data_type"),
    "configured type": ({"data_type": {"name": "int8", "configuration": {"a": 1}}}, "data_type"),
    "raw type": ({"data_type": "r16"}, "data_type"),
    "other grid": ({"chunk_grid": {"name": "rectilinear", "configuration": {}}}, "chunk_grid: expected regular"),
    "no chunks": ({"chunk_grid": {"name": "regular", "configuration": {}}}, "chunk_shape"),
    "empty chunks": (
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 4]}}},
        "chunk_shape: expected integers from 1",
    ),
    "fewer axes": (
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}}},
        "expected equal numbers of axes",
    ),
    "large chunks": (
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**62, 2]}}},
        r"less than 2\*\*63",
    ),
    "negative": ({"shape": [-1, 4]}, "shape: expected integers from 0"),
    "boolean": ({"shape": [True, 4]}, "shape"),
    "huge": ({"shape": [2**62, 4]}, r"less than 2\*\*63"),
    "huger": ({"shape": [2**70, 4]}, "shape"),
    "huge and empty": ({"shape": [0, 2**62]}, r"less than 2\*\*63"),
    "many axes": ({"shape": [1] * 65}, "at most 64"),
    "encoding": ({"chunk_key_encoding": {"name": "fanout"}}, "chunk_key_encoding"),
    "separator": ({"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../"}}}, "encoding"),
    "transformers": ({"storage_transformers": [{"name": "x"}]}, "storage_transformers"),
    "unknown": ({"future": {"must_understand": True}}, "unknown field 'future'"),
    "attributes": ({"attributes": []}, "attributes: expected an object"),
    "name": ({"attributes": {"reshard": {"name": 7}}}, "attribute reshard"),
    "dtype": ({"attributes": {"reshard": {"dtype": "F7"}}}, "attribute reshard"),
    "other dtype": ({"attributes": {"reshard": {"dtype": "BF16"}}}, "dtype: expected a tensor that F32"),
    "other width": (
        {"data_type": "uint8", "attributes": {"reshard": {"dtype": "BF16"}}},
        "expected a tensor that U8",
    ),
    "own dtype": (
        {"data_type": "uint16", "attributes": {"reshard": {"dtype": "I16"}}},
        "expected a tensor that U16",
    ),
    "bits": ({"data_type": "uint8", "attributes": {"reshard": {"dtype": "F4", "shape": [5]}}}, "a tensor that U8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changes, message = REFUSED[case]
    with pytest.raises(FormatError, match=message) as caught:
        parsed(document(**changes))
    assert "here" in str(caught.value)


def test_a_compressed_array_tells_the_way_out():
    with pytest.raises(FormatError, match="compressors=None"):
        parsed(document(codecs=[LITTLE, {"name": "zstd"}]))


@pytest.mark.parametrize("key", ["shape", "codecs", "data_type", "fill_value"])
def test_missing_fields(key):
    body = document()
    del body[key]
    with pytest.raises(FormatError, match=f"fields are missing: expected {key}"):
        parsed(body)


@pytest.mark.parametrize("path", ["../w", "/w", "a//b", "", "c:w", "a\\b", "a/" * 600 + "b", "a\nb"])
def test_paths_that_lead_elsewhere(path):
    with pytest.raises(FormatError, match="path"):
        parsed(document(), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": {"reshard": {"version": 2}}}, "unknown version: expected 1, found 2"),
        ({"attributes": {"reshard": {"metadata": {}}}}, "unknown version"),
        ({"attributes": {"reshard": {"version": 1, "texts": {"a": 1}}}}, "texts: expected strings"),
        ({"attributes": {"reshard": {"version": 1, "metadata": []}}}, "metadata: expected an object"),
        ({"consolidated_metadata": {"kind": "elsewhere", "metadata": {}}}, "expected kind inline"),
        ({"consolidated_metadata": {"kind": "inline"}}, "metadata: expected an object"),
        ({"consolidated_metadata": {"kind": "inline", "metadata": {"w": 7}}}, "node 'w': expected an object"),
        ({"consolidated_metadata": {"kind": "inline", "metadata": {"w": {}}}}, "'w': zarr_format"),
    ],
)
def test_groups_refused(changes, message):
    with pytest.raises(FormatError, match=message):
        parse_group({"zarr_format": 3, "node_type": "group", **changes}, "here")


def test_an_array_is_no_group():
    with pytest.raises(FormatError, match="a single array") as caught:
        parse_group(document(), "here")
    assert "Name the prefix of the group" in str(caught.value)


def test_deep_documents():
    deep = b'{"zarr_format":3,"node_type":"array","attributes":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(FormatError, match="nested too deeply"):
        parse_node(deep, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


@given(st.dictionaries(st.sampled_from([*sorted(document()), "consolidated_metadata", "x"]), JSON), st.booleans())
def test_anything_else_is_refused_in_words(changes, is_array):
    body = {**document(), **changes} if is_array else {"zarr_format": 3, "node_type": "group", **changes}
    try:
        node = parse_node(json.dumps(body).encode(), "here")
        if is_group(node):
            parse_group(node, "here")
        else:
            parse_array(node, "w", "here")
    except FormatError:
        pass
