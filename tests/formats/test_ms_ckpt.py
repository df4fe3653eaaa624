"""MindSpore .ckpt objects: what MindSpore wrote is found and written again, the rest refused, with few reads."""

import hashlib
import json
import math
import zlib
from bisect import bisect_left
from pathlib import Path

import pytest

from reshard.errors import FormatError
from reshard.formats.mindspore.ckpt_read import read_index, scan_ckpt
from reshard.formats.mindspore.ckpt_values import (
    CRC_TAIL_BYTES,
    DTYPE_OF,
    PIECE_BYTES,
    TYPE_NAME_OF,
    crc_tail,
    decode_text,
)
from reshard.formats.mindspore.ckpt_write import plan_ckpt
from reshard.formats.protobuf import bytes_field, int_field, text_field
from reshard.formats.safetensors import parse_header
from reshard.tensor import Box, ByteRange, DType, TensorSpec

CASES = Path(__file__).parents[1] / "conformance" / "mindspore"
MIB = 2**20


def ckpt_files():
    """Every plain .ckpt of the cases, with what case.json says of it."""
    for case in sorted(CASES.glob("fmt_*")):
        listed = json.loads((case / "case.json").read_text())["files"]
        for name, content in listed.items():
            if content["format"] == "ckpt":
                yield pytest.param(case / name, content, id=f"{case.name}/{Path(name).name}")


def index_of(data):
    return read_index(len(data), lambda where: data[where.start : where.stop])


def content_of(tensor, data):
    return b"".join(data[where.start : where.stop] for where in tensor.ranges)


def assemble(planned, contents):
    """The object, from the content of each tensor."""
    parts = []
    for piece in planned.pieces:
        spec = planned.index.tensors[piece.tensor_index].spec
        first, count = spec.dtype.nbytes(piece.first_element), spec.dtype.nbytes(piece.element_count)
        parts += [piece.lead, contents[piece.tensor_index][first : first + count]]
    return b"".join([*parts, planned.tail])


def written_again(data):
    index = index_of(data)
    texts = {text.name: decode_text(data[text.range.start : text.range.stop], text.name) for text in index.texts}
    planned = plan_ckpt([(tensor.spec, tensor.type_name) for tensor in index.tensors], texts)
    again = assemble(planned, [content_of(tensor, data) for tensor in index.tensors])
    return again if index.crc32 is None else again + crc_tail(zlib.crc32(again))


def value(name="w", extents=(2,), type_name="Int8", content=b"ab"):
    dims = b"".join(int_field(1, extent) for extent in extents)
    return bytes_field(
        1, text_field(1, name) + bytes_field(2, dims + text_field(2, type_name) + bytes_field(3, content))
    )


def refused(data):
    with pytest.raises(FormatError) as caught:
        index_of(data)
    return caught.value


# --- what MindSpore wrote


def test_the_cases_are_there():
    assert len(list(ckpt_files())) == 5


@pytest.mark.parametrize(("path", "expected"), list(ckpt_files()))
def test_every_value_of_mindspore_is_found(path, expected):
    data = path.read_bytes()
    index = index_of(data)
    found = {
        tensor.spec.name: {
            "dtype": tensor.type_name,
            "shape": list(tensor.spec.shape),
            "values": len(tensor.ranges),
            "sha256": hashlib.sha256(content_of(tensor, data)).hexdigest()[:32],
        }
        for tensor in index.tensors
    }
    texts = {
        text.name: hashlib.sha256(data[text.range.start : text.range.stop]).hexdigest()[:32] for text in index.texts
    }
    assert found == {name: item for name, item in expected["tensors"].items() if item["dtype"] != "str"}
    assert texts == {name: item["sha256"] for name, item in expected["tensors"].items() if item["dtype"] == "str"}
    assert [*found, *texts] == expected["order"]
    assert (index.nbytes, index.crc32) == (expected["bytes"], expected.get("crc_num"))
    if index.crc32 is not None:
        assert index.crc32 == zlib.crc32(data[: index.crc_range.stop])


