"""MindSpore .ckpt objects: what MindSpore wrote is found and written again, the rest refused, with few reads."""

import hashlib
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import assembled, content_of, crc_tail, header_in, list_ckpt, planned_header

from reshard.errors import FormatError
from reshard.formats.container_format import Checksum, ContainerHeader
from reshard.formats.containers import Container, read_header
from reshard.formats.mindspore.ckpt import (
    CRC_TAIL_BYTES,
    DTYPE_OF,
    PIECE_BYTES,
    TYPE_NAME_OF,
    decode_text,
    encode_text,
    plan_ckpt,
)
from reshard.formats.mindspore.ckpt_read import scan_ckpt
from reshard.formats.protobuf import bytes_field, int_field, text_field
from reshard.tensor import Box, DType, TensorSpec

CASES = Path(__file__).parents[1] / "conformance" / "mindspore"
MIB = 2**20
CRC_OF_7 = b"crc_num" + bytes(9) + b"\x07"


def ckpt_files():
    """Every plain .ckpt of the cases, with what case.json says of it."""
    for case in sorted(CASES.glob("fmt_*")):
        listed = json.loads((case / "case.json").read_text())["files"]
        for name, content in listed.items():
            if content["format"] == "ckpt":
                yield pytest.param(case / name, content, id=f"{case.name}/{Path(name).name}")


def header(data):
    return header_in(data, Container.CKPT)


def written_again(data):
    found = header(data)
    frame = plan_ckpt([tensor.spec for tensor in found.tensors], found.metadata, found.texts)
    again = assembled(frame, [content_of(tensor, data) for tensor in found.tensors])
    return again if found.checksum is None else again + crc_tail(again)


def contents_of(tensor):
    """Start and length of each run of bytes: one for each value that the tensor is."""
    itemsize, runs = tensor.spec.dtype.itemsize, []
    for box, start in tensor.boxes:
        nbytes = box.element_count * itemsize
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + nbytes)
        else:
            runs.append((start, nbytes))
    return runs


def value(name="w", extents=(2,), type_name="Int8", content=b"ab"):
    dims = b"".join(int_field(1, extent) for extent in extents)
    return bytes_field(
        1, text_field(1, name) + bytes_field(2, dims + text_field(2, type_name) + bytes_field(3, content))
    )


def refused(data):
    with pytest.raises(FormatError) as caught:
        header(data)
    return caught.value


# --- what MindSpore wrote


def test_the_cases_are_there():
    assert len(list(ckpt_files())) == 5


@pytest.mark.parametrize(("path", "expected"), list(ckpt_files()))
def test_every_value_of_mindspore_is_found(path, expected):
    data = path.read_bytes()
    found, listed = header(data), expected["tensors"]
    tensors = {
        tensor.spec.name: {
            "dtype": found.metadata.get(tensor.spec.name, TYPE_NAME_OF[tensor.spec.dtype]),
            "shape": list(tensor.spec.shape),
            "values": len(contents_of(tensor)) or 1,
            "sha256": hashlib.sha256(content_of(tensor, data)).hexdigest()[:32],
        }
        for tensor in found.tensors
    }
    texts = {name: hashlib.sha256(encode_text(text)).hexdigest()[:32] for name, text in found.texts.items()}
    assert tensors == {name: item for name, item in listed.items() if item["dtype"] != "str"}
    assert texts == {name: item["sha256"] for name, item in listed.items() if item["dtype"] == "str"}
    assert [*tensors, *texts] == expected["order"]
    assert len(data) == expected["bytes"]
    if "crc_num" in expected:
        stop = found.checksum.nbytes
        assert found.checksum.crc32 == expected["crc_num"] == zlib.crc32(data[:stop])
        assert stop == len(data) - CRC_TAIL_BYTES
    else:
        assert found.checksum is None


@pytest.mark.parametrize(("path", "expected"), list(ckpt_files()))
def test_what_mindspore_wrote_is_written_again_byte_for_byte(path, expected):
    data = path.read_bytes()
    assert written_again(data) == data


def test_texts_of_mindspore_are_read():
    data = (CASES / "fmt_ckpt_all_types/expected/plain.ckpt").read_bytes()
    assert list(header(data).texts.values()) == ["hello 测试"]


def test_safetensors_to_ckpt_is_as_mindspore_does_it():
    case = CASES / "fmt_safetensors_to_ckpt"
    source = (case / "in/a.safetensors").read_bytes()
    tensors = sorted(header_in(source).tensors, key=lambda tensor: tensor.spec.name)
    frame = plan_ckpt([tensor.spec for tensor in tensors], {}, {})
    contents = [content_of(tensor, source) for tensor in tensors]
    assert assembled(frame, contents) == (case / "expected/a.ckpt").read_bytes()


