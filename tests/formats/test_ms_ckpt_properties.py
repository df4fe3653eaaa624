"""MindSpore .ckpt objects of any content: what is planned is found, by any reads, and no bytes break the scan."""

import math
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.mindspore.ckpt_read import READ_AHEAD_BYTES, scan_ckpt
from reshard.formats.mindspore.ckpt_values import CRC_TAIL_BYTES, DTYPE_OF, crc_tail, decode_text
from reshard.formats.mindspore.ckpt_write import plan_ckpt
from reshard.formats.protobuf import encode_varint
from reshard.tensor import TensorSpec

LONGEST_HEAD_BYTES = 2**16

characters = st.characters(exclude_categories=["Cs"])
names = st.text(characters, max_size=12)
texts = st.dictionaries(names, st.text(characters, max_size=9).map(lambda text: text.rstrip("\0")), max_size=2)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple).filter(lambda shape: shape != (0,))
read_aheads = st.integers(1, 200) | st.just(READ_AHEAD_BYTES) | st.just(2**22)


@st.composite
def models(draw):
    """Tensors with their type names, texts, and a limit for pieces."""
    tensors = []
    for name in draw(st.lists(names, max_size=5, unique=True)):
        type_name = draw(st.sampled_from(sorted(DTYPE_OF)))
        tensors.append((TensorSpec(name, DTYPE_OF[type_name], draw(shapes)), type_name))
    taken = {spec.name for spec, _ in tensors}
    notes = {name: text for name, text in draw(texts).items() if name not in taken}
    if not tensors and not notes:
        notes = {"note": ""}
    return tensors, notes, draw(st.integers(8, 60))


@st.composite
def objects(draw):
    """A planned object and its bytes, of contents that look like anything."""
    tensors, notes, piece_bytes = draw(models())
    planned = plan_ckpt(tensors, notes, piece_bytes=piece_bytes)
    contents = [draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes)) for spec, _ in tensors]
    return planned, contents, assemble(planned, contents)


def assemble(planned, contents):
    data = b""
    for piece in planned.pieces:
        spec = planned.index.tensors[piece.tensor_index].spec
        first, count = spec.dtype.nbytes(piece.first_element), spec.dtype.nbytes(piece.element_count)
        data += piece.lead + contents[piece.tensor_index][first : first + count]
    return data + planned.tail


def scanned(data, read_ahead=READ_AHEAD_BYTES):
    """The index, when every request was within the object and brought the scan forward."""
    scan = scan_ckpt(len(data), read_ahead)
    answer, last, count = None, (0, 0), 0
    while True:
        try:
            wanted = scan.send(answer)
        except StopIteration as finished:
            return finished.value, count
        assert 0 <= wanted.start < wanted.stop <= len(data)
        assert wanted.nbytes <= max(read_ahead, 2**20)
        assert (wanted.start, wanted.nbytes) > last
        answer, last, count = data[wanted.start : wanted.stop], (wanted.start, wanted.nbytes), count + 1


def scanned_or_refused(data, read_ahead=READ_AHEAD_BYTES):
    """The index, or None with a FormatError that says enough; every other exception escapes."""
    try:
        return scanned(data, read_ahead)[0]
    except FormatError as error:
        problem = error
    assert problem.expected
    assert problem.found
    assert problem.where or problem.problems
    assert str(problem).encode()
    assert len(str(problem)) < 40_000
    return None


def assert_sound(index, data):
    """Ranges come in order, within the object, and hold what the shapes need."""
    reached = 0
    for tensor in sorted(index.tensors, key=lambda tensor: tensor.ranges[0].start):
        for where in tensor.ranges:
            assert reached <= where.start <= where.stop
            reached = where.stop
        assert sum(where.nbytes for where in tensor.ranges) == tensor.spec.nbytes
    assert reached <= index.crc_range.stop
    assert all(0 < text.range.start <= text.range.stop <= len(data) for text in index.texts)
    found = [tensor.spec.name for tensor in index.tensors] + [text.name for text in index.texts]
    assert len(set(found)) == len(found) > 0


