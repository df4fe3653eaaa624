"""Columns of data that a page carries: names by template, numbers as differences: large models stay small."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, pairwise
from typing import Any

from ...tensor.numbered_names import Template, split_numbers
from ..printing import plain


class NameColumn:
    """Names, each as the number of its template and the numbers in it: layers and experts repeat all the rest.

    Examples
    --------
    >>> column = NameColumn(["h.0.w", "h.1.w"])
    >>> column.to_json()
    {'templates': [['h.', '.w']], 'of': [0, 0], 'numbers': [0, 1]}
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._templates: dict[Template, int] = {}
        self._of: list[int] = []
        self._numbers: list[int] = []
        for name in names:
            self.add(name)

    def add(self, name: str) -> int:
        """Append a name, escaped as a terminal would show it; return the number of its template."""
        template, numbers = split_numbers(plain(name, is_line=True))
        number = self._templates.setdefault(template, len(self._templates))
        self._of.append(number)
        self._numbers += numbers
        return number

    def to_json(self) -> dict[str, Any]:
        """Express it in JSON's types."""
        return {"templates": list(map(list, self._templates)), "of": self._of, "numbers": self._numbers}


def differences(numbers: Iterable[int]) -> list[int]:
    """Return the first number and then the difference of each from the one before.

    Examples
    --------
    >>> differences([8, 9, 7])
    [8, 1, -2]
    """
    return [b - a for a, b in pairwise(chain((0,), numbers))]
