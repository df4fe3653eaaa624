"""``--src-parallel``: what sizes cut they put together; and documents that are mixed up."""

import json

import numpy as np
import pytest
from cli.runner import ok, run
from support.checkpoints import encode, random_model

from reshard import convert, inspect
from reshard.errors import FormatError, StrategyError, UsageError
from reshard.planning.conversion import MANIFEST_KEY

SHAPES = {"model.tok_embeddings.embedding_weight": (96, 32), "lm_head.weight": (96, 32), "model.norm_out.weight": (32,)}
for layer in range(2):
    at = f"model.layers.{layer}"
    SHAPES |= {f"{at}.attention.{w}.weight": (32, 32) for w in ("wq", "wk", "wv", "wo")}
    SHAPES |= {f"{at}.feed_forward.{w}.weight": (64, 32) for w in ("w1", "w3")} | {
        f"{at}.feed_forward.w2.weight": (32, 64)
    }
    SHAPES |= {f"{at}.{norm}.weight": (32,) for norm in ("attention_norm", "ffn_norm")}
STATES = {f"adam_{m}.{name}": shape for m in "mv" for name, shape in SHAPES.items()}
CONFIG = {"model_type": "llama", "hidden_size": 32, "vocab_size": 96, "intermediate_size": 64, "num_hidden_layers": 2}
TRAINING = b"""
use_parallel: &yes True
base: &base {data_parallel: 2, model_parallel: 4}
parallel_config: {<<: *base, model_parallel: 2, pipeline_stage: 2, vocab_emb_dp: False}
model: {model_config: {rms_norm_eps: 1.e-6}}
"""
LAYOUT = b"axes: {mp: 2}\nrules: [{match: '*', split: [mp]}]"


@pytest.fixture
def model(memory):
    tensors = random_model({name: ("F32", shape) for name, shape in (SHAPES | STATES).items()})
    memory.put("ms/model.safetensors", encode(tensors))
    memory.put("ms/config.json", json.dumps(CONFIG).encode())
    memory.put("train.yaml", TRAINING)
    memory.put("layout.yaml", LAYOUT)
    return memory


def forgotten(place, name):
    """Ranks of which nothing says how they were cut."""
    place.remove(f"{name}/{MANIFEST_KEY}")
    return place.at(name)


def arrays(body):
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(body[8 + length :][slice(*item["data_offsets"])], "<u4").reshape(item["shape"])
        for name, item in header.items()
    }


