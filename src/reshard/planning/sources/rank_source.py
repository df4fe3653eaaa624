"""Catalogs of rank shards: whole tensors put together by the strategy that cut them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ...errors import CatalogError, StrategyError, option, raise_all
from ...formats.container_format import HeaderTensor
from ...tensor import Box, Layout, Strategy, TensorSpec, extent_of
from ..catalog import Catalog, Entry, Placement, SourceSharding
from ..outputs.output import sample
from ..targets.strategy_check import is_state
from .source_headers import SourceHeaders, placements_of

_OF_THESE = "Is this the strategy that these shards were written under, with all its stages?"


def rank_catalog(
    source: SourceHeaders, ranks: Sequence[int], strategy: Strategy, keep_rank: int | None = None
) -> Catalog:
    """Describe a source of one object a rank, cut by a strategy.

    Tensors that the strategy does not list must be the same on every rank that has them. Only their headers are
    compared here: :attr:`Catalog.unlisted_copies` names those whose bytes must still be compared. ``keep_rank`` is the
    rank whose copy to take of those whose dtypes, shapes or pieces differ.

    ``ranks`` has the rank of each of the source's headers. Raise StrategyError for shards that contradict the strategy
    (ranks, axes, shapes), and CatalogError for boxes that no shard holds and dtypes that differ.
    """
    keys = {rank: header.object.key for rank, header in zip(ranks, source.headers, strict=True)}
    beyond = [f"rank {rank}: {key}" for rank, key in keys.items() if rank >= strategy.rank_count]
    message = f"{source.url}: the source strategy has only {strategy.rank_count} ranks"
    raise_all(StrategyError, message, beyond, _OF_THESE)
    join = _RankJoin(source, ranks, strategy, keep_rank)
    for stage, layouts in enumerate(strategy.stages):
        for name in layouts:
            join.add(name, stage)
    join.add_unlisted()
    texts = join.texts()
    join.raise_problems()
    kind = f"rank shards ({len(ranks)} of {strategy.rank_count} ranks, {strategy.stage_count} stages)"
    return replace(source, kind=kind).catalog(join.found.values(), texts, join.notes())


class _RankJoin:
    """Collects each tensor's boxes over the ranks, and contradictions."""

    def __init__(self, source: SourceHeaders, ranks: Sequence[int], strategy: Strategy, keep_rank: int | None) -> None:
        self._source = source
        self._strategy = strategy
        self._keep_rank = keep_rank
        self._index = {rank: index for index, rank in enumerate(ranks)}
        self._tensors: dict[int, dict[str, HeaderTensor]] = {
            rank: {t.spec.name: t for t in header.tensors if source.names.is_kept(t.spec.name)}
            for rank, header in zip(ranks, source.headers, strict=True)
        }
        self.found: dict[str, Entry] = {}
        self._misfits: list[str] = []
        self._contradictions: list[str] = []
        self._missing: dict[tuple[int, ...], list[str]] = {}  # names by the ranks that should hold a box
        self._absent: list[str] = []  # from every shard of a stage, all of whose shards are there
        self._unsure: dict[str, list[tuple[int, ...]]] = {}  # absent from a stage of which shards are missing
        self._lacking: Counter[int] = Counter()  # boxes that a rank should hold and does not
        self._on_several_stages: list[str] = []
        self._kept: list[str] = []

    def add(self, name: str, stage: int) -> None:
        """Take a tensor's boxes from the ranks of one stage."""
        layout, first = self._strategy.stages[stage][name], stage * self._strategy.device_count
        ranks = range(first, first + self._strategy.device_count)
        held = {rank: self._tensors[rank][name] for rank in ranks if name in self._tensors.get(rank, ())}
        if not held:
            # A tensor that no shard has was perhaps never saved; but only if all who may have it are there.
            if self._source.names.is_kept(name):
                if all(rank in self._tensors for rank in ranks):
                    self._absent.append(name)
                else:
                    self._unsure.setdefault(name, []).append(tuple(ranks))
            return
        whole = self._whole(name, layout, {rank: tensor.spec for rank, tensor in held.items()})
        if whole is None:
            return
        spec, boxes = whole
        if name in self.found:
            # Of several stages the first is taken, so that no output mixes two copies.
            known = self.found[name].spec
            self._on_several_stages.append(name)
            if known != spec:
                self._contradictions.append(
                    f"{name}: whole on stage {stage} it is {spec.dtype} {list(spec.shape)}, "
                    f"on an earlier stage {known.dtype} {list(known.shape)}"
                )
            return
        self._lacking.update(rank for rank in ranks if rank not in held)
        owners: dict[Box, list[int]] = {}
        for rank, box in zip(ranks, boxes, strict=True):
            owners.setdefault(box, []).append(rank)
        placements: list[Placement] = []
        for box, owning in owners.items():
            if holding := [(self._index[rank], held[rank]) for rank in owning if rank in held]:
                placements += placements_of(holding, box.start)
            else:
                self._missing.setdefault(tuple(owning), []).append(name)
        sharding = SourceSharding.SHARDED if len(owners) > 1 else SourceSharding.WHOLE
        self.found[name] = Entry(spec, tuple(placements), sharding, layout.cuts)

    def _whole(
        self, name: str, layout: Layout, specs: Mapping[int, TensorSpec]
    ) -> tuple[TensorSpec, Sequence[Box]] | None:
        """Return the whole tensor and every device's box of it, or None after noting why there is none."""
        first, local = next(iter(specs.items()))
        if len({spec.dtype for spec in specs.values()}) > 1:
            self._contradictions.append(f"{name}: dtype differs between ranks: {_differences(specs)}")
            return None
        try:
            spec = TensorSpec(name, local.dtype, layout.full_shape(local.shape))
            if spec.dtype.is_sub_byte and {*layout.cuts, layout.optimizer_pieces} - {1}:
                raise StrategyError(f"{spec.dtype} has no whole bytes to cut between")
            boxes = [layout.box_of(spec.shape, device) for device in range(layout.device_count)]
        except StrategyError as error:
            self._misfits.append(f"{name}: {error.marked_message}")
            return None
        wrong = {rank: each for rank, each in specs.items() if each.shape != boxes[rank % layout.device_count].shape}
        if wrong:
            self._misfits.append(
                f"{name}: rank {first} has {list(local.shape)}, so with device matrix "
                f"{list(layout.device_matrix)} and tensor map {[list(a) for a in layout.tensor_map]} "
                f"the whole is {list(spec.shape)}; that contradicts {_differences(wrong)}"
            )
            return None
        # Boxes are in elements as they are addressed: of sub-byte tensors, in bytes of the whole.
        return spec, [Box.whole(extent_of(spec)[0])] * len(boxes) if spec.dtype.is_sub_byte else boxes

    def add_unlisted(self) -> None:
        """Take the tensors that the strategy does not list."""
        holders: dict[str, list[int]] = {}
        for rank, tensors in self._tensors.items():
            here = self._strategy.stages[self._strategy.stage_of(rank)]
            for name in tensors:
                if name not in here:
                    holders.setdefault(name, []).append(rank)
        for name, ranks in holders.items():
            if name in self.found or name in self._strategy.names:
                self._contradictions.append(f"{name}: on ranks {ranks}, but the strategy has it on other stages only")
                continue
            specs = {rank: self._tensors[rank][name].spec for rank in ranks}
            problem = ""
            if len(set(specs.values())) > 1:
                problem = f"is unlisted and differs between ranks: {_differences(specs)}"
            elif len({tuple(box for box, _ in self._tensors[rank][name].boxes) for rank in ranks}) > 1:
                # A placement's holders share its box: other copies would be left out, and never compared.
                problem = "is unlisted and cut into different pieces on different ranks"
            if problem and self._keep_rank not in specs:
                self._contradictions.append(f"{name}: {problem}")
                continue
            if problem and self._keep_rank is not None:
                self._kept.append(name)
                ranks = [self._keep_rank]
            placements = placements_of([(self._index[rank], self._tensors[rank][name]) for rank in ranks])
            self.found[name] = Entry(specs[ranks[0]], placements, SourceSharding.UNLISTED)

    def texts(self) -> dict[str, str]:
        """Return the texts that all ranks agree on, or that one rank decides."""
        texts, differing = self._source.texts()
        if self._keep_rank in self._index:
            kept = self._source.headers[self._index[self._keep_rank]].texts
            texts |= {name: kept[name] for name in differing if name in kept}
        self._contradictions += [f"{name}: text that differs between ranks" for name in differing if name not in texts]
        return texts

    def notes(self) -> Iterator[str]:
        """Yield where shards hold less or more than the strategy says."""
        if absent := sorted(set(self._absent) - self.found.keys()):
            yield f"{len(absent)} tensors of the source strategy are in no shard: {sample(absent, 5)}"
        # The headers' own flags decide nothing: boxes that are there are used, whatever a flag says.
        flags = Counter(header.metadata.get("remove_redundancy") for header in self._source.headers)
        flagged = f"remove_redundancy is True in {flags['True']} of {len(self._index)} headers"
        if lacking := {rank: count for rank, count in self._lacking.items() if rank in self._index}:
            yield (
                f"{sum(lacking.values())} boxes are missing on {_ranks(sorted(lacking))} and taken from other ranks: "
                f"shards saved without redundancy, or not of this strategy ({flagged})"
            )
        if several := list(dict.fromkeys(self._on_several_stages)):
            yield f"{len(several)} tensors are on several stages and taken from the first: {sample(several, 5)}"
        if self._kept:
            yield f"{len(self._kept)} unlisted tensors are rank {self._keep_rank}'s: {sample(self._kept, 5)}"
        if flags["True"] and not lacking:
            yield f"{flagged}, but no box of the strategy is missing anywhere"
        if gone := [rank for rank in range(self._strategy.rank_count) if rank not in self._index]:
            yield (
                f"{len(gone)} of {self._strategy.rank_count} ranks have no shard ({_ranks(gone)}); "
                "the strategy gives others all that they held"
            )

    def raise_problems(self) -> None:
        """Raise the contradictions that were found, worst first."""
        url = self._source.url
        self._raise_other_naming()
        for name, stages in self._unsure.items():
            if name not in self.found:
                for ranks in stages:
                    self._missing.setdefault(ranks, []).append(name)
        raise_all(StrategyError, f"{url}: shards do not fit the source strategy", self._misfits, _OF_THESE)
        missing = []
        for owners, names in self._missing.items():
            gone = [rank for rank in owners if rank not in self._index]
            no_shard = f" (no shard of {_ranks(gone)})" if gone else ""
            missing.append(f"{_ranks(owners)}: {len(names)} tensors, {sample(names)}{no_shard}")
        hint = (
            "Copy the missing objects there: for a line with several ranks, the object of any of them is enough. "
            f"Or leave these tensors out with {option('drop')}."
        )
        problems = missing + self._contradictions if missing else []
        raise_all(CatalogError, f"{url}: no shard holds these parts of tensors", problems, hint)
        hint = (
            "Are all shards of one checkpoint? Write the odd ones again. Leave these tensors out with "
            f"{option('drop')}, or take one rank's copy with {option('keep_rank')}."
        )
        raise_all(CatalogError, f"{url}: shards contradict each other", self._contradictions, hint)

    def _raise_other_naming(self) -> None:
        """Refuse matrices without a layout beside layouts without a tensor: they were cut, under another name."""
        names = {name for tensors in self._tensors.values() for name in tensors}
        unmet = sorted(name for name in set(self._absent) - self.found.keys() if not is_state(name, names))
        strange = sorted(
            name for name, e in self.found.items() if e.sharding is SourceSharding.UNLISTED and len(e.spec.shape) > 1
        )
        if unmet and strange:
            raise StrategyError(
                f"{self._source.url}: the source strategy and the shards name tensors differently: "
                f"{len(unmet)} names of the strategy are in no shard, "
                f"{len(strange)} tensors of more than one axis are not in the strategy",
                problems=[
                    *(f"only in the strategy: {name}" for name in unmet),
                    *(f"only in the shards: {name}" for name in strange),
                ],
                hint=_OF_THESE,
            )


