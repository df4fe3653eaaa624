"""What the data of a family says about cuts: which tensor is cut on which axis, and on which stage it is.

The section ``layouts`` of a family's data has one entry a naming::

    layouts:
      legacy:
        stages: legacy                   # how layers are dealt out, see parallel_stages
        extends: llama                   # rules of this family's entry of the same name come after one's own
        blocks: {layer: ["model.layers.{i}."]}
        rules:
          - {in: layer, names: ["attention.(wq|wk|wv).weight"], split: [mp]}
          - {in: layer, names: ["attention.wo.weight"], split: ["", mp]}
          - {names: [model.norm_out.weight], stage: last, optimizer: false}

In a name ``{i}``, ``{j}`` and ``{e}`` stand for numbers (of a layer, of a layer for multi-token
prediction, of an expert), ``*`` for any text without a dot (``**`` for any), ``(a|b)`` for one of several. The first
rule that matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, cast

from ..errors import FormatError, UsageError, raise_all
from ..formats.strict_yaml import parse_yaml
from .parallel_stages import StageRules

# What optimizers and gradient accumulation put before the name of the weight that a tensor belongs to.
_STATE = re.compile(r"(?:adam_[mv]|accu_grads|accum|moments|moment[12]|muon_m|exp_avg|exp_avg_sq)\.(.+)", re.DOTALL)
_LORA = re.compile(
    r"(?:base_model\.model\.)?(.+)\.(?:(?:mindpet_delta_|tk_delta_)?lora_(?P<small>[ab])|lora_(?P<large>[AB])\.weight)"
)
_FAMILY = re.compile(r"[a-z0-9_]+")
_TOKEN = re.compile(r"\{[ije]\}|\*\*|[*()|]")
_MEANING = {"**": ".+", "*": "[^.]+", "(": "(?:", ")": ")", "|": "|"}
_RULE_KEYS = frozenset(
    {"in", "names", "when", "split", "grid", "whole_if", "optimizer", "stage", "tied", "heads", "replicate"}
    | {"uncuttable"}
)
_PLAIN_KEYS = ("grid", "optimizer", "stage", "tied", "heads", "replicate", "uncuttable")
_NAMING_KEYS = frozenset(
    {"stages", "extends", "blocks", "rules", "outside", "experts", "heads", "use_legacy", "extra_layers", "runs"}
    | {"expert_parallel", "seq_parallel_with_experts"}
)


@dataclass(frozen=True, slots=True)
class CutRule:
    """How the tensors are cut whose names match.

    Parameters
    ----------
    pattern
        Of the whole name; its groups are numbers, the first letter of a group's name says of what.
    split
        For each tensor axis, the axes of the device grid that cut it, most significant first.
    grid
        ``dense``, or ``experts`` for the grid in which experts are dealt out.
    whole_if
        What keeps the tensor whole: ``vocab_emb_dp``, ``use_seq_parallel``, ``indivisible``.
    optimizer
        Whether the parallel optimizer may cut it.
    stage
        ``first``, ``last``, or ``tail`` for a tensor of the ``{j}``-th of the last layers; unused where
        the name has a layer.
    tied
        What stands on the last stage too when there is no head: ``states`` of the optimizer, or
        ``weights``. ``head`` for the head itself.
    heads
        Key of config.json with the number of heads that the rows are made of.
    replicate
        Whether fewer heads than ranks are repeated.
    when
        Options, and the value each must have, for the rule to count.
    uncuttable
        Why no layout cuts the tensor over model parallel as a rank needs it; empty if one does.
    """

    pattern: re.Pattern[str]
    split: tuple[tuple[str, ...], ...] = ()
    grid: str = "dense"
    whole_if: frozenset[str] = frozenset()
    optimizer: bool = True
    stage: str | None = None
    tied: str = ""
    heads: str | None = None
    replicate: bool = False
    when: tuple[tuple[str, object], ...] = ()
    uncuttable: str = ""

    def counts(self, options: Mapping[str, object]) -> bool:
        """Whether the rule is for a model with these options."""
        return all(same_option(options.get(option), value) for option, value in self.when)


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's rule, the numbers in its name, and its part in an adapter (``a``, ``b``) or an optimizer."""

    rule: CutRule
    numbers: Mapping[str, int]
    weight: str
    lora: str = ""
    is_state: bool = False


