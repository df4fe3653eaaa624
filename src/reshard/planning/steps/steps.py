"""Steps: reads, the parts that they fill, and computations in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...tensor import Box, ByteRange, Scatter
from ..outputs.output import Computation


class BufferScatter(NamedTuple):
    """Bytes that go to one of a step's buffers: its parts come first, then the inputs of tiles.

    Source addresses count in the read or in a tile's result, target addresses in the buffer.
    """

    buffer: int
    scatter: Scatter


@dataclass(frozen=True, slots=True)
class Read:
    """One ranged GET and where its bytes go."""

    object: int
    range: ByteRange
    scatters: tuple[BufferScatter, ...]

    @property
    def is_direct(self) -> bool:
        """Whether all bytes go to one place in one buffer, so that they can be received there."""
        if len(self.scatters) != 1:
            return False
        only = self.scatters[0].scatter
        return not only.counts and only.nbytes == self.range.nbytes


@dataclass(frozen=True, slots=True)
class StreamedPart:
    """One piece of an output, filled from reads; ``range`` counts in the output."""

    output: int
    number: int
    range: ByteRange


@dataclass(frozen=True, slots=True)
class CopiedPart:
    """One piece of an output that the store copies; ``range`` counts in the output.

    Its bytes are in the catalog's ``object``-th object, from byte ``first`` on.
    """

    output: int
    number: int
    range: ByteRange
    object: int
    first: int

    @property
    def source_range(self) -> ByteRange:
        """Bytes of the source object that are copied."""
        return ByteRange(self.first, self.first + self.range.nbytes)


@dataclass(frozen=True, slots=True)
class Tile:
    """A box of values that are computed, in elements of the entry ``source``.

    ``inputs`` has an entry and a box of it for each input of the kernel, gathered row-major into a buffer of its own:
    ``first_input`` and those after it. ``nbytes`` is the length of the result, ``scatters`` are where it goes.
    """

    computation: Computation
    source: int
    box: Box
    inputs: tuple[tuple[int, Box], ...]
    first_input: int
    nbytes: int
    scatters: tuple[BufferScatter, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The reads and parts between two cuts, or a part that is copied; it depends on no other step."""

    group: int
    number: int
    reads: tuple[Read, ...]
    parts: tuple[StreamedPart, ...]
    copies: tuple[CopiedPart, ...] = ()
    tiles: tuple[Tile, ...] = ()
    tile_sizes: tuple[int, ...] = ()
    """Bytes of each buffer for tiles: all inputs, then all results."""

    @property
    def nbytes(self) -> int:
        """Length of all its buffers together."""
        return sum(part.range.nbytes for part in self.parts) + sum(self.tile_sizes)
