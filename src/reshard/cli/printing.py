"""Results as text for people or JSON for programs, on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from .spelling import spelled

Facts = list[tuple[str, str]]

_UNIT, _MINUTE, _HOUR = 1024.0, 60, 3600


def in_bytes(nbytes: float) -> str:
    """Format a number of bytes for people.

    Examples
    --------
    >>> in_bytes(999), in_bytes(3 << 20)
    ('999 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < _UNIT:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= _UNIT
    return f"{nbytes:.2f} TiB"


def in_time(seconds: float) -> str:
    """Format a length of time for people.

    Examples
    --------
    >>> in_time(0.04), in_time(12.3), in_time(200), in_time(7500)
    ('0.04 s', '12 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def note_facts(notes: Iterable[str]) -> Facts:
    """Return notes as lines, with options spelled as flags."""
    return [("note", spelled(note)) for note in notes]


def print_json(body: object) -> None:
    """Print one JSON value."""
    sys.stdout.write(json.dumps(body, ensure_ascii=False, indent=1) + "\n")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print named lines."""
    for name, value in facts:
        sys.stdout.write(f"{name:<10} {value}\n")


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[object]], shown: int) -> None:
    """Print a table of at most ``shown`` rows, 0 for all; names are never shortened."""
    if not rows:
        return
    visible = [titles, *(tuple(map(str, row)) for row in (rows[:shown] if shown else rows))]
    widths = [max(map(len, column)) for column in zip(*visible, strict=True)]
    sys.stdout.write("\n")
    for row in visible:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")
    if len(visible) <= len(rows):
        sys.stdout.write(f"... and {len(rows) - len(visible) + 1} more\n")
