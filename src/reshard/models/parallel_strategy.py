"""The strategy that training with a parallel configuration would compile, without training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import StrategyError, UsageError, option, raise_all
from ..tensor import Layout, Shape, Strategy
from .family import is_same_option
from .family_file import FamilyKey
from .layer_stages import layer_stages
from .parallel_config import ParallelConfig
from .parallel_rules import CutRule, NamingLayouts, RuleMatch, load_layouts

_LAYER_KEYS = ("num_hidden_layers", "num_layers")
_TAIL_KEYS = ("num_nextn_predict_layers", "mtp_num_layers", "mtp_depth")
_EXPERT_KEYS = ("num_local_experts", "n_routed_experts", "num_experts", "num_routed_experts", "expert_num")
QKV_HEADS = "qkv_heads"
_HEAD_KEYS = {
    "num_attention_heads": ("num_attention_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "n_kv_heads", "multi_query_group_num", "num_query_groups"),
}


def derive_strategy(
    family: FamilyKey,
    naming: str,
    parallel: ParallelConfig,
    shapes: Mapping[str, Shape],
    *,
    nbytes: Mapping[str, int] | None = None,
    config: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
) -> Strategy:
    """Compute the layout that training with a parallel configuration gives every tensor.

    Tensors that MindSpore's strategy files do not list (training state, seeds) are in none of the stages.

    Parameters
    ----------
    shapes
        Of every full tensor, in elements. Which tensors are present matters: without a head the
        embedding counts as tied unless the config denies it, and with adapters all other weights as frozen.
    nbytes
        Size of each full tensor in bytes as training keeps it, for the threshold of the parallel
        optimizer; not needed if ``parallel.param_dtype`` is set or nothing is compared.
    config
        The contents of ``config.json``, for the numbers of layers, heads and experts.
    options
        Values of the family's options; some make slices impossible.

    Raises
    ------
    UsageError
        There is no such family or naming.
    StrategyError
        Degrees, names and shapes do not fit each other; all problems are listed.

    Examples
    --------
    >>> name = "model.layers.0.attention.wo.weight"
    >>> strategy = derive_strategy("llama", "legacy", ParallelConfig(dp=2, mp=4), {name: (64, 64)})
    >>> strategy.layout(name, rank=5).box_of((64, 64), rank=5)
    Box(start=(0, 16), stop=(64, 32))

    Source: MindSpore Transformers 1.5.0 to 1.8.0: strategy files compiled from its networks; vLLM 0.9 for
    names of Hugging Face.
    """
    compiler = compiler_for(family, naming, parallel, shapes, nbytes=nbytes, config=config, options=options)
    stages: list[dict[str, Layout]] = [{} for _ in range(parallel.pp)]
    problems: list[str] = []
    for name in shapes:
        try:
            layout, holders = compiler.compile(name)
        except StrategyError as error:
            problems.append(f"{name}: {error.marked_message}")
            continue
        for stage in holders:
            stages[stage][name] = layout
    raise_all(StrategyError, _misfit(family, naming), problems)
    return Strategy(parallel.stage_rank_count, tuple(stages))


def compiler_for(
    family: FamilyKey,
    naming: str,
    parallel: ParallelConfig,
    shapes: Mapping[str, Shape],
    *,
    nbytes: Mapping[str, int] | None = None,
    config: Mapping[str, object] | None = None,
    options: Mapping[str, object] | None = None,
) -> StrategyCompiler:
    """Prepare what compiles the layouts of single tensors, and check what concerns all; see :func:`derive_strategy`."""
    namings = load_layouts(family)
    if naming not in namings:
        hint = f"Namings with layouts: {', '.join(namings)}."
        raise UsageError(f"The family {family} has no layouts for the naming {naming!r}.", hint=hint)
    compiler = StrategyCompiler(namings[naming].with_options(options or {}), parallel, shapes, nbytes, config or {})
    raise_all(StrategyError, _misfit(family, naming), [*compiler.contradictions(options or {})])
    return compiler


def whole_embeddings(family: FamilyKey, naming: str, parallel: ParallelConfig, strategy: Strategy) -> list[str]:
    """Note embeddings and heads that stay whole, where people may not expect it."""
    if parallel.mp * parallel.cp == 1:
        return []
    reason = "vocab_emb_dp" if parallel.vocab_emb_dp and parallel.pp == 1 else "indivisible"
    layouts = load_layouts(family)[naming]
    cut = {name for stage in strategy.stages for name, layout in stage.items() if max(layout.cuts, default=1) > 1}
    whole = ((name, layouts.match(name)) for name in sorted(strategy.names - cut))
    names = [name for name, match in whole if match and not match.is_state and reason in match.rule.whole_if]
    what = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} whole on every rank"
    if not names:
        return []
    if reason == "indivisible":
        return [f"{what}: the number of rows cannot be cut evenly"]
    return [f"vocab_emb_dp is true, MindSpore Transformers' default: {what}; vocab_emb_dp=false cuts them"]


def unchecked_heads(parallel: ParallelConfig, config: Mapping[str, object]) -> list[str]:
    """Note that ranks may hold parts of heads, where nothing says how many heads there are."""
    key = _HEAD_KEYS["num_attention_heads"]
    if parallel.mp == 1 or any(type(config.get(each)) is int for each in key):
        return []
    return [
        f"config.json does not say {key[0]}: that each of mp = {parallel.mp} ranks holds whole heads is not checked; "
        f"give it with {option('config', f'{key[0]}=N')}"
    ]


def _misfit(family: FamilyKey, naming: str) -> str:
    return f"The parallel configuration does not fit {family} (naming {naming})."


@dataclass
class StrategyCompiler:
    """What all tensors of one strategy share; ``shapes`` and ``nbytes`` are looked at when a tensor is compiled."""

    naming: NamingLayouts
    parallel: ParallelConfig
    shapes: Mapping[str, Shape]
    nbytes: Mapping[str, int] | None
    config: Mapping[str, object]
    _matches: dict[str, RuleMatch | None] = field(init=False)

    def __post_init__(self) -> None:
        self._matches = {name: self.naming.match(name) for name in self.shapes}
        found = [match for match in self._matches.values() if match is not None]
        self._has_lora = any(match.lora for match in found)
        self._has_experts = any(match.rule.grid == "experts" or "e" in match.numbers for match in found)
        has_head = any(match.rule.stage == "last" and match.rule.tied == "head" for match in found)
        self._is_tied = not has_head and self.config.get("tie_word_embeddings") is not False
        self._has_predicted = any("j" in match.numbers for match in found)
        self._tail_count = max((m.numbers["j"] + 1 for m in found if m.rule.stage == "tail"), default=0)
        named_count = max((match.numbers["i"] + 1 for match in found if "i" in match.numbers), default=1)
        self._layers = layer_stages(self._layer_count(named_count), self.parallel, self.naming.stages)
        # With zero bubble the chunks of layers return to the first stage, and so do final norm and head.
        returns = self.parallel.zero_bubble_v and self.naming.stages == "mcore"
        self._last_stage = 0 if returns else self.parallel.pp - 1
        self._layouts: dict[object, Layout] = {}

    def _layer_count(self, named_count: int) -> int:
        configured = self._number(*_LAYER_KEYS)
        if configured is None:
            return named_count
        if self.naming.extra_layers == "last":
            return configured
        has_tail = any(rule.stage == "tail" for rule in self.naming.rules)
        return max(named_count, configured + (self._tail_count or (self._number(*_TAIL_KEYS) or 0) * has_tail))

    def _number(self, *keys: str) -> int | None:
        """Return the first positive number that config.json has under one of the keys."""
        values = [self.config.get(key) for key in keys]
        return next((value for value in values if type(value) is int and value > 0), None)

    def _head_count(self, key: str) -> int | None:
        """Return how many heads tensors have: of queries, of keys, or in q, k and v together."""
        if key != QKV_HEADS:
            return self._number(*_HEAD_KEYS[key])
        heads, groups = (self._number(*keys) for keys in _HEAD_KEYS.values())
        return None if heads is None else heads + 2 * (groups or heads)

    def contradictions(self, options: Mapping[str, object]) -> Iterator[str]:
        """Yield what is wrong whatever the tensor."""
        parallel, naming = self.parallel, self.naming
        if None not in (parallel.use_legacy, naming.use_legacy) and parallel.use_legacy != naming.use_legacy:
            yield f"use_legacy: {parallel.use_legacy}, but networks with these names have {naming.use_legacy}"
        for key in naming.heads:
            count, ways = self._head_count(key), parallel.mp * parallel.ulysses_degree_in_cp
            if count is not None and count % ways:
                yield f"mp * ulysses_degree_in_cp: {ways} does not divide {key} = {count}"
        if parallel.optimizer_shard and naming.no_optimizer_shard:
            yield f"optimizer_shard: {naming.no_optimizer_shard}"
        if self._has_experts:
            yield from self._wrong_experts()
        blocks = options.get("blocks", 1)
        has_runs = any(is_same_option(options.get(name), value) for name, value in naming.runs)
        if (has_runs or blocks != 1) and str(blocks) != str(parallel.mp):
            yield (
                f"blocks: expected mp = {parallel.mp}, found {blocks}; each rank holds one run, so a plain cut needs "
                "as many runs"
            )
        has_threshold = parallel.optimizer_shard and parallel.optimizer_threshold_kib > 0
        if has_threshold and parallel.param_dtype is None and self.nbytes is None:
            yield "parallel_optimizer_threshold: needs the size of each tensor, or param_dtype"

    def _wrong_experts(self) -> Iterator[str]:
        parallel, count = self.parallel, self._number(*_EXPERT_KEYS)
        if parallel.ep > 1 and not self.naming.expert_parallel:
            yield (
                f"ep: {parallel.ep}, but in this naming each expert is a tensor of its own, and no layout can say "
                "that a rank holds none of it; cut experts by mp"
            )
        if count is not None and count % parallel.ep:
            yield f"ep: {parallel.ep} does not divide the {count} experts"
        if "mp" in self.naming.experts and parallel.dp % parallel.ep:
            yield f"ep: {parallel.ep} does not divide dp = {parallel.dp}, as these networks require"
        if self.naming.seq_parallel_with_experts and parallel.mp > 1 and not parallel.use_seq_parallel:
            yield "use_seq_parallel: required by experts with mp > 1; add sp=true"

    def compile(self, name: str) -> tuple[Layout, tuple[int, ...]]:
        """Return the layout of a tensor and the stages that hold it: none if strategy files do not list it."""
        match = self._matches[name]
        if match is not None:
            return self._layout(name, match), self._stages(match)
        if self.naming.is_outside(name):
            return Layout((self.parallel.stage_rank_count,), ()), ()
        raise StrategyError("no rule matches this name")

    def wholes(self, name: str, piece: Shape) -> Iterator[Shape]:
        """Yield the shapes that a whole tensor may have of which a rank holds a piece of this shape.

        Whether any is cut so is for :meth:`compile` to say, which depends on the shape.
        """
        match = self._matches[name]
        if match is None:
            yield piece
            return
        seen: set[Shape] = set()
        for is_whole in (True, False):
            split = _split_of(match, is_whole=is_whole)
            sizes = self._grid(match.rule, split)
            ways = [math.prod(sizes[axis] for axis in axes) for axes in split] + [1] * (len(piece) - len(split))
            cut = tuple(extent * count for extent, count in zip(piece, ways, strict=False))
            replicas = self.parallel.stage_rank_count // math.prod(ways)
            size = self.parallel.optimizer_weight_shard_size
            for count in (1, replicas if size == -1 else min(size, replicas)):
                whole = (cut[0] * count, *cut[1:]) if cut else cut
                if whole not in seen:
                    seen.add(whole)
                    yield whole

    def lacking_key(self, name: str) -> str:
        """Return the key of config.json that decides how ranks share a tensor, if it is absent; else an empty text.

        Where there are fewer key/value heads than ranks, several ranks hold the same.
        """
        match = self._matches[name]
        rule = match.rule if match is not None else None
        if rule is None or not rule.replicate or rule.heads is None or self.parallel.mp == 1:
            return ""
        return rule.heads if self._number(*_HEAD_KEYS[rule.heads]) is None else ""

    def _stages(self, match: RuleMatch) -> tuple[int, ...]:
        rule = match.rule
        if "i" in match.numbers:
            layer = match.numbers["i"]
            return (self._layers[layer] if layer < len(self._layers) else self._last_stage,)
        if rule.stage == "tail":
            return (self._layers[len(self._layers) - self._tail_count + match.numbers["j"]],)
        if rule.stage != "first":
            return (self._last_stage,)
        if rule.tied == "predicted" and self._has_predicted:
            return tuple({0: None, self._last_stage: None})
        again = self._is_tied and (rule.tied == "weights" or (rule.tied == "states" and match.is_state))
        return tuple({0: None, self._last_stage: None}) if again else (0,)

    def _layout(self, name: str, match: RuleMatch) -> Layout:
        shape, rule = self.shapes[name], match.rule
        if rule.uncuttable and self.parallel.mp > 1:
            hint = f"describe it in a layout file ({option('dst_layout')})"
            raise StrategyError(f"cannot be cut over mp = {self.parallel.mp}: {rule.uncuttable}; {hint}")
        split = _split_of(match, is_whole=self._is_whole(match.rule, shape))
        if len(split) > len(shape):
            raise StrategyError(f"expected at least {len(split)} axes, found {list(shape)}")
        sizes = self._grid(rule, split)
        kept = [axis for axis, size in sizes.items() if size > 1]
        matrix = tuple(sizes[axis] for axis in kept) or (1,)
        axes = (*split, *((),) * (len(shape) - len(split)))
        entries = tuple(tuple(len(kept) - 1 - kept.index(a) for a in axis if a in kept) for axis in axes)
        plain = self._shared(Layout(matrix, entries))
        plain.check(shape)
        pieces = self._optimizer_pieces(plain, name, match)
        layout = self._shared(Layout(matrix, entries, optimizer_shard_size=pieces)) if pieces else plain
        layout.check(shape)
        self._check_scales(name, layout)
        return layout

    def _shared(self, layout: Layout) -> Layout:
        """Return one object for equal layouts: models have thousands of tensors, and few layouts."""
        return self._layouts.setdefault(layout, layout)

    def _check_scales(self, name: str, layout: Layout) -> None:
        """Refuse scales whose blocks would cross the boundary between two ranks."""
        weight = self.shapes.get(name.removesuffix("_scale_inv"), ())
        if not name.endswith("_scale_inv") or not weight:
            return
        quantised = self.config.get("quantization_config")
        sizes = quantised.get("weight_block_size") if isinstance(quantised, dict) else None
        blocks = sizes if isinstance(sizes, list) and all(type(b) is int and b > 0 for b in sizes) else [128, 128]
        for axis, (extent, ways, block) in enumerate(zip(weight, layout.cuts, blocks, strict=False)):
            if ways > 1 and extent // ways % block:
                raise StrategyError(f"blocks of {block} do not fit axis {axis} of {list(weight)} cut {ways} ways")

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
        """Return the axes of the device grid, slowest first, with their sizes."""
        parallel = self.parallel
        if rule.grid == "experts":
            sizes = {axis: getattr(parallel, axis) for axis in self.naming.experts if axis != "rest"}
            if parallel.stage_rank_count % math.prod(sizes.values()):
                raise StrategyError(f"{sizes} do not fit the {parallel.stage_rank_count} ranks of a stage")
            rest = parallel.stage_rank_count // math.prod(sizes.values())
            return {axis: sizes.get(axis, rest) for axis in self.naming.experts}
        heads = self._head_count(rule.heads) if rule.heads else None
        sizes = {"dp": parallel.dp, "cp": parallel.cp}
        if heads is None or heads % parallel.mp == 0 or not split:
            return {**sizes, "mp": parallel.mp}
        if not rule.replicate or parallel.mp % heads:
            raise StrategyError(f"{parallel.mp} ranks cannot share {rule.heads} = {heads}: each holds whole heads")
        return {**sizes, "mp": heads, "repeats": parallel.mp // heads}

    def _optimizer_pieces(self, plain: Layout, name: str, match: RuleMatch) -> int:
        """Return the optimizer's cut as training decides it: -1 for all replicas, a number, or 0 for none.

        Source: mindspore 2.7.2, compiled strategies: a cut that does not fit is left out; no smaller one is tried.
        """
        parallel, shape, replicas = self.parallel, self.shapes[name], plain.replica_count
        size = parallel.optimizer_weight_shard_size
        pieces = replicas if size == -1 else min(size, replicas)
        frozen = self._has_lora and not match.lora
        if not parallel.optimizer_shard or not (match.rule.optimizer or match.lora) or frozen or not shape:
            return 0
        if pieces == 1 or replicas % pieces or shape[0] % (plain.cuts[0] * pieces):
            return 0
        weight = match.weight if match.weight in self.shapes else name  # states are cut as their weight is
        nbytes = self.nbytes[weight] if self.nbytes is not None else 0
        if parallel.param_dtype is not None:
            nbytes = parallel.param_dtype.nbytes(math.prod(self.shapes[weight]))
        if nbytes < parallel.optimizer_threshold_kib * 1024:
            return 0
        return -1 if size == -1 else pieces


def _split_of(match: RuleMatch, *, is_whole: bool) -> tuple[tuple[str, ...], ...]:
    """Return the axes that cut each tensor axis; A of an adapter is cut as its weight's columns, B as its rows."""
    split = () if is_whole else match.rule.split
    rows, columns = (*split, (), ())[:2]
    return {"": split, "a": ((), columns), "b": (rows, ())}[match.lora]
