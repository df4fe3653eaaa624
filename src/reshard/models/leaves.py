"""Where the parts of a tensor lie: each part as a strided run over named factors on every axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter

from ..errors import PlanError
from ..tensor import Patch, Shape, Views
from .pattern import Group, TensorPattern

_MOST_UNROLLED = 4096


@dataclass(frozen=True, slots=True)
class _Digit:
    """A factor of an axis: index x of it moves ``x * stride`` elements along the axis."""

    factor: str
    extent: int
    stride: int
    axis: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A part of a tensor: the elements at ``offset + sum(x * stride)`` on every axis.

    Parameters
    ----------
    label
        What the same part is called on the other side.
    shape
        Of the whole tensor.
    offsets
        First element of the part, on each axis.
    digits
        The factors that it runs along.
    """

    label: str
    shape: Shape
    offsets: Shape
    digits: tuple[_Digit, ...]

    def at(self, positions: Mapping[str, int]) -> Leaf:
        """The leaf with some of its factors held at a position."""
        offsets = list(self.offsets)
        for digit in self.digits:
            offsets[digit.axis] += positions.get(digit.factor, 0) * digit.stride
        free = tuple(digit for digit in self.digits if digit.factor not in positions)
        return Leaf(self.label, self.shape, tuple(offsets), free)


def shape_of(pattern: TensorPattern, sizes: Mapping[str, int]) -> Shape:
    """The shape that a pattern gives a tensor."""
    return tuple(_extent(axis, sizes) for axis in pattern.axes or ())


def leaves_of(pattern: TensorPattern, sizes: Mapping[str, int]) -> tuple[Leaf, ...]:
    """Take a tensor apart.

    Parameters
    ----------
    sizes
        Extent of every factor.

    Examples
    --------
    >>> from reshard.models.pattern import parse_tensor
    >>> for leaf in leaves_of(parse_tensor("", "w [(f (gate: | up:)) h]", ""), {"f": 3, "h": 4}):
    ...     print(leaf.label, leaf.offsets, [(digit.factor, digit.stride) for digit in leaf.digits])
    gate (0, 0) [('f', 2), ('h', 1)]
    up (1, 0) [('f', 2), ('h', 1)]
    """
    shape = shape_of(pattern, sizes)
    paths: list[tuple[str, Shape, tuple[_Digit, ...]]] = [(pattern.label, (), ())]
    for number, axis in enumerate(pattern.axes or ()):
        runs = list(_runs(axis, sizes, 1, number))
        paths = [
            (label or known, (*offsets, offset), (*digits, *more))
            for known, offsets, digits in paths
            for label, offset, more in runs
        ]
    return tuple(Leaf(label, shape, offsets, digits) for label, offsets, digits in paths)


_Run = tuple[str, int, tuple[_Digit, ...]]


def _extent(group: Group, sizes: Mapping[str, int]) -> int:
    return sum(_product(alternative.items, sizes) for alternative in group.alternatives)


def _product(items: tuple[str | Group, ...], sizes: Mapping[str, int]) -> int:
    return math.prod(_extent(item, sizes) if isinstance(item, Group) else sizes[item] for item in items)


def _runs(group: Group, sizes: Mapping[str, int], stride: int, axis: int) -> Iterator[_Run]:
    """Yield the parts of a group whose innermost element moves ``stride`` along the axis."""
    start = 0
    for alternative in group.alternatives:
        runs: list[_Run] = [(alternative.label, start * stride, ())]
        inner = stride
        for item in reversed(alternative.items):
            if isinstance(item, Group):
                runs = [_joined(outer, run) for outer in _runs(item, sizes, inner, axis) for run in runs]
                inner *= _extent(item, sizes)
            else:
                digit = _Digit(item, sizes[item], inner, axis)
                runs = [(label, offset, (digit, *digits)) for label, offset, digits in runs]
                inner *= sizes[item]
        yield from runs
        start += _product(alternative.items, sizes)


def _joined(outer: _Run, inner: _Run) -> _Run:
    return outer[0] or inner[0], outer[1] + inner[1], (*outer[2], *inner[2])


@dataclass(frozen=True, slots=True)
class _Atom:
    """A factor that runs along an axis of the target and along one of the source."""

    extent: int
    target_axis: int
    target_stride: int
    source_axis: int
    source_stride: int


