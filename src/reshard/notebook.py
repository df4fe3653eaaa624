"""How values show themselves: in one line, and in notebooks as HTML with tables that fold."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice

from .errors import redacted

_MOST_ROWS = 200
_LONGEST = 300
# What turns the direction of text around, and control characters: HTML has no way to escape them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is folded until it is opened; of its ``count`` rows the first are shown."""

    name: str
    head: Sequence[str]
    rows: Iterable[Sequence[object]]
    count: int


@dataclass(frozen=True, slots=True)
class Picture:
    """What a value shows: a line, and for notebooks also notes and tables."""

    line: str
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


class Shown:
    """A value with a short ``repr``, and HTML for notebooks.

    Examples
    --------
    >>> class Model(Shown):
    ...     def picture(self):
    ...         return Picture("1 tensor", [Table("tensors", ["name"], [["<w>"]], 1)])
    >>> Model()
    <Model 1 tensor>
    >>> "<td>&lt;w&gt;</td>" in Model()._repr_html_()
    True
    """

    __slots__ = ()

    @abstractmethod
    def picture(self) -> Picture:
        """Return what is shown; it derives nothing that takes long."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_plain(self.picture().line)}>"

    def _repr_html_(self) -> str:
        """Return HTML, as IPython asks for it."""
        picture = self.picture()
        notes = "".join(f"<li>{in_html(note)}</li>" for note in islice(picture.notes, _MOST_ROWS))
        return (
            f"<div><b>{type(self).__name__}</b> {in_html(picture.line)}"
            f"{f'<ul>{notes}</ul>' if notes else ''}{''.join(map(_folded, picture.tables))}</div>"
        )


def _folded(table: Table) -> str:
    if not table.count:
        return ""
    head = "".join(f"<th>{in_html(name)}</th>" for name in table.head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{in_html(cell)}</td>' for cell in row)}</tr>" for row in islice(table.rows, _MOST_ROWS)
    )
    left = table.count - _MOST_ROWS
    more = f"<tr><td colspan={len(table.head)}>and {left} more</td></tr>" if left > 0 else ""
    summary = f"<summary>{in_html(table.name)} ({table.count})</summary>"
    return f"<details>{summary}<table><tr>{head}</tr>{rows}{more}</table></details>"


def in_html(value: object) -> str:
    """Return a value as HTML text, plainly."""
    return escape(_plain(str(value)))


def _plain(text: str) -> str:
    """Leave out secrets of URLs, and escape what would turn a line around: names may be anybody's."""
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), redacted(text))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
