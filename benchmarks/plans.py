"""How long it takes to plan the largest models, from their numbers alone: no bytes, no store.

Catalogs are built as Hugging Face publishes these models (names, shapes, dtypes, number of objects), and planned to
MindSpore Transformers' rank shards. Beside them are made-up models of 45 000 tensors on 1024 ranks, and single tensors
whose inner axis is cut, streamed and staged. ``python benchmarks/plans.py`` plans all of them and writes
``results/plans.json``; with names of models, only those. Each is planned in a process of its own, and its saved plan
read in another, so that each peak is its own.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import math
import platform
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from family_specs import deepseek_v4, glm4_moe

from reshard.api.option_field import parse_size
from reshard.formats.safetensors import plan_header
from reshard.models.detecting import detect
from reshard.models.parallel_config import parse_parallel
from reshard.models.parallel_strategy import derive_strategy
from reshard.planning.catalog import Catalog, ObjectHeader, SourceObject
from reshard.planning.change import NO_CHANGE, Change, make_tensors
from reshard.planning.conversion import Conversion
from reshard.planning.limits import Limits
from reshard.planning.plan import Plan, StagingMode, make_plan
from reshard.planning.plan_json import decode_plan, encode_plan
from reshard.planning.sources.full_source import full_catalog
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.planning.staging import staged_plan
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import DType, Layout, Shape, Strategy, TensorSpec

_Made = TypeVar("_Made")
Specs = Iterator[TensorSpec]
Figures = dict[str, Any]
FP8_BLOCK = 128
FIRST_AND_LAST_SHORTER = "[0,1,1,1,1,1,1,1,1,1,1,1,1,1,1,0]"


@dataclass(frozen=True)
class Model:
    """One model as it is published, and how it is cut.

    Parameters
    ----------
    config
        What of its config.json decides the tensors.
    tensors
        Its tensors.
    object_count
        Objects that they are shared out over.
    parallel
        The numbers of the target.
    """

    config: Mapping[str, object]
    tensors: Callable[[Mapping[str, int]], Specs]
    object_count: int
    parallel: str


def dense(config: Mapping[str, int]) -> Specs:
    """Llama's and Qwen2.5's tensors."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    has_bias = config["model_type"] == "qwen2"
    yield TensorSpec("model.embed_tokens.weight", DType.BF16, (vocab, hidden))
    for layer in range(config["num_hidden_layers"]):
        head = f"model.layers.{layer}"
        yield TensorSpec(f"{head}.input_layernorm.weight", DType.BF16, (hidden,))
        yield TensorSpec(f"{head}.mlp.down_proj.weight", DType.BF16, (hidden, inner))
        yield TensorSpec(f"{head}.mlp.gate_proj.weight", DType.BF16, (inner, hidden))
        yield TensorSpec(f"{head}.mlp.up_proj.weight", DType.BF16, (inner, hidden))
        yield TensorSpec(f"{head}.post_attention_layernorm.weight", DType.BF16, (hidden,))
        for name, rows in (("q", hidden), ("k", keys), ("v", keys)):
            yield TensorSpec(f"{head}.self_attn.{name}_proj.weight", DType.BF16, (rows, hidden))
            if has_bias:
                yield TensorSpec(f"{head}.self_attn.{name}_proj.bias", DType.BF16, (rows,))
        yield TensorSpec(f"{head}.self_attn.o_proj.weight", DType.BF16, (hidden, hidden))
    yield TensorSpec("model.norm.weight", DType.BF16, (hidden,))
    yield TensorSpec("lm_head.weight", DType.BF16, (vocab, hidden))


def deepseek(config: Mapping[str, int]) -> Specs:
    """DeepSeek-V3's tensors: FP8 with scales, and the layer that predicts a second token."""
    hidden, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield TensorSpec("model.embed_tokens.weight", DType.BF16, (vocab, hidden))
    for layer in range(layers + config["num_nextn_predict_layers"]):
        head = f"model.layers.{layer}"
        yield from _attention(head, config)
        yield from (
            _experts(head, config)
            if layer >= config["first_k_dense_replace"]
            else _mlp(f"{head}.mlp", hidden, config["intermediate_size"])
        )
        if layer >= layers:
            yield from _predicting(head, hidden, vocab)
    yield TensorSpec("model.norm.weight", DType.BF16, (hidden,))
    yield TensorSpec("lm_head.weight", DType.BF16, (vocab, hidden))


