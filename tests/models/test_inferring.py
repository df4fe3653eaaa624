"""Sizes from names and shapes, and the fewest that must be asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.test_oracle_conversions import FORWARD, config_of, forward
from support.model_cases import read_tensors, specs_of

from reshard.errors import PlanError, UsageError
from reshard.models.compiling import compile_rules
from reshard.models.family_file import load_family, parse_family
from reshard.models.inferring import ModelSide, infer_sizes, keys_to_ask
from reshard.models.settings import find_options, resolve_settings
from reshard.models.size_equations import solve
from reshard.tensor import DType, TensorSpec


def inferred(case, side, config=None, **options):
    name, naming, _, given = FORWARD[case]
    family = load_family(name)
    specs = specs_of(read_tensors(case) if side == "hf" else forward(case))
    found = {key: value for key, (value, _) in find_options(family, side, specs).items()}
    return infer_sizes(ModelSide(family, naming, side, {**found, **given, **options}, config or {}, specs))


@pytest.mark.parametrize("side", ["hf", "ms"])
@pytest.mark.parametrize("case", sorted(FORWARD))
def test_what_is_told_is_true(case, side):
    """Of every model that the original code converted, whichever side is read."""
    family = load_family(FORWARD[case][0])
    config = config_of(case)
    expected = resolve_settings(family, config, {}).values
    found = resolve_settings(family, inferred(case, side), {}).values
    keys = [p.name for p in family.parameters if p.config and p.name in found]
    assert len(keys) > 4
    if "_tied_" in case and side == "ms" and FORWARD[case][0] in ("llama", "qwen2_5"):
        keys.remove("tied")  # the original writes a copy of the embedding, which could be a layer of its own
    assert {key: found[key] for key in keys if found[key] != expected.get(key)} == {}


def test_what_config_json_states_stays():
    case = "qwen3_mcore180_qwen3_fp32_interleaved"
    assert inferred(case, "hf", {"num_attention_heads": 5})["num_attention_heads"] == 5
    assert inferred(case, "hf", config_of(case)) == config_of(case)


def shapes(**found):
    return {name: TensorSpec(name, DType.F32, shape) for name, shape in found.items()}


def moe(experts, dense):
    """Layers with and without experts, as mcore names them."""
    found = {f"decoder.layers.{i}.mlp.router.weight": (4, 8) for i in experts}
    found |= {f"decoder.layers.{i}.mlp.linear_fc2.weight": (8, 6) for i in dense}
    found |= {f"decoder.layers.{i}.input_layernorm.weight": (8,) for i in (*experts, *dense)}
    return shapes(**found)


@pytest.mark.parametrize(
    ("experts", "dense", "told"), [((0, 1, 2), (), None), ((1, 3), (0, 2), [0, 2]), ((0,), (1, 2), [1, 2])]
)
def test_layers_without_experts_are_listed(experts, dense, told):
    found = infer_sizes(ModelSide(load_family("qwen3_moe"), "mcore", "ms", {}, {}, moe(experts, dense)))
    assert found.get("mlp_only_layers") == told
    assert (found["num_hidden_layers"], found["num_experts"]) == (len(experts) + len(dense), 4)


def test_no_layer_for_multi_token_prediction():
    names = {"model.layers.0.attention_norm.weight": (4,), "model.layers.1.attention_norm.weight": (4,)}
    found = infer_sizes(ModelSide(load_family("deepseek_v3"), "legacy", "ms", {}, {}, shapes(**names)))
    assert (found["num_hidden_layers"], found.get("num_nextn_predict_layers")) == (2, None)
    names |= {"model.mtp_norms.0.weight": (4,)}
    found = infer_sizes(ModelSide(load_family("deepseek_v3"), "legacy", "ms", {}, {}, shapes(**names)))
    assert (found["num_hidden_layers"], found["num_nextn_predict_layers"]) == (1, 1)


def test_one_number_tells_the_others():
    case = "online160_llama_fp32_qkvconcat1"
    specs, family = specs_of(forward(case)), load_family("llama")
    needed = frozenset({"r", "g", "d", "heads"})
    asked = family, "legacy", "ms", {"qkv_concat": True}
    assert keys_to_ask(ModelSide(*asked, {}, specs), needed) == ("num_attention_heads",)
    config, found = config_of(case), infer_sizes(ModelSide(*asked, {"num_attention_heads": 8}, specs))
    assert found["num_key_value_heads"] == config["num_key_value_heads"]


def test_a_wrong_number_does_not_fit():
    case = "online160_llama_fp32_qkvconcat1"
    specs, family = specs_of(forward(case)), load_family("llama")
    config = infer_sizes(ModelSide(family, "legacy", "ms", {"qkv_concat": True}, {"num_attention_heads": 7}, specs))
    with pytest.raises(PlanError, match="does not fit the rules of llama") as error:
        compile_rules(family, "to_hf", "legacy", {"qkv_concat": True}, config, specs, None)
    assert error.value.problems[0] == "config: d = h / heads: 64 / 7 is not a whole number"


def test_only_what_rows_need_is_asked_for():
    """Without q, k and v as one tensor no row needs the heads."""
    case = "llama_cli150_llama_fp32_nodtype"
    specs, family = specs_of(read_tensors(case)), load_family("llama")
    config = infer_sizes(ModelSide(family, "legacy", "hf", {}, {}, specs))
    assert "num_attention_heads" not in config
    assert len(compile_rules(family, "to_ms", "legacy", {}, config, specs, None).targets) == len(specs)


def test_hostile_names_and_shapes():
    names = {f"model.layers.{'9' * 5000}.attention_norm.weight": (4,), "model.norm_out.weight": (0,)}
    names |= {"model.layers.1.attention.wq.weight": (2**62, 3), "model.tok_embeddings.embedding_weight": ()}
    found = infer_sizes(ModelSide(load_family("llama"), "legacy", "ms", {}, {}, shapes(**names)))
    assert found["num_hidden_layers"] == 2


SIZES = st.integers(1, 12)


@given(SIZES, SIZES, SIZES, SIZES)
def test_joined_rows_are_taken_apart(g, r, d, h):
    q, k, out = (("d", 1), ("heads", 1)), (("d", 1), ("g", 1)), (("h", 1),)
    rows = [({q: 1, k: 2}, (r + 2) * g * d), ({q: 1}, r * g * d), ({out: 1}, h)]
    found = solve(rows, {"heads": r * g})
    assert {name: int(size) for name, size in found.items()} == {"d": d, "g": g, "h": h}
    assert solve(rows, {}).keys() == {"h"}


def test_contradictions_are_left_to_the_rules():
    assert solve([({(("a", 1),): 1}, 3), ({(("a", 1),): 1}, 4)], {})["a"] == 3
    assert solve([({(("a", 1),): 1, (): 5}, 3)], {}) == {}


def test_rows_of_tensors_that_are_not_there_need_nothing():
    """An optional bias of q, k and v as one tensor would need the heads."""
    shape = {"w.weight": (4,), "v.bias": (4,)}
    specs, family = shapes(**shape), parse_family(OPTIONAL, "o.yaml")
    config = infer_sizes(ModelSide(family, "n", "hf", {}, {}, shapes(**{"w.weight": (4,)})))
    del specs["v.bias"]
    assert len(compile_rules(family, "to_ms", "n", {}, config, specs, None).targets) == 1
    specs = shapes(**shape)
    with pytest.raises(UsageError, match=r"neither config\.json nor the tensors tell a, which the rules of o need"):
        compile_rules(family, "to_ms", "n", {}, infer_sizes(ModelSide(family, "n", "hf", {}, {}, specs)), specs, None)


OPTIONAL = b"""
family: o
title: o
detect: {model_type: [o], architectures: [o]}
parameters: {h: {config: h}, a: {config: a}, b: {config: b}}
indices: {}
options: {}
namings:
  n:
    description: n
    rows:
      - {hf: "w.weight [h]", ms: "x.weight"}
      - {hf: {t: "v.bias [(a b)]"}, ms: {t: "u.bias [(b a)]"}, optional: true}
"""
