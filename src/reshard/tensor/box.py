"""Regions of tensors and of objects: elements and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import add, sub

from .dtype import DType

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes ``[start, stop)`` of one object."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its bytes."""

    name: str
    dtype: DType
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.dtype.nbytes(math.prod(self.shape))


def extent_of(spec: TensorSpec) -> tuple[Shape, int]:
    """Return the shape and the bytes per element by which a tensor's bytes are addressed.

    Elements smaller than a byte cannot be addressed: such a tensor is one row of bytes.

    Examples
    --------
    >>> extent_of(TensorSpec("a", DType.F32, (2, 3))), extent_of(TensorSpec("b", DType.F4, (2, 8)))
    (((2, 3), 4), ((8,), 1))
    """
    if spec.dtype.is_sub_byte:
        return (spec.dtype.nbytes(math.prod(spec.shape)),), 1
    return spec.shape, spec.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Box:
    """An n-d half-open region ``[start, stop)``, in elements.

    Examples
    --------
    >>> a = Box((0, 0), (4, 4)); b = Box((2, 1), (6, 3))
    >>> a.intersect(b)
    Box(start=(2, 1), stop=(4, 3))
    """

    start: Shape
    stop: Shape

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """Return the box that covers a tensor of ``shape``."""
        return _whole_box(shape)

    @property
    def shape(self) -> Shape:
        """Extent on each axis, in elements."""
        return tuple(map(sub, self.stop, self.start))

    @property
    def element_count(self) -> int:
        """Number of elements inside."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """Whether no element is inside."""
        return any(b <= a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def text(self) -> str:
        """The box as people index arrays.

        Examples
        --------
        >>> Box((0, 4), (2, 8)).text
        '[0:2, 4:8]'
        """
        return f"[{', '.join(f'{start}:{stop}' for start, stop in zip(self.start, self.stop, strict=True))}]"

    def intersect(self, other: Box) -> Box | None:
        """Return the common region, or None if there is none."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        for a, b in zip(start, stop, strict=True):
            if a >= b:
                return None
        return Box(start, stop)

    def in_blocks(self, block: Shape) -> Box:
        """Return the box of blocks that it touches, of a grid from the origin on.

        Examples
        --------
        >>> Box((100, 0), (300, 128)).in_blocks((128, 128))
        Box(start=(0, 0), stop=(3, 1))
        """
        start = tuple(a // size for a, size in zip(self.start, block, strict=True))
        return Box(start, tuple(-(-b // size) for b, size in zip(self.stop, block, strict=True)))

    def shifted(self, offset: Shape) -> Box:
        """Return the region moved by ``offset``."""
        return Box(tuple(map(add, self.start, offset)), tuple(map(add, self.stop, offset)))


def row_major_boxes(shape: Shape, start: int, stop: int) -> Iterator[Box]:
    """Cut the elements at the flat positions ``[start, stop)`` of a row-major tensor into boxes, in order.

    At most ``2 * len(shape) - 1`` boxes come out, whatever the range: an incomplete first row, whole rows, and an
    incomplete last row, each incomplete row cut in the same way.

    Examples
    --------
    >>> list(row_major_boxes((3, 4), 2, 8))
    [Box(start=(0, 2), stop=(1, 4)), Box(start=(1, 0), stop=(2, 4))]
    """
    if start >= stop:
        return
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside one row
        yield from _in_row(shape, first - 1, start, stop, row)
        return
    if first * row > start:
        yield from _in_row(shape, first - 1, start, first * row, row)
    if first < last:
        yield Box((first, *(0,) * (len(shape) - 1)), (last, *shape[1:]))
    if last * row < stop:
        yield from _in_row(shape, last, last * row, stop, row)


def _in_row(shape: Shape, index: int, start: int, stop: int, row: int) -> Iterator[Box]:
    for box in row_major_boxes(shape[1:], start - index * row, stop - index * row):
        yield Box((index, *box.start), (index + 1, *box.stop))


@lru_cache(1 << 12)  # a model has many tensors of few shapes
def _whole_box(shape: Shape) -> Box:
    return Box((0,) * len(shape), shape)
