"""A tensor's elements placed in another tensor: boxes of factored axes, in any order of the axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate, product

from .box import Box, Shape, row_major_boxes
from .runs import Scatter, strided

Views = tuple[Shape, ...]
"""For each axis of a tensor the factors of its extent, outermost first: an axis of 2 * f rows in pairs is
``(f, 2)``, an axis that is not factored ``(n,)``."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A box of a target tensor that is filled from a box of a source tensor.

    Both are boxes over factors: concatenating, splitting, interleaving, stacking, grouping and permuting
    are all patches of this form.

    Parameters
    ----------
    target_start, shape
        The box in the target, one number for each of its factors.
    source_start
        First element of the box in the source, one number for each of its factors.
    along
        For each factor of the target, the source's factor that it runs along; -1 where the box has extent 1
        and none is needed. The box has extent 1 along all other factors of the source.

    Examples
    --------
    The rows of ``up`` (3, 4) become the odd rows of (6, 4):

    >>> rows = Patch(((3, 2), (4,)), ((3,), (4,)), (0, 1, 0), (3, 1, 4), (0, 0), (0, -1, 1))
    >>> rows.element_count, rows.target_box.start, rows.source_box.stop
    (12, (0, 1, 0), (3, 4))
    """

    target_views: Views
    source_views: Views
    target_start: Shape
    shape: Shape
    source_start: Shape
    along: tuple[int, ...]
    is_plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_plain = (
            self.along == tuple(range(len(self.source_views)))
            and all(len(factors) == 1 for factors in self.source_views)
            and all(len(factors) == 1 for factors in self.target_views)
        )
        object.__setattr__(self, "is_plain", is_plain)

    @property
    def element_count(self) -> int:
        """Number of elements it fills."""
        return math.prod(self.shape)

    @property
    def target_box(self) -> Box:
        """The box in the target, over its factors."""
        return Box(self.target_start, tuple(a + n for a, n in zip(self.target_start, self.shape, strict=True)))

    @property
    def source_box(self) -> Box:
        """The box in the source, over its factors."""
        extents = [1] * len(self.source_start)
        for extent, factor in zip(self.shape, self.along, strict=True):
            if factor >= 0:
                extents[factor] = extent
        return Box(self.source_start, tuple(a + n for a, n in zip(self.source_start, extents, strict=True)))

    @property
    def source_hull(self) -> Box:
        """The smallest box of the source's axes that holds the source's box."""
        return _hull(self.source_views, self.source_box)

    @property
    def unit(self) -> tuple[int, int]:
        """The part of the target that is best filled at once: an axis, and consecutive indices along it.

        Where axes are transposed, even a few elements of an index are spread over everything that the whole
        unit takes from the source. For a patch that keeps the order, single indices of the first axis will do.

        Examples
        --------
        Two matrices of 3 x 4, each transposed, one below the other:

        >>> Patch(((2, 4), (3,)), ((3,), (4,)), (0, 0, 0), (1, 4, 3), (0, 0), (-1, 1, 0)).unit
        (0, 4)

        The second of them, without a factor that counts matrices:

        >>> Patch(((8,), (3,)), ((3,), (4,)), (4, 0), (4, 3), (0, 0), (1, 0)).unit
        (0, 4)
        """
        transposed = self._first_transposed
        position = 0
        for axis, factors in enumerate(self.target_views):
            if transposed < position + len(factors):
                extent, filled = factors[transposed - position], self.shape[transposed]
                # Other patches fill the rest of the factor: units of this length are where they begin, too.
                is_repeated = extent % filled == 0 and self.target_start[transposed] % filled == 0
                return axis, (filled if is_repeated else extent) * math.prod(factors[transposed - position + 1 :])
            position += len(factors)
        return 0, 1

    @property
    def keeps_order(self) -> bool:
        """Whether elements follow each other in the target as they do in the source."""
        return self._first_transposed == len(self.along)

    @property
    def _first_transposed(self) -> int:
        """The first factor of the target that runs along a later one of the source than some factor after it."""
        least, first = len(self.source_start), len(self.along)
        for index in range(len(self.along) - 1, -1, -1):
            if self.shape[index] == 1 or self.along[index] < 0:
                continue
            if self.along[index] > least:
                first = index
            least = min(least, self.along[index])
        return first

    @property
    def target_hull(self) -> Box:
        """The smallest box of the target's axes that holds the target's box."""
        return _hull(self.target_views, self.target_box)

    def within_target(self, box: Box) -> Patch | None:
        """Return the part of this patch inside a box of the target's factors, None if there is none."""
        common = self.target_box.intersect(box)
        if common is None:
            return None
        start = list(self.source_start)
        for moved, at, factor in zip(common.start, self.target_start, self.along, strict=True):
            if factor >= 0:
                start[factor] += moved - at
        return replace(self, target_start=common.start, shape=common.shape, source_start=tuple(start))

    def within_source(self, box: Box) -> Patch | None:
        """Return the part of this patch inside a box of the source's factors, None if there is none."""
        common = self.source_box.intersect(box)
        if common is None:
            return None
        start, shape = list(self.target_start), list(self.shape)
        for index, factor in enumerate(self.along):
            if factor >= 0:
                start[index] += common.start[factor] - self.source_start[factor]
                shape[index] = common.stop[factor] - common.start[factor]
        return replace(self, target_start=tuple(start), shape=tuple(shape), source_start=common.start)

    def scatter(self, source: Box, target: Box, itemsize: int, axes: Shape = ()) -> Scatter:
        """Describe moving this patch between two row-major buffers that hold all of it.

        ``source`` and ``target`` are the boxes of each tensor's axes that the buffers hold. The source's buffer is in
        the order of ``axes``, outermost first, if they are given.

        Examples
        --------
        >>> rows = Patch(((3, 2), (4,)), ((3,), (4,)), (0, 1, 0), (3, 1, 4), (0, 0), (0, -1, 1))
        >>> rows.scatter(Box((0, 0), (3, 4)), Box((0, 0), (6, 4)), itemsize=2)
        Scatter(source=0, target=8, nbytes=8, counts=(3,), source_strides=(8,), target_strides=(16,))
        """
        from_steps, first_source = _steps_along(axes, self.source_views, source, self.source_start, itemsize)
        to_steps, first_target = _steps(self.target_views, target, self.target_start, itemsize)
        dims = [
            (extent, from_steps[factor], step)
            for extent, factor, step in zip(self.shape, self.along, to_steps, strict=True)
            if factor >= 0
        ]
        return strided(dims, first_source, first_target, itemsize)


