"""Pieces of tensors in safetensors, one object a rank, as ``torch.distributed.checkpoint`` reads and writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...formats.sharding_info import SHARDING_KEY, VERSION, VERSION_KEY, ShardName, encode_sharding_info
from ...tensor import Box, Layout, Shape, Strategy, extent_of
from ..outputs.output import Output, SourceMetadata, TargetTensor, file_order, make_output
from .strategy_check import check_strategy_fits, names_on_one_side
from .target import Target, check_count

_Owners = tuple[tuple[Box, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class ShardedTarget(Target):
    """``shard-<rank>-model-00001-of-00001.safetensors``: every piece once, with its offsets in the header.

    Of the ranks that own a piece, the one with the fewest bytes so far writes it, as torch does; a tensor of several
    stages is cut as on the first of them, one without a layout is whole. A rank without pieces has no object.
    """

    object_names: ClassVar[re.Pattern[str]] = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")

    strategy: Strategy

    @property
    def has_companions(self) -> bool:
        """Tools for Hugging Face's names look for ``config.json`` and the tokenizer beside the pieces."""
        return True

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Give every rank the pieces that it writes.

        Raise StrategyError and PlanError as :func:`check_strategy_fits` does.
        """
        check_strategy_fits(self.strategy, tensors, source_metadata.dropped)
        held: list[list[tuple[int, Box]]] = [[] for _ in range(self.strategy.rank_count)]
        loads = [0] * self.strategy.rank_count
        known: dict[tuple[int, int, Shape], _Owners] = {}
        for index in file_order(tensors):
            spec = tensors[index].spec
            extent, itemsize = extent_of(spec)
            stage, layout = self._first(spec.name)
            key = stage, id(layout), extent
            if key not in known:
                known[key] = tuple(self._owners(extent, stage, None if spec.dtype.is_sub_byte else layout))
            for box, ranks in known[key]:
                rank = min(ranks, key=loads.__getitem__)
                loads[rank] += box.element_count * itemsize
                held[rank].append((index, box))
        return tuple(self._output(rank, pieces, tensors, source_metadata) for rank, pieces in enumerate(held) if pieces)

    def _first(self, name: str) -> tuple[int, Layout | None]:
        """Return the first stage that has a tensor, and its layout there; of no stage, all ranks have it."""
        return next(((stage, at[name]) for stage, at in enumerate(self.strategy.stages) if name in at), (-1, None))

    def _owners(self, extent: Shape, stage: int, layout: Layout | None) -> Iterator[tuple[Box, tuple[int, ...]]]:
        """Yield each distinct box that is not empty, or else the whole, and the ranks that own it."""
        count = self.strategy.device_count
        ranks = range(stage * count, (stage + 1) * count) if stage >= 0 else range(self.strategy.rank_count)
        if layout is None or 0 in extent:
            yield Box.whole(extent), tuple(ranks)
            return
        owners: dict[Box, list[int]] = {}
        for device, rank in enumerate(ranks):
            box = layout.box_of(extent, device)
            if not box.is_empty:
                owners.setdefault(box, []).append(rank)
        yield from ((box, tuple(some)) for box, some in owners.items())

    def _output(
        self, rank: int, pieces: Sequence[tuple[int, Box]], tensors: Sequence[TargetTensor], content: SourceMetadata
    ) -> Output:
        specs = [tensors[index].spec for index, _ in pieces]
        offsets = {
            spec.name: (0,) * len(spec.shape) if spec.dtype.is_sub_byte else box.start
            for spec, (_, box) in zip(specs, pieces, strict=True)
        }
        own = {"format": "pt", SHARDING_KEY: encode_sharding_info(offsets), VERSION_KEY: VERSION}
        metadata = content.metadata_for([spec.name for spec in specs], **own)
        return make_output([str(ShardName(rank + 1, 1, 1))], pieces, tensors, metadata, texts=content.texts)

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Note names on one side only."""
        return names_on_one_side(self.strategy, range(self.strategy.rank_count), tensors)

    def check_bounds(self, tensors: Sequence[TargetTensor]) -> int:
        """Refuse more pieces than can be made one by one."""
        check_count("tensors over all ranks", len(tensors) * self.strategy.rank_count)
        check_count("tensors times stages", len(tensors) * self.strategy.stage_count)
        return self.strategy.rank_count
