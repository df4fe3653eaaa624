"""Boxes that an entry is stored in: which are near a box, and which are covered alike."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from reshard.planning.steps.stored_boxes import StoredBoxes
from reshard.tensor import Box


@st.composite
def grids(draw):
    """The cells of a grid of two axes, of which the last may be shorter, and its shape."""
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    cell = [draw(st.integers(1, 12)) for _ in shape]
    edges = [[*range(0, extent, size), extent] for extent, size in zip(shape, cell, strict=True)]
    cells = [list(zip(some, some[1:], strict=False)) for some in edges]
    return [Box((a, c), (b, d)) for (a, b), (c, d) in product(*cells)], shape


@st.composite
def boxes_in(draw, shape):
    starts = [draw(st.integers(0, extent - 1)) for extent in shape]
    stops = [draw(st.integers(low + 1, extent)) for low, extent in zip(starts, shape, strict=True)]
    return Box(tuple(starts), tuple(stops))


def covered(stored, wanted):
    """What some boxes cover of a stored one: its shape, and each common box within it."""
    common = [stored.intersect(box) for box in wanted]
    back = tuple(-low for low in stored.start)
    return stored.shape, tuple(box.shifted(back) if box else None for box in common)


@given(st.data())
def test_near_boxes_are_those_that_overlap(data):
    boxes, shape = data.draw(grids())
    if data.draw(st.booleans()):
        boxes = data.draw(st.permutations(boxes))  # no grid in row-major order any longer
    hull = data.draw(boxes_in(shape))
    near = list(StoredBoxes.of(boxes).near(hull))
    assert near == [place for place, box in enumerate(boxes) if box.intersect(hull)]


@given(st.data())
def test_alike_boxes_are_covered_alike_and_all_are_found(data):
    boxes, shape = data.draw(grids())
    stored = StoredBoxes.of(boxes)
    wanted = data.draw(st.lists(boxes_in(shape), min_size=1, max_size=4))
    if not stored.is_even_grid:
        return
    found = []
    for alike, positions in stored.alike(wanted):
        places = list(alike.places())
        assert (places[0], len(places)) == (alike.first_place, alike.place_count)
        assert len({covered(boxes[place], wanted) for place in places}) == 1
        assert positions == [n for n, box in enumerate(wanted) if boxes[places[0]].intersect(box)]
        found += places
    assert sorted(found) == [place for place, box in enumerate(boxes) if any(map(box.intersect, wanted))]


@given(st.data())
def test_moved_boxes_cover_others_in_the_same_way(data):
    boxes, shape = data.draw(grids())
    stored = StoredBoxes.of(boxes)
    wanted = data.draw(st.lists(boxes_in(shape), min_size=1, max_size=4))
    if not stored.is_even_grid:
        return
    moved, place_count = stored.moved(wanted)
    for place, box in enumerate(boxes):
        if any(map(box.intersect, wanted)):
            assert covered(box, wanted) == covered(boxes[place - place_count], moved)
