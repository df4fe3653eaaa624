"""Strided copies between buffers, at the speed of memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..tensor import Runs, Transfer

__all__ = ["is_equal", "scatter"]


def scatter(move: Transfer, source: memoryview, target: memoryview) -> None:
    """Copy the runs of ``move`` from one buffer to another; its addresses count in these buffers.

    Examples
    --------
    >>> target = bytearray(4)
    >>> scatter(Transfer(1, 0, 2, (2,), (4,), (2,)), memoryview(b"abcdefgh"), memoryview(target))
    >>> bytes(target)
    b'bcfg'
    """
    if not move.counts:
        target[move.target : move.target + move.nbytes] = source[move.source : move.source + move.nbytes]
        return
    _strided(target, move.target_runs)[...] = _strided(source, move.source_runs)


def is_equal(left: memoryview, right: memoryview) -> bool:
    """Whether two buffers hold the same bytes."""
    return bool(np.array_equal(np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8)))


def first_difference(left: memoryview, right: memoryview) -> int:
    """Position of the first byte that differs; the buffers must be equally long and unequal."""
    return int(np.argmax(np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8)))


def _strided(buffer: memoryview, runs: Runs) -> npt.NDArray[np.void]:
    """View the runs as an array with one element a run, so that a run is copied as one piece."""
    if runs.first < 0 or runs.stop > len(buffer):  # as_strided checks nothing
        raise ValueError(f"runs {runs.first}..{runs.stop} reach outside a buffer of {len(buffer)} bytes")
    flat = np.frombuffer(buffer, np.uint8, count=runs.nbytes, offset=runs.first).view(f"V{runs.nbytes}")
    return np.lib.stride_tricks.as_strided(flat, runs.counts, runs.strides)
