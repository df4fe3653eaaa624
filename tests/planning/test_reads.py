"""What is asked of a store: whole hulls, bridged gaps within two limits, no range too long."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.planning.limits import KIB, MIB, Limits
from reshard.planning.steps.reads import NeededRange, coalesce, needed_ranges, split
from reshard.tensor import Box, ByteRange, box_scatter

NO_GAPS = Limits(max_gap_bytes=0)
SIXTYFOUR = Limits(max_over_read=64)


def needed(boxes, shape, itemsize, limits):
    """Ranges for some boxes of one tensor."""
    scatters = (box_scatter(box.shape, (shape, box.start), (box.shape, (0,) * len(shape)), itemsize) for box in boxes)
    return needed_ranges([each.source_runs for each in scatters], limits)


def spans(ranges):
    return [(item.start, item.stop) for item in ranges]


def columns(count, rows, width):
    """A matrix cut along its inner axis, one box a rank."""
    return [Box((0, i * width), (rows, (i + 1) * width)) for i in range(count)]


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_column_slices_of_all_ranks_are_one_range(count):
    boxes = columns(count, rows=100, width=4)
    assert spans(needed(boxes, (100, 4 * count), 2, NO_GAPS)) == [(0, 800 * count)]


def test_column_slices_of_some_ranks_are_their_rows():
    boxes = columns(4, rows=3, width=4)
    assert spans(needed(boxes[:2], (3, 16), 2, NO_GAPS)) == [(0, 16), (32, 48), (64, 80)]
    assert spans(needed([boxes[0], boxes[2]], (3, 16), 2, NO_GAPS)) == [
        (row * 32 + column * 16, row * 32 + column * 16 + 8) for row in range(3) for column in range(2)
    ]


def test_boxes_that_overlap_do_not_pass_for_their_hull():
    """Two stages cut one tensor differently; together they have as many elements as their hull, but not all of it."""
    boxes = [Box((0,), (6,)), Box((4,), (8,)), Box((10,), (12,))]
    assert sum(box.element_count for box in boxes) == 12
    assert spans(needed(boxes, (20,), 1, NO_GAPS)) == [(0, 8), (10, 12)]


@pytest.mark.parametrize(
    ("gap_bytes", "limits", "is_bridged"),
    [
        (512 * KIB, Limits(), True),
        (512 * KIB + 1, Limits(), False),
        (63 * 16 * KIB, Limits(max_gap_bytes=MIB, max_over_read=64), True),  # 64 bytes for each one needed
        (63 * 16 * KIB + 1, Limits(max_gap_bytes=MIB, max_over_read=64), False),
        (1, Limits(max_gap_bytes=0), False),
        (16 * KIB, Limits(max_over_read=2), True),
        (16 * KIB + 1, Limits(max_over_read=2), False),
        (1, Limits(max_over_read=1), False),
    ],
)
def test_gaps_between_rows(gap_bytes, limits, is_bridged):
    width = 16 * KIB
    found = needed([Box((0, 0), (5, width))], (5, width + gap_bytes), 1, limits)
    assert len(found) == (1 if is_bridged else 5)
    assert sum(item.needed_bytes for item in found) == 5 * width


def test_gaps_are_weighed_level_by_level():
    """Within a plane rows lie close, between planes there is a hole that is not worth reading."""
    box, shape = Box((0, 0, 0), (3, 4, 8)), (3, 1000, 16)
    limits = Limits(max_gap_bytes=1000, max_over_read=64)
    assert spans(needed([box], shape, 1, limits)) == [(plane * 16000, plane * 16000 + 56) for plane in range(3)]
    assert spans(needed([box], shape, 1, Limits(max_over_read=1000))) == [(0, 32056)]


def test_what_was_bridged_within_counts_for_what_is_bridged_around():
    """Each plane needs 32 of its 56 bytes: 64 times as much reaches 2048, the next plane begins at 2048."""
    box = Box((0, 0, 0), (3, 4, 8))
    assert len(needed([box], (3, 128, 16), 1, SIXTYFOUR)) == 1
    assert len(needed([box], (3, 129, 16), 1, SIXTYFOUR)) == 3


@pytest.mark.parametrize(
    ("ranges", "options", "expected"),
    [
        ([], {}, []),
        ([(5, 9), (0, 5)], {}, [(0, 9)]),  # touching
        ([(0, 5), (3, 9)], {}, [(0, 9)]),  # overlapping
        ([(0, 9), (3, 5)], {}, [(0, 9)]),  # inside
        ([(0, 5), (6, 9)], {}, [(0, 5), (6, 9)]),
        ([(0, 5), (6, 9)], {"max_gap_bytes": 1, "max_over_read": 2}, [(0, 9)]),
        ([(0, 5), (7, 9)], {"max_gap_bytes": 1, "max_over_read": 2}, [(0, 5), (7, 9)]),
        ([(0, 1), (3, 4)], {"max_gap_bytes": 9, "max_over_read": 2}, [(0, 4)]),
        ([(0, 1), (4, 5)], {"max_gap_bytes": 9, "max_over_read": 2}, [(0, 1), (4, 5)]),
        ([(0, 5), (5, 9)], {"read_bytes": 9}, [(0, 9)]),
        ([(0, 5), (5, 9)], {"read_bytes": 8}, [(0, 5), (5, 9)]),
        ([(0, 5), (4, 9)], {"read_bytes": 8}, [(0, 9)]),  # no byte twice, whatever the length
    ],
)
def test_joining(ranges, options, expected):
    needed = [NeededRange(start, stop, stop - start) for start, stop in ranges]
    assert spans(coalesce(needed, **options)) == expected


@st.composite
def needed_lists(draw):
    """Ranges that need all of their bytes."""
    starts = draw(st.lists(st.integers(0, 300), max_size=12))
    return [NeededRange(a, a + n, n) for a in starts for n in [draw(st.integers(1, 40))]]


@given(needed_lists(), st.integers(0, 40), st.integers(1, 4), st.integers(1, 200))
def test_joined_ranges_cover_all_and_keep_the_limits(ranges, max_gap_bytes, max_over_read, read_bytes):
    joined = coalesce(ranges, max_gap_bytes=max_gap_bytes, max_over_read=max_over_read, read_bytes=read_bytes)
    needed, read = np.zeros(400, bool), np.zeros(400, int)
    for item in ranges:
        needed[item.start : item.stop] = True
    for item in joined:
        read[item.start : item.stop] += 1
    assert (read[needed] == 1).all()
    assert read.max(initial=0) <= 1
    assert joined == sorted(joined)
    for item in joined:
        here = needed[item.start : item.stop]
        assert here[0]
        assert here[-1]
        assert item.needed_bytes <= here.sum()
        assert item.nbytes <= max_over_read * here.sum()
        gaps = [len(list(group)) for is_needed, group in itertools.groupby(here) if not is_needed]
        assert max(gaps, default=0) <= max_gap_bytes


@given(needed_lists(), st.integers(1, 50))
def test_cutting_long_ranges(ranges, read_bytes):
    joined = coalesce(ranges)
    blocks = split(joined, read_bytes)
    assert coalesce([NeededRange(b.start, b.stop, b.nbytes) for b in blocks]) == [
        NeededRange(a, b, b - a) for a, b in spans(joined)
    ]
    assert sum(block.nbytes for block in blocks) == sum(item.nbytes for item in joined)
    assert all(1 <= block.nbytes <= read_bytes for block in blocks)
    for item in joined:
        inside = [block.nbytes for block in blocks if item.start <= block.start < item.stop]
        assert len(inside) == -(-item.nbytes // read_bytes)
        assert max(inside) - min(inside) <= 1


def test_ranges_that_fit_stay_whole():
    assert split([NeededRange(3, 9, 6)], 6) == [ByteRange(3, 9)]


@st.composite
def boxes_of_one_tensor(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        edges = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
        boxes.append(Box(tuple(a for a, _ in edges), tuple(b for _, b in edges)))
    return shape, boxes


@given(boxes_of_one_tensor(), st.sampled_from([1, 4]), st.sampled_from([0, 3, 100]), st.sampled_from([1, 2, 64]))
def test_needed_ranges_cover_the_boxes_and_keep_the_limits(case, itemsize, max_gap_bytes, max_over_read):
    shape, boxes = case
    limits = Limits(max_gap_bytes=max_gap_bytes, max_over_read=max_over_read)
    is_needed = np.zeros((*shape, itemsize), bool)
    for box in boxes:
        is_needed[tuple(map(slice, box.start, box.stop))] = True
    is_needed = is_needed.ravel()
    read = np.zeros(is_needed.size, int)
    for item in needed(boxes, shape, itemsize, limits):
        read[item.start : item.stop] += 1
        here = is_needed[item.start : item.stop]
        assert item.needed_bytes <= here.sum()
        assert item.nbytes <= max_over_read * here.sum()
        gaps = [len(list(group)) for wanted, group in itertools.groupby(here) if not wanted]
        assert max(gaps, default=0) <= max_gap_bytes
    assert (read[is_needed] == 1).all()
    assert read.max() == 1
