"""Reading the data files, strictly: what is not known is an error that says where."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import product

from ..errors import FormatError, UsageError
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..tensor import DType
from .checking import check_family
from .expression import Expression, parse_expression
from .family import (
    SIDES,
    Case,
    Condition,
    Drop,
    DtypeRule,
    Family,
    Index,
    Naming,
    Option,
    OptionValue,
    Parameter,
    Quantised,
    Row,
    Tie,
)
from .pattern import TensorPattern, parse_name, parse_tensor

_Map = Mapping[str, PlainValue]


def _data() -> Traversable:
    return resources.files(__package__)


@cache
def family_names() -> tuple[str, ...]:
    """The families there is data for, sorted.

    Examples
    --------
    >>> "llama" in family_names()
    True
    """
    files = (file.name for file in (_data() / "families").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if re.fullmatch(r"[a-z0-9]\w*\.yaml", name)))


@cache
def load_family(name: str) -> Family:
    """Read the data of one family.

    Raises
    ------
    UsageError
        There is none of this name.

    Examples
    --------
    >>> load_family("mixtral").title
    'Mixtral'
    """
    if name not in family_names():
        raise UsageError(f"no family {name!r}", hint=f"Known: {', '.join(family_names())}.")
    file = f"{name}.yaml"
    return parse_family((_data() / "families" / file).read_bytes(), file)


@cache
def training_state() -> tuple[Drop, ...]:
    """What training checkpoints hold beside weights, in every family."""
    file = "training_state.yaml"
    return tuple(_drop(item, file) for item in _list(parse_yaml((_data() / file).read_bytes(), file), file))


def parse_family(data: bytes, where: str) -> Family:
    """Parse the data of a family.

    Raises
    ------
    FormatError
        It is no such data, or contradicts itself.
    """
    required = ("family", "title", "detect", "parameters", "indices", "options", "namings")
    top = _keys(parse_yaml(data, where), where, required, ("quantised", "layouts", "stages"))
    detect = _keys(top["detect"], f"{where}, detect", ("model_type", "architectures"))
    family = Family(
        name=_text(top["family"], where),
        title=_text(top["title"], where),
        model_types=_texts(detect["model_type"], where),
        architectures=_texts(detect["architectures"], where),
        parameters=tuple(_parameter(*item) for item in _named(top, "parameters", where)),
        indices=tuple(_index(*item) for item in _named(top, "indices", where)),
        options=tuple(_option(*item) for item in _named(top, "options", where)),
        namings=tuple(_naming(*item) for item in _named(top, "namings", where)),
        quantised=_quantised(top["quantised"], f"{where}, quantised") if "quantised" in top else None,
        layouts=top.get("layouts"),
        stages=top.get("stages"),
    )
    check_family(family, where)
    return family


def _parameter(name: str, value: PlainValue, where: str) -> Parameter:
    if isinstance(value, dict) and "by" in value:
        by, says = _text(value["by"], where), value.get("says", "")
        given = {key: item for key, item in value.items() if key not in ("by", "says")}
        choices = tuple((key, _expression(item, where)) for key, item in given.items())
        return Parameter(name, by=by, choices=choices, says=_text(says, where))
    fields = _keys(value, where, (), ("config", "else", "is", "says"))
    if "is" in fields and fields.keys() & {"config", "else"}:
        raise FormatError("parameter", where=where, expected="is, or config and else", found=repr(value))
    says = _text(fields.get("says", ""), where)
    if "is" in fields:
        return Parameter(name, otherwise=_expression(fields["is"], where), says=says)
    otherwise = _otherwise(fields["else"], where) if "else" in fields else None
    return Parameter(name, _texts(fields["config"], where), otherwise, says=says)


def _otherwise(value: PlainValue, where: str) -> Expression | bool | tuple[int, ...]:
    if isinstance(value, bool):
        return value
    return _integers(value, where) if isinstance(value, list) else _expression(value, where)


def _index(name: str, value: PlainValue, where: str) -> Index:
    fields = _keys(value, where, ("to",), ("from", "step", "except", "says"))
    start, stop, step = (_expression(fields.get(*key), where) for key in (("from", 0), ("to", None), ("step", 1)))
    return Index(name, start, stop, step, _text(fields.get("except", ""), where), _text(fields.get("says", ""), where))


def _option(name: str, value: PlainValue, where: str) -> Option:
    fields = _keys(value, where, ("values", "side", "says"), ("found",))
    if fields["side"] not in SIDES:
        raise FormatError("side", where=where, expected=" or ".join(SIDES), found=repr(fields["side"]))
    values = () if fields["values"] == "count" else tuple(_value(v, where) for v in _list(fields["values"], where))
    by_text = {str(value).lower(): value for value in values}
    found = _keys(fields.get("found", {}), f"{where}, found", (), tuple(by_text))
    globs = tuple((by_text[key], _text(glob, where)) for key, glob in found.items())
    return Option(name, values, str(fields["side"]), globs, _text(fields["says"], where))


def _naming(name: str, value: PlainValue, where: str) -> Naming:
    fields = _keys(value, where, ("says", "rows"), ("places", "ties", "drops", "dtypes"))
    places = {place: _places(item, at) for place, item, at in _named(fields, "places", where)}
    rows: list[Row] = []
    for number, item in enumerate(_list(fields["rows"], where)):
        rows += _rows(item, places, f"{where}, row {number + 1}")
    return Naming(
        name=name,
        says=_text(fields["says"], where),
        rows=tuple(rows),
        ties=tuple(_tie(item, f"{where}, ties") for item in _list(fields.get("ties", []), where)),
        drops=tuple(_drop(item, f"{where}, drops") for item in _list(fields.get("drops", []), where)),
        dtypes=tuple(_dtype(item, f"{where}, dtypes") for item in _list(fields.get("dtypes", []), where)),
    )


def _places(value: PlainValue, where: str) -> list[dict[str, str]]:
    items = [_keys(item, where, SIDES) for item in _list(value, where)]
    return [{side: _text(item[side], where) for side in SIDES} for item in items]


def _rows(value: PlainValue, places: Mapping[str, list[dict[str, str]]], where: str) -> list[Row]:
    """Make a row for every place it stands at, and the same again for the bias."""
    fields = _keys(value, where, SIDES, ("when", "bias", "optional"))
    when, optional = _condition(fields.get("when", {}), where), fields.get("optional", False) is True
    used = [place for place in places if f"<{place}>" in str(fields["hf"])]
    rows: list[Row] = []
    for chosen in product(*(places[place] for place in used)):
        at = dict(zip(used, chosen, strict=True))
        hf, ms = (_cases(fields[side], {p: prefix[side] for p, prefix in at.items()}, where) for side in SIDES)
        rows.append(Row(hf, ms, when, optional))
        if "bias" in fields:
            rows.append(Row(_biased(hf), _biased(ms), when, _bias_optional(fields["bias"], where)))
    return rows


def _bias_optional(value: PlainValue, where: str) -> bool:
    if value not in ("optional", "required"):
        raise FormatError("bias", where=where, expected="optional or required", found=repr(value))
    return value == "optional"


def _cases(value: PlainValue, prefixes: Mapping[str, str], where: str) -> tuple[Case, ...]:
    cases = []
    for case in value if isinstance(value, list) else [value]:
        labelled = dict(case) if isinstance(case, dict) else {"": case}
        when = _condition(labelled.pop("when", {}), where)
        texts = {label: _placed(_text(text, where), prefixes) for label, text in labelled.items()}
        cases.append(Case(when, tuple(parse_tensor(label, text, where) for label, text in texts.items())))
    return tuple(cases)


def _placed(text: str, prefixes: Mapping[str, str]) -> str:
    for place, prefix in prefixes.items():
        text = text.replace(f"<{place}>", prefix)
    return text


def _biased(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Make the same for ``.bias`` instead of ``.weight``, which has the first axis only."""
    return tuple(Case(case.when, tuple(_bias(tensor) for tensor in case.tensors)) for case in cases)


