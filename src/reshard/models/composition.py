"""Patches of patches: where the elements of a tensor come from that is made of tensors which are made of others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from ..errors import PlanError
from ..tensor import Patch, Shape, Views
from .expansion import patches_along

_MAX_MEETINGS = 1 << 14

_Moves = tuple[tuple[int, int], ...]
"""Steps along axes: the axis, and the number of elements."""


@dataclass(frozen=True, slots=True)
class _Run:
    """``count`` places on an axis of the tensor in between, ``stride`` apart, and where they are on the far side."""

    count: int
    stride: int
    axis: int
    step: int


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Places that two sets of runs share: where they begin, and the steps from each to the next on both far sides."""

    outer: _Moves = ()
    inner: _Moves = ()
    steps: tuple[tuple[int, int, int, int, int], ...] = ()

    @property
    def swapped(self) -> _Meeting:
        steps = tuple((n, axis, step, of, by) for n, of, by, axis, step in self.steps)
        return _Meeting(self.inner, self.outer, steps)

    def joined(self, other: _Meeting) -> _Meeting:
        return _Meeting(self.outer + other.outer, self.inner + other.inner, self.steps + other.steps)


@lru_cache(1 << 12)  # layers share patches
def compose(outer: Patch, inner: Patch) -> tuple[Patch, ...]:
    """Return the patches that fill the same elements as ``outer`` from the source of ``inner``.

    ``outer`` takes a tensor's elements from a tensor in between, of which ``inner`` fills a part; there is none if
    the two have nothing in common.

    Raises
    ------
    PlanError
        The two cut the tensor in between so differently that very many patches would be needed.

    Examples
    --------
    Rows 2 and 3 of four, which are the odd rows of another tensor:

    >>> rows = Patch(((2,), (4,)), ((4,), (4,)), (0, 0), (2, 4), (2, 0), (0, 1))
    >>> odd = Patch(((4,), (4,)), ((4, 2), (4,)), (0, 0), (4, 4), (0, 1, 0), (0, 2))
    >>> patch, = compose(rows, odd)
    >>> patch.source_views, patch.source_start, patch.shape
    (((4, 2), (4,)), (2, 1, 0), (2, 4))
    """
    if _is_whole(inner):
        return (outer,)
    if _is_whole(outer):
        return (inner,)
    shape = _extents(inner.source_views)
    wanted, filled = _Side.of(outer, is_target=False), _Side.of(inner, is_target=True)
    target_start, source_start = (
        _offsets(outer.target_views, outer.target_start),
        _offsets(inner.source_views, inner.source_start),
    )
    found: list[Patch] = []
    axes = [_meet(a, b, y - x) for a, b, x, y in zip(wanted.runs, filled.runs, wanted.start, filled.start, strict=True)]
    for each in product(*map(list, axes)):
        meeting = _Meeting()
        for part in each:
            meeting = meeting.joined(part)
        into, out_of = _moved(target_start, meeting.outer), _moved(source_start, meeting.inner)
        found += patches_along((_extents(outer.target_views), into), (shape, out_of), meeting.steps)
        if len(found) > _MAX_MEETINGS:
            raise PlanError(f"more than {_MAX_MEETINGS} pieces of {list(shape)} make one of another form")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Side:
    """The runs of a patch on each axis of the tensor in between, largest stride first, and where they begin."""

    runs: tuple[tuple[_Run, ...], ...]
    start: Shape

    @classmethod
    def of(cls, patch: Patch, *, is_target: bool) -> _Side:
        """Describe a patch that has its target or its source in between."""
        views, start = (
            (patch.target_views, patch.target_start) if is_target else (patch.source_views, patch.source_start)
        )
        near = _strides(views)
        far = _strides(patch.source_views if is_target else patch.target_views)
        runs: list[list[_Run]] = [[] for _ in views]
        for index, (count, along) in enumerate(zip(patch.shape, patch.along, strict=True)):
            if count > 1:
                (axis, stride), (of, step) = (near[index], far[along]) if is_target else (near[along], far[index])
                runs[axis].append(_Run(count, stride, of, step))
        ordered = tuple(tuple(sorted(some, key=lambda run: -run.stride)) for some in runs)
        return cls(ordered, _offsets(views, start))


