"""W + (B·A)·scaling, to the same bits on every machine and in every tile.

The B·A of a linear algebra library depends on its version, the processor and the shape: the library
chooses the order in which it adds, and chooses another for elements at an edge of the same product.
So the order is fixed here: for each element, in F32, from the first to the last of the inner axis,
each product added unrounded. MindSpore's kernels do the same on a CPU (up to an inner axis of about
384, which they cut beyond that).

Two ways lead to these bits:

``_sums``
    Follows the definition. The product of two F32 is exact in F64, so a fused multiply-add is a
    sum in F64 rounded to F32. It is rounded twice, which differs from a fused one about once in 10^9.
``_certain``
    Takes the library's product and a bound on how far any order of adding can be off. Every later
    operation is monotonic, so where both ends of that interval round to the same number, the definition
    does too. For 16-bit weights that is nearly everywhere, and many times faster; the remaining
    elements follow the definition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]
_F32 = npt.NDArray[np.float32]

_COLUMNS = 512
_BLOCK = 1 << 14  # elements
_UNIT = 2.0**-24  # rounding to F32 errs by at most this, relatively
_LARGEST_NORM = 2.0**120  # below it no sum overflows, whatever the order
_LOST_NORM = 2.0**-60  # more than a norm loses when squares of its numbers underflow in F32
_LONGEST_CERTAIN = 256  # inner axis up to which F32 copies of both factors are small
# OpenBLAS runs at most this many multiplications in the calling thread; our own threads use every core already.
_ONE_THREAD = 1 << 18


def merge_block(weight: _Array, left: _Array, right: _Array, scaling: np.floating[Any], out: _Array) -> None:
    """Write ``weight + (left @ right) * scaling`` to ``out``, in blocks.

    ``weight`` and ``out`` are ``[rows, columns]`` of one type, ``left`` is ``[rows, rank]`` and ``right`` is
    ``[rank, columns]``. The type of ``scaling`` is the working type, to which product and scaled product are rounded.

    Examples
    --------
    >>> out = np.empty((1, 2), np.float32)
    >>> merge_block(np.ones_like(out), np.full((1, 3), 2.0), np.ones((3, 2)), np.float32(0.5), out)
    >>> out
    array([[4., 4.]], dtype=float32)
    """
    narrow = weight.dtype.itemsize == 2 and right.shape[0] <= _LONGEST_CERTAIN
    width = max(1, min(_COLUMNS, out.shape[1]))
    height = min(_BLOCK // width, _COLUMNS)
    with np.errstate(all="ignore"):  # infinities and NaN are results here, not errors
        for first in range(0, out.shape[1], width):
            columns = slice(first, first + width)
            a = _with_norms(right[:, columns], axis=0) if narrow else None
            for start in range(0, out.shape[0], height):
                rows = slice(start, start + height)
                base, target = weight[rows, columns].astype(np.float32), out[rows, columns]
                if a is None or not _certain(base, left[rows], a, scaling, target):
                    target[...] = _finish(base, _sums(left[rows], right[:, columns]), scaling, out.dtype)


def _sums(left: _Array, right: _Array) -> _F32:
    """Multiply as the definition says."""
    total = np.zeros((left.shape[0], right.shape[1]), np.float32)
    product = np.empty(total.shape)
    for k in range(left.shape[1]):
        np.multiply(left[:, k : k + 1].astype(np.float64), right[k].astype(np.float64), out=product)
        np.add(product, total, out=total, casting="unsafe")
    return total


def _paired_sums(left: _F32, right: _F32) -> _F32:
    """Do as ``_sums`` for single elements: each column of ``left`` with the same column of ``right``."""
    products = np.multiply(left, right, dtype=np.float64)
    total = np.zeros(products.shape[1], np.float32)
    for product in products:
        np.add(product, total, out=total, casting="unsafe")
    return total


def _finish(base: _F32, product: _F32, scaling: np.floating[Any], dtype: np.dtype[Any]) -> _Array:
    """Scale the product, add the base and round; each operation rounds to nearest, so each is monotonic."""
    working = scaling.dtype
    delta = product.astype(working, copy=False) * scaling
    total = base + delta.astype(np.float32, copy=False)
    # The processor chooses which of several NaN patterns comes out; here there is one.
    if np.isnan(np.max(total)):
        total[np.isnan(total)] = np.nan
    result: _Array = total.astype(dtype, copy=False)
    return result


def _certain(base: _F32, left: _Array, a: _Factor, scaling: np.floating[Any], target: _Array) -> bool:
    """Fill ``target`` and return True if most elements are certain; else return False and leave anything there."""
    b = _with_norms(left, axis=1)
    margin = _margin(b, a)
    if margin is None:
        return False
    product = _library_product(b.numbers, a.numbers)
    bits = np.dtype(f"u{target.dtype.itemsize}")
    low = _finish(base, product - margin, scaling, target.dtype).view(bits)
    high = _finish(base, product + margin, scaling, target.dtype).view(bits)
    open_ones = np.flatnonzero(low != high)
    if len(open_ones) * 16 > low.size:
        return False
    step = (_BLOCK << 1) // max(1, len(a.numbers))
    for start in range(0, len(open_ones), step):
        i, j = np.divmod(open_ones[start : start + step], low.shape[1])
        sums = _paired_sums(b.numbers.T[:, i], a.numbers[:, j])
        low[i, j] = _finish(base[i, j], sums, scaling, target.dtype).view(bits)
    target.view(bits)[...] = low
    return True


class _Factor(NamedTuple):
    numbers: _F32
    norms: _F32


def _with_norms(factor: _Array, axis: int) -> _Factor:
    """Return a factor in F32 and the Euclidean norms along its inner axis, too small by rounding at most."""
    numbers = factor.astype(np.float32)
    squares = np.einsum("ik,ik->i" if axis else "ki,ki->i", numbers, numbers)
    return _Factor(numbers, np.sqrt(squares) + np.float32(_LOST_NORM))


def _margin(b: _Factor, a: _Factor) -> _F32 | None:
    """Bound the distance between the library's product and ours, for each element; None if there is no bound.

    Adding n products in any order, fused or not, errs by less than n·u / (1 - n·u) of the sum of their
    absolute values, which is at most the product of both norms. Both products are off by that much; the
    rest covers the rounding of the margin itself and of the sum with it, and numbers that underflow.

    Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
    """
    count = len(a.numbers)
    if not float(b.norms.max()) * float(a.norms.max()) < _LARGEST_NORM:  # too large, or NaN
        return None
    margin: _F32 = np.multiply.outer(b.norms * np.float32((2.01 * count + 8) * _UNIT), a.norms)
    margin += np.float32(count * 2.0**-124)
    return margin


def _library_product(left: _F32, right: _F32) -> _F32:
    product = np.empty((left.shape[0], right.shape[1]), np.float32)
    step = max(1, _ONE_THREAD // max(1, right.size))
    for row in range(0, len(left), step):
        np.matmul(left[row : row + step], right, out=product[row : row + step])
    return product
