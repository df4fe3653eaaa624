"""What ranks of one pipeline stage have in common, kept once; what each holds of a tensor is derived from its number.

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
    """How a tensor is cut over the devices of a stage; :class:`Partitions` makes one of each kind.

    Parameters
    ----------
    extent
        Of the tensor, as its bytes are addressed.
    layout
        It fits the extent; None for a tensor that is whole everywhere.
    steps
        Elements of a slice along each axis.
    """

    extent: Shape
    layout: Layout | None
    steps: Shape
    _places: dict[int, Shape]

    def box(self, device: int) -> Box:
        """What one device of the stage holds.

        Examples
        --------
        >>> Partitions().of((4, 6), Layout((2,), ((), (0,)))).box(1)
        Box(start=(0, 3), stop=(4, 6))
        """
        return _box(self, device)

    def place_of(self, device: int) -> Shape:
        """How many slices stand before a device's own, along each axis; of a tensor that a layout cuts evenly."""
        place = self._places.get(device)
        if place is None:
            assert self.layout is not None
            place = self._places[device] = self.layout.place_of(device)
        return place


# A few cuttings over a few devices are asked for again and again; of very many, each is derived anew.
@lru_cache(1 << 12)
def _box(cutting: Partition, device: int) -> Box:
    if cutting.layout is None:
        return Box.whole(cutting.extent)
    if cutting.layout.row_split:
        return cutting.layout.box_of(cutting.extent, device)
    places = cutting.place_of(device)
    start = tuple([step * index for step, index in zip(cutting.steps, places, strict=True)])
    return Box(start, tuple([first + step for first, step in zip(start, cutting.steps, strict=True)]))


class Partitions:
    """Every kind of cutting once, so that tensors that are cut alike are told by identity."""

    def __init__(self) -> None:
        self._layouts: dict[Layout, tuple[Layout, dict[int, Shape]]] = {}
        self._seen: dict[int, tuple[Layout, dict[int, Shape]]] = {}  # by identity, which is quicker
        self._cuttings: dict[tuple[int, Shape], Partition] = {}
        self._alive: list[Layout] = []

    def of(self, extent: Shape, layout: Layout | None) -> Partition:
        """The cutting of tensors of an extent, which the layout must fit."""
        if layout is None:
            key = 0, extent
            return self._cuttings.get(key) or self._cuttings.setdefault(key, Partition(extent, None, extent, {}))
        known, places = self._known(layout)
        key = id(known), extent
        if key not in self._cuttings:
            steps = tuple(size // pieces for size, pieces in zip(extent, known.pieces, strict=True))
            self._cuttings[key] = Partition(extent, known, steps, places)
        return self._cuttings[key]

    def _known(self, layout: Layout) -> tuple[Layout, dict[int, Shape]]:
        if id(layout) not in self._seen:
            self._alive.append(layout)  # or another could have its identity
            self._seen[id(layout)] = self._layouts.setdefault(layout, (layout, {}))
        return self._seen[id(layout)]


@dataclass(frozen=True, eq=False)
class OutputLayout:
    """All of an output but its keys and where in the tensors its boxes begin.

    Ranks of one stage share a form if their boxes have equal shapes; of a tensor whose rows are split by
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
        """Everything of the objects but their tensors' elements."""
        return self.container.definition.make_frame(self.specs, self.metadata, self.texts)


class DeviceBoxes(Sequence[Box]):
    """The boxes of one device of a stage, derived whenever they are asked for."""

    __slots__ = ("device", "partitions")

    def __init__(self, partitions: tuple[Partition, ...], device: int) -> None:
        self.partitions = partitions
        self.device = device

    @overload
    def __getitem__(self, index: int) -> Box: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Box, ...]: ...
    def __getitem__(self, index: int | slice) -> Box | tuple[Box, ...]:
        """One box, or some."""
        if isinstance(index, slice):
            return tuple(cutting.box(self.device) for cutting in self.partitions[index])
        return self.partitions[index].box(self.device)

    def __len__(self) -> int:
        """As many as tensors."""
        return len(self.partitions)

    def __iter__(self) -> Iterator[Box]:
        """In the order of the tensors."""
        return (cutting.box(self.device) for cutting in self.partitions)

    def __eq__(self, other: object) -> bool:
        """Whether the boxes are equal, derived or not."""
        if isinstance(other, DeviceBoxes) and other.partitions is self.partitions and other.device == self.device:
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Box.__eq__, self, other))

    def __hash__(self) -> int:
        """That of the boxes."""
        return hash(tuple(self))
