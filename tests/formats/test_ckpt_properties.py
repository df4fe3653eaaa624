"""MindSpore .ckpt objects of any content: what is planned is found, by any reads, and no bytes break the scan."""

import math
import zlib
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import assembled, content_of, crc_tail, planned_header

from reshard.errors import FormatError
from reshard.formats.container_format import Checksum, ContainerHeader
from reshard.formats.mindspore.ckpt import DTYPE_OF, INT4, plan_ckpt
from reshard.formats.mindspore.ckpt_read import READ_AHEAD_BYTES, scan_ckpt
from reshard.formats.protobuf import encode_varint
from reshard.tensor import Box, TensorSpec

LONGEST_HEAD_BYTES = 2**16

characters = st.characters(exclude_categories=["Cs"])
names = st.text(characters, max_size=12)
texts = st.dictionaries(names, st.text(characters, max_size=9).map(lambda text: text.rstrip("\0")), max_size=2)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple).filter(lambda shape: shape != (0,))
read_aheads = st.integers(1, 200) | st.just(READ_AHEAD_BYTES) | st.just(2**22)


@st.composite
def models(draw):
    """Tensors, notes of packed int4, texts, and a limit for pieces."""
    specs, notes = [], {}
    for name in draw(st.lists(names, max_size=5, unique=True)):
        type_name = draw(st.sampled_from(sorted(DTYPE_OF)))
        specs.append(TensorSpec(name, DTYPE_OF[type_name], draw(shapes)))
        notes |= {name: INT4} if type_name == INT4 else {}
    taken = {spec.name for spec in specs}
    held = {name: text for name, text in draw(texts).items() if name not in taken}
    if not specs and not held:
        held = {"note": ""}
    return specs, notes, held, draw(st.integers(8, 60))


@st.composite
def objects(draw):
    """A planned object, its header, its contents that look like anything, and its bytes."""
    specs, notes, held, piece_bytes = draw(models())
    frame = plan_ckpt(specs, notes, held, piece_bytes=piece_bytes)
    contents = [draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes)) for spec in specs]
    header = ContainerHeader(planned_header(frame, specs), notes, held)
    return frame, header, contents, assembled(frame, contents)


def scanned(data, read_ahead=READ_AHEAD_BYTES):
    """The header, when every request was within the object and brought the scan forward; texts come last."""
    scan = scan_ckpt(len(data), read_ahead)
    answer, last, count, is_done = None, (0, 0), 0, False
    while True:
        try:
            wanted = scan.send(answer)
        except StopIteration as finished:
            return finished.value, count
        assert 0 <= wanted.start < wanted.stop <= len(data)
        assert wanted.nbytes <= max(read_ahead, 2**20)
        if not is_done and (wanted.start, wanted.nbytes) <= last:
            is_done, last = True, (0, 0)
        assert (wanted.start, wanted.nbytes) > last
        answer, last, count = data[wanted.start : wanted.stop], (wanted.start, wanted.nbytes), count + 1


def scanned_or_refused(data, read_ahead=READ_AHEAD_BYTES):
    """The header, or None with a FormatError that says enough; every other exception escapes."""
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


def assert_sound(header, data):
    """Boxes come in order, within the object, and hold what the shapes need."""
    reached = 0
    for tensor in header.tensors:
        for box, start in tensor.boxes:
            assert reached <= start
            reached = start + box.element_count * tensor.spec.dtype.itemsize
        assert sum(box.element_count for box, _ in tensor.boxes) == math.prod(tensor.spec.shape)
    assert reached <= (header.checksum.nbytes if header.checksum else len(data))
    found = [tensor.spec.name for tensor in header.tensors] + list(header.texts)
    assert len(set(found)) == len(found) > 0


@settings(max_examples=150, deadline=None)
@given(objects(), read_aheads)
def test_what_is_planned_is_found(written, read_ahead):
    frame, planned, contents, data = written
    header, _ = scanned(data, read_ahead)
    assert len(data) == frame.nbytes
    assert header == planned
    for tensor, content in zip(header.tensors, contents, strict=True):
        assert content_of(tensor, data) == content


@settings(max_examples=100, deadline=None)
@given(objects(), read_aheads)
def test_a_checksum_changes_nothing_else(written, read_ahead):
    _, planned, _, data = written
    header, _ = scanned(data + crc_tail(data), read_ahead)
    assert header == replace(planned, checksum=Checksum(zlib.crc32(data), len(data)))


@settings(max_examples=100, deadline=None)
@given(objects())
def test_pieces_tile_every_tensor(written):
    frame, planned, _, _ = written
    reached = [0] * len(planned.tensors)
    for extent in frame.extents:
        assert extent.first_element == reached[extent.slot]
        reached[extent.slot] += extent.element_count
    assert reached == [math.prod(tensor.spec.shape) for tensor in planned.tensors]
    for tensor in planned.tensors:
        assert sum(box.element_count for box, _ in tensor.boxes) == math.prod(tensor.spec.shape)
        assert all(Box.whole(tensor.spec.shape).intersect(box) in (box, None) for box, _ in tensor.boxes)


@settings(max_examples=100, deadline=None)
@given(objects(), st.integers(LONGEST_HEAD_BYTES, 2**21))
def test_one_read_is_enough_when_it_holds_all(written, read_ahead):
    _, planned, _, data = written
    assert scanned(data, read_ahead)[1] == 1 + len(planned.texts)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), read_aheads)
def test_arbitrary_bytes_never_crash(data, read_ahead):
    # Bytes alone rarely get past the first one, so they stand at three depths.
    for opened in (data, nested(data), nested(b"\x0a\x01w" + nested(data, 2))):
        header = scanned_or_refused(opened, read_ahead)
        assert header == scanned_or_refused(opened)
        if header is not None:
            assert_sound(header, opened)


def nested(payload, number=1):
    return encode_varint(number << 3 | 2) + encode_varint(len(payload)) + payload


# Bytes that mean something here: keys of fields, lengths, the last byte of a varint, the mark of a checksum.
telling = st.sampled_from([b"\x0a", b"\x12", b"\x1a", b"\x08", b"\x00", b"\x7f", b"\x80", b"\xff" * 9, b"crc_num"])


@settings(max_examples=300, deadline=None)
@given(objects(), st.data())
def test_mutated_objects_never_crash(written, drawn):
    data = bytearray(written[3])
    for _ in range(drawn.draw(st.integers(1, 4))):
        place = drawn.draw(st.integers(0, len(data)))
        removed = drawn.draw(st.integers(0, 3))
        data[place : place + removed] = drawn.draw(st.binary(max_size=3) | telling)
    header = scanned_or_refused(bytes(data))
    assert header == scanned_or_refused(bytes(data), drawn.draw(read_aheads))
    if header is not None:
        assert_sound(header, data)


@settings(max_examples=150, deadline=None)
@given(objects(), st.data())
def test_objects_cut_short_are_refused_or_lack_whole_values(written, drawn):
    _, planned, _, data = written
    header = scanned_or_refused(data[: drawn.draw(st.integers(0, len(data) - 1))])
    if header is not None:  # cut between two values, as far as anybody can tell; or between two pieces of none
        assert header.tensors == planned.tensors[: len(header.tensors)]
        assert len(header.tensors) + len(header.texts) < len(planned.tensors) + len(planned.texts)
