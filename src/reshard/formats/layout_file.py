"""Layout files: how tensors are cut over ranks, as people write it: rules over names, read and written.

::

    axes: {pp: 2, dp: 2, mp: 3}     # slowest first: rank = (pp * 2 + dp) * 3 + mp
    rules:                          # the first match wins
      - {match: "*.o_proj.weight", split: [null, mp]}
      - {match: ["*.up_proj.weight", "*.gate_proj.weight"], split: [mp, null], optimizer_shard: true}
      - {match: "*", split: []}     # whole on every rank
    stages:                         # one entry a pipeline stage, needed with pp
      - {match: "*embed*", layers: 0-11}
      - {match: ["*.norm.weight", "lm_head.*"], layers: [12-22, 23]}

``split`` has one entry a tensor axis: an axis name, a list of names (most significant first), or null for
not cut; axes beyond the list are not cut. An axis that a rule does not name replicates the tensor, unless
``optimizer_shard`` cuts the first axis of every slice over those replicas: ``true`` into as many pieces as there
are, a number into that many. A stage holds the tensors that its globs match and those of its layers; the layer
of a tensor is the first integer right after a part named layers, layer, h or blocks in its dotted
name. Globs are those of the shell, where ``*`` also matches dots.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import translate
from itertools import pairwise

import yaml

from ..errors import FormatError, StrategyError, option, raise_all
from ..tensor import MAX_RANK_COUNT, Layout, Strategy
from .device_grid import grid_dimensions
from .layout_rules import PIPELINE_AXIS, LayoutRule, LayoutRules, StageRule, is_wild, layer_number
from .strict_json import shown
from .strict_yaml import PlainValue, parse_yaml
from .yaml_kinds import YamlKind, refuse_other_kinds

_LARGEST_NUMBER = 2**31 - 1
_LARGEST_AXIS_COUNT = 64
_LAYERS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_NUMBER = re.compile(r"[0-9]+")
_LARGEST_PATTERN_COUNT = 1000  # patterns are compared with each other
_LARGEST_GLOB_COUNT = 2000  # with wildcards: every name is compared with them
_WIDTH = 110


def parse_layout_file(data: bytes, where: str) -> LayoutRules:
    """Read a layout file, which is YAML as this module's documentation shows it.

    Raises
    ------
    FormatError
        The text is not YAML or breaks the rules above; all problems are listed. The configuration of a training job is
        named as such.

    Examples
    --------
    >>> rules = parse_layout_file(b"axes: {mp: 2}\\nrules: [{match: '*', split: [mp]}]", "layout.yaml")
    >>> rules.strategy({"w": (4, 4)}).layout("w", rank=1).box_of((4, 4), rank=1)
    Box(start=(2, 0), stop=(4, 4))
    """
    try:
        return _LayoutReader(where).read(parse_yaml(data, where))
    except FormatError:
        # Only now: a training configuration is not YAML of the strict kind, so that its first finding would mislead.
        _refuse_other_kinds(data, where)
        raise


def _refuse_other_kinds(data: bytes, where: str) -> None:
    """Raise FormatError if a text is the configuration of a training job, or a job file."""
    try:
        document = parse_yaml(data, where, foreign=True)
    except FormatError:
        return
    takers = f"{option('src_parallel')} and {option('parallel')}"
    hints = {
        YamlKind.TRAINING: f"{takers} take its sizes: the one for the source's shards, the other for the target's.",
        YamlKind.JOB_FILE: "reshard run takes it.",
    }
    refuse_other_kinds(document, YamlKind.LAYOUT_FILE, where, hints)


class _LayoutReader:
    """Collects every finding before it gives up."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._problems: list[str] = []

    def read(self, top: PlainValue) -> LayoutRules:
        fields = self._fields(top, "the file", required=("axes", "rules"), optional=("stages",))
        axes = self._axes(fields.get("axes"))
        names = {name for name, _ in axes} - {PIPELINE_AXIS}
        rules = [self._rule(rule, f"rule {n}", names) for n, rule in self._items(fields.get("rules"), "rules")]
        stages = [self._stage(stage, f"stage {n - 1}") for n, stage in self._items(fields.get("stages", []), "stages")]
        self._check_stages(dict(axes), len(stages), "stages" in fields)
        globs = [*(glob for rule in rules for glob in rule.match), *(glob for stage in stages for glob in stage.match)]
        wild = sum(map(is_wild, globs))
        if wild > _LARGEST_GLOB_COUNT:
            self._problems.append(f"match: expected at most {_LARGEST_GLOB_COUNT} globs with wildcards, found {wild}")
        self._stop_if_broken()
        found = LayoutRules(tuple(axes), tuple(rules), tuple(stages))
        for n, rule in enumerate(rules, 1):
            try:
                found.layout(rule, max(1, len(rule.split)))
            except StrategyError as error:
                self._problems.append(f"rule {n}: {error.marked_message}")
        self._stop_if_broken()
        return found

    def _stop_if_broken(self) -> None:
        if self._problems:
            raise FormatError("not a layout file", where=self._where, problems=self._problems)

    def _axes(self, value: PlainValue) -> list[tuple[str, int]]:
        if not isinstance(value, dict):
            self._wrong("axes", "a mapping of axis names to sizes, slowest first", value)
            return []
        axes = [(name, self._number(size, f"axes: {name}", low=1)) for name, size in value.items()]
        if len(axes) > _LARGEST_AXIS_COUNT or math.prod(size for _, size in axes) > MAX_RANK_COUNT:
            self._problems.append(f"axes: expected at most {_LARGEST_AXIS_COUNT} axes, {MAX_RANK_COUNT} ranks")
            return []
        if any(name == PIPELINE_AXIS for name, _ in axes[1:]):
            self._problems.append(
                f"axes: {PIPELINE_AXIS} must be the first, slowest axis: ranks of a pipeline stage are consecutive"
            )
        return axes

    def _rule(self, value: PlainValue, place: str, axes: set[str]) -> LayoutRule:
        fields = self._fields(value, place, required=("match", "split"), optional=("optimizer_shard", "optional"))
        split = tuple(
            self._axis(axis, f"{place}: split {n}", axes) for n, axis in self._items(fields.get("split", []), place)
        )
        used = [name for axis in split for name in axis]
        self._problems += [f"{place}: axis {name} is used twice" for name in sorted(set(used)) if used.count(name) > 1]
        shard = fields.get("optimizer_shard", False)
        pieces = -int(shard) if isinstance(shard, bool) else self._number(shard, f"{place}: optimizer_shard", low=2)
        is_optional = fields.get("optional", False)
        if not isinstance(is_optional, bool):
            self._wrong(f"{place}: optional", "true or false", is_optional)
        return LayoutRule(self._globs(fields.get("match", []), place), split, pieces, is_optional is True)

    def _axis(self, value: PlainValue, place: str, axes: set[str]) -> tuple[str, ...]:
        known: list[str] = []
        for name in [] if value is None else value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name in axes:
                known.append(name)
            elif name == PIPELINE_AXIS:
                self._problems.append(f"{place}: {PIPELINE_AXIS} cuts the model into stages, not tensors into pieces")
            else:
                self._wrong(place, f"null or one of the axes {', '.join(sorted(axes)) or '(there are none)'}", name)
        return tuple(known)

    def _stage(self, value: PlainValue, place: str) -> StageRule:
        fields = self._fields(value, place, optional=("match", "layers"))
        if isinstance(value, dict) and not fields:
            self._problems.append(f"{place}: expected match, layers or both")
        layers = fields.get("layers", [])
        ranges = [self._range(item, f"{place}: layers") for item in (layers if isinstance(layers, list) else [layers])]
        return StageRule(self._globs(fields.get("match", []), place), tuple(ranges))

    def _range(self, value: PlainValue, place: str) -> tuple[int, int]:
        match = _LAYERS.fullmatch(value if isinstance(value, str) else "" if isinstance(value, bool) else str(value))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            self._wrong(place, "numbers and ranges such as 0-11", value)
        return first, last

    def _check_stages(self, axes: dict[str, int], count: int, given: bool) -> None:
        expected = axes.get(PIPELINE_AXIS)
        if expected is None and given:
            self._problems.append(f"stages: axes has no {PIPELINE_AXIS}: add it as the first axis")
        elif given and count != expected:
            self._problems.append(f"stages: expected {expected} entries, like {PIPELINE_AXIS} in axes, found {count}")
        elif expected is not None and expected > 1 and not given:
            self._problems.append(
                f"axes: {PIPELINE_AXIS}: {expected} needs stages, a list of {expected} entries such as "
                '{match: "*embed*", layers: 0-11}, one for each pipeline stage'
            )

    def _globs(self, value: PlainValue, place: str) -> tuple[str, ...]:
        patterns = value if isinstance(value, list) else [value]
        for pattern in patterns:
            if not isinstance(pattern, str):
                self._wrong(f"{place}: match", "a glob or a list of globs", pattern)
        return tuple(pattern for pattern in patterns if isinstance(pattern, str))

    def _items(self, value: PlainValue, place: str) -> Iterable[tuple[int, PlainValue]]:
        if not isinstance(value, list):
            self._wrong(place, "a list", value)
            return ()
        return enumerate(value, 1)

    def _fields(
        self, value: PlainValue, place: str, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()
    ) -> dict[str, PlainValue]:
        known = (*required, *optional)
        if not isinstance(value, dict):
            self._wrong(place, f"a mapping with {', '.join(known)}", value)
            return {}
        self._problems += [
            f"{place}: unknown key {shown(key)}: expected {', '.join(known)}" for key in value.keys() - known
        ]
        self._problems += [f"{place}: {key} is missing" for key in required if key not in value]
        return {key: item for key, item in value.items() if key in known}

    def _number(self, value: PlainValue, place: str, low: int) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST_NUMBER:
            return value
        self._wrong(place, f"a number of at least {low}", value)
        return low

    def _wrong(self, place: str, expected: str, found: PlainValue) -> None:
        self._problems.append(f"{place}: expected {expected}, found {shown(found)}")


