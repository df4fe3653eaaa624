"""Bytes scattered from one buffer into another, at the speed of memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...tensor import Runs, Scatter

_BLOCK_BYTES = 256 << 10


def scatter(move: Scatter, source: memoryview, target: memoryview) -> None:
    """Scatter the runs of ``move`` from one buffer into another; its addresses count in these buffers.

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
    """Fill a buffer with one element repeated; the buffer begins at byte ``first`` of that sequence.

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
    """Return the position of the first byte that differs, or None; the buffers must be of equal length."""
    # Block by block: a comparison allocates an array as long as what it compares, outside the memory limit.
    a, b = np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8)
    for start in range(0, len(a), _BLOCK_BYTES):
        differs = a[start : start + _BLOCK_BYTES] != b[start : start + _BLOCK_BYTES]
        if differs.any():
            return start + int(np.argmax(differs))
    return None


def _strided(buffer: memoryview, runs: Runs) -> npt.NDArray[np.void]:
    """View the runs as an array with one element per run, which numpy moves whole and checks for bounds."""
    return np.ndarray(runs.counts, f"V{runs.nbytes}", buffer, runs.first, runs.strides)
