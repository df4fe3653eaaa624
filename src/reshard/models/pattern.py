"""How a row of a family writes a tensor: ``"layers.{i}.w_qkv.weight [(g (q: r d | k: d | v: d)) h]"``.

The name comes first; braces hold an index, or arithmetic over indices and parameters. The brackets hold
the axes, outermost first. An axis is a factor or, in parentheses, a product of factors, outermost first,
or alternatives that follow one another, each with a label and the factors of its extent. ``[...]``
matches any shape.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass

from ..errors import FormatError, PlanError

# Arithmetic: integers, names, + - * / and parentheses, and nothing else.

# Longer than anyone writes: what is parsed recursively, or stands for products, has a bound.
_LONGEST_TEXT = 200
_MOST_PARTS = 16
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXPRESSION_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*|[0-9]{1,9}|[-+*/()])")
_PRECEDENCE = ("+-", "*/")  # the loosest first
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
_Tree = int | str | tuple[str, "_Tree", "_Tree"]


@dataclass(frozen=True, slots=True)
class Expression:
    """Integer arithmetic over named values: a number, a name, or an operator with both operands.

    Examples
    --------
    >>> parse_expression("h / heads", "").value({"h": 64, "heads": 8})
    8
    """

    text: str
    tree: _Tree

    @property
    def names(self) -> frozenset[str]:
        """Names that the expression refers to."""
        return frozenset(_IDENTIFIER.findall(self.text))

    def value(self, values: Mapping[str, int]) -> int:
        """Evaluate the expression; raise PlanError if a division leaves a remainder or divides by zero."""
        if isinstance(self.tree, str):  # the fast path: nearly every brace in a name holds a plain index
            return values[self.tree]
        return self._value(self.tree, values)

    def _value(self, tree: _Tree, values: Mapping[str, int]) -> int:
        if isinstance(tree, int):
            return tree
        if isinstance(tree, str):
            return values[tree]
        left, right = self._value(tree[1], values), self._value(tree[2], values)
        if tree[0] == "/" and (right == 0 or left % right):
            raise PlanError(f"{self.text}: {left} / {right} is not a whole number")
        value: int = _OPERATORS[tree[0]](left, right)
        return value


def parse_expression(text: str, where: str) -> Expression:
    """Parse integer arithmetic; raise FormatError if the text is none.

    Examples
    --------
    >>> parse_expression("layers + 2 * j", "").tree
    ('+', 'layers', ('*', 2, 'j'))
    >>> parse_expression("a b", "x.yaml")
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: x.yaml: expression: expected numbers, names, + - * / and parentheses, found 'a b'
    """
    is_clean = len(text) <= _LONGEST_TEXT and not _EXPRESSION_TOKEN.sub("", text).strip()
    tokens = _EXPRESSION_TOKEN.findall(text) if is_clean else []
    tree = _chain(tokens, _PRECEDENCE)
    if tree is None or tokens:
        expected = "numbers, names, + - * / and parentheses"
        raise FormatError("expression", where=where, expected=expected, found=repr(text))
    return Expression(text, tree)


def _chain(tokens: list[str], levels: tuple[str, ...]) -> _Tree | None:
    """Take operands joined by left-associative operators off the tokens; None if there is no expression."""
    if not levels:
        return _operand(tokens)
    tree = _chain(tokens, levels[1:])
    while tree is not None and tokens and tokens[0] in levels[0]:
        symbol = tokens.pop(0)
        right = _chain(tokens, levels[1:])
        tree = None if right is None else (symbol, tree, right)
    return tree


def _operand(tokens: list[str]) -> _Tree | None:
    word = tokens.pop(0) if tokens else ")"
    if word == "(":
        tree = _chain(tokens, _PRECEDENCE)
        return tree if tokens and tokens.pop(0) == ")" else None
    if word.isdigit():
        return int(word)
    return word if word.isidentifier() else None


# Names and tensors.

_AXIS_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*:?|[()|])")
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A tensor name with places for indices.

    Examples
    --------
    >>> parse_name("layers.{layers + j}.norm", "").render({"layers": 61, "j": 0})
    'layers.61.norm'
    """

    texts: tuple[str, ...]
    expressions: tuple[Expression, ...]

    @property
    def names(self) -> KeysView[str]:
        """Indices and parameters in the pattern, in the order of their first use."""
        return dict.fromkeys(name for expression in self.expressions for name in sorted(expression.names)).keys()

    @property
    def key(self) -> str:
        """The pattern with ``{}`` for every index: what ``name_key`` returns for each of its names."""
        return "{}".join(self.texts)

    def render(self, values: Mapping[str, int]) -> str:
        """Return the name for these values of its indices."""
        parts = [self.texts[0]]
        for expression, text in zip(self.expressions, self.texts[1:], strict=True):
            parts += str(expression.value(values)), text
        return "".join(parts)

    def __str__(self) -> str:
        braces = [f"{{{expression.text}}}" for expression in self.expressions]
        return "".join(part for pair in zip(self.texts, [*braces, ""], strict=True) for part in pair)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A product of factors, outermost first; labelled where the axis has several of them in a row."""

    label: str
    items: tuple[str | AxisPattern, ...]


@dataclass(frozen=True, slots=True)
class AxisPattern:
    """An axis, or a parenthesised part of one: alternatives that follow one another, or one without a label."""

    alternatives: tuple[Alternative, ...]

    @property
    def factors(self) -> Iterator[str]:
        """Every factor, nested ones included."""
        for alternative in self.alternatives:
            for item in alternative.items:
                yield from item.factors if isinstance(item, AxisPattern) else [item]

    @property
    def leading(self) -> str:
        """The outermost factor; empty if the axis consists of parts that follow one another."""
        first = self.alternatives[0].items[0] if len(self.alternatives) == 1 and self.alternatives[0].items else ""
        return first if isinstance(first, str) else first.leading

    @property
    def labels(self) -> Iterator[str]:
        """Every label, nested ones included."""
        for alternative in self.alternatives:
            if alternative.label:
                yield alternative.label
            for item in alternative.items:
                yield from item.labels if isinstance(item, AxisPattern) else []

    def __str__(self) -> str:
        texts = [f"{a.label}: " * bool(a.label) + " ".join(map(str, a.items)) for a in self.alternatives]
        alone = len(texts) == 1 and not self.alternatives[0].label and len(self.alternatives[0].items) == 1
        return texts[0] if alone else f"({' | '.join(text.strip() for text in texts)})"


@dataclass(frozen=True, slots=True)
class TensorPattern:
    """A tensor of a row, with the source text of its axes; without axes any shape will do.

    The label ties the tensor to its part on the other side, unless its axes carry labels of their own.
    """

    label: str
    name: NamePattern
    axes: tuple[AxisPattern, ...] | None
    text: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the tensor's parts."""
        return tuple(label for axis in self.axes or () for label in axis.labels) or (self.label,)

    @property
    def factors(self) -> set[str]:
        """Every factor of every axis."""
        return {factor for axis in self.axes or () for factor in axis.factors}


