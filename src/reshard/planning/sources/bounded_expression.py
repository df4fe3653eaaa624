"""Regular expressions of users, compared with names of strangers: searches that are given up."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import regex

from ...errors import UsageError
from ...formats.strict_json import shown

T = TypeVar("T")

_LONGEST_S = 2.0
_MAX_LENGTH = 1000


@dataclass(slots=True)
class BoundedExpression:
    """An expression in Python's syntax whose searches take a few seconds at most, all together.

    Raise UsageError for text that is no expression, and when the time is up.

    Examples
    --------
    >>> BoundedExpression("^layers").search("layers.1"), BoundedExpression("(a|aa)+$").substitute("x", "baa")
    (True, 'bx')
    """

    text: str
    _compiled: regex.Pattern[str] = field(init=False, repr=False)
    _left_s: float = field(default=_LONGEST_S, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.text) > _MAX_LENGTH:
            raise UsageError(f"not a regular expression: expected at most {_MAX_LENGTH} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # brackets within a set are taken as they are
            try:
                re.compile(self.text)  # the other module takes more than Python's syntax
                self._compiled = regex.compile(self.text, regex.VERSION0)
            # It may repeat too often, or nest too deeply.
            except (re.error, regex.error, OverflowError, RecursionError, MemoryError) as error:
                raise UsageError(f"not a regular expression: {error}") from error

    def search(self, name: str) -> bool:
        """Return whether the expression is found anywhere in a name."""
        return self._within_time(name, lambda timeout: self._compiled.search(name, timeout=timeout) is not None)

    def check_template(self, template: str) -> None:
        """Raise UsageError for a new name that refers to groups which the expression does not have."""
        try:
            re.compile(self.text).sub(template, "")  # reads the template, whether or not there is a match
        except (re.error, IndexError) as error:  # an IndexError for a group's name that is unknown
            raise UsageError(f"the new name is not a template: {error}") from error

    def substitute(self, template: str, name: str) -> str | None:
        """Replace every place where the expression is found in a name; None if there is none."""

        def replaced(timeout: float) -> str | None:
            new, count = self._compiled.subn(template, name, timeout=timeout)
            return new if count else None

        return self._within_time(name, replaced)

    def _within_time(self, name: str, action: Callable[[float], T]) -> T:
        started_s = time.perf_counter()
        try:
            if self._left_s <= 0:
                raise TimeoutError
            return action(self._left_s)
        except TimeoutError:
            raise UsageError(
                f"regex:{shown(self.text)} takes too long; the names compared with it end at {shown(name)}",
                hint="Repetitions within repetitions, like (a*)*, make an expression slow.",
            ) from None
        finally:
            self._left_s -= time.perf_counter() - started_s
