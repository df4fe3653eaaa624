"""Tensors as the rows write them: ``"layers.{i}.w_qkv.weight [(g (q: r d | k: d | v: d)) h]"``.

Before the brackets stands a name; what is in braces is an index, or arithmetic over indices and
parameters. In the brackets stand the axes, outermost first. An axis is a factor, or in parentheses a
product of factors, outermost first, or alternatives that follow one another, each with a label and
the factors of its extent. ``[...]`` stands for whatever shape the tensor has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import FormatError
from .expression import Expression, parse_expression

_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*:?|[()|])")
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A name with places for indices.

    Examples
    --------
    >>> parse_name("layers.{layers + j}.norm", "").render({"layers": 61, "j": 0})
    'layers.61.norm'
    """

    texts: tuple[str, ...]
    expressions: tuple[Expression, ...]

    @property
    def names(self) -> frozenset[str]:
        """Indices and parameters in it."""
        return frozenset().union(*(expression.names for expression in self.expressions))

    @property
    def ordered_names(self) -> tuple[str, ...]:
        """The same, as they stand in the name."""
        return tuple(dict.fromkeys(name for expression in self.expressions for name in sorted(expression.names)))

    @property
    def key(self) -> str:
        """What ``name_key`` makes of every name of this pattern."""
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
    """A product of factors; one of several that follow one another where the group has several."""

    label: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Alternatives that follow one another; a plain product has one, without a label."""

    alternatives: tuple[Alternative, ...]

    @property
    def factors(self) -> Iterator[str]:
        """Every factor in it."""
        for alternative in self.alternatives:
            for item in alternative.items:
                yield from item.factors if isinstance(item, Group) else [item]

    @property
    def labels(self) -> Iterator[str]:
        """Every label in it."""
        for alternative in self.alternatives:
            if alternative.label:
                yield alternative.label
            for item in alternative.items:
                yield from item.labels if isinstance(item, Group) else []

    def __str__(self) -> str:
        texts = [f"{a.label}: " * bool(a.label) + " ".join(map(str, a.items)) for a in self.alternatives]
        alone = len(texts) == 1 and not self.alternatives[0].label and len(self.alternatives[0].items) == 1
        return texts[0] if alone else f"({' | '.join(text.strip() for text in texts)})"


Item = str | Group


@dataclass(frozen=True, slots=True)
class TensorPattern:
    """A tensor of a row.

    Parameters
    ----------
    label
        Ties it to its part on the other side, unless its axes have labels of their own.
    name
        Its name.
    axes
        Its axes; None where any shape will do.
    text
        The axes as they were written.
    """

    label: str
    name: NamePattern
    axes: tuple[Group, ...] | None
    text: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of its parts."""
        found = tuple(label for axis in self.axes or () for label in axis.labels)
        return found or (self.label,)


def name_key(name: str) -> str:
    """Return a name with every number between dots as ``{}``.

    Examples
    --------
    >>> name_key("model.layers.12.mlp.experts.3.w1")
    'model.layers.{}.mlp.experts.{}.w1'
    """
    return _NUMBER.sub("{}", name)


def parse_name(text: str, where: str) -> NamePattern:
    """Parse a name with indices in braces.

    Raises
    ------
    FormatError
        The braces do not hold expressions.
    """
    pieces = re.split(r"\{([^{}]*)\}", text)
    if any(mark in piece for piece in pieces for mark in "{} []"[:2]) or " " in "".join(pieces[::2]):
        raise FormatError("name", where=where, expected="indices in braces and no blanks", found=repr(text))
    return NamePattern(tuple(pieces[::2]), tuple(parse_expression(piece, where) for piece in pieces[1::2]))


def parse_tensor(label: str, text: str, where: str) -> TensorPattern:
    """Parse a tensor of a row: a name and, in brackets, its axes.

    Raises
    ------
    FormatError
        It is neither.

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
    return TensorPattern(label, name, _axes(shape, where), shape)


def _axes(text: str, where: str) -> tuple[Group, ...]:
    tokens = _TOKEN.findall(text)
    if _TOKEN.sub("", text).strip():
        tokens = [")"]
    items = _items(tokens)
    if tokens:
        raise FormatError("axes", where=where, expected="factors, (products) and (a: b | c: d)", found=repr(text))
    return tuple(item if isinstance(item, Group) else Group((Alternative("", (item,)),)) for item in items)


def _items(tokens: list[str]) -> tuple[Item, ...]:
    """Take items off the tokens, up to what can be none; what is left over is the caller's."""
    items: list[Item] = []
    while tokens and (tokens[0] == "(" or tokens[0].isidentifier()):
        word = tokens.pop(0)
        items.append(_group(tokens) if word == "(" else word)
    return tuple(items)


def _group(tokens: list[str]) -> Group:
    alternatives = [_alternative(tokens)]
    while tokens and tokens[0] == "|":
        tokens.pop(0)
        alternatives.append(_alternative(tokens))
    if not tokens or tokens.pop(0) != ")" or (len(alternatives) > 1 and not all(a.label for a in alternatives)):
        tokens.append(")")  # left over, and so found by the caller
    return Group(tuple(alternatives))


def _alternative(tokens: list[str]) -> Alternative:
    label = tokens.pop(0)[:-1] if tokens and tokens[0].endswith(":") else ""
    return Alternative(label, _items(tokens))
