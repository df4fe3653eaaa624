"""Layout files: how tensors are cut over ranks, written by people as rules over names.

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
not cut; the axes it leaves out are not cut. An axis that a rule does not name repeats the tensor, unless
``optimizer_shard`` cuts the first axis of every slice over those repeats: ``true`` into as many pieces as there
are, a number into that many. A stage holds the tensors that its globs match and those of its layers; the layer
of a tensor is the first integer that stands right after a part named layers, layer, h or blocks in its dotted
name. Globs are those of the shell, where ``*`` also matches dots.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from ..errors import FormatError, StrategyError
from .layout_rules import PIPELINE_AXIS, LayoutRule, LayoutRules, StageRule
from .strict_json import shown
from .strict_yaml import PlainValue, parse_yaml

_LARGEST_DEVICE_COUNT = 2**31 - 1
_LARGEST_AXIS_COUNT = 64
_LAYERS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parse_layout_file(data: bytes, where: str) -> LayoutRules:
    """Read a layout file.

    Parameters
    ----------
    data
        YAML text, as this module's documentation shows it.
    where
        What it is called, for errors.

    Raises
    ------
    FormatError
        The text is no YAML or breaks the rules above; every finding is listed.

    Examples
    --------
    >>> rules = parse_layout_file(b"axes: {mp: 2}\\nrules: [{match: '*', split: [mp]}]", "layout.yaml")
    >>> rules.strategy({"w": (4, 4)}).layout("w", rank=1).box_of((4, 4), rank=1)
    Box(start=(2, 0), stop=(4, 4))
    """
    return _Reader(where).read(parse_yaml(data, where))


class _Reader:
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
        self._stop_if_broken()
        found = LayoutRules(tuple(axes), tuple(rules), tuple(stages))
        for n, rule in enumerate(rules, 1):
            try:
                found.layout(rule, max(1, len(rule.split)))
            except StrategyError as error:
                self._problems.append(f"rule {n}: {error.message}")
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
        if math.prod(size for _, size in axes) > _LARGEST_DEVICE_COUNT or len(axes) > _LARGEST_AXIS_COUNT:
            limits = f"at most {_LARGEST_AXIS_COUNT} axes and {_LARGEST_DEVICE_COUNT} ranks"
            self._problems.append(f"axes: expected {limits}")
            return []
        if any(name == PIPELINE_AXIS for name, _ in axes[1:]):
            self._problems.append(
                f"axes: {PIPELINE_AXIS} must be the first, slowest axis: the ranks of a pipeline stage are neighbours"
            )
        return axes

    def _rule(self, value: PlainValue, place: str, axes: set[str]) -> LayoutRule:
        fields = self._fields(value, place, required=("match", "split"), optional=("optimizer_shard",))
        split = tuple(
            self._axis(axis, f"{place}: split {n}", axes) for n, axis in self._items(fields.get("split", []), place)
        )
        used = [name for axis in split for name in axis]
        self._problems += [f"{place}: axis {name} is used twice" for name in sorted(set(used)) if used.count(name) > 1]
        shard = fields.get("optimizer_shard", False)
        pieces = -int(shard) if isinstance(shard, bool) else self._number(shard, f"{place}: optimizer_shard", low=2)
        return LayoutRule(self._globs(fields.get("match", []), place), split, pieces)

    def _axis(self, value: PlainValue, place: str, axes: set[str]) -> tuple[str, ...]:
        names = [] if value is None else value if isinstance(value, list) else [value]
        known: list[str] = []
        for name in names:
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
            self._problems.append(f"stages: given, but axes has no {PIPELINE_AXIS}: add it as the first axis")
        elif given and count != expected:
            self._problems.append(f"stages: expected {expected} entries, as {PIPELINE_AXIS} in axes, found {count}")
        elif expected is not None and expected > 1 and not given:
            self._problems.append(
                f"axes: {PIPELINE_AXIS}: {expected} needs stages, a list of {expected} entries such as "
                '{match: "*embed*", layers: 0-11}, one for what each pipeline stage holds'
            )

    def _globs(self, value: PlainValue, place: str) -> tuple[str, ...]:
        globs = value if isinstance(value, list) else [value]
        for glob in globs:
            if not isinstance(glob, str):
                self._wrong(f"{place}: match", "a glob or a list of globs", glob)
        return tuple(glob for glob in globs if isinstance(glob, str))

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
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST_DEVICE_COUNT:
            return value
        self._wrong(place, f"a number of at least {low}", value)
        return low

    def _wrong(self, place: str, expected: str, found: PlainValue) -> None:
        self._problems.append(f"{place}: expected {expected}, found {shown(found)}")
