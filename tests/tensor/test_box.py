"""Box algebra against sets of elements, and row-major cuts against counting."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.tensor import Box, row_major_boxes

EXTENTS = st.integers(0, 5)


@st.composite
def boxes(draw, axis_count):
    edges = [sorted(draw(st.tuples(EXTENTS, EXTENTS))) for _ in range(axis_count)]
    return Box(tuple(a for a, _ in edges), tuple(b for _, b in edges))


@st.composite
def pairs(draw):
    axis_count = draw(st.integers(0, 3))
    return draw(boxes(axis_count)), draw(boxes(axis_count))


def elements(box):
    return set(itertools.product(*map(range, box.start, box.stop)))


@given(pairs())
def test_intersection_is_that_of_the_elements(pair):
    a, b = pair
    common = a.intersect(b)
    assert (elements(common) if common else set()) == elements(a) & elements(b)
    assert common == b.intersect(a)


@given(pairs())
def test_size_and_emptiness(pair):
    box, _ = pair
    assert box.element_count == len(elements(box))
    assert box.is_empty == (not elements(box))
    assert box.shape == tuple(np.zeros([6] * len(box.start))[tuple(map(slice, box.start, box.stop))].shape)


@given(pairs())
def test_shift_moves_every_element(pair):
    box, other = pair
    moved = {tuple(map(sum, zip(e, other.start, strict=True))) for e in elements(box)}
    assert elements(box.shifted(other.start)) == moved


@given(st.lists(EXTENTS, max_size=4).map(tuple))
def test_whole(shape):
    assert Box.whole(shape).shape == shape
    assert Box.whole(shape).element_count == math.prod(shape)


@st.composite
def stretches(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    a, b = sorted(draw(st.tuples(*[st.integers(0, math.prod(shape))] * 2)))
    return shape, a, b


@given(stretches())
def test_a_stretch_of_elements_is_cut_into_boxes_in_order(case):
    shape, start, stop = case
    number = np.arange(math.prod(shape)).reshape(shape)
    cut = list(row_major_boxes(shape, start, stop))
    found = [number[tuple(map(slice, box.start, box.stop))].ravel() for box in cut]
    assert np.concatenate([[], *found]).tolist() == list(range(start, stop))
    assert len(cut) <= max(1, 2 * len(shape) - 1)
    assert not any(box.is_empty for box in cut)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4)])
def test_a_stretch_of_nothing(shape):
    assert list(row_major_boxes(shape, 0, 0)) == []


def test_no_more_boxes_for_a_large_tensor():
    assert len(list(row_major_boxes((1000, 1000, 1000), 1, 10**9 - 1))) == 5
