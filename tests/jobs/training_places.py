"""Sources of training jobs in memory: a Llama that MindSpore Transformers wrote, in every form that its pages name."""

from __future__ import annotations

import json
from itertools import count

from oracle.cases import objects_below, read_content
from oracle.test_mindformers_scripts import files_of

import reshard
from reshard.api.request import Request
from reshard.api.resolve import resolve
from reshard.api.strategies import save_strategy
from reshard.jobs.training_job import target_strategy
from reshard.storage import open_location, open_target, read_object

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 96,
    "tie_word_embeddings": False,
}  # fmt: skip
FULL_CASE = "transform160_full_file_to_dp2mp2"
RANKS_CASE = "transform160_dp2mp2_to_full"
STATE_CASE = "unify160_adam_all"
PIPELINE_CASE = "unify160_suffix"
_numbers = count()


def new_place() -> str:
    """An empty place."""
    return f"memory://training-{next(_numbers)}"


def put(url: str, data: bytes) -> str:
    place = open_target(url)
    place.writable_store().put(place.key, data)
    return url


def remove(url: str) -> None:
    place = open_target(url)
    place.writable_store().delete(place.key)


def put_config(url: str) -> None:
    put(f"{url}/config.json", json.dumps(CONFIG).encode())


def put_full_ckpt(url: str) -> str:
    """The full weights, one ``.ckpt``, with config.json beside it."""
    put_config(url.rpartition("/")[0])
    return put(url, files_of(FULL_CASE)["mf/in/model.ckpt"])


def put_full(url: str) -> str:
    """The full weights as safetensors, in MindSpore Transformers' names."""
    reshard.convert(put_full_ckpt(f"{new_place()}/model.ckpt"), url)
    remove(f"{url}/reshard-manifest.json")
    put_config(url)
    return url


def put_hugging_face(url: str) -> str:
    """The full weights in Hugging Face's names."""
    reshard.convert(put_full_ckpt(f"{new_place()}/model.ckpt"), url, to="hf", config=CONFIG)
    remove(f"{url}/reshard-manifest.json")
    put_config(url)
    return url


def put_ranks(
    url: str, parallel: str, strategy: str | None = None, *, form: str = "safetensors", step: str = ""
) -> str:
    """Shards of ranks as a training run leaves them, without a manifest, and their strategy files."""
    source = put_full_ckpt(f"{new_place()}/model.ckpt")
    prefix = f"llama_rank_{{rank}}-{step}" if step else "checkpoint_"
    options = {"parallel": parallel, "format": form, "prefix": prefix, "family": "llama"}
    made = new_place()
    reshard.convert(source, f"{made}/ranks", **options)
    for name, data in objects_below(f"{made}/ranks").items():  # several steps may lie side by side
        if name != "reshard-manifest.json":
            put(f"{url}/{name}", data)
    put_config(url)
    if strategy is not None:
        resolved = resolve(Request.of(src=source, dst=f"{made}/ranks", **options))
        save_strategy(target_strategy(resolved), f"{strategy}/", overwrite=True)
    return url


def put_genuine_ranks(url: str, strategy: str | None) -> str:
    """The ``.ckpt`` shards of four ranks (dp 2, mp 2) that MindSpore Transformers cut, and its strategy files."""
    return _put_case(RANKS_CASE, "mf/in/src_ckpt/", url, "mf/in/src_strategy/", strategy)


def put_pipeline_ranks(url: str, strategy: str | None) -> str:
    """The safetensors shards of four ranks (mp 2, pp 2) of a training run, and its strategy files."""
    return _put_case(PIPELINE_CASE, "mf/in/checkpoint/", url, "mf/in/strategy/", strategy)


def put_training_ranks(url: str, strategy: str | None) -> str:
    """The shards of four ranks that a run saved with its optimizer's state and its counters, and its strategy files."""
    return _put_case(STATE_CASE, "mf/in/checkpoint/", url, "mf/in/strategy/", strategy)


def _put_case(case: str, shards: str, url: str, strategies: str, strategy: str | None) -> str:
    for name, data in files_of(case).items():
        if name.startswith(shards):
            put(f"{url}/{name.removeprefix(shards)}", data)
        elif name.startswith(strategies) and strategy is not None:
            put(f"{strategy}/{name.removeprefix(strategies)}", data)
    put_config(url)
    return url


def names_below(url: str) -> set[str]:
    return {name for name, _ in open_location(url).named_objects()}


def content_of(url: str, **options: object) -> dict[str, object]:
    """Every whole tensor of a checkpoint, whatever its form."""
    place = f"{new_place()}/whole.safetensors"
    reshard.convert(url, place, **options)
    return dict(read_content(read_object(open_location(place))).tensors)