def _is_whole(patch: Patch) -> bool:
    """Whether a patch takes a whole tensor as it is."""
    whole = _extents(patch.target_views)
    return patch.is_plain and patch.shape == whole == _extents(patch.source_views)


def _extents(views: Views) -> Shape:
    return tuple(map(math.prod, views))


def _strides(views: Views) -> list[tuple[int, int]]:
    """Return axis and stride of each factor."""
    return [
        (axis, math.prod(factors[number + 1 :])) for axis, factors in enumerate(views) for number in range(len(factors))
    ]


def _offsets(views: Views, start: Shape) -> Shape:
    offsets = [0] * len(views)
    for (axis, stride), index in zip(_strides(views), start, strict=True):
        offsets[axis] += index * stride
    return tuple(offsets)


def _moved(start: Shape, moves: _Moves) -> Shape:
    offsets = list(start)
    for axis, distance in moves:
        offsets[axis] += distance
    return tuple(offsets)


def _span(runs: Sequence[_Run]) -> int:
    return 1 + sum((run.count - 1) * run.stride for run in runs)


def _meet(outer: tuple[_Run, ...], inner: tuple[_Run, ...], gap: int) -> Iterator[_Meeting]:
    """Yield the places that both have, where ``inner`` begins ``gap`` after ``outer``.

    Runs are nested: each moves farther than all behind it together. So the largest of both are compared first. Equal
    strides meet at few distances of their numbers, each of which leaves a smaller problem; of unequal ones the smaller
    run is taken apart into steps of the larger stride, or the larger one into single places.
    """
    if gap >= _span(outer) or gap <= -_span(inner):
        return
    if not outer and not inner:
        yield _Meeting()
        return
    large, small = (runs[0].stride if runs else 0 for runs in (outer, inner))
    if large < small:
        yield from (meeting.swapped for meeting in _meet(inner, outer, -gap))
    elif large == small:
        yield from _meet_in_step(outer, inner, gap)
    elif small and large % small == 0 and inner[0].count > large // small:
        (run, *rest), ratio = inner, large // small
        whole, left = divmod(run.count, ratio)
        steps = _Run(whole, large, run.axis, run.step * ratio), replace(run, count=ratio)
        yield from _meet(outer, tuple(one for one in (*steps, *rest) if one.count > 1), gap)
        if left:
            moved = _Meeting(inner=((run.axis, whole * ratio * run.step),))
            remaining = tuple(one for one in (replace(run, count=left), *rest) if one.count > 1)
            for meeting in _meet(outer, remaining, gap + whole * ratio * small):
                yield moved.joined(meeting)
    else:
        run, rest_of = outer[0], outer[1:]
        first = max(0, -(-(gap - _span(rest_of) + 1) // large))
        last = min(run.count - 1, (gap + _span(inner) - 1) // large)
        if last - first > _MAX_MEETINGS:
            raise PlanError(f"runs of {run.count} and of {inner[0].count if inner else 1} have no common step")
        for index in range(first, last + 1):
            moved = _Meeting(outer=((run.axis, index * run.step),))
            for meeting in _meet(rest_of, inner, gap - index * large):
                yield moved.joined(meeting)


def _meet_in_step(outer: tuple[_Run, ...], inner: tuple[_Run, ...], gap: int) -> Iterator[_Meeting]:
    """Yield what :func:`_meet` does for runs whose largest strides are equal."""
    a, b, stride = outer[0], inner[0], outer[0].stride
    least = -(-(gap - _span(outer[1:]) + 1) // stride)
    for ahead in range(least, (gap + _span(inner[1:]) - 1) // stride + 1):
        first = max(0, ahead)
        count = min(a.count - first, b.count - (first - ahead))
        if count < 1:
            continue
        moved = _Meeting(
            outer=((a.axis, first * a.step),),
            inner=((b.axis, (first - ahead) * b.step),),
            steps=((count, a.axis, a.step, b.axis, b.step),),
        )
        for meeting in _meet(outer[1:], inner[1:], gap - ahead * stride):
            yield moved.joined(meeting)
