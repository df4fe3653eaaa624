"""Rank shards in the newer layout of MindSpore Transformers: one folder an iteration, which tells its own layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...formats.mindspore.iteration import (
    COMMON_KEYS,
    COMMON_NAME,
    METADATA_NAME,
    TRACKER_NAME,
    CommonValue,
    encode_common,
    encode_tracker,
    is_optimizer_state,
    iteration_name,
)
from ...formats.mindspore.iteration_encode import ShardObject, encode_metadata, shard_objects
from ...formats.mindspore.iteration_shards import list_shards
from ...tensor import Box, DType, Strategy
from ..catalog import SourceSharding
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, file_order, make_output, sample
from .strategy_check import check_strategy_fits, names_on_one_side

SCALAR_CODES = {
    DType.BOOL: "?",
    DType.I8: "b",
    DType.U8: "B",
    DType.I16: "h",
    DType.U16: "H",
    DType.I32: "i",
    DType.U32: "I",
    DType.I64: "q",
    DType.U64: "Q",
    DType.F16: "e",
    DType.F32: "f",
    DType.F64: "d",
}
"""Scalars that can be numbers elsewhere, each with its code in :mod:`struct`; of other dtypes they stay tensors."""


def is_training_state(tensor: TargetTensor) -> bool:
    """Return whether this layout keeps a tensor as a number in ``common.json``."""
    spec = tensor.spec
    is_number = spec.dtype in SCALAR_CODES and set(spec.shape) <= {1}
    return tensor.sharding is SourceSharding.UNLISTED and spec.name in COMMON_KEYS and is_number


@dataclass(frozen=True, slots=True)
class IterationTarget:
    """``iteration_<n>/``: objects of weights and of optimizer states, ``metadata.json``, ``common.json``.

    Parameters
    ----------
    strategy
        Layouts of the target.
    iteration
        Number of the folder, and what the tracker object says.
    prefix
        Start of the objects' names; may be empty.
    remove_redundancy
        Whether each shard is written once.
    common
        The training state.
    """

    strategy: Strategy
    iteration: int
    prefix: str = ""
    remove_redundancy: bool = False
    common: Mapping[str, CommonValue] = field(default_factory=dict)

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Give every rank its objects; those of equal content become one output.

        Raises
        ------
        StrategyError, PlanError
            See :func:`check_strategy_fits`.
        """
        check_strategy_fits(self.strategy, tensors, source_metadata.dropped)
        stored = [tensor.spec for tensor in tensors if not is_training_state(tensor)]
        boxes = {
            (shard.spec.name, rank): shard.box for shard in list_shards(stored, self.strategy) for rank in shard.ranks
        }
        order = {tensors[index].spec.name: index for index in file_order(tensors)}
        places = {name: place for place, name in enumerate(order)}
        distinct: dict[tuple[tuple[int, Box], ...], list[str]] = {}
        for item in self._objects(tensors):
            names = sorted(item.tensors, key=places.__getitem__)
            held = tuple((order[name], boxes[name, item.rank]) for name in names)
            distinct.setdefault(held, []).append(f"{iteration_name(self.iteration)}/{item.name}")
        return tuple(self._output(keys, held, tensors, source_metadata) for held, keys in distinct.items())

    def _output(
        self,
        keys: Sequence[str],
        held: Sequence[tuple[int, Box]],
        tensors: Sequence[TargetTensor],
        source_metadata: SourceMetadata,
    ) -> Output:
        metadata = source_metadata.metadata_for([tensors[index].spec.name for index, _ in held], format="ms")
        return make_output(keys, held, tensors, metadata, texts=source_metadata.texts)

    def _objects(self, tensors: Sequence[TargetTensor]) -> tuple[ShardObject, ...]:
        stored = [tensor.spec for tensor in tensors if not is_training_state(tensor)]
        names = {spec.name for spec in stored}
        states = [name for name in names if is_optimizer_state(name, names)]
        return shard_objects(stored, self.strategy, states, self.prefix, remove_redundancy=self.remove_redundancy)

    def documents(
        self, _outputs: Sequence[Output], tensors: Sequence[TargetTensor], _carried: SourceMetadata
    ) -> tuple[Document, ...]:
        """What makes a folder a checkpoint; the tracker, which makes it the latest, comes last."""
        folder = iteration_name(self.iteration)
        stored = [tensor.spec for tensor in tensors if not is_training_state(tensor)]
        metadata = encode_metadata(stored, self.strategy, self._objects(tensors))
        return (
            Document(f"{folder}/{COMMON_NAME}", encode_common(self.common)),
            Document(f"{folder}/{METADATA_NAME}", metadata),
            Document(TRACKER_NAME, encode_tracker(self.iteration)),
        )

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """What a person should know about names on one side only, and numbers that are no tensors here."""
        state = [tensor.spec.name for tensor in tensors if is_training_state(tensor)]
        numbers = (f"{len(state)} numbers go into {COMMON_NAME}: {sample(state, 8)}",) if state else ()
        others = [tensor for tensor in tensors if not is_training_state(tensor)]
        return (*numbers, *names_on_one_side(self.strategy, range(self.strategy.rank_count), others))
