"""Arithmetic of the data files: integers, names, ``+ - * /`` and parentheses, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import FormatError, PlanError

_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*|[0-9]{1,9}|[-+*/()])")
_Tree = int | str | tuple[str, "_Tree", "_Tree"]


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression.

    Parameters
    ----------
    text
        As it was written.
    tree
        A number, a name, or an operator with both its sides.

    Examples
    --------
    >>> parse_expression("h / heads", "").value({"h": 64, "heads": 8})
    8
    """

    text: str
    tree: _Tree

    @property
    def names(self) -> frozenset[str]:
        """The names it needs."""
        return frozenset(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", self.text))

    def value(self, values: Mapping[str, int]) -> int:
        """Compute it; divisions must leave no remainder.

        Raises
        ------
        PlanError
            A division leaves a remainder or divides by zero.
        """
        if isinstance(self.tree, str):  # a plain name: nearly all, in names of tensors
            return values[self.tree]
        return self._value(self.tree, values)

    def _value(self, tree: _Tree, values: Mapping[str, int]) -> int:
        if isinstance(tree, int):
            return tree
        if isinstance(tree, str):
            return values[tree]
        operator, left, right = tree
        return self._apply(operator, self._value(left, values), self._value(right, values))

    def _apply(self, operator: str, left: int, right: int) -> int:
        if operator == "/" and (right == 0 or left % right):
            raise PlanError(f"{self.text}: {left} / {right} is no whole number")
        return _OPERATORS[operator](left, right)


_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left // right,
}


def parse_expression(text: str, where: str) -> Expression:
    """Parse an expression.

    Raises
    ------
    FormatError
        It is none.

    Examples
    --------
    >>> parse_expression("layers + 2 * j", "").tree
    ('+', 'layers', ('*', 2, 'j'))
    >>> parse_expression("a b", "x.yaml")
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: x.yaml: expression: expected numbers, names, + - * / and parentheses, found 'a b'
    """
    parser = _Parser(_TOKEN.findall(text)) if _TOKEN.sub("", text).strip() == "" else _Parser([])
    tree = parser.chain(("+-", "*/"))
    if tree is None or parser.tokens:
        expected = "numbers, names, + - * / and parentheses"
        raise FormatError("expression", where=where, expected=expected, found=repr(text))
    return Expression(text, tree)


class _Parser:
    """Recursive descent over two levels of operators; None stands for what is no expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens

    def chain(self, levels: tuple[str, ...]) -> _Tree | None:
        if not levels:
            return self._atom()
        tree = self.chain(levels[1:])
        while tree is not None and self.tokens and self.tokens[0] in levels[0]:
            operator = self.tokens.pop(0)
            right = self.chain(levels[1:])
            tree = None if right is None else (operator, tree, right)
        return tree

    def _atom(self) -> _Tree | None:
        word = self.tokens.pop(0) if self.tokens else ")"
        if word == "(":
            tree = self.chain(("+-", "*/"))
            return tree if self.tokens and self.tokens.pop(0) == ")" else None
        if word.isdigit():
            return int(word)
        return word if word.isidentifier() else None
