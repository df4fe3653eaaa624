"""The numbers and choices that a family's rows are read with: from ``config.json`` and from what was stated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..errors import PlanError, UsageError, raise_all
from ..formats.strict_json import shown
from .expression import Expression
from .family import Condition, Family, Index, Option, OptionValue, Parameter

Value = int | bool | str | tuple[int, ...]

MOST_POSITIONS = 1 << 16
"""Numbers of one index: more than any model has, so that a hostile config.json costs no memory."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options and parameters with their values.

    Parameters
    ----------
    options
        The value of every option.
    values
        The value of every parameter and option that could be known.
    unknown
        Why the others could not.
    sources
        Where each parameter's value comes from, in words.
    """

    options: Mapping[str, OptionValue]
    values: Mapping[str, Value]
    unknown: Mapping[str, str]
    sources: Mapping[str, str]
    indices: Mapping[str, Index] = field(default_factory=dict)

    def holds(self, condition: Condition) -> bool:
        """Whether every part of a condition is so."""
        return all(self.values.get(name) == value for name, value in condition)

    def positions(self, name: str) -> range | tuple[int, ...]:
        """The numbers that an index runs through.

        Raises
        ------
        PlanError
            A number it needs is not known.
        """
        index, numbers = self.indices[name], self.numbers
        for needed in index.start.names | index.stop.names | index.step.names | ({index.excluded} - {""}):
            if needed in self.unknown:
                raise PlanError(self.unknown[needed])
        every = range(index.start.value(numbers), index.stop.value(numbers), max(1, index.step.value(numbers)))
        if every[MOST_POSITIONS:]:
            raise PlanError(f"{name} runs to {every[-1]}: more than any model has")
        if not index.excluded:
            return every
        out = self.values.get(index.excluded, ())
        excluded = set(self.positions(index.excluded) if index.excluded in self.indices else _as_tuple(out))
        return tuple(number for number in every if number not in excluded)

    @property
    def numbers(self) -> dict[str, int]:
        """The values that are whole numbers."""
        return {name: value for name, value in self.values.items() if type(value) is int}


def _as_tuple(value: Value) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else ()


def find_options(family: Family, side: str, names: Collection[str]) -> dict[str, tuple[OptionValue, str]]:
    """Tell the options that the names of one side give away, each with a name that does."""
    found: dict[str, tuple[OptionValue, str]] = {}
    for option in family.options:
        for value, glob in option.found if option.side == side else ():
            name = next((name for name in names if fnmatchcase(name, glob)), None)
            if name is not None and option.name not in found:
                found[option.name] = (value, name)
    return found


def is_layout(option: Option, family: Family) -> bool:
    """Whether shapes or forms of rows depend on an option, and not only what is written beside them."""
    conditions = [row.when for naming in family.namings for row in naming.rows]
    conditions += [c.when for naming in family.namings for row in naming.rows for c in (*row.hf, *row.ms)]
    expressions = [expression for parameter in family.parameters for _, expression in parameter.choices]
    expressions += [p.otherwise for p in family.parameters if isinstance(p.otherwise, Expression)]
    return (
        any(parameter.by == option.name for parameter in family.parameters)
        or any(name == option.name for condition in conditions for name, _ in condition)
        or any(option.name in expression.names for expression in expressions)
    )


def settle(family: Family, config: Mapping[str, object], options: Mapping[str, object]) -> Settings:
    """Give every option and parameter its value.

    Parameters
    ----------
    config
        Of ``config.json``.
    options
        Those that are stated; the others take their default.

    Raises
    ------
    UsageError
        An option that the family does not have, or a value that it cannot take.
    """
    known = {option.name: option for option in family.options}
    problems = [f"{name}: not an option of {family.name}" for name in options if name not in known]
    problems += [p for name, value in options.items() if name in known for p in _misfits(known[name], value)]
    hint = f"Options: {', '.join(known)}."
    raise_all(UsageError, f"these options do not fit {family.name}", problems, hint)
    chosen = {name: _chosen(option, options.get(name, option.default)) for name, option in known.items()}
    values: dict[str, Value] = dict(chosen)
    unknown: dict[str, str] = {}
    sources: dict[str, str] = {}
    for parameter in family.parameters:
        value, source = _parameter(parameter, config, values, unknown)
        if value is None:
            unknown[parameter.name] = source
        else:
            values[parameter.name], sources[parameter.name] = value, source
    return Settings(chosen, values, unknown, sources, {index.name: index for index in family.indices})


def _misfits(option: Option, value: object) -> list[str]:
    if not option.values:
        fits = (type(value) is int and value >= 1) or (isinstance(value, str) and value.isdigit() and int(value) >= 1)
        return [] if fits else [f"{option.name}: expected a count from 1 on, found {shown(value)}"]
    texts = [str(one).lower() for one in option.values]
    return [] if str(value).lower() in texts else [f"{option.name}: expected {', '.join(texts)}, found {shown(value)}"]


def _chosen(option: Option, value: object) -> OptionValue:
    if not option.values:
        return int(str(value))
    return next(one for one in option.values if str(one).lower() == str(value).lower())


def config_value(config: Mapping[str, object], key: str) -> object:
    """Look up a key with dots between levels; None where a level is missing.

    Examples
    --------
    >>> config_value({"a": {"b": 3}}, "a.b"), config_value({"a": 1}, "a.b")
    (3, None)
    """
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _parameter(
    parameter: Parameter, config: Mapping[str, object], values: Mapping[str, Value], unknown: Mapping[str, str]
) -> tuple[Value | None, str]:
    """Return the value and where it comes from, or None and why there is none."""
    if parameter.by:
        chosen = str(values[parameter.by]).lower()
        expression = next(expression for key, expression in parameter.choices if key == chosen)
        return _computed(parameter.name, expression, values, unknown)
    for key in parameter.config:
        found = config_value(config, key)
        if found is not None:
            value = _of_config(found, parameter)
            source = f"{key} of config.json" if value is not None else f"{key} of config.json is {shown(found)}"
            return value, source
    if isinstance(parameter.otherwise, Expression):
        return _computed(parameter.name, parameter.otherwise, values, unknown)
    keys = " or ".join(parameter.config)
    return parameter.otherwise, f"config.json has no {keys}"


def _of_config(value: object, parameter: Parameter) -> Value | None:
    if isinstance(parameter.otherwise, bool):
        return value if isinstance(value, bool) else None
    if isinstance(parameter.otherwise, tuple):
        items = value if isinstance(value, list) else [None]
        numbers = tuple(item for item in items if type(item) is int)
        return numbers if len(numbers) == len(items) else None
    return value if type(value) is int and 0 <= value < 2**40 else None


def _computed(
    name: str, expression: Expression, values: Mapping[str, Value], unknown: Mapping[str, str]
) -> tuple[int | None, str]:
    for needed in sorted(expression.names):
        if needed in unknown:
            return None, unknown[needed]
    numbers = {key: value for key, value in values.items() if type(value) is int}
    try:
        value = expression.value(numbers)
    except PlanError as error:
        return None, f"{name} = {error.message}"
    return value, expression.text