@pytest.mark.parametrize(
    "sizes",
    [
        "mp=4",
        "dp=2,mp=2,vocab_emb_dp=false",
        "dp=2,mp=2,pp=2,po=true,po_threshold=0",
        "dp=4,mp=2,po=true,po_size=2,po_threshold=0",
        "mp=2,pp=2,vpp=1",
        "train.yaml",
    ],
)
def test_what_sizes_cut_they_put_together(model, sizes):
    sizes = model.at(sizes) if sizes.endswith(".yaml") else sizes
    ok("convert", model.at("ms"), model.at("ranks"), "--parallel", sizes)
    ok("convert", forgotten(model, "ranks"), model.at("again"), "--src-parallel", sizes, "--config", config(model))
    ours, theirs = arrays(model.read("again/model.safetensors")), arrays(model.read("ms/model.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def config(model):
    return model.at("ms/config.json")


def test_inspect_and_other_ranks(model):
    ok("convert", model.at("ms"), model.at("ranks"), "--parallel", "mp=4")
    ranks = forgotten(model, "ranks")
    catalog = inspect(ranks, src_parallel="mp=4", family="llama", naming="legacy")
    assert {entry.spec.name: entry.spec.shape for entry in catalog.entries} == SHAPES | STATES
    assert "[96, 32]" in ok("inspect", ranks, "--src-parallel", "tp=4", "--tensors", "0").out
    ok("convert", ranks, model.at("others"), "--src-parallel", "mp=4", "--parallel", "mp=2,pp=2")
    # The other ranks have a manifest, and need nothing.
    assert len(inspect(model.at("others")).entries) == len(SHAPES | STATES)


def test_to_hugging_face(model):
    drop = ["--drop", "adam_*"]
    ok("convert", model.at("ms"), model.at("ranks"), "--parallel", "mp=4", *drop)
    ranks = forgotten(model, "ranks")
    flags = ["--src-parallel", "mp=4", "--to", "hf", "--config", config(model)]
    done = run("convert", ranks, model.at("hf"), *flags)
    assert done.code in (0, 4), done.err  # the family's own numbers may lack in so small a config.json
    model.put("ms/config.json", json.dumps(CONFIG | {"num_attention_heads": 4, "num_key_value_heads": 4}).encode())
    ok("convert", ranks, model.at("hf2"), *flags)
    assert "model.embed_tokens.weight" in arrays(model.read("hf2/model.safetensors"))


def test_an_extent_of_another_axis_is_no_evidence(memory):
    """A rank's 16 rows of wk may be a quarter of 64, which other tensors have: config.json must say."""
    shapes = {name.replace("layers.1", "layers.0"): shape for name, shape in SHAPES.items()} | {
        f"model.layers.0.attention.{w}.weight": (16, 32) for w in ("wk", "wv")
    }
    memory.put("ms/model.safetensors", encode(random_model({name: ("F32", shape) for name, shape in shapes.items()})))
    sizes = "dp=2,vocab_emb_dp=false,po=true,po_threshold=4"
    convert(memory.at("ms"), memory.at("ranks"), parallel=sizes)
    ranks = forgotten(memory, "ranks")
    with pytest.raises(StrategyError, match="do not say what the shards are pieces of") as caught:
        convert(ranks, memory.at("x"), src_parallel=sizes)
    wk = "model.layers.0.attention.wk.weight"
    assert f"{wk}: a rank's [16, 32] may be its piece of [16, 32] or of [32, 32]" in caught.value.problems
    assert "Give the model's config.json with `config`: " in str(caught.value)
    assert "num_key_value_heads" in str(caught.value)
    convert(ranks, memory.at("x"), src_parallel=sizes, config={"num_attention_heads": 8, "num_key_value_heads": 4})
    ours, theirs = arrays(memory.read("x/model.safetensors")), arrays(memory.read("ms/model.safetensors"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_sizes_that_contradict_the_manifest(model):
    ok("convert", model.at("ms"), model.at("ranks"), "--parallel", "mp=4")
    with pytest.raises(StrategyError, match="contradicts") as caught:
        inspect(model.at("ranks"), src_parallel="dp=2,mp=2", config=config(model))
    assert (
        "model.layers.*.attention.wk.weight (2 tensors): rank 0 holds [0:8, 0:32] of [32, 32], by the given strategy "
        "[0:16, 0:32]" in caught.value.problems
    )
    with pytest.raises(StrategyError, match="contradicts"):
        inspect(model.at("ranks"), src_parallel="mp=2", config=config(model))
    assert inspect(model.at("ranks"), src_parallel="mp=4", config=config(model)).entries


def test_sizes_of_other_shards(model):
    ok("convert", model.at("ms"), model.at("ranks"), "--parallel", "mp=4")
    ranks = forgotten(model, "ranks")
    with pytest.raises(StrategyError, match="has only 2 ranks"):
        inspect(ranks, src_parallel="mp=2", config=config(model))
    with pytest.raises(UsageError, match="fit none of the namings of glm4"):
        inspect(ranks, src_parallel="mp=4", family="glm4")
    with pytest.raises(UsageError, match="this is a full checkpoint"):
        inspect(model.at("ms"), src_parallel="mp=4")
    with pytest.raises(UsageError, match="cannot be used together"):
        inspect(ranks, src_parallel="mp=4", src_layout=model.at("layout.yaml"))
    with pytest.raises(UsageError, match="src_parallel='mp=x' cannot be parsed"):
        inspect(ranks, src_parallel="mp=x")


@pytest.mark.parametrize("option", ["--dst-layout", "--dst-strategy", "--src-layout", "--src-strategy"])
def test_a_training_configuration_is_no_layout_file(model, option):
    done = run("plan", model.at("ms"), model.at("x"), option, model.at("train.yaml"))
    assert done.code == 3
    assert "train.yaml: this is the configuration of a training job, not a layout file" in done.err
    assert "--src-parallel and --parallel take its sizes" in done.err


@pytest.mark.parametrize("option", ["--parallel", "--src-parallel"])
def test_a_layout_file_is_no_training_configuration(model, option):
    done = run("plan", model.at("ms"), model.at("x"), option, model.at("layout.yaml"))
    assert done.code == 3
    assert "layout.yaml: this is a layout file, not the configuration of a training job" in done.err
    assert "--src-layout and --dst-layout take it" in done.err


@pytest.mark.parametrize("text", [b"", b"steps: 3", b"[dp, 2]", b"model_type: llama\nhidden_size: 32"])
def test_other_yaml(model, text):
    url = model.put("other.yaml", text)
    with pytest.raises(FormatError, match="no parallel configuration: expected"):
        convert(model.at("ms"), model.at("x"), parallel=url)


def test_a_job_that_is_not_parallel(model):
    url = model.put("single.yaml", TRAINING.replace(b"&yes True", b"False"))
    for option in ("--parallel", "--src-parallel"):
        done = run("plan", model.at("ms"), model.at("x"), option, url)
        assert done.code == 4
        assert "use_parallel is False, but the sizes are those of 8 ranks (dp 2, mp 2, pp 2)" in done.err