@dataclass(frozen=True, slots=True)
class NamingLayouts:
    """All rules for one naming of a family.

    Parameters
    ----------
    stages
        How layers are dealt out.
    rules
        The first that matches decides.
    outside
        Patterns of tensors that strategy files do not have: whole on every rank.
    experts
        Axes of the grid for experts, slowest first; ``rest`` is what the others leave.
    heads
        Keys of config.json, each a number that model parallel must divide.
    use_legacy
        Which networks have these names; None when none of MindSpore Transformers has.
    extra_layers
        ``last`` when layers after the last of config.json are on the last stage.
    runs
        Options, and the value with which a tensor is made of as many runs as the option ``blocks``
        says; a plain cut is right only if model parallel divides them.
    expert_parallel
        Whether experts can be dealt out by cutting a tensor.
    seq_parallel_with_experts
        Whether experts together with model parallel need sequence parallel.
    """

    stages: StageRules
    rules: tuple[CutRule, ...]
    outside: tuple[re.Pattern[str], ...] = ()
    experts: tuple[str, ...] = ("rest", "ep")
    heads: tuple[str, ...] = ()
    use_legacy: bool | None = None
    extra_layers: str = "counted"
    runs: tuple[tuple[str, object], ...] = ()
    expert_parallel: bool = True
    seq_parallel_with_experts: bool = False

    def find(self, name: str) -> tuple[CutRule, dict[str, int]] | None:
        """The rule for a tensor, with the numbers in its name by their letter."""
        for rule in self.rules:
            match = rule.pattern.fullmatch(name)
            if match:
                return rule, {group[0]: int(text) for group, text in match.groupdict().items() if text is not None}
        return None

    def locate(self, name: str) -> Place | None:
        """The rule for a tensor, or for the weight whose optimizer state or adapter it is."""
        plain = plain_name(name)
        found, lora = self.find(plain), ""
        if found is None and (match := _LORA.fullmatch(plain)):
            lora = (match["small"] or match["large"]).lower()
            found = self.find(f"{match[1]}.weight")
        return Place(*found, plain, lora, plain != name) if found else None

    def with_options(self, options: Mapping[str, object]) -> NamingLayouts:
        """Only the rules that count with these options."""
        return replace(self, rules=tuple(rule for rule in self.rules if rule.counts(options)))

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Names that no rule is for."""
        return [name for name in names if self.locate(name) is None and not self.is_outside(plain_name(name))]

    def is_outside(self, name: str) -> bool:
        """Whether strategy files have no such tensor."""
        return any(pattern.fullmatch(name) for pattern in self.outside)


def plain_name(name: str) -> str:
    """The name of the weight that a tensor of the optimizer belongs to.

    Examples
    --------
    >>> plain_name("adam_m.lm_head.weight"), plain_name("lm_head.weight")
    ('lm_head.weight', 'lm_head.weight')
    """
    state = _STATE.fullmatch(name)
    return state[1] if state else name


@cache
def load_layouts(family: str) -> Mapping[str, NamingLayouts]:
    """The rules of a family, by naming.

    Raises
    ------
    UsageError
        No such family, or its data says nothing about layouts.

    Examples
    --------
    >>> sorted(load_layouts("llama"))
    ['hf', 'legacy']
    >>> rule, numbers = load_layouts("llama")["legacy"].find("model.layers.7.attention.wo.weight")
    >>> rule.split, numbers
    (((), ('mp',)), {'i': 7})
    """
    section = _section(family)
    return {naming: _naming(family, naming, cast("dict[str, Any]", entry)) for naming, entry in section.items()}


def _section(family: str) -> dict[str, Any]:
    folder = resources.files(__package__) / "families"
    file = folder / f"{family}.yaml"
    if not _FAMILY.fullmatch(family) or not file.is_file():
        known = sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))
        raise UsageError(f"family {family!r} is not known", hint=f"Known: {', '.join(known)}.")
    data = cast("dict[str, Any]", parse_yaml(file.read_bytes(), file.name))
    if not data.get("layouts"):
        raise UsageError(f"the data of family {family} says nothing about layouts")
    return cast("dict[str, Any]", data["layouts"])


def _naming(family: str, naming: str, entry: dict[str, Any]) -> NamingLayouts:
    where = f"{family}.yaml, layouts, {naming}"
    problems = [f"{key}: not a key of a naming" for key in sorted(entry.keys() - _NAMING_KEYS)]
    blocks = entry.get("blocks") or {}
    rules = [_rule(item, blocks, where) for item in entry.get("rules", ())]
    outside = [_pattern([text]) for text in entry.get("outside", ())]
    raise_all(FormatError, f"{where}: wrong data", problems)
    lists: dict[str, Any] = {key: tuple(entry[key]) for key in ("experts", "heads") if key in entry}
    own = NamingLayouts(
        stages=entry.get("stages", "legacy"),
        rules=tuple(rules),
        outside=tuple(outside),
        **{key: entry[key] for key in ("use_legacy", "extra_layers", "expert_parallel") if key in entry},
        **lists,
        runs=tuple((entry.get("runs") or {}).items()),
        seq_parallel_with_experts=bool(entry.get("seq_parallel_with_experts")),
    )
    return _extended(own, entry, naming) if "extends" in entry else own


def _extended(own: NamingLayouts, entry: dict[str, Any], naming: str) -> NamingLayouts:
    """One's own rules before those of the family that is extended; what is not said is taken from it."""
    base = load_layouts(entry["extends"])[naming]
    said = {key: getattr(own, key) for key in entry.keys() & set(NamingLayouts.__dataclass_fields__)}
    return replace(base, **{**said, "rules": (*own.rules, *base.rules), "outside": (*own.outside, *base.outside)})


