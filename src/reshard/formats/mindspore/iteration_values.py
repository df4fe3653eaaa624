"""What the metadata of a MindSpore Transformers iteration says: tensors, their shards, and who holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ...errors import StrategyError, raise_all
from ...tensor import Box, Layout, Shape, Strategy, TensorSpec
from ..strict_json import shown
from .iteration_shards import shard_numbers


@dataclass(frozen=True, slots=True)
class ShardCopy:
    """One object that holds a shard.

    Parameters
    ----------
    file_name
        Relative to the iteration's folder; never leads out of it.
    storage_rank
        The rank that wrote it.
    rank_group
        Every rank that has the shard in memory; empty where the writer did not say.
    """

    file_name: str
    storage_rank: int
    rank_group: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredShard:
    """One box of a tensor, its number (``global_offset``), and every object that holds it, in the order listed."""

    number: int
    box: Box
    copies: tuple[ShardCopy, ...]

    @property
    def ranks(self) -> frozenset[int]:
        """Every rank that is known to have the shard."""
        return frozenset(copy.storage_rank for copy in self.copies).union(*(copy.rank_group for copy in self.copies))

    @property
    def file_names(self) -> tuple[str, ...]:
        """The objects' names, each once."""
        return tuple(dict.fromkeys(copy.file_name for copy in self.copies))


@dataclass(frozen=True, slots=True)
class StageLayout:
    """How a tensor is cut over the ranks of the first pipeline stage that holds it.

    Parameters
    ----------
    layout
        Device matrix and tensor map; optimizer pieces are cuts like any other here.
    alias_name
        The device matrix's dimensions by name.
    rank_list
        The stage's ranks.
    """

    layout: Layout
    alias_name: tuple[str, ...]
    rank_list: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IterationTensor:
    """One tensor of the checkpoint.

    Parameters
    ----------
    spec
        Name, dtype and shape of the whole.
    cuts
        Equal pieces on each axis.
    shards
        Boxes that tile the tensor, in the order in which the ranks first show them.
    layout
        None where the writer knew none; such a tensor is whole.
    """

    spec: TensorSpec
    cuts: Shape
    shards: tuple[StoredShard, ...]
    layout: StageLayout | None

    @property
    def holders(self) -> dict[int, int]:
        """Every rank that is known to have a shard of the tensor, and the shard's number."""
        return {rank: shard.number for shard in self.shards for rank in shard.ranks}


@dataclass(frozen=True)
class IterationMetadata:
    """What one ``metadata.json`` says. Not slotted, so that ``by_name`` is built once."""

    tensors: tuple[IterationTensor, ...]

    @cached_property
    def by_name(self) -> Mapping[str, IterationTensor]:
        """The tensors by their names."""
        return {tensor.spec.name: tensor for tensor in self.tensors}

    @property
    def file_names(self) -> tuple[str, ...]:
        """Every object that is named, once, in order."""
        return tuple(sorted({name for t in self.tensors for shard in t.shards for name in shard.file_names}))

    def strategy(self) -> Strategy | None:
        """Rebuild the strategy that training had; None where no tensor has a layout.

        A tensor that several stages hold is described once, for the first; its layout is taken for
        every stage that has a holder.

        Raises
        ------
        StrategyError
            The stages are not equal blocks of ranks, one after the other, or a rank has another shard
            than the layout says (all are listed).
        """
        laid_out = [(tensor, tensor.layout) for tensor in self.tensors if tensor.layout]
        if not laid_out:
            return None
        device_count = len(laid_out[0][1].rank_list)
        problems = [text for tensor, at in laid_out if (text := _stage_problem(tensor, at, device_count))]
        raise_all(StrategyError, f"expected stages of {device_count} consecutive ranks, each as described", problems)
        members = {t.spec.name: {rank // device_count for rank in (*t.holders, *at.rank_list)} for t, at in laid_out}
        present = sorted(set().union(*members.values()))
        if present[-1] != len(present) - 1:  # or a hostile rank would have us make stages without end
            raise StrategyError(f"expected stages from 0 without a gap, found {shown(present)}")
        stages: list[dict[str, Layout]] = [{} for _ in present]
        for tensor, at in laid_out:
            for stage in members[tensor.spec.name]:
                stages[stage][tensor.spec.name] = at.layout
        return Strategy(device_count, tuple(stages))


def _stage_problem(tensor: IterationTensor, at: StageLayout, device_count: int) -> str:
    first = at.rank_list[0]
    if first % device_count or at.rank_list != tuple(range(first, first + device_count)):
        return f"{shown(tensor.spec.name)}: ranks {shown(list(at.rank_list))}"
    numbers = shard_numbers(at.layout)
    for rank, number in tensor.holders.items():
        # Ranks of other stages; the parser has compared those of the stage that is described.
        if numbers[rank % device_count] != number:
            return f"{shown(tensor.spec.name)}: shard {number} on rank {rank}, which its layout gives another"
    return ""