def _bias(tensor: TensorPattern) -> TensorPattern:
    name = parse_name(str(tensor.name).removesuffix(".weight") + ".bias", "")
    first = tensor.axes[:1] if tensor.axes else None
    return TensorPattern(tensor.label, name, first, str(first[0]) if first else tensor.text)


def _tie(value: PlainValue, where: str) -> Tie:
    side = "hf" if isinstance(value, dict) and "hf" in value else "ms"
    fields = _keys(value, where, (side, "of"), ("when", "write"))
    name, of = (parse_name(_text(fields[key], where), where) for key in (side, "of"))
    return Tie(side, name, of, *(_condition(fields.get(key, {}), where) for key in ("when", "write")))


def _drop(value: PlainValue, where: str) -> Drop:
    side = "hf" if isinstance(value, dict) and "hf" in value else "ms"
    fields = _keys(value, where, (side, "why"))
    return Drop(side, _texts(fields[side], where), _text(fields["why"], where))


def _dtype(value: PlainValue, where: str) -> DtypeRule:
    side = "hf" if isinstance(value, dict) and "hf" in value else "ms"
    fields = _keys(value, where, (side, "dtype", "why"), ("when",))
    if fields["dtype"] not in list(DType):
        raise FormatError("dtype", where=where, expected="a name of safetensors", found=repr(fields["dtype"]))
    when = _condition(fields.get("when", {}), where)
    return DtypeRule(side, _texts(fields[side], where), DType(str(fields["dtype"])), when, _text(fields["why"], where))


