"""The bytes of a box inside a row-major tensor: equal runs at equal strides, never a list of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from .box import Box, Shape, row_major_boxes


# Runs and Scatter are made for every slice of every output: named tuples are quicker to make than frozen dataclasses.
class Runs(NamedTuple):
    """Equal runs of bytes: ``prod(counts)`` of them, ``nbytes`` each.

    Run ``(i, j, ...)`` starts at ``first + i * strides[0] + j * strides[1] + ...``; strides are
    positive and descending, so runs come in ascending order and never overlap.

    Examples
    --------
    >>> list(Runs(2, 4, (2,), (8,)).starts())
    [2, 10]
    """

    first: int
    nbytes: int
    counts: Shape = ()
    strides: Shape = ()

    @property
    def run_count(self) -> int:
        """Number of runs."""
        return math.prod(self.counts)

    @property
    def total_nbytes(self) -> int:
        """Bytes in all runs together."""
        return self.run_count * self.nbytes

    @property
    def stop(self) -> int:
        """One past the last byte."""
        if not self.counts:
            return self.first + self.nbytes
        steps = ((count - 1) * stride for count, stride in zip(self.counts, self.strides, strict=True))
        return self.first + sum(steps) + self.nbytes

    def bytes_before(self, address: int) -> int:
        """Count the bytes of all runs that are before an address.

        Examples
        --------
        >>> [Runs(2, 4, (3,), (8,)).bytes_before(address) for address in (0, 5, 8, 12, 99)]
        [0, 3, 4, 6, 12]
        """
        left, found, inner = address - self.first, 0, self.run_count
        for count, stride in zip(self.counts, self.strides, strict=True):
            if left <= 0:
                return found * self.nbytes
            inner //= count
            whole = min(left // stride, count - 1)  # the last one may reach beyond its stride
            found += whole * inner
            left -= whole * stride
        return found * self.nbytes + min(max(left, 0), self.nbytes)

    def starts(self) -> Iterator[int]:
        """Yield the first byte of each run, ascending."""
        if not self.counts:
            yield self.first
            return
        inner = Runs(0, self.nbytes, self.counts[1:], self.strides[1:])
        for index in range(self.counts[0]):
            offset = self.first + index * self.strides[0]
            for start in inner.starts():
                yield offset + start


class Scatter(NamedTuple):
    """Moving runs of bytes from one address to another, with strides of their own on either side.

    Run ``(i, j, ...)`` moves ``nbytes`` bytes from ``source + i * source_strides[0] + ...`` to
    ``target + i * target_strides[0] + ...``. Source strides descend; target strides come in any order,
    because axes may be transposed. The caller knows which object or buffer the addresses count in.
    """

    source: int
    target: int
    nbytes: int
    counts: Shape = ()
    source_strides: Shape = ()
    target_strides: Shape = ()

    @property
    def total_nbytes(self) -> int:
        """Bytes moved."""
        return math.prod(self.counts) * self.nbytes

    @property
    def source_stop(self) -> int:
        """One past the last source byte."""
        return self.source_runs.stop if self.counts else self.source + self.nbytes

    @property
    def source_runs(self) -> Runs:
        """The runs on the source's side."""
        return Runs(self.source, self.nbytes, self.counts, self.source_strides)

    @property
    def target_runs(self) -> Runs:
        """The runs on the target's side; where axes are transposed their strides do not descend."""
        return Runs(self.target, self.nbytes, self.counts, self.target_strides)

    def moved(self, source: int = 0, target: int = 0) -> Scatter:
        """Return the scatter with both addresses moved by so many bytes."""
        return Scatter(
            self.source + source,
            self.target + target,
            self.nbytes,
            self.counts,
            self.source_strides,
            self.target_strides,
        )

    def clip_source(self, start: int, stop: int) -> Iterator[Scatter]:
        """Yield the parts of this scatter whose source bytes are in ``[start, stop)``.

        At most ``2 * len(counts) + 1`` scatters come out.

        Examples
        --------
        >>> whole = Scatter(0, 0, 4, (3,), (8,), (4,))
        >>> [(part.source, part.target, part.total_nbytes) for part in whole.clip_source(2, 18)]
        [(2, 2, 2), (8, 4, 4), (16, 8, 2)]
        """
        if start <= self.source and self.source_stop <= stop:
            yield self
        elif max(start, self.source) < min(stop, self.source_stop):
            if not self.counts:
                first = max(start, self.source)
                length = min(stop, self.source + self.nbytes) - first
                yield Scatter(first, self.target + first - self.source, length)
            else:
                yield from self._clip_outer(start, stop)

    def _clip_outer(self, start: int, stop: int) -> Iterator[Scatter]:
        stride, count = self.source_strides[0], self.counts[0]
        span = self._slice(0, 1).source_stop - self.source
        # Rows [low, high) touch the range, rows [inner_low, inner_high) are wholly inside it. Rows do not overlap, so
        # either end of the range cuts at most one: the recursion is linear in the number of dimensions.
        low = max(0, (start - self.source - span) // stride + 1)
        high = min(count, -(-(stop - self.source) // stride))
        inner_low = min(max(low, -(-(start - self.source) // stride)), high)
        inner_high = min(max(inner_low, (stop - self.source - span) // stride + 1), high)
        for index in range(low, inner_low):
            yield from self._slice(index, index + 1).clip_source(start, stop)
        if inner_low < inner_high:
            yield self._slice(inner_low, inner_high)
        for index in range(inner_high, high):
            yield from self._slice(index, index + 1).clip_source(start, stop)

    def _slice(self, low: int, high: int) -> Scatter:
        source = self.source + low * self.source_strides[0]
        target = self.target + low * self.target_strides[0]
        if high - low == 1:
            return Scatter(
                source, target, self.nbytes, self.counts[1:], self.source_strides[1:], self.target_strides[1:]
            )
        counts = (high - low, *self.counts[1:])
        return Scatter(source, target, self.nbytes, counts, self.source_strides, self.target_strides)


def _strides(shape: Shape, itemsize: int) -> list[int]:
    return list(accumulate(reversed(shape[1:]), mul, initial=itemsize))[::-1] if shape else []


def strided(dims: Iterable[tuple[int, int, int]], source: int, target: int, itemsize: int) -> Scatter:
    """Describe moving elements at equal strides, in as few dimensions as possible.

    Parameters
    ----------
    dims
        For each dimension its extent, and the bytes between neighbours in the source and in the target.
        Source strides nest: each is at least as long as everything inside it.
    source, target
        Address of the first element on either side.

    Examples
    --------
    A matrix of 2 x 3 elements, transposed:

    >>> strided([(2, 6, 2), (3, 2, 4)], 0, 0, itemsize=2)
    Scatter(source=0, target=0, nbytes=2, counts=(2, 3), source_strides=(6, 2), target_strides=(2, 4))
    """
    # From the innermost dimension outwards: a dimension that continues the run on both sides lengthens it, one that
    # continues the last dimension on both sides is merged into it.
    nbytes = itemsize
    counts: list[int] = []
    from_steps: list[int] = []
    to_steps: list[int] = []
    for extent, a, b in sorted(dims, key=lambda dim: dim[1]):
        if extent == 1:
            continue
        if not counts and a == b == nbytes:
            nbytes *= extent
        elif counts and a == from_steps[-1] * counts[-1] and b == to_steps[-1] * counts[-1]:
            counts[-1] *= extent
        else:
            counts.append(extent)
            from_steps.append(a)
            to_steps.append(b)
    return Scatter(source, target, nbytes, tuple(counts[::-1]), tuple(from_steps[::-1]), tuple(to_steps[::-1]))


def box_scatter(box_shape: Shape, source: tuple[Shape, Shape], target: tuple[Shape, Shape], itemsize: int) -> Scatter:
    """Describe moving one box, none of whose axes is empty, from a row-major tensor to another.

    ``source`` and ``target`` are ``(shape of the tensor, first element of the box in it)``, each in elements.
    Addresses count from the tensor's first byte.

    Examples
    --------
    >>> box_scatter((2, 2), ((2, 4), (0, 1)), ((2, 2), (0, 0)), itemsize=2)
    Scatter(source=2, target=0, nbytes=4, counts=(2,), source_strides=(8,), target_strides=(4,))
    """
    source_steps, target_steps, moved = _from_corner(box_shape, source[0], target[0], itemsize)
    return moved.moved(sum(map(mul, source[1], source_steps)), sum(map(mul, target[1], target_steps)))


@lru_cache(1 << 12)  # a model has many boxes of few shapes, each somewhere else
def _from_corner(box_shape: Shape, source: Shape, target: Shape, itemsize: int) -> tuple[list[int], list[int], Scatter]:
    """Return the strides of two tensors, and how the box at the first element of both is moved."""
    source_steps, target_steps = _strides(source, itemsize), _strides(target, itemsize)
    # Innermost first, as the sort of strided() leaves them.
    dims = zip(reversed(box_shape), reversed(source_steps), reversed(target_steps), strict=True)
    return source_steps, target_steps, strided(dims, 0, 0, itemsize)


@lru_cache(1 << 12)  # a model has many tensors of few shapes
def slice_scatters(
    shape: Shape, start: Shape, stop: Shape, elements: tuple[int, int], itemsize: int
) -> tuple[Scatter, ...]:
    """Describe filling some elements of a row-major slice from its row-major tensor.

    The slice is the box ``[start, stop)`` of a tensor of ``shape``; ``elements`` are the first one to fill and one
    past the last, counted in the slice. Addresses count from the first byte of the tensor, and of the slice.

    Examples
    --------
    >>> slice_scatters((4, 4), (0, 2), (4, 4), (2, 8), itemsize=2)
    (Scatter(source=12, target=4, nbytes=4, counts=(3,), source_strides=(8,), target_strides=(4,)),)
    """
    held = Box(start, stop)
    return tuple(
        box_scatter(local.shape, (shape, local.shifted(start).start), (held.shape, local.start), itemsize)
        for local in row_major_boxes(held.shape, *elements)
    )
