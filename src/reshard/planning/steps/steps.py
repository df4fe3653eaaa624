"""Steps: what to read, which parts it fills, and what is computed in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...tensor import Box, ByteRange, Scatter
from ..outputs.output import Computation


class BufferScatter(NamedTuple):
    """Bytes that go to one of a step's buffers, parts first, then what tiles take in.

    Source addresses count in the read or in what a tile gives out, targets in the buffer.
    """

    buffer: int
    scatter: Scatter


@dataclass(frozen=True, slots=True)
class Read:
    """One ranged GET and what becomes of its bytes."""

    object: int
    range: ByteRange
    scatters: tuple[BufferScatter, ...]

    @property
    def is_direct(self) -> bool:
        """Whether the bytes are received right where they belong in one buffer."""
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
    """One piece of an output that the store makes itself; ``range`` counts in the output.

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
    """A box of values that are computed.

    Parameters
    ----------
    making
        How.
    source
        Entry of the tensor whose values they are.
    box
        In that tensor's elements.
    inputs
        What the kernel takes: of each entry a box, gathered into a buffer of its own, row-major.
    first_input
        The buffer of the first of them.
    nbytes
        Of the result.
    lays
        Where the result goes.
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
    """The reads and parts between two cuts, or parts that are copied; needs nothing of any other step."""

    group: int
    number: int
    reads: tuple[Read, ...]
    parts: tuple[StreamedPart, ...]
    copies: tuple[CopiedPart, ...] = ()
    tiles: tuple[Tile, ...] = ()
    tile_sizes: tuple[int, ...] = ()
    """Bytes of each buffer for tiles: all their inputs, then all results."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its buffers."""
        return sum(part.range.nbytes for part in self.parts) + sum(self.tile_sizes)
