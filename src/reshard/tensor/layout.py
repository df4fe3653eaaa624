"""How tensors are cut over the devices of a pipeline stage: which box each rank owns, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import StrategyError
from .box import Box, Shape


@dataclass(frozen=True, slots=True)
class RowSplit:
    """Uneven pieces of axis 0 (MindSpore's ``manual_split``): ``counts[i]`` rows from row ``offsets[i]`` on."""

    counts: Shape
    offsets: Shape


@dataclass(frozen=True, slots=True)
class Layout:
    """Device matrix and tensor map of one tensor.

    Parameters
    ----------
    device_matrix
        The stage's devices as a row-major grid, last dimension fastest; at least one dimension.
    tensor_map
        One tuple per tensor axis: the grid dimensions that cut it, counted from the right (0 is the
        last), most significant first; empty for an axis that is not cut.
    optimizer_shard_size
        Pieces that the parallel optimizer cuts axis 0 of the slice into; -1 for as many as there
        are replicas, 0 for none.
    optimizer_shard_step, field_size
        As MindSpore records them, kept for writing. The step is the rank distance between neighbouring
        pieces, but the piece that a rank holds follows from the grid alone.

    Examples
    --------
    >>> layout = Layout((2, 2, 2), ((0,), (1,)))
    >>> layout.box_of((16, 24), rank=5)
    Box(start=(8, 0), stop=(16, 12))
    >>> Layout((2, 2, 2), ((2, 0), ())).box_of((16, 24), rank=5)
    Box(start=(12, 0), stop=(16, 24))
    """

    device_matrix: Shape
    tensor_map: tuple[tuple[int, ...], ...]
    optimizer_shard_size: int = 0
    optimizer_shard_step: int = 0
    row_split: RowSplit | None = None
    field_size: int = 0
    _used: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dimension_count = len(self.device_matrix)
        if not dimension_count or any(size < 1 for size in self.device_matrix):
            raise StrategyError(f"device matrix {list(self.device_matrix)}: every dimension must be at least 1")
        entries = [entry for axis in self.tensor_map for entry in axis]
        if any(not 0 <= entry < dimension_count for entry in entries) or len(set(entries)) != len(entries):
            raise StrategyError(
                f"tensor map {[list(axis) for axis in self.tensor_map]} does not fit device matrix "
                f"{list(self.device_matrix)}: expected each of 0..{dimension_count - 1} at most once"
            )
        object.__setattr__(self, "_used", frozenset(dimension_count - 1 - entry for entry in entries))
        if self.optimizer_shard_size < -1:
            raise StrategyError(f"optimizer shard size {self.optimizer_shard_size}: expected -1, 0 or more")
        if self.optimizer_shard_size > 0 and self._taken_dimensions() is None:
            raise StrategyError(
                f"optimizer shard size {self.optimizer_shard_size} does not fit the {self.replica_count} replicas of "
                f"device matrix {list(self.device_matrix)}, tensor map {[list(axis) for axis in self.tensor_map]}"
            )

    @property
    def device_count(self) -> int:
        """Devices in the stage."""
        return math.prod(self.device_matrix)

    @property
    def cuts(self) -> Shape:
        """Pieces on each axis, before the optimizer's."""
        return tuple(math.prod(self.device_matrix[-1 - e] for e in axis) for axis in self.tensor_map)

    @property
    def pieces(self) -> Shape:
        """Pieces on each axis, with the optimizer's."""
        return (self.cuts[0] * self.optimizer_pieces, *self.cuts[1:]) if self.tensor_map else ()

    @property
    def replica_count(self) -> int:
        """Ranks that share one slice, before the optimizer cuts it."""
        return math.prod(size for d, size in enumerate(self.device_matrix) if d not in self._used)

    @property
    def optimizer_pieces(self) -> int:
        """Pieces that the optimizer cuts a slice into; 1 for none."""
        if self.optimizer_shard_size == -1:
            return self.replica_count
        return max(1, self.optimizer_shard_size)

    def box_of(self, shape: Shape, rank: int) -> Box:
        """Return the region of a full tensor of ``shape`` that a rank, counted within the stage, owns.

        Raises
        ------
        StrategyError
            The tensor has another number of axes, or an axis does not divide.

        Source: mindspore 2.10.0, ``parallel/_tensor.py`` (slices), ``parallel/_parallel_serialization.py``
        and compiled strategies (optimizer pieces in the order that training uses).
        """
        self.check(shape)
        place = self.place_of(rank)
        start = [extent // pieces * index for extent, pieces, index in zip(shape, self.pieces, place, strict=True)]
        stop = [extent // pieces + first for extent, pieces, first in zip(shape, self.pieces, start, strict=True)]
        if self.row_split:
            start[0] = self.row_split.offsets[place[0]]
            stop[0] = start[0] + self.row_split.counts[place[0]]
        return Box(tuple(start), tuple(stop))

    def place_of(self, rank: int) -> Shape:
        """Return which piece of each axis a rank owns, whatever the tensor's shape.

        Examples
        --------
        >>> Layout((2, 2), ((0,), ()), optimizer_shard_size=-1).place_of(rank=2)
        (1, 0)
        """
        if not 0 <= rank < self.device_count:
            raise StrategyError(f"rank {rank} is outside device matrix {list(self.device_matrix)}")
        coordinates: list[int] = []
        for size in reversed(self.device_matrix):
            rank, coordinate = divmod(rank, size)
            coordinates.insert(0, coordinate)
        place = []
        for entries in self.tensor_map:
            index = 0
            for entry in entries:
                index = index * self.device_matrix[-1 - entry] + coordinates[-1 - entry]
            place.append(index)
        if self.optimizer_pieces > 1:
            # The rightmost free dimension varies fastest, as training numbers the pieces.
            index, weight = 0, 1
            for dimension, pieces in self._taken_dimensions() or []:
                index += coordinates[dimension] % pieces * weight
                weight *= pieces
            place[0] = place[0] * self.optimizer_pieces + index
        return tuple(place)

    def full_shape(self, local_shape: Shape) -> Shape:
        """Return the shape of the full tensor, given that of a rank's slice.

        Examples
        --------
        >>> Layout((4, 2), ((0,), ()), optimizer_shard_size=-1).full_shape((4, 6))
        (32, 6)
        """
        self._check_axes(local_shape)
        full = [extent * pieces for extent, pieces in zip(local_shape, self.cuts, strict=True)]
        if self.row_split:
            full[0] = sum(self.row_split.counts)
        elif self.optimizer_pieces > 1:
            full[0] *= self.optimizer_pieces
        return tuple(full)

    def check(self, shape: Shape) -> None:
        """Raise StrategyError unless a tensor of ``shape`` can be cut this way."""
        self._check_axes(shape)
        for axis, (extent, pieces) in enumerate(zip(shape, self.cuts, strict=True)):
            if axis == 0 and self.row_split:
                self._check_row_split(extent, pieces)
                continue
            pieces *= self.optimizer_pieces if axis == 0 else 1
            if extent % pieces:
                raise StrategyError(f"axis {axis} of {list(shape)} cannot be cut into {pieces} equal pieces")

    def _check_axes(self, shape: Shape) -> None:
        if len(shape) != len(self.tensor_map):
            raise StrategyError(
                f"tensor map {[list(axis) for axis in self.tensor_map]} is for {len(self.tensor_map)} axes, "
                f"the tensor has {len(shape)}: {list(shape)}"
            )
        if not shape and (self.optimizer_pieces > 1 or self.row_split):
            raise StrategyError("a scalar has no rows that the optimizer or a manual split could cut")

    def _check_row_split(self, rows: int, pieces: int) -> None:
        split = self.row_split
        assert split is not None
        ends = [offset + count for offset, count in zip(split.offsets, split.counts, strict=False)]
        if (
            len(split.counts) != pieces
            or len(split.offsets) != pieces
            or [*split.offsets] != [0, *ends[:-1]]
            or ends[-1] != rows
            or min(split.counts) < 0
        ):
            raise StrategyError(
                f"manual split of axis 0 into {list(split.counts)} rows from {list(split.offsets)} does not tile "
                f"{rows} rows in {pieces} pieces"
            )
        if self.optimizer_pieces > 1:
            raise StrategyError("manual split together with an optimizer shard is not supported")

    def _taken_dimensions(self) -> list[tuple[int, int]] | None:
        """Return the free grid dimensions that the optimizer cuts along, rightmost first, with the pieces of each.

        None if no prefix of them gives the wanted number of pieces: of the last dimension taken a part will do.
        """
        remaining = self.optimizer_pieces
        taken: list[tuple[int, int]] = []
        for dimension in reversed(range(len(self.device_matrix))):
            size = self.device_matrix[dimension]
            if dimension in self._used or size == 1 or remaining == 1:
                continue
            pieces = min(remaining, size)
            if remaining % pieces or size % pieces:
                return None
            taken.append((dimension, pieces))
            remaining //= pieces
        return taken if remaining == 1 else None


MAX_RANK_COUNT = 1 << 17
"""Most ranks of a strategy: plans take some 20 microseconds a rank."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """Layouts of every tensor on every pipeline stage; a tensor may be on several stages.

    Stages are contiguous blocks of ranks: ``stage = rank // device_count``, where ``device_count``, the devices of
    one stage, is the product of every layout's device matrix.

    Examples
    --------
    >>> column = Layout((2,), ((), (0,)))
    >>> strategy = Strategy(2, ({"embed": column}, {"head": column}))
    >>> strategy.rank_count, strategy.layout("head", rank=3) is column, strategy.layout("head", rank=0)
    (4, True, None)
    """

    device_count: int
    stages: tuple[Mapping[str, Layout], ...]

    def __post_init__(self) -> None:
        if self.rank_count > MAX_RANK_COUNT:
            raise StrategyError(f"a strategy of {self.rank_count} ranks: at most {MAX_RANK_COUNT} are supported")
        wrong = [
            f"{name} on stage {stage}: device matrix {list(layout.device_matrix)}"
            for stage, layouts in enumerate(self.stages)
            for name, layout in layouts.items()
            if layout.device_count != self.device_count
        ]
        if wrong:
            raise StrategyError(f"expected {self.device_count} devices in every layout of the strategy", problems=wrong)
        if not self.stages:
            raise StrategyError("a strategy needs at least one stage")

    @property
    def stage_count(self) -> int:
        """Pipeline stages."""
        return len(self.stages)

    @property
    def rank_count(self) -> int:
        """Ranks over all stages."""
        return self.device_count * len(self.stages)

    @property
    def names(self) -> frozenset[str]:
        """Every tensor that has a layout on some stage."""
        return frozenset().union(*self.stages)

    def stage_of(self, rank: int) -> int:
        """Return the pipeline stage of a rank; raise StrategyError if there is no such rank."""
        if not 0 <= rank < self.rank_count:
            raise StrategyError(f"rank {rank} does not exist: the strategy has ranks 0..{self.rank_count - 1}")
        return rank // self.device_count

    def layout(self, name: str, rank: int) -> Layout | None:
        """Return the layout of a tensor on the stage of ``rank``, or None if it has none there."""
        return self.stages[self.stage_of(rank)].get(name)