def _attention(head: str, config: Mapping[str, int]) -> Specs:
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    queries = config["q_lora_rank"]
    for name, extent in (("input_layernorm", hidden), ("post_attention_layernorm", hidden)):
        yield TensorSpec(f"{head}.{name}.weight", DType.BF16, (extent,))
    yield TensorSpec(f"{head}.self_attn.q_a_layernorm.weight", DType.BF16, (queries,))
    yield TensorSpec(f"{head}.self_attn.kv_a_layernorm.weight", DType.BF16, (latent,))
    yield from _scaled(f"{head}.self_attn.q_a_proj", (queries, hidden))
    yield from _scaled(f"{head}.self_attn.q_b_proj", (heads * (nope + rope), queries))
    yield from _scaled(f"{head}.self_attn.kv_a_proj_with_mqa", (latent + rope, hidden))
    yield from _scaled(f"{head}.self_attn.kv_b_proj", (heads * (nope + value), latent))
    yield from _scaled(f"{head}.self_attn.o_proj", (hidden, heads * value))


def _experts(head: str, config: Mapping[str, int]) -> Specs:
    hidden, inner, count = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    yield TensorSpec(f"{head}.mlp.gate.weight", DType.BF16, (count, hidden))
    yield TensorSpec(f"{head}.mlp.gate.e_score_correction_bias", DType.F32, (count,))
    yield from _mlp(f"{head}.mlp.shared_experts", hidden, inner * config["n_shared_experts"])
    for expert in range(count):
        yield from _mlp(f"{head}.mlp.experts.{expert}", hidden, inner)


def _mlp(head: str, hidden: int, inner: int) -> Specs:
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield from _scaled(f"{head}.{name}_proj", shape)


