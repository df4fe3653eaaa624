"""What ranks of one pipeline stage share, kept once; what each holds of a tensor is derived from its device number.

A model of 45 000 tensors on 1024 ranks is 46 million boxes, of which none is kept: see
``docs/design/0017-plans-at-scale.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import overload

from ...formats.containers import Container
from ...formats.frame import Frame
from ...tensor import Box, Layout, Shape, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """The division of a tensor over the devices of a stage; :class:`Partitions` makes one of each.

    The layout fits the extent, the tensor's shape as its bytes are addressed; None for a tensor that is whole
    everywhere.
    """

    extent: Shape
    layout: Layout | None
    slice_shape: Shape
    indices: dict[int, Shape]
    """The position of each device's slice among the equal slices along each axis, as far as it is known."""

    def box(self, device: int) -> Box:
        """Return what one device of the stage holds.

        Examples
        --------
        >>> Partitions().of((4, 6), Layout((2,), ((), (0,)))).box(1)
        Box(start=(0, 3), stop=(4, 6))
        """
        return _box(self, device)


# Few partitions over few devices recur and fit the cache; of very many, each box is derived anew.
@lru_cache(1 << 12)
def _box(partition: Partition, device: int) -> Box:
    if partition.layout is None:
        return Box.whole(partition.extent)
    if partition.layout.row_split:  # slices differ in length
        return partition.layout.box_of(partition.extent, device)
    shape, indices = partition.slice_shape, partition.indices
    if device not in indices:
        indices[device] = partition.layout.place_of(device)
    start = tuple([size * index for size, index in zip(shape, indices[device], strict=True)])
    return Box(start, tuple([first + size for first, size in zip(start, shape, strict=True)]))


class Partitions:
    """Makes equal partitions the same object, so that they are compared by identity."""

    def __init__(self) -> None:
        # Slice indices follow from the layout alone: tensors of one layout share them, whatever their extents.
        self._layouts: dict[Layout, tuple[Layout, dict[int, Shape]]] = {}
        self._seen: dict[int, tuple[Layout, dict[int, Shape]]] = {}  # by identity, which is quicker than by value
        self._partitions: dict[tuple[int, Shape], Partition] = {}
        self._alive: list[Layout] = []

    def of(self, extent: Shape, layout: Layout | None) -> Partition:
        """Return the partition of tensors of an extent, which the layout must fit."""
        if layout is None:
            key = 0, extent
            return self._partitions.get(key) or self._partitions.setdefault(key, Partition(extent, None, extent, {}))
        known, indices = self._known(layout)
        key = id(known), extent
        if key not in self._partitions:
            slice_shape = tuple(size // pieces for size, pieces in zip(extent, known.pieces, strict=True))
            self._partitions[key] = Partition(extent, known, slice_shape, indices)
        return self._partitions[key]

    def _known(self, layout: Layout) -> tuple[Layout, dict[int, Shape]]:
        if id(layout) not in self._seen:
            self._alive.append(layout)  # or a later layout could get its identity
            self._seen[id(layout)] = self._layouts.setdefault(layout, (layout, {}))
        return self._seen[id(layout)]


@dataclass(frozen=True, eq=False)
class OutputLayout:
    """Everything of an output except its keys and where its boxes begin in their tensors.

    Ranks of one stage share a layout if their boxes have equal shapes; of a tensor whose rows are split by
    hand they must hold the very same rows.
    """

    tensors: tuple[int, ...]
    partitions: tuple[Partition, ...]
    specs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    container: Container
    texts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def frame(self) -> Frame:
        """Everything of the objects except their tensors' elements."""
        return self.container.definition.make_frame(self.specs, self.metadata, self.texts)


class DeviceBoxes(Sequence[Box]):
    """The boxes of one device of a stage, derived on demand."""

    __slots__ = ("device", "partitions")

    def __init__(self, partitions: tuple[Partition, ...], device: int) -> None:
        self.partitions = partitions
        self.device = device

    @overload
    def __getitem__(self, index: int) -> Box: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Box, ...]: ...
    def __getitem__(self, index: int | slice) -> Box | tuple[Box, ...]:
        """Return one box, or some."""
        if isinstance(index, slice):
            return tuple(partition.box(self.device) for partition in self.partitions[index])
        return self.partitions[index].box(self.device)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.partitions)

    def __iter__(self) -> Iterator[Box]:
        """Yield the boxes in the order of the tensors."""
        return (partition.box(self.device) for partition in self.partitions)

    def __eq__(self, other: object) -> bool:
        """Return whether the boxes are equal, derived or not."""
        if isinstance(other, DeviceBoxes) and other.partitions is self.partitions and other.device == self.device:
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Box.__eq__, self, other))

    def __hash__(self) -> int:
        """Return the hash of the boxes."""
        return hash(tuple(self))
