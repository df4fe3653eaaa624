"""Expanding a row into tensors, and each tensor into patches.

A tensor pattern is taken apart into *leaves*: labelled parts that each run along the same named factors on
either side. Factor x of a leaf moves ``x * stride`` elements along one axis, so a part is a strided view of
the tensor, and the same factors in another order on the other side are a permutation of views. Laying a
leaf over its counterpart gives the patches, the only thing that planning sees of a family's rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import product
from operator import attrgetter

from ..errors import PlanError
from ..tensor import Patch, Shape, Views
from .family import Case, Row
from .pattern import AxisPattern, TensorPattern
from .settings import Settings

_MAX_UNROLLED_COUNT = 4096
_MAX_NAME_COUNT = 1 << 20
_COPIES = "_copies"

Positions = range | tuple[int, ...]
Parted = tuple[Shape, Shape]
"""A part of a tensor: the tensor's shape, and the part's offset on each axis."""


@dataclass(frozen=True, slots=True)
class _Digit:
    """A factor of an axis: index x moves ``x * stride`` elements along the axis."""

    factor: str
    extent: int
    stride: int
    axis: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A part of a tensor of ``shape``: the elements at ``offset + sum(x * stride)`` on every axis.

    Its ``label`` is the same on both sides; ``digits`` are the factors that it runs along, outermost first.
    """

    label: str
    shape: Shape
    offsets: Shape
    digits: tuple[_Digit, ...]

    def at(self, positions: Mapping[str, int]) -> Leaf:
        """Fix some of the factors at a position."""
        offsets = list(self.offsets)
        for digit in self.digits:
            offsets[digit.axis] += positions.get(digit.factor, 0) * digit.stride
        free = tuple(digit for digit in self.digits if digit.factor not in positions)
        return Leaf(self.label, self.shape, tuple(offsets), free)


def leaves_of(pattern: TensorPattern, sizes: Mapping[str, int]) -> tuple[Leaf, ...]:
    """Take a tensor apart, given the extent of every factor.

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


def shape_of(pattern: TensorPattern, sizes: Mapping[str, int]) -> Shape:
    """Return the shape of a pattern's tensors; one without axes has none."""
    return tuple(_extent(axis, sizes) for axis in pattern.axes or ())


def _extent(item: str | AxisPattern, sizes: Mapping[str, int]) -> int:
    if isinstance(item, str):
        return sizes[item]
    return sum(math.prod(_extent(one, sizes) for one in alternative.items) for alternative in item.alternatives)


def _runs(
    axis_part: AxisPattern, sizes: Mapping[str, int], stride: int, axis: int
) -> Iterator[tuple[str, int, tuple[_Digit, ...]]]:
    """Yield label, offset and factors of each part of an axis whose innermost element moves ``stride``."""
    start = 0
    for alternative in axis_part.alternatives:
        runs: list[tuple[str, int, tuple[_Digit, ...]]] = [(alternative.label, start * stride, ())]
        inner = stride
        for item in reversed(alternative.items):  # strides grow from the innermost factor outwards
            if isinstance(item, str):
                digit = _Digit(item, sizes[item], inner, axis)
                runs = [(label, offset, (digit, *digits)) for label, offset, digits in runs]
            else:
                runs = [
                    (outer_label or label, outer_offset + offset, (*outer_digits, *digits))
                    for outer_label, outer_offset, outer_digits in _runs(item, sizes, inner, axis)
                    for label, offset, digits in runs
                ]
            inner *= _extent(item, sizes)
        yield from runs
        start += inner // stride


# Patches between two leaves.


@dataclass(frozen=True, slots=True)
class _Atom:
    """A factor that runs along an axis of the target and along one of the source."""

    extent: int
    target_axis: int
    target_stride: int
    source_axis: int
    source_stride: int


