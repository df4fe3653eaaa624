"""Equations between a family's sizes and the extents of tensors, solved without any search.

A tensor's axis is a sum of products of factors: ``(g (q: r d | k: d | v: d))`` with r = heads / g is
heads·d + 2·g·d. A product counts as a quantity of its own until it is known, so that this axis and one of
heads·d give g·d although neither g nor d is known; and two known products that differ by one size give that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from .pattern import Expression

Product = tuple[tuple[str, int], ...]
"""Sizes with their powers, in the order of their names."""
Sum = dict[Product, Fraction]
"""Products, each with the number of times that it counts; the empty product is one."""

_MOST_PAIRS = 64


def number(value: int) -> Sum:
    """Return a number as a sum."""
    return {(): Fraction(value)} if value else {}


def size(name: str) -> Sum:
    """Return a size as a sum."""
    return {((name, 1),): Fraction(1)}


def plus(a: Sum, b: Sum, times: int = 1) -> Sum:
    """Add a multiple of ``b`` to ``a``."""
    found = dict(a)
    for product, count in b.items():
        found[product] = found.get(product, Fraction(0)) + times * count
    return {product: count for product, count in found.items() if count}


def multiplied(a: Sum, b: Sum) -> Sum:
    """Multiply two sums."""
    found: Sum = {}
    for p, count in a.items():
        for q, other in b.items():
            found = plus(found, {_joined(p, q): count * other})
    return found


def divided(a: Sum, b: Sum) -> Sum | None:
    """Divide by one product; None for any other divisor."""
    if len(b) != 1:
        return None
    ((product, count),) = b.items()
    inverse = tuple((name, -power) for name, power in product)
    return multiplied(a, {inverse: 1 / count})


def _joined(p: Product, q: Product) -> Product:
    powers = dict(p)
    for name, power in q:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def sum_of(expression: Expression, known: Mapping[str, Sum]) -> Sum | None:
    """Write an expression as a sum of products; None if one of its names is unknown, or it divides by a sum.

    Examples
    --------
    >>> from reshard.models.pattern import parse_expression
    >>> sum_of(parse_expression("heads / g", ""), {"heads": size("heads"), "g": size("g")})
    {(('g', -1), ('heads', 1)): Fraction(1, 1)}
    """

    def made(tree: object) -> Sum | None:
        if isinstance(tree, int):
            return number(tree)
        if isinstance(tree, str):
            return known.get(tree)
        assert isinstance(tree, tuple)
        left, right = made(tree[1]), made(tree[2])
        if left is None or right is None:
            return None
        if tree[0] in "+-":
            return plus(left, right, 1 if tree[0] == "+" else -1)
        return multiplied(left, right) if tree[0] == "*" else divided(left, right)

    return made(expression.tree)


def solve(equations: Iterable[tuple[Sum, int]], given: Mapping[str, int]) -> dict[str, Fraction]:
    """Find the sizes that equations determine, besides those that are given; see :func:`solve_products`.

    Equations that contradict others are left aside: the shapes are compared with what was found later.

    Examples
    --------
    >>> q, k = (("d", 1), ("heads", 1)), (("d", 1), ("g", 1))
    >>> found = solve([({q: 1, k: 2}, 48), ({q: 1}, 32)], {"heads": 8})
    >>> {name: int(size) for name, size in sorted(found.items())}
    {'d': 4, 'g': 2}
    """
    known = solve_products(equations, given)
    return {p[0][0]: v for p, v in known.items() if len(p) == 1 and p[0][1] == 1 and p[0][0] not in given}


def solve_products(equations: Iterable[tuple[Sum, int]], given: Mapping[str, int]) -> dict[Product, Fraction]:
    """Find all products of sizes that equations determine, with those that are given."""
    known: dict[Product, Fraction] = {((name, 1),): Fraction(size) for name, size in given.items()}
    rows = list(dict.fromkeys((tuple(sorted(left.items())), right) for left, right in equations))
    while True:
        before = len(known)
        for left, right in rows:
            _take(dict(left), Fraction(right), known)
        _divide_pairs(known)
        if len(known) == before:
            return known


def value_of(total: Sum, known: Mapping[Product, Fraction]) -> Fraction | None:
    """Compute a sum from products that are known; None if one is not.

    Examples
    --------
    >>> value_of({(("d", 1), ("g", 1)): Fraction(2)}, {(("d", 1),): Fraction(4), (("g", 1),): Fraction(3)})
    Fraction(24, 1)
    """
    found = Fraction(0)
    for product, count in _substituted(total, known).items():
        if product and product not in known:
            return None
        found += count * known.get(product, Fraction(1))
    return found


def _substituted(total: Sum, known: Mapping[Product, Fraction]) -> Sum:
    """Put in the sizes that are known by themselves."""
    rest: Sum = {}
    for product, count in total.items():
        value, unknown = count, []
        for name, power in product:
            found = known.get(((name, 1),))
            if found:
                value *= found**power
            else:
                unknown.append((name, power))
        rest = plus(rest, {tuple(unknown): value})
    return rest


def _take(left: Sum, right: Fraction, known: dict[Product, Fraction]) -> None:
    """Take out what is known; one product that is left is then known too."""
    rest = _substituted(left, known)
    right -= rest.pop((), Fraction(0))
    for product in [product for product in rest if product in known]:
        right -= rest.pop(product) * known[product]
    if len(rest) == 1:
        ((product, count),) = rest.items()
        if right / count > 0:
            known[product] = right / count


def _divide_pairs(known: dict[Product, Fraction]) -> None:
    """Find sizes as quotients of two known products."""
    products = [product for product in known if len(product) > 1][:_MOST_PAIRS]
    for p in products:
        for q in list(known)[: 2 * _MOST_PAIRS]:
            quotient = _joined(p, tuple((name, -power) for name, power in q))
            if len(quotient) == 1 and quotient[0][1] == 1:
                known.setdefault(quotient, known[p] / known[q])
