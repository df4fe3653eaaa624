"""Rules over tensor names that cut a model over a grid of devices: the content of a layout file."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from itertools import pairwise

from ..errors import StrategyError, raise_all
from ..tensor import Layout, Shape, Strategy

PIPELINE_AXIS = "pp"

_LAYER_WORDS = frozenset({"layers", "layer", "h", "blocks"})
_LAYER_NUMBER = re.compile(r"[0-9]{1,9}")
_WILDCARD = re.compile(r"[*?\[]")
_SHOWN_GLOBS = 3


@dataclass(frozen=True, slots=True)
class LayoutRule:
    """How the tensors are cut whose names match one of the globs.

    ``split`` has for each tensor axis the axes of the device grid that cut it, most significant first;
    ``optimizer_shard`` is the number of pieces of a slice's first axis over its replicas, -1 for one a replica. Unless
    a rule is ``optional`` it matches some tensor.
    """

    match: tuple[str, ...]
    split: tuple[tuple[str, ...], ...] = ()
    optimizer_shard: int = 0
    optional: bool = False


@dataclass(frozen=True, slots=True)
class StageRule:
    """The tensors of one pipeline stage: names that match, and layers ``first..last``, both included."""

    match: tuple[str, ...] = ()
    layers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LayoutRules:
    """A layout file: a grid of devices, and rules that cut tensors over it.

    The axes are names and sizes, slowest first; ``pp``, if any, is the first. The first rule that matches a tensor
    decides. Without ``stages``, a single one holds everything.

    Examples
    --------
    >>> axes = (("dp", 2), ("mp", 3))
    >>> rules = LayoutRules(axes, (LayoutRule(("*.o_proj.weight",), ((), ("mp",))), LayoutRule(("*",))))
    >>> strategy = rules.strategy({"a.o_proj.weight": (4, 6), "norm": (4,)})
    >>> strategy.stages[0]["a.o_proj.weight"].box_of((4, 6), rank=4)
    Box(start=(0, 2), stop=(4, 4))
    """

    axes: tuple[tuple[str, int], ...]
    rules: tuple[LayoutRule, ...]
    stages: tuple[StageRule, ...] = ()

    @property
    def grid(self) -> tuple[tuple[str, int], ...]:
        """The axes of one stage."""
        return tuple(axis for axis in self.axes if axis[0] != PIPELINE_AXIS)

    def layout(self, rule: LayoutRule, axis_count: int) -> Layout:
        """Return the layout that a rule gives a tensor of ``axis_count`` axes.

        As in training, optimizer shards are left out for scalars and for slices without replicas. Raise StrategyError
        if the rule cuts more axes than the tensor has, or its optimizer shard does not fit.
        """
        if len(rule.split) > axis_count:
            raise StrategyError(f"split has {len(rule.split)} entries, the tensor has {axis_count} axes")
        sizes = tuple(size for _, size in self.grid) or (1,)
        entry = {name: len(self.grid) - 1 - position for position, (name, _) in enumerate(self.grid)}
        split = (*rule.split, *((),) * (axis_count - len(rule.split)))
        tensor_map = tuple(tuple(entry[name] for name in axis) for axis in split)
        plain = Layout(sizes, tensor_map)
        if axis_count == 0 or plain.replica_count == 1:
            return plain
        return Layout(sizes, tensor_map, optimizer_shard_size=rule.optimizer_shard)

    def strategy(self, shapes: Mapping[str, Shape], others: Collection[str] = ()) -> Strategy:
        """Apply the rules to the tensors of a model; of their shapes, only the number of axes counts.

        ``others`` are names that rules may match as well, as of tensors that are left out. Raise StrategyError for
        tensors that no rule matches, that no stage holds, or that have fewer axes than their rule cuts; and for rules
        that match nothing and stages that hold nothing.
        """
        rule_of = _Globs([rule.match for rule in self.rules])
        stage_globs = _Globs([stage.match for stage in self.stages])
        stages: list[dict[str, Layout]] = [{} for _ in self.stages or [None]]
        made: dict[tuple[int, int], Layout] = {}
        problems: list[str] = []
        for name, shape in shapes.items():
            holders = self._stages_of(name, stage_globs)
            if not holders:
                problems.append(f"{name}: no stage holds it")
            rule = next(rule_of.matches(name), None)
            if rule is None:
                problems.append(f"{name}: no rule matches it")
                continue
            layout = made.get((rule, len(shape)))
            if layout is None:
                try:
                    layout = made[rule, len(shape)] = self.layout(self.rules[rule], len(shape))
                except StrategyError as error:
                    problems.append(f"{name}: rule {rule + 1}: {error.marked_message}")
                    continue
            for stage in holders:
                stages[stage][name] = layout
        problems += self._in_vain(rule_of, stage_globs, (*shapes, *others))
        hint = 'A last rule {match: "*", split: []} keeps all other tensors whole on every rank.'
        raise_all(StrategyError, "the layout file does not fit the tensors", problems, hint)
        return Strategy(math.prod(size for _, size in self.grid), tuple(stages))

    def _in_vain(self, rule_globs: _Globs, stage_globs: _Globs, names: Sequence[str]) -> Iterator[str]:
        """Yield a problem for what matches nothing: a misspelt rule leaves its tensors to another."""
        used = {position for name in names for position in rule_globs.matches(name)}
        for position, rule in enumerate(self.rules):
            if position not in used and not rule.optional and names:
                matches = ", ".join(rule.match[:_SHOWN_GLOBS]) + ", ..." * (len(rule.match) > _SHOWN_GLOBS)
                yield f"rule {position + 1} ({matches}): it matches no tensor; add optional: true if it need not"
        filled = {stage for name in names for stage in self._stages_of(name, stage_globs)}
        for stage, chosen in enumerate(self.stages):
            if stage not in filled and names and (chosen.match or chosen.layers):
                yield f"stage {stage}: it holds no tensor"

    def _stages_of(self, name: str, globs: _Globs) -> Sequence[int]:
        if not self.stages:
            return (0,)
        number, stages = layer_number(name), set(globs.matches(name))
        if number is not None:
            spans = ((s, *layers) for s, stage in enumerate(self.stages) for layers in stage.layers)
            stages |= {s for s, first, last in spans if first <= number <= last}
        return sorted(stages)


def layer_number(name: str) -> int | None:
    """Return the layer of a tensor, None if it belongs to no layer.

    Examples
    --------
    >>> layer_number("model.layers.12.mlp.experts.3.weight"), layer_number("model.norm.weight")
    (12, None)
    """
    for word, number in pairwise(name.split(".")):
        if word in _LAYER_WORDS and _LAYER_NUMBER.fullmatch(number):
            return int(number)
    return None


def is_wild(glob: str) -> bool:
    """Return whether a glob may match several names.

    Examples
    --------
    >>> is_wild("model.*"), is_wild("model.norm")
    (True, False)
    """
    return _WILDCARD.search(glob) is not None


class _Globs:
    """Lists of globs, compiled to find those that match a name; globs without wildcards cost one look-up."""

    def __init__(self, lists: Sequence[Sequence[str]]) -> None:
        self._lists: list[tuple[frozenset[str], re.Pattern[str] | None]] = []
        for globs in lists:
            wild = [glob for glob in globs if is_wild(glob)]
            pattern = re.compile("|".join(map(translate, wild))) if wild else None
            self._lists.append((frozenset(globs).difference(wild), pattern))

    def matches(self, name: str) -> Iterator[int]:
        """Yield the positions of the lists that match, ascending."""
        for position, (exact, pattern) in enumerate(self._lists):
            if name in exact or (pattern and pattern.match(name)):
                yield position
