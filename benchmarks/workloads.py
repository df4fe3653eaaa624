"""What is converted: tensors as models have them, how source and target are cut, and each way's words for it.

A workload is named by what it does. Sizes follow from the bytes that are asked for: with a GiB or more the
hidden size is 4096, below that it shrinks, so that a smoke run moves the same kinds of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plans import deepseek

from reshard.tensor import DType, Layout, Strategy, TensorSpec

MIB = 1 << 20
SMALL_COUNT = 10_000
EXPERTS = 8
RANK_KEY = "rank_{rank}/net_{rank}.safetensors"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model, the axis that model parallelism cuts, and its part of a pipeline in two."""

    spec: TensorSpec
    axis: int | None = None
    stage: int = 0


@dataclass(frozen=True)
class Grid:
    """Ranks: pipeline stages, copies, slices; the slowest first."""

    pp: int = 1
    dp: int = 1
    mp: int = 1

    @property
    def rank_count(self) -> int:
        """All of them."""
        return self.pp * self.dp * self.mp

    @property
    def name(self) -> str:
        """How strategy files are called."""
        return f"pp{self.pp}dp{self.dp}mp{self.mp}"

    def stage_of(self, tensor: Tensor) -> int:
        """Where a tensor is; models are cut in two or not at all."""
        return tensor.stage * self.pp // 2

    def holds(self, rank: int, tensor: Tensor) -> bool:
        """Whether a rank has (its slice of) a tensor."""
        return rank // (self.dp * self.mp) == self.stage_of(tensor)

    def local_spec(self, tensor: Tensor) -> TensorSpec:
        """What a rank holds of it."""
        extents = [n // self.mp if i == tensor.axis else n for i, n in enumerate(tensor.spec.shape)]
        return TensorSpec(tensor.spec.name, tensor.spec.dtype, tuple(extents))

    def first_rank(self, tensor: Tensor, piece: int) -> int:
        """The first of the ranks that hold a slice."""
        return self.stage_of(tensor) * self.dp * self.mp + (piece if tensor.axis is not None else 0)

    def strategy(self, tensors: Sequence[Tensor]) -> Strategy:
        """The same as a training job would tell it."""
        stages: list[dict[str, Layout]] = [{} for _ in range(self.pp)]
        for tensor in tensors:
            tensor_map = tuple((0,) if axis == tensor.axis else () for axis in range(len(tensor.spec.shape)))
            stages[self.stage_of(tensor)][tensor.spec.name] = Layout((self.dp, self.mp), tensor_map)
        return Strategy(self.dp * self.mp, tuple(stages))


@dataclass(frozen=True)
class Workload:
    """One conversion.

    Parameters
    ----------
    name, title
        For the command line, and for people.
    tensors
        Of the model, made for a number of bytes.
    source, target
        How rank shards are cut; None for a full checkpoint.
    options
        Besides the strategies that follow from these: what ``reshard convert`` is told.
    config
        What ``config.json`` says, where it is needed.
    recipe
        What the ways through torch make of it, where it is more than cutting; see :func:`recipe_of`.
    tool
        MindSpore's function that does it; None if there is none.
    object_count
        Objects of a full source.
    """

    name: str
    title: str
    tensors: Callable[[int], Sequence[Tensor]]
    source: Grid | None = None
    target: Grid | None = None
    options: tuple[str, ...] = ()
    config: Callable[[Sequence[Tensor]], dict[str, Any]] | None = None
    recipe: Callable[[Workload, Sequence[Tensor]], Recipe] | None = None
    tool: str | None = None
    object_count: int = 4


Recipe = dict[str, dict[str, dict[str, Any]]]
"""By key and name: ``take`` as [object, name] or [object, name, axis, start, stop], joined along ``join`` (or
``stack``ed), multiplied by ``scale`` and made a ``dtype``."""


# ------------------------------------------------------------------------------------------------ models


def hidden_for(nbytes: int) -> int:
    """The hidden size that leaves room for some layers."""
    return next((hidden for least, hidden in ((1024, 4096), (256, 2048), (16, 512)) if nbytes >= least * MIB), 256)


def llama(nbytes: int, dtype: DType = DType.BF16) -> list[Tensor]:
    """Llama's tensors, with as many layers as fit; two at least."""
    hidden = hidden_for(nbytes)
    inner, keys, vocab = hidden * 7 // 2, hidden // 4, hidden * 8
    layer = {
        "input_layernorm": ((hidden,), None),
        "mlp.down_proj": ((hidden, inner), 1),
        "mlp.gate_proj": ((inner, hidden), 0),
        "mlp.up_proj": ((inner, hidden), 0),
        "post_attention_layernorm": ((hidden,), None),
        "self_attn.k_proj": ((keys, hidden), 0),
        "self_attn.o_proj": ((hidden, hidden), 1),
        "self_attn.q_proj": ((hidden, hidden), 0),
        "self_attn.v_proj": ((keys, hidden), 0),
    }
    ends = 2 * vocab * hidden * dtype.itemsize
    one = sum(TensorSpec("", dtype, shape).nbytes for shape, _ in layer.values())
    count = max(2, round((nbytes - ends) / one))
    found = [Tensor(TensorSpec("model.embed_tokens.weight", dtype, (vocab, hidden)), 0)]
    for number in range(count):
        stage = number * 2 // count
        names = ((f"model.layers.{number}.{name}.weight", *each) for name, each in layer.items())
        found += [Tensor(TensorSpec(name, dtype, shape), axis, stage) for name, shape, axis in names]
    found.append(Tensor(TensorSpec("model.norm.weight", dtype, (hidden,)), None, 1))
    found.append(Tensor(TensorSpec("lm_head.weight", dtype, (vocab, hidden)), 0, 1))
    return found


def embedding(nbytes: int) -> list[Tensor]:
    """One table, cut on the axis along which it is stored."""
    columns = hidden_for(nbytes)
    return [Tensor(TensorSpec("model.embed_tokens.weight", DType.BF16, (nbytes // columns // 2, columns)), 1)]


def small_tensors(nbytes: int) -> list[Tensor]:
    """Adapters of rank 16, whatever their weights are: half of them cut on the inner axis."""
    long = max(8, nbytes // SMALL_COUNT // 16 // 2 // 8 * 8)
    found = []
    for number in range(SMALL_COUNT // 2):
        head = f"model.layers.{number // 50}.module_{number % 50}"
        found.append(Tensor(TensorSpec(f"{head}.lora_A.weight", DType.BF16, (16, long)), 1))
        found.append(Tensor(TensorSpec(f"{head}.lora_B.weight", DType.BF16, (long, 16)), 0))
    return found


def mixtral(nbytes: int) -> list[Tensor]:
    """Mixtral's tensors: one layer of eight experts, as wide as the size allows."""
    hidden = hidden_for(nbytes)
    vocab, keys = hidden // 4, hidden // 4
    beside = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.layers.0.input_layernorm.weight": (hidden,),
        "model.layers.0.post_attention_layernorm.weight": (hidden,),
        "model.layers.0.self_attn.q_proj.weight": (hidden, hidden),
        "model.layers.0.self_attn.k_proj.weight": (keys, hidden),
        "model.layers.0.self_attn.v_proj.weight": (keys, hidden),
        "model.layers.0.self_attn.o_proj.weight": (hidden, hidden),
        "model.layers.0.block_sparse_moe.gate.weight": (EXPERTS, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    found = [Tensor(TensorSpec(name, DType.BF16, shape)) for name, shape in beside.items()]
    left = nbytes - sum(tensor.spec.nbytes for tensor in found)
    inner = max(64, left // (EXPERTS * 3 * hidden * 2) // 64 * 64)
    for expert in range(EXPERTS):
        head = f"model.layers.0.block_sparse_moe.experts.{expert}"
        for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
            found.append(Tensor(TensorSpec(f"{head}.{name}.weight", DType.BF16, shape)))
    return found


def mixtral_config(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """What of its config.json the rules need."""
    shapes = {tensor.spec.name: tensor.spec.shape for tensor in tensors}
    vocab, hidden = shapes["lm_head.weight"]
    inner, _ = shapes["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    sizes = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner}
    counts = {"num_hidden_layers": 1, "num_local_experts": EXPERTS}
    return {"model_type": "mixtral", "tie_word_embeddings": False} | sizes | heads | counts


def fp8(nbytes: int) -> list[Tensor]:
    """DeepSeek-V3's tensors, FP8 with a scale for each 128 x 128: two layers, as many experts as fit."""
    hidden = hidden_for(nbytes)
    config = {
        "hidden_size": hidden, "intermediate_size": hidden * 5 // 2, "num_hidden_layers": 2, "vocab_size": hidden,
        "num_attention_heads": hidden // 64, "first_k_dense_replace": 1, "n_shared_experts": 1,
        "moe_intermediate_size": hidden // 2, "num_nextn_predict_layers": 0, "q_lora_rank": max(128, hidden // 4),
        "kv_lora_rank": 128, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    }  # fmt: skip
    one = 3 * hidden * config["moe_intermediate_size"]
    beside = sum(spec.nbytes for spec in deepseek({**config, "n_routed_experts": 0}) if spec.shape[0])
    config["n_routed_experts"] = max(4, round((nbytes - beside) / one))
    return [Tensor(spec) for spec in deepseek(config)]


# ------------------------------------------------------------------------------------------------ recipes for torch


def pieces_of(tensors: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """Tensors in order, shared out over some objects."""
    wished = sum(tensor.spec.nbytes for tensor in tensors) / count
    shares: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if held >= wished * len(shares) and len(shares) < count:
            shares.append([])
        shares[-1].append(tensor)
        held += tensor.spec.nbytes
    return shares


def source_objects(workload: Workload, tensors: Sequence[Tensor]) -> dict[str, list[tuple[TensorSpec, str]]]:
    """Every safetensors object of the source: its tensors, each with what tells its bytes from others."""
    grid = workload.source
    if grid is None:
        shares = pieces_of(tensors, workload.object_count)
        keys = [f"model-{number:05d}-of-{len(shares):05d}.safetensors" for number in range(1, len(shares) + 1)]
        return {k: [(t.spec, t.spec.name) for t in held] for k, held in zip(keys, shares, strict=True)}
    found = {}
    for rank in range(grid.rank_count):
        held = [tensor for tensor in tensors if grid.holds(rank, tensor)]
        piece = rank % grid.mp
        found[RANK_KEY.format(rank=rank)] = [
            (grid.local_spec(t), f"{t.spec.name} {piece if t.axis is not None else 0}") for t in held
        ]
    return found


def where_full(workload: Workload, tensors: Sequence[Tensor]) -> dict[str, str]:
    """Which object of a full source holds a tensor."""
    return {spec.name: key for key, held in source_objects(workload, tensors).items() for spec, _ in held}


def recipe_of(workload: Workload, tensors: Sequence[Tensor]) -> Recipe:
    """What each object of the target holds, and of which slices of the source it is made."""
    if workload.recipe is not None:
        return workload.recipe(workload, tensors)
    grid, places = workload.target, where_full(workload, tensors)
    if grid is None:
        return {"model.safetensors": {t.spec.name: _taken(workload, t, Grid(), 0, places) for t in tensors}}
    return {
        RANK_KEY.format(rank=rank): {
            t.spec.name: _taken(workload, t, grid, rank % grid.mp, places) for t in tensors if grid.holds(rank, t)
        }
        for rank in range(grid.rank_count)
    }


def _taken(workload: Workload, tensor: Tensor, grid: Grid, piece: int, places: Mapping[str, str]) -> dict[str, Any]:
    source, name, axis = workload.source or Grid(), tensor.spec.name, tensor.axis
    if axis is None:
        key = places[name] if workload.source is None else RANK_KEY.format(rank=source.first_rank(tensor, 0))
        return {"take": [[key, name]]}
    extent = tensor.spec.shape[axis]
    begin, end = extent // grid.mp * piece, extent // grid.mp * (piece + 1)
    step, take = extent // source.mp, []
    for held in range(begin // step, -(-end // step)):
        key = places[name] if workload.source is None else RANK_KEY.format(rank=source.first_rank(tensor, held))
        take.append(
            [key, name, axis, max(begin, held * step) - held * step, min(end, held * step + step) - held * step]
        )
    return {"take": take, "join": axis}


_MS = (
    ("model.embed_tokens.weight", "model.tok_embeddings.embedding_weight"),
    ("model.norm.weight", "model.norm_out.weight"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attention.wq"),
    ("self_attn.k_proj", "attention.wk"),
    ("self_attn.v_proj", "attention.wv"),
    ("self_attn.o_proj", "attention.wo"),
    ("block_sparse_moe.gate", "feed_forward.router.dense"),
)


def stacked_experts(workload: Workload, tensors: Sequence[Tensor]) -> Recipe:
    """Each rank's experts as one tensor a matrix, and everything else whole."""
    places = where_full(workload, tensors)
    whole = {}
    for tensor in tensors:
        if ".experts." not in tensor.spec.name:
            renamed = tensor.spec.name
            for old, new in _MS:
                renamed = renamed.replace(old, new)
            whole[renamed] = {"take": [[places[tensor.spec.name], tensor.spec.name]]}
    found = {}
    for rank in range(EXPERTS):
        own = {}
        for matrix in ("w1", "w2", "w3"):
            name = f"model.layers.0.block_sparse_moe.experts.{rank}.{matrix}.weight"
            own[f"model.layers.0.feed_forward.ffn.{matrix}.weight"] = {"take": [[places[name], name]], "join": "stack"}
        found[f"rank_{rank}/checkpoint_{rank}.safetensors"] = whole | own
    return found


def cast_all(dtype: str) -> Callable[[Workload, Sequence[Tensor]], Recipe]:
    """Everything in another dtype, FP8 multiplied by its scales; tensors that FP8 models keep in fp32 too."""

    def make(workload: Workload, tensors: Sequence[Tensor]) -> Recipe:
        places, made = where_full(workload, tensors), {}
        for name, key in places.items():
            if name.endswith("_scale_inv"):
                continue
            scale = f"{name}_scale_inv"
            made[name] = {"take": [[key, name]], "dtype": dtype}
            if scale in places:
                made[name]["scale"] = [places[scale], scale]
        return {"model.safetensors": made}

    return make


# ------------------------------------------------------------------------------------------------ the list


def _all() -> Iterator[Workload]:
    load, transform, unify = "load_distributed_checkpoint", "transform_checkpoints", "unified_safetensors"
    prefix = ("--prefix", "net_")
    yield Workload("hf_to_mp4", "HF sharded to mp4", llama, None, Grid(mp=4), prefix, tool=load)
    yield Workload("mp4dp2_to_full", "mp4·dp2 to full", llama, Grid(dp=2, mp=4), tool=unify)
    yield Workload("mp4pp2_to_mp2", "mp4·pp2 to mp2", llama, Grid(pp=2, mp=4), Grid(mp=2), prefix, tool=transform)
    yield Workload(
        "experts_to_ep8", "HF experts to ep8, stacked", mixtral,
        config=mixtral_config, recipe=stacked_experts,
        options=("--to", "ms", "--parallel", f"dp={EXPERTS},ep={EXPERTS}"),
    )  # fmt: skip
    yield Workload(
        "embedding_inner", "embedding to 8, inner axis", embedding, None, Grid(mp=8), prefix, tool=load, object_count=1
    )
    yield Workload("small_tensors", "10 000 small tensors to mp4", small_tensors, None, Grid(mp=4), prefix, tool=load)
    yield Workload("bf16_to_fp32", "bf16 to fp32", llama, options=("--dtype", "fp32"), recipe=cast_all("F32"))
    yield Workload("fp8_to_bf16", "FP8 to bf16", fp8, options=("--dtype", "bf16"), recipe=cast_all("BF16"))


WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _all()}