def patches_between(target: Leaf, source: Leaf) -> tuple[Patch, ...]:
    """Lay a part of the source over the same part of the target.

    One patch, unless offsets do not fit the strides (a rotary part that begins at an odd row, say):
    then one for each position of the smallest factor that stands in the way.

    Parameters
    ----------
    target, source
        With the same factors, in any order.

    Examples
    --------
    >>> from reshard.models.pattern import parse_tensor
    >>> joined = leaves_of(parse_tensor("", "w [(f (gate: | up:)) h]", ""), {"f": 3, "h": 4})
    >>> up, = leaves_of(parse_tensor("up", "up [f h]", ""), {"f": 3, "h": 4})
    >>> patch, = patches_between(joined[1], up)
    >>> patch.target_views, patch.target_start, patch.shape, patch.along
    (((3, 2), (4,)), (0, 1, 0), (3, 1, 4), (0, -1, 1))
    """
    other = {digit.factor: digit for digit in source.digits}
    atoms = [
        _Atom(digit.extent, digit.axis, digit.stride, other[digit.factor].axis, other[digit.factor].stride)
        for digit in target.digits
        if digit.extent > 1
    ]
    return tuple(_patches(target, source, _merged(atoms)))


def _merged(atoms: list[_Atom]) -> tuple[_Atom, ...]:
    """Join factors that stand next to each other on both sides: fewer, and plain where nothing moves."""
    merged: list[_Atom] = []
    for atom in sorted(atoms, key=lambda one: (one.target_axis, -one.target_stride)):
        outer = merged[-1] if merged else None
        if outer and _adjoin(outer, atom):
            extent = outer.extent * atom.extent
            merged[-1] = _Atom(extent, atom.target_axis, atom.target_stride, atom.source_axis, atom.source_stride)
        else:
            merged.append(atom)
    return tuple(merged)


def _adjoin(outer: _Atom, inner: _Atom) -> bool:
    return (
        (outer.target_axis, outer.source_axis) == (inner.target_axis, inner.source_axis)
        and outer.target_stride == inner.extent * inner.target_stride
        and outer.source_stride == inner.extent * inner.source_stride
    )


def _patches(target: Leaf, source: Leaf, atoms: tuple[_Atom, ...]) -> Iterator[Patch]:
    into = _views(target, [(a.target_axis, a.target_stride, a.extent) for a in atoms])
    out_of = _views(source, [(a.source_axis, a.source_stride, a.extent) for a in atoms])
    if into is not None and out_of is not None:
        yield _patch(into, out_of, atoms)
        return
    unrolled = min(atoms, key=attrgetter("extent"))
    if unrolled.extent > _MOST_UNROLLED:
        raise PlanError(f"{target.label or 'a part'} of {target.shape}: strides that fit no box; are the sizes right?")
    rest = tuple(atom for atom in atoms if atom is not unrolled)
    for position in range(unrolled.extent):
        yield from _patches(
            _shifted(target, unrolled.target_axis, position * unrolled.target_stride),
            _shifted(source, unrolled.source_axis, position * unrolled.source_stride),
            rest,
        )


def _shifted(leaf: Leaf, axis: int, distance: int) -> Leaf:
    offsets = tuple(offset + distance * (number == axis) for number, offset in enumerate(leaf.offsets))
    return Leaf(leaf.label, leaf.shape, offsets, leaf.digits)


@dataclass(frozen=True, slots=True)
class _View:
    """Axes in factors, where the part begins in each, and which factor each atom runs along."""

    factors: Views
    start: Shape
    places: tuple[int, ...]


def _views(leaf: Leaf, runs: list[tuple[int, int, int]]) -> _View | None:
    """Factor the axes so that each run goes along one factor; None where offsets or strides do not fit."""
    views: list[Shape] = []
    starts: list[int] = []
    places = [0] * len(runs)
    for axis, (extent, rest) in enumerate(zip(leaf.shape, leaf.offsets, strict=True)):
        on_axis = sorted((n for n, run in enumerate(runs) if run[0] == axis), key=lambda n: -runs[n][1])
        factors: list[int] = []
        for number in on_axis:
            _, stride, count = runs[number]
            if extent % stride or rest // stride + count > extent // stride:
                return None
            places[number] = len(starts)
            factors.append(extent // stride)
            starts.append(rest // stride)
            extent, rest = stride, rest % stride
        if extent > 1 or not factors:
            factors.append(extent)
            starts.append(rest)
        views.append(tuple(factors))
    return _View(tuple(views), tuple(starts), tuple(places))


def _patch(into: _View, out_of: _View, atoms: tuple[_Atom, ...]) -> Patch:
    shape, along = [1] * len(into.start), [-1] * len(into.start)
    for atom, place, source_place in zip(atoms, into.places, out_of.places, strict=True):
        shape[place], along[place] = atom.extent, source_place
    return Patch(into.factors, out_of.factors, into.start, tuple(shape), out_of.start, tuple(along))
