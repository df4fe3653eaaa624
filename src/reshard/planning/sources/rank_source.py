"""From what rank shards hold, and the strategy they were cut by, to one catalog of whole tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ...errors import CatalogError, StrategyError, raise_all
from ...tensor import Box, Layout, Strategy, TensorSpec, extent_of
from ..catalog import Catalog, Entry, Placement, SourceSharding, Stored
from ..targets.strategy_check import is_state
from .full_source import ALL_NAMES, Opened, common_metadata, common_texts, dropped_names, placements_of
from .selection import NameFilter

_OF_THESE = "Is this the strategy that these shards were written under, with all its stages?"
_DECIDE = "Leave them out with --drop, or take one rank's with --keep-rank."

Shards = Mapping[int, Opened]


def rank_catalog(
    url: str,
    shards: Shards,
    strategy: Strategy,
    notes: Iterable[str] = (),
    *,
    names: NameFilter = ALL_NAMES,
    keep_rank: int | None = None,
) -> tuple[Catalog, tuple[str, ...]]:
    """Describe a source of one object a rank, cut by a strategy.

    Tensors without a layout must be the same on every rank that has them.

    Parameters
    ----------
    shards
        By rank: the object and what it holds.
    names
        Which tensors to take.
    keep_rank
        Whose copy to take of tensors without a layout whose dtypes or shapes differ between ranks.

    Returns
    -------
    tuple
        The catalog, and the names of tensors without a layout that several ranks hold: their
        headers agree, whether their bytes do must still be seen.

    Raises
    ------
    StrategyError
        Shards that contradict the strategy: ranks, axes, shapes.
    CatalogError
        Boxes that no shard holds, dtypes that differ.
    """
    beyond = [f"rank {rank}: {shards[rank][0].key}" for rank in shards if rank >= strategy.rank_count]
    raise_all(StrategyError, f"{url}: the source strategy has only {strategy.rank_count} ranks", beyond, _OF_THESE)
    builder = _RankCatalog(shards, strategy, names, keep_rank)
    for stage in range(strategy.stage_count):
        for name in strategy.stages[stage]:
            builder.add_stage(name, stage)
    builder.add_outside()
    objects = list(shards.values())
    texts = builder.texts(objects)
    builder.raise_problems(url)
    kind = f"rank shards ({len(shards)} of {strategy.rank_count} ranks, {strategy.stage_count} stages)"
    catalog = Catalog(
        url,
        kind,
        tuple(item for item, _ in objects),
        builder.entries(),
        common_metadata(objects),
        (*notes, *builder.notes),
        texts=texts,
        dropped=dropped_names(objects, names),
    )
    return catalog, builder.to_compare


class _RankCatalog:
    """Collects each tensor's boxes over the ranks, and what contradicts."""

    def __init__(self, shards: Shards, strategy: Strategy, names: NameFilter, keep_rank: int | None) -> None:
        self._strategy = strategy
        self._names = names
        self._keep_rank = keep_rank
        self._stored: dict[int, dict[str, Stored]] = {
            rank: {stored.spec.name: stored for stored in contents.tensors if names.is_kept(stored.spec.name)}
            for rank, (_, contents) in shards.items()
        }
        self._flags = Counter(contents.metadata.get("remove_redundancy") for _, contents in shards.values())
        self._index = {rank: index for index, rank in enumerate(shards)}
        self._found: dict[str, Entry] = {}
        self._shape_problems: list[str] = []
        self._other_problems: list[str] = []
        self._missing: dict[tuple[int, ...], list[str]] = {}
        self._absent: list[str] = []
        self._unsure: dict[str, list[tuple[int, ...]]] = {}
        self._lacking: dict[int, int] = {}
        self._several: dict[str, list[int]] = {}
        self._kept: list[str] = []
        self.to_compare: tuple[str, ...] = ()

    def add_stage(self, name: str, stage: int) -> None:
        """Take a tensor's boxes from the ranks of one stage."""
        layout, first = self._strategy.stages[stage][name], stage * self._strategy.device_count
        ranks = range(first, first + self._strategy.device_count)
        held = {rank: self._stored[rank][name] for rank in ranks if name in self._stored.get(rank, ())}
        if not held:
            self._note_absent(name, ranks)
            return
        spec = self._full_spec(name, layout, held)
        if spec is None:
            return
        if name in self._found:
            self._add_copy(name, stage, spec)
            return
        owners: dict[Box, list[int]] = {}
        for rank in ranks:
            owners.setdefault(self._box(spec, layout, rank), []).append(rank)
            if rank not in held:
                self._lacking[rank] = self._lacking.get(rank, 0) + 1
        placements: list[Placement] = []
        for box, owning in owners.items():
            holding = [(self._index[rank], held[rank]) for rank in owning if rank in held]
            if holding:
                placements += placements_of(holding, box.start)
            else:
                self._missing.setdefault(tuple(owning), []).append(name)
        self._found[name] = Entry(
            spec, tuple(placements), SourceSharding.SHARDED if len(owners) > 1 else SourceSharding.WHOLE
        )

    def _note_absent(self, name: str, ranks: range) -> None:
        """A tensor that no shard has was perhaps never saved; but only if all who may have it are there."""
        if not self._names.is_kept(name):
            return
        if all(rank in self._stored for rank in ranks):
            self._absent.append(name)
        else:
            self._unsure.setdefault(name, []).append(tuple(ranks))

    def add_outside(self) -> None:
        """Take the tensors that the strategy does not lay out."""
        holders: dict[str, list[int]] = {}
        for rank, tensors in self._stored.items():
            here = self._strategy.stages[self._strategy.stage_of(rank)]
            for name in tensors:
                if name not in here:
                    holders.setdefault(name, []).append(rank)
        for name, ranks in holders.items():
            if name in self._found or name in self._strategy.names:
                self._other_problems.append(f"{name}: on ranks {ranks}, but the strategy has it on other stages only")
                continue
            self._add_outside(name, ranks)

    def _add_outside(self, name: str, ranks: Sequence[int]) -> None:
        specs = {rank: self._stored[rank][name].spec for rank in ranks}
        if len(set(specs.values())) > 1:
            if self._keep_rank not in specs:
                self._other_problems.append(f"{name}: has no layout and differs between ranks: {_differences(specs)}")
                return
            self._kept.append(name)
            ranks = [self._keep_rank]
        elif len({tuple(box for box, _ in self._stored[rank][name].boxes) for rank in ranks}) > 1:
            # Only copies that are cut alike can be held together, and so be compared.
            if self._keep_rank not in specs:
                self._other_problems.append(f"{name}: has no layout and stands in other pieces on other ranks")
                return
            self._kept.append(name)
            ranks = [self._keep_rank]
        elif len(ranks) > 1:
            self.to_compare = (*self.to_compare, name)
        placements = placements_of([(self._index[rank], self._stored[rank][name]) for rank in ranks])
        self._found[name] = Entry(specs[ranks[0]], placements, SourceSharding.UNLISTED)

    def texts(self, objects: Sequence[Opened]) -> dict[str, str]:
        """Texts that all ranks agree on, or that one rank decides."""
        texts, differing = common_texts(objects, self._names)
        if self._keep_rank in self._index:
            kept = objects[self._index[self._keep_rank]][1].texts
            texts |= {name: kept[name] for name in differing if name in kept}
        self._other_problems += [f"{name}: text that differs between ranks" for name in differing if name not in texts]
        return texts

    @property
    def notes(self) -> tuple[str, ...]:
        """Where shards hold less than the strategy says."""
        absent = sorted(set(self._absent) - set(self._found))
        lacking = {rank: count for rank, count in self._lacking.items() if rank in self._index}
        notes = [f"{len(absent)} tensors of the source strategy are in no shard: {_some(absent)}"]
        alone = f"{sum(lacking.values())} boxes are missing on {_ranks(sorted(lacking))} and taken from other ranks: "
        notes.append(f"{alone}shards saved without redundancy, or not of this strategy ({self._flagged()})")
        notes.append(
            f"{len(self._several)} tensors are on several stages and taken from the first: {_some(self._several)}"
        )
        notes.append(f"{len(self._kept)} tensors without a layout are rank {self._keep_rank}'s: {_some(self._kept)}")
        told = self._flags.get("True", 0) and not lacking
        notes.append(f"{self._flagged()}, but no box of the strategy is missing anywhere")
        gone = [rank for rank in range(self._strategy.rank_count) if rank not in self._stored]
        notes.append(
            f"{len(gone)} of {self._strategy.rank_count} ranks have no shard ({_ranks(gone)}); the strategy gives "
            "others all that they held"
        )
        applying = (absent, lacking, self._several, self._kept, told, gone)
        return tuple(note for note, applies in zip(notes, applying, strict=True) if applies)

    def _flagged(self) -> str:
        """What the headers themselves say of redundancy; it decides nothing."""
        return f"remove_redundancy is True in {self._flags['True']} of {len(self._stored)} headers"

    def entries(self) -> tuple[Entry, ...]:
        """Every tensor with its boxes."""
        return tuple(self._found.values())

    def _raise_other_naming(self, url: str) -> None:
        """Refuse matrices without a layout beside layouts without a tensor: they were cut, under another name."""
        names = {name for tensors in self._stored.values() for name in tensors}
        unmet = sorted(name for name in set(self._absent) - set(self._found) if not is_state(name, names))
        strange = sorted(
            name for name, e in self._found.items() if e.sharding is SourceSharding.UNLISTED and len(e.spec.shape) > 1
        )
        if unmet and strange:
            raise StrategyError(
                f"{url}: the source strategy and the shards name tensors differently: {len(unmet)} names of the "
                f"strategy are in no shard, {len(strange)} tensors of more than one axis are not in the strategy",
                problems=[
                    *(f"only in the strategy: {name}" for name in unmet),
                    *(f"only in the shards: {name}" for name in strange),
                ],
                hint=_OF_THESE,
            )

    def raise_problems(self, url: str) -> None:
        """Raise what was found, worst first."""
        self._raise_other_naming(url)
        for name, owners in self._unsure.items():
            if name not in self._found:
                for ranks in owners:
                    self._missing.setdefault(ranks, []).append(name)
        raise_all(StrategyError, f"{url}: shards do not fit the source strategy", self._shape_problems, _OF_THESE)
        missing = [
            f"{_ranks(owners)}: {len(names)} tensors, {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            f"{_no_shard(owners, self._stored)}"
            for owners, names in self._missing.items()
        ]
        raise_all(
            CatalogError,
            f"{url}: no shard holds these parts of tensors",
            missing + self._other_problems if missing else [],
            hint="Copy what is missing there: for a line with several ranks the object of any one that has it is "
            "enough. Or leave these tensors out with --drop.",
        )
        hint = f"Are all shards of one checkpoint? Write the odd ones again. {_DECIDE}"
        raise_all(CatalogError, f"{url}: shards contradict each other", self._other_problems, hint)

    def _full_spec(self, name: str, layout: Layout, held: Mapping[int, Stored]) -> TensorSpec | None:
        """The whole tensor's spec, or None with a problem noted."""
        specs = {rank: stored.spec for rank, stored in held.items()}
        local = next(iter(specs.values()))
        if len({spec.dtype for spec in specs.values()}) > 1:
            self._other_problems.append(f"{name}: dtype differs between ranks: {_differences(specs)}")
            return None
        try:
            full = TensorSpec(name, local.dtype, layout.full_shape(local.shape))
            if local.dtype.is_sub_byte and {*layout.cuts, layout.optimizer_pieces} - {1}:
                raise StrategyError(f"{local.dtype} has no whole bytes to cut between")
            first = next(iter(specs))
            wrong = {
                rank: spec
                for rank, spec in specs.items()
                if spec.shape != layout.box_of(full.shape, rank % layout.device_count).shape
            }
            if wrong:
                self._shape_problems.append(
                    f"{name}: rank {first} has {list(local.shape)}, so with device matrix "
                    f"{list(layout.device_matrix)} and tensor map {[list(a) for a in layout.tensor_map]} "
                    f"the whole is {list(full.shape)}; that contradicts {_differences(wrong)}"
                )
                return None
        except StrategyError as error:
            self._shape_problems.append(f"{name}: {error.message}")
            return None
        return full

    def _box(self, spec: TensorSpec, layout: Layout, rank: int) -> Box:
        if spec.dtype.is_sub_byte:
            return Box.whole(extent_of(spec)[0])
        return layout.box_of(spec.shape, rank % layout.device_count)

    def _add_copy(self, name: str, stage: int, spec: TensorSpec) -> None:
        """A tensor of several stages: it is taken from the first, so that no output mixes two copies."""
        known = self._found[name].spec
        if known != spec:
            self._other_problems.append(
                f"{name}: whole on stage {stage} it is {spec.dtype} {list(spec.shape)}, "
                f"on an earlier stage {known.dtype} {list(known.shape)}"
            )
            return
        self._several.setdefault(name, []).append(stage)


