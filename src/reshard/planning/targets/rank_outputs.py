"""The objects of ranks that hold all of their slices: forms, replicas, and nothing for each single slice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ...formats.containers import Container
from ...tensor import Box, Strategy, extent_of
from ..outputs.layouts import DeviceBoxes, OutputLayout, Partition, Partitions
from ..outputs.output import Output, SourceMetadata, TargetTensor, file_order, local_spec


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the ranks of one stage hold: tensors in file order, each with how it is cut."""

    tensors: tuple[int, ...]
    partitions: tuple[Partition, ...]


class RankOutputs:
    """Makes the outputs of ranks.

    Parameters
    ----------
    strategy
        It fits the tensors; those without a layout in it are whole on every rank.
    tensors
        Of the target.
    carried
        What outputs hold besides.
    container
        Format of the objects.
    """

    def __init__(
        self, strategy: Strategy, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata, container: Container
    ) -> None:
        self._strategy = strategy
        self._tensors = tensors
        self._carried = source_metadata
        self._container = container
        self._order = file_order(tensors)
        self._known = strategy.names
        self._cuttings = Partitions()

    def outputs(self, ranks: Sequence[int], key_of: Callable[[int], str]) -> tuple[Output, ...]:
        """Make one output of all ranks that hold the same; ``key_of`` names the object of a rank."""
        stages = {number: self._stage(number) for number in sorted({self._strategy.stage_of(rank) for rank in ranks})}
        sharers: dict[tuple[int, ...], list[_Stage]] = {}
        for stage in stages.values():
            sharers.setdefault(stage.tensors, []).append(stage)
        telling = {number: _telling_slots(sharers[stage.tensors]) for number, stage in stages.items()}
        first = {number: id(sharers[stage.tensors][0]) for number, stage in stages.items()}
        distinct: dict[Hashable, tuple[int, list[str]]] = {}
        for rank in ranks:
            number, device = divmod(rank, self._strategy.device_count)
            boxes = tuple(stages[number].partitions[slot].box(device) for slot in telling[number])
            distinct.setdefault((first[number], boxes), (rank, []))[1].append(key_of(rank))
        by_hand = {number: _slots_by_hand(stage, telling[number]) for number, stage in stages.items()}
        forms: dict[Hashable, OutputLayout] = {}
        made = []
        for rank, keys in distinct.values():
            number, device = divmod(rank, self._strategy.device_count)
            rows = tuple(_rows(stages[number].partitions[slot].box(device)) for slot in by_hand[number])
            if (number, rows) not in forms:
                forms[number, rows] = self._form(stages[number], device)
            made.append(_output(keys, forms[number, rows], device))
        return tuple(made)

    def _stage(self, number: int) -> _Stage:
        """What stands on a stage: the tensors that it has layouts for, and those that no stage has."""
        layouts = self._strategy.stages[number]
        indices, partitions = [], []
        for index in self._order:
            spec = self._tensors[index].spec
            layout = layouts.get(spec.name)
            if layout is not None or spec.name not in self._known:
                indices.append(index)
                cut = None if spec.dtype.is_sub_byte else layout  # checked to be uncut
                partitions.append(self._cuttings.of(extent_of(spec)[0], cut))
        return _Stage(tuple(indices), tuple(partitions))

    def _form(self, stage: _Stage, device: int) -> OutputLayout:
        boxes = DeviceBoxes(stage.partitions, device)
        specs = tuple(local_spec(self._tensors[i].spec, box) for i, box in zip(stage.tensors, boxes, strict=True))
        metadata = self._carried.metadata_for([spec.name for spec in specs], format="ms")
        return OutputLayout(stage.tensors, stage.partitions, specs, metadata, self._container, self._carried.texts)


def _output(keys: Sequence[str], form: OutputLayout, device: int) -> Output:
    boxes = DeviceBoxes(form.partitions, device)
    return Output(tuple(keys), form.tensors, boxes, form.specs, form.metadata, form.container, form.texts, form)


def _telling_slots(stages: Sequence[_Stage]) -> list[int]:
    """A few slots by which devices of these stages, which have the same tensors, are told apart.

    Two devices hold equal boxes of a tensor just when they hold equal boxes of any other of the same
    layouts, if both have elements along the same axes.
    """
    slots: dict[Hashable, int] = {}
    for slot, partitions in enumerate(zip(*(stage.partitions for stage in stages), strict=True)):
        if any(cutting.layout for cutting in partitions):
            slots.setdefault(tuple(_kind(cutting) for cutting in partitions), slot)
    return list(slots.values())


def _kind(cutting: Partition) -> Hashable:
    is_by_hand = cutting.layout is not None and cutting.layout.row_split
    return id(cutting.layout), cutting.extent if is_by_hand else tuple(map(bool, cutting.extent))


def _slots_by_hand(stage: _Stage, slots: Sequence[int]) -> list[int]:
    cut = [(slot, stage.partitions[slot].layout) for slot in slots]
    return [slot for slot, layout in cut if layout is not None and layout.row_split]


def _rows(box: Box) -> tuple[int, int]:
    return box.start[0], box.stop[0]
