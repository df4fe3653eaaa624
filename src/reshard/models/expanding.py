"""A row for one direction, and every tensor that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from ..errors import PlanError
from ..tensor import Patch, Shape
from .checking import shaped
from .family import Case, Row
from .leaves import Leaf, leaves_of, patches_between, shape_of
from .pattern import TensorPattern
from .settings import Settings

Positions = range | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """A source tensor that a row needs: its name, shape (None for any) and the axes as written."""

    name: str
    shape: Shape | None
    text: str


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """A target tensor of a row; a patch of None takes the source as it is."""

    name: str
    shape: Shape | None
    parts: tuple[tuple[Expected, tuple[Patch, ...] | None], ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """The forms of a row that hold for one direction, with the sizes that its tensors share."""

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

    def targets(self) -> Iterator[SourceOptions]:
        """Yield every target tensor."""
        sources = {label: tensor for tensor in self.source.tensors for label in tensor.labels}
        for target in self.target.tensors:
            if target.axes is None:
                yield from self._whole(target, sources[target.label])
                continue
            shape = shape_of(target, self.sizes)
            plans = [_Plan(self, leaf, sources[leaf.label]) for leaf in leaves_of(target, self.sizes)]
            for numbers in self.numbers(target, self.settings.numbers):
                parts = tuple(part for plan in plans for part in plan.parts(numbers))
                yield SourceOptions(target.name.render(numbers), shape, parts)

    def _whole(self, target: TensorPattern, source: TensorPattern) -> Iterator[SourceOptions]:
        for numbers in self.numbers(target, self.settings.numbers):
            expected = Expected(source.name.render(numbers), None, source.text)
            yield SourceOptions(target.name.render(numbers), None, ((expected, None),))

    @property
    def name_count(self) -> int:
        """Names of the pattern that has the most of them."""
        patterns = (
            tensor.name.names & self.positions.keys() for tensor in (*self.source.tensors, *self.target.tensors)
        )
        return max(prod(len(self.positions[name]) for name in names) for names in patterns)

    def numbers(self, tensor: TensorPattern, given: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
        """Yield the numbers of every name of a pattern, beside those that are given."""
        names = [name for name in tensor.name.ordered_names if name in self.positions and name not in given]
        if not names:
            yield given
        for numbers in product(*(self.positions[name] for name in names)) if names else ():
            yield {**given, **dict(zip(names, numbers, strict=True))}


class _Plan:
    """A part of one target pattern, and the pattern that it comes from."""

    def __init__(self, expansion: Expansion, leaf: Leaf, source: TensorPattern) -> None:
        self._expansion, self._leaf, self._source = expansion, leaf, source
        self._source_leaf = next(one for one in leaves_of(source, expansion.sizes) if one.label == leaf.label)
        self._shape = shape_of(source, expansion.sizes)
        digits = {digit.factor for digit in (*leaf.digits, *self._source_leaf.digits)}
        self._held = sorted(digits & expansion.positions.keys())
        self._patches: dict[tuple[int, ...], tuple[Patch, ...]] = {}

    def parts(self, values: Mapping[str, int]) -> Iterator[tuple[Expected, tuple[Patch, ...]]]:
        """Yield the parts for one target name: one, or one for every source that is stacked in it."""
        for numbers in self._expansion.numbers(self._source, values):
            expected = Expected(self._source.name.render(numbers), self._shape, self._source.text)
            yield expected, self._patches_at(numbers)

    def _patches_at(self, numbers: Mapping[str, int]) -> tuple[Patch, ...]:
        """Lay the part over its counterpart, with those factors held that are numbers in a name."""
        key = tuple(numbers[name] for name in self._held)
        if key not in self._patches:  # layers share what differs by expert only
            held = {name: self._expansion.positions[name].index(numbers[name]) for name in self._held}
            self._patches[key] = patches_between(self._leaf.at(held), self._source_leaf.at(held))
        return self._patches[key]


def expand(row: Row, direction: str, settings: Settings) -> Expansion | None:
    """Read a row in one direction; None where it does not apply.

    Raises
    ------
    PlanError
        It needs a number that is not known.
    """
    if not settings.holds(row.when):
        return None
    cases = [next((c for c in row.side(side) if settings.holds(c.when)), None) for side in ("hf", "ms")]
    hf, ms = cases
    if hf is None or ms is None:
        return None
    full_hf, full_ms = (Case(c.when, tuple(shaped(t, o) for t in c.tensors)) for c, o in ((hf, ms), (ms, hf)))
    source, target = (full_hf, full_ms) if direction == "to_ms" else (full_ms, full_hf)
    positions, sizes = _geometry((*source.tensors, *target.tensors), settings)
    if any(not positions[name] for name in positions):
        return None
    _check_sizes((*source.tensors, *target.tensors), settings, sizes)
    return Expansion(row, source, target, settings, positions, sizes)


def _geometry(tensors: tuple[TensorPattern, ...], settings: Settings) -> tuple[dict[str, Positions], dict[str, int]]:
    used = {name for tensor in tensors for name in tensor.name.names} & settings.indices.keys()
    positions = {name: settings.positions(name) for name in sorted(used)}
    return positions, {**settings.numbers, **{name: len(numbers) for name, numbers in positions.items()}}


def _check_sizes(tensors: tuple[TensorPattern, ...], settings: Settings, sizes: Mapping[str, int]) -> None:
    for tensor in tensors:
        factors = {factor for axis in tensor.axes or () for factor in axis.factors}
        for name in sorted(factors | (tensor.name.names - settings.indices.keys())):
            if name in settings.unknown:
                raise PlanError(settings.unknown[name])
        for name in sorted(factors):
            if sizes.get(name, 0) < 1:
                raise PlanError(f"{name} is {sizes.get(name)}: a factor of {tensor.name} must be 1 or more")


def name_values(names: frozenset[str], settings: Settings) -> Iterator[dict[str, int]]:
    """Yield the values of the indices in a name, for every name of the pattern."""
    indices = sorted(names & settings.indices.keys())
    for numbers in product(*(settings.positions(name) for name in indices)):
        yield {**settings.numbers, **dict(zip(indices, numbers, strict=True))}
