"""Any layout whatever tiles any tensor it fits, exactly once over distinct owners."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import StrategyError
from reshard.tensor import Layout, RowSplit


@st.composite
def layouts(draw):
    """A layout and the shape of a tensor that it fits."""
    matrix = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    entries = draw(st.permutations(range(len(matrix))))
    used = entries[: draw(st.integers(0, len(matrix)))]
    axis_count = draw(st.integers(1, 3))
    axes = [[] for _ in range(axis_count)]
    for entry in used:
        axes[draw(st.integers(0, axis_count - 1))].append(entry)
    tensor_map = tuple(map(tuple, axes))
    plain = Layout(matrix, tensor_map)
    extents = [cut * draw(st.integers(1, 3)) for cut in plain.cuts]
    if draw(st.booleans()) and len(plain.tensor_map):
        counts = draw(st.lists(st.integers(0, 3), min_size=plain.cuts[0], max_size=plain.cuts[0]))
        offsets = [sum(counts[:i]) for i in range(len(counts))]
        return Layout(matrix, tensor_map, row_split=RowSplit(tuple(counts), tuple(offsets))), (
            sum(counts),
            *extents[1:],
        )
    layout = draw(st.sampled_from([plain, *optimizer_shards(matrix, tensor_map, plain.replica_count)]))
    return layout, (extents[0] * layout.optimizer_pieces, *extents[1:])


def optimizer_shards(matrix, tensor_map, replica_count):
    for size in (-1, *range(1, replica_count + 1)):
        try:
            yield Layout(matrix, tensor_map, optimizer_shard_size=size)
        except StrategyError:
            assert size != -1  # all replicas always fit


@given(layouts())
def test_slices_tile_the_tensor(case):
    layout, shape = case
    owners = Counter(layout.box_of(shape, rank) for rank in range(layout.device_count))
    boxes = [box for box in owners if not box.is_empty]
    assert sum(box.element_count for box in boxes) == math.prod(shape)
    assert all(a is b or a.intersect(b) is None for a in boxes for b in boxes)
    if not layout.row_split:
        assert set(owners.values()) == {layout.replica_count // layout.optimizer_pieces}


@given(layouts())
def test_full_shape_undoes_the_cut(case):
    layout, shape = case
    for rank in range(layout.device_count):
        assert layout.full_shape(layout.box_of(shape, rank).shape) == shape


@given(layouts())
def test_pieces_are_places_among_the_ranks_of_a_slice(case):
    """The rule in other words: of the ranks with one slice, ascending, each run of neighbours takes it in order."""
    layout, shape = case
    pieces = layout.optimizer_pieces
    if pieces == 1:
        return
    plain = Layout(layout.device_matrix, layout.tensor_map)
    groups = {}
    for rank in range(layout.device_count):
        groups.setdefault(plain.box_of(shape, rank), []).append(rank)
    for box, ranks in groups.items():
        rows = box.shape[0] // pieces
        for place, rank in enumerate(ranks):
            assert layout.box_of(shape, rank).start[0] == box.start[0] + rows * (place % pieces)
