"""What a page finds when it begins: a small model in a bucket, and the strategy files of a training run."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from reshard.formats.containers import Container
from reshard.formats.layout_file import parse_layout_file
from reshard.formats.mindspore.strategy_json import encode_json
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.formats.safetensors import plan_header
from reshard.formats.weight_index import encode_weight_index
from reshard.storage import Store, open_target
from reshard.tensor import DType, Layout, Strategy, TensorSpec

HIDDEN, INNER, KEYS, WORDS = 96, 192, 48, 240
LAYERS = 2

TWO_STAGES = b"""
axes: {pp: 2, dp: 2, mp: 2}
rules:
  - {match: ["*.o_proj.weight", "*.down_proj.weight"], split: [null, mp]}
  - {match: "*_proj.weight", split: [mp]}
  - {match: ["*embed_tokens.weight", "lm_head.weight"], split: [mp]}
  - {match: "*", split: []}
stages:
  - {match: "*embed_tokens*", layers: 0}
  - {match: ["model.norm.weight", "lm_head.weight"], layers: 1}
"""

# What the run of put_run trains, on two copies of two pieces each.
RUN = {
    "embed.weight": ((64, 32), Layout((2, 2), ((0,), ()))),
    "layers.0.wq.weight": ((32, 32), Layout((2, 2), ((0,), ()))),
    "layers.0.wo.weight": ((32, 32), Layout((2, 2), ((), (0,)))),
    "norm.weight": ((32,), Layout((2, 2), ((),))),
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every tensor of a Llama-like model that is small enough for a page."""
    each_layer = {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.k_proj.weight": (KEYS, HIDDEN),
        "self_attn.v_proj.weight": (KEYS, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (INNER, HIDDEN),
        "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    layers = {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in each_layer.items()}
    ends = {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}
    return {"model.embed_tokens.weight": (WORDS, HIDDEN), **layers, **ends}


def put_model(url: str) -> None:
    """Write the model as a Hugging Face checkpoint of two objects."""
    specs = [TensorSpec(name, DType.BF16, shape) for name, shape in shapes().items()]
    place, numbers, weight_map = open_target(url), random.Random(0), {}
    assert isinstance(place.store, Store)
    for part, held in enumerate((specs[:10], specs[10:]), start=1):
        key = f"model-{part:05d}-of-00002.safetensors"
        encoded = plan_header(held, {"format": "pt"})
        place.store.put(place.child(key).key, encoded.data + numbers.randbytes(sum(spec.nbytes for spec in held)))
        weight_map |= {spec.name: key for spec in held}
    index = encode_weight_index(weight_map, sum(spec.nbytes for spec in specs))
    place.store.put(place.child("model.safetensors.index.json").key, index)
    place.store.put(place.child("config.json").key, b"{}\n")


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def put_llama(url: str) -> None:
    """Write a Llama as it is published, with what lies beside its weights, and adapters of it."""
    hidden, inner, keys, words = 64, 128, 32, 256
    each_layer = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, inner),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (keys, hidden),
    }
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in each_layer.items()}
    shapes |= {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    shapes["lm_head.weight"] = (words, hidden)
    adapters = {f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.weight": (4, hidden) for i in range(2)}
    adapters |= {f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_B.weight": (hidden, 4) for i in range(2)}
    _put_zeros(f"{url}/llama/model.safetensors", DType.BF16, shapes)
    _put_zeros(f"{url}/my-lora/adapter_model.safetensors", DType.F32, adapters)
    beside = {
        "llama/config.json": LLAMA,
        "llama/tokenizer.json": {"version": "1.0"},
        "my-lora/adapter_config.json": {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    }
    for key, content in beside.items():
        _put(f"{url}/{key}", json.dumps(content).encode())


def put_quantised(url: str) -> None:
    """Write weights of FP8 with a scale for each block, as DeepSeek publishes them."""
    name = "model.layers.0.mlp.up_proj.weight"
    specs = [TensorSpec(name, DType.F8_E4M3, (128, 256)), TensorSpec(f"{name}_scale_inv", DType.F32, (1, 2))]
    _put(f"{url}/fp8/model.safetensors", plan_header(specs, {}).data + bytes(sum(spec.nbytes for spec in specs)))
    _put(f"{url}/fp8/config.json", b"{}\n")


def _put_zeros(url: str, dtype: DType, shapes: Mapping[str, tuple[int, ...]]) -> None:
    specs = [TensorSpec(name, dtype, shape) for name, shape in shapes.items()]
    _put(url, plan_header(specs, {"format": "pt"}).data + bytes(sum(spec.nbytes for spec in specs)))


def _put(url: str, data: bytes) -> None:
    head, _, name = url.rpartition("/")
    place = open_target(head)
    assert isinstance(place.store, Store)
    place.store.put(place.child(name).key, data)


def put_strategies(folder: Path) -> None:
    """Write the strategy files that eight ranks of a run with two pipeline stages leave."""
    strategy = parse_layout_file(TWO_STAGES, "two stages").strategy(shapes())
    for name, suffix, encode in (("strategy", "ckpt", encode_protobuf), ("strategy-json", "json", encode_json)):
        (folder / name).mkdir()
        for rank in range(8):
            data = encode(from_strategy(strategy, stage=rank // 4))
            (folder / name / f"ckpt_strategy_rank_{rank}.{suffix}").write_bytes(data)


def put_run(url: str) -> None:
    """Write what a training run on four ranks leaves: two steps, optimizer state, weights alone, strategy files."""
    place = open_target(url)
    assert isinstance(place.store, Store)
    layouts = {f"{head}{name}": layout for name, (_, layout) in RUN.items() for head in ("", "adam_m.", "accu_grads.")}
    files = from_strategy(Strategy(4, (layouts,)), stage=0)
    objects: dict[str, bytes] = {}
    for rank in range(4):
        objects[f"strategy/ckpt_strategy_rank_{rank}.ckpt"] = encode_protobuf(files)
        for step in (10, 20):
            name = f"llama_rank_{rank}-1_{step}.ckpt"
            objects[f"checkpoint/rank_{rank}/{name}"] = _shard(rank, step, ("", "adam_m.", "accu_grads."))
            meta = {"last_epoch": 1, "last_step": step, "last_ckpt_file": name}
            objects[f"checkpoint/rank_{rank}/meta.json"] = json.dumps(meta).encode()
        objects[f"checkpoint_network/rank_{rank}/llama_rank_{rank}-network-1_20.ckpt"] = _shard(rank, 20, ("",))
    for key, data in objects.items():
        place.store.put(place.child(key).key, data)


def _shard(rank: int, step: int, heads: Sequence[str]) -> bytes:
    """What one rank saves: equal ranks of data parallelism, counters, and a state of its own."""
    specs, contents = [], []
    for head in heads:
        for name, (shape, layout) in RUN.items():
            box = layout.box_of(shape, rank)
            specs.append(TensorSpec(f"{head}{name}", DType.F32, box.shape))
            contents.append(random.Random(f"{head}{name}{step}{box.start}").randbytes(specs[-1].nbytes))
    if len(heads) > 1:
        specs += [TensorSpec("global_step", DType.I32, (1,)), TensorSpec("rng_state", DType.I64, (2,))]
        contents += [step.to_bytes(4, "little"), random.Random(rank).randbytes(16)]
    frame = Container.CKPT.definition.make_frame(specs, {}, {})
    data = bytearray(frame.nbytes)
    for place, known in frame.literals:
        data[place : place + len(known)] = known
    for extent in frame.extents:
        data[extent.start : extent.stop] = contents[extent.slot]
    return bytes(data)
