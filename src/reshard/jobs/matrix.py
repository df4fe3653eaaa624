"""The matrix of a job: several values for an option, one job for each combination."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_JOBS = 10_000

Choices = Sequence[tuple[str, Any]]
"""The values of one key, each with its label."""


def combinations(matrix: Mapping[str, Choices]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the labels and the values of each combination.

    Examples
    --------
    >>> list(combinations({"dtype": [("fp16", "fp16")], "n": [("one", 1), ("two", 2)]}))
    [(['fp16', 'one'], {'dtype': 'fp16', 'n': 1}), (['fp16', 'two'], {'dtype': 'fp16', 'n': 2})]
    """
    for chosen in itertools.product(*matrix.values()):
        yield [label for label, _ in chosen], {key: value for key, (_, value) in zip(matrix, chosen, strict=True)}


def label_of(value: object) -> str:
    """Name a value of a matrix: by the last part of a URL, without its suffix.

    Examples
    --------
    >>> label_of("s3://m/layouts/tp4.yaml"), label_of("0-7"), label_of(16)
    ('tp4', '0-7', '16')
    """
    last = str(value).rstrip("/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem if dot and not suffix.isdigit() else last) or "value"
