"""Sizes of a model that ``config.json`` does not state, from the names and shapes of its tensors.

Counts come from the numbers in names, other sizes from extents, by the rows of the family's data file: a row says
of every axis which sizes it is the product of. What tensors cannot tell (the number of heads, where q, k and v are
one tensor, say) stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..tensor import Shape, TensorSpec
from .block_scales import unpack
from .family import Condition, Family, Index, Parameter
from .pattern import AxisPattern, Expression, NamePattern, TensorPattern, name_key
from .settings import config_value, resolve_settings
from .size_equations import Sum, multiplied, number, plus, size, solve, sum_of

_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")
_MOST_DIGITS = 10
_MOST_NAMES = 1 << 16


@dataclass(frozen=True, slots=True)
class ModelSide:
    """One side of a model as far as it is known: its family and naming, options that are told, and its tensors.

    ``side`` is ``hf`` or ``ms``, ``config`` the contents of ``config.json``, which may lack anything.
    """

    family: Family
    naming: str
    side: str
    options: Mapping[str, object]
    config: Mapping[str, object]
    specs: Mapping[str, TensorSpec]


def infer_sizes(model: ModelSide) -> dict[str, object]:
    """Return ``config.json`` completed by the sizes that tensors of one side tell, under the family's first keys.

    Whatever ``config.json`` states stays: if tensors contradict it, applying the rules says so. What follows from it
    anyway, as a default, is not added.

    Examples
    --------
    >>> from reshard.models.family_file import load_family
    >>> from reshard.tensor import DType
    >>> shapes = {"model.tok_embeddings.embedding_weight": (8, 4), "model.layers.1.feed_forward.w1.weight": (6, 4)}
    >>> specs = {name: TensorSpec(name, DType.F32, shape) for name, shape in shapes.items()}
    >>> found = infer_sizes(ModelSide(load_family("llama"), "legacy", "ms", {}, {}, specs))
    >>> [f"{key}={value}" for key, value in sorted(found.items())]  # doctest: +NORMALIZE_WHITESPACE
    ['hidden_size=4', 'intermediate_size=6', 'num_hidden_layers=2', 'tie_word_embeddings=True', 'vocab_size=8']
    """
    return _Inference(model).completed()


def keys_to_ask(model: ModelSide, needed: frozenset[str]) -> tuple[str, ...]:
    """Return the fewest keys of ``config.json`` that, with the tensors, tell all ``needed`` parameters.

    ``needed`` are names of parameters that have no value. A key comes before those that follow from it.
    """
    return _Inference(model).asked(needed)


def stated_sizes(model: ModelSide) -> dict[str, int]:
    """Return the parameters whose sizes ``config.json`` states itself, without any default."""
    stated = ((p.name, _stated(p, model.config)) for p in model.family.parameters if p.config)
    return {name: value for name, value in stated if type(value) is int and value > 0}


def axis_sums(model: ModelSide) -> dict[str, tuple[Sum | None, ...]]:
    """Write every axis of the model's tensors, by the key of their names, as the family's rows give it.

    An axis is None where rows do not say, or where it depends on options that are not told. Only the numbers of axes
    count here, not the extents: those may be of pieces.

    Examples
    --------
    >>> from reshard.models.family_file import load_family
    >>> from reshard.tensor import DType
    >>> name = "model.layers.1.feed_forward.w1.weight"
    >>> specs = {name: TensorSpec(name, DType.F32, (6, 4))}
    >>> axis_sums(ModelSide(load_family("llama"), "legacy", "ms", {}, {}, specs))
    {'model.layers.{}.feed_forward.w1.weight': ({(('f', 1),): Fraction(1, 1)}, {(('h', 1),): Fraction(1, 1)})}
    """
    return _Inference(model).axes()


class _Inference:
    """One family's rows, and what the tensors of one side say about the parameters in them."""

    def __init__(self, model: ModelSide) -> None:
        self._family, self._side, self._config = model.family, model.side, model.config
        self._rules, self._told = model.family.naming(model.naming), frozenset(model.options)
        settings = resolve_settings(model.family, model.config, model.options)
        self._options, self._defaults = settings.options, settings.values
        self._parameters = {p.name: p for p in self._family.parameters if p.config}
        self._stated = {name: _stated(p, self._config) for name, p in self._parameters.items()}
        self._absent = {name for name, value in self._stated.items() if value is None}
        self._found: dict[str, Any] = {}  # values of absent parameters
        self._indices = {index.name: index for index in self._family.indices}
        self._shapes: dict[str, Shape] = {}
        self._numbers: dict[str, list[tuple[int, ...]]] = {}
        specs = unpack(model.family.quantised, model.specs) if model.side == "hf" else model.specs
        for name, spec in specs.items():
            key, texts = name_key(name), _NUMBER.findall(name)
            self._shapes.setdefault(key, spec.shape)
            if all(len(text) < _MOST_DIGITS for text in texts):
                self._numbers.setdefault(key, []).append(tuple(map(int, texts)))
        self._find_ties()
        self._patterns = list(self._own_patterns())
        self._seen = self._count_names()

    def completed(self) -> dict[str, object]:
        """Return config.json with all that was found."""
        for name, value in solve(self._equations(), self._given()).items():
            if name in self._absent and value.denominator == 1:
                self._found.setdefault(name, int(value))
        self._found |= self._exceptions()
        config = dict(self._config)
        for name, found in self._found.items():
            if found == self._defaults.get(name):
                continue
            _put(config, self._parameters[name].config[0], found)
        return config

    def asked(self, needed: frozenset[str]) -> tuple[str, ...]:
        """See :func:`keys_to_ask`."""
        roots = self._roots(needed)
        given, keys = self._given(), list[str]()
        for name in self._parameters:
            told = given.keys() | solve(self._equations(), given).keys()
            if name in roots - told:
                keys.append(self._parameters[name].config[0])
                given[name] = 1  # any size shows what would follow from it
        return tuple(keys) or tuple(self._parameters[name].config[0] for name in sorted(roots))

    def _roots(self, needed: frozenset[str]) -> set[str]:
        """Return the parameters of config.json that others follow from."""
        roots = set(needed)
        for parameter in reversed(self._family.parameters):  # what follows from others is declared behind them
            if parameter.name in roots and not parameter.config:
                roots |= {name for expression in parameter.expressions for name in expression.names}
        return roots & self._absent

    def _given(self) -> dict[str, int]:
        values = self._stated | self._found
        return {name: value for name, value in values.items() if type(value) is int and value > 0}

    def _holds(self, condition: Condition) -> bool:
        """Whether a condition may hold: what it says about a parameter without a value is left open."""
        values = {**self._options, **self._stated, **self._found}
        return all(values.get(name) in (None, value) for name, value in condition)

    def _own_patterns(self) -> Iterator[TensorPattern]:
        for row in self._rules.rows:
            if self._holds(row.when):
                for hf, ms in row.forms:
                    if self._holds(hf.when) and self._holds(ms.when):
                        yield from (hf if self._side == "hf" else ms).tensors
                        break

    def _find_ties(self) -> None:
        """Take a model whose output layer is in no tensor for one that has tied it."""
        for tie in self._rules.ties:
            if tie.side != self._side or tie.name.key in self._shapes or tie.of.key not in self._shapes:
                continue
            for name, value in tie.when:
                if name in self._absent and self._holds(tuple(part for part in tie.when if part[0] != name)):
                    self._found[name] = value

    # Shapes.

    def axes(self) -> dict[str, tuple[Sum | None, ...]]:
        """See :func:`axis_sums`."""
        quantities = self._quantities()
        found: dict[str, tuple[Sum | None, ...]] = {}
        for pattern in self._possible_patterns():
            key, axes = pattern.name.key, pattern.axes
            shape = self._shapes.get(key)
            if shape is None or (axes is not None and len(axes) != len(shape)):
                continue
            sums = (None,) * len(shape) if axes is None else tuple(_extent(axis, quantities) or None for axis in axes)
            before = found.get(key, sums)
            found[key] = tuple(a if a == b else None for a, b in zip(before, sums, strict=True))
        return found

    def _possible_patterns(self) -> Iterator[TensorPattern]:
        """Yield every form that a row may have: an option that is not told may have any value."""
        values = {**{name: self._options[name] for name in self._told}, **self._stated}
        for row in self._rules.rows:
            for hf, ms in row.forms:
                conditions = (*row.when, *hf.when, *ms.when)
                if all(values.get(name) in (None, value) for name, value in conditions):
                    yield from (hf if self._side == "hf" else ms).tensors

    def _equations(self) -> list[tuple[Sum, int]]:
        """Write what counts of names and extents of axes say about sizes."""
        quantities = self._quantities()
        found = list(self._count_equations(quantities))
        for pattern in self._patterns:
            shape = self._shapes.get(pattern.name.key, ())
            if pattern.axes is not None and len(pattern.axes) == len(shape):
                sums = [_extent(axis, quantities) for axis in pattern.axes]
                found += [(left, extent) for left, extent in zip(sums, shape, strict=True) if left]
        return found

    def _quantities(self) -> dict[str, Sum]:
        """Write every factor that a row may have as a sum of products of parameters in config.json."""
        known = {name: number(value) for name, value in self._options.items() if type(value) is int}
        for parameter in self._family.parameters:
            name, chosen = parameter.name, parameter.default
            if parameter.config:
                is_nothing = (self._stated | self._found).get(name) == 0
                known[name] = {} if is_nothing else size(name)
                continue
            if parameter.by:
                chosen = dict(parameter.choices)[str(self._options[parameter.by]).lower()]
            written = sum_of(chosen, known) if isinstance(chosen, Expression) else None
            if written is not None:
                known[name] = written
        for index in self._indices.values():
            start, stop, step = (sum_of(bound, known) for bound in (index.start, index.stop, index.step))
            is_whole = step == number(1) and not (index.excluded or index.listed)
            if start is not None and stop is not None and is_whole:
                known[index.name] = plus(stop, start, -1)
        return known

    # Counts.

    def _count_names(self) -> dict[str, set[int]]:
        """Return the numbers that each index has in names; an index without names has none."""
        users: dict[str, dict[NamePattern, None]] = {}
        for pattern in self._patterns:
            users.setdefault(pattern.name.key, {})[pattern.name] = None
        seen: dict[str, set[int]] = {}
        for _ in range(2):  # what runs through nothing may leave a name to one pattern
            seen = {}
            for key, patterns in users.items():
                live = [p for p in patterns if not any(self._is_nothing(name) for name in p.names)]
                if len(live) == 1:
                    self._see(live[0], self._numbers.get(key, ()), seen)
            for name, numbers in seen.items():
                self._note_nothing(self._indices[name], numbers)
        return seen

    def _see(self, pattern: NamePattern, found: Iterable[tuple[int, ...]], seen: dict[str, set[int]]) -> None:
        for place, expression in enumerate(pattern.expressions):
            numbers = {each[place] for each in found if len(each) == len(pattern.expressions)}
            ahead, _, index = expression.text.rpartition(" + ")
            if index not in self._indices or (ahead and ahead not in self._parameters):
                continue
            first = self._stated.get(ahead) or self._found.get(ahead)
            if ahead and numbers:  # {layers + j}: the first of these numbers is the count of layers
                first = first if type(first) is int else min(numbers)
                if ahead in self._absent:
                    self._found[ahead] = first
            seen.setdefault(index, set()).update(each - (first if type(first) is int else 0) for each in numbers)

    def _is_nothing(self, name: str) -> bool:
        index = self._indices.get(name)
        return index is not None and (self._stated | self._found).get(index.stop.text) == 0

    def _note_nothing(self, index: Index, numbers: set[int]) -> None:
        """Note that a count is 0 if its index has no numbers, and nothing else runs up to it."""
        name = index.stop.text
        others = [o for o in self._indices.values() if o is not index and o.stop.text == name]
        if not numbers and name in self._absent and not others and not index.excluded:
            self._found.setdefault(name, 0)

    def _count_equations(self, quantities: Mapping[str, Sum]) -> Iterator[tuple[Sum, int]]:
        for name, numbers in self._seen.items():
            index = self._indices[name]
            if not numbers or index.excluded or index.listed or index.step.text != "1":
                continue
            for bound, value in ((index.stop, max(numbers) + 1), (index.start, min(numbers))):
                written = sum_of(bound, quantities)
                if written and bound.names and value:
                    yield written, value

    def _exceptions(self) -> dict[str, list[int]]:
        """Find the layers that an index leaves out, where config.json would list them."""
        found: dict[str, list[int]] = {}
        values = {**dict.fromkeys(self._absent, 1), **self._given()}  # steps of 1, if nothing is stated
        for index in self._indices.values():
            name, numbers = index.excluded, self._seen.get(index.name)
            if name in self._absent and numbers and all(each in values for each in index.names - {name}):
                first, last, step = (bound.value(values) for bound in (index.start, index.stop, index.step))
                if missing := sorted({*range(first, min(last, max(numbers) + _MOST_NAMES), max(1, step))} - numbers):
                    found[name] = missing
        return found


def _stated(parameter: Parameter, config: Mapping[str, object]) -> object:
    return next((value for key in parameter.config if (value := config_value(config, key)) is not None), None)


def _extent(item: str | AxisPattern, quantities: Mapping[str, Sum]) -> Sum | None:
    """Write the extent of an axis, or of a part of one, as a sum of products."""
    if isinstance(item, str):
        return quantities.get(item)
    total: Sum = {}
    for alternative in item.alternatives:
        product = number(1)
        for each in alternative.items:
            factor = _extent(each, quantities)
            if factor is None:
                return None
            product = multiplied(product, factor)
        total = plus(total, product)
    return total


def _put(config: dict[str, object], key: str, value: object) -> None:
    """Set a key with dots between levels."""
    *levels, last = key.split(".")
    for level in levels:
        inside = config.get(level)
        config[level] = inside = dict(inside) if isinstance(inside, Mapping) else {}
        config = inside
    config[last] = value
