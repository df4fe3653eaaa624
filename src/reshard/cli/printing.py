"""Results as text for people or JSON for programs, on stdout."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from ..errors import ReshardError, redacted
from ..figures import in_bytes as in_bytes
from ..figures import in_time as in_time
from .spelling import Spell, spelled
from .terminal import Style, styled, verbosity

Facts = list[tuple[str, str]]

# What a terminal obeys: control characters of either set, and those that turn the direction of text around. Halves of
# surrogate pairs are here too: no stream can encode them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_LEAST_COLUMN = 12


_RANK = re.compile(r"\brank_([0-9]{1,9})\b")


def rank_order(key: str) -> int:
    """Return what sorts the objects of ranks as people count them, and leaves other objects behind them as they are.

    Examples
    --------
    >>> sorted(["rank_10/a", "rank_2/a", "model.json", "index.json"], key=rank_order)
    ['rank_2/a', 'rank_10/a', 'model.json', 'index.json']
    """
    found = _RANK.search(key)
    return int(found[1]) if found else sys.maxsize


def plain(text: str, *, is_line: bool = False) -> str:
    """Escape what a terminal would obey, and leave out secrets of URLs: names and messages may be anybody's.

    Line breaks and tabs stay, unless the text must be one line.

    Examples
    --------
    >>> print(plain("a\\x1b[2Jb"), plain("one\\ntwo", is_line=True))
    a\\x1b[2Jb one\\ntwo
    """
    if is_line:
        text = text.replace("\n", "\\n").replace("\t", "\\t")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), redacted(text))


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a text and a line break, plainly; to standard output unless another stream is given."""
    (stream or sys.stdout).write(plain(text) + "\n")


def write_error(error: ReshardError, spell: Spell, of: str = "") -> None:
    """Write an error for people to stderr, with its options as ``spell`` has them; ``of`` names what it is about."""
    text = plain(error.text(spell, is_whole=verbosity() > 0, more=" (-v lists all)"))
    sys.stderr.write(f"{styled('error:', 'error', sys.stderr)} {plain(of)}{': ' if of else ''}{text}\n")


def note_facts(notes: Iterable[str]) -> Facts:
    """Return notes as lines, with options spelled as flags."""
    return [("note", spelled(note)) for note in notes]


def print_json(body: object) -> None:
    """Print one JSON value."""
    text = json.dumps(body, ensure_ascii=False, indent=1)
    if redacted(text) != text:
        text = json.dumps(_redacted_values(body), ensure_ascii=False, indent=1)
    # JSON's own escapes cover only the first set of control characters.
    sys.stdout.write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def _redacted_values(body: object) -> object:
    if isinstance(body, Mapping):
        return {redacted(str(key)): _redacted_values(value) for key, value in body.items()}
    if isinstance(body, list | tuple):
        return [_redacted_values(value) for value in body]
    return redacted(body) if isinstance(body, str) else body


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print named lines."""
    for name, value in facts:
        style: Style = "note" if name == "note" else "name"
        sys.stdout.write(f"{styled(f'{name:<10}', style)} {plain(value, is_line=True)}\n")


def _narrowed(widths: Sequence[int], most: int) -> list[int]:
    """Make the widest columns of a table narrower until its lines fit, as far as something is still to be read."""
    found = list(widths)
    while sum(found) + 2 * (len(found) - 1) > most and max(found) > _LEAST_COLUMN:
        found[found.index(max(found))] -= 1
    return found


def _shortened(cell: str, width: int) -> str:
    """Return a cell of a table, the middle of it left out where it is too long: names differ at their ends.

    Examples
    --------
    >>> _shortened("model.layers.0.weight", 12)
    'model…weight'
    """
    if len(cell) <= width:
        return cell
    tail = width // 2
    return f"{cell[: width - tail - 1]}…{cell[len(cell) - tail :]}"


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[object]], shown: int) -> None:
    """Print a table of at most ``shown`` rows, 0 for all; cells are shortened only to fit a terminal."""
    if not rows:
        return
    chosen = rows[:shown] if shown else rows
    visible = [titles, *(tuple(plain(str(cell), is_line=True) for cell in row) for row in chosen)]
    widths = [max(map(len, column)) for column in zip(*visible, strict=True)]
    if sys.stdout.isatty():
        widths = _narrowed(widths, shutil.get_terminal_size().columns)
        visible = [tuple(map(_shortened, row, widths)) for row in visible]
    sys.stdout.write("\n")
    for number, row in enumerate(visible):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        sys.stdout.write(f"{styled(line, 'title') if number == 0 else line}\n")
    if len(visible) <= len(rows):
        sys.stdout.write(f"... and {len(rows) - len(visible) + 1} more\n")
