"""One object a rank, cut as a strategy says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import ClassVar

from ...errors import PlanError
from ...formats.containers import Container
from ...formats.mindspore.rank_names import SavedAt
from ...formats.mindspore.rank_objects import RankMeta, encode_meta
from ...formats.strict_json import shown
from ...tensor import Strategy, extent_of
from ..outputs.layouts import DeviceBoxes, OutputLayout, Partition, Partitions
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, file_order, local_spec
from .strategy_check import check_strategy_fits, count_slices, names_on_one_side
from .target import Target, check_count

_MAX_SLICES = 1 << 27
"""Most tensors over all ranks of a saved plan where ranks share layouts, so that none is looked at by itself."""


@dataclass(frozen=True, slots=True)
class RankTarget(Target):
    """One object a rank, cut as a strategy says.

    Tensors without a layout in the strategy are whole on every rank, as MindSpore keeps them. ``ranks`` are those to
    write, ascending; ``name`` is the key of a rank's object, with ``{rank}`` for its number. With ``remove_redundancy``
    only one of the ranks that own a slice writes it, as MindSpore saves with ``remove_redundancy=True``; tensors
    without a layout stay on every rank. ``saved_at`` is told to training in a ``meta.json`` beside every object.
    """

    object_names: ClassVar[re.Pattern[str]] = re.compile(r"rank_\d+/[^/]+\.(safetensors|ckpt)")
    format: ClassVar[str] = "ms"
    """The header's ``format``; empty for headers without metadata."""

    strategy: Strategy
    ranks: tuple[int, ...]
    name: str
    container: Container = Container.SAFETENSORS
    remove_redundancy: bool = False
    saved_at: SavedAt | None = None

    @property
    def whole(self) -> RankTarget:
        """The target with all ranks of the strategy."""
        count = self.strategy.rank_count
        return self if len(self.ranks) == count else replace(self, ranks=tuple(range(count)))

    @property
    def rank_of_key(self) -> dict[str, int]:
        """Every rank of the strategy by the keys of its objects, whether or not they are to be written."""
        names = (self.name,) if self.saved_at is None else (self.name, self._meta_name)
        ranks = range(self.strategy.rank_count)
        return {name.replace("{rank}", str(rank)): rank for name in names for rank in ranks}

    @property
    def _meta_name(self) -> str:
        place, slash, _ = self.name.rpartition("/")
        return f"{place}{slash}meta.json"

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Make one output of all ranks whose slices are equal.

        Raise StrategyError and PlanError as :func:`check_strategy_fits` does.
        """
        check_strategy_fits(self.strategy, tensors, source_metadata.dropped)
        shares = self._shares(tensors)
        signs = _distinguishing_slots(shares.values())
        equal: dict[Hashable, list[int]] = {}
        for rank in self.ranks:
            share, device = shares[rank], rank % self.strategy.device_count
            first, slots = signs[share]
            boxes = tuple(share.partitions[slot].box(device) for slot in slots)
            equal.setdefault((first, boxes), []).append(rank)
        # Devices of one share hold boxes of equal shapes, except of tensors whose rows are split by hand.
        by_hand = {
            share: [slot for slot in slots if share.is_split_by_hand(slot)] for share, (_, slots) in signs.items()
        }
        layouts: dict[Hashable, OutputLayout] = {}
        outputs = []
        for ranks in equal.values():
            share, device = shares[ranks[0]], ranks[0] % self.strategy.device_count
            boxes = tuple(share.partitions[slot].box(device) for slot in by_hand[share])
            key = share, tuple((box.start[0], box.stop[0]) for box in boxes)
            if key not in layouts:
                layouts[key] = self._layout(share, device, tensors, source_metadata)
            keys = tuple(self.name.replace("{rank}", str(rank)) for rank in ranks)
            layout, own = layouts[key], DeviceBoxes(layouts[key].partitions, device)
            what = layout.specs, layout.metadata, layout.container, layout.texts, layout
            outputs.append(Output(keys, layout.tensors, own, *what))
        return tuple(outputs)

    def _layout(
        self, share: _StageTensors, device: int, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> OutputLayout:
        boxes = DeviceBoxes(share.partitions, device)
        specs = tuple(local_spec(tensors[index].spec, box) for index, box in zip(share.tensors, boxes, strict=True))
        own = {"remove_redundancy": "True"} if self.remove_redundancy else {}
        names = [spec.name for spec in specs]
        metadata = source_metadata.metadata_for(names, format=self.format, **own) if self.format else {}
        return OutputLayout(share.tensors, share.partitions, specs, metadata, self.container, source_metadata.texts)

    def _shares(self, tensors: Sequence[TargetTensor]) -> dict[int, _StageTensors]:
        """Return what each rank holds; ranks that hold the same tensors of a stage share one value."""
        shares: dict[int, _StageTensors] = {}
        order, listed, partitions = file_order(tensors), self.strategy.names, Partitions()
        for stage, ranks in groupby(self.ranks, self.strategy.stage_of):
            layouts = self.strategy.stages[stage]
            held, cuts = [], []
            for index in order:
                spec = tensors[index].spec
                layout = layouts.get(spec.name)
                if layout is not None or spec.name not in listed:
                    held.append(index)
                    layout = None if spec.dtype.is_sub_byte else layout  # packed elements are checked to be uncut
                    cuts.append(partitions.of(extent_of(spec)[0], layout))
            share = _StageTensors(tuple(held), tuple(cuts))
            if self.remove_redundancy:
                names = [tensors[index].spec.name for index in held]
                slots = {name: slot for slot, name in enumerate(names) if name in layouts}
                parts = _without_redundancy(share, slots, self.strategy.device_count)
                shares |= {rank: parts[rank % self.strategy.device_count] for rank in ranks}
            else:
                shares |= dict.fromkeys(ranks, share)
        return shares

    def documents(
        self, outputs: Sequence[Output], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> tuple[Document, ...]:
        """Return each rank's ``meta.json``, if training may resume from here."""
        if self.saved_at is None:
            return ()
        meta = RankMeta(self.saved_at.epoch, self.saved_at.step, self.name.rpartition("/")[2])
        return tuple(
            Document(
                self._meta_name.replace("{rank}", str(rank)),
                encode_meta(replace(meta, last_ckpt_file=meta.last_ckpt_file.replace("{rank}", str(rank)))),
            )
            for rank in self.ranks
        )

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Note names on one side only."""
        return names_on_one_side(self.strategy, self.ranks, tensors)

    def check_bounds(self, tensors: Sequence[TargetTensor]) -> int:
        """Refuse ranks that do not exist, and more tensors, shapes and layouts over all ranks than can be held."""
        strategy, ranks = self.strategy, self.ranks
        rest = self.name.replace("{rank}", "")
        if "{" in rest or "}" in rest:
            raise PlanError(f"name of ranks' objects: expected no braces but {{rank}}, found {shown(self.name)}")
        if any(a >= b for a, b in pairwise(ranks)) or (ranks and ranks[-1] >= strategy.rank_count):
            raise PlanError(f"ranks: expected ascending ones below {strategy.rank_count}, found {shown(list(ranks))}")
        check_count("tensors times stages", len(tensors) * strategy.stage_count)
        if self.remove_redundancy:
            check_count("tensors over all ranks", count_slices(strategy, range(strategy.rank_count), tensors))
            return len(ranks)
        check_count("tensors over all ranks", count_slices(strategy, ranks, tensors), _MAX_SLICES)
        # One rank represents its stage, unless rows are split by hand there: then each may have shapes of its own.
        by_hand = {stage for stage, layouts in enumerate(strategy.stages) if any(x.row_split for x in layouts.values())}
        first_of = {strategy.stage_of(rank): rank for rank in reversed(ranks)}
        examined = [rank for rank in ranks if (stage := strategy.stage_of(rank)) in by_hand or first_of[stage] == rank]
        check_count("tensors over all layouts of outputs", count_slices(strategy, examined, tensors))
        shapes = {tensor.spec.name: tensor.spec.shape for tensor in tensors}
        kinds = {
            (stage, layout, shapes[name] if layout.row_split else tuple(map(bool, shapes[name])))
            for stage, layouts in enumerate(strategy.stages)
            for name, layout in layouts.items()
            if name in shapes
        }
        check_count("layouts over all ranks", len(kinds) * len(ranks))
        return len(ranks)


@dataclass(frozen=True, slots=True, eq=False)
class _StageTensors:
    """Tensors that some ranks of one stage hold, in file order, each with how it is cut; compared by identity."""

    tensors: tuple[int, ...]
    partitions: tuple[Partition, ...]

    def is_split_by_hand(self, slot: int) -> bool:
        layout = self.partitions[slot].layout
        return layout is not None and layout.row_split is not None


def _distinguishing_slots(shares: Iterable[_StageTensors]) -> dict[_StageTensors, tuple[_StageTensors, list[int]]]:
    """Find, for each share, the first one of the same tensors and a few slots whose boxes tell their ranks apart.

    Two devices hold equal boxes of a tensor just when they hold equal boxes of any other of the same
    layouts, if both tensors have elements along the same axes. So one slot for each such kind is enough; where
    several stages hold the same tensors, the layouts of all of them make the kind.
    """
    sharers: dict[tuple[int, ...], list[_StageTensors]] = {}
    for share in dict.fromkeys(shares):
        sharers.setdefault(share.tensors, []).append(share)
    found: dict[_StageTensors, tuple[_StageTensors, list[int]]] = {}
    for same in sharers.values():
        slots: dict[Hashable, int] = {}
        for slot, partitions in enumerate(zip(*(share.partitions for share in same), strict=True)):
            if any(partition.layout for partition in partitions):
                slots.setdefault(tuple(map(_kind, partitions)), slot)
        found |= {share: (same[0], list(slots.values())) for share in same}
    return found


def _kind(partition: Partition) -> Hashable:
    """Return what decides which devices hold equal boxes."""
    is_by_hand = partition.layout is not None and partition.layout.row_split
    return id(partition.layout), partition.extent if is_by_hand else tuple(map(bool, partition.extent))


def _without_redundancy(share: _StageTensors, slots: Mapping[str, int], device_count: int) -> list[_StageTensors]:
    """Return what each device of a stage writes if every box of the named slots is written once."""
    owners_of: dict[Hashable, list[tuple[int, ...]]] = {}
    for slot in slots.values():
        partition = share.partitions[slot]
        if (kind := _kind(partition)) not in owners_of:
            boxes: dict[Hashable, list[int]] = {}
            for device in range(device_count):
                boxes.setdefault(partition.box(device), []).append(device)
            owners_of[kind] = [tuple(devices) for devices in boxes.values()]
    writers = assign_writers({name: owners_of[_kind(share.partitions[slot])] for name, slot in slots.items()})
    writers_of = {slots[name]: devices for name, devices in writers.items()}
    kept: list[list[int]] = [[] for _ in range(device_count)]
    for slot in range(len(share.tensors)):
        for device in writers_of.get(slot, range(device_count)):
            kept[device].append(slot)
    parts: dict[tuple[int, ...], _StageTensors] = {}
    for slots_kept in set(map(tuple, kept)):
        held = [(share.tensors[slot], share.partitions[slot]) for slot in slots_kept]
        parts[slots_kept] = _StageTensors(tuple(index for index, _ in held), tuple(partition for _, partition in held))
    return [parts[tuple(each)] for each in kept]


def assign_writers(owners: Mapping[str, Sequence[tuple[int, ...]]]) -> dict[str, list[int]]:
    """Choose the rank that writes each box of one pipeline stage, as MindSpore does to save without redundancy.

    Every set of ranks that share boxes takes turns over the tensors that they share, in the order of the
    tensors' names; sizes do not matter. A tensor of several stages is written on each: a rank that loads
    asks the ranks of its own stage only. ``owners`` has, of each tensor, for each of its distinct boxes, the ranks that
    own it, ascending; the result has the one that writes it instead.

    Examples
    --------
    >>> assign_writers({name: [(0, 1)] for name in "abc"})
    {'a': [0], 'b': [1], 'c': [0]}

    Source: mindspore 2.10.0, ``train/_utils.py``, ``remove_param_redundancy`` (keep_redundancy=1).
    Its groups of ranks are wrong for nested tensor maps, and empty for some optimizer shards of
    size -1; here they follow from the boxes, so that every box has a writer.
    """
    turns: Counter[tuple[int, ...]] = Counter()
    writers: dict[str, list[int]] = {}
    for name in sorted(owners):
        writers[name] = [ranks[turns[ranks] % len(ranks)] for ranks in owners[name]]
        turns.update(owners[name])  # boxes of one tensor have different owners, so the turns above were its own
    return writers
