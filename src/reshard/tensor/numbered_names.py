"""Names that differ only in numbers, as those of a model's layers and experts do: taken apart and folded."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A leading zero belongs to the text: "00007" would not come back from the number 7.
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")

Template = tuple[str, ...]
"""The text between the numbers of a name."""


def split_numbers(name: str) -> tuple[Template, tuple[int, ...]]:
    """Take the numbers out of a name; the texts between them are one more than the numbers.

    Examples
    --------
    >>> split_numbers("model.layers.12.mlp.experts.7.w1")
    (('model.layers.', '.mlp.experts.', '.w', ''), (12, 7, 1))
    >>> split_numbers("part-00007")
    (('part-00007',), ())
    """
    pieces = _NUMBER.split(name)
    return tuple(pieces[::2]), tuple(map(int, pieces[1::2]))


def in_spans(numbers: Iterable[int], separator: str = "-") -> str:
    """Write ascending numbers, those that follow each other as a span.

    Examples
    --------
    >>> in_spans([0, 1, 2, 5, 7, 8]), in_spans(range(2, 30), "..")
    ('0-2,5,7-8', '2..29')
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}{separator}{b}" for a, b in spans)


def fold_names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Fold names that differ only in numbers, each with how many it stands for; in the order of their first.

    Examples
    --------
    >>> fold_names(["h.0.w", "h.1.w", "h.2.w", "end"])
    [('h.{0..2}.w', 3), ('end', 1)]
    >>> fold_names(["h.0.e.0", "h.0.e.1", "h.4.e.0", "h.4.e.1"])
    [('h.{0,4}.e.{0..1}', 4)]
    """
    found: dict[Template, dict[tuple[int, ...], None]] = {}
    for name in names:
        template, numbers = split_numbers(name)
        found.setdefault(template, {})[numbers] = None
    return [(_folded(template, list(numbers)), len(numbers)) for template, numbers in found.items()]


def _folded(template: Template, members: list[tuple[int, ...]]) -> str:
    text = template[0]
    for position, piece in enumerate(template[1:]):
        numbers = sorted({member[position] for member in members})
        text += (str(numbers[0]) if len(numbers) == 1 else f"{{{in_spans(numbers, '..')}}}") + piece
    return text
