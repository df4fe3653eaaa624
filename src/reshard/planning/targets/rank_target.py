"""One object a rank, cut as a strategy says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...formats.containers import Container
from ...tensor import Box, Strategy
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, file_order, make_output, whole_box
from .rank_outputs import RankOutputs
from .redundancy import assign_writers
from .strategy_check import check_strategy_fits, names_on_one_side

_Writers = Mapping[tuple[str, Box], int]


@dataclass(frozen=True, slots=True)
class RankTarget:
    """One object a rank, cut as a strategy says.

    Tensors without a layout in the strategy are whole on every rank, as MindSpore keeps them.

    Parameters
    ----------
    strategy
        Layouts of the target.
    ranks
        Those to write, ascending.
    name
        Key of a rank's object; ``{rank}`` stands for its number.
    container
        Format of the objects.
    remove_redundancy
        Whether what several ranks own is written by one of them only, as MindSpore saves it with
        ``remove_redundancy=True``; tensors without a layout stay on every rank.
    """

    strategy: Strategy
    ranks: tuple[int, ...]
    name: str
    container: Container = Container.SAFETENSORS
    remove_redundancy: bool = False

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Share the tensors out over the ranks; ranks with equal content become one output.

        Raises
        ------
        StrategyError
            Layouts that do not fit their tensors, all of them listed.
        PlanError
            Tensors that were cut in the source and have no layout here.
        """
        check_strategy_fits(self.strategy, tensors, source_metadata.dropped)
        if not self.remove_redundancy:
            made = RankOutputs(self.strategy, tensors, source_metadata, self.container)
            return made.outputs(self.ranks, self._key)
        order, writers = file_order(tensors), self._writers(tensors)
        distinct: dict[tuple[object, ...], tuple[list[str], list[tuple[int, Box]]]] = {}
        for rank in self.ranks:
            held = [(index, box) for index in order for box in self._held(tensors[index], rank, writers)]
            keys, _ = distinct.setdefault(tuple(held), ([], held))
            keys.append(self._key(rank))
        return tuple(self._output(keys, held, tensors, source_metadata) for keys, held in distinct.values())

    def _key(self, rank: int) -> str:
        return self.name.replace("{rank}", str(rank))

    def _output(
        self,
        keys: Sequence[str],
        held: Sequence[tuple[int, Box]],
        tensors: Sequence[TargetTensor],
        source_metadata: SourceMetadata,
    ) -> Output:
        names = [tensors[index].spec.name for index, _ in held]
        metadata = source_metadata.metadata_for(names, format="ms", remove_redundancy="True")
        return make_output(keys, held, tensors, metadata, self.container, source_metadata.texts)

    def documents(
        self, _outputs: Sequence[Output], _tensors: Sequence[TargetTensor], _carried: SourceMetadata
    ) -> tuple[Document, ...]:
        """Rank shards need no index."""
        return ()

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """What a person should know about names on one side only."""
        return names_on_one_side(self.strategy, self.ranks, tensors)

    def _writers(self, tensors: Sequence[TargetTensor]) -> _Writers:
        """The one rank that writes each box that a layout gives to several."""
        by_name = {tensor.spec.name: tensor for tensor in tensors}
        found: dict[tuple[str, Box], int] = {}
        for stage, layouts in enumerate(self.strategy.stages):
            first = stage * self.strategy.device_count
            owners: dict[str, dict[Box, list[int]]] = {}
            for name in layouts.keys() & by_name.keys():
                boxes = owners.setdefault(name, {})
                for rank in range(first, first + self.strategy.device_count):
                    for box in self._box(by_name[name], rank):
                        boxes.setdefault(box, []).append(rank)
            # A tensor of several stages is written once on each: their ranks are no replicas to MindSpore.
            found |= {(f"{stage}-{name}", box): rank for (name, box), rank in assign_writers(owners).items()}
        return found

    def _held(self, tensor: TargetTensor, rank: int, writers: _Writers | None) -> tuple[Box, ...]:
        boxes = self._box(tensor, rank)
        if writers is None or not boxes:
            return boxes
        where = (f"{self.strategy.stage_of(rank)}-{tensor.spec.name}", boxes[0])
        return boxes if writers.get(where, rank) == rank else ()

    def _box(self, tensor: TargetTensor, rank: int) -> tuple[Box, ...]:
        """What a rank holds of a tensor: one box, or none on another stage."""
        layout = self.strategy.layout(tensor.spec.name, rank)
        if layout is None:
            is_elsewhere = any(tensor.spec.name in stage for stage in self.strategy.stages)
            return () if is_elsewhere else (whole_box(tensor),)
        if tensor.spec.dtype.is_sub_byte:
            return (whole_box(tensor),)  # checked to be uncut
        return (layout.box_of(tensor.spec.shape, rank % self.strategy.device_count),)