def _differences(specs: Mapping[int, TensorSpec]) -> str:
    by_spec: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for rank, spec in specs.items():
        by_spec.setdefault((spec.dtype.value, spec.shape), []).append(rank)
    return "; ".join(f"{_ranks(ranks)} has {dtype} {list(shape)}" for (dtype, shape), ranks in by_spec.items())


def _some(names: Iterable[str], shown: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}"


def _no_shard(owners: Sequence[int], stored: Mapping[int, object]) -> str:
    lacking = [rank for rank in owners if rank not in stored]
    return f" (no shard of {_ranks(lacking)})" if lacking else ""


def of_rank(catalog: Catalog, name: str, rank: int, key: str) -> Catalog:
    """Take one rank's copy of a tensor that differs between ranks, from the object ``key``.

    Raises
    ------
    CatalogError
        That object does not hold the tensor.
    """
    index = next((i for i, item in enumerate(catalog.objects) if item.key == key), -1)
    entries = tuple(_only_from(entry, index) if entry.spec.name == name else entry for entry in catalog.entries)
    if any(not placement.holders for entry in entries for placement in entry.placements):
        raise CatalogError(f"{catalog.url}: {name}: rank {rank} does not have it")
    return replace(catalog, entries=entries)


def _only_from(entry: Entry, index: int) -> Entry:
    return replace(
        entry,
        placements=tuple(
            replace(placement, holders=tuple(holder for holder in placement.holders if holder[0] == index))
            for placement in entry.placements
        ),
    )
