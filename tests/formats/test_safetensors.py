"""safetensors headers by example: what is refused and why, and agreement with the library both ways."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from support.checkpoints import content_of

from reshard.errors import FormatError
from reshard.formats.container_format import HeaderTensor
from reshard.formats.safetensors import (
    MAX_AXIS_COUNT,
    MAX_HEADER_BYTES,
    header_range,
    parse_header,
    plan_header,
)
from reshard.tensor import Box, ByteRange, DType, TensorSpec


def entry(dtype="F32", shape=(1,), data_offsets=(0, 4), **others):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(data_offsets), **others}


def prefix_of(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


# name: (header, bytes of data after it, fragments of the message)
HOSTILE = {
    "not JSON": (b"{]", 0, ["header, byte 9", "invalid JSON"]),
    "not UTF-8": (b'{"\xff":1}', 0, ["header, byte 10", "UTF-8"]),
    "leading space": (b" {}", 0, ["byte 8", "expected '{'"]),
    "not an object": (b"[]", 0, ["expected '{'"]),
    "trailing NUL": (b"{}\0\0\0", 0, ["byte 10", "nothing after it"]),
    "name twice": (b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), 4, ["repeated keys", "'a'"]),
    "key twice in an entry": (b'{"a":{"dtype":"U8","dtype":"U8"}}', 0, ["repeated keys", "'dtype'"]),
    "NaN": (b'{"a":NaN}', 0, ["NaN"]),
    "deep": (b'{"a":' + b"[" * 100_000, 0, ["nested too deeply"]),
    "huge offset": (b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,%s]}}' % (b"9" * 4300), 1, ["2**63", "9999"]),
    "surrogate in a name": (b'{"\\ud800":%s}' % json.dumps(entry()).encode(), 4, ["surrogate"]),
    "entry is an array": ({"a": ["F32", [1], [0, 4]]}, 4, ["tensor 'a'", "found an array"]),
    "entry is null": ({"a": None}, 0, ["tensor 'a'", "found null"]),
    "no dtype": ({"a": {"shape": [], "data_offsets": [0, 0]}}, 0, ["tensor 'a'", "['shape', 'data_offsets']"]),
    "unknown key": ({"a": entry(strides=[1])}, 4, ["tensor 'a'", "'strides'"]),
    "unknown dtype": ({"a": entry("FLOAT32")}, 4, ["'FLOAT32'", "BOOL, F4", "I64, U64"]),
    "lower case dtype": ({"a": entry("f32")}, 4, ["tensor 'a': dtype", "'f32'"]),
    "dtype is a list": ({"a": entry(["F32"])}, 4, ["tensor 'a': dtype", "['F32']"]),
    "negative extent": ({"a": entry(shape=[-1])}, 4, ["tensor 'a': shape", "[-1]"]),
    "two negative extents": ({"a": entry(shape=[-1, -1])}, 4, ["tensor 'a': shape", "[-1, -1]"]),
    "extent is a float": ({"a": entry(shape=[1.0])}, 4, ["tensor 'a': shape", "[1.0]"]),
    "extent is a boolean": ({"a": entry(shape=[True])}, 4, ["tensor 'a': shape", "[True]"]),
    "extent is a string": ({"a": entry(shape=["1"])}, 4, ["tensor 'a': shape", "['1']"]),
    "shape is a number": ({"a": entry() | {"shape": 1}}, 4, ["tensor 'a': shape", "found 1"]),
    "shape overflows": ({"a": entry(shape=[2**40, 2**40])}, 4, ["tensor 'a': shape", "2**63"]),
    "bits overflow": ({"a": entry("F64", [2**58])}, 4, ["2**63", "F64"]),
    "empty, but overflows": ({"a": entry(shape=[2**40, 2**40, 0], data_offsets=[0, 0])}, 0, ["2**63"]),
    "too many axes": ({"a": entry(shape=[1] * 65)}, 4, ["at most 64 axes", "found 65"]),
    "a million axes": ({"a": entry(shape=[2] * 1_000_000)}, 4, ["at most 64 axes", "found 1000000"]),
    "F4 half a byte": ({"a": entry("F4", [3], [0, 2])}, 2, ["a whole number of bytes", "3 elements of 4 bits (F4)"]),
    "F6 half a byte": ({"a": entry("F6_E3M2", [2], [0, 2])}, 2, ["a whole number of bytes", "2 elements of 6 bits"]),
    "negative offset": ({"a": entry(data_offsets=[-4, 0])}, 0, ["tensor 'a': data_offsets", "[-4, 0]"]),
    "reversed offsets": ({"a": entry(data_offsets=[4, 0])}, 4, ["tensor 'a': data_offsets", "[4, 0]"]),
    "one offset": ({"a": entry(data_offsets=[4])}, 4, ["tensor 'a': data_offsets", "[4]"]),
    "offset is a float": ({"a": entry(data_offsets=[0, 4.0])}, 4, ["tensor 'a': data_offsets", "4.0"]),
    "offset is a boolean": ({"a": entry("U8", data_offsets=[False, True])}, 1, ["data_offsets", "True"]),
    "offsets are a string": ({"a": entry() | {"data_offsets": "04"}}, 4, ["data_offsets", "'04'"]),
    "too few bytes": ({"a": entry(shape=[2])}, 4, ["expected 8 bytes for F32 [2], found 4"]),
    "too many bytes": ({"a": entry(data_offsets=[0, 8])}, 8, ["expected 4 bytes for F32 [1], found 8"]),
    "first gap": ({"a": entry(data_offsets=[4, 8])}, 8, ["tensor 'a'", "a gap", "after the header"]),
    "gap": ({"a": entry(), "b": entry(data_offsets=[8, 12])}, 12, ["tensor 'b'", "a gap", "after tensor 'a'"]),
    "overlap": ({"a": entry(), "b": entry(data_offsets=[2, 6])}, 6, ["tensor 'b'", "an overlap", "after tensor 'a'"]),
    "the same bytes": ({"a": entry(), "b": entry()}, 4, ["tensor 'b'", "an overlap"]),
    "empty inside another": ({"a": entry(), "b": entry(shape=[0], data_offsets=[2, 2])}, 4, ["'b'", "an overlap"]),
    "trailing bytes": ({"a": entry()}, 5, ["end of the object", "where the tensors end"]),
    "past the end": ({"a": entry()}, 3, ["end of the object"]),
    "bytes but no tensors": ({}, 1, ["end of the object"]),
    "metadata is a list": ({"__metadata__": ["a"]}, 0, ["__metadata__", "found an array"]),
    "metadata of numbers": ({"__metadata__": {"k": 1}}, 0, ["__metadata__ 'k'", "found a number"]),
    "metadata of objects": ({"__metadata__": {"k": {}}}, 0, ["__metadata__ 'k'", "found an object"]),
}

# What the library lets pass; the module's first lines say why it is refused here.
STRICTER = {"leading space", "name twice", "entry is an array", "unknown key", "too many axes"}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header(case):
    header, data_nbytes, fragments = HOSTILE[case]
    prefix = prefix_of(header)
    with pytest.raises(FormatError) as caught:
        parse_header(prefix, len(prefix) + data_nbytes)
    error = caught.value.at("s3://bucket/model.safetensors")
    assert str(error).startswith("s3://bucket/model.safetensors: ")
    assert error.expected
    assert error.found
    assert all(fragment in str(error) for fragment in fragments), str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize("case", HOSTILE)
def test_the_library_agrees_where_it_is_as_strict(case):
    header, data_nbytes, _ = HOSTILE[case]
    data = prefix_of(header) + bytes(data_nbytes)
    if case in STRICTER:
        safetensors.deserialize(data)
    else:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(data)


def test_all_problems_come_in_one_error():
    header = {
        "a": entry("F99", [-1], [3, 1]),
        "b": entry(shape=[2]),
        "c": 1,
        "__metadata__": {"k": None, "l": 2},
    }
    prefix = prefix_of(header)
    with pytest.raises(FormatError) as caught:
        parse_header(prefix, len(prefix) + 4)
    assert len(caught.value.problems) == 7
    assert caught.value.found == "7 problems"


def test_holes_are_not_reported_for_entries_without_a_range():
    prefix = prefix_of({"a": entry(data_offsets=[0, -4]), "b": entry(data_offsets=[4, 8])})
    with pytest.raises(FormatError) as caught:
        parse_header(prefix, len(prefix) + 8)
    assert len(caught.value.problems) == 1


def test_a_flood_of_problems_is_counted_but_not_kept():
    prefix = prefix_of({str(i): 0 for i in range(20_000)})
    with pytest.raises(FormatError) as caught:
        parse_header(prefix, len(prefix))
    assert caught.value.found == "20000 problems"
    assert len(caught.value.problems) == 10_000


@pytest.mark.parametrize(
    ("length", "object_nbytes"),
    [
        (0, 100),
        (1, 100),
        (93, 100),
        (2, 9),
        (MAX_HEADER_BYTES + 1, 10**12),
        (2**63, 10**12),
        (2**64 - 1, 2**64 + 100),
    ],
)
def test_wrong_header_length(length, object_nbytes):
    with pytest.raises(FormatError, match=rf"byte 0: invalid header length: .* found {length} bytes"):
        header_range(length.to_bytes(8, "little"), object_nbytes)


@pytest.mark.parametrize(("first_bytes", "object_nbytes"), [(b"", 0), (b"1234567", 7), (bytes(8), 7), (b"1", 100)])
def test_object_too_short(first_bytes, object_nbytes):
    with pytest.raises(FormatError, match="expected at least 8 bytes"):
        header_range(first_bytes, object_nbytes)


def test_header_range_at_its_limits():
    assert header_range((92).to_bytes(8, "little"), 100) == ByteRange(8, 100)
    assert header_range(MAX_HEADER_BYTES.to_bytes(8, "little"), 10**12).nbytes == MAX_HEADER_BYTES


def test_prefix_without_the_whole_header():
    prefix = prefix_of({"a": entry()})
    with pytest.raises(FormatError, match="truncated header"):
        parse_header(prefix[:-1], len(prefix) + 4)


def test_bytes_after_the_header_do_no_harm():
    prefix = prefix_of({"a": entry()})
    assert parse_header(prefix + b"1234", len(prefix) + 4) == parse_header(prefix, len(prefix) + 4)


def test_any_order_of_entries():
    prefix = prefix_of(
        {
            "last": entry("U8", [3], [20, 23]),
            "__metadata__": {"z": "1", "a": "2"},
            "first": entry("I64", [2], [0, 16]),
            "empty": entry("F32", [0, 5], [16, 16]),
            "scalar": entry("F32", [], [16, 20]),
        }
    )
    header = parse_header(prefix, len(prefix) + 23)
    assert [tensor.spec.name for tensor in header.tensors] == ["first", "empty", "scalar", "last"]
    assert [tensor.boxes[0][1] - len(prefix) for tensor in header.tensors] == [0, 16, 16, 20]
    assert header.metadata == {"z": "1", "a": "2"}
    assert header.tensors[3] == HeaderTensor(TensorSpec("last", DType.U8, (3,)), ((Box((0,), (3,)), len(prefix) + 20),))


@pytest.mark.parametrize("header", [{}, {"__metadata__": None}, {"__metadata__": {}}, b"{}      ", b"{\n}\t"])
def test_no_tensors(header):
    prefix = prefix_of(header)
    parsed = parse_header(prefix, len(prefix))
    assert (parsed.tensors, parsed.metadata) == ((), {})


def test_plan_of_nothing_is_what_the_library_writes():
    assert plan_header([], {}).data == (8).to_bytes(8, "little") + b"{}      "


@pytest.mark.parametrize(
    ("specs", "metadata", "fragments"),
    [
        ([TensorSpec("a", DType.U8, ()), TensorSpec("a", DType.I8, ())], {}, ["tensor 'a'", "taken"]),
        ([TensorSpec("__metadata__", DType.U8, ())], {}, ["'__metadata__'", "taken"]),
        ([TensorSpec("a", DType.U8, (-1,))], {}, ["tensor 'a': shape", "[-1]"]),
        ([TensorSpec("a", DType.F4, (3,))], {}, ["a whole number of bytes"]),
        ([TensorSpec("a", DType.U8, (2**62, 2))], {}, ["2**63"]),
        ([TensorSpec("a", DType.U8, (1,) * (MAX_AXIS_COUNT + 1))], {}, ["64 axes"]),
        ([TensorSpec("\ud800", DType.U8, ())], {}, ["surrogate"]),
        ([], {"\ud800": ""}, ["surrogate"]),
        ([], {"a": "\udfff"}, ["surrogate"]),
        ([], {"a": "x" * MAX_HEADER_BYTES}, ["header too long", "Spread the tensors"]),
    ],
)
def test_what_cannot_be_planned(specs, metadata, fragments):
    with pytest.raises(FormatError) as caught:
        plan_header(specs, metadata)
    assert all(fragment in str(caught.value) for fragment in ["planned header", *fragments]), str(caught.value)


def test_all_problems_of_a_plan_come_in_one_error():
    specs = [TensorSpec("a", DType.U8, (-1,)), TensorSpec("a", DType.F4, (1,)), TensorSpec("\ud800", DType.U8, ())]
    with pytest.raises(FormatError) as caught:
        plan_header(specs, {})
    assert len(caught.value.problems) == 4


def test_plan_does_not_depend_on_the_order_of_its_arguments():
    specs = [TensorSpec(str(i), dtype, (i,)) for i, dtype in enumerate((DType.U8, DType.F32, DType.BF16, DType.U8))]
    forward = plan_header(specs, {"a": "1", "b": "2"})
    backward = plan_header(specs[::-1], {"b": "2", "a": "1"})
    assert forward == backward
    assert [tensor.spec.name for tensor in forward.header.tensors] == ["1", "2", "0", "3"]


def test_every_dtype_opens_in_the_library_in_the_planned_order(tmp_path):
    encoded = plan_header([TensorSpec(f"t.{dtype}", dtype, (2, 4)) for dtype in DType], {"format": "pt"})
    path = tmp_path / "model.safetensors"
    path.write_bytes(encoded.data + bytes(encoded.nbytes - len(encoded.data)))
    with safetensors.safe_open(path, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.offset_keys() == [tensor.spec.name for tensor in encoded.header.tensors]
        for tensor in encoded.header.tensors:
            view, spec = opened.get_slice(tensor.spec.name), tensor.spec
            assert (view.get_dtype(), tuple(view.get_shape())) == (spec.dtype.value, spec.shape)


def arrays():
    for number, dtype in enumerate(["?", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "f8", "i8", "u8"]):
        yield f"layer.{number % 3}.{dtype}", (np.arange(6) + number).astype(dtype).reshape(2, 3)
    yield from {"scalar": np.float32(3), "empty": np.zeros((0, 4), "f4"), 'é"\\\n\x01/\x7f': np.arange(3)}.items()


@pytest.mark.parametrize("metadata", [{}, {"format": 'ms "\\\t€'}])
def test_our_objects_are_the_librarys_to_the_byte(metadata):
    tensors = {name: np.asarray(array) for name, array in arrays()}
    written = safetensors.numpy.save(tensors, metadata or None)
    header = parse_header(written, len(written))
    encoded = plan_header([tensor.spec for tensor in header.tensors], metadata)
    assert encoded.header == header
    assert encoded.data == written[: header.tensors[0].boxes[0][1]]
    assert {stored.spec.name for stored in header.tensors} == tensors.keys()
    for stored in header.tensors:
        array = tensors[stored.spec.name]
        assert stored.spec.shape == array.shape
        assert content_of(stored, written) == array.tobytes()


def test_fifty_thousand_tensors_are_no_burden():
    specs = [TensorSpec(f"layers.{i}.weight", DType.BF16, (7168, 2048)) for i in range(50_000)]
    encoded = plan_header(specs, {})
    assert parse_header(encoded.data, encoded.nbytes) == encoded.header
