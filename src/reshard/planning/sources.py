"""From the headers of a source's objects to one catalog: whole tensors, or a tensor's boxes over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import CatalogError, StrategyError, raise_all
from ..formats.safetensors import Header, StoredTensor
from ..tensor import Box, Layout, Strategy, TensorSpec
from .catalog import Catalog, Entry, Placement, SourceObject, extent_of

__all__ = ["common_metadata", "full_catalog", "rank_catalog"]

_OF_THESE = "Is this the strategy that these shards were written under, with all its stages?"

Shards = Mapping[int, tuple[SourceObject, Header]]


def full_catalog(
    url: str,
    kind: str,
    objects: Sequence[tuple[SourceObject, Header]],
    weight_map: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
) -> Catalog:
    """Describe a source whose objects hold whole tensors.

    Parameters
    ----------
    weight_map
        An index: tensor name to object key. It decides when a tensor is in several objects, and
        everything it names must be there; tensors it does not name are taken all the same.

    Raises
    ------
    CatalogError
        Tensors missing from the objects that the index names, or in several objects without one.
    """
    weight_map = weight_map or {}
    entries: dict[str, Entry] = {}
    problems = []
    for index, (item, header) in enumerate(objects):
        for stored in header.tensors:
            name = stored.spec.name
            if weight_map.get(name, item.key) != item.key:
                continue
            if name in entries:
                problems.append(f"{name}: in {_key_of(objects, entries[name])} and in {item.key}")
            entries[name] = Entry(stored.spec, (_whole(stored.spec, ((index, stored.range.start),)),))
    problems += [f"{name}: expected in {key}, not there" for name, key in weight_map.items() if name not in entries]
    hint = "Were all objects of one checkpoint copied, with their index?"
    raise_all(CatalogError, f"{url}: the objects do not make one checkpoint", problems, hint)
    return Catalog(
        url, kind, tuple(item for item, _ in objects), tuple(entries.values()), common_metadata(objects), tuple(notes)
    )


def rank_catalog(
    url: str, shards: Shards, strategy: Strategy, notes: Iterable[str] = ()
) -> tuple[Catalog, tuple[str, ...]]:
    """Describe a source of one object a rank, cut by a strategy.

    Tensors without a layout must be the same on every rank that has them.

    Parameters
    ----------
    shards
        By rank: the object and its header.

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
    builder = _RankCatalog(shards, strategy)
    for stage in range(strategy.stage_count):
        for name in strategy.stages[stage]:
            builder.add_stage(name, stage)
    builder.add_outside()
    builder.raise_problems(url)
    kind = f"rank shards ({len(shards)} of {strategy.rank_count} ranks, {strategy.stage_count} stages)"
    objects = list(shards.values())
    catalog = Catalog(
        url,
        kind,
        tuple(item for item, _ in objects),
        builder.entries(),
        common_metadata(objects),
        (*notes, *builder.notes),
    )
    return catalog, builder.to_compare


