"""Reading a family's data file, strictly: what is unknown or contradicts itself is an error that says where.

The format is described for authors in ``docs/families/adding.md``. Only the file of the family that is
asked for is parsed; telling families apart by ``config.json`` takes the first paragraph of each file.
:mod:`.own_family` reads files from outside the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import cast

from ..errors import FormatError, UsageError, raise_all
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..tensor import DType
from .expansion import leaves_of
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
from .pattern import Expression, TensorPattern, parse_expression, parse_name, parse_tensor

MAX_FAMILY_BYTES = 1 << 18
"""Most bytes of a family's file."""

_Map = Mapping[str, PlainValue]
_MOST_ROWS = 4096
_DATA = Path(__file__).parent  # importlib.resources would take longer to import than the rest of this room


@dataclass(frozen=True, slots=True)
class OwnFamily:
    """A family from outside the package: its name, and the text of its file, which goes along with plans."""

    name: str
    text: str

    def __str__(self) -> str:
        return self.name


FamilyKey = str | OwnFamily
"""The name of a family of the package, or a family from outside it."""


@cache
def family_names() -> tuple[str, ...]:
    """List the families that have a data file, sorted."""
    return tuple(sorted(file.stem for file in (_DATA / "families").glob("*.yaml")))


def read_text(family: str) -> str:
    """Return the text of a family of the package."""
    return _read(family)[0].decode()


def _read(family: str) -> tuple[bytes, str]:
    if family not in family_names():
        raise UsageError(f"Unknown family {family!r}.", hint=f"Known: {', '.join(family_names())}.")
    file = f"{family}.yaml"
    return (_DATA / "families" / file).read_bytes(), file


@cache
def load_document(family: FamilyKey) -> PlainValue:
    """Parse the data file of a family into plain values; raise UsageError if there is no such family."""
    return parse_yaml(*_read(family)) if isinstance(family, str) else parse_yaml(family.text.encode(), f"{family}.yaml")


@cache
def load_family(key: FamilyKey) -> Family:
    """Read the rules of one family; raise UsageError if there is none of this name."""
    return make_family(load_document(key), f"{key}.yaml")


