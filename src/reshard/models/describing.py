"""The operations that a row comes to, in words: the closed set that data can express."""

from __future__ import annotations

from collections.abc import Iterator

from .checking import shaped
from .family import Case, Family, Row
from .leaves import Leaf, leaves_of
from .pattern import TensorPattern

OPERATIONS = {
    "rename": ("another name, the same tensor", "rename"),
    "concat": ("parts follow one another along an axis", "split"),
    "split": ("an axis is cut in parts", "concat"),
    "group interleave": ("parts take turns along an axis, a group of rows each", "group split"),
    "group split": ("parts that take turns along an axis are taken apart", "group interleave"),
    "stack": ("tensors of one kind, one an expert, become one with a factor more", "unstack"),
    "unstack": ("a factor becomes a tensor for each of its positions", "stack"),
    "permute": ("axes change places", "permute"),
    "reshape by grouping": ("factors of an axis change places (rotary pairs, say)", "reshape by grouping"),
    "cast": ("another dtype, rounded to the nearest even", "none: what rounding took away is gone"),
    "block dequantise": ("blocks are multiplied by their scales", "none: the result is rounded, and nothing quantises"),
    "drop": ("not used", "none: the tensor is gone; what a network computes needs no inverse"),
    "tie": ("a copy of another tensor is written", "dropped, as a copy"),
}
"""Every operation: what it does, and its inverse or why there is none."""


def operations(row: Row, family: Family) -> tuple[str, ...]:
    """Name the operations of a row from Hugging Face to MindSpore, in any of its forms.

    Examples
    --------
    >>> from reshard.models.loading import load_family
    >>> llama = load_family("llama")
    >>> {operation for row in llama.namings[0].rows for operation in operations(row, llama)}
    ... # doctest: +SKIP
    {'rename', 'group interleave'}
    """
    found: set[str] = set()
    indices = {index.name for index in family.indices}
    for hf in row.hf:
        for ms in row.ms:
            found.update(_between(hf, ms, indices))
    return tuple(name for name in OPERATIONS if name in found) or ("rename",)


def _between(hf: Case, ms: Case, indices: set[str]) -> Iterator[str]:
    before = {leaf.label: leaf for leaf in _leaves([shaped(tensor, ms) for tensor in hf.tensors])}
    after = {leaf.label: leaf for leaf in _leaves([shaped(tensor, hf) for tensor in ms.tensors])}
    for label, leaf in after.items():
        yield from _moved(before[label], leaf, indices)
    yield from _joins([shaped(tensor, hf) for tensor in ms.tensors], hf, "concat", "group interleave")
    yield from _joins([shaped(tensor, ms) for tensor in hf.tensors], ms, "split", "group split")


def _leaves(tensors: list[TensorPattern]) -> list[Leaf]:
    return [leaf for tensor in tensors for leaf in leaves_of(tensor, _sizes(tensor))]


def _sizes(tensor: TensorPattern) -> dict[str, int]:
    return dict.fromkeys((factor for axis in tensor.axes or () for factor in axis.factors), 2)


def _moved(before: Leaf, after: Leaf, indices: set[str]) -> Iterator[str]:
    old = [(digit.factor, digit.axis) for digit in before.digits]
    new = [(digit.factor, digit.axis) for digit in after.digits]
    if {name for name, _ in new} - {name for name, _ in old} & indices:
        yield "stack"
    if {name for name, _ in old} - {name for name, _ in new} & indices:
        yield "unstack"
    kept = {name for name, _ in old} & {name for name, _ in new}
    order, now = ([name for name, _ in one if name in kept] for one in (old, new))
    if order != now:
        axes = dict(old)
        crossed = [axes[name] for name in now] != sorted(axes[name] for name in now)
        yield "permute" if crossed else "reshape by grouping"


def _joins(tensors: list[TensorPattern], other: Case, plain: str, in_turn: str) -> Iterator[str]:
    """Yield what joins parts on one side that are tensors of their own on the other."""
    apart = {tensor.label for tensor in other.tensors if tensor.labels == (tensor.label,)}
    for tensor in tensors:
        for axis in tensor.axes or ():
            if set(axis.labels) & apart:
                yield in_turn if not axis.alternatives[0].label else plain
