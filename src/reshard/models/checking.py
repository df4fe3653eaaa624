"""Contradictions that a data file can hold although every line of it can be read."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import FormatError, raise_all
from .family import Case, Condition, Family, Naming, Option, Row
from .leaves import leaves_of
from .pattern import TensorPattern


def check_family(family: Family, where: str) -> None:
    """Check that names are declared, and that both sides of every row have the same parts and factors.

    Raises
    ------
    FormatError
        They are not; lists every finding.
    """
    problems = [*_of_parameters(family)]
    for naming in family.namings:
        problems += [f"{naming.name}: {problem}" for problem in _of_naming(family, naming)]
    raise_all(FormatError, f"{where}: the data contradicts itself", problems)


def shaped(tensor: TensorPattern, other: Case) -> TensorPattern:
    """The tensor with the axes of its counterpart, where it has none of its own."""
    if tensor.text:
        return tensor
    same = next((one for one in other.tensors if one.label == tensor.label), None)
    axes, text = (same.axes, same.text) if same else (None, "")
    return TensorPattern(tensor.label, tensor.name, axes, text)


def _of_parameters(family: Family) -> Iterator[str]:
    known = {option.name for option in family.options}
    for parameter in family.parameters:
        expressions = [expression for _, expression in parameter.choices]
        otherwise = parameter.otherwise
        expressions += [otherwise] if hasattr(otherwise, "names") else []  # type: ignore[list-item]
        for expression in expressions:
            yield from (f"{parameter.name}: {name} is not known before it" for name in expression.names - known)
        if parameter.by:
            yield from _of_choices(parameter.name, [key for key, _ in parameter.choices], parameter.by, family)
        known.add(parameter.name)
    for index in family.indices:
        needed = index.start.names | index.stop.names | index.step.names | ({index.excluded} - {""})
        yield from (f"index {index.name}: {name} is not known" for name in needed - known)
        known.add(index.name)


def _of_choices(name: str, choices: list[str], by: str, family: Family) -> Iterator[str]:
    option = next((option for option in family.options if option.name == by), None)
    if option is None or set(choices) != {str(value).lower() for value in option.values}:
        yield f"{name}: its values are not those of an option {by}"


def _of_naming(family: Family, naming: Naming) -> Iterator[str]:
    options = {option.name: option for option in family.options}
    names = options.keys() | {parameter.name for parameter in family.parameters}
    conditions = [condition for row in naming.rows for condition in _conditions(row)]
    conditions += [condition for tie in naming.ties for condition in (tie.when, tie.write)]
    conditions += [rule.when for rule in naming.dtypes]
    yield from sorted({problem for condition in conditions for problem in _of_condition(condition, names, options)})
    for row in naming.rows:
        yield from _of_row(row, names | {index.name for index in family.indices})


def _conditions(row: Row) -> Iterator[Condition]:
    yield row.when
    for case in (*row.hf, *row.ms):
        yield case.when


def _of_condition(condition: Condition, names: set[str], options: dict[str, Option]) -> Iterator[str]:
    for name, value in condition:
        if name not in names:
            yield f"condition on {name}, which is not known"
        elif name in options and value not in options[name].values:
            yield f"condition {name}: {value}, which it cannot be"


def _of_row(row: Row, known: set[str]) -> Iterator[str]:
    for hf in row.hf:
        for ms in row.ms:
            sides = [[shaped(tensor, other) for tensor in case.tensors] for case, other in ((hf, ms), (ms, hf))]
            title = ", ".join(str(tensor.name) for tensor in sides[0])
            labels = [sorted(label for tensor in side for label in tensor.labels) for side in sides]
            if labels[0] != labels[1] or len(set(labels[0])) != len(labels[0]):
                yield f"{title}: parts {labels[0]} on one side, {labels[1]} on the other"
            for tensor in (*sides[0], *sides[1]):
                unknown = (tensor.name.names | {f for axis in tensor.axes or () for f in axis.factors}) - known
                yield from (f"{tensor.name}: {name} is not known" for name in sorted(unknown))
                yield from (f"{tensor.name}: factor {name} twice in one part" for name in _repeated(tensor))


def _repeated(tensor: TensorPattern) -> list[str]:
    """Factors that one part has more than once: nothing would tell which is which on the other side."""
    factors = {factor for axis in tensor.axes or () for factor in axis.factors}
    for leaf in leaves_of(tensor, dict.fromkeys(factors, 2)):
        seen = [digit.factor for digit in leaf.digits]
        if len(set(seen)) != len(seen):
            return sorted({factor for factor in seen if seen.count(factor) > 1})
    return []