def patches_between(target: Leaf, source: Leaf) -> tuple[Patch, ...]:
    """Lay a part of the source over the same part of the target, which has the same factors in any order.

    One patch is enough unless offsets do not fit the strides (a rotary part that begins at an odd row, say):
    then there is one for each position of the smallest factor in the way. Along factors that are called copies the
    source is repeated.

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
    repeated = [digit for digit in target.digits if digit.factor.endswith(_COPIES) and digit.factor not in other]
    if repeated:
        names, counts = [digit.factor for digit in repeated], [range(digit.extent) for digit in repeated]
        copies = (target.at(dict(zip(names, positions, strict=True))) for positions in product(*counts))
        return tuple(patch for copy in copies for patch in patches_between(copy, source))
    atoms = [
        _Atom(digit.extent, digit.axis, digit.stride, other[digit.factor].axis, other[digit.factor].stride)
        for digit in target.digits
        if digit.extent > 1
    ]
    return tuple(_patches(target, source, _merged(atoms)))


def patches_along(target: Parted, source: Parted, steps: Iterable[tuple[int, int, int, int, int]]) -> tuple[Patch, ...]:
    """Return the patches that lay a part of one tensor over a part of another, for parts given by numbers.

    A part is a tensor's shape and its offset on each axis; a step is an extent, then axis and stride in the target,
    axis and stride in the source.

    Examples
    --------
    >>> patch, = patches_along(((6, 4), (1, 0)), ((3, 4), (0, 0)), [(3, 0, 2, 0, 1), (4, 1, 1, 1, 1)])
    >>> patch.target_views, patch.target_start, patch.along
    (((3, 2), (4,)), (0, 1, 0), (0, -1, 1))
    """
    atoms = [_Atom(*step) for step in steps if step[0] > 1]
    return tuple(_patches(Leaf("", *target, ()), Leaf("", *source, ()), _merged(atoms)))


def _merged(atoms: list[_Atom]) -> tuple[_Atom, ...]:
    """Join factors that are adjacent on both sides: patches get fewer axes, and plain ones are seen to be plain."""
    merged: list[_Atom] = []
    for atom in sorted(atoms, key=lambda one: (one.target_axis, -one.target_stride)):
        outer = merged[-1] if merged else None
        if (
            outer
            and (outer.target_axis, outer.source_axis) == (atom.target_axis, atom.source_axis)
            and outer.target_stride == atom.extent * atom.target_stride
            and outer.source_stride == atom.extent * atom.source_stride
        ):
            extent = outer.extent * atom.extent
            merged[-1] = _Atom(extent, atom.target_axis, atom.target_stride, atom.source_axis, atom.source_stride)
        else:
            merged.append(atom)
    return tuple(merged)


def _patches(target: Leaf, source: Leaf, atoms: tuple[_Atom, ...]) -> Iterator[Patch]:
    into = _view(target, [(a.target_axis, a.target_stride, a.extent) for a in atoms])
    out_of = _view(source, [(a.source_axis, a.source_stride, a.extent) for a in atoms])
    if into is not None and out_of is not None:
        shape, along = [1] * len(into.start), [-1] * len(into.start)
        for atom, place, source_place in zip(atoms, into.places, out_of.places, strict=True):
            shape[place], along[place] = atom.extent, source_place
        yield Patch(into.factors, out_of.factors, into.start, tuple(shape), out_of.start, tuple(along))
        return
    # No box of factored axes describes the part. Fixing one factor leaves a smaller problem of the same kind,
    # and the smallest factor makes the fewest patches; with no factor left every offset fits.
    unrolled = min(atoms, key=attrgetter("extent"))
    if unrolled.extent > _MAX_UNROLLED_COUNT:
        part = target.label or "a part"
        raise PlanError(f"{part} of {target.shape}: its strides fit no box; check the sizes in config.json")
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
    """Axes in factors, the start of the part in each factor, and the factor that each atom runs along."""

    factors: Views
    start: Shape
    places: tuple[int, ...]


def _view(leaf: Leaf, runs: list[tuple[int, int, int]]) -> _View | None:
    """Factor the axes so that each run of (axis, stride, extent) is along one factor; None if none does.

    On each axis the runs are taken from the largest stride down. A run of stride s splits the axis into
    ``extent // s`` rows of s elements; that is a reshape only if s divides the extent, and the run stays in
    its factor only if its start plus its length does. The remainder of the offset goes to the inner rows.
    """
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


# Rows.


@dataclass(frozen=True, slots=True)
class RowSource:
    """A source tensor that a row reads: its name, shape (None for any) and the axes as written."""

    name: str
    shape: Shape | None
    text: str


@dataclass(frozen=True, slots=True)
class RowTarget:
    """A target tensor that a row makes, from parts of source tensors; patches are None for the whole source."""

    name: str
    shape: Shape | None
    parts: tuple[tuple[RowSource, tuple[Patch, ...] | None], ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """A row for one direction: the forms that hold, and the sizes that its tensors share."""

    row: Row
    source: Case
    target: Case
    settings: Settings
    positions: Mapping[str, Positions]
    sizes: Mapping[str, int]

    @property
    def title(self) -> str:
        """The row, by its patterns."""
        sides = [", ".join(str(tensor.name) for tensor in case.tensors) for case in (self.source, self.target)]
        return " -> ".join(sides)

    @property
    def name_count(self) -> int:
        """Names of the pattern that has the most of them."""
        patterns = (t.name.names & self.positions.keys() for t in (*self.source.tensors, *self.target.tensors))
        return max(math.prod(len(self.positions[name]) for name in names) for names in patterns)

    def targets(self) -> Iterator[RowTarget]:
        """Yield every target tensor."""
        sources = {label: tensor for tensor in self.source.tensors for label in tensor.labels}
        for target in self.target.tensors:
            every = self.indices_of(target, self.settings.numbers)
            if target.axes is None:
                source = sources[target.label]
                for numbers in every:
                    part = RowSource(source.name.render(numbers), None, source.text)
                    yield RowTarget(target.name.render(numbers), None, ((part, None),))
                continue
            shape = shape_of(target, self.sizes)
            makers = [_PartMaker(self, leaf, sources[leaf.label]) for leaf in leaves_of(target, self.sizes)]
            for numbers in every:
                parts = tuple(part for maker in makers for part in maker.parts(numbers))
                yield RowTarget(target.name.render(numbers), shape, parts)

    def indices_of(self, tensor: TensorPattern, known: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
        """Yield the index values of every name of a pattern, together with those that are known."""
        names = [name for name in tensor.name.names if name in self.positions and name not in known]
        if not names:
            yield known
        for numbers in product(*(self.positions[name] for name in names)) if names else ():
            yield {**known, **dict(zip(names, numbers, strict=True))}


class _PartMaker:
    """Makes one part of a target pattern for every name of the pattern."""

    def __init__(self, expansion: Expansion, leaf: Leaf, source: TensorPattern) -> None:
        self._expansion, self._leaf, self._source = expansion, leaf, source
        self._source_leaf = next(one for one in leaves_of(source, expansion.sizes) if one.label == leaf.label)
        self._shape = shape_of(source, expansion.sizes)
        digits = {digit.factor for digit in (*leaf.digits, *self._source_leaf.digits)}
        self._fixed = sorted(digits & expansion.positions.keys())
        self._patches: dict[tuple[int, ...], tuple[Patch, ...]] = {}

    def parts(self, known: Mapping[str, int]) -> Iterator[tuple[RowSource, tuple[Patch, ...]]]:
        """Yield the parts of one target: one, or one for every source that is stacked in it."""
        for numbers in self._expansion.indices_of(self._source, known):
            source = RowSource(self._source.name.render(numbers), self._shape, self._source.text)
            key = tuple(numbers[name] for name in self._fixed)
            if key not in self._patches:  # layers share patches: only indices that are factors, experts, make others
                fixed = {name: self._expansion.positions[name].index(numbers[name]) for name in self._fixed}
                self._patches[key] = patches_between(self._leaf.at(fixed), self._source_leaf.at(fixed))
            yield source, self._patches[key]


def expand(row: Row, direction: str, settings: Settings, lacking: set[str] | None = None) -> Expansion | None:
    """Read a row in one direction; None if it does not apply.

    A row that only renames its tensors needs none of their sizes: if config.json lacks some, any shape will do. Other
    sizes that it lacks are added to ``lacking``, if that is given, and there is no expansion. Raise PlanError if a size
    that the row needs is unknown or less than 1.
    """
    if not settings.holds(row.when):
        return None
    hf, ms = (next((case for case in row.side(side) if settings.holds(case.when)), None) for side in ("hf", "ms"))
    if hf is None or ms is None:
        return None
    source, target = hf.completed(ms), ms.completed(hf)
    if direction != "to_ms":
        source, target = target, source
    tensors = (*source.tensors, *target.tensors)
    used = {name for tensor in tensors for name in tensor.name.names} & settings.indices.keys()
    positions: dict[str, Positions] = {}
    if not any(settings.indices[name].names & settings.unknown.keys() for name in used):
        positions = {name: settings.positions(name) for name in sorted(used)}
        if not all(positions.values()):
            return None
    missing = _missing(source, target, settings)
    if missing and missing <= settings.absent and _is_renaming(source, target, settings):
        source, target = _of_any_shape(source), _of_any_shape(target)
        tensors = (*source.tensors, *target.tensors)
        missing = _missing(source, target, settings)
    if missing and missing <= settings.absent and lacking is not None:
        lacking |= missing
        return None
    for name in sorted(missing):
        raise PlanError(settings.unknown[name])
    sizes = {**settings.numbers, **{name: len(numbers) for name, numbers in positions.items()}}
    for tensor in tensors:
        for name in sorted(tensor.factors):
            if sizes.get(name, 0) < 1:
                raise PlanError(f"{name} is {sizes.get(name)}: a factor of {tensor.name} must be 1 or more")
    return Expansion(row, source, target, settings, positions, sizes)


def _missing(source: Case, target: Case, settings: Settings) -> set[str]:
    """Return the unknown parameters that names, indices and axes of a row depend on."""
    tensors = (*source.tensors, *target.tensors)
    used = {name for tensor in tensors for name in (*tensor.factors, *tensor.name.names)}
    for name in sorted(used & settings.indices.keys()):
        used |= settings.indices[name].names
    return used & settings.unknown.keys()


def _is_renaming(source: Case, target: Case, settings: Settings) -> bool:
    """Whether every tensor has the same axes on both sides, and none is stacked of others."""
    sides = [{tensor.label: tensor.axes for tensor in case.tensors} for case in (source, target)]
    tensors = (*source.tensors, *target.tensors)
    is_one_part = all(tensor.labels == (tensor.label,) for tensor in tensors)
    is_stacked = any(tensor.factors & settings.indices.keys() for tensor in tensors)
    return is_one_part and not is_stacked and sides[0] == sides[1]


def _of_any_shape(case: Case) -> Case:
    return Case(case.when, tuple(TensorPattern(each.label, each.name, None, "...") for each in case.tensors))


def index_values(names: Set[str], settings: Settings) -> Iterator[dict[str, int]]:
    """Yield the values of the indices among these names, one after the other."""
    indices = sorted(names & settings.indices.keys())
    count = math.prod(len(settings.positions(name)) for name in indices)
    if count > _MAX_NAME_COUNT:
        raise PlanError(f"{' and '.join(indices)} make {count} names: more than any model has")
    for numbers in product(*(settings.positions(name) for name in indices)):
        yield {**settings.numbers, **dict(zip(indices, numbers, strict=True))}
