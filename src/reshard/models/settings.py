"""The options and parameters that a family's rows are read with, from ``config.json`` and from the request."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..errors import PlanError, UsageError, option, raise_all
from ..formats.strict_json import shown
from .family import Condition, Family, Index, Naming, Option, OptionValue, Parameter, is_same_option
from .pattern import Expression

Value = int | bool | str | tuple[int, ...]

# Values of one index: more than any model has, so that a hostile config.json costs no memory.
_MAX_POSITION_COUNT = 1 << 16


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of a family's options and parameters.

    ``values`` are those of every option, and of every parameter that has one; ``unknown`` says why the other
    parameters have none, ``sources`` where each parameter's value comes from, in words. ``absent`` are those of the
    unknown that follow from keys which config.json does not have: nothing contradicts any value of them.
    """

    options: Mapping[str, OptionValue]
    values: Mapping[str, Value]
    unknown: Mapping[str, str]
    sources: Mapping[str, str]
    indices: Mapping[str, Index] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()

    def holds(self, condition: Condition) -> bool:
        """Whether every part of a condition holds."""
        return all(self.values.get(name) == value for name, value in condition)

    def positions(self, name: str) -> range | tuple[int, ...]:
        """Return the numbers that an index runs through.

        Raise PlanError if a parameter that the index depends on is unknown, or there are too many numbers.
        """
        index, numbers = self.indices[name], self.numbers
        for needed in sorted(index.names & self.unknown.keys()):
            raise PlanError(self.unknown[needed])
        every = range(index.start.value(numbers), index.stop.value(numbers), max(1, index.step.value(numbers)))
        if every[_MAX_POSITION_COUNT:]:
            raise PlanError(f"{name} runs to {every[-1]}: more than any model has")
        if index.listed:
            values = self.values.get(index.listed)
            known = values if isinstance(values, tuple) else ()
            return tuple(number for number in every if known[number : number + 1] == (index.wanted,))
        if not index.excluded:
            return every
        listed = self.positions if index.excluded in self.indices else self.values.get
        numbers_left_out = listed(index.excluded)
        excluded = set(numbers_left_out) if isinstance(numbers_left_out, range | tuple) else set()
        return tuple(number for number in every if number not in excluded)

    @property
    def numbers(self) -> dict[str, int]:
        """The values that are whole numbers."""
        return {name: value for name, value in self.values.items() if type(value) is int}


def find_options(family: Family, side: str, names: Collection[str]) -> dict[str, tuple[OptionValue, str]]:
    """Find the options that the names of one side reveal, each with a name that does."""
    found: dict[str, tuple[OptionValue, str]] = {}
    for choice in family.options:
        for value, glob in choice.detect if choice.is_about(side) else ():
            name = next((name for name in names if fnmatchcase(name, glob)), None)
            if name is not None and choice.name not in found:
                found[choice.name] = (value, name)
    return found


def affects_elements(choice: Option, family: Family, naming: Naming) -> bool:
    """Whether an option changes where elements of a naming are, and not only which copies are written beside them."""
    cases = [case for row in naming.rows for case in (*row.hf, *row.ms)]
    conditions = [row.when for row in naming.rows] + [case.when for case in cases]
    used = {name for case in cases for tensor in case.tensors for name in (*tensor.factors, *tensor.name.names)}
    used |= {name for condition in conditions for name, _ in condition}
    used |= {name for index in family.indices if index.name in used for name in index.names}
    for parameter in reversed(family.parameters):  # what follows from others is declared behind them
        if parameter.name in used:
            used |= {parameter.by, *(name for expression in parameter.expressions for name in expression.names)}
    return choice.name in used


def resolve_settings(family: Family, config: Mapping[str, object], options: Mapping[str, object]) -> Settings:
    """Give every option and parameter its value; options that are not given take their default.

    Raise UsageError for options that the family does not have, and for values that they cannot take.
    """
    known = {choice.name: choice for choice in family.options}
    problems = [f"{name}: {family.name} has no such option" for name in options if name not in known]
    chosen: dict[str, OptionValue] = {}
    for name, choice in known.items():
        given = options.get(name, choice.default)
        if choice.values:
            value = next((value for value in choice.values if is_same_option(given, value)), None)
        else:
            text = str(given) if type(given) in (int, str) else ""
            value = int(text) if re.fullmatch("0*[1-9][0-9]{0,8}", text) else None
        if value is None:
            expected = ", ".join(str(one).lower() for one in choice.values) or "a count of 1 or more"
            problems.append(f"{name}: expected {expected}, found {shown(given)}")
        else:
            chosen[name] = value
    hint = f"{family.name} has these options: {', '.join(known)}."
    raise_all(UsageError, f"{option('option')} does not fit the family {family.name}.", problems, hint)
    values: dict[str, Value] = dict(chosen)
    unknown: dict[str, str] = {}
    sources: dict[str, str] = {}
    absent: set[str] = set()
    for parameter in family.parameters:
        found, source = _parameter_value(parameter, config, values, unknown)
        if found is None:
            unknown[parameter.name] = source
            absent |= {parameter.name} if _is_absent(parameter, config, chosen, absent) else set()
        else:
            values[parameter.name], sources[parameter.name] = found, source
    indices = {index.name: index for index in family.indices}
    return Settings(chosen, values, unknown, sources, indices, frozenset(absent))


def config_value(config: Mapping[str, object], key: str) -> object:
    """Look up a key with dots between levels; None if a level is absent.

    Examples
    --------
    >>> config_value({"a": {"b": 3}}, "a.b"), config_value({"a": 1}, "a.b")
    (3, None)
    """
    value: object = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _parameter_value(
    parameter: Parameter, config: Mapping[str, object], values: Mapping[str, Value], unknown: Mapping[str, str]
) -> tuple[Value | None, str]:
    """Return a parameter's value and where it comes from, or None and the reason."""
    expression = parameter.default
    if parameter.by:
        expression = next(item for key, item in parameter.choices if is_same_option(values[parameter.by], key))
    for key in parameter.config:
        found = config_value(config, key)
        if found is not None:
            value = _of_type(found, parameter)
            return value, f"{key} of config.json" + ("" if value is not None else f" is {shown(found)}")
    if not isinstance(expression, Expression):
        return expression, f"config.json has no {' or '.join(parameter.config)}"
    for needed in sorted(expression.names & unknown.keys()):
        return None, unknown[needed]
    numbers = {name: value for name, value in values.items() if type(value) is int}
    try:
        return expression.value(numbers), expression.text
    except PlanError as error:
        return None, f"{parameter.name} = {error.marked_message}"


def _is_absent(
    parameter: Parameter, config: Mapping[str, object], options: Mapping[str, OptionValue], absent: Collection[str]
) -> bool:
    """Whether an unknown parameter follows from keys that config.json does not have."""
    if any(config_value(config, key) is not None for key in parameter.config):
        return False
    expression = parameter.default
    if parameter.by:
        expression = next(item for key, item in parameter.choices if is_same_option(options[parameter.by], key))
    return not isinstance(expression, Expression) or bool(expression.names & set(absent))


def _of_type(value: object, parameter: Parameter) -> Value | None:
    """Return a value of config.json if it has the type of the parameter's default."""
    if isinstance(parameter.default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(parameter.default, tuple):
        numbers = tuple(item for item in value if type(item) is int) if isinstance(value, list) else ()
        return numbers if isinstance(value, list) and len(numbers) == len(value) else None
    return value if type(value) is int and 0 <= value < 2**40 else None
