"""What does not fit is one error that lists all of it, before anything moves."""

import subprocess
import sys
import time

import pytest

from reshard.errors import FormatError, PlanError, UsageError
from reshard.models.compiling import compile_rules
from reshard.models.detecting import detect
from reshard.models.expansion import expand
from reshard.models.family_file import family_names, load_config_names, load_family, parse_family
from reshard.models.settings import resolve_settings
from reshard.tensor import DType, TensorSpec

QWEN3 = {
    "model_type": "qwen3", "num_hidden_layers": 2, "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "first_k_dense_replace": 3,
    "n_routed_experts": 256, "n_shared_experts": 1, "vocab_size": 129280, "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip


def specs_for(name, naming, config, direction="to_ms", dtype=DType.BF16):
    family = load_family(name)
    chosen = resolve_settings(family, config, {})
    expansions = [expand(row, direction, chosen) for row in family.naming(naming).rows if not row.optional]
    found = [part for expansion in expansions if expansion for one in expansion.targets() for part, _ in one.parts]
    return {part.name: TensorSpec(part.name, dtype, part.shape) for part in found}


def compiled(specs, config=QWEN3, name="qwen3", naming="mcore", direction="to_ms", **options):
    return compile_rules(load_family(name), direction, naming, options, config, specs, None)


def test_all_findings_are_in_one_error():
    specs = specs_for("qwen3", "mcore", QWEN3)
    del specs["model.layers.1.self_attn.k_proj.weight"]
    specs["model.layers.0.mlp.up_proj.weight"] = TensorSpec("model.layers.0.mlp.up_proj.weight", DType.BF16, (5, 4))
    specs["model.layers.0.mlp.gate_proj.extra"] = TensorSpec("model.layers.0.mlp.gate_proj.extra", DType.BF16, (3,))
    with pytest.raises(PlanError) as error:
        compiled(specs)
    assert error.value.problems == (
        "model.layers.1.self_attn.k_proj.weight: missing; needed for decoder.layers.1.self_attention.linear_qkv.weight",
        "model.layers.0.mlp.up_proj.weight: shape 5x4, expected 6x4 = [(mlp_runs run_f) h]",
        "model.layers.0.mlp.gate_proj.extra: unmapped, shape 3; no row has this name",
    )
    assert "h=4" in error.value.hint


def test_a_wrong_config_says_which_names_and_shapes_disagree():
    specs = specs_for("qwen3", "mcore", QWEN3)
    with pytest.raises(PlanError) as error:
        compiled(specs, {**QWEN3, "num_key_value_heads": 4, "num_hidden_layers": 3})
    problems = "\n".join(error.value.problems)
    assert "model.layers.0.self_attn.k_proj.weight: shape 4x4, expected 8x4" in problems
    assert "model.layers.2.mlp.down_proj.weight: missing" in problems


def test_what_config_lacks_is_one_problem():
    specs = specs_for("qwen3", "mcore", QWEN3)
    config = {key: value for key, value in QWEN3.items() if key != "intermediate_size"}
    with pytest.raises(UsageError) as error:
        compiled(specs, config)
    assert str(error.value) == (
        "neither config.json nor the tensors tell intermediate_size, which the rules of qwen3 need\n"
        "Give config='URL', that of the model's config.json, or the numbers: config='intermediate_size=N'."
    )


def test_heads_that_do_not_divide_are_a_finding():
    with pytest.raises(PlanError, match="does not fit the rules of qwen3") as error:
        compiled({}, {**QWEN3, "num_key_value_heads": 3})
    assert any("not a whole number" in problem for problem in error.value.problems)


def test_a_tensor_in_two_rows_is_mapped_twice():
    data = TINY.replace("rows:", 'rows:\n      - {hf: "a [h]", ms: "c"}')
    family = parse_family(data.encode(), "tiny.yaml")
    with pytest.raises(PlanError) as error:
        compile_rules(family, "to_ms", "n", {}, {"h": 3}, {"a": TensorSpec("a", DType.F32, (3,))}, None)
    assert "mapped twice" in error.value.problems[0]


def test_optimizer_states_and_scalars_are_dropped_with_a_reason():
    specs = specs_for("qwen3", "mcore", QWEN3, "to_hf")
    extra = ["adam_m.decoder.final_layernorm.weight", "global_step", "decoder.layers.0.mlp.router.expert_load"]
    specs |= {name: TensorSpec(name, DType.F32, ()) for name in extra}
    result = compiled(specs, direction="to_hf")
    assert [one.name for one in result.dropped] == extra
    assert all(one.why for one in result.dropped)


def test_one_byte_weights_need_their_scales():
    specs = specs_for("qwen3", "mcore", QWEN3)
    name = "model.layers.0.mlp.down_proj.weight"
    specs[name] = TensorSpec(name, DType.F8_E4M3, (4, 6))
    with pytest.raises(PlanError) as error:
        compiled(specs)
    assert error.value.problems == (f"{name}: F8_E4M3 without a tensor of scales",)
    specs[f"{name}_scale_inv"] = TensorSpec(f"{name}_scale_inv", DType.F32, (1, 2))
    with pytest.raises(PlanError, match="does not fit the rules of qwen3"):
        compiled(specs)
    specs[f"{name}_scale_inv"] = TensorSpec(f"{name}_scale_inv", DType.F32, (1, 1))
    part = next(one for one in compiled(specs).targets if "layers.0.mlp.linear_fc2" in one.spec.name).parts[0]
    assert part.scale.block == (128, 128)


def test_options_that_names_do_not_reveal_are_noted():
    specs = specs_for("qwen3", "mcore", QWEN3, "to_hf")
    notes = compiled(specs, direction="to_hf").notes
    assert [note.split(":")[0] for note in notes] == ["qkv_layout", "mlp_layout", "blocks"]
    assert compiled(specs, direction="to_hf", qkv_layout="grouped", mlp_layout="interleaved", blocks=1).notes == ()


def test_options_are_checked():
    with pytest.raises(UsageError) as error:
        compiled({}, qkv_layout="odd", nothing=1, blocks=0)
    assert len(error.value.problems) == 3
    for blocks in (True, "\u00b2", "9" * 5000, -1, 1.0):
        with pytest.raises(UsageError):
            compiled({}, blocks=blocks)
    with pytest.raises(UsageError):
        compiled({}, naming="legacy")
    with pytest.raises(UsageError):
        load_family("../x")


def test_detection_explains_itself():
    names = specs_for("qwen3", "mcore", QWEN3)
    assert detect({}, names).family.name == "qwen3"
    assert detect({"model_type": {"a": 1}, "architectures": [[], "Qwen3ForCausalLM"]}, names).family.name == "qwen3"
    with pytest.raises(PlanError, match="gpt2"):
        detect({"model_type": "gpt2"}, names)
    with pytest.raises(PlanError) as error:
        detect({"model_type": "mixtral"}, ["decoder.layers.0.self_attention.linear_qkv.weight"])
    assert "naming mcore" in error.value.hint
    options = {"qkv_concat": True}
    specs = specs_for("llama", "legacy", QWEN3)
    result = compile_rules(load_family("llama"), "to_ms", "legacy", options, QWEN3, specs, None)
    found = detect({"model_type": "llama"}, [target.spec.name for target in result.targets])
    assert ("qkv_concat", True) in found.options
    assert found.direction == "to_hf"


@pytest.mark.parametrize("naming", ["legacy", "mcore"])
def test_the_largest_model_compiles_in_no_time(naming):
    specs = specs_for("deepseek_v3", naming, DEEPSEEK)
    assert len(specs) > 45_000
    start = time.process_time()
    result = compiled(specs, DEEPSEEK, "deepseek_v3", naming)
    assert time.process_time() - start < 5  # takes half a second; machines that test may be busy
    assert sum(len(target.parts) for target in result.targets) < 1.01 * len(specs)


def test_interleaving_is_one_patch():
    result = compiled(specs_for("qwen3", "mcore", QWEN3))
    fused = next(one for one in result.targets if one.spec.name.endswith("linear_fc1.weight"))
    assert len(fused.parts) == 2


TINY = """
family: tiny
title: Tiny
detect: {model_type: [tiny], architectures: []}
parameters: {h: {config: h}}
indices: {}
options: {}
namings:
  n:
    description: x
    rows:
      - {hf: "a [h]", ms: "b"}
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("[h]", "[k]", "k is not declared"),
        ("[h]", "[(h]", "axes"),
        ("title: Tiny", "title: Tiny\nmore: 1", "unknown key"),
        ('ms: "b"', 'ms: {x: "b [h]"}', "on the other"),
        ("[h]", "[(h h)]", "twice"),
        ("{config: h}", "{config: h, is: 3}", "unknown key 'config'"),
        ("{config: h}", "{default: 3}", "missing key 'config'"),
        ('"a [h]"', '"a {i [h]"', "name"),
    ],
)
def test_data_that_contradicts_itself_is_refused(old, new, found):
    assert parse_family(TINY.encode(), "tiny.yaml").name == "tiny"
    with pytest.raises(FormatError) as error:
        parse_family(TINY.replace(old, new).encode(), "tiny.yaml")
    assert found in str(error.value)


def test_every_family_is_read_and_has_what_it_needs():
    assert len(family_names()) >= 7
    for name in family_names():
        family = load_family(name)
        assert family.name == name
        assert load_config_names(name) == (family.model_types, family.architectures)


def test_detection_reads_the_rules_of_the_named_family_only():
    code = """
from reshard.models import family_file
from reshard.models.detecting import detect
parsed = []
parse = family_file.parse_yaml
family_file.parse_yaml = lambda data, where: parsed.append(len(data)) or parse(data, where)
detect({"model_type": "llama"}, ["model.norm.weight"])
print(sum(size > 1024 for size in parsed))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2  # llama.yaml, and what training checkpoints hold in every family