def encode_layout_file(strategy: Strategy) -> bytes:
    """Write a strategy as a layout file.

    Layouts may have different device matrices: the file's axes are the coarsest grid that refines
    all of them, named d0, d1, ..., slowest first, since a strategy has no names for them.

    Raises
    ------
    StrategyError
        A tensor is cut by hand or by fields or has different layouts on different stages, or no grid
        refines all device matrices.

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
    uneven = sorted({name for name, layout in placed if layout.row_split or layout.field_size})
    raise_all(StrategyError, "a layout file cannot express rows that are cut by hand or by fields", uneven)
    grid = _grid(placed)
    pipeline = ((PIPELINE_AXIS, strategy.stage_count),) if strategy.stage_count > 1 else ()
    axes = tuple((f"d{position}", stop // step) for position, (step, stop) in enumerate(grid))
    rules = _rules(placed, LayoutRules(axes, ()), grid)
    globs: dict[LayoutRule, set[str]] = {}
    for name, pattern in _patterns(rules).items():
        globs.setdefault(rules[name], set()).add(pattern)
    grouped = (
        LayoutRule(tuple(sorted(matching)), rule.split, rule.optimizer_shard)
        for rule, matching in sorted(globs.items(), key=lambda item: min(item[1]))
    )
    return _dump(LayoutRules((*pipeline, *axes), tuple(grouped), tuple(_stages(strategy))))


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
                problems[f"{name}: {error.marked_message}"] = None
        if rules.setdefault(name, made[layout]) != made[layout]:
            problems[f"{name}: cut differently on different stages"] = None
    raise_all(StrategyError, "a layout file cannot express some layouts", list(problems))
    return rules


def _grid(placed: Iterable[tuple[str, Layout]]) -> list[tuple[int, int]]:
    """Return step and stop of each axis of the common grid, slowest first.

    Every dimension of every device matrix must start and end on bounds of the grid, so all bounds are collected;
    they make a grid only if each divides the next.
    """
    users: dict[int, str] = {}
    for layout, name in {layout: name for name, layout in placed}.items():
        for dimension in grid_dimensions(layout, join_free=True):
            users.setdefault(dimension.step, name)
            users.setdefault(dimension.stop, name)
    bounds = list(pairwise(sorted(users)))
    problems = [
        f"{users[a]} groups ranks by {a}, {users[b]} by {b}: neither divides the other" for a, b in bounds if b % a
    ]
    raise_all(StrategyError, "no common grid refines the device matrices", problems)
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


def _patterns(rules: Mapping[str, LayoutRule]) -> dict[str, str]:
    """Return for each name a glob that matches it and no name with another rule.

    Names that differ only in whole parts that are numbers match the same globs, so one of them
    represents all.
    """
    members: dict[str, list[str]] = {}
    for name in rules:
        parts = ("*" if _NUMBER.fullmatch(part) else glob.escape(part) for part in name.split("."))
        members.setdefault(".".join(parts), []).append(name)
    if len(members) > _LARGEST_PATTERN_COUNT:
        return {name: glob.escape(name) for name in rules}
    found: dict[str, str] = {}
    for pattern, names in members.items():
        matches = re.compile(translate(pattern)).match
        matched = (name for others in members.values() if matches(others[0]) for name in others)
        is_safe = len(names) > 1 and len({rules[name] for name in matched}) == 1
        found |= {name: pattern if is_safe else glob.escape(name) for name in names}
    return found


def _stages(strategy: Strategy) -> Iterable[StageRule]:
    """Yield the tensors of each stage: whole layers by number, the rest by name."""
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
        ranges: list[tuple[int, int]] = []
        for number in sorted(numbers):
            is_next = ranges and ranges[-1][1] == number - 1
            ranges.append((ranges.pop()[0] if is_next else number, number))
        yield StageRule(tuple(sorted(names)), tuple(ranges))


class _Dumper(yaml.SafeDumper):
    """Repeats equal values instead of writing aliases, which readers refuse."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _dump(rules: LayoutRules) -> bytes:
    written: list[dict[str, object]] = []
    for rule in rules.rules:
        split = [None if not axis else axis[0] if len(axis) == 1 else list(axis) for axis in rule.split]
        written.append({"match": list(rule.match), "split": split})
        if rule.optimizer_shard:
            written[-1]["optimizer_shard"] = True if rule.optimizer_shard == -1 else rule.optimizer_shard
    stages: list[dict[str, object]] = []
    for stage in rules.stages:
        layers = [first if first == last else f"{first}-{last}" for first, last in stage.layers]
        match = {"match": list(stage.match)} if stage.match or not layers else {}
        stages.append({**match, **({"layers": layers} if layers else {})})
    top = {"axes": dict(rules.axes), "rules": written, **({"stages": stages} if stages else {})}
    text: str = yaml.dump(top, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=_WIDTH)
    return text.encode()
