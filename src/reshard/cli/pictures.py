"""A tensor's boxes drawn with characters: who holds which, in letters and, where the terminal has them, colours."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence

from ..planning.ownership import TensorGrid
from ..tensor import Shape
from ..tensor.numbered_names import in_spans
from .printing import Facts, plain, print_facts
from .terminal import is_colored

_WIDTH = 100  # of what is no terminal
_MOST_ROWS = 16
_MOST_LETTERS = 40
_FULL_ROWS = 8  # rows up to which a cell has a line for its letter and one for its ranks
_BACKGROUNDS = (75, 209, 78, 222, 218, 117, 174, 149, 147, 179, 115, 182)  # of the terminal's 256 colours


def show_pictures(grids: Sequence[TensorGrid]) -> None:
    """Draw tensors' grids on standard output, as wide as the terminal is."""
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((_WIDTH, 24)).columns if is_terminal else _WIDTH
    for number, grid in enumerate(grids):
        sys.stdout.write("\n" * bool(number))
        print_facts(_facts(grid))
        sys.stdout.write("\n")
        for line in draw(grid, width, is_colored=is_colored(sys.stdout)):
            sys.stdout.write(f"{line}\n")


def draw(grid: TensorGrid, width: int, *, is_colored: bool = False) -> list[str]:
    """Return the lines of a tensor's picture, at most ``width`` columns wide.

    Examples
    --------
    >>> from reshard.planning.ownership import strategy_grids
    >>> from reshard.tensor import Layout, Strategy
    >>> grid, = strategy_grids(Strategy(4, ({"w": Layout((2, 2), ((0,), ()))},)), "w")
    >>> print("\\n".join(draw(grid, 40)))
      0           1
    0 ┌───────────┐
      │     A     │
      │ ranks 0,2 │
    1 ├───────────┤
      │     B     │
      │ ranks 1,3 │
    2 └───────────┘
    """
    return [line.rstrip() for line in _Picture(grid, width, is_colored=is_colored).lines()]


def _facts(grid: TensorGrid) -> Facts:
    cuts = [f"axis {axis} in {count} pieces" for axis, count in enumerate(grid.counts) if count > 1]
    copies = sorted(set(map(len, grid.holders.values()))) or [0]
    who = "object" if grid.objects else "rank"
    each = f"each on {in_spans(copies)} {who}{'s' * (copies != [1])}"
    described = f", {grid.dtype.value} {list(grid.shape)}" if grid.dtype and grid.shape is not None else ""
    stages = [("stages", in_spans(grid.stages))] if grid.stages else []
    unknown = [("shape", "not known: numbers count pieces; with --for URL they count elements")]
    return [
        ("tensor", f"{grid.name}{described}"),
        *(unknown if grid.shape is None else []),
        *stages,
        ("cut", f"{' and '.join(cuts)}, {each}" if cuts else f"not at all, {each.removeprefix('each ')}"),
    ]


def letters(number: int) -> str:
    """Name a piece, as spreadsheets name columns.

    Examples
    --------
    >>> letters(0), letters(25), letters(26), letters(701)
    ('A', 'Z', 'AA', 'ZZ')
    """
    text = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        text = chr(ord("A") + letter) + text
    return text