@pytest.mark.parametrize(("path", "expected"), list(ckpt_files()))
def test_what_mindspore_wrote_is_written_again_byte_for_byte(path, expected):
    data = path.read_bytes()
    assert written_again(data) == data


def test_texts_of_mindspore_are_read():
    data = (CASES / "fmt_ckpt_all_types/expected/plain.ckpt").read_bytes()
    (text,) = index_of(data).texts
    assert decode_text(data[text.range.start : text.range.stop], text.name) == "hello 测试"


def test_safetensors_to_ckpt_is_as_mindspore_does_it():
    case = CASES / "fmt_safetensors_to_ckpt"
    source = (case / "in/a.safetensors").read_bytes()
    tensors = sorted(parse_header(source, len(source)).tensors, key=lambda tensor: tensor.spec.name)
    planned = plan_ckpt([(tensor.spec, None) for tensor in tensors])
    contents = [source[tensor.range.start : tensor.range.stop] for tensor in tensors]
    assert assemble(planned, contents) == (case / "expected/a.ckpt").read_bytes()


def test_ckpt_to_safetensors_is_as_mindspore_does_it():
    case = CASES / "fmt_ckpt_to_safetensors"
    names = json.loads((case / "case.json").read_text())["calls"][0]["kwargs"]["name_map"]
    source, target = ((case / name).read_bytes() for name in ("in/a.ckpt", "expected/a.safetensors"))
    expected = parse_header(target, len(target)).by_name
    found = index_of(source).tensors
    assert {names.get(tensor.spec.name, tensor.spec.name) for tensor in found} == expected.keys()
    for tensor in found:
        stored = expected[names.get(tensor.spec.name, tensor.spec.name)]
        assert (tensor.spec.dtype, tensor.spec.shape) == (stored.spec.dtype, stored.spec.shape)
        assert content_of(tensor, source) == target[stored.range.start : stored.range.stop]


@pytest.mark.parametrize(("name", "mode"), [("aes-gcm", "AES-GCM"), ("aes-cbc", "AES-CBC")])
def test_encrypted_objects_are_refused_by_their_mode(name, mode):
    error = refused((CASES / f"fmt_encrypted/expected/{name}.ckpt").read_bytes())
    assert mode in error.found
    assert mode in error.hint
    assert "save it without a key" in error.hint


def test_the_third_mode_is_known():
    assert "SM4-CBC" in refused(bytes.fromhex("da5e3a7f") + bytes(60)).found


# --- forms that no case holds; mindspore 2.10.0 was seen to read each of them so


@pytest.mark.parametrize(
    ("extents", "type_name", "content", "dtype", "shape"),
    [
        ([0], "Float32", bytes(4), DType.F32, ()),  # a scalar, before MindSpore 2.5
        ([], "Float32", bytes(4), DType.F32, ()),
        ([1], "Float32", bytes(4), DType.F32, (1,)),
        ([0, 3], "Float32", b"", DType.F32, (0, 3)),
        ([3, 0], "Bool", b"", DType.BOOL, (3, 0)),
        ([2, 3], "Int4", bytes(6), DType.I8, (2, 3)),  # extents count bytes, two numbers each
        ([1] * 32, "BFloat16", bytes(2), DType.BF16, (1,) * 32),
        ([0], "Float32", b"", DType.F32, (0,)),  # MindSpore makes a scalar of it: see the module
    ],
)
def test_shapes_are_read(extents, type_name, content, dtype, shape):
    (tensor,) = index_of(value("w", extents, type_name, content)).tensors
    assert tensor.spec == TensorSpec("w", dtype, shape)
    assert tensor.type_name == type_name
    assert sum(where.nbytes for where in tensor.ranges) == len(content)


def test_neighbours_of_one_name_are_one_tensor():
    pieces = [value("w", [5], "Int16", bytes(count * 2)) for count in (3, 1, 1)]
    data = value("a") + b"".join(pieces) + value("z")
    first, tensor, last = index_of(data).tensors
    assert [where.nbytes for where in tensor.ranges] == [6, 2, 2]
    assert [(box.start, box.stop, where) for box, where in tensor.boxes()] == [
        ((0,), (3,), tensor.ranges[0]),
        ((3,), (4,), tensor.ranges[1]),
        ((4,), (5,), tensor.ranges[2]),
    ]
    assert index_of(data).by_name == {"a": first, "w": tensor, "z": last}


