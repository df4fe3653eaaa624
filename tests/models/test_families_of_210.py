"""What MindSpore Transformers 2.1 makes of the models that it has today, made by our rules, both ways.

A case tells everything itself: family, naming, options, dtype, and what the real code wrote wrongly.
"""

import json

import numpy as np
import pytest
from support.model_cases import FOLDER, apply, read_answer, read_config, read_tensors, specs_of, summary_of

from reshard.errors import PlanError
from reshard.models.compiling import compile_rules
from reshard.models.detecting import detect
from reshard.models.family_file import load_family
from reshard.tensor import DType

CASES = {path.parent.name: json.loads(path.read_text()) for path in FOLDER.glob("f210_*/case.json")}
TELECHAT = sorted(name for name, case in CASES.items() if "telechat" in name and "hf->mf" in case["directions"])
DTYPES = {"bf16": DType.BF16, "bfloat16": DType.BF16, "fp32": DType.F32}


def requested(case):
    """The dtype that the real code was asked for; None where it keeps the source's."""
    words = [*case.get("commands", [[]])[0], "--dtype", None]
    return DTYPES.get(case.get("dtype") or words[words.index("--dtype") + 1])


def forward(name):
    case, config, sources = CASES[name], read_config(name), read_tensors(name)
    found = detect(config, sources, naming=case["naming"])
    assert (found.family.name, found.direction) == (case["family"], "to_ms")
    rules = compile_rules(
        found.family, "to_ms", case["naming"], case["options"], config, specs_of(sources), requested(case)
    )
    return apply(rules, sources)


def answer_of(name):
    """What the real code wrote, without what no network has."""
    case = CASES[name]
    told = case.get("mf_tensors") or {k: v for file in case["files"]["mf"].values() for k, v in file["tensors"].items()}
    wrong = case.get("drop_from_mf", ())
    return {k: (one["dtype"], tuple(one["shape"]), one["sha256"]) for k, one in told.items() if k not in wrong}


def test_cases_are_there():
    assert len(TELECHAT) == 8


@pytest.mark.parametrize("name", TELECHAT)
def test_forward(name):
    assert summary_of(forward(name)) == answer_of(name)


@pytest.mark.parametrize("name", TELECHAT)
def test_backward(name):
    """Every tensor of Hugging Face's returns; with the options that the names do not tell."""
    case, config, sources = CASES[name], read_config(name), forward(name)
    found = detect(config, sources)
    assert (found.family.name, found.direction, found.naming) == (case["family"], "to_hf", case["naming"])
    rules = compile_rules(found.family, "to_hf", found.naming, case["options"], config, specs_of(sources), None)
    assert summary_of(apply(rules, sources)) == read_answer(name, "hf")


def test_what_the_original_adds_without_multi_token_prediction_is_dropped():
    """It writes ``mtp.output_layer.weight`` exactly where there is none; that no row has it is no reason to refuse."""
    name = "f210_telechat3moe_mcore_nomtp_fp32"
    config, sources = read_config(name), forward(name)
    sources["mtp.output_layer.weight"] = sources["output_layer.weight"]
    rules = compile_rules(load_family("telechat3_moe"), "to_hf", "mcore", {}, config, specs_of(sources), None)
    assert [dropped.name for dropped in rules.dropped] == ["mtp.output_layer.weight"]


# TeleChat2 with experts: the real script has rules for it, one way.

MOE = {
    "model_type": "telechat", "n_layer": 2, "n_head": 4, "num_key_value_heads": 2, "hidden_size": 8,
    "ffn_hidden_size": 6, "vocab_size": 5,
}  # fmt: skip


