"""Values of parsed JSON, each of the type it should have, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TypeVar

from ..errors import FormatError
from ..formats.strict_json import json_kind, shown
from .outputs.output import MAX_NAME_LENGTH

MAX_INTEGER = 2**63 - 1
_Choice = TypeVar("_Choice", bound=StrEnum)


def refused(what: str, expected: str = "", found: object = "") -> FormatError:
    """The error for one broken rule; the caller says where."""
    return FormatError(what, expected=expected, found=shown(found) if found != "" else "")


def integer(value: object, what: str, *, least: int = 0, most: int = MAX_INTEGER) -> int:
    """A number within bounds, and no boolean."""
    if type(value) is not int or not least <= value <= most:
        raise refused(what, f"an integer from {least} to {most}", value)
    return value


def integers(value: object, what: str) -> tuple[int, ...]:
    """A list of integers that are not negative."""
    return tuple(integer(each, what) for each in items(value, what))


def text(value: object, what: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise refused(what, "a string", json_kind(value))
    return value


def name(value: object, what: str) -> str:
    """A string of a tensor name's length."""
    if len(text(value, what)) > MAX_NAME_LENGTH:
        raise refused(what, f"at most {MAX_NAME_LENGTH} characters", value)
    return str(value)


def choice(value: object, what: str, of: type[_Choice]) -> _Choice:
    """One of an enumeration's values."""
    if not isinstance(value, str) or value not in list(of):
        raise refused(what, f"one of {', '.join(of)}", value)
    return of(value)


def items(value: object, what: str, *counts: int) -> list[object]:
    """A list, of one of these lengths if any are given."""
    if not isinstance(value, list) or (counts and len(value) not in counts):
        expected = f"an array of {' or '.join(map(str, counts))}" if counts else "an array"
        raise refused(what, expected, value if isinstance(value, list) else json_kind(value))
    return value


def mapping(value: object, what: str) -> Mapping[str, object]:
    """An object."""
    if not isinstance(value, dict):
        raise refused(what, "an object", json_kind(value))
    return value


def fields_of(value: object, what: str, required: Collection[str], optional: Collection[str] = ()) -> dict[str, object]:
    """An object with these keys and no others."""
    found = dict(mapping(value, what))
    if not set(required) <= found.keys() <= {*required, *optional}:
        raise refused(f"{what}: wrong keys", ", ".join(required), sorted(found))
    return found


def texts(value: object, what: str) -> tuple[str, ...]:
    """A list of strings."""
    return tuple(text(each, what) for each in items(value, what))


def counters(value: object, what: str) -> dict[str, int | float | str | bool | None]:
    """An object of numbers, text and null."""
    found = mapping(value, what)
    wrong = [each for each in found.values() if not isinstance(each, int | float | str | bool | None)]
    if wrong:
        raise refused(what, "numbers, text or null", wrong[0])
    return dict(found)  # type: ignore[arg-type]