def test_boxes_of_scalars_and_empty_tensors():
    data = value("s", [], "Int8", b"a") + value("e", [0, 3], "Int8", b"")
    scalar, empty = index_of(data).tensors
    assert list(scalar.boxes()) == [(Box((), ()), scalar.ranges[0])]
    assert list(empty.boxes()) == []


def test_fields_before_the_content_may_come_in_any_order():
    tensor = bytes_field(2, text_field(2, "Int8") + int_field(1, 2) + bytes_field(3, b"ab"))
    (found,) = index_of(bytes_field(1, text_field(1, "w") + tensor)).tensors
    assert found.spec == TensorSpec("w", DType.I8, (2,))


def test_a_tensor_that_ends_like_a_checksum_is_a_tensor():
    data = value("w", [17], "UInt8", crc_tail(7))
    assert index_of(data).crc32 is None
    assert index_of(data + crc_tail(7)).crc32 == 7


# --- what is refused


@pytest.mark.parametrize(
    ("data", "what", "where"),
    [
        (b"", "empty object", "byte 0"),
        (crc_tail(0), "no values", "byte 0"),
        (b"\x08\x02\x12\x00", "not a value", "byte 0"),
        (b"PK\x03\x04", "not a value", "byte 0"),
        (value() + b"trailing garbage", "not a value", "byte 19"),
        (value() + crc_tail(1)[:-1], "not a value", "byte 19"),
        (value() + crc_tail(1) + b"\0", "not a value", "byte 19"),
        (value() + crc_tail(2**32), "wrong checksum", "byte 26"),
        (value()[:-1], "length beyond the end", "byte 0"),
        (value()[:1], "truncated varint", "byte 1"),
        (b"\x0a" + b"\xff" * 11, "overlong varint", "byte 1"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "length beyond the end", "byte 0"),
        (b"\x0a\x00", "incomplete value", "byte 0"),
        (bytes_field(1, text_field(1, "w")), "incomplete value", "byte 0"),
        (bytes_field(1, bytes_field(2, text_field(2, "Int8") + bytes_field(3, b"a"))), "incomplete", "byte 0"),
        (bytes_field(1, text_field(1, "w") + bytes_field(2, bytes_field(3, b"a"))), "incomplete", "byte 0"),
        (bytes_field(1, text_field(1, "w") + text_field(1, "w")), "repeated field", "byte 7"),
        (bytes_field(1, bytes_field(1, b"\xff")), "not text", "byte 4"),
        (bytes_field(1, text_field(4, "w")), "unknown field", "byte 2"),
        (bytes_field(1, int_field(1, 1)), "unknown field", "byte 2"),
        (bytes_field(1, bytes_field(2, b"\x2a\x00")), "unknown field", "byte 4"),
        (bytes_field(1, bytes_field(2, b"\x0a\x01\x01")), "unknown field", "byte 4"),
        (bytes_field(1, bytes_field(2, b"") + text_field(1, "w")), "bytes after a tensor", "byte 4"),
        (bytes_field(1, bytes_field(2, bytes_field(3, b"a") + int_field(1, 1))), "bytes after a content", "byte 6"),
        (bytes_field(1, text_field(1, "w" * 70_000)), "name too long", "byte 8"),
        (bytes_field(1, bytes_field(2, int_field(1, 1) * 70_000)), "endless value", "byte 0"),
        (bytes_field(1, bytes_field(3, bytes(70_000)) + text_field(1, "w")), "endless value", "byte 0"),
    ],
)
def test_broken_objects_are_refused_with_the_place(data, what, where):
    error = refused(data)
    assert error.what.startswith(what)
    assert error.where == where
    assert error.expected
    assert error.found


