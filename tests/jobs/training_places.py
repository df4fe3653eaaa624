"""Sources of training jobs in memory: a Llama that MindSpore Transformers wrote, in every form that its pages name."""

from __future__ import annotations

import json
from functools import cache
from itertools import count

import numpy as np
from oracle.cases import objects_below, read_content
from oracle.test_mindformers_scripts import files_of

import reshard
from reshard.api.strategies import save_strategy
from reshard.jobs.training_job import target_strategy
from reshard.api.request import Request
from reshard.api.resolve import resolve
from reshard.storage import open_location, open_target

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 96,
    "tie_word_embeddings": False,
}  # fmt: skip
FULL_CASE = "transform160_full_file_to_dp2mp2"
RANKS_CASE = "transform160_dp2mp2_to_full"
PIPELINE_CASE = "unify160_suffix"
_numbers = count()


def new_place() -> str:
    """An empty place."""
    return f"memory://training-{next(_numbers)}"


def put(url: str, data: bytes) -> str:
    place = open_target(url)
    place.writable_store().put(place.key, data)
    return url


def put_full_ckpt(url: str) -> str:
    """The full weights, one ``.ckpt``, with config.json beside it."""
    put(f"{url.rpartition('/')[0]}/config.json", json.dumps(CONFIG).encode())
    return put(url, files_of(FULL_CASE)["mf/in/model.ckpt"])


def put_full_safetensors(url: str) -> str:
    """The full weights as safetensors."""
    reshard.convert(put_full_ckpt(f"{new_place()}/model.ckpt"), url)
    put(f"{url}/config.json", json.dumps(CONFIG).encode())
    return url


def put_hugging_face(url: str) -> str:
    """The full weights in Hugging Face's names."""
    reshard.convert(put_full_ckpt(f"{new_place()}/model.ckpt"), url, to="hf", config=CONFIG)
    put(f"{url}/config.json", json.dumps(CONFIG).encode())
    return url


def put_ranks(url: str, parallel: str, *, strategy: str | None, form: str = "safetensors", step: str = "") -> str:
    """Shards of ranks as a training run leaves them, without a manifest, and their strategy files."""
    source = put_full_ckpt(f"{new_place()}/model.ckpt")
    prefix = f"llama_rank_{{rank}}-{step}" if step else "checkpoint_"
    options = {"parallel": parallel, "format": form, "prefix": prefix, "family": "llama"}
    reshard.convert(source, url, **options)
    place = open_target(f"{url}/reshard-manifest.json")
    place.writable_store().delete(place.key)
    if strategy is not None:
        resolved = resolve(Request.of(src=source, dst=url, **options))
        save_strategy(target_strategy(resolved), strategy)
    return url


def put_genuine_ranks(url: str, strategy: str | None) -> str:
    """The ``.ckpt`` shards of four ranks (dp 2, mp 2) that MindSpore Transformers cut, and its strategy files."""
    for name, data in files_of(RANKS_CASE).items():
        if name.startswith("mf/in/src_ckpt/"):
            put(f"{url}/{name.removeprefix('mf/in/src_ckpt/')}", data)
        if name.startswith("mf/in/src_strategy/") and strategy:
            put(f"{strategy}/{name.rpartition('/')[2]}", data)
    return url


def put_pipeline_ranks(url: str, strategy: str | None) -> str:
    """The safetensors shards of four ranks (mp 2, pp 2) of a training run."""
    for name, data in files_of(PIPELINE_CASE).items():
        if name.startswith("mf/in/checkpoint/"):
            put(f"{url}/{name.removeprefix('mf/in/checkpoint/')}", data)
        if name.startswith("mf/in/strategy/") and strategy:
            put(f"{strategy}/{name.rpartition('/')[2]}", data)
    return url


def names_below(url: str) -> set[str]:
    return {name for name, _ in open_location(url).named_objects()}


def tensors_at(url: str, **options: object) -> dict[str, bytes]:
    """Every whole tensor of a checkpoint, whatever its form."""
    place = f"{new_place()}/whole.safetensors"
    reshard.convert(url, place, **options)
    from safetensors import deserialize

    location = open_location(place)
    data = location.store.read(
        location.key,
        __import__("reshard.tensor", fromlist=["ByteRange"]).ByteRange(0, location.store.head(location.key).nbytes),
        None,
    )
    return {name: bytes(item["data"]) for name, item in deserialize(data)}