def test_ckpt_to_safetensors_is_as_mindspore_does_it():
    case = CASES / "fmt_ckpt_to_safetensors"
    names = json.loads((case / "case.json").read_text())["calls"][0]["kwargs"]["name_map"]
    source, target = ((case / name).read_bytes() for name in ("in/a.ckpt", "expected/a.safetensors"))
    expected = {tensor.spec.name: tensor for tensor in header_in(target).tensors}
    found = header(source).tensors
    assert {names.get(tensor.spec.name, tensor.spec.name) for tensor in found} == expected.keys()
    for tensor in found:
        stored = expected[names.get(tensor.spec.name, tensor.spec.name)]
        assert (tensor.spec.dtype, tensor.spec.shape) == (stored.spec.dtype, stored.spec.shape)
        assert content_of(tensor, source) == content_of(stored, target)


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
    found = header(value("w", extents, type_name, content))
    (tensor,) = found.tensors
    assert tensor.spec == TensorSpec("w", dtype, shape)
    assert found.metadata.get("w", TYPE_NAME_OF[dtype]) == type_name
    assert sum(nbytes for _, nbytes in contents_of(tensor)) == len(content)


def test_neighbours_of_one_name_are_one_tensor():
    pieces = [value("w", [5], "Int16", bytes(count * 2)) for count in (3, 1, 1)]
    data = value("a") + b"".join(pieces) + value("z")
    first, tensor, last = header(data).tensors
    place = tensor.boxes[0][1]
    lead = len(pieces[1]) - 2
    assert [(box.start, box.stop, start - place) for box, start in tensor.boxes] == [
        ((0,), (3,), 0),
        ((3,), (4,), 6 + lead),
        ((4,), (5,), 8 + 2 * lead),
    ]
    assert [first.spec.name, tensor.spec.name, last.spec.name] == ["a", "w", "z"]


def test_values_that_end_within_a_row_are_several_boxes():
    data = value("w", [3, 2], "UInt8", b"abc") + value("w", [3, 2], "UInt8", b"def")
    (tensor,) = header(data).tensors
    assert [(box.start, box.stop, data[start : start + 1]) for box, start in tensor.boxes] == [
        ((0, 0), (1, 2), b"a"),
        ((1, 0), (2, 1), b"c"),
        ((1, 1), (2, 2), b"d"),
        ((2, 0), (3, 2), b"e"),
    ]


def test_boxes_of_scalars_and_empty_tensors():
    data = value("s", [], "Int8", b"a") + value("e", [0, 3], "Int8", b"")
    scalar, empty = header(data).tensors
    assert scalar.boxes == ((Box((), ()), data.index(b"a")),)
    assert empty.boxes == ()


def test_fields_before_the_content_may_come_in_any_order():
    tensor = bytes_field(2, text_field(2, "Int8") + int_field(1, 2) + bytes_field(3, b"ab"))
    (found,) = header(bytes_field(1, text_field(1, "w") + tensor)).tensors
    assert found.spec == TensorSpec("w", DType.I8, (2,))


def test_a_tensor_that_ends_like_a_checksum_is_a_tensor():
    data = value("w", [17], "UInt8", CRC_OF_7)
    assert header(data).checksum is None
    assert header(data + CRC_OF_7).checksum == Checksum(7, len(data))


# --- what is refused


