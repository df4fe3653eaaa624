"""A family from outside the package: its file is held to the same format as the package's, and to bounds besides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from ..errors import FormatError
from ..formats.strict_json import shown
from ..formats.strict_yaml import PlainValue, parse_yaml
from .family_file import MAX_FAMILY_BYTES, OwnFamily, family_names, load_family, parse_family
from .parallel_rules import CutRule, NamingLayouts, load_layouts, name_pattern

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_WILD = re.compile(r"\*\*|\*|\(")
_MOST_WILD = 6
_GRID = ("dp", "cp", "mp")
_HEADS = ("num_attention_heads", "num_key_value_heads", "qkv_heads")


def read_own_family(data: bytes, where: str) -> OwnFamily:
    """Read a family's file, and check all of it.

    Raise FormatError if it breaks the format, contradicts itself, or asks for more than any model has.

    Examples
    --------
    >>> read_own_family(b"family: mine", "mine.yaml")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: mine.yaml: keys: expected family, title, detect, parameters, ...
    """
    if len(data) > MAX_FAMILY_BYTES:
        raise FormatError("too long", where=where, expected=f"at most {MAX_FAMILY_BYTES} bytes", found=str(len(data)))
    try:
        family = parse_family(data, where)
    except RecursionError as error:
        raise FormatError("nested too deeply", where=where) from error
    if not _NAME.fullmatch(family.name):
        expected = "a name of letters, digits, _ . and -"
        raise FormatError("family", where=where, expected=expected, found=shown(family.name))
    own = OwnFamily(family.name, data.decode())
    document = parse_yaml(data, where)
    layouts = document.get("layouts") if isinstance(document, dict) else None
    if layouts is not None:
        problems = list(_wrong_layouts(layouts)) or list(_wrong_rules(own))
        if problems:
            raise FormatError("layouts", where=where, problems=problems)
    return own


@cache
def check_own_family(own: OwnFamily) -> None:
    """Raise FormatError unless a family that a plan carries is one that :func:`read_own_family` reads."""
    read_own_family(own.text.encode(), f"{own.name}.yaml")
    if load_family(own).name != own.name:
        raise FormatError("family", where=f"{own.name}.yaml", expected=own.name, found=shown(load_family(own).name))


# Types and values of the section "layouts", whose keys docs/families/adding.md explains.

_Check = Callable[[PlainValue], str]
"""Says what is expected where a value is not that; empty where it is."""


def _one_of(*values: str) -> _Check:
    return lambda value: "" if value in values and isinstance(value, str) else " or ".join(values)


def _texts(*values: str) -> _Check:
    expected = f"a list of {', '.join(values)}" if values else "a list of texts"

    def check(value: PlainValue) -> str:
        items = value if isinstance(value, list) else [None]
        return "" if all(isinstance(i, str) and (not values or i in values) for i in items) else expected

    return check


def _truth(value: PlainValue) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _text(value: PlainValue) -> str:
    return "" if isinstance(value, str) else "a text"


def _scalars(value: PlainValue) -> str:
    is_so = isinstance(value, dict) and all(isinstance(item, bool | int | str) for item in value.values())
    return "" if is_so else "a mapping of options and their values"


def _blocks(value: PlainValue) -> str:
    is_so = isinstance(value, dict) and not any(map(_texts(), value.values()))
    return "" if is_so else "a mapping of blocks, each with a list of prefixes"


_ENTRY: Mapping[str, _Check] = {
    "extends": lambda value: "" if value in family_names() else f"one of {', '.join(family_names())}",
    "stages": _one_of("legacy", "mcore", "even"),
    "use_legacy": _truth,
    "extra_layers": _one_of("counted", "last"),
    "expert_parallel": _truth,
    "seq_parallel_with_experts": _truth,
    "no_optimizer_shard": _text,
    "blocks": _blocks,
    "rules": lambda value: "" if isinstance(value, list) else "a list of rules",
    "outside": _texts(),
    "experts": _texts("rest", "ep", "mp"),
    "heads": _texts(*_HEADS),
    "runs": _scalars,
}
_RULE: Mapping[str, _Check] = {
    "names": lambda value: _texts()(value) or ("" if value else "at least one name"),
    "in": _text,
    "when": _scalars,
    "split": _texts(),
    "grid": _one_of("dense", "experts"),
    "whole_if": _texts("vocab_emb_dp", "use_seq_parallel", "indivisible"),
    "optimizer": _truth,
    "stage": _one_of("first", "last", "tail"),
    "tied": _one_of("states", "weights", "predicted", "head"),
    "heads": _one_of(*_HEADS),
    "replicate": _truth,
    "uncuttable": _text,
}


def _wrong_layouts(layouts: PlainValue) -> Iterator[str]:
    if not isinstance(layouts, dict):
        yield "expected a mapping of namings"
        return
    for naming, entry in layouts.items():
        yield from _wrong_values(entry, _ENTRY, naming)
        if not isinstance(entry, dict):
            continue
        blocks, base = entry.get("blocks", {}), entry.get("extends")
        if base in family_names() and naming not in load_layouts(str(base)):
            yield f"{naming}, extends: {base} has no layouts for this naming"
        for text in _strings(entry.get("outside")):
            yield from _wrong_pattern(text, f"{naming}, outside")
        for prefixes in blocks.values() if isinstance(blocks, dict) else ():
            for text in _strings(prefixes):
                yield from _wrong_pattern(text, f"{naming}, blocks")
        rules = entry.get("rules", [])
        for number, rule in enumerate(rules if isinstance(rules, list) else [], start=1):
            at = f"{naming}, rule {number}"
            yield from _wrong_values(rule, _RULE, at)
            if not isinstance(rule, dict):
                continue
            if "names" not in rule:
                yield f"{at}: missing key 'names'"
            if isinstance(blocks, dict) and "in" in rule and rule["in"] not in blocks:
                yield f"{at}, in: expected one of blocks, found {shown(str(rule['in']))}"
            for text in _strings(rule.get("names")):
                yield from _wrong_pattern(text, at)


def _wrong_values(value: PlainValue, checks: Mapping[str, _Check], at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at}: expected a mapping"
        return
    for key, item in value.items():
        expected = checks[key](item) if key in checks else ""
        if key not in checks:
            yield f"{at}: unknown key {shown(key)}"
        elif expected:
            yield f"{at}, {key}: expected {expected}, found {shown(item if isinstance(item, str) else str(item))}"


def _strings(value: PlainValue) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _wrong_pattern(text: str, at: str) -> Iterator[str]:
    """Report names that are no pattern, or would take long to match."""
    if len(_WILD.findall(text)) > _MOST_WILD or text.count("**") > 2:
        yield f"{at}: {shown(text)}: expected at most {_MOST_WILD} wildcards and alternatives, 2 of them **"
        return
    try:
        name_pattern([text])
    except re.error:
        yield f"{at}: {shown(text)}: parentheses that do not match"


def _wrong_rules(own: OwnFamily) -> Iterator[str]:
    """Report what each value alone does not show: axes that a grid lacks, stages without the number they need."""
    for naming, layouts in load_layouts(own).items():
        for rule in layouts.rules:
            yield from _wrong_rule(rule, layouts, naming)


def _wrong_rule(rule: CutRule, layouts: NamingLayouts, naming: str) -> Iterator[str]:
    axes = layouts.experts if rule.grid == "experts" else _GRID
    names = shown(rule.pattern.pattern)
    for axis in {axis for entry in rule.split for axis in entry} - {*axes}:
        yield f"{naming}: {names}: split: expected {', '.join(axes)}, found {shown(axis)}"
    if rule.stage == "tail" and not any(group.startswith("j") for group in rule.pattern.groupindex):
        yield f"{naming}: {names}: stage tail: expected {{j}} in the names"