def view_boxes(views: Views, box: Box) -> Iterator[Box]:
    """Cut a box of a tensor's axes into boxes of its factors.

    Examples
    --------
    >>> [found.start for found in view_boxes(((3, 2), (4,)), Box((1, 0), (4, 4)))]
    [(0, 1, 0), (1, 0, 0)]
    """
    cut = [list(row_major_boxes(factors, a, b)) for factors, a, b in zip(views, box.start, box.stop, strict=True)]
    for parts in product(*cut):
        yield Box(
            tuple(extent for part in parts for extent in part.start),
            tuple(extent for part in parts for extent in part.stop),
        )


def _steps_along(axes: Shape, views: Views, held: Box, start: Shape, itemsize: int) -> tuple[list[int], int]:
    """Return what :func:`_steps` does, for a buffer whose axes are in another order than a tensor's."""
    if not axes:
        return _steps(views, held, start, itemsize)
    ends = list(accumulate(map(len, views), initial=0))
    factors = [factor for axis in axes for factor in range(ends[axis], ends[axis + 1])]
    box = Box(tuple(held.start[axis] for axis in axes), tuple(held.stop[axis] for axis in axes))
    ordered = tuple(views[axis] for axis in axes)
    steps, first = _steps(ordered, box, tuple(start[factor] for factor in factors), itemsize)
    return [steps[factors.index(factor)] for factor in range(len(factors))], first


def _steps(views: Views, held: Box, start: Shape, itemsize: int) -> tuple[list[int], int]:
    """Return the stride of each factor in a row-major buffer of a box, and the address of an element; in bytes."""
    # A factor's stride is that of its axis times the factors inside it. A box may cut a factored axis anywhere, so its
    # position counts along the whole axis: that of the factors, each by its weight, minus the box's start.
    steps: list[int] = []
    first, stride = 0, itemsize
    positions = list(start)
    for factors, low, high in zip(reversed(views), reversed(held.start), reversed(held.stop), strict=True):
        step, index = stride, 0
        for factor in reversed(factors):
            steps.append(step)
            index += positions.pop() * (step // stride)
            step *= factor
        first += (index - low) * stride
        stride *= high - low
    return steps[::-1], first


def _hull(views: Views, box: Box) -> Box:
    """Return the smallest box of whole axes around a box of factors: from its first element to its last."""
    if all(len(factors) == 1 for factors in views):
        return box
    starts, stops = [], []
    low, high = list(box.start), list(box.stop)
    for factors in reversed(views):
        weight, first, last = 1, 0, 0
        for factor in reversed(factors):
            first += low.pop() * weight
            last += (high.pop() - 1) * weight
            weight *= factor
        starts.append(first)
        stops.append(last + 1)
    return Box(tuple(starts[::-1]), tuple(stops[::-1]))


@lru_cache(1 << 12)  # a model has many tensors of few shapes
def plain_patch(shape: Shape) -> Patch:
    """Return the patch that takes a tensor as it is."""
    views, start = tuple((extent,) for extent in shape), (0,) * len(shape)
    return Patch(views, views, start, shape, start, tuple(range(len(shape))))
