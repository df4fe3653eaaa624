"""Layouts against the facts: which box a rank owns, and which layouts make no sense."""

import pytest

from reshard.errors import StrategyError
from reshard.tensor import Box, Layout, RowSplit


def boxes(layout, shape):
    return [layout.box_of(shape, rank) for rank in range(layout.device_count)]


def rows(layout, count):
    return [box.start[0] for box in boxes(layout, (count,))]


def test_entries_count_from_the_right_and_need_no_order():
    layout = Layout((2, 2, 2), ((0,), (1,)))
    assert layout.box_of((16, 24), 5) == Box((8, 0), (16, 12))
    assert layout.box_of((16, 24), 1) == layout.box_of((16, 24), 5)  # the first dimension repeats


def test_nested_entries_are_most_significant_first():
    assert rows(Layout((2, 2, 2), ((2, 0),)), 4) == [0, 1, 0, 1, 2, 3, 2, 3]
    assert rows(Layout((2, 2, 2), ((0, 2),)), 4) == [0, 2, 0, 2, 1, 3, 1, 3]


def test_whole_on_every_rank():
    assert boxes(Layout((3,), ((), ())), (5, 7)) == [Box.whole((5, 7))] * 3


def test_scalar():
    assert boxes(Layout((2,), ()), ()) == [Box((), ())] * 2


# Pieces in the order of training, which is the position of a rank among those that hold the same slice.
@pytest.mark.parametrize(
    ("matrix", "tensor_map", "size", "expected"),
    [
        ((4, 2), ((0,), ()), -1, [0, 4, 1, 5, 2, 6, 3, 7]),  # dp4 mp2: the left dimension is free
        ((2, 4), ((1,), ()), -1, [0, 1, 2, 3, 4, 5, 6, 7]),  # the right dimension is free
        ((2, 2, 2), ((1,), ()), -1, [0, 1, 4, 5, 2, 3, 6, 7]),  # both sides of the used one are free
        ((2, 2, 2), ((), (1,)), -1, [0, 2, 0, 2, 4, 6, 4, 6]),
        ((4, 2), ((0,), ()), 2, [0, 4, 2, 6, 0, 4, 2, 6]),  # fewer pieces than replicas: neighbours share a slice
        ((2, 2, 2), ((1,), ()), 2, [0, 2, 4, 6, 0, 2, 4, 6]),
        ((8,), ((), ()), -1, [0, 1, 2, 3, 4, 5, 6, 7]),
        ((2, 2), ((1, 0), ()), -1, [0, 2, 4, 6]),  # no replica, nothing to cut
    ],
)
def test_optimizer_pieces_follow_the_grid(matrix, tensor_map, size, expected):
    layout = Layout(matrix, tensor_map, optimizer_shard_size=size)
    assert [box.start[0] for box in boxes(layout, (8, 8))] == expected


def test_optimizer_cuts_inside_the_slice():
    layout = Layout((4, 2), ((0,), ()), optimizer_shard_size=-1)
    assert layout.box_of((32, 6), 3) == Box((20, 0), (24, 6))
    assert layout.full_shape((4, 6)) == (32, 6)


def test_manual_split():
    layout = Layout((4,), ((0,), ()), row_split=RowSplit((16, 8, 12, 4), (0, 16, 24, 36)))
    assert [(box.start[0], box.stop[0]) for box in boxes(layout, (40, 3))] == [(0, 16), (16, 24), (24, 36), (36, 40)]
    assert layout.full_shape((8, 3)) == (40, 3)


@pytest.mark.parametrize(
    ("matrix", "tensor_map", "options", "problem"),
    [
        ((), (), {}, "every dimension must be at least 1"),
        ((2, 0), (), {}, "every dimension must be at least 1"),
        ((2,), ((1,),), {}, "does not fit device matrix"),
        ((2,), ((-1,),), {}, "does not fit device matrix"),
        ((2, 2), ((0,), (0,)), {}, "at most once"),
        ((2, 2), ((0,),), {"optimizer_shard_size": -2}, "expected -1, 0 or more"),
        ((2, 2), ((0,),), {"optimizer_shard_size": 4}, "does not fit the 2 replicas"),
        ((2, 6), ((1,),), {"optimizer_shard_size": 4}, "does not fit the 6 replicas"),
    ],
)
def test_impossible_layouts(matrix, tensor_map, options, problem):
    with pytest.raises(StrategyError, match=problem):
        Layout(matrix, tensor_map, **options)


@pytest.mark.parametrize(
    ("layout", "shape", "problem"),
    [
        (Layout((4,), ((0,),)), (6,), "axis 0 of .* cannot be cut into 4 equal pieces"),
        (Layout((4,), ((), (0,))), (4, 6), "axis 1"),
        (Layout((4,), ((0,),)), (4, 4), "is for 1 axes, the tensor has 2"),
        (Layout((4, 2), ((0,),), optimizer_shard_size=-1), (4,), "cannot be cut into 8"),
        (Layout((2,), (), optimizer_shard_size=-1), (), "scalar"),
        (Layout((2,), (), row_split=RowSplit((1,), (0,))), (), "scalar"),
        (Layout((2,), ((0,),), row_split=RowSplit((1, 2), (0, 1))), (4,), "does not tile"),
        (Layout((2,), ((0,),), row_split=RowSplit((1, 2), (0, 2))), (3,), "does not tile"),
        (Layout((2,), ((0,),), row_split=RowSplit((3,), (0,))), (3,), "does not tile"),
        (Layout((2,), ((0,),), row_split=RowSplit((10, -5), (0, 10))), (5,), "does not tile"),
        (Layout((2, 2), ((0,),), -1, 0, RowSplit((1, 2), (0, 1))), (3,), "not supported"),
    ],
)
def test_tensors_that_do_not_fit(layout, shape, problem):
    with pytest.raises(StrategyError, match=problem):
        layout.box_of(shape, 0)


@pytest.mark.parametrize("rank", [-1, 4])
def test_no_such_rank(rank):
    with pytest.raises(StrategyError, match="outside device matrix"):
        Layout((4,), ((0,),)).box_of((4,), rank)


def test_scalar_with_rows_to_cut_has_no_full_shape():
    with pytest.raises(StrategyError, match="scalar"):
        Layout((2,), (), row_split=RowSplit((1,), (0,))).full_shape(())
