"""A checkpoint summed up by module: layers and experts that are alike are one line."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from ..tensor import TensorSpec
from ..tensor.numbered_names import in_spans, split_numbers
from .printing import in_bytes

_SEPARATOR = re.compile(r"(?<=[./])")
_MOST_COMPONENTS = 16  # names are anybody's, and this recurses


@dataclass(slots=True)
class Module:
    """The tensors below one component of their names."""

    children: dict[str, Module] = field(default_factory=dict)
    specs: list[tuple[str, TensorSpec]] = field(default_factory=list)
    tensor_count: int = 0
    nbytes: int = 0
    dtypes: set[str] = field(default_factory=set)
    kind: int = 0
    """Equal for modules that are alike: the same names below, of the same dtypes and shapes."""
    has_numbered: bool = False


@dataclass(frozen=True, slots=True)
class ModuleLine:
    """One line of a summary: a module, or ``alike_count`` of them; ``tensor_count`` and ``nbytes`` are of all."""

    name: str
    depth: int
    alike_count: int
    tensor_count: int
    nbytes: int
    dtypes: tuple[str, ...]


def module_lines(specs: Iterable[TensorSpec]) -> list[ModuleLine]:
    """Sum up tensors by module.

    Examples
    --------
    >>> from reshard.tensor import DType
    >>> names = ["embed.weight", *(f"h.{layer}.{part}.weight" for layer in range(3) for part in ("q", "k"))]
    >>> for line in module_lines(TensorSpec(name, DType.F16, (2, 2)) for name in names):
    ...     print("  " * line.depth + line.name, line.alike_count, line.tensor_count, line.nbytes)
    embed 1 1 8
    h.0-2 (3 alike) 3 6 48
      .q 3 3 24
      .k 3 3 24
    """
    root = Module()
    for spec in specs:
        node = root
        *path, leaf = _SEPARATOR.split(spec.name, maxsplit=_MOST_COMPONENTS)
        for component in path:
            below = node.children.get(component)
            node = below if below is not None else node.children.setdefault(component, Module())
        node.specs.append((leaf, spec))
    _sum_up(root, {})
    return list(_lines(root, "", 0, 1))


def module_rows(specs: Iterable[TensorSpec]) -> list[tuple[object, ...]]:
    """Return the lines as rows of a table: module, tensors, size, dtypes."""
    return [
        ("  " * line.depth + line.name, line.tensor_count, in_bytes(line.nbytes), ", ".join(line.dtypes))
        for line in module_lines(specs)
    ]


def _sum_up(node: Module, kinds: dict[Hashable, int]) -> None:
    below = []
    for component, child in node.children.items():
        _sum_up(child, kinds)
        node.tensor_count += child.tensor_count
        node.nbytes += child.nbytes
        node.dtypes |= child.dtypes
        node.has_numbered |= child.has_numbered or _number_of(component) is not None
        below.append((component, child.kind))
    node.tensor_count += len(node.specs)
    node.nbytes += sum(spec.nbytes for _, spec in node.specs)
    node.dtypes.update(spec.dtype.value for _, spec in node.specs)
    own = [(leaf, spec.dtype, spec.shape) for leaf, spec in node.specs]
    node.kind = kinds.setdefault((frozenset(below), frozenset(own)), len(kinds))


def _lines(node: Module, head: str, depth: int, factor: int) -> Iterator[ModuleLine]:
    """Yield the modules below one; ``factor`` is how many are alike of that one."""
    children = [(name, node.children[name]) for name in _in_order(node.children)]
    for _, alike in groupby(children, key=lambda each: (_text_of(each[0]), each[1].kind)):
        members = list(alike)
        child, count = members[0][1], len(members)
        name = head + _joined([component for component, _ in members])
        is_numbered = count > 1 or _number_of(members[0][0]) is not None
        if child.has_numbered and not is_numbered and not child.specs:
            yield from _lines(child, name, depth, factor)
            continue
        shown = name[:-1] + (f" ({count} alike)" if count > 1 else "")
        total = factor * count
        yield ModuleLine(
            shown, depth, total, total * child.tensor_count, total * child.nbytes, tuple(sorted(child.dtypes))
        )
        if (is_numbered and depth < 2) or child.has_numbered:
            yield from _lines(child, ".", depth + 1, total)


@lru_cache(1 << 14)
def _number_of(component: str) -> int | None:
    _, numbers = split_numbers(component)
    return numbers[0] if len(numbers) == 1 else None


def _text_of(component: str) -> Hashable:
    """Return what numbered components that follow each other have in common."""
    template, numbers = split_numbers(component)
    return template if len(numbers) == 1 else component


def _in_order(children: Iterable[str]) -> list[str]:
    """Keep the order of the source, but count numbered modules of one text: 2 is before 10."""
    first: dict[Hashable, int] = {}
    for position, component in enumerate(children):
        first.setdefault(_text_of(component), position)
    return sorted(children, key=lambda each: (first[_text_of(each)], _number_of(each) or 0))


def _joined(components: list[str]) -> str:
    if len(components) == 1:
        return components[0]
    template, _ = split_numbers(components[0])
    return in_spans(split_numbers(each)[1][0] for each in components).join(template)