def test_strategy_files_are_recognised():
    assert "strategy" in refused(b"\x08\x02\x12\x3e").hint


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (value(content=b"a"), "expected 2 bytes for Int8 [2], found 1"),
        (value(content=b"abc"), "expected 2 bytes for Int8 [2], found 3"),
        (value(extents=[0], type_name="Int32", content=bytes(8)), "expected 0 bytes for Int32 [0], found 8"),
        (value(extents=[2**62, 2**62, 2**62]), "found 2"),
        (value(extents=[-1]), "expected at most 32 extents from 0 to 2**63 - 1, found 1"),
        (value(extents=[1] * 33, content=b"a"), "expected at most 32 extents"),
        (value(extents=[1] * 9999, content=b"a"), "found 9999"),
        (value(type_name="Float8"), "UInt64, Float16, BFloat16, Float32, Float64, Int4, str, found 'Float8'"),
        (value(type_name="float32"), "found 'float32'"),
        (value(type_name="str", content=bytes(6)), "4 a character, in one value, found 6 bytes in 1 values"),
        (value(type_name="str", content=bytes(4)) * 2, "found 8 bytes in 2 values"),
        (value(type_name="str", content=bytes(MIB + 4)), "expected a text of at most 1048576 bytes"),
        (value() + value("x") + value(), "byte 38: expected a name of its own"),
        (value(content=b"a") + value(type_name="UInt8", content=b"b"), "expected one type and one shape"),
        (value(content=b"a") + value(extents=[1, 2], content=b"b"), "expected one type and one shape"),
        (value(type_name="Int16", content=bytes(3)) + value(type_name="Int16", content=b"b"), "cut a Int16 in two"),
    ],
)
def test_values_that_cannot_be_used_are_named(data, found):
    error = refused(data)
    (problem,) = error.problems
    assert problem.startswith("'w', byte ")
    assert found in problem
    assert len(problem) < 400


def test_map_parameters_are_named_with_all_else():
    table = bytes_field(3, bytes_field(1, int_field(1, 2) + text_field(2, "int32") + bytes_field(3, bytes(8))) * 3)
    maps = bytes_field(1, text_field(1, "table.a") + table) * 2 + bytes_field(1, text_field(1, "table.b") + table)
    error = refused(value("v") + maps + value(content=b"a"))
    assert [problem.split(",")[0] for problem in error.problems] == ["'table.a'", "'table.b'", "'w'"]
    assert all("map parameter" in problem for problem in error.problems[:2])
    assert "save the model without them" in error.hint


def test_a_great_many_problems_are_counted_but_not_all_kept():
    error = refused(b"".join(value(f"{number}", content=b"") for number in range(10_002)))
    assert len(error.problems) == 10_000
    assert error.found == "10002 problems"


def test_short_reads_are_refused():
    with pytest.raises(FormatError, match="short read"):
        read_index(100, lambda where: bytes(where.nbytes - 1))


def test_a_text_that_is_none_is_refused():
    with pytest.raises(FormatError, match="text 'note'"):
        decode_text(b"\x00\x00\x11\x00", "note")


@pytest.mark.parametrize("read_ahead", [0, -1])
def test_reading_nothing_is_refused(read_ahead):
    with pytest.raises(ValueError, match="read_ahead_bytes"):
        next(scan_ckpt(10, read_ahead))


# --- how much is read


def asked_for(specs):
    """A planned object and the ranges asked for; its contents, which may be of any size, are never made."""
    planned = plan_ckpt([(spec, None) for spec in specs])
    leads = []
    stop = 0
    for piece in planned.pieces:
        start, stop = stop, stop + len(piece.lead)
        leads.append((start, piece.lead))
        stop += specs[piece.tensor_index].dtype.nbytes(piece.element_count)
    asked = []

    def read(where):
        asked.append(where)
        first = bisect_left(leads, (where.start,))
        data = bytearray()
        for start, lead in leads[first : bisect_left(leads, (where.stop,))]:
            data += bytes(start - where.start - len(data)) + lead
        return bytes(data[: where.nbytes].ljust(where.nbytes, b"\0"))

    assert read_index(planned.nbytes, read) == planned.index
    return planned, asked


