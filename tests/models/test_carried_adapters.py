"""Adapters that stay adapters while their weights get the names of the other world."""

import numpy as np
import pytest
from models.test_oracle_conversions import config_of, forward
from support.model_cases import read_tensors
from support.stores import arrays_at, new_place, put_model

import reshard
from reshard.errors import PlanError

LLAMA, QWEN3 = "llama_cli150_llama_fp32_nodtype", "qwen3_mcore180_qwen3_fp32_interleaved"
LEAVES = {
    "mindpet": ("mindpet_delta_lora_a", "mindpet_delta_lora_b"),
    "tk": ("tk_delta_lora_a", "tk_delta_lora_b"),
    "peft": ("lora_A.weight", "lora_B.weight"),
    "named": ("lora_A.default.weight", "lora_B.default.weight"),
    "eager": ("lora_a", "lora_b"),
}


def adapters(weights, stems, leaves, rank=2):
    """Random halves for each weight."""
    numbers, made = np.random.default_rng(5), {}
    for stem in stems:
        rows, columns = weights[f"{stem}.weight"].shape
        made[f"{stem}.{leaves[0]}"] = numbers.standard_normal((rank, columns)).astype(np.float32)
        made[f"{stem}.{leaves[1]}"] = numbers.standard_normal((rows, rank)).astype(np.float32)
    return made


def converted(source, config, **asked):
    base = new_place()
    put_model(f"{base}/a", source, config)
    reshard.convert(f"{base}/a", f"{base}/b", **asked)
    assert reshard.verify(f"{base}/b").is_ok
    return arrays_at(f"{base}/b")


@pytest.mark.parametrize("leaves", LEAVES.values(), ids=LEAVES)
def test_from_mindspore(leaves):
    weights = forward(LLAMA)
    halves = adapters(weights, ["model.layers.1.attention.wq", "model.layers.0.feed_forward.w2"], leaves)
    states = {f"adam_m.{name}": array for name, array in halves.items()} | {"global_step": np.array([3], np.int32)}
    found = converted(weights | halves | states, config_of(LLAMA), to="hf")
    a, b = leaves
    renamed = {
        "model.layers.1.self_attn.q_proj.lora_A.weight": halves[f"model.layers.1.attention.wq.{a}"],
        "model.layers.1.self_attn.q_proj.lora_B.weight": halves[f"model.layers.1.attention.wq.{b}"],
        "model.layers.0.mlp.down_proj.lora_A.weight": halves[f"model.layers.0.feed_forward.w2.{a}"],
        "model.layers.0.mlp.down_proj.lora_B.weight": halves[f"model.layers.0.feed_forward.w2.{b}"],
    }
    assert found.keys() == read_tensors(LLAMA).keys() | renamed.keys()
    assert all(np.array_equal(found[name], array) for name, array in renamed.items())


@pytest.mark.parametrize(
    ("case", "stem", "expected"),
    [
        (LLAMA, "model.layers.0.self_attn.v_proj", "model.layers.0.attention.wv.mindpet_delta_lora"),
        (QWEN3, "model.layers.0.self_attn.o_proj", "decoder.layers.0.self_attention.linear_proj.lora"),
    ],
)
def test_from_hugging_face(case, stem, expected):
    weights = read_tensors(case)
    halves = adapters(weights, [stem], LEAVES["peft"])
    found = converted(weights | halves, config_of(case), to="ms", dtype="bf16")
    names = {name for name in found if "lora" in name}
    leaves = ("_a", "_b") if expected.endswith("delta_lora") else ("_A.weight", "_B.weight")
    assert names == {expected + leaf for leaf in leaves}
    assert {found[name].dtype.name for name in names} == {"bfloat16"}


def test_there_and_back():
    weights = read_tensors(LLAMA)
    halves = adapters(weights, ["model.layers.0.self_attn.q_proj", "lm_head"], LEAVES["peft"])
    there = converted(weights | halves, config_of(LLAMA), to="ms")
    back = converted(there, config_of(LLAMA), to="hf")
    assert back.keys() == weights.keys() | halves.keys()
    assert all(np.array_equal(back[name], array) for name, array in (weights | halves).items())


def test_adapters_of_joined_weights_must_be_merged_first():
    weights = read_tensors(QWEN3)
    stems = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(2) for part in "qv"]
    halves = adapters(weights, stems, LEAVES["peft"])
    with pytest.raises(PlanError) as error:
        converted(weights | halves, config_of(QWEN3), to="ms")
    assert str(error.value) == (
        "4 adapters cannot be converted beside their weights, which are split, joined or permuted\n"
        "  - model.layers.{}.self_attn.q_proj.weight: 2 adapters\n"
        "  - model.layers.{}.self_attn.v_proj.weight: 2 adapters\n"
        "Merge them first, in the same conversion: `merge_lora`, with `lora_scaling` (alpha / rank)."
    )
    merged = converted(weights | halves, config_of(QWEN3), to="ms", merge_lora=True, lora_scaling=1)
    assert not [name for name in merged if "lora" in name]


def test_adapters_of_permuted_rows_must_be_merged_first():
    case = "glm4_legacy160_qc0_mc0_rr1_bf16"
    weights = forward(case)
    stem = "transformer.encoder.layers.0.self_attention.wq"
    options = {"use_rearrange_rope": True, "hf_names": "transformers"}
    with pytest.raises(PlanError, match="split, joined or permuted"):
        converted(weights | adapters(weights, [stem], LEAVES["mindpet"]), config_of(case), to="hf", option=options)


def test_half_an_adapter_is_refused():
    weights = forward(LLAMA)
    halves = adapters(weights, ["model.layers.0.attention.wq"], LEAVES["mindpet"])
    halves.popitem()
    with pytest.raises(PlanError, match=r"The adapters cannot be converted\.") as error:
        converted(weights | halves, config_of(LLAMA), to="hf")
    assert error.value.problems == ("model.layers.0.attention.wq.mindpet_delta_lora_a: its B is missing",)


def test_ranks_by_numbers_cut_them_like_training():
    weights = forward(LLAMA)
    halves = adapters(weights, ["model.layers.0.attention.wq", "model.layers.0.attention.wo"], LEAVES["mindpet"])
    base = new_place()
    put_model(f"{base}/hf", converted(weights | halves, config_of(LLAMA), to="hf"), config_of(LLAMA))
    reshard.convert(f"{base}/hf", f"{base}/ranks", to="ms", parallel="mp=2,vocab_emb_dp=false")
    held = arrays_at(f"{base}/ranks", ["rank_1/checkpoint_1.safetensors"])
    for name, axis in (("wq.mindpet_delta_lora_b", 0), ("wo.mindpet_delta_lora_a", 1)):
        whole = halves[f"model.layers.0.attention.{name}"]
        assert np.array_equal(held[f"model.layers.0.attention.{name}"], np.split(whole, 2, axis)[1])