def _scaled(head: str, shape: Shape) -> Specs:
    yield TensorSpec(f"{head}.weight", DType.F8_E4M3, shape)
    yield TensorSpec(f"{head}.weight_scale_inv", DType.F32, tuple(-(-extent // FP8_BLOCK) for extent in shape))


def _predicting(head: str, hidden: int, vocab: int) -> Specs:
    yield TensorSpec(f"{head}.embed_tokens.weight", DType.BF16, (vocab, hidden))
    yield TensorSpec(f"{head}.enorm.weight", DType.BF16, (hidden,))
    yield TensorSpec(f"{head}.hnorm.weight", DType.BF16, (hidden,))
    yield TensorSpec(f"{head}.eh_proj.weight", DType.BF16, (hidden, 2 * hidden))
    yield TensorSpec(f"{head}.shared_head.norm.weight", DType.BF16, (hidden,))
    yield TensorSpec(f"{head}.shared_head.head.weight", DType.BF16, (vocab, hidden))


MODELS = {
    "qwen2.5-72b": Model(
        {
            "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False,
        },
        dense, 37, "mp=8,pp=4",
    ),
    "llama-3.1-405b": Model(
        {
            "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
            "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
        },
        dense, 191, f"mp=8,pp=16,offset={FIRST_AND_LAST_SHORTER}",
    ),
    "deepseek-v3": Model(
        {
            "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
            "num_attention_heads": 128, "vocab_size": 129280, "first_k_dense_replace": 3, "n_routed_experts": 256,
            "n_shared_experts": 1, "moe_intermediate_size": 2048, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]},
        },
        deepseek, 163, f"dp=4,mp=4,pp=16,ep=16,sp=true,offset={FIRST_AND_LAST_SHORTER}",
    ),
    "deepseek-v4-flash": Model(
        {
            "model_type": "deepseek_v4", "hidden_size": 4096, "num_hidden_layers": 43, "num_attention_heads": 64,
            "head_dim": 512, "q_lora_rank": 1024, "o_lora_rank": 1024, "o_groups": 8, "index_n_heads": 64,
            "index_head_dim": 128, "hc_mult": 4, "num_hash_layers": 3, "n_routed_experts": 256, "n_shared_experts": 1,
            "num_experts_per_tok": 6, "moe_intermediate_size": 2048, "num_nextn_predict_layers": 1,
            "vocab_size": 129280, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]},
        },
        deepseek_v4, 46, "dp=4,mp=8,ep=32,sp=true",
    ),
    "glm-4.5": Model(
        {
            "model_type": "glm4_moe", "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 92,
            "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151552,
            "first_k_dense_replace": 3, "n_routed_experts": 160, "n_shared_experts": 1, "moe_intermediate_size": 1536,
            "num_nextn_predict_layers": 1, "tie_word_embeddings": False,
        },
        glm4_moe, 93, "dp=4,mp=8,pp=4,ep=32,sp=true",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class MadeUp:
    """A model of 2500 equal layers of 18 tensors, and how it is cut: by device matrices, not by rules.

    Parameters
    ----------
    stage_count
        Pipeline stages, each of as many layers.
    matrix
        Devices of a stage: replicas, devices that cut rows, devices that cut columns.
    shards_rows
        Whether replicas share the rows of a slice out among them, so that no two ranks are equal.
    """

    stage_count: int
    matrix: tuple[int, int, int]
    shards_rows: bool

    @property
    def parallel(self) -> str:
        """In words."""
        return f"45 000 tensors, {self.stage_count} stages of {' x '.join(map(str, self.matrix))} devices"

    def specs(self) -> Specs:
        """Matrices of four shapes, and vectors."""
        shapes = [(8192, 8192), (8192, 1024), (4096, 8192), (8192, 2048)] * 3 + [(8192,)] * 6
        for layer in range(2500):
            for number, shape in enumerate(shapes):
                yield TensorSpec(f"model.layers.{layer}.block.{number}.weight", DType.BF16, shape)

    def strategy(self) -> Strategy:
        """Every other matrix is cut by columns first."""
        size = -1 if self.shards_rows else 0
        rows, columns = Layout(self.matrix, ((1,), (0,)), size), Layout(self.matrix, ((0, 1), ()), size)
        vectors = Layout(self.matrix, ((),), size)
        stages: list[dict[str, Layout]] = [{} for _ in range(self.stage_count)]
        for number, spec in enumerate(self.specs()):
            layout = vectors if len(spec.shape) == 1 else (rows, columns)[number % 2]
            stages[number * self.stage_count // 45_000][spec.name] = layout
        return Strategy(math.prod(self.matrix), tuple(stages))


MADE_UP = {
    "45000-one-stage": MadeUp(1, (32, 4, 8), shards_rows=True),
    "45000-pp16-mp8-dp8": MadeUp(16, (8, 1, 8), shards_rows=False),
}


@dataclass(frozen=True)
class OneTensor:
    """One tensor whose inner axis ranks cut: of each of its rows every rank has some bytes."""

    rows: int
    columns: int = 65_536
    rank_count: int = 256

    @property
    def parallel(self) -> str:
        """In words."""
        return f"one tensor, its inner axis cut for {self.rank_count} ranks"

    def specs(self) -> Specs:
        """The tensor."""
        yield TensorSpec("weight", DType.BF16, (self.rows, self.columns))

    def strategy(self) -> Strategy:
        """As many columns for every rank."""
        return Strategy(self.rank_count, ({"weight": Layout((self.rank_count,), ((), (0,)))},))


ONE_TENSOR = {"12-gib-tensor": OneTensor(100_000), "122-gib-tensor": OneTensor(1_000_000)}


@dataclass(frozen=True)
class Case:
    """A model and its target, in numbers (its own, if None), and what the plan may do.

    ``copies`` is whether it looks for copies, ``staged`` whether tensors are staged where that is cheaper. With
    ``memory`` the limit is this one, whatever the command says.
    """

    model: str
    parallel: str | None = None
    copies: bool = False
    staged: bool = False
    memory: str | None = None

    @property
    def says(self) -> str:
        """The numbers in words."""
        made_up = MODELS.get(self.model) or MADE_UP.get(self.model) or ONE_TENSOR[self.model]
        return (self.parallel or made_up.parallel) + (", staged" if self.staged else "")


CASES = [
    *(Case("qwen2.5-72b", parallel, copies=True) for parallel in ("mp=8", "pp=4", "dp=8")),
    *(Case(model, copies=copies) for model in (*MODELS, *MADE_UP) for copies in (False, True)),
    *(Case(model, staged=staged, memory="512MiB") for model in ONE_TENSOR for staged in (False, True)),
]


def catalog_of(specs: Sequence[TensorSpec], object_count: int) -> Catalog:
    """The catalog of a model, its tensors shared out evenly over its objects."""
    wished = sum(spec.nbytes for spec in specs) / object_count
    shares: list[list[TensorSpec]] = [[]]
    held = 0
    for spec in specs:
        if held >= wished * len(shares) and len(shares) < object_count:
            shares.append([])
        shares[-1].append(spec)
        held += spec.nbytes
    headers = []
    for number, share in enumerate(shares, start=1):
        encoded = plan_header(share, {"format": "pt"})
        key = f"model-{number:05d}-of-{object_count:06d}.safetensors"
        headers.append(ObjectHeader.of(SourceObject(key, encoded.nbytes, f'"{number:032x}"'), encoded.header))
    return full_catalog(SourceHeaders("s3://models/source", "Hugging Face checkpoint", headers))


def strategy_of(model: Model, catalog: Catalog, change: Change) -> Strategy:
    """The strategy that the numbers make."""
    tensors = make_tensors(catalog, {}, change).tensors
    return derive_strategy(
        change.family,
        change.naming,
        parse_parallel(model.parallel),
        {tensor.spec.name: tensor.spec.shape for tensor in tensors},
        nbytes={tensor.spec.name: tensor.spec.nbytes for tensor in tensors},
        config=model.config,
    )


def timed(figures: Figures, name: str, make: Callable[[], _Made]) -> _Made:
    """Do something, and note how long it took: on the clock, and of one core."""
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    made = make()
    figures[f"{name}_s"], figures[f"{name}_cpu_s"] = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    return made


def chosen(name: str, parallel: str | None) -> tuple[Catalog, Strategy, Change]:
    """The source and the target of one model."""
    if name in MADE_UP:
        made_up = MADE_UP[name]
        return catalog_of(list(made_up.specs()), 512), made_up.strategy(), NO_CHANGE
    if name in ONE_TENSOR:
        return catalog_of(list(ONE_TENSOR[name].specs()), 1), ONE_TENSOR[name].strategy(), NO_CHANGE
    model = replace(MODELS[name], parallel=parallel or MODELS[name].parallel)
    specs = list(model.tensors(model.config))  # type: ignore[arg-type]
    catalog = catalog_of(specs, model.object_count)
    found = detect(model.config, [spec.name for spec in specs])
    change = Change(found.family.name, found.direction, found.naming, dict(found.options), model.config)
    return catalog, strategy_of(model, catalog, change), change


def measure(case: Case, limits: Limits, *, profiled: bool) -> Figures:
    """Plan one model; return what it took, and what the plan says."""
    figures: Figures = {}
    catalog, strategy, change = timed(figures, "catalog", lambda: chosen(case.model, case.parallel))
    target = RankTarget(strategy, tuple(range(strategy.rank_count)), "rank_{rank}/checkpoint_{rank}.safetensors")
    before_bytes = peak_rss_bytes()
    copy_bases = (REPLICAS, 0) if case.copies else ()
    profile = cProfile.Profile()
    if profiled:
        profile.enable()

    def planned() -> Plan:
        plan = make_plan(Conversion(catalog, target, "s3://models/ranks", change=change), limits, copy_bases)
        return staged_plan(plan, StagingMode("s3://models/ranks.staging")) if case.staged else plan

    plan = timed(figures, "plan", planned)
    profile.disable()
    figures |= {"rss_bytes": peak_rss_bytes(), "plan_rss_bytes": peak_rss_bytes() - before_bytes}
    data = timed(figures, "encode", lambda: encode_plan(plan))
    timed(figures, "first_step", lambda: next(plan.steps(0)))
    if profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(12)
    with tempfile.NamedTemporaryFile() as saved:
        saved.write(data)
        saved.flush()
        figures |= child("--decode", saved.name)
    cost = plan.cost
    return figures | {
        "plan_json_bytes": len(data),
        "source_tensor_count": len(catalog.entries),
        "source_bytes": plan.catalog.nbytes,
        "output_count": len(plan.outputs),
        "rank_count": strategy.rank_count,
        "group_count": len(plan.groups),
        "cost": asdict(cost) | {"request_count": cost.request_count},
        "copied_share": cost.copied_bytes / (cost.copied_bytes + cost.written_bytes),
    }


def decode(path: str) -> Figures:
    """Read a saved plan, in a process of its own."""
    figures: Figures = {}
    data = Path(path).read_bytes()
    plan = timed(figures, "decode", lambda: decode_plan(data, "plan"))
    assert encode_plan(plan) == data
    return figures | {"decode_rss_bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int:
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def child(*arguments: str) -> Figures:
    """Run this file again, and return the figures that it prints last; the lines before are passed on."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    *lines, last = done.stdout.splitlines()
    for line in lines:
        print(line, flush=True)
    found: Figures = json.loads(last)
    return found


def median_of(runs: Sequence[Figures]) -> Figures:
    """Medians of what was timed; of the rest, which is always the same, the last."""
    timings = [name for name, value in runs[0].items() if isinstance(value, float) and name.endswith("_s")]
    return runs[-1] | {name: statistics.median(run[name] for run in runs) for name in timings}


def print_case(case: Case, figures: Figures) -> None:
    """Print a few lines."""
    cost = figures["cost"]
    print(f"{case.model}: {case.says}, copies {'found' if case.copies else 'not looked for'}")
    steps = ("catalog", "plan", "encode", "first_step", "decode")
    print("  " + ", ".join(f"{name} {figures[f'{name}_s']:.2f} s" for name in steps))
    print(f"  {figures['source_tensor_count']} tensors -> {figures['output_count']} outputs of ", end="")
    print(f"{figures['rank_count']} ranks in {figures['group_count']} groups")
    print(
        f"  read {cost['read_bytes'] / 1e9:.1f} GB ({cost['read_bytes'] / cost['needed_bytes']:.3f} x needed), ", end=""
    )
    print(f"write {cost['written_bytes'] / 1e9:.1f} GB, copied {figures['copied_share']:.1%}")
    print(f"  requests {cost['request_count']} ({cost['get_count']} GET), steps {cost['step_count']}, ", end="")
    print(f"buffers {cost['peak_bytes'] >> 20} MiB")
    print(f"  plan JSON {figures['plan_json_bytes'] / 1e6:.1f} MB; peak RSS {figures['rss_bytes'] >> 20} MiB, ", end="")
    print(
        f"{figures['plan_rss_bytes'] >> 20} of it planning, reading it {figures['decode_rss_bytes'] >> 20}", flush=True
    )


def main() -> None:
    """Plan the models that are named, or all."""
    import report  # here, because tests take models from this file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join([*MODELS, *MADE_UP, *ONE_TENSOR])}")
    parser.add_argument("--memory", default="1GiB", help="limit of the conversion's buffers")
    parser.add_argument("--parallel", help="numbers of the target, like mp=8; by default those of the model")
    parser.add_argument("--copy", choices=("auto", "never"), default="auto", help="whether the store copies")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="what planning spends its time on")
    parser.add_argument("--out", type=Path, help="where the figures go; plans.json, if no models are named")
    parser.add_argument("--decode", metavar="PLAN", help=argparse.SUPPRESS)
    parser.add_argument("--once", metavar="CASE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.decode or asked.once:
        gc.freeze()  # as the command does
        gc.set_threshold(20_000)
        if asked.decode:
            print(json.dumps(decode(asked.decode)))
            return
        case = Case(**json.loads(asked.once))
        limits = Limits(memory_bytes=parse_size(case.memory or asked.memory))
        print(json.dumps(measure(case, limits, profiled=asked.profile)))
        return
    copies = asked.copy == "auto"
    named = [Case(model, asked.parallel, copies=copies) for model in asked.models if model not in ONE_TENSOR]
    cases = [*named, *(case for case in CASES if case.model in ONE_TENSOR and case.model in asked.models)] or CASES
    flags = ["--memory", asked.memory, *(["--profile"] if asked.profile else [])]
    found = []
    for case in cases:
        runs = [child("--once", json.dumps(asdict(case)), *flags) for _ in range(asked.repeats)]
        figures = median_of(runs)
        print_case(case, figures)
        found.append(asdict(case) | {"says": case.says, "repeats": asked.repeats} | figures)
    out = asked.out or (None if asked.models else report.RESULTS / "plans.json")
    if out:
        versions = {"python": platform.python_version(), "reshard": version("reshard"), "numpy": version("numpy")}
        told = {"date": report.now(), "machine": report.machine(), "versions": versions, "memory": asked.memory}
        report.write_json(told | {"cases": found}, out)


if __name__ == "__main__":
    main()
