"""``reshard strategy make``: from a checkpoint and numbers to a file."""

import json
from uuid import uuid4

import numpy as np
import pytest
from cli.runner import ok, run

from reshard.api import make_strategy, read_strategy
from reshard.errors import PlanError, TargetExists, UsageError
from reshard.formats.safetensors import plan_header
from reshard.storage import MemoryStore
from reshard.tensor import DType, TensorSpec

NAMES = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.self_attn.o_proj.weight": (4, 8),
    "model.norm.weight": (4,),
}
LEGACY = {"model.tok_embeddings.embedding_weight": (8, 4), "model.layers.0.attention.wo.weight": (4, 8)}
EITHER = {"lm_head.weight": (8, 4)}


@pytest.fixture
def place():
    bucket = uuid4().hex
    store = MemoryStore(bucket)
    config = {"model_type": "llama", "num_hidden_layers": 1, "rms_norm_eps": 1e-6}
    for prefix, names in (("hf", NAMES), ("ms", LEGACY), ("either", EITHER)):
        specs = [TensorSpec(name, DType.F32, shape) for name, shape in names.items()]
        body = bytes(4 * sum(int(np.prod(shape)) for shape in names.values()))
        store.put(f"{prefix}/model.safetensors", plan_header(specs, {}).data + body)
        store.put(f"{prefix}/config.json", json.dumps(config).encode())
    store.put("train.yaml", b"parallel_config: {data_parallel: 2, model_parallel: 2, vocab_emb_dp: False}\nlr: 1.e-5\n")
    return f"memory://{bucket}"


@pytest.mark.parametrize("suffix", ["ckpt", "json", "yaml"])
@pytest.mark.parametrize("source", ["hf", "ms", "ms/model.safetensors"])
def test_made_and_read_back(place, suffix, source):
    url = f"{place}/strategy.{suffix}"
    made = make_strategy(url, checkpoint=f"{place}/{source}", parallel="dp=2,mp=2,vocab_emb_dp=false")
    again = read_strategy(url, checkpoint=f"{place}/{source}")
    shapes = NAMES | LEGACY
    for rank in range(4):
        for name in made.names:
            ours, theirs = made.layout(name, rank), again.layout(name, rank)
            assert ours.box_of(shapes[name], rank) == theirs.box_of(shapes[name], rank)


def test_configuration_of_a_job(place):
    from_yaml = make_strategy(
        f"{place}/a.ckpt", checkpoint=f"{place}/ms", parallel=f"{place}/train.yaml", family="llama"
    )
    assert from_yaml == make_strategy(
        f"{place}/b.ckpt",
        checkpoint=f"{place}/ms",
        parallel="dp=2,mp=2,vocab_emb_dp=no",
        config=f"{place}/hf/config.json",
    )


def test_command(place):
    flags = ["--parallel", "dp=2,mp=2", "--for", f"{place}/ms"]
    assert ok("strategy", "make", f"{place}/s.ckpt", *flags, "--output", "json").json["device_count"] == 4
    assert "exists" in run("strategy", "make", f"{place}/s.ckpt", *flags).err
    ok(
        "strategy",
        "make",
        f"{place}/s.ckpt",
        *flags,
        "--overwrite",
        "--option",
        "qkv_concat=false",
        "--naming",
        "legacy",
    )
    assert run("strategy", "make", f"{place}/t.ckpt", *flags, "--option", "x").code == 2
    assert "unknown key" in run("strategy", "make", f"{place}/t.ckpt", "--parallel", "x=1", "--for", place).err


def test_ambiguous_or_unknown_namings_are_refused(place):
    with pytest.raises(UsageError, match=r"hf and legacy|legacy and hf"):
        make_strategy(f"{place}/s.ckpt", checkpoint=f"{place}/either", parallel="mp=2")
    with pytest.raises(UsageError, match="fit none of the namings"):
        make_strategy(f"{place}/s.ckpt", checkpoint=f"{place}/ms", parallel="mp=2", family="qwen3")
    MemoryStore(place.removeprefix("memory://")).put("hf/config.json", b'{"model_type": "gpt"}')
    with pytest.raises(PlanError, match="gpt"):
        make_strategy(f"{place}/s.ckpt", checkpoint=f"{place}/hf", parallel="mp=2")
    make_strategy(f"{place}/s.ckpt", checkpoint=f"{place}/ms", parallel="mp=2")
    with pytest.raises(TargetExists):
        make_strategy(f"{place}/s.ckpt", checkpoint=f"{place}/ms", parallel="mp=2")
