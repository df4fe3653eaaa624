"""Strided copies against numpy."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reshard.engine.kernels import scatter as scatter_module
from reshard.engine.kernels.scatter import first_difference, repeat, scatter
from reshard.tensor import Scatter, box_scatter


@st.composite
def boxes_in_two_tensors(draw):
    box = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    holders = []
    for _ in range(2):
        before = tuple(draw(st.integers(0, 2)) for _ in box)
        after = [draw(st.integers(0, 2)) for _ in box]
        holders.append((tuple(a + n + b for a, n, b in zip(before, box, after, strict=True)), before))
    return box, holders, draw(st.sampled_from([1, 2, 3, 4, 8, 16]))


@given(boxes_in_two_tensors(), st.integers(0, 5), st.integers(0, 5))
def test_a_box_moves_as_numpy_moves_it(case, source_start, target_start):
    box, (source, target), itemsize = case
    numbers = np.random.default_rng(0)
    full = numbers.integers(0, 256, (*source[0], itemsize), np.uint8)
    expected = np.zeros((*target[0], itemsize), np.uint8)
    take = tuple(slice(a, a + n) for a, n in zip(source[1], box, strict=True))
    put = tuple(slice(a, a + n) for a, n in zip(target[1], box, strict=True))
    expected[put] = full[take]

    read = bytes(source_start) + full.tobytes()
    part = bytearray(target_start + math.prod(target[0]) * itemsize)
    move = box_scatter(box, source, target, itemsize).moved(source_start, target_start)
    scatter(move, memoryview(read), memoryview(part))
    assert bytes(part) == bytes(target_start) + expected.tobytes()


@given(boxes_in_two_tensors(), st.data())
def test_a_clipped_copy_moves_its_share_and_nothing_else(case, data):
    box, (source, target), itemsize = case
    numbers = np.random.default_rng(1)
    full = numbers.integers(1, 256, math.prod(source[0]) * itemsize, np.uint8).tobytes()
    size = math.prod(target[0]) * itemsize
    move = box_scatter(box, source, target, itemsize)
    edge = data.draw(st.integers(move.source, move.source_stop))
    whole, halves, half = bytearray(size), bytearray(size), bytearray(size)
    scatter(move, memoryview(full), memoryview(whole))
    for start, stop in ((0, edge), (edge, len(full))):
        for piece in move.clip_source(start, stop):
            scatter(piece.moved(source=-start), memoryview(full)[start:stop], memoryview(halves))
    assert halves == whole
    for piece in move.clip_source(0, edge):
        scatter(piece, memoryview(full)[:edge], memoryview(half))
    assert sum(byte != 0 for byte in half) == sum(piece.total_nbytes for piece in move.clip_source(0, edge))


@pytest.mark.parametrize(
    "move",
    [
        Scatter(1, 0, 4, (3,), (4,), (4,)),  # one byte past the source
        Scatter(0, 1, 4, (3,), (4,), (4,)),  # one byte past the target
        Scatter(-1, 0, 4, (3,), (4,), (4,)),
        Scatter(0, -1, 4, (3,), (4,), (4,)),
    ],
)
def test_runs_outside_a_buffer_are_refused(move):
    """A wrong stride would read or write anywhere."""
    target = bytearray(12)
    with pytest.raises(ValueError, match=r"buffer|offset"):
        scatter(move, memoryview(bytes(range(1, 13))), memoryview(target))
    assert not any(target)


@pytest.mark.parametrize("move", [Scatter(9, 0, 4), Scatter(0, 9, 4)])
def test_a_single_run_outside_a_buffer_is_refused(move):
    with pytest.raises(ValueError, match="different structures"):
        scatter(move, memoryview(bytes(12)), memoryview(bytearray(12)))


def test_nothing_is_written_beside_the_runs():
    target = bytearray(b".") * 20
    scatter(Scatter(0, 2, 2, (3,), (2,), (5,)), memoryview(b"abcdef"), memoryview(target))
    assert target == b"..ab...cd...ef......"


@pytest.fixture(params=[7, 1 << 20], ids=["blocks", "one block"])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr(scatter_module, "_BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=50), st.data())
def test_the_first_difference_is_found(body, data):
    at = data.draw(st.integers(0, len(body) - 1))
    other = bytearray(body)
    other[at] ^= data.draw(st.integers(1, 255))
    for later in data.draw(st.lists(st.integers(at, len(body) - 1), max_size=3)):
        other[later] ^= 0 if later == at else 1
    assert first_difference(memoryview(body), memoryview(bytes(body))) is None
    assert first_difference(memoryview(body), memoryview(other)) == at


def test_no_bytes_do_not_differ():
    assert first_difference(memoryview(b""), memoryview(b"")) is None


def test_comparing_takes_no_memory_to_speak_of():
    body = memoryview(bytes(8 << 20))
    tracemalloc.start()
    try:
        assert first_difference(body, body) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(min_size=1, max_size=9), st.integers(0, 30), st.integers(0, 60))
def test_an_element_again_and_again(element, first, nbytes):
    target = bytearray(nbytes)
    repeat(element, first, memoryview(target))
    assert bytes(target) == (element * (first + nbytes))[first : first + nbytes]
