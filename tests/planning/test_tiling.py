"""Boxes tile a tensor exactly if a count of every element says so."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reshard.planning.sources.tiling import find_flaw
from reshard.tensor import Box

SHAPE = (3, 4, 2)
INTERVALS = st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(sorted) for n in SHAPE))


def cut(box, axis, at):
    """A box in two, if the place is inside."""
    if not box.start[axis] < at < box.stop[axis]:
        return [box]
    low, high = list(box.stop), list(box.start)
    low[axis] = high[axis] = at
    return [Box(box.start, tuple(low)), Box(tuple(high), box.stop)]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 99)), max_size=8),
    st.lists(INTERVALS, max_size=1),
    st.integers(0, 2),
)
def test_flaws_are_those_of_a_count(cuts, more, fewer):
    boxes = [Box.whole(SHAPE)]
    for axis, at, which in cuts:
        chosen = boxes.pop(which % len(boxes))
        boxes += cut(chosen, axis, at)
    boxes = boxes[fewer:] + [Box(tuple(a for a, _ in each), tuple(max(a + 1, b) for a, b in each)) for each in more]
    times = np.zeros(SHAPE, int)
    for box in boxes:
        times[tuple(map(slice, box.start, box.stop))] += 1
    flaw = find_flaw(SHAPE, boxes)
    assert (flaw == "") == bool((times == 1).all())
    if flaw:
        text = flaw.partition("[")[2].rstrip("]")
        region = tuple(slice(*map(int, axis.split(":"))) for axis in text.split(", "))
        assert set(times[region].flat) == {0 if flaw.startswith("no piece") else int(flaw.split()[0])}
