"""One object a rank, cut as a strategy says."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ..errors import PlanError, StrategyError, raise_all
from ..formats.containers import Container
from ..tensor import Box, Strategy
from .catalog import Origin
from .output import Carried, Document, Output, TargetTensor, file_order, make_output, sample, whole_box
from .redundancy import assign_writers

__all__ = ["RankTarget"]

_NUMBER = re.compile("[0-9]+")
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

    def outputs(self, tensors: Sequence[TargetTensor], carried: Carried) -> tuple[Output, ...]:
        """Share the tensors out over the ranks; ranks with equal content become one output.

        Raises
        ------
        StrategyError
            Layouts that do not fit their tensors, all of them listed.
        PlanError
            Tensors that were cut in the source and have no layout here.
        """
        order = file_order(tensors)
        self._check(tensors)
        writers = self._writers(tensors) if self.remove_redundancy else None
        distinct: dict[tuple[object, ...], tuple[list[str], list[tuple[int, Box]]]] = {}
        for rank in self.ranks:
            held = [(index, box) for index in order for box in self._held(tensors[index], rank, writers)]
            keys, _ = distinct.setdefault(tuple(held), ([], held))
            keys.append(self.name.replace("{rank}", str(rank)))
        return tuple(self._output(keys, held, tensors, carried) for keys, held in distinct.values())

    def _output(
        self, keys: Sequence[str], held: Sequence[tuple[int, Box]], tensors: Sequence[TargetTensor], carried: Carried
    ) -> Output:
        own = {"format": "ms"} | ({"remove_redundancy": "True"} if self.remove_redundancy else {})
        metadata = carried.metadata_for([tensors[index].spec.name for index, _ in held], **own)
        return make_output(keys, held, tensors, metadata, self.container, carried.texts)

    def documents(self, _outputs: Sequence[Output], _tensors: Sequence[TargetTensor]) -> tuple[Document, ...]:
        """Rank shards need no index."""
        return ()

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """What a person should know about names on one side only."""
        names, held = {tensor.spec.name for tensor in tensors}, self.strategy.names
        return (
            *_named(sorted(names - held), "have no layout in the target strategy: whole on every rank"),
            *_named(sorted(held - names), "of the target strategy are not in the source: not written"),
            *_named(sorted((names & held) - self._written), "are on ranks that were not asked for: not written"),
        )

    @property
    def _written(self) -> frozenset[str]:
        """Names with a layout on the stage of some rank to write."""
        stages = {self.strategy.stage_of(rank) for rank in self.ranks}
        return frozenset().union(*(self.strategy.stages[stage] for stage in stages))

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
            return () if tensor.spec.name in self.strategy.names else (whole_box(tensor),)
        if tensor.spec.dtype.is_sub_byte:
            return (whole_box(tensor),)  # checked to be uncut
        return (layout.box_of(tensor.spec.shape, rank % self.strategy.device_count),)

    def _check(self, tensors: Sequence[TargetTensor]) -> None:
        self._check_names(tensors)
        problems = []
        for tensor in tensors:
            for stage, layouts in enumerate(self.strategy.stages):
                layout = layouts.get(tensor.spec.name)
                if layout is None:
                    continue
                try:
                    layout.check(tensor.spec.shape)
                    if tensor.spec.dtype.is_sub_byte and {*layout.cuts, layout.optimizer_pieces} - {1}:
                        raise StrategyError(f"{tensor.spec.dtype} has no whole bytes to cut between")
                except StrategyError as error:
                    problems.append(f"{tensor.spec.name} (stage {stage}): {error.message}")
        hint = "Is this the strategy of this very model? Axes must be as many as it maps, and divide by its cuts."
        raise_all(StrategyError, "the target strategy does not fit the tensors", problems, hint)

        self._check_cut(tensors)

    def _check_cut(self, tensors: Sequence[TargetTensor]) -> None:
        """Refuse to put whole on every rank what the source had cut: nobody would look for it there."""
        names = self.strategy.names
        cut = [tensor.spec.name for tensor in tensors if tensor.origin is Origin.CUT and tensor.spec.name not in names]
        raise_all(
            PlanError,
            f"{len(cut)} tensors are cut over the source's ranks and have no layout in the target strategy",
            cut,
            hint="Leave them out (--drop 'accu_grads.*', say), or give the strategy of a network that has them.",
        )

    def _check_names(self, tensors: Sequence[TargetTensor]) -> None:
        """Refuse a strategy of another model or another naming: its weights would be left whole on every rank."""
        known, names = self.strategy.names, {tensor.spec.name for tensor in tensors}
        if tensors and not known & names:
            raise StrategyError(
                f"no tensor of the source is named in the target strategy: expected names like "
                f"{sample(sorted(known))}, found {sample([t.spec.name for t in tensors])}",
                hint="Is this the strategy of another model, or of another naming of this one?",
            )
        strange, kinds = sorted(names - known), {_kind(name) for name in known}
        raise_all(
            StrategyError,
            "the target strategy has layouts for some layers and none for others",
            [f"{name}: no layout" for name in strange if _kind(name) in kinds],
            hint="A pipeline stage is missing, or this is the strategy of a smaller model: "
            "name the merged strategy, or the prefix that holds the files of all stages.",
        )
        unmet = sorted(name for name in known - names if not _is_state(name, names))
        if unmet and any(len(t.spec.shape) > 1 and t.spec.name not in known for t in tensors):
            sides = zip_longest(
                (f"only in the strategy: {name}" for name in unmet), (f"only in the source: {name}" for name in strange)
            )
            raise StrategyError(
                f"the target strategy and the source name tensors differently: {len(unmet)} names of the strategy are "
                f"not in the source, {len(strange)} tensors of the source are not in the strategy",
                problems=[problem for pair in sides for problem in pair if problem],
                hint="Bring both to one naming. To leave tensors whole on every rank, say so: a layout file's rule "
                '{match: "*", split: []} does.',
            )


def _is_state(name: str, names: Collection[str]) -> bool:
    """Whether a name is of an optimizer state: one of ``names`` behind a prefix and a dot."""
    return any(name[at + 1 :] in names for at, character in enumerate(name) if character == ".")


def _kind(name: str) -> str:
    """A name without its numbers: what is the same in every layer."""
    return _NUMBER.sub("#", name)


def _named(names: Sequence[str], what: str) -> tuple[str, ...]:
    return (f"{len(names)} tensors {what}: {sample(names, 5)}",) if names else ()