def llama_70b():
    for layer in range(80):
        name = f"model.layers.{layer}."
        for part, rows, columns in [
            ("attention.wq", 8192, 8192),
            ("attention.wk", 1024, 8192),
            ("attention.wv", 1024, 8192),
            ("attention.wo", 8192, 8192),
            ("feed_forward.w1", 28672, 8192),
            ("feed_forward.w2", 8192, 28672),
            ("feed_forward.w3", 28672, 8192),
        ]:
            yield TensorSpec(f"{name}{part}.weight", DType.BF16, (rows, columns))
        for part in ("attention_norm", "ffn_norm"):
            yield TensorSpec(f"{name}{part}.weight", DType.BF16, (8192,))
    yield TensorSpec("model.tok_embeddings.embedding_weight", DType.BF16, (32000, 8192))
    yield TensorSpec("lm_head.weight", DType.BF16, (32000, 8192))


def equal_tensors(count, nbytes):
    return [TensorSpec(f"layers.{number}.weight", DType.U8, (nbytes,)) for number in range(count)]


@pytest.mark.parametrize(
    ("specs", "most_requests", "most_bytes"),
    [
        pytest.param(list(llama_70b()), 740, 600_000, id="137 GB in 722 tensors"),
        pytest.param(equal_tensors(500, 10**9 // 5), 500, 260_000, id="100 GB in 500 tensors"),
        pytest.param(equal_tensors(10_000, 4), 9, 10**6, id="10 000 scalars"),
        pytest.param(equal_tensors(10_000, 100), 10, 2 * 10**6, id="10 000 times 100 bytes"),
        pytest.param(equal_tensors(2_000, 16_384), 50, 34 * 10**6, id="2 000 norms"),
        pytest.param(equal_tensors(100, 2**17), 100, 60_000, id="100 times 128 KiB"),
        pytest.param(equal_tensors(1, 10), 1, 60, id="one"),
    ],
)
def test_few_and_short_reads(specs, most_requests, most_bytes):
    planned, asked = asked_for(specs)
    assert len(asked) <= most_requests
    assert sum(where.nbytes for where in asked) <= most_bytes
    assert all(where.nbytes <= MIB for where in asked)
    assert all(0 <= where.start < where.stop <= planned.nbytes for where in asked)


# --- writing


def test_a_planned_object_is_what_is_found():
    specs = [TensorSpec(f"layers.0.{name}", dtype, (2, 3)) for name, dtype in DTYPE_OF.items()]
    specs += [TensorSpec("s", DType.F64, ()), TensorSpec("e", DType.F16, (0, 4)), TensorSpec("", DType.U8, (1,))]
    types = [*DTYPE_OF, None, None, None]
    planned = plan_ckpt(list(zip(specs, types, strict=True)), {"note": "测试 😀", "nothing": ""})
    data = assemble(planned, [bytes(spec.nbytes) for spec in specs])
    assert len(data) == planned.nbytes
    assert index_of(data) == planned.index
    assert [tensor.type_name for tensor in planned.index.tensors] == [*DTYPE_OF, "Float64", "Float16", "UInt8"]
    assert [decode_text(data[t.range.start : t.range.stop], t.name) for t in planned.index.texts] == ["测试 😀", ""]


def test_a_checksum_adds_bytes_and_nothing_else():
    planned = plan_ckpt([(TensorSpec("w", DType.U8, (3,)), None)])
    data = assemble(planned, [b"abc"])
    checked = index_of(data + crc_tail(zlib.crc32(data)))
    assert checked.tensors == planned.index.tensors
    assert checked.crc32 == zlib.crc32(data)
    assert checked.crc_range == ByteRange(0, planned.nbytes)
    assert checked.nbytes == planned.nbytes + CRC_TAIL_BYTES


@pytest.mark.parametrize(
    ("dtype", "shape", "counts"),
    [
        (DType.U8, (PIECE_BYTES,), [PIECE_BYTES]),
        (DType.U8, (PIECE_BYTES + 1,), [PIECE_BYTES, 1]),
        (DType.F32, (3, 50 * MIB), [100 * MIB, 50 * MIB]),  # whole rows
        (DType.F32, (1, 3, 50 * MIB), [100 * MIB, 50 * MIB]),
        (DType.F32, (1, 300 * MIB), [128 * MIB, 128 * MIB, 44 * MIB]),
        (DType.F32, (2, 129 * MIB), [128 * MIB, 128 * MIB, 2 * MIB]),  # a row does not fit
        (DType.F64, (0, 2**40), [0]),
    ],
)
def test_large_tensors_are_cut(dtype, shape, counts):
    spec = TensorSpec("big.weight", dtype, shape)
    planned = plan_ckpt([(spec, None)])
    assert [piece.element_count for piece in planned.pieces] == counts
    assert [piece.first_element for piece in planned.pieces] == [sum(counts[:i]) for i in range(len(counts))]
    (tensor,) = planned.index.tensors
    assert [where.nbytes for where in tensor.ranges] == [count * dtype.itemsize for count in counts]
    assert planned.nbytes == sum(len(piece.lead) for piece in planned.pieces) + spec.nbytes


@pytest.mark.parametrize(
    ("tensor", "type_name", "found"),
    [
        (TensorSpec("w", DType.F8_E4M3, (2,)), None, "found F8_E4M3"),
        (TensorSpec("w", DType.F4, (2,)), None, "found F4"),
        (TensorSpec("w", DType.C64, (2,)), None, "found C64"),
        (TensorSpec("w", DType.I8, (2,)), "str", "expected a type name of I8, found 'str'"),
        (TensorSpec("w", DType.F32, (2,)), "Int4", "expected a type name of F32, found 'Int4'"),
        (TensorSpec("w", DType.F32, (0,)), None, "loads as a scalar of value 0"),
        (TensorSpec("w", DType.F32, (1,) * 33), None, "expected at most 32 axes, found 33"),
        (TensorSpec("w", DType.F32, (-1,)), None, "expected extents of 0 to 2**63 - 1"),
        (TensorSpec("w", DType.F32, (2**63, 0)), None, "expected extents of 0 to 2**63 - 1"),
        (TensorSpec("w", DType.F32, (2**40, 2**40)), None, "expected less than 2**63 bytes"),
        (TensorSpec("\ud800", DType.F32, (1,)), None, "half of a surrogate pair"),
        (TensorSpec("w" * 40_000, DType.F32, (1,)), None, "found 40000"),
    ],
)
def test_tensors_that_cannot_be_written_are_refused(tensor, type_name, found):
    with pytest.raises(FormatError) as caught:
        plan_ckpt([(TensorSpec("good", DType.F32, (2,)), None), (tensor, type_name)])
    (problem,) = caught.value.problems
    assert found in problem


@pytest.mark.parametrize(
    ("text", "found"),
    [("a\0", "no NUL at the end"), ("\udc00", "surrogate"), ("a" * MIB, "found 4194304")],
)
def test_texts_that_cannot_be_written_are_refused(text, found):
    with pytest.raises(FormatError) as caught:
        plan_ckpt([], {"note": text})
    (problem,) = caught.value.problems
    assert found in problem


def test_all_that_cannot_be_written_is_named_at_once():
    wrong = [dtype for dtype in DType if dtype not in TYPE_NAME_OF]
    specs = [TensorSpec(dtype.value, dtype, (2, math.lcm(8, dtype.bits))) for dtype in wrong]
    with pytest.raises(FormatError) as caught:
        plan_ckpt([(spec, None) for spec in [*specs, specs[0]]], {"F4": ""})
    assert len(caught.value.problems) == len(specs) + 1 + 2  # of a dtype, once more, and the names
    assert all(any(dtype.value in problem for problem in caught.value.problems) for dtype in wrong)


def test_nothing_to_write_is_refused():
    with pytest.raises(FormatError, match="nothing to write"):
        plan_ckpt([])


def test_pieces_of_no_element_are_refused():
    with pytest.raises(ValueError, match="piece_bytes"):
        plan_ckpt([(TensorSpec("w", DType.U8, (3,)), None)], piece_bytes=7)
