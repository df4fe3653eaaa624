"""The parallel rules of a family: which tensor is cut along which axis, and which stage holds it.

They are the section ``layouts`` of the family's data file, whose keys ``docs/families/adding.md`` explains.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, cast

from ..errors import FormatError, UsageError, option, raise_all
from .family import is_same_option
from .family_file import FamilyKey, load_document
from .training_names import is_counter, weight_of

_LORA = re.compile(
    r"(?:base_model\.model\.)?(.+)\.(?:(?:mindpet_delta_|tk_delta_)?lora_(?P<small>[ab])|lora_(?P<large>[AB])\.weight)"
)
_TOKEN = re.compile(r"\{[ije]\}|\*\*|[*()|]")
_REGEX = {"**": ".+", "*": "[^.]+", "(": "(?:", ")": ")", "|": "|"}
_PLAIN_KEYS = ("grid", "optimizer", "stage", "tied", "heads", "replicate", "uncuttable")
_RULE_KEYS = frozenset({"in", "names", "when", "split", "whole_if", *_PLAIN_KEYS})
_PLAIN_ENTRY_KEYS = (
    "stages", "use_legacy", "extra_layers", "expert_parallel", "seq_parallel_with_experts", "no_optimizer_shard",
)  # fmt: skip
_ENTRY_KEYS = frozenset({"extends", "blocks", "rules", "outside", "experts", "heads", "runs", *_PLAIN_ENTRY_KEYS})

StageRules = Literal["legacy", "mcore", "even"]


@dataclass(frozen=True, slots=True)
class CutRule:
    """How tensors with matching names are cut; the fields are the keys of a rule in the data file.

    ``pattern`` matches the whole name; its groups are numbers, whose kind is the first letter of the group's name.
    ``split`` has for each tensor axis the axes of the device grid that cut it, most significant first.
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


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """The rule for a tensor, and what its name says.

    The numbers in the name are by their letter; ``weight`` is the name without the prefix of an optimizer state, and
    ``lora`` is ``a`` or ``b`` for half of an adapter.
    """

    rule: CutRule
    numbers: Mapping[str, int]
    weight: str
    lora: str = ""
    is_state: bool = False


@dataclass(frozen=True, slots=True)
class NamingLayouts:
    """The parallel rules for one naming of a family; the fields are the keys of its entry in the data file.

    The first rule that matches decides. Strategy files do not list tensors ``outside``: they are whole on every rank.
    """

    stages: StageRules = "legacy"
    rules: tuple[CutRule, ...] = ()
    outside: tuple[re.Pattern[str], ...] = ()
    experts: tuple[str, ...] = ("rest", "ep")
    heads: tuple[str, ...] = ()
    use_legacy: bool | None = None
    extra_layers: str = "counted"
    runs: tuple[tuple[str, object], ...] = ()
    expert_parallel: bool = True
    seq_parallel_with_experts: bool = False
    no_optimizer_shard: str = ""

    def match(self, name: str) -> RuleMatch | None:
        """Find the rule for a tensor, or for the weight that its optimizer state or adapter belongs to."""
        plain = weight_of(name)
        found, lora = self._first(plain), ""
        if found is None and (match := _LORA.fullmatch(plain)):
            lora = (match["small"] or match["large"]).lower()
            found = self._first(f"{match[1]}.weight")
        return RuleMatch(*found, plain, lora, plain != name) if found else None

    def _first(self, name: str) -> tuple[CutRule, dict[str, int]] | None:
        for rule in self.rules:
            match = rule.pattern.fullmatch(name)
            if match:
                return rule, {group[0]: int(text) for group, text in match.groupdict().items() if text is not None}
        return None

    def with_options(self, options: Mapping[str, object]) -> NamingLayouts:
        """Keep only the rules that count with these options."""
        rules = (rule for rule in self.rules if all(is_same_option(options.get(o), value) for o, value in rule.when))
        return replace(self, rules=tuple(rules))

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return the names that no rule matches."""
        return [name for name in names if self.match(name) is None and not self.is_outside(name)]

    def is_outside(self, name: str) -> bool:
        """Whether strategy files do not list the tensor."""
        return is_counter(name) or any(pattern.fullmatch(weight_of(name)) for pattern in self.outside)


@cache
def load_layouts(family: FamilyKey) -> Mapping[str, NamingLayouts]:
    """Read the parallel rules of a family, by naming; UsageError if there is no such family, or it has none.

    Examples
    --------
    >>> sorted(load_layouts("llama"))
    ['hf', 'legacy']
    >>> match = load_layouts("llama")["legacy"].match("model.layers.7.attention.wo.weight")
    >>> match.rule.split, match.numbers
    (((), ('mp',)), {'i': 7})
    """
    document = cast("dict[str, Any]", load_document(family))
    if not document.get("layouts"):
        raise UsageError(f"The family {family} has no parallel layouts.")
    # Values are taken to have the right types: the package's do, and own_family has looked at those of others.
    return {naming: _entry(family, naming, entry) for naming, entry in document["layouts"].items()}


def has_layouts(family: FamilyKey) -> bool:
    """Whether a family has parallel rules: one of the user's need not have any."""
    return bool(cast("dict[str, Any]", load_document(family)).get("layouts"))


