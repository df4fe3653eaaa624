"""Undoing what MindSpore's JSON strategies do to an axis that several device dimensions cut.

Source: mindspore 2.10.0, JSON and protobuf files of one compilation side by side: an axis of 8 rows cut
by device dimensions of 2 and 2 becomes the axes 2 and 4, cut by one dimension each.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain, pairwise

from ...errors import StrategyError
from ...tensor import Layout, Shape

_LARGEST_AXIS_COUNT = 16
_HINT = "Use the protobuf form of the strategy: it holds the layout itself."


def may_be_expanded(layout: Layout, expanded_shape: Shape) -> bool:
    """Whether two neighbouring axes could be one axis of the tensor that MindSpore expanded.

    Examples
    --------
    >>> layout = Layout((2, 4), ((1,), (0,)))
    >>> may_be_expanded(layout, (2, 12)), may_be_expanded(layout, (8, 12))
    (True, False)
    """
    return any(_is_outer(layout, expanded_shape, axis) and layout.tensor_map[axis + 1] for axis in _pairs(layout))


def fold_expanded(layout: Layout, expanded_shape: Shape, real_shape: Shape, *, local: bool = False) -> Layout:
    """Recover the layout of a tensor from the expanded one, by the shape that the tensor really has.

    Parameters
    ----------
    layout
        Of the expanded axes.
    expanded_shape
        The full shape that stands beside it in the file, in elements.
    real_shape
        Of the tensor, in elements; with as many axes as ``layout`` nothing was expanded.
    local
        Whether ``real_shape`` is what one rank holds, not the full tensor.

    Raises
    ------
    StrategyError
        No folding gives the real shape, or more than one does.

    Examples
    --------
    >>> fold_expanded(Layout((2, 2, 2), ((2,), (0,), (1,))), (2, 4, 16), (8, 16)).tensor_map
    ((2, 0), (1,))
    """
    if len(real_shape) == len(layout.tensor_map):
        return layout
    foldings = _foldings(layout, expanded_shape, real_shape, local)
    if len(foldings) != 1:
        found = "fits in more than one way" if foldings else "does not fit"
        kind = "shard" if local else "tensor"
        raise StrategyError(f"expanded shape {list(expanded_shape)} {found} a {kind} of {list(real_shape)}", hint=_HINT)
    bounds = pairwise((0, *foldings[0]))
    folded = tuple(tuple(chain.from_iterable(layout.tensor_map[start:stop])) for start, stop in bounds)
    return replace(layout, tensor_map=folded)


def _foldings(layout: Layout, expanded_shape: Shape, real_shape: Shape, local: bool) -> list[tuple[int, ...]]:
    """Up to two ways to group the expanded axes: for each real axis, one past the last expanded axis of its group."""
    count = len(expanded_shape)
    if count > _LARGEST_AXIS_COUNT or count != len(layout.tensor_map):
        return []
    tails: dict[int, list[tuple[int, ...]]] = {count: [()]}
    for axis in reversed(range(len(real_shape))):
        pieces = layout.optimizer_pieces if axis == 0 else 1
        extent = real_shape[axis] * (pieces if local else 1)
        tails = {
            start: [
                (stop, *tail)
                for stop, rest in tails.items()
                if _is_axis(layout, expanded_shape, start, stop, extent, local)
                for tail in rest
            ][:2]
            for start in range(count)
        }
    return tails.get(0, [])


def _is_axis(layout: Layout, expanded_shape: Shape, start: int, stop: int, extent: int, local: bool) -> bool:
    """Whether the expanded axes ``[start, stop)`` could be one real axis of ``extent`` elements."""
    if stop <= start:
        return False
    whole = math.prod(expanded_shape[start:stop])
    if whole != extent * (math.prod(layout.cuts[start:stop]) if local else 1):
        return False
    outer = all(_is_outer(layout, expanded_shape, axis) for axis in range(start, stop - 1))
    return outer and (stop - start == 1 or bool(layout.tensor_map[stop - 1]))


def _is_outer(layout: Layout, expanded_shape: Shape, axis: int) -> bool:
    """Whether an axis is cut into single elements by one device dimension, as all but the last of a group are."""
    return bool(layout.tensor_map[axis]) and expanded_shape[axis] == layout.cuts[axis]


def _pairs(layout: Layout) -> range:
    return range(len(layout.tensor_map) - 1)
