"""Values that are finite, and too large for the type they are cast to: found, and made what the request says."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import PlanError, option
from ...tensor import Box, DType, Shape

Positions = npt.NDArray[np.int64]
Found = dict[tuple[str, DType], set[int]]

_BLOCK = 1 << 16
_MOST_POSITIONS = 100_000
_SHOWN = 5
# Bits of infinity without its sign, and of the largest finite value, which is one below.
_INFINITY = {DType.F16: 0x7C00, DType.BF16: 0x7F80, DType.F32: 0x7F800000, DType.F64: 0x7FF0000000000000}
_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_LARGEST = {DType.F16: "65504", DType.BF16: "3.39e38", DType.F32: "3.4e38", DType.F64: "1.8e308"}
_RANGE = (DType.F16, DType.BF16, DType.F32, DType.F64)
"""Dtypes with infinities; each holds all finite values of those before it."""


def can_overflow(source: DType, target: DType) -> bool:
    """Whether some finite value of one dtype is too large for another that has infinities.

    Examples
    --------
    >>> can_overflow(DType.BF16, DType.F16), can_overflow(DType.F16, DType.BF16), can_overflow(DType.F32, DType.BF16)
    (True, False, True)
    >>> can_overflow(DType.F8_E4M3, DType.F16)
    False
    """
    return source in _RANGE and target in _RANGE and _RANGE.index(source) > _RANGE.index(target)


def infinite(data: memoryview, dtype: DType) -> Positions:
    """Return where a buffer of elements holds infinities, ascending; nothing for dtypes that have none.

    Examples
    --------
    >>> infinite(memoryview(np.array([1, np.inf, np.nan, -np.inf], np.float16)).cast("B"), DType.F16).tolist()
    [1, 3]
    """
    pattern = _INFINITY.get(dtype)
    if pattern is None:
        return np.empty(0, np.int64)
    bits = np.frombuffer(data, _UNSIGNED[dtype.itemsize])
    found = [np.empty(0, np.int64)]
    for start in range(0, len(bits), _BLOCK):
        some = (bits[start : start + _BLOCK] << 1) == (pattern << 1) & (2 ** (8 * dtype.itemsize) - 1)
        if some.any():
            found.append(np.flatnonzero(some) + start)
    return np.concatenate(found)


def saturate(data: memoryview, dtype: DType, positions: Positions) -> None:
    """Replace infinities at some positions by the largest finite value of their sign.

    Examples
    --------
    >>> numbers = np.array([1, np.inf, -np.inf], np.float16)
    >>> saturate(memoryview(numbers).cast("B"), DType.F16, np.array([1, 2]))
    >>> numbers.tolist()
    [1.0, 65504.0, -65504.0]
    """
    bits = np.frombuffer(data, _UNSIGNED[dtype.itemsize])
    bits[positions] -= bits.dtype.type(1)


def in_whole(positions: Positions, box: Box, shape: Shape) -> Positions:
    """Turn positions in a row-major box into those in its row-major tensor.

    Examples
    --------
    >>> in_whole(np.array([0, 3]), Box((1, 2), (3, 4)), (4, 4)).tolist()
    [6, 11]
    """
    if not shape:
        return positions
    indices = np.unravel_index(positions, box.shape)
    moved = tuple(index + first for index, first in zip(indices, box.start, strict=True))
    return np.ravel_multi_index(moved, shape).astype(np.int64)


class Overflows:
    """Counts the values of each tensor that did not fit; steps may compute one twice, which counts once.

    Any thread may count. Of a tensor with very many, the count is the least that there are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Found = {}

    def add(self, name: str, dtype: DType, positions: Iterable[int]) -> None:
        """Note values of a tensor by their positions in it."""
        with self._lock:
            found = self._found.setdefault((name, dtype), set())
            for position in positions:
                if len(found) > _MOST_POSITIONS:
                    break
                found.add(position)

    @property
    def found(self) -> Found:
        """Positions of values that did not fit, by tensor and dtype."""
        with self._lock:
            return dict(self._found)

    def add_all(self, found: Found) -> None:
        """Note what was found elsewhere: of one step, or in another process."""
        for (name, dtype), positions in found.items():
            self.add(name, dtype, positions)

    @property
    def counts(self) -> dict[str, int]:
        """Values that did not fit, by the names that tensors have in the source."""
        with self._lock:
            return {name: len(found) for (name, _), found in sorted(self._found.items())}

    def note(self, on_overflow: str) -> str:
        """Say how many there were, in which tensors, and what they became; empty if there were none."""
        became = {"saturate": "the largest that it does", "inf": "infinite"}.get(on_overflow, on_overflow)
        with self._lock:
            found = sorted(self._found.items(), key=lambda each: (-len(each[1]), each[0]))
        if not found:
            return ""
        total = sum(len(positions) for _, positions in found)
        least = "at least " * any(len(positions) > _MOST_POSITIONS for _, positions in found)
        some = ", ".join(f"{name} ({len(positions)})" for (name, _), positions in found[:_SHOWN])
        limits = " and ".join(dict.fromkeys(f"{dtype} holds ({_LARGEST[dtype]})" for (_, dtype), _ in found))
        is_one = total == 1
        what = f"{'value is' if is_one else 'values are'} larger than {limits}, and {'was' if is_one else 'were'} made"
        return f"{least}{total} {what} {became}: {some}{', ...' if len(found) > _SHOWN else ''}"


def refusal(name: str, dtype: DType, count: int) -> PlanError:
    """Make the error for values that must fit and do not."""
    return PlanError(
        f"{name}: {count} values of one step are larger than {dtype} holds ({_LARGEST[dtype]})",
        hint=f"Convert to bf16 or fp32, keep this tensor's dtype with {option('keep_dtype')}, or choose what they "
        f"become: {option('on_overflow', 'saturate')} or {option('on_overflow', 'inf')}.",
    )