class _RankCatalog:
    """Collects each tensor's boxes over the ranks, and what contradicts."""

    def __init__(self, shards: Shards, strategy: Strategy) -> None:
        self._strategy = strategy
        self._stored: dict[int, dict[str, StoredTensor]] = {
            rank: {stored.spec.name: stored for stored in header.tensors} for rank, (_, header) in shards.items()
        }
        self._index = {rank: index for index, rank in enumerate(shards)}
        self._found: dict[str, tuple[TensorSpec, dict[Box, list[tuple[int, int]]]]] = {}
        self._shape_problems: list[str] = []
        self._other_problems: list[str] = []
        self._missing: dict[tuple[int, ...], list[str]] = {}
        self._absent: list[str] = []
        self._lacking: dict[int, int] = {}
        self._several: dict[str, list[int]] = {}
        self.to_compare: tuple[str, ...] = ()

    def add_stage(self, name: str, stage: int) -> None:
        """Take a tensor's boxes from the ranks of one stage."""
        layout, first = self._strategy.stages[stage][name], stage * self._strategy.device_count
        ranks = range(first, first + self._strategy.device_count)
        held = {rank: self._stored[rank][name] for rank in ranks if name in self._stored.get(rank, ())}
        if not held:
            self._absent.append(name)
            return
        spec = self._full_spec(name, layout, held)
        if spec is None:
            return
        if name in self._found:
            self._add_copy(name, stage, spec)
            return
        boxes: dict[Box, list[tuple[int, int]]] = {}
        owners: dict[Box, list[int]] = {}
        for rank in ranks:
            box = self._box(spec, layout, rank)
            owners.setdefault(box, []).append(rank)
            if rank in held:
                boxes.setdefault(box, []).append((self._index[rank], held[rank].range.start))
            else:
                self._lacking[rank] = self._lacking.get(rank, 0) + 1
        for box, owning in owners.items():
            if box not in boxes:
                self._missing.setdefault(tuple(owning), []).append(name)
        self._found[name] = (spec, boxes)

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
            specs = {rank: self._stored[rank][name].spec for rank in ranks}
            spec = specs[ranks[0]]
            if len(set(specs.values())) > 1:
                self._other_problems.append(f"{name}: has no layout and differs between ranks: {_differences(specs)}")
                continue
            places = [(self._index[rank], self._stored[rank][name].range.start) for rank in ranks]
            self._found[name] = (spec, {Box.whole(extent_of(spec)[0]): places})
            if len(ranks) > 1:
                self.to_compare = (*self.to_compare, name)

    @property
    def notes(self) -> tuple[str, ...]:
        """Where shards hold less than the strategy says."""
        absent = sorted(set(self._absent) - set(self._found))
        lacking = {rank: count for rank, count in self._lacking.items() if rank in self._index}
        notes = [f"{len(absent)} tensors of the source strategy are in no shard: {_some(absent)}"]
        alone = f"{sum(lacking.values())} boxes are missing on {_ranks(sorted(lacking))} and taken from other ranks: "
        notes.append(f"{alone}shards saved without redundancy, or not of this strategy")
        notes.append(
            f"{len(self._several)} tensors are on several stages and taken from the first: {_some(self._several)}"
        )
        return tuple(note for note, applies in zip(notes, (absent, lacking, self._several), strict=True) if applies)

    def entries(self) -> tuple[Entry, ...]:
        """Every tensor with its boxes."""
        return tuple(
            Entry(spec, tuple(Placement(box, tuple(places)) for box, places in boxes.items()))
            for spec, boxes in self._found.values()
        )

    def raise_problems(self, url: str) -> None:
        """Raise what was found, worst first."""
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
            hint="Copy what is missing there: for a line with several ranks the object of any one of them is enough.",
        )
        hint = "Are all shards of one checkpoint? Write the odd ones again."
        raise_all(CatalogError, f"{url}: shards contradict each other", self._other_problems, hint)

    def _full_spec(self, name: str, layout: Layout, held: Mapping[int, StoredTensor]) -> TensorSpec | None:
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
        known, _ = self._found[name]
        if known != spec:
            self._other_problems.append(
                f"{name}: whole on stage {stage} it is {spec.dtype} {list(spec.shape)}, "
                f"on an earlier stage {known.dtype} {list(known.shape)}"
            )
            return
        self._several.setdefault(name, []).append(stage)


def _whole(spec: TensorSpec, holders: tuple[tuple[int, int], ...]) -> Placement:
    return Placement(Box.whole(extent_of(spec)[0]), holders)


def _key_of(objects: Sequence[tuple[SourceObject, Header]], entry: Entry) -> str:
    return objects[entry.placements[0].holders[0][0]][0].key


def common_metadata(objects: Sequence[tuple[SourceObject, Header]]) -> dict[str, str]:
    """Metadata that no two headers disagree on."""
    values: dict[str, set[str]] = {}
    for _, header in objects:
        for key, value in header.metadata.items():
            values.setdefault(key, set()).add(value)
    return {key: found.pop() for key, found in values.items() if len(found) == 1}


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