def _rule(item: dict[str, Any], blocks: Mapping[str, Sequence[str]], where: str) -> CutRule:
    problems = [f"{key}: not a key of a rule" for key in sorted(item.keys() - _RULE_KEYS)]
    raise_all(FormatError, f"{where}: rule for {item.get('names')}", problems)
    prefixes = blocks[item["in"]] if "in" in item else ("",)
    return CutRule(
        pattern=_pattern([prefix + name for prefix in prefixes for name in item["names"]]),
        split=tuple(tuple(axis.split()) for axis in item.get("split", ())),
        whole_if=frozenset(item.get("whole_if", ())),
        when=tuple(item.get("when", {}).items()),
        **{key: item[key] for key in _PLAIN_KEYS if key in item},
    )


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    """One expression for several names; groups carry the place of their name, since none may be there twice."""
    return re.compile("|".join(_expression(name, place) for place, name in enumerate(names)))


def _expression(name: str, place: int) -> str:
    parts, start = [], 0
    for token in _TOKEN.finditer(name):
        parts.append(re.escape(name[start : token.start()]))
        start = token.end()
        text = token[0]
        parts.append(_MEANING.get(text) or f"(?P<{text[1]}{place}>[0-9]{{1,9}})")
    return "".join([*parts, re.escape(name[start:])])


def same_option(said: object, value: object) -> bool:
    """Whether an option has a value, both as people write them.

    Examples
    --------
    >>> same_option("True", True), same_option(None, False)
    (True, False)
    """
    return said is not None and str(said).lower() == str(value).lower()