def _differences(specs: Mapping[int, TensorSpec]) -> str:
    by_spec: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for rank, spec in specs.items():
        by_spec.setdefault((spec.dtype.value, spec.shape), []).append(rank)
    return "; ".join(f"{_ranks(ranks)} has {dtype} {list(shape)}" for (dtype, shape), ranks in by_spec.items())


def _ranks(ranks: Iterable[int]) -> str:
    return f"rank {sample([str(rank) for rank in ranks], 8)}"


def take_copy_of_rank(catalog: Catalog, name: str, rank: int, key: str) -> Catalog:
    """Take one rank's copy of a tensor that differs between ranks, from the object ``key``.

    Raise CatalogError if that object does not hold the tensor.
    """
    index = next((i for i, item in enumerate(catalog.objects) if item.key == key), -1)
    entries = []
    for entry in catalog.entries:
        if entry.spec.name == name:
            placements = tuple(
                replace(placement, holders=tuple(holder for holder in placement.holders if holder[0] == index))
                for placement in entry.placements
            )
            if not all(placement.holders for placement in placements):
                raise CatalogError(f"{catalog.url}: {name}: rank {rank} does not have it")
            entry = replace(entry, placements=placements)
        entries.append(entry)
    return replace(catalog, entries=tuple(entries))