def _quantised(value: PlainValue, where: str) -> Quantised:
    fields = _keys(value, where, ("suffix", "block", "else"))
    return Quantised(_text(fields["suffix"], where), _text(fields["block"], where), _integers(fields["else"], where))


def _condition(value: PlainValue, where: str) -> Condition:
    fields = value if isinstance(value, dict) else {}
    if fields is not value:
        raise FormatError("condition", where=where, expected="{name: value}", found=repr(value))
    return tuple((name, _value(item, where)) for name, item in fields.items())


def _value(value: PlainValue, where: str) -> OptionValue:
    if isinstance(value, bool | int | str):
        return value
    raise FormatError("value", where=where, expected="text, a number, true or false", found=repr(value))


def _keys(value: PlainValue, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> _Map:
    """Check that a value is a mapping with these keys."""
    if not isinstance(value, dict):
        raise FormatError("a mapping is missing", where=where, expected=", ".join(required), found=repr(value))
    problems = [f"missing key {key!r}" for key in required if key not in value]
    problems += [f"unknown key {key!r}" for key in value if key not in (*required, *optional)]
    if problems:
        raise FormatError("keys", where=where, expected=", ".join((*required, *optional)), problems=problems)
    return value


def _named(top: _Map, section: str, where: str) -> list[tuple[str, PlainValue, str]]:
    """The entries of a section, each with its name and its place for errors."""
    entries = top.get(section, {})
    if not isinstance(entries, dict):
        raise FormatError(section, where=where, expected="a mapping", found=repr(entries))
    return [(name, value, f"{where}, {section}, {name}") for name, value in entries.items()]


def _list(value: PlainValue, where: str) -> list[PlainValue]:
    if isinstance(value, list):
        return value
    raise FormatError("a list is missing", where=where, found=repr(value))


def _text(value: PlainValue, where: str) -> str:
    if isinstance(value, str):
        return value
    raise FormatError("text is missing", where=where, found=repr(value))


def _texts(value: PlainValue, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in (value if isinstance(value, list) else [value]))


def _integers(value: PlainValue, where: str) -> tuple[int, ...]:
    items = _list(value, where)
    if all(type(item) is int for item in items):
        return tuple(item for item in items if isinstance(item, int))
    raise FormatError("whole numbers are missing", where=where, found=repr(value))


def _expression(value: PlainValue, where: str) -> Expression:
    return parse_expression(str(value) if type(value) is int else _text(value, where), where)
