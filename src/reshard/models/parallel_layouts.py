"""A strategy from numbers: the layouts that training would compile, without training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import StrategyError, UsageError, raise_all
from ..tensor import Layout, Shape, Strategy
from .parallel import Parallel
from .parallel_rules import CutRule, NamingLayouts, Place, load_layouts, plain_name, same_option
from .parallel_stages import last_stage, layer_stages

_LAYER_KEYS = ("num_hidden_layers", "num_layers")
_TAIL_KEYS = ("num_nextn_predict_layers", "mtp_num_layers", "mtp_depth")
_EXPERT_KEYS = ("num_local_experts", "n_routed_experts", "num_experts", "num_routed_experts", "expert_num")
_HEAD_KEYS = {
    "num_attention_heads": ("num_attention_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "n_kv_heads", "multi_query_group_num", "num_query_groups"),
}


def strategy_from_numbers(
    family: str,
    naming: str,
    parallel: Parallel,
    shapes: Mapping[str, Shape],
    *,
    nbytes: Mapping[str, int] | None = None,
    config: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
) -> Strategy:
    """Compute the layouts that training with these numbers gives every tensor.

    Parameters
    ----------
    family, naming
        Which entry of which family's data to follow.
    parallel
        The numbers.
    shapes
        Of every full tensor, in elements. Which tensors are there matters: without a head the
        embedding is taken to be tied, with LoRA leaves all other weights to be frozen.
    nbytes
        Size of each full tensor in bytes as training keeps it, for the threshold of the parallel
        optimizer; not needed where ``parallel.param_dtype`` says it, or nothing is compared.
    config
        What config.json says; numbers of layers, heads and experts are taken from it if they are there.
    options
        The options of the naming; some make slices impossible.

    Returns
    -------
    Strategy
        Tensors that MindSpore's strategy files do not have (counters, seeds) are in none of its stages.

    Raises
    ------
    UsageError
        No such family or naming.
    StrategyError
        Numbers, names and shapes do not fit each other; all that is found is listed.

    Examples
    --------
    >>> name = "model.layers.0.attention.wo.weight"
    >>> strategy = strategy_from_numbers("llama", "legacy", Parallel(dp=2, mp=4), {name: (64, 64)})
    >>> strategy.layout(name, rank=5).box_of((64, 64), rank=5)
    Box(start=(0, 16), stop=(64, 32))

    Source: MindSpore Transformers 1.5.0 to 1.8.0: strategy files compiled from its networks; vLLM 0.9 for
    names of Hugging Face.
    """
    namings = load_layouts(family)
    if naming not in namings:
        raise UsageError(f"family {family} has no layouts for naming {naming!r}", hint=f"It has {', '.join(namings)}.")
    made = _Maker(namings[naming].with_options(options or {}), parallel, shapes, nbytes, config or {})
    told = f"these numbers do not fit {family} ({naming})"
    raise_all(StrategyError, told, [*made.contradictions(options or {})])
    stages: list[dict[str, Layout]] = [{} for _ in range(parallel.pp)]
    problems: list[str] = []
    for name in shapes:
        try:
            layout, holders = made.place(name)
        except StrategyError as error:
            problems.append(f"{name}: {error.message}")
            continue
        for stage in holders:
            stages[stage][name] = layout
    raise_all(StrategyError, told, problems)
    return Strategy(parallel.stage_rank_count, tuple(stages))


@dataclass
class _Maker:
    """What is the same for all tensors of one strategy."""

    naming: NamingLayouts
    parallel: Parallel
    shapes: Mapping[str, Shape]
    nbytes: Mapping[str, int] | None
    config: Mapping[str, object]
    _places: dict[str, Place | None] = field(init=False)
    _layers: tuple[int, ...] = field(init=False)
    _tail: int = field(init=False)

    def __post_init__(self) -> None:
        self._places = {name: self.naming.locate(name) for name in self.shapes}
        self._has_lora = any(place.lora for place in self._found)
        self._has_experts = any(place.rule.grid == "experts" or "e" in place.numbers for place in self._found)
        self._is_tied = not any(place.rule.stage == "last" and place.rule.tied == "head" for place in self._found)
        self._tail = max((p.numbers["j"] + 1 for p in self._found if p.rule.stage == "tail"), default=0)
        self._layers = layer_stages(self._layer_count(), self.parallel, self.naming.stages)
        self._last = last_stage(self.parallel, self.naming.stages)
        self._made: dict[object, Layout] = {}

    @property
    def _found(self) -> Iterator[Place]:
        return (place for place in self._places.values() if place is not None)

    def _layer_count(self) -> int:
        counted = max((place.numbers["i"] + 1 for place in self._found if "i" in place.numbers), default=1)
        told = self._number(*_LAYER_KEYS)
        if told is None:
            return counted
        if self.naming.extra_layers == "last":
            return told
        tail = self._tail or (self._number(*_TAIL_KEYS) or 0) * any(r.stage == "tail" for r in self.naming.rules)
        return max(counted, told + tail)

    def _number(self, *keys: str) -> int | None:
        """The first of several keys of config.json that holds a positive number."""
        values = [self.config.get(key) for key in keys]
        return next((value for value in values if type(value) is int and value > 0), None)

    def contradictions(self, options: Mapping[str, object]) -> Iterator[str]:
        """What is wrong with the numbers, whatever the tensor."""
        parallel, naming = self.parallel, self.naming
        if None not in (parallel.use_legacy, naming.use_legacy) and parallel.use_legacy != naming.use_legacy:
            yield f"use_legacy: {parallel.use_legacy}, but these names are of networks with {naming.use_legacy}"
        for key in naming.heads:
            count, ways = self._number(*_HEAD_KEYS[key]), parallel.mp * parallel.ulysses_degree_in_cp
            if count is not None and count % ways:
                yield f"mp * ulysses_degree_in_cp: {ways} does not divide {key} = {count}"
        if self._has_experts:
            yield from self._wrong_experts()
        blocks = options.get("blocks", 1)
        made_of_runs = [option for option, value in naming.runs if same_option(options.get(option), value)]
        if (made_of_runs or blocks != 1) and (type(blocks) is not int or blocks % parallel.mp):
            yield (
                f"blocks: expected a multiple of mp = {parallel.mp}, found {blocks}: each rank holds parts of every "
                "run, so that a plain cut needs as many runs"
            )
        if self._needs_nbytes and self.nbytes is None:
            yield "the optimizer's threshold needs the size of each tensor, or param_dtype"

    @property
    def _needs_nbytes(self) -> bool:
        return (
            self.parallel.optimizer_shard
            and bool(self.parallel.optimizer_threshold_kib)
            and not self.parallel.param_dtype
        )

    def _wrong_experts(self) -> Iterator[str]:
        parallel, count = self.parallel, self._number(*_EXPERT_KEYS)
        if parallel.ep > 1 and not self.naming.expert_parallel:
            yield (
                f"ep: {parallel.ep}, but in this naming each expert is a tensor of its own, and no layout says that "
                "a rank holds none of it; cut experts by mp"
            )
        if count is not None and count % parallel.ep:
            yield f"ep: {parallel.ep} does not divide the {count} experts"
        if "mp" in self.naming.experts and parallel.dp % parallel.ep:
            yield f"ep: {parallel.ep} does not divide dp = {parallel.dp}, as these networks need"
        if self.naming.seq_parallel_with_experts and parallel.mp > 1 and not parallel.use_seq_parallel:
            yield "experts with mp > 1 need use_seq_parallel: add sp=true"

    def place(self, name: str) -> tuple[Layout, tuple[int, ...]]:
        """The layout of a tensor, and the stages that hold it; none for what strategy files do not have."""
        place = self._places[name]
        if place is None:
            if self.naming.is_outside(plain_name(name)):
                return Layout((self.parallel.stage_rank_count,), ()), ()
            raise StrategyError("no rule for this name")
        return self._layout(name, place), self._stages(place)

    def _stages(self, place: Place) -> tuple[int, ...]:
        rule = place.rule
        if "i" in place.numbers:
            layer = place.numbers["i"]
            return (self._layers[layer] if layer < len(self._layers) else self._last,)
        if rule.stage == "tail":
            return (self._layers[len(self._layers) - self._tail + place.numbers["j"]],)
        if rule.stage != "first":
            return (self._last,)
        again = self._is_tied and (rule.tied == "weights" or (rule.tied == "states" and place.is_state))
        return tuple({0: None, self._last: None}) if again else (0,)

    def _layout(self, name: str, place: Place) -> Layout:
        shape = self.shapes[name]
        if place.rule.uncuttable and self.parallel.mp > 1:
            raise StrategyError(f"cannot be cut over mp = {self.parallel.mp}: {place.rule.uncuttable}")
        split = self._split(place, shape)
        if len(split) > len(shape):
            raise StrategyError(f"expected at least {len(split)} axes, found {list(shape)}")
        sizes = self._grid(place.rule, split)
        kept = [axis for axis, size in sizes.items() if size > 1]
        matrix = tuple(sizes[axis] for axis in kept) or (1,)
        axes = (*split, *((),) * (len(shape) - len(split)))
        entries = tuple(tuple(len(kept) - 1 - kept.index(a) for a in axis if a in kept) for axis in axes)
        plain = self._kept(Layout(matrix, entries))
        plain.check(shape)
        pieces = self._optimizer_pieces(plain, name, place)
        layout = self._kept(Layout(matrix, entries, optimizer_shard_size=pieces)) if pieces else plain
        layout.check(shape)
        self._check_scales(name, layout)
        return layout

    def _check_scales(self, name: str, layout: Layout) -> None:
        """Refuse scales whose blocks would lie on two ranks."""
        weight = self.shapes.get(name.removesuffix("_scale_inv"), ())
        if not name.endswith("_scale_inv") or not weight:
            return
        quantised = self.config.get("quantization_config")
        said = quantised.get("weight_block_size") if isinstance(quantised, dict) else None
        blocks = said if isinstance(said, list) and all(type(b) is int and b > 0 for b in said) else [128, 128]
        for axis, (extent, ways, block) in enumerate(zip(weight, layout.cuts, blocks, strict=False)):
            if ways > 1 and extent // ways % block:
                raise StrategyError(f"blocks of {block} do not fit axis {axis} of {list(weight)} cut {ways} ways")

    def _kept(self, layout: Layout) -> Layout:
        """One object for equal layouts: models have thousands of tensors, and few layouts."""
        return self._made.setdefault(layout, layout)

    def _split(self, place: Place, shape: Shape) -> tuple[tuple[str, ...], ...]:
        rule = place.rule
        split = () if self._is_whole(rule, shape) else rule.split
        rows, columns = (*split, (), ())[:2]
        return {"": split, "a": ((), columns), "b": (rows, ())}[place.lora]

    def _is_whole(self, rule: CutRule, shape: Shape) -> bool:
        parallel = self.parallel
        ways = math.prod(self._grid(rule, rule.split)[axis] for axis in rule.split[0]) if rule.split else 1
        reasons = {
            # The networks switch it off when there are stages: embedding and head are apart then.
            "vocab_emb_dp": parallel.vocab_emb_dp and parallel.pp == 1,
            "use_seq_parallel": parallel.use_seq_parallel,
            "indivisible": bool(shape) and shape[0] % ways != 0,
        }
        return any(reasons[reason] for reason in rule.whole_if)

    def _grid(self, rule: CutRule, split: tuple[tuple[str, ...], ...]) -> dict[str, int]:
        """Axes of the device grid, slowest first, and their sizes."""
        parallel = self.parallel
        if rule.grid == "experts":
            sizes = {axis: getattr(parallel, axis) for axis in self.naming.experts if axis != "rest"}
            if parallel.stage_rank_count % math.prod(sizes.values()):
                raise StrategyError(f"{sizes} do not fit the {parallel.stage_rank_count} ranks of a stage")
            rest = parallel.stage_rank_count // math.prod(sizes.values())
            return {axis: sizes.get(axis, rest) for axis in self.naming.experts}
        heads = self._number(*_HEAD_KEYS[rule.heads]) if rule.heads else None
        sizes = {"dp": parallel.dp, "cp": parallel.cp}
        if heads is None or heads % parallel.mp == 0 or not split:
            return {**sizes, "mp": parallel.mp}
        if not rule.replicate or parallel.mp % heads:
            raise StrategyError(f"{rule.heads} = {heads} cannot be dealt out to {parallel.mp} ranks")
        return {**sizes, "mp": heads, "repeats": parallel.mp // heads}

    def _optimizer_pieces(self, plain: Layout, name: str, place: Place) -> int:
        """As training decides: pieces over all replicas or so many, or none if anything is in the way.

        Source: mindspore 2.7.2, compiled strategies: a cut that does not fit is left out; no smaller one is tried.
        """
        parallel, shape, replicas = self.parallel, self.shapes[name], plain.replica_count
        size = parallel.optimizer_weight_shard_size
        pieces = replicas if size == -1 else min(size, replicas)
        frozen = self._has_lora and not place.lora
        if not parallel.optimizer_shard or not (place.rule.optimizer or place.lora) or frozen or not shape:
            return 0
        if pieces == 1 or replicas % pieces or shape[0] % (plain.cuts[0] * pieces):
            return 0
        if self._weight_nbytes(name, place) < parallel.optimizer_threshold_kib * 1024:
            return 0
        return -1 if size == -1 else pieces

    def _weight_nbytes(self, name: str, place: Place) -> int:
        """Of the weight, for its states too: they are cut as it is."""
        holder = place.weight if place.weight in self.shapes else name
        if self.parallel.param_dtype is not None:
            return self.parallel.param_dtype.nbytes(math.prod(self.shapes[holder]))
        return self.nbytes[holder] if self.nbytes is not None else 0