@cache
def load_config_names(family: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the model types and architectures by which ``config.json`` names a family.

    Only the file's first paragraph is parsed, so that finding a family leaves the rules of all others alone.

    Examples
    --------
    >>> load_config_names("mixtral")
    (('mixtral',), ('MixtralForCausalLM',))
    """
    data, file = _read(family)
    head = parse_yaml(data.partition(b"\n\n")[0], file)
    return _config_names(_keys(head, file, ("family", "title", "detect")), file)


def parse_family(data: bytes, where: str) -> Family:
    """Parse the data file of a family; raise FormatError if it breaks the format or contradicts itself."""
    return make_family(parse_yaml(data, where), where)


def make_family(document: PlainValue, where: str) -> Family:
    """Make a family of the plain values of its document; raise FormatError as :func:`parse_family` does."""
    required = ("family", "title", "detect", "parameters", "indices", "options", "namings")
    top = _keys(document, where, required, ("quantised", "layouts"))
    model_types, architectures = _config_names(top, where)
    quantised = None
    if "quantised" in top:
        at = f"{where}, quantised"
        fields = _keys(top["quantised"], at, ("suffix", "block", "default"), ("of", "packed"))
        texts = (_text(fields.get(key, ""), at) for key in ("suffix", "block", "of"))
        default, packed = (_integers(fields.get(key, []), at) for key in ("default", "packed"))
        suffix, block, replaced = texts
        quantised = Quantised(suffix, block, default, replaced, packed)
    family = Family(
        name=_text(top["family"], f"{where}, family"),
        title=_text(top["title"], f"{where}, title"),
        model_types=model_types,
        architectures=architectures,
        parameters=tuple(_parameter(*item) for item in _named(top, "parameters", where)),
        indices=tuple(_index(*item) for item in _named(top, "indices", where)),
        options=tuple(_option(*item) for item in _named(top, "options", where)),
        namings=tuple(_naming(*item) for item in _named(top, "namings", where)),
        quantised=quantised,
        names_of=_text(_detection(top, where).get("names_of", ""), f"{where}, detect"),
    )
    _check(family, where)
    return family


def _config_names(top: _Map, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    detect = _detection(top, where)
    return _texts(detect["model_type"], where), _texts(detect["architectures"], where)


def _detection(top: _Map, where: str) -> _Map:
    return _keys(top["detect"], f"{where}, detect", ("model_type", "architectures"), ("names_of",))


def _parameter(name: str, value: PlainValue, where: str) -> Parameter:
    description = _text(value.get("description", "") if isinstance(value, dict) else "", where)
    if isinstance(value, dict) and "by" in value:
        given = ((key, item) for key, item in value.items() if key not in ("by", "description"))
        choices = tuple((key, _expression(item, where)) for key, item in given)
        return Parameter(name, by=_text(value["by"], where), choices=choices, description=description)
    if isinstance(value, dict) and "is" in value:
        fields = _keys(value, where, ("is",), ("description",))
        return Parameter(name, default=_expression(fields["is"], where), description=description)
    fields = _keys(value, where, ("config",), ("default", "description"))
    default: Expression | bool | tuple[int, ...] | None = None
    if "default" in fields:
        given_default = fields["default"]
        parse = _integers if isinstance(given_default, list) else _expression
        default = given_default if isinstance(given_default, bool) else parse(given_default, where)
    return Parameter(name, _texts(fields["config"], where), default, description=description)


def _index(name: str, value: PlainValue, where: str) -> Index:
    fields = _keys(value, where, ("to",), ("from", "step", "except", "where", "description"))
    start, stop, step = (_expression(fields.get(*key), where) for key in (("from", 0), ("to", None), ("step", 1)))
    excluded, description = (_text(fields.get(key, ""), where) for key in ("except", "description"))
    wanted = fields.get("where", {})
    if not isinstance(wanted, dict) or len(wanted) > 1 or not all(type(item) is int for item in wanted.values()):
        raise FormatError("where", where=where, expected="{list: value}", found=repr(wanted))
    listed, number = next(iter(wanted.items()), ("", 0))
    return Index(name, start, stop, step, excluded, description, listed, cast("int", number))


def _option(name: str, value: PlainValue, where: str) -> Option:
    fields = _keys(value, where, ("values", "side", "description"), ("detect",))
    if fields["side"] not in (*SIDES, "both"):
        raise FormatError("side", where=where, expected=f"{' or '.join(SIDES)}, or both", found=repr(fields["side"]))
    values = () if fields["values"] == "count" else tuple(_value(v, where) for v in _list(fields["values"], where))
    by_text = {str(value).lower(): value for value in values}
    detect = _keys(fields.get("detect", {}), f"{where}, detect", (), tuple(by_text))
    globs = tuple((by_text[key], _text(glob, where)) for key, glob in detect.items())
    return Option(name, values, str(fields["side"]), globs, _text(fields["description"], where))


def _naming(name: str, value: PlainValue, where: str) -> Naming:
    fields = _keys(value, where, ("description", "rows"), ("places", "ties", "drops", "dtypes"))
    places: dict[str, list[dict[str, str]]] = {}
    for place, value_of_place, at in _named(fields, "places", where):
        items = [_keys(item, at, SIDES) for item in _list(value_of_place, at)]
        places[place] = [{side: _text(item[side], at) for side in SIDES} for item in items]
    rows: list[Row] = []
    for number, item in enumerate(_list(fields["rows"], where)):
        rows += _rows(item, places, f"{where}, row {number + 1}")
        if len(rows) > _MOST_ROWS:
            raise FormatError("rows", where=where, expected=f"at most {_MOST_ROWS}", found="more")
    return Naming(
        name=name,
        description=_text(fields["description"], where),
        rows=tuple(rows),
        ties=tuple(_tie(item, f"{where}, ties") for item in _list(fields.get("ties", []), where)),
        drops=tuple(_drop(item, f"{where}, drops") for item in _list(fields.get("drops", []), where)),
        dtypes=tuple(_dtype(item, f"{where}, dtypes") for item in _list(fields.get("dtypes", []), where)),
    )


def _rows(value: PlainValue, places: Mapping[str, list[dict[str, str]]], where: str) -> list[Row]:
    """Make a row for every combination of the places it mentions, and with ``bias`` another for its bias."""
    fields = _keys(value, where, SIDES, ("when", "bias", "optional"))
    when, optional = _condition(fields.get("when", {}), where), fields.get("optional", False) is True
    bias = _text(fields.get("bias", ""), f"{where}, bias")
    used = [place for place in places if f"<{place}>" in str(fields["hf"])]
    count = math.prod(len(places[place]) for place in used)
    if count > _MOST_ROWS:
        raise FormatError("places", where=where, expected=f"at most {_MOST_ROWS} combinations", found=str(count))
    rows: list[Row] = []
    for chosen in product(*(places[place] for place in used)):
        at = [(f"<{place}>", prefixes) for place, prefixes in zip(used, chosen, strict=True)]
        hf, ms = (_cases(fields[side], [(p, prefixes[side]) for p, prefixes in at], where) for side in SIDES)
        rows.append(Row(hf, ms, when, optional))
        if bias in ("optional", "required"):
            rows.append(Row(_biased(hf), _biased(ms), when, bias == "optional"))
        elif bias:  # a flag of config.json, which may be silent about biases that are there
            rows += [Row(_biased(hf), _biased(ms), (*when, (bias, flag)), not flag) for flag in (True, False)]
    return rows


def _cases(value: PlainValue, prefixes: Sequence[tuple[str, str]], where: str) -> tuple[Case, ...]:
    cases = []
    for case in value if isinstance(value, list) else [value]:
        labelled = dict(case) if isinstance(case, dict) else {"": case}
        when = _condition(labelled.pop("when", {}), where)
        tensors = []
        for label, item in labelled.items():
            text = _text(item, where)
            for place, prefix in prefixes:
                text = text.replace(place, prefix)
            tensors.append(parse_tensor(label, text, where))
        cases.append(Case(when, tuple(tensors)))
    return tuple(cases)


def _biased(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Make the same forms of ``.bias`` instead of ``.weight``: a bias has the first axis only."""
    return tuple(Case(case.when, tuple(_bias(tensor) for tensor in case.tensors)) for case in cases)


def _bias(tensor: TensorPattern) -> TensorPattern:
    name = parse_name(str(tensor.name).removesuffix(".weight") + ".bias", "")
    first = tensor.axes[:1] if tensor.axes else None
    return TensorPattern(tensor.label, name, first, str(first[0]) if first else tensor.text)


def _sided(value: PlainValue, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, _Map]:
    """Check an entry about one side, which is the key that its names are under."""
    side = "hf" if isinstance(value, dict) and "hf" in value else "ms"
    return side, _keys(value, where, (side, *required), optional)


def _tie(value: PlainValue, where: str) -> Tie:
    side, fields = _sided(value, where, ("of",), ("when", "write"))
    name, of = (parse_name(_text(fields[key], where), where) for key in (side, "of"))
    return Tie(side, name, of, *(_condition(fields.get(key, {}), where) for key in ("when", "write")))


def _drop(value: PlainValue, where: str) -> Drop:
    side, fields = _sided(value, where, ("why",), ("when",))
    globs = tuple(parse_name(glob, where) for glob in _texts(fields[side], where))
    return Drop(side, globs, _text(fields["why"], where), _condition(fields.get("when", {}), where))


def _dtype(value: PlainValue, where: str) -> DtypeRule:
    side, fields = _sided(value, where, ("dtype", "why"), ("when",))
    if fields["dtype"] not in list(DType):
        raise FormatError("dtype", where=where, expected="a name of safetensors", found=repr(fields["dtype"]))
    when = _condition(fields.get("when", {}), where)
    return DtypeRule(side, _texts(fields[side], where), DType(str(fields["dtype"])), when, _text(fields["why"], where))


def _condition(value: PlainValue, where: str) -> Condition:
    if not isinstance(value, dict):
        raise FormatError("condition", where=where, expected="{name: value}", found=repr(value))
    return tuple((name, _value(item, where)) for name, item in value.items())


def _value(value: PlainValue, where: str) -> OptionValue:
    if isinstance(value, bool | int | str):
        return value
    raise FormatError("value", where=where, expected="text, a number, true or false", found=repr(value))


def _keys(value: PlainValue, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> _Map:
    """Check that a value is a mapping with these keys."""
    if not isinstance(value, dict):
        expected = ", ".join((*required, *optional))
        raise FormatError("mapping", where=where, expected=f"a mapping of {expected}", found=repr(value))
    problems = [f"missing key {key!r}" for key in required if key not in value]
    problems += [f"unknown key {key!r}" for key in value if key not in (*required, *optional)]
    if problems:
        raise FormatError("keys", where=where, expected=", ".join((*required, *optional)), problems=problems)
    return value


def _named(top: _Map, section: str, where: str) -> list[tuple[str, PlainValue, str]]:
    """Return the entries of a section, each with its name and its place for errors."""
    entries = top.get(section, {})
    if not isinstance(entries, dict):
        raise FormatError(section, where=where, expected="a mapping", found=repr(entries))
    return [(name, value, f"{where}, {section}, {name}") for name, value in entries.items()]


def _list(value: PlainValue, where: str) -> list[PlainValue]:
    if isinstance(value, list):
        return value
    raise FormatError("list", where=where, expected="a list", found=repr(value))


def _text(value: PlainValue, where: str) -> str:
    if isinstance(value, str):
        return value
    raise FormatError("text", where=where, expected="text", found=repr(value))


def _texts(value: PlainValue, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in (value if isinstance(value, list) else [value]))


def _integers(value: PlainValue, where: str) -> tuple[int, ...]:
    items = tuple(item for item in _list(value, where) if type(item) is int)
    if len(items) == len(_list(value, where)):
        return items
    raise FormatError("list", where=where, expected="whole numbers", found=repr(value))


def _expression(value: PlainValue, where: str) -> Expression:
    return parse_expression(str(value) if type(value) is int else _text(value, where), where)


# What a file can get wrong although every line of it can be parsed.


def _check(family: Family, where: str) -> None:
    """Check that names are declared, and that both sides of every row have the same parts and factors."""
    problems = [*_undeclared(family)]
    for naming in family.namings:
        problems += [f"{naming.name}: {problem}" for problem in _wrong_naming(family, naming)]
    raise_all(FormatError, f"{where}: the data contradicts itself", problems)


def _undeclared(family: Family) -> Iterator[str]:
    options = {option.name: option for option in family.options}
    known = set(options)
    for parameter in family.parameters:
        for expression in parameter.expressions:
            yield from (f"{parameter.name}: {name} is not declared before it" for name in expression.names - known)
        if parameter.by:
            values = options[parameter.by].values if parameter.by in options else ()
            if parameter.by not in options or dict(parameter.choices).keys() != {str(v).lower() for v in values}:
                yield f"{parameter.name}: its keys are not the values of an option {parameter.by}"
        known.add(parameter.name)
    for index in family.indices:
        yield from (f"index {index.name}: {name} is not declared" for name in index.names - known)
        known.add(index.name)


def _wrong_naming(family: Family, naming: Naming) -> Iterator[str]:
    options = {option.name: option for option in family.options}
    names = options.keys() | {parameter.name for parameter in family.parameters}
    conditions = [when for row in naming.rows for when in (row.when, *(c.when for c in (*row.hf, *row.ms)))]
    conditions += [condition for tie in naming.ties for condition in (tie.when, tie.write)]
    conditions += [*(rule.when for rule in naming.dtypes), *(drop.when for drop in naming.drops)]
    for name, value in sorted({item for condition in conditions for item in condition}, key=str):
        if name not in names:
            yield f"condition on {name}, which is not declared"
        elif name in options and value not in options[name].values:
            yield f"condition {name}: {value}, which is not one of its values"
    known = names | {index.name for index in family.indices}
    globs = [glob for drop in naming.drops for glob in drop.globs]
    yield from (f"{glob}: {name} is not declared" for glob in globs for name in sorted(glob.names - known))
    for row in naming.rows:
        yield from _wrong_row(row, known)


def _wrong_row(row: Row, known: set[str]) -> Iterator[str]:
    for hf, ms in row.forms:
        title = ", ".join(str(tensor.name) for tensor in hf.tensors)
        labels = [sorted(label for tensor in side.tensors for label in tensor.labels) for side in (hf, ms)]
        if labels[0] != labels[1] or len(set(labels[0])) != len(labels[0]):
            yield f"{title}: parts {labels[0]} on one side, {labels[1]} on the other"
        for tensor in (*hf.tensors, *ms.tensors):
            unknown = (tensor.name.names | tensor.factors) - known
            yield from (f"{tensor.name}: {name} is not declared" for name in sorted(unknown))
            yield from (f"{tensor.name}: factor {name} twice in one part" for name in _repeated_factors(tensor))


def _repeated_factors(tensor: TensorPattern) -> list[str]:
    """Return the factors that one part has more than once: nothing says which is which on the other side."""
    for leaf in leaves_of(tensor, dict.fromkeys(tensor.factors, 2)):
        factors = [digit.factor for digit in leaf.digits]
        if len(set(factors)) != len(factors):
            return sorted({factor for factor in factors if factors.count(factor) > 1})
    return []
