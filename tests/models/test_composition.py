"""Patches of patches fill what one after the other would."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import PlanError
from reshard.models.composition import compose
from reshard.tensor import Patch

VIEWS = [(24,), (2, 12), (12, 2), (3, 8), (4, 6), (2, 3, 4), (4, 3, 2)]


def places(views, start, shape, order):
    """The flat index of every element of a box of factors, in the order of some of the factors."""
    factors = [factor for axis in views for factor in axis]
    flat = np.arange(math.prod(factors)).reshape(factors)
    box = flat[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    return box.transpose(order).ravel()


def moves(patch):
    """Each element that a patch fills, with the element that it takes."""
    extents = [1] * len(patch.source_start)
    order = []
    for extent, factor in zip(patch.shape, patch.along, strict=True):
        if factor >= 0:
            extents[factor] = extent
            order.append(factor)
    order += [factor for factor in range(len(extents)) if factor not in order]
    into = places(patch.target_views, patch.target_start, patch.shape, range(len(patch.shape)))
    out_of = places(patch.source_views, patch.source_start, extents, order)
    return dict(zip(into.tolist(), out_of.tolist(), strict=True))


@st.composite
def patches(draw):
    """A patch between two tensors of 24 rows and 2 columns, with a box that both views can hold."""
    target, source = draw(st.sampled_from(VIEWS)), draw(st.sampled_from(VIEWS))
    sizes = [*target, 2]
    free = [*range(len(source)), len(source)]
    along, shape, start, source_start = [], [], [], [draw(st.integers(0, n - 1)) for n in (*source, 2)]
    for size in sizes:
        factor = draw(st.sampled_from([-1, *free]))
        most = min(size, (*source, 2)[factor]) if factor >= 0 else 1
        extent = draw(st.integers(1, most))
        if factor >= 0:
            free.remove(factor)
            source_start[factor] = draw(st.integers(0, (*source, 2)[factor] - extent))
        along.append(factor)
        shape.append(extent)
        start.append(draw(st.integers(0, size - extent)))
    return Patch((target, (2,)), (source, (2,)), *map(tuple, (start, shape, source_start, along)))


@settings(max_examples=60, deadline=None)
@given(patches(), patches())
def test_composed_patches_move_what_both_move(outer, inner):
    first, second = moves(inner), moves(outer)
    expected = {into: first[middle] for into, middle in second.items() if middle in first}
    found = [moves(patch) for patch in compose(outer, inner)]
    assert sum(map(len, found)) == len(expected)
    assert dict(itertools.chain.from_iterable(each.items() for each in found)) == expected


def test_runs_without_a_common_step_are_refused():
    fifths, thirds = 3 << 14, 5 << 14
    outer = Patch(((fifths,),), ((fifths, 5),), (0,), (fifths,), (0, 0), (0,))
    inner = Patch(((thirds, 3),), ((thirds,),), (0, 0), (thirds, 1), (0,), (0, -1))
    with pytest.raises(PlanError, match=r"no common step"):
        compose(outer, inner)
