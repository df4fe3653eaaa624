"""Whole tensors over part objects: as MindSpore deals them out, every tensor once, parts about equally full."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.planning.targets.full_target import share_out

GIB = 2**30

# Made once with MindSpore 2.10.0: its part count by its formula (3 GiB replaced by the size in the row), then
# mindspore.parallel.transform_safetensors._split_weight_dict; positions sorted in each part. 20 000 more rows of
# random sizes agreed.
MINDSPORE = [
    ([5], 10, ((0,),)),
    ([5], 3, ((0,),)),
    ([4, 4, 4, 4], 8, ((0, 2), (1, 3))),
    ([4, 4, 4, 4], 7, ((0, 3), (1,), (2,))),
    ([1, 2, 3, 4, 5, 6, 7, 8, 9], 15, ((2, 3, 8), (1, 4, 7), (0, 5, 6))),
    ([9, 8, 7, 6, 5, 4, 3, 2, 1], 15, ((0, 5, 6), (1, 4, 7), (2, 3, 8))),
    ([3, 1, 3, 1, 3, 1], 4, ((0, 1), (2, 3), (4, 5))),
    ([100, 1, 1, 1], 10, ((0,), (1,), (2,), (3,))),
    ([7, 7, 7], 7, ((0,), (1,), (2,))),
    ([7, 7, 7], 6, ((0,), (1,), (2,))),
    ([2, 9, 4, 9, 1, 9, 6], 20, ((0, 1, 5), (2, 3, 4, 6))),
    ([13, 5, 8, 21, 1, 3, 2, 1], 18, ((3,), (0, 5, 7), (1, 2, 4, 6))),
    ([1, 1, 1, 1, 1, 1, 1], 3, ((0, 3, 6), (1, 4), (2, 5))),
    ([GIB] * 7, 3 * GIB, ((0, 3, 6), (1, 4), (2, 5))),
    (
        [525336576, 33554432, 33554432, 525336576, 90177536, 90177536, 90177536, 3 * GIB],
        3 * GIB,
        ((7,), (0, 1, 2, 3, 4, 5, 6)),
    ),
]


@pytest.mark.parametrize(("sizes", "part_bytes", "parts"), MINDSPORE)
def test_as_mindspore(sizes, part_bytes, parts):
    assert share_out(sizes, part_bytes) == parts


def test_one_part_for_nothing_and_for_tensors_without_bytes():
    assert share_out([], 10) == ((),)
    assert share_out([0, 0], 10) == ((0, 1),)


def test_tensors_without_bytes_get_no_part_of_their_own():
    assert share_out([0, 0, 5, 0], 1) == ((0, 1, 2, 3),)  # MindSpore makes four parts, two of them empty
    assert share_out([0, 5, 5], 1) == ((0, 1), (2,))


@pytest.mark.parametrize(("total", "count"), [(9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_part_count(total, count):
    assert len(share_out([1] * total, 10)) == count


def test_no_rounding_of_huge_totals():
    assert len(share_out([2**60, 2**60, 1], 2**60)) == 3


def test_many_tensors():
    sizes = [index * 7919 % 100_003 + 1 for index in range(100_000)]
    started = time.perf_counter()
    parts = share_out(sizes, 1_000_000)
    assert time.perf_counter() - started < 5  # 0.2 s; looking for the emptiest of 5000 parts each time takes minutes
    assert sum(map(len, parts)) == len(sizes)


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 3000))
def test_every_tensor_in_one_part_in_order(sizes, part_bytes):
    parts = share_out(sizes, part_bytes)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(list(part) == sorted(part) for part in parts)
    assert all(parts) or not sizes
    assert len(parts) == max(1, min(-(-sum(sizes) // part_bytes), sum(size > 0 for size in sizes)))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 3000))
def test_parts_differ_by_one_tensor_at_most(sizes, part_bytes):
    loads = [sum(sizes[index] for index in part) for part in share_out(sizes, part_bytes)]
    assert max(loads) - min(loads) <= max(sizes)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 60))
def test_the_plain_way(sizes, part_bytes):
    parts = [[] for _ in share_out(sizes, part_bytes)]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        min(parts, key=lambda part: sum(sizes[other] for other in part)).append(index)
    assert share_out(sizes, part_bytes) == tuple(tuple(sorted(part)) for part in parts)
