"""Writing a strategy as a layout file: one grid that all its layouts fit, and rules over names."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from fnmatch import translate
from itertools import pairwise

import yaml

from ..errors import StrategyError, raise_all
from ..tensor import Layout, Strategy
from .layout_rules import PIPELINE_AXIS, LayoutRule, LayoutRules, StageRule, layer_number
from .mindspore.device_grid import grid_dimensions

_NUMBER = re.compile(r"[0-9]+")
_LARGEST_PATTERN_COUNT = 1000  # patterns are compared with each other
_WIDTH = 110


def encode_layout_file(strategy: Strategy) -> bytes:
    """Write a strategy as a layout file.

    Layouts may have different device matrices: the file's axes are the coarsest grid that refines
    all of them. They are called d0, d1, ..., slowest first; a strategy does not know better names.

    Raises
    ------
    StrategyError
        A tensor is cut by hand or by fields, has different layouts on different stages, or device
        matrices that no grid refines.

    Examples
    --------
    >>> column, row = Layout((2, 4), ((), (0,))), Layout((8,), ((0,),))
    >>> print(encode_layout_file(Strategy(8, ({"a.0.w": column, "a.1.w": column, "b": row},))).decode(), end="")
    axes: {d0: 2, d1: 4}
    rules:
    - match: [a.*.w]
      split: [null, d1]
    - match: [b]
      split:
      - [d0, d1]
    """
    placed = [(name, layout) for stage in strategy.stages for name, layout in stage.items()]
    _refuse(name for name, layout in placed if layout.row_split or layout.field_size)
    grid = _grid(placed)
    pipeline = ((PIPELINE_AXIS, strategy.stage_count),) if strategy.stage_count > 1 else ()
    axes = tuple((f"d{position}", stop // step) for position, (step, stop) in enumerate(grid))
    rules = _rules(placed, LayoutRules(axes, ()), grid)
    return _dump(LayoutRules((*pipeline, *axes), tuple(_grouped(rules)), tuple(_stages(strategy))))


def _refuse(names: Iterable[str]) -> None:
    raise_all(StrategyError, "a layout file cannot say that rows are cut by hand or by fields", sorted({*names}))


def _rules(
    placed: Iterable[tuple[str, Layout]], axes: LayoutRules, grid: list[tuple[int, int]]
) -> dict[str, LayoutRule]:
    rules: dict[str, LayoutRule] = {}
    made: dict[Layout, LayoutRule] = {}
    problems: dict[str, None] = {}
    for name, layout in placed:
        if layout not in made:
            made[layout] = _rule(layout, grid)
            try:
                axes.layout(made[layout], len(layout.tensor_map))
            except StrategyError as error:
                problems[f"{name}: {error.message}"] = None
        if rules.setdefault(name, made[layout]) != made[layout]:
            problems[f"{name}: cut differently on different stages"] = None
    raise_all(StrategyError, "layouts that a layout file cannot express", list(problems))
    return rules


def _grid(placed: Iterable[tuple[str, Layout]]) -> list[tuple[int, int]]:
    """Step and stop of each axis of the common grid, slowest first."""
    users: dict[int, str] = {}
    for layout, name in {layout: name for name, layout in placed}.items():
        for dimension in grid_dimensions(layout, join_free=True):
            users.setdefault(dimension.step, name)
            users.setdefault(dimension.stop, name)
    bounds = list(pairwise(sorted(users)))
    problems = [
        f"{users[a]} groups ranks by {a}, {users[b]} by {b}: neither divides the other" for a, b in bounds if b % a
    ]
    raise_all(StrategyError, "device matrices that no common grid refines", problems)
    return bounds[::-1]


def _rule(layout: Layout, grid: list[tuple[int, int]]) -> LayoutRule:
    split: list[list[str]] = [[] for _ in layout.tensor_map]
    for dimension in sorted(grid_dimensions(layout, join_free=True), key=lambda dimension: dimension.place):
        if dimension.axis is not None:
            inside = (n for n, (step, stop) in enumerate(grid) if dimension.step <= step and stop <= dimension.stop)
            split[dimension.axis] += [f"d{position}" for position in inside]
    while split and not split[-1]:
        split.pop()
    pieces = layout.optimizer_pieces
    shard = 0 if pieces == 1 else -1 if pieces == layout.replica_count else pieces
    return LayoutRule((), tuple(map(tuple, split)), shard)


def _grouped(rules: Mapping[str, LayoutRule]) -> Iterable[LayoutRule]:
    """The rules with the names that share them, as globs where numbers are all that differs."""
    globs: dict[LayoutRule, set[str]] = {}
    for name, pattern in _patterns(rules).items():
        globs.setdefault(rules[name], set()).add(pattern)
    for rule, matching in sorted(globs.items(), key=lambda item: min(item[1])):
        yield LayoutRule(tuple(sorted(matching)), rule.split, rule.optimizer_shard)


def _patterns(rules: Mapping[str, LayoutRule]) -> dict[str, str]:
    """For each name a glob that matches it and no name with another rule.

    Names that differ only in whole parts that are numbers are matched by the same globs, so one of
    each kind stands for all.
    """
    kinds: dict[str, list[str]] = {}
    for name in rules:
        kinds.setdefault(_generalised(name), []).append(name)
    if len(kinds) > _LARGEST_PATTERN_COUNT:
        return {name: glob.escape(name) for name in rules}
    safe = {kind for kind in kinds if _is_safe(kind, kinds, rules)}
    return {name: kind if kind in safe else glob.escape(name) for kind, names in kinds.items() for name in names}


def _is_safe(kind: str, kinds: Mapping[str, list[str]], rules: Mapping[str, LayoutRule]) -> bool:
    names = kinds[kind]
    if len(names) == 1 or len({rules[name] for name in names}) > 1:
        return False
    pattern = re.compile(translate(kind))
    others = (members for members in kinds.values() if pattern.match(members[0]))
    return all(rules[name] == rules[names[0]] for members in others for name in members)


def _generalised(name: str) -> str:
    return ".".join("*" if _NUMBER.fullmatch(part) else glob.escape(part) for part in name.split("."))


def _stages(strategy: Strategy) -> Iterable[StageRule]:
    """What each stage holds: whole layers by number, the rest by name."""
    if strategy.stage_count == 1:
        return
    holders: dict[str, list[int]] = {}
    for stage, layouts in enumerate(strategy.stages):
        for name in layouts:
            holders.setdefault(name, []).append(stage)
    layers: dict[int, set[tuple[int, ...]]] = {}
    for name, stages in holders.items():
        number = layer_number(name)
        if number is not None:
            layers.setdefault(number, set()).add(tuple(stages))
    whole = {number for number, sets in layers.items() if len(sets) == 1}
    for layouts in strategy.stages:
        numbers = {number for number in map(layer_number, layouts) if number in whole and number is not None}
        names = (glob.escape(name) for name in layouts if layer_number(name) not in whole)
        yield StageRule(tuple(sorted(names)), tuple(_ranges(numbers)))


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


class _Dumper(yaml.SafeDumper):
    """Repeats equal values instead of naming them: readers refuse aliases."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _dump(rules: LayoutRules) -> bytes:
    top: dict[str, object] = {"axes": dict(rules.axes), "rules": [_written_rule(rule) for rule in rules.rules]}
    if rules.stages:
        top["stages"] = [_written_stage(stage) for stage in rules.stages]
    text: str = yaml.dump(top, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=_WIDTH)
    return text.encode()


def _written_rule(rule: LayoutRule) -> dict[str, object]:
    split = [None if not axis else axis[0] if len(axis) == 1 else list(axis) for axis in rule.split]
    shard: dict[str, object] = {}
    if rule.optimizer_shard:
        shard["optimizer_shard"] = True if rule.optimizer_shard == -1 else rule.optimizer_shard
    return {"match": list(rule.match), "split": split, **shard}


def _written_stage(stage: StageRule) -> dict[str, object]:
    layers = [first if first == last else f"{first}-{last}" for first, last in stage.layers]
    match = {"match": list(stage.match)} if stage.match or not layers else {}
    return {**match, **({"layers": layers} if layers else {})}