def name_key(name: str) -> str:
    """Replace every number between dots by ``{}``.

    Examples
    --------
    >>> name_key("model.layers.12.mlp.experts.3.w1")
    'model.layers.{}.mlp.experts.{}.w1'
    """
    return _NUMBER.sub("{}", name)


def parse_name(text: str, where: str) -> NamePattern:
    """Parse a name with indices in braces; raise FormatError if braces do not match or hold no expressions."""
    pieces = re.split(r"\{([^{}]*)\}", text)
    if re.search(r"[{}]", "".join(pieces)) or " " in "".join(pieces[::2]):
        raise FormatError("name", where=where, expected="indices in braces and no blanks", found=repr(text))
    return NamePattern(tuple(pieces[::2]), tuple(parse_expression(piece, where) for piece in pieces[1::2]))


def parse_tensor(label: str, text: str, where: str) -> TensorPattern:
    """Parse a tensor of a row: a name and, in brackets, its axes; raise FormatError for any other text.

    Examples
    --------
    >>> tensor = parse_tensor("", "w.{i} [(f (gate: | up:)) h]", "")
    >>> tensor.labels, [list(axis.factors) for axis in tensor.axes]
    (('gate', 'up'), [['f'], ['h']])
    """
    match = re.fullmatch(r"([^\[\]]*?)(?: \[([^\[\]]*)\])?", text)
    if not match:
        raise FormatError("tensor", where=where, expected="name [axes]", found=repr(text))
    name, shape = parse_name(match[1], where), match[2]
    if shape is None or shape == "...":
        return TensorPattern(label, name, None, shape or "")
    return TensorPattern(label, name, _parse_axes(shape, where), shape)


def _parse_axes(text: str, where: str) -> tuple[AxisPattern, ...]:
    is_clean = len(text) <= _LONGEST_TEXT and text.count("|") < _MOST_PARTS and not _AXIS_TOKEN.sub("", text).strip()
    tokens = _AXIS_TOKEN.findall(text) if is_clean else [")"]
    items = _items(tokens)
    if tokens:
        raise FormatError("axes", where=where, expected="factors, (products) and (a: b | c: d)", found=repr(text))
    return tuple(i if isinstance(i, AxisPattern) else AxisPattern((Alternative("", (i,)),)) for i in items)


def _items(tokens: list[str]) -> tuple[str | AxisPattern, ...]:
    """Take items off the tokens up to the first token that cannot begin one."""
    items: list[str | AxisPattern] = []
    while tokens and (tokens[0] == "(" or tokens[0].isidentifier()):
        word = tokens.pop(0)
        items.append(_parenthesised(tokens) if word == "(" else word)
    return tuple(items)


def _parenthesised(tokens: list[str]) -> AxisPattern:
    alternatives = [_alternative(tokens)]
    while tokens and tokens[0] == "|":
        tokens.pop(0)
        alternatives.append(_alternative(tokens))
    if not tokens or tokens.pop(0) != ")" or (len(alternatives) > 1 and not all(a.label for a in alternatives)):
        tokens.append(")")  # a left-over token is what _parse_axes reports
    return AxisPattern(tuple(alternatives))


def _alternative(tokens: list[str]) -> Alternative:
    label = tokens.pop(0)[:-1] if tokens and tokens[0].endswith(":") else ""
    return Alternative(label, _items(tokens))
