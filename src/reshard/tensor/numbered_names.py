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


def spans_of(numbers: Iterable[int]) -> list[str]:
    """Write ascending numbers, those that follow each other as one span.

    Examples
    --------
    >>> spans_of([0, 1, 2, 5, 7, 8])
    ['0-2', '5', '7-8']
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return [str(a) if a == b else f"{a}-{b}" for a, b in spans]


def in_spans(numbers: Iterable[int]) -> str:
    """Write ascending numbers in little room.

    Examples
    --------
    >>> in_spans([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    return ",".join(spans_of(numbers))