class _Picture:
    """Lays the grid out on lines: one axis down, all others across; what has no room is left out in the middle."""

    def __init__(self, grid: TensorGrid, width: int, *, is_colored: bool) -> None:
        self._grid, self._is_colored = grid, is_colored
        counts = grid.counts
        first = next((axis for axis, count in enumerate(counts) if count > 1), -1)
        # A single cut along the last of several axes lies across, as the axis itself does.
        self._down = first if 0 <= first < len(counts) - 1 else -1
        self._across = [axis for axis in range(len(counts)) if axis != self._down]
        self._places = {place: number for number, place in enumerate(grid.holders)}
        row_count = counts[self._down] if self._down >= 0 else 1
        self._rows = _chosen(row_count, _MOST_ROWS)
        self._is_full = row_count <= _FULL_ROWS
        self._gutter = max([len(f"{self._edge(row)}") for row in range(row_count + 1)], default=1) + 1
        last = max((len(str(grid.stop[axis])) for axis in self._across), default=1)
        column_count = math.prod(counts[axis] for axis in self._across)
        for kind in ("named", "spans", "letters", "spans"):  # rather some with their ranks than all without
            self._texts = {place: self._text(place, kind) for place in grid.holders}
            self._cell = max([len(each) for texts in self._texts.values() for each in texts], default=1) + 2
            most = max(1, (width - self._gutter - max(1, last)) // (self._cell + 1))
            if column_count <= most and (kind != "letters" or len(grid.holders) <= _MOST_LETTERS):
                break
        self._has_legend = kind == "letters" or bool(grid.objects)
        self._is_full &= not self._has_legend
        self._columns = _chosen(column_count, most)

    def lines(self) -> list[str]:
        """Return the lines of the picture."""
        found = [self._axis_line(), self._rule(0, "┌┬┐")]
        for position, row in enumerate(self._rows):
            if row is None:
                found.append(" " * self._gutter + " ⋮")
                following = self._rows[position + 1 :][:1]
                found += [self._rule(next_row, "├┼┤") for next_row in following if next_row is not None]
                continue
            found += [self._line(row, at) for at in range(2 if self._is_full else 1)]
            is_last = position == len(self._rows) - 1
            found.append(self._rule(row + 1, "└┴┘" if is_last else "├┼┤"))
        return found + self._legend()

    def _text(self, place: Shape, kind: str) -> tuple[str, ...]:
        letter, spans = letters(self._places[place]), in_spans(self._grid.holders[place])
        if kind == "letters" or self._grid.objects:
            return (letter,)
        named = f"{'ranks' if len(self._grid.holders[place]) > 1 else 'rank'} {spans}" if kind == "named" else spans
        return (letter, named) if self._is_full else (f"{letter} {named}",)

    def _place(self, row: int, column: int) -> Shape:
        place = [0] * len(self._grid.counts)
        for axis in reversed(self._across):
            column, place[axis] = divmod(column, self._grid.counts[axis])
        if self._down >= 0:
            place[self._down] = row
        return tuple(place)

    def _edge(self, row: int) -> int | str:
        """Return the element at which a row begins; one past the last row that at which it ends."""
        if self._down < 0:
            return ""
        starts = self._grid.starts[self._down]
        return starts[row] if row < len(starts) else self._grid.stop[self._down]

    def _axis_line(self) -> str:
        """Write where the columns begin, if one axis alone lies across, and what the axes are."""
        cut = [axis for axis in self._across if self._grid.counts[axis] > 1]
        if len(cut) > 1 or not self._grid.counts:
            return " " * self._gutter + " " + ", ".join(f"axis {axis}" for axis in cut)
        axis = cut[0] if cut else self._across[-1]
        starts, line = [*self._grid.starts[axis], self._grid.stop[axis]], " " * self._gutter
        for column in self._columns:
            line += f"{'' if column is None else starts[column]}".ljust(self._cell + 1)
        return line + f"{self._grid.stop[axis]}"

    def _rule(self, row: int, corners: str) -> str:
        left, middle, right = tuple(corners)
        cells = middle.join(
            "─" * self._cell if column is not None else " ⋯ ".center(self._cell) for column in self._columns
        )
        return f"{self._edge(row)} ".rjust(self._gutter) + left + cells + right

    def _line(self, row: int, at: int) -> str:
        cells = []
        for column in self._columns:
            place = None if column is None else self._place(row, column)
            text = self._texts[place][at] if place in self._texts else ""
            cells.append(self._colored(text.center(self._cell), place))
        return " " * self._gutter + "│" + "│".join(cells) + "│"

    def _colored(self, text: str, place: Shape | None) -> str:
        if not self._is_colored or place not in self._places:
            return text
        return f"\x1b[30;48;5;{_BACKGROUNDS[self._places[place] % len(_BACKGROUNDS)]}m{text}\x1b[0m"

    def _legend(self) -> list[str]:
        if not self._has_legend:
            return []
        found = []
        for place, number in list(self._places.items())[:_MOST_LETTERS]:
            holders = self._grid.holders[place]
            objects = [plain(self._grid.objects[each], is_line=True) for each in holders] if self._grid.objects else []
            names = ", ".join(objects[:3]) + (", ..." if len(objects) > 3 else "")
            found.append(f"{letters(number)}  {names or f'ranks {in_spans(holders)}'}")
        left = len(self._places) - len(found)
        return ["", *found, *([f"... and {left} more"] if left > 0 else [])]


def _chosen(count: int, most: int) -> Sequence[int | None]:
    """Return which of so many rows or columns are drawn; None stands for those left out in the middle."""
    if count <= most:
        return range(count)
    if most < 3:
        return [*range(max(1, most - 1)), None]
    head = (most - 1) // 2 + (most - 1) % 2
    return [*range(head), None, *range(count - (most - 1 - head), count)]
