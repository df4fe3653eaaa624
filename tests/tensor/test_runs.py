"""Runs and scatters against numpy, which counts every byte."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.tensor import Runs, Scatter, box_scatter


def addresses(first, nbytes, counts, strides):
    """Every byte of some runs, in order of the runs."""
    starts = np.array([first])
    for count, stride in zip(counts, strides, strict=True):
        starts = (starts[:, None] + np.arange(count) * stride).ravel()
    return (starts[:, None] + np.arange(nbytes)).ravel()


def moves(copy):
    """Which byte goes where: (source, target) of each, ascending by source."""
    source = addresses(copy.source, copy.nbytes, copy.counts, copy.source_strides)
    target = addresses(copy.target, copy.nbytes, copy.counts, copy.target_strides)
    return sorted(zip(source.tolist(), target.tolist(), strict=True))


@st.composite
def boxes_in_tensors(draw, copies=1):
    """The shape of a box, and for each tensor that has it: shape and first element."""
    box = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    holders = []
    for _ in range(copies):
        before = [draw(st.integers(0, 2)) for _ in box]
        after = [draw(st.integers(0, 2)) for _ in box]
        shape = tuple(a + n + b for a, n, b in zip(before, box, after, strict=True))
        holders.append((shape, tuple(before)))
    return box, holders, draw(st.sampled_from([1, 2, 4, 8]))


def bytes_of(box, holder, itemsize):
    """Addresses of a box's bytes in a row-major tensor, element by element."""
    shape, start = holder
    number = np.arange(math.prod(shape) * itemsize).reshape(*shape, itemsize)
    return number[tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))].ravel()


@given(boxes_in_tensors())
def test_runs_are_the_bytes_of_the_box(case):
    box, [holder], itemsize = case
    shape, start = holder
    runs = box_scatter(box, (shape, start), (box, (0,) * len(box)), itemsize).source_runs
    found = addresses(runs.first, runs.nbytes, runs.counts, runs.strides)
    assert found.tolist() == bytes_of(box, holder, itemsize).tolist()
    assert list(runs.starts()) == found[:: runs.nbytes].tolist()
    assert (runs.stop, runs.total_nbytes, runs.run_count) == (found[-1] + 1, len(found), len(found) // runs.nbytes)


@given(boxes_in_tensors())
def test_runs_are_as_long_as_can_be(case):
    box, [holder], itemsize = case
    shape, start = holder
    runs = box_scatter(box, (shape, start), (box, (0,) * len(box)), itemsize).source_runs
    breaks = np.flatnonzero(np.diff(bytes_of(box, holder, itemsize)) != 1)
    assert runs.run_count == len(breaks) + 1
    assert all(count > 1 for count in runs.counts)
    assert list(runs.strides) == sorted(runs.strides, reverse=True)


@given(boxes_in_tensors(copies=2))
def test_a_transfer_moves_each_element_to_its_place(case):
    box, [source, target], itemsize = case
    copy = box_scatter(box, source, target, itemsize)
    pairs = zip(bytes_of(box, source, itemsize).tolist(), bytes_of(box, target, itemsize).tolist(), strict=True)
    assert moves(copy) == sorted(pairs)
    assert copy.total_nbytes == math.prod(box) * itemsize
    assert copy.source_stop == bytes_of(box, source, itemsize)[-1] + 1
    assert next(copy.target_runs.starts()) == copy.target


@given(boxes_in_tensors(copies=2), st.integers(0, 99), st.integers(0, 99))
def test_moving_a_transfer_moves_every_byte(case, by_source, by_target):
    box, [source, target], itemsize = case
    copy = box_scatter(box, source, target, itemsize)
    assert moves(copy.moved(by_source, by_target)) == [(a + by_source, b + by_target) for a, b in moves(copy)]


@given(boxes_in_tensors(copies=2), st.data())
def test_clipping_keeps_what_lies_in_the_range(case, data):
    box, [source, target], itemsize = case
    copy = box_scatter(box, source, target, itemsize)
    edges = st.integers(copy.source - 3, copy.source_stop + 3)
    start, stop = sorted(data.draw(st.tuples(edges, edges)))
    clipped = list(copy.clip_source(start, stop))
    found = [pair for piece in clipped for pair in moves(piece)]
    assert sorted(found) == [pair for pair in moves(copy) if start <= pair[0] < stop]
    assert len(clipped) <= 2 * len(copy.counts) + 1


@given(boxes_in_tensors(copies=2), st.data())
def test_blocks_share_a_transfer_out(case, data):
    """What the planner does: a read is cut into blocks, and each takes its share of the copy."""
    box, [source, target], itemsize = case
    copy = box_scatter(box, source, target, itemsize)
    block = data.draw(st.integers(1, copy.source_stop - copy.source + 1))
    pieces = [
        piece
        for start in range(copy.source, copy.source_stop, block)
        for piece in copy.clip_source(start, start + block)
    ]
    assert sorted(pair for piece in pieces for pair in moves(piece)) == moves(copy)


@pytest.mark.parametrize(
    ("copy", "start", "stop", "expected"),
    [
        (Scatter(10, 0, 4), 0, 10, []),
        (Scatter(10, 0, 4), 14, 20, []),
        (Scatter(10, 0, 4), 12, 12, []),
        (Scatter(10, 0, 4), 0, 11, [Scatter(10, 0, 1)]),
        (Scatter(10, 0, 4), 13, 20, [Scatter(13, 3, 1)]),
        (Scatter(0, 0, 2, (3,), (10,), (2,)), 2, 10, []),  # the gap between two runs
        (Scatter(0, 0, 2, (3,), (10,), (2,)), 10, 22, [Scatter(10, 2, 2, (2,), (10,), (2,))]),
        (Scatter(0, 0, 2, (3,), (10,), (2,)), 0, 22, [Scatter(0, 0, 2, (3,), (10,), (2,))]),
    ],
)
def test_clipping_at_edges(copy, start, stop, expected):
    assert list(copy.clip_source(start, stop)) == expected


def test_runs_of_a_huge_tensor_take_no_longer():
    box = (1 << 30, 1 << 20, 1)
    runs = box_scatter(box, ((1 << 30, 1 << 20, 8), (0, 0, 5)), (box, (0, 0, 0)), 8).source_runs
    assert runs == Runs(40, 8, (1 << 50,), (64,))


def test_clipping_a_huge_transfer_takes_no_longer():
    copy = Scatter(0, 0, 8, (1 << 30, 1 << 20), (64 << 20, 64), (8 << 20, 8))
    pieces = list(copy.clip_source((1 << 50) + 3, (1 << 55) + 5))
    assert sum(piece.total_nbytes for piece in pieces) == 8 * ((1 << 49) - (1 << 44)) - 3 + 5