@pytest.mark.parametrize(
    ("data", "what", "where"),
    [
        (b"", "empty object", "byte 0"),
        (CRC_OF_7, "no values", "byte 0"),
        (b"\x08\x02\x12\x00", "not a value", "byte 0"),
        (b"PK\x03\x04", "not a value", "byte 0"),
        (value() + b"trailing garbage", "not a value", "byte 19"),
        (value() + CRC_OF_7[:-1], "not a value", "byte 19"),
        (value() + CRC_OF_7 + b"\0", "not a value", "byte 19"),
        (value() + b"crc_num" + (2**32).to_bytes(10, "big"), "invalid checksum", "byte 26"),
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
        (value() + value("x") + value(), "byte 38: expected a unique name"),
        (value(content=b"a") + value(type_name="UInt8", content=b"b"), "expected one type and one shape"),
        (value(content=b"a") + value(extents=[1, 2], content=b"b"), "expected one type and one shape"),
        (value(type_name="Int16", content=bytes(3)) + value(type_name="Int16", content=b"b"), "an element of Int16"),
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
        read_header(Container.CKPT, 100, lambda where: bytes(where.nbytes - 1))


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
    frame = plan_ckpt(specs, {}, {})
    asked = []

    def read(where):
        asked.append(where)
        data = bytearray(where.nbytes)
        for place, known in frame.literals_in(where.start, where.stop):
            data[place - where.start : place - where.start + len(known)] = known
        return bytes(data)

    found = read_header(Container.CKPT, frame.nbytes, read)
    assert found.tensors == planned_header(frame, specs)
    assert found.read_bytes == sum(where.nbytes for where in asked)
    return frame, asked


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
    frame, asked = asked_for(specs)
    assert len(asked) <= most_requests
    assert sum(where.nbytes for where in asked) <= most_bytes
    assert all(where.nbytes <= MIB for where in asked)
    assert all(0 <= where.start < where.stop <= frame.nbytes for where in asked)


# --- writing


def test_a_planned_object_is_what_is_found():
    specs = [TensorSpec(f"layers.0.{name}", dtype, (2, 3)) for name, dtype in DTYPE_OF.items()]
    specs += [TensorSpec("s", DType.F64, ()), TensorSpec("e", DType.F16, (0, 4)), TensorSpec("", DType.U8, (1,))]
    texts, notes = {"note": "测试 😀", "nothing": ""}, {"layers.0.Int4": "Int4"}
    frame = plan_ckpt(specs, {**notes, "author": "me", "s": "Float64"}, texts)
    data = assembled(frame, [bytes(spec.nbytes) for spec in specs])
    assert len(data) == frame.nbytes
    assert replace(header(data), read_bytes=0) == ContainerHeader(planned_header(frame, specs), notes, texts)
    assert list_ckpt(data) == (
        [(spec.name, spec.dtype.value, spec.shape, spans) for spec, spans in zip(specs, spans_of(frame), strict=True)],
        texts,
        notes,
    )


def spans_of(frame):
    """The bytes of each tensor's values; an empty tensor has a value, too, of no bytes."""
    spans = {extent.slot: [] for extent in frame.extents}
    for extent in frame.extents:
        spans[extent.slot].append((extent.start, extent.stop))
    empty = next(place + data.index(b"\x1a\x00") + 2 for place, data in frame.literals if b"\x1a\x00" in data)
    return [spans.get(slot, [(empty, empty)]) for slot in range(max(spans) + 1)]


def test_a_checksum_adds_bytes_and_nothing_else():
    frame = plan_ckpt([TensorSpec("w", DType.U8, (3,))], {}, {})
    data = assembled(frame, [b"abc"])
    checked = header(data + crc_tail(data))
    assert checked.tensors == header(data).tensors
    assert checked.checksum == Checksum(zlib.crc32(data), frame.nbytes)


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
    frame = plan_ckpt([spec], {}, {})
    assert [extent.element_count for extent in frame.extents] == [count for count in counts if count]
    assert [extent.first_element for extent in frame.extents] == [sum(counts[:i]) for i, n in enumerate(counts) if n]
    assert len(frame.literals) == len(counts)
    assert frame.nbytes == sum(len(data) for _, data in frame.literals) + spec.nbytes


@pytest.mark.parametrize(
    ("tensor", "metadata", "found"),
    [
        (TensorSpec("w", DType.F8_E4M3, (2,)), {}, "found F8_E4M3"),
        (TensorSpec("w", DType.F4, (2,)), {}, "found F4"),
        (TensorSpec("w", DType.C64, (2,)), {}, "found C64"),
        (TensorSpec("w", DType.F32, (2,)), {"w": "Int4"}, "expected Int4 packed in I8, found F32"),
        (TensorSpec("w", DType.F32, (0,)), {}, "loads as a scalar of value 0"),
        (TensorSpec("w", DType.F32, (1,) * 33), {}, "expected at most 32 axes, found 33"),
        (TensorSpec("w", DType.F32, (-1,)), {}, "expected extents of 0 to 2**63 - 1"),
        (TensorSpec("w", DType.F32, (2**63, 0)), {}, "expected extents of 0 to 2**63 - 1"),
        (TensorSpec("w", DType.F32, (2**40, 2**40)), {}, "expected less than 2**63 bytes"),
        (TensorSpec("\ud800", DType.F32, (1,)), {}, "an unpaired surrogate"),
        (TensorSpec("w" * 40_000, DType.F32, (1,)), {}, "found 40000"),
    ],
)
def test_tensors_that_cannot_be_written_are_refused(tensor, metadata, found):
    with pytest.raises(FormatError) as caught:
        plan_ckpt([TensorSpec("good", DType.F32, (2,)), tensor], metadata, {})
    (problem,) = caught.value.problems
    assert found in problem


@pytest.mark.parametrize(
    ("text", "found"),
    [("a\0", "no NUL at the end"), ("\udc00", "surrogate"), ("a" * MIB, "found 4194304")],
)
def test_texts_that_cannot_be_written_are_refused(text, found):
    with pytest.raises(FormatError) as caught:
        plan_ckpt([], {}, {"note": text})
    (problem,) = caught.value.problems
    assert found in problem


def test_all_that_cannot_be_written_is_named_at_once():
    wrong = [dtype for dtype in DType if dtype not in TYPE_NAME_OF]
    specs = [TensorSpec(dtype.value, dtype, (2, math.lcm(8, dtype.bits))) for dtype in wrong]
    with pytest.raises(FormatError) as caught:
        plan_ckpt([*specs, specs[0]], {}, {"F4": ""})
    assert len(caught.value.problems) == len(specs) + 1 + 2  # of a dtype, once more, and the names
    assert all(any(dtype.value in problem for problem in caught.value.problems) for dtype in wrong)


def test_nothing_to_write_is_refused():
    with pytest.raises(FormatError, match="nothing to write"):
        plan_ckpt([], {}, {})


def test_pieces_of_no_element_are_refused():
    with pytest.raises(ValueError, match="piece_bytes"):
        plan_ckpt([TensorSpec("w", DType.U8, (3,))], {}, {}, piece_bytes=7)
