"""Strided copies between buffers, at the speed of memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...tensor import Runs, Scatter

_BLOCK_BYTES = 256 << 10


def scatter(move: Scatter, source: memoryview, target: memoryview) -> None:
    """Copy the runs of ``move`` from one buffer to another; its addresses count in these buffers.

    Examples
    --------
    >>> target = bytearray(4)
    >>> scatter(Scatter(1, 0, 2, (2,), (4,), (2,)), memoryview(b"abcdefgh"), memoryview(target))
    >>> bytes(target)
    b'bcfg'
    """
    if not move.counts:
        target[move.target : move.target + move.nbytes] = source[move.source : move.source + move.nbytes]
        return
    _strided(target, move.target_runs)[...] = _strided(source, move.source_runs)


def repeat(element: bytes, first: int, target: memoryview) -> None:
    """Fill a buffer with one element again and again; its first byte is the ``first``-th of that sequence.

    Examples
    --------
    >>> target = bytearray(5)
    >>> repeat(b"abc", 4, memoryview(target))
    >>> bytes(target)
    b'bcabc'
    """
    turn = first % len(element)
    done = min(len(element), len(target))
    target[:done] = (element[turn:] + element[:turn])[:done]
    while done < len(target):
        more = min(done, len(target) - done)
        target[done : done + more] = target[:more]
        done += more


def first_difference(left: memoryview, right: memoryview) -> int | None:
    """Position of the first byte that differs, None if there is none; the buffers must be equally long.

    Block by block: numpy makes an array as long as what it compares, which the memory limit does not count.
    """
    a, b = np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8)
    for start in range(0, len(a), _BLOCK_BYTES):
        differs = a[start : start + _BLOCK_BYTES] != b[start : start + _BLOCK_BYTES]
        if differs.any():
            return start + int(np.argmax(differs))
    return None


def _strided(buffer: memoryview, runs: Runs) -> npt.NDArray[np.void]:
    """View the runs as an array of one element a run, which is copied as one piece; numpy minds the bounds."""
    return np.ndarray(runs.counts, f"V{runs.nbytes}", buffer, runs.first, runs.strides)
