"""What a page finds when it begins: a small model in a bucket, and the strategy files of a training run."""

from __future__ import annotations

import random
from pathlib import Path

from reshard.formats.layout_file import parse_layout_file
from reshard.formats.ms_strategy import encode_json, encode_protobuf, from_strategy
from reshard.formats.safetensors import plan_header
from reshard.formats.weight_index import encode_weight_index
from reshard.storage import Store, open_target
from reshard.tensor import DType, TensorSpec

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


def put_strategies(folder: Path) -> None:
    """Write the strategy files that eight ranks of a run with two pipeline stages leave."""
    strategy = parse_layout_file(TWO_STAGES, "two stages").strategy(shapes())
    for name, suffix, encode in (("strategy", "ckpt", encode_protobuf), ("strategy-json", "json", encode_json)):
        (folder / name).mkdir()
        for rank in range(8):
            data = encode(from_strategy(strategy, stage=rank // 4))
            (folder / name / f"ckpt_strategy_rank_{rank}.{suffix}").write_bytes(data)