def moe_tensors(experts=3):
    shapes = {"transformer.word_embeddings.weight": (5, 8), "transformer.ln_f.weight": (8,), "lm_head.weight": (5, 8)}
    for layer in range(2):
        at = f"transformer.h.{layer}"
        shapes |= {f"{at}.{norm}_layernorm.weight": (8,) for norm in ("input", "post_attention")}
        attention = {"query.weight": (8, 8), "key_value.weight": (8, 8), "dense.weight": (8, 8), "dense.bias": (8,)}
        shapes |= {f"{at}.self_attention.{part}": shape for part, shape in attention.items()}
        shapes[f"{at}.mlp.router.weight"] = (experts, 8)
        for expert in range(experts):
            one = f"{at}.mlp.local_experts.{expert}"
            shapes |= {f"{one}.gate_proj.weight": (6, 8), f"{one}.up_proj.weight": (6, 8)}
            shapes |= {f"{one}.down_proj.weight": (8, 6), f"{one}.down_proj.bias": (8,)}
    draw = np.random.default_rng(5)
    return {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def test_experts_of_telechat2_there_and_back():
    sources, config = moe_tensors(), MOE | {"num_local_experts": 3}
    found = detect(config, sources)
    assert (found.family.name, found.naming, dict(found.options)) == (
        "telechat2",
        "legacy",
        {"experts_in_layers": True},
    )
    made = apply(compile_rules(found.family, "to_ms", "legacy", {}, config, specs_of(sources), None), sources)
    for layer in range(2):
        ours, theirs = f"model.layers.{layer}.feed_forward", f"transformer.h.{layer}.mlp"
        assert (made[f"{ours}.router.dense.weight"] == sources[f"{theirs}.router.weight"]).all()
        for part, its in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            stacked = np.stack([sources[f"{theirs}.local_experts.{e}.{its}.weight"] for e in range(3)])
            assert np.array_equal(made[f"{ours}.ffn.{part}.weight"], stacked)
        biases = np.stack([sources[f"{theirs}.local_experts.{e}.down_proj.bias"] for e in range(3)])
        assert np.array_equal(made[f"{ours}.ffn.w2.bias"], biases[None, :, None, :])
    back = detect(config, made)
    assert (back.naming, dict(back.options)["experts_in_layers"]) == ("legacy", True)
    again = apply(compile_rules(back.family, "to_hf", "legacy", {}, config, specs_of(made), None), made)
    assert summary_of(again) == summary_of(sources)


def test_experts_have_no_place_in_the_networks_of_mcore():
    with pytest.raises(PlanError, match="naming mcore") as caught:
        compile_rules(load_family("telechat2"), "to_ms", "mcore", {}, MOE, specs_of(moe_tensors()), None)
    assert any("local_experts" in problem for problem in caught.value.problems)


def test_heads_that_config_json_does_not_count_are_the_query_heads():
    """The real loader fails there; num_key_value_heads is optional in that family."""
    name = "f210_telechat2_mcore_bf16"
    config = {key: value for key, value in read_config(name).items() if key != "num_key_value_heads"}
    sources = read_tensors(name)
    rules = compile_rules(load_family("telechat2"), "to_ms", "mcore", {}, config, specs_of(sources), None)
    assert summary_of(apply(rules, sources)) == answer_of(name)


@pytest.mark.parametrize(("config", "expected"), [({}, "llama"), ({"model_type": "telechat3"}, "telechat3")])
def test_names_of_another_family_are_that_ones_unless_config_json_says_more(config, expected):
    assert detect(config, read_tensors("f210_telechat3_mcore_bf16")).family.name == expected


@pytest.mark.parametrize("option", [{"expert_axes": 3}, {"mla_qkv_concat": True}])
def test_options_that_contradict_the_tensors_are_refused(option):
    name = "f210_telechat3moe_mcore_bf16"
    sources = forward(name)
    with pytest.raises(PlanError) as caught:
        compile_rules(
            load_family("telechat3_moe"), "to_hf", "mcore", option, read_config(name), specs_of(sources), None
        )
    assert any(word in problem for problem in caught.value.problems for word in ("expected", "unmapped"))


def test_layouts_that_nothing_tells_are_said():
    """Shapes are equal for both forms, so the plan says which was taken."""
    name = "f210_telechat3_mcore_contiguous_bf16"
    sources = forward(name)
    rules = compile_rules(load_family("telechat3"), "to_hf", "mcore", {}, read_config(name), specs_of(sources), None)
    assert [note.partition(":")[0] for note in rules.notes] == ["qkv_layout", "mlp_layout", "blocks"]


@pytest.mark.parametrize("naming", ["mcore", "legacy"])
def test_biases_of_telechat3_are_those_that_config_json_states(naming):
    """Biases without a word of them are converted; a config.json that states them and tensors without them are not."""
    sources = read_tensors("f210_telechat3_mcore_bf16")
    config, family = read_config("f210_telechat3_mcore_bf16"), load_family("telechat3")
    with pytest.raises(PlanError, match="does not fit") as caught:
        compile_rules(family, "to_ms", naming, {}, config | {"attention_bias": True}, specs_of(sources), None)
    assert any("q_proj.bias: missing" in problem for problem in caught.value.problems)
    rows = {
        name: array
        for name, array in sources.items()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    }
    biased = sources | {name.replace(".weight", ".bias"): array[:, 0] for name, array in rows.items()}
    made = [
        apply(compile_rules(family, "to_ms", naming, {}, config | told, specs_of(biased), None), biased)
        for told in ({"attention_bias": True}, {"attention_bias": False})
    ]
    assert summary_of(made[0]) == summary_of(made[1])
    for name in [name for name in made[0] if name.endswith(".bias")]:  # a bias has the order of its weight's rows
        assert (made[0][name] == made[0][name.replace(".bias", ".weight")][:, 0]).all()
    back = compile_rules(family, "to_hf", naming, {}, config | {"attention_bias": True}, specs_of(made[0]), None)
    assert summary_of(apply(back, made[0])) == summary_of(biased)
