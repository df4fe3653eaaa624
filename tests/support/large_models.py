"""Models of some hundred MiB, written to a store object by object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from reshard.formats.safetensors import plan_header
from reshard.formats.weight_index import encode_weight_index
from reshard.storage import Store
from reshard.tensor import DType, TensorSpec

_OBJECT_BYTES = 128 << 20
_NUMPY = {DType.BF16: ml_dtypes.bfloat16, DType.F32: np.float32, DType.F8_E4M3: ml_dtypes.float8_e4m3fn}

Specs = list[TensorSpec]


def dense(hidden: int = 2048, inner: int = 5632, layers: int = 3) -> Specs:
    """Layers of a dense model, without what stands before and after them."""
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
    }
    return [
        TensorSpec(f"model.layers.{layer}.{name}.weight", DType.BF16, shape)
        for layer in range(layers)
        for name, shape in shapes.items()
    ]


def llama_config(hidden: int = 2048, inner: int = 5632, layers: int = 2, vocab: int = 32000) -> dict[str, object]:
    """What the ``config.json`` of :func:`llama` says."""
    return {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": vocab, "tie_word_embeddings": False,
    }  # fmt: skip


def llama(hidden: int = 2048, inner: int = 5632, layers: int = 2, vocab: int = 32000) -> Specs:
    """A whole dense model."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(layers):
        shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "kv"}
    specs = [TensorSpec(name, DType.BF16, shape) for name, shape in shapes.items()]
    return sorted([*specs, *dense(hidden, inner, layers)], key=lambda spec: spec.name)


def quantised(experts: int = 32, rows: int = 2048, columns: int = 4096) -> Specs:
    """Experts in FP8 with a scale for each block of 128 x 128."""
    specs = []
    for expert in range(experts):
        name = f"model.layers.3.mlp.experts.{expert}.up_proj.weight"
        specs.append(TensorSpec(name, DType.F8_E4M3, (rows, columns)))
        specs.append(TensorSpec(f"{name}_scale_inv", DType.F32, (rows // 128, columns // 128)))
    return specs


def adapters(model: Sequence[TensorSpec], rank: int = 16) -> Specs:
    """Adapters of all matrices of a model, as PEFT names them."""
    specs = []
    for spec in model:
        if len(spec.shape) == 2:
            name = f"base_model.model.{spec.name.removesuffix('.weight')}"
            specs.append(TensorSpec(f"{name}.lora_A.weight", DType.F32, (rank, spec.shape[1])))
            specs.append(TensorSpec(f"{name}.lora_B.weight", DType.F32, (spec.shape[0], rank)))
    return specs


ADAPTER_CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}


def write_model(store: Store, prefix: str, specs: Sequence[TensorSpec], texts: Mapping[str, object]) -> None:
    """Write objects of about 128 MiB with an index, and JSON documents beside them."""
    weight_map = {}
    for number, share in enumerate(_shares(specs)):
        header, key = plan_header(share, {"format": "pt"}), f"model-{number}.safetensors"
        data = bytearray(header.data)
        for spec in share:
            data += _numbers(spec)
        store.put(f"{prefix}/{key}", data)
        weight_map |= {spec.name: key for spec in share}
    store.put(f"{prefix}/model.safetensors.index.json", encode_weight_index(weight_map, 0))
    for name, values in texts.items():
        store.put(f"{prefix}/{name}", json.dumps(values).encode())


def _shares(specs: Sequence[TensorSpec]) -> list[list[TensorSpec]]:
    shares: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if sum(each.nbytes for each in shares[-1]) >= _OBJECT_BYTES:
            shares.append([])
        shares[-1].append(spec)
    return shares


def _numbers(spec: TensorSpec) -> bytes:
    """Numbers as weights have them, the same ones again and again."""
    block = (np.random.default_rng(len(spec.name)).normal(size=1 << 16) / 16).astype(_NUMPY[spec.dtype]).tobytes()
    return (block * -(-spec.nbytes // len(block)))[: spec.nbytes]