def _entry(family: FamilyKey, naming: str, entry: dict[str, Any]) -> NamingLayouts:
    where = f"{family}.yaml, layouts, {naming}"
    unknown = [f"unknown key {key!r}" for key in sorted(entry.keys() - _ENTRY_KEYS)]
    raise_all(FormatError, f"{where}: keys", unknown)
    # What an entry does not state is that of the entry it extends, or else the default.
    base = load_layouts(entry["extends"])[naming] if "extends" in entry else NamingLayouts()
    given: dict[str, Any] = {key: entry[key] for key in _PLAIN_ENTRY_KEYS if key in entry}
    given |= {key: tuple(entry[key]) for key in ("experts", "heads") if key in entry}
    given |= {"runs": tuple(entry["runs"].items())} if "runs" in entry else {}
    rules = (_rule(item, entry.get("blocks", {}), where) for item in entry.get("rules", ()))
    outside = (name_pattern([text]) for text in entry.get("outside", ()))
    return replace(base, **given, rules=(*rules, *base.rules), outside=(*outside, *base.outside))


def _rule(item: dict[str, Any], blocks: Mapping[str, Sequence[str]], where: str) -> CutRule:
    problems = [f"unknown key {key!r}" for key in sorted(item.keys() - _RULE_KEYS)]
    raise_all(FormatError, f"{where}: rule for {item.get('names')}: keys", problems)
    prefixes = blocks[item["in"]] if "in" in item else ("",)
    return CutRule(
        pattern=name_pattern([prefix + name for prefix in prefixes for name in item["names"]]),
        split=tuple(tuple(axis.split()) for axis in item.get("split", ())),
        whole_if=frozenset(item.get("whole_if", ())),
        when=tuple(item.get("when", {}).items()),
        **{key: item[key] for key in _PLAIN_KEYS if key in item},
    )


def name_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Compile one expression for several names; a group's name ends in the place of its name, to be unique."""
    alternatives = []
    for place, name in enumerate(names):
        parts: list[str] = []
        start = 0
        for token in _TOKEN.finditer(name):
            regex = _REGEX.get(token[0]) or f"(?P<{token[0][1]}{place}>[0-9]{{1,9}})"
            parts += re.escape(name[start : token.start()]), regex
            start = token.end()
        alternatives.append("".join([*parts, re.escape(name[start:])]))
    return re.compile("|".join(alternatives))


def naming_of(family: FamilyKey, names: Collection[str]) -> str:
    """Find the naming of a family that knows all tensors; UsageError if none does, or several do.

    Examples
    --------
    >>> naming_of("llama", ["model.layers.0.attention.wo.weight"])
    'legacy'
    """
    unknown = {naming: rules.unknown(names) for naming, rules in load_layouts(family).items()}
    fitting = [naming for naming, strange in unknown.items() if not strange]
    if len(fitting) == 1:
        return fitting[0]
    raise UsageError(
        f"the tensors fit {' and '.join(fitting) or 'none'} of the namings of {family}",
        hint=f"Name the one that is meant: {option('naming')}.",
        problems=[f"{naming}: {len(n)} unknown, {', '.join(n[:3])}" for naming, n in unknown.items() if n],
    )
