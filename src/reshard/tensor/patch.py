"""One tensor's elements laid over another's: boxes of factored axes, in any order of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .box import Shape

__all__ = ["Patch", "Views", "plain_patch", "plain_views"]

Views = tuple[Shape, ...]
"""For each axis of a tensor the factors of its extent, outermost first: an axis of 2 * f rows that come
in pairs is ``(f, 2)``, one that is not taken apart ``(n,)``."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A box of a target tensor that is filled from a box of a source tensor.

    Both are boxes over factors: concatenating, splitting, interleaving, stacking, grouping and permuting
    are all patches of this form.

    Parameters
    ----------
    target_views, source_views
        Factors of each axis of either tensor.
    target_start, shape
        The box in the target, one number for each of its factors.
    source_start
        First element of the box in the source, one number for each of its factors.
    along
        For each factor of the target, the source's factor that it runs along; -1 where the box has
        extent 1 and none is needed. The box has extent 1 along all other factors of the source.

    Examples
    --------
    The rows of ``up`` (3, 4) become the odd rows of (6, 4):

    >>> Patch(((3, 2), (4,)), ((3,), (4,)), (0, 1, 0), (3, 1, 4), (0, 0), (0, -1, 1)).element_count
    12
    """

    target_views: Views
    source_views: Views
    target_start: Shape
    shape: Shape
    source_start: Shape
    along: tuple[int, ...]

    @property
    def element_count(self) -> int:
        """Number of elements it fills."""
        return math.prod(self.shape)


def plain_views(shape: Shape) -> Views:
    """The view that takes no axis apart."""
    return tuple((extent,) for extent in shape)


def plain_patch(shape: Shape) -> Patch:
    """The patch that takes a tensor as it is."""
    views, start = plain_views(shape), (0,) * len(shape)
    return Patch(views, views, start, shape, start, tuple(range(len(shape))))