@settings(max_examples=150, deadline=None)
@given(objects(), read_aheads)
def test_what_is_planned_is_found(written, read_ahead):
    planned, contents, data = written
    index, _ = scanned(data, read_ahead)
    assert len(data) == planned.nbytes
    assert index == planned.index
    for tensor, content in zip(index.tensors, contents, strict=True):
        assert b"".join(data[where.start : where.stop] for where in tensor.ranges) == content


@settings(max_examples=100, deadline=None)
@given(models())
def test_texts_come_back(model):
    tensors, notes, _ = model
    planned = plan_ckpt(tensors, notes)
    data = assemble(planned, [bytes(spec.nbytes) for spec, _ in tensors])
    read = {text.name: decode_text(data[text.range.start : text.range.stop], text.name) for text in planned.index.texts}
    assert read == notes


@settings(max_examples=100, deadline=None)
@given(objects(), read_aheads)
def test_a_checksum_changes_nothing_else(written, read_ahead):
    planned, _, data = written
    index, _ = scanned(data + crc_tail(zlib.crc32(data)), read_ahead)
    assert (index.tensors, index.texts, index.crc32) == (planned.index.tensors, planned.index.texts, zlib.crc32(data))
    assert index.crc_range.stop == len(data) == index.nbytes - CRC_TAIL_BYTES


@settings(max_examples=100, deadline=None)
@given(objects())
def test_pieces_tile_every_tensor(written):
    planned, _, _ = written
    reached = {}
    for piece in planned.pieces:
        assert piece.first_element == reached.get(piece.tensor_index, 0)
        reached[piece.tensor_index] = piece.first_element + piece.element_count
    assert list(reached) == list(range(len(planned.index.tensors)))
    for tensor in planned.index.tensors:
        boxes = list(tensor.boxes())
        assert sum(box.element_count for box, _ in boxes) == math.prod(tensor.spec.shape)
        edges = [edge for box, _ in boxes for edge in zip(box.start, box.stop, tensor.spec.shape, strict=True)]
        assert all(0 <= start <= stop <= extent for start, stop, extent in edges)
        assert sum(where.nbytes for _, where in boxes) == tensor.spec.nbytes


@settings(max_examples=100, deadline=None)
@given(objects(), st.integers(LONGEST_HEAD_BYTES, 2**21))
def test_one_read_is_enough_when_it_holds_all(written, read_ahead):
    assert scanned(written[2], read_ahead)[1] == 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), read_aheads)
def test_arbitrary_bytes_never_crash(data, read_ahead):
    # Bytes alone rarely get past the first one, so they stand at three depths.
    for opened in (data, nested(data), nested(b"\x0a\x01w" + nested(data, 2))):
        index = scanned_or_refused(opened, read_ahead)
        assert index == scanned_or_refused(opened)
        if index is not None:
            assert_sound(index, opened)


def nested(payload, number=1):
    return encode_varint(number << 3 | 2) + encode_varint(len(payload)) + payload


# Bytes that mean something here: keys of fields, lengths, the last byte of a varint, the mark of a checksum.
telling = st.sampled_from([b"\x0a", b"\x12", b"\x1a", b"\x08", b"\x00", b"\x7f", b"\x80", b"\xff" * 9, b"crc_num"])


@settings(max_examples=300, deadline=None)
@given(objects(), st.data())
def test_mutated_objects_never_crash(written, drawn):
    data = bytearray(written[2])
    for _ in range(drawn.draw(st.integers(1, 4))):
        place = drawn.draw(st.integers(0, len(data)))
        removed = drawn.draw(st.integers(0, 3))
        data[place : place + removed] = drawn.draw(st.binary(max_size=3) | telling)
    index = scanned_or_refused(bytes(data))
    assert index == scanned_or_refused(bytes(data), drawn.draw(read_aheads))
    if index is not None:
        assert_sound(index, data)


@settings(max_examples=150, deadline=None)
@given(objects(), st.data())
def test_objects_cut_short_are_refused_or_lack_whole_values(written, drawn):
    planned, _, data = written
    index = scanned_or_refused(data[: drawn.draw(st.integers(0, len(data) - 1))])
    if index is not None:  # cut between two values, as far as anybody can tell; or between two pieces of none
        assert index.tensors == planned.index.tensors[: len(index.tensors)]
        assert len(index.tensors) + len(index.texts) < len(planned.index.tensors) + len(planned.index.texts)
