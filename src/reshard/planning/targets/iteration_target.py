"""Rank shards in the newer layout of MindSpore Transformers: one folder an iteration, which describes its layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

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
from ...tensor import Box, DType, Strategy, TensorSpec
from ..catalog import SourceSharding
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, file_order, make_output, sample
from .strategy_check import check_strategy_fits, count_slices, names_on_one_side
from .target import Target, check_count

_MAX_SHARDS = 1 << 22
_MAX_MENTIONS = 1 << 26
SCALAR_CODES = {
    DType.BOOL: "?", DType.I8: "b", DType.U8: "B", DType.I16: "h", DType.U16: "H", DType.I32: "i",
    DType.U32: "I", DType.I64: "q", DType.U64: "Q", DType.F16: "e", DType.F32: "f", DType.F64: "d",
}  # fmt: skip
"""Scalars that can be numbers elsewhere, each with its code in :mod:`struct`; of other dtypes they stay tensors."""


def is_training_state(tensor: TargetTensor) -> bool:
    """Return whether this layout keeps a tensor as a number in ``common.json``."""
    spec = tensor.spec
    is_number = spec.dtype in SCALAR_CODES and set(spec.shape) <= {1}
    return tensor.sharding is SourceSharding.UNLISTED and spec.name in COMMON_KEYS and is_number


@dataclass(frozen=True, slots=True)
class IterationTarget(Target):
    """``iteration_<n>/``: objects of weights and of optimizer states, ``metadata.json``, ``common.json``.

    The tracker object names ``iteration`` as the latest; ``prefix`` begins the objects' names; ``common`` is the
    training state. With ``remove_redundancy`` each shard is written once.
    """

    object_names: ClassVar[re.Pattern[str]] = re.compile(
        r"iteration_\d+/[^/]+\.safetensors|latest_checkpointed_iteration\.txt"
    )

    strategy: Strategy
    iteration: int
    prefix: str = ""
    remove_redundancy: bool = False
    common: Mapping[str, CommonValue] = field(default_factory=dict)

    @property
    def scope(self) -> str:
        """The folder: other iterations may be beside it."""
        return f"{iteration_name(self.iteration)}/"

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Give every rank its objects; those of equal content become one output.

        Raise StrategyError and PlanError as :func:`check_strategy_fits` does.
        """
        check_strategy_fits(self.strategy, tensors, source_metadata.dropped)
        stored = _stored(tensors)
        shards = list_shards(stored, self.strategy)
        boxes = {(shard.spec.name, rank): shard.box for shard in shards for rank in shard.ranks}
        index_of = {tensors[index].spec.name: index for index in file_order(tensors)}
        position_of = {name: position for position, name in enumerate(index_of)}
        equal: dict[tuple[tuple[int, Box], ...], list[str]] = {}
        for item in self._objects(stored):
            names = sorted(item.tensors, key=position_of.__getitem__)
            held = tuple((index_of[name], boxes[name, item.rank]) for name in names)
            equal.setdefault(held, []).append(f"{self.scope}{item.name}")
        outputs = []
        for held, keys in equal.items():
            metadata = source_metadata.metadata_for([tensors[index].spec.name for index, _ in held], format="ms")
            outputs.append(make_output(keys, held, tensors, metadata, texts=source_metadata.texts))
        return tuple(outputs)

    def _objects(self, stored: Sequence[TensorSpec]) -> tuple[ShardObject, ...]:
        names = {spec.name for spec in stored}
        states = [name for name in names if is_optimizer_state(name, names)]
        return shard_objects(stored, self.strategy, states, self.prefix, remove_redundancy=self.remove_redundancy)

    def documents(
        self, outputs: Sequence[Output], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> tuple[Document, ...]:
        """Return what makes a folder a checkpoint; the tracker, which makes it the latest, comes last."""
        stored = _stored(tensors)
        return (
            Document(f"{self.scope}{COMMON_NAME}", encode_common(self.common)),
            Document(f"{self.scope}{METADATA_NAME}", encode_metadata(stored, self.strategy, self._objects(stored))),
            Document(TRACKER_NAME, encode_tracker(self.iteration)),
        )

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Note names on one side only, and tensors that become numbers."""
        state = [tensor.spec.name for tensor in tensors if is_training_state(tensor)]
        numbers = (f"{len(state)} numbers go into {COMMON_NAME}: {sample(state, 8)}",) if state else ()
        others = [tensor for tensor in tensors if not is_training_state(tensor)]
        return (*numbers, *names_on_one_side(self.strategy, range(self.strategy.rank_count), others))

    def check_bounds(self, tensors: Sequence[TargetTensor]) -> int:
        """Refuse more shards than ``metadata.json`` can describe one by one."""
        strategy = self.strategy
        shard_count = count_slices(strategy, range(strategy.rank_count), tensors)
        check_count("tensors over all ranks", shard_count, _MAX_SHARDS)
        check_count("tensors times stages", len(tensors) * strategy.stage_count)
        # For every rank that writes a shard, metadata.json lists all ranks that hold it.
        rank_mentions = 0
        for tensor in tensors:
            layouts = [stage[tensor.spec.name] for stage in strategy.stages if tensor.spec.name in stage]
            holders = sum(layout.replica_count // layout.optimizer_pieces for layout in layouts)
            rank_mentions += holders * len(layouts) * strategy.device_count if layouts else strategy.rank_count**2
        check_count("ranks in metadata.json", shard_count if self.remove_redundancy else rank_mentions, _MAX_MENTIONS)
        return strategy.rank_count


def _stored(tensors: Sequence[TargetTensor]) -> list[TensorSpec]:
    """Return the tensors that stay tensors."""
    return [tensor.spec for tensor in tensors if not is_training_state(tensor)]
