"""Lines that differ only in the numbers of layers, experts and ranks, folded into one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import prod

# Numbers in names, like layers.12.mlp and rank_3, and those of ranks in words; sizes and shapes stay apart.
_NUMBER = re.compile(r"(?:(?<=[A-Za-z_]\.)|(?<=\brank[_ ]))(0|[1-9]\d{0,8})(?![\w-]|\.\d)")

_Sets = tuple[frozenset[int], ...]
"""For each number of a line the values that it takes: the line stands for all combinations of them."""


def folded(lines: Iterable[str]) -> list[str]:
    """Fold lines that are alike but for numbers in names, in the order in which they first occur.

    Each line of the result is followed by how many it stands for. Nothing is lost: the braces of a line stand for all
    combinations of their numbers, and for no others.

    Examples
    --------
    >>> folded([f"layers.{n}.norm.weight: missing" for n in range(2, 30)] + ["lm_head.weight: missing"])
    ['layers.{2..29}.norm.weight: missing (28)', 'lm_head.weight: missing']
    >>> folded(f"layers.{n}.experts.{e}.w" for n in (1, 2, 5) for e in range(8))
    ['layers.{1,2,5}.experts.{0..7}.w (24)']
    >>> folded(["a.0.w [1, 2]", "a.1.w [1, 3]"])
    ['a.0.w [1, 2]', 'a.1.w [1, 3]']
    """
    alike: dict[tuple[str, ...], dict[_Sets, None]] = {}
    for line in lines:
        parts = _NUMBER.split(line)
        numbers = tuple(frozenset((int(digits),)) for digits in parts[1::2])
        alike.setdefault(tuple(parts[::2]), {})[numbers] = None
    found: list[str] = []
    for between, values in alike.items():
        for sets in _merged(list(values)):
            count = prod(map(len, sets))
            found.append(_joined(between, sets) + f" ({count})" * (count > 1))
    return found


def in_braces(numbers: Iterable[int]) -> str:
    """Write a set of numbers as a shell's braces; a single one as it is.

    Examples
    --------
    >>> in_braces([3, 1, 2]), in_braces([0, 1, 5, 6, 7]), in_braces([4])
    ('{1..3}', '{0,1,5..7}', '4')
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(runs) == 1 and len(runs[0]) == 1:
        return str(runs[0][0])
    return "{" + ",".join(f"{r[0]}..{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in runs) + "}"


def _merged(found: list[_Sets]) -> list[_Sets]:
    """Merge combinations that differ in one number alone: that of experts first, then that of layers."""
    for at in reversed(range(len(found[0]))):
        rows: dict[_Sets, frozenset[int]] = {}
        for sets in found:
            others = sets[:at] + sets[at + 1 :]
            rows[others] = rows.get(others, frozenset()) | sets[at]
        found = [(*others[:at], values, *others[at:]) for others, values in rows.items()]
    return found


def _joined(between: Sequence[str], sets: _Sets) -> str:
    numbers = (*map(in_braces, sets), "")
    return "".join(text + number for text, number in zip(between, numbers, strict=True))
