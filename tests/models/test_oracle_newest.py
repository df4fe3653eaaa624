"""The conversions that MindSpore Transformers 2.1 made, made by our rules: the same tensors, bit for bit."""

import numpy as np
import pytest
from support.model_cases import apply, cast, read_answer, read_config, read_tensors, specs_of, summary_of

from reshard.errors import PlanError
from reshard.models.compiling import compile_rules
from reshard.models.detecting import detect
from reshard.models.family_file import load_family
from reshard.models.parallel_config import ParallelConfig
from reshard.models.parallel_strategy import derive_strategy
from reshard.tensor import DType

BF16, F32 = DType.BF16, DType.F32
CONTIGUOUS = {"qkv_layout": "contiguous", "mlp_layout": "contiguous"}

# What was asked in each case: family, dtype, options. The networks keep some tensors in dtypes of their own.
CASES = {
    "f210_deepseek4_bf16_params_bf16": ("deepseek_v4", BF16, {}),
    "f210_deepseek4_bf16_params_fp32": ("deepseek_v4", F32, {}),
    "f210_deepseek4_fp8fp4_params_bf16": ("deepseek_v4", BF16, {"expert_axes": 3}),
    "f210_glm4_mcore_bf16": ("glm4", BF16, {}),
    "f210_glm4_mcore_contiguous_bf16": ("glm4", BF16, CONTIGUOUS),
    "f210_glm4moe_mcore_bf16": ("glm4_moe", None, {}),
    "f210_glm4moe_mcore_qknorm_bf16": ("glm4_moe", None, {}),
    "f210_qwen2_mcore_bf16": ("qwen2_5", BF16, {}),
    "f210_qwen2_mcore_tied_fp32": ("qwen2_5", None, {}),
}
QUANTISED = "f210_deepseek4_fp8fp4_params_bf16"


def forward(case):
    family, dtype, options = CASES[case]
    sources, config = read_tensors(case), read_config(case)
    found = detect(config, sources, naming="mcore")
    assert (found.family.name, found.direction) == (family, "to_ms")
    return sources, apply(
        compile_rules(found.family, "to_ms", "mcore", options, config, specs_of(sources), dtype), sources
    )


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case):
    sources, made = forward(case)
    assert summary_of(made) == read_answer(case, "mf")
    config, options = read_config(case), CASES[case][2]
    found = detect(config, made)
    assert (found.family.name, found.direction, found.naming) == (CASES[case][0], "to_hf", "mcore")
    back = apply(compile_rules(found.family, "to_hf", "mcore", options, config, specs_of(made), None), made)
    if case == QUANTISED:  # nothing quantises: values are those of the weights times their scales
        assert back.keys() == {name for name in sources if not name.endswith(".scale")}
        return
    rounded = read_answer(case, "hf_again") if case.endswith("params_bf16") else {}  # float32 that the network rounds
    found = summary_of({name: back[name] for name in rounded})
    assert {name: tensor[1:] for name, tensor in found.items()} == {name: one[1:] for name, one in rounded.items()}
    assert back.keys() == sources.keys()
    for name in sources.keys() - rounded.keys():
        assert (cast(back[name], sources[name].dtype) == sources[name]).all(), name


def test_slices_are_what_the_real_loader_gives_a_rank():
    case = "f210_deepseek4_tp2ep2"
    sources, config = read_tensors(case), read_config(case)
    family = load_family("deepseek_v4")
    made = apply(compile_rules(family, "to_ms", "mcore", {}, config, specs_of(sources), F32), sources)
    shapes = {name: array.shape for name, array in made.items()}
    strategy = derive_strategy("deepseek_v4", "mcore", ParallelConfig(mp=2, ep=2), shapes, config=config)
    for rank in range(2):
        held = {}
        for name, array in made.items():
            box = strategy.layout(name, rank).box_of(array.shape, rank)
            held[name] = array[tuple(map(slice, box.start, box.stop))]
        assert summary_of(held) == read_answer(case, "mf", only=f"rank_{rank}.safetensors")


def test_the_embedding_is_where_further_tokens_are_predicted_too():
    sources, config = read_tensors(QUANTISED), read_config(QUANTISED)
    made = compile_rules(load_family("deepseek_v4"), "to_ms", "mcore", {}, config, specs_of(sources), None)
    shapes = {target.spec.name: target.spec.shape for target in made.targets}
    strategy = derive_strategy("deepseek_v4", "mcore", ParallelConfig(pp=2), shapes, config=config)
    assert [("embedding.word_embeddings.weight" in stage) for stage in strategy.stages] == [True, True]
    without = {name: shape for name, shape in shapes.items() if not name.startswith("mtp.")}
    strategy = derive_strategy("deepseek_v4", "mcore", ParallelConfig(pp=2), without, config=config)
    assert [("embedding.word_embeddings.weight" in stage) for stage in strategy.stages] == [True, False]


def test_blocks_at_ragged_edges_are_those_of_config_json():
    """The real code divides the shapes instead: 192 rows with two scales would be blocks of 96."""
    sources, config = read_tensors(QUANTISED), read_config(QUANTISED)
    specs, family = specs_of(sources), load_family("deepseek_v4")
    config["quantization_config"] = {"weight_block_size": [12, 24]}
    with pytest.raises(PlanError) as error:
        compile_rules(family, "to_ms", "mcore", {}, config, specs, None)
    assert any("mtp.0.h_proj.scale" in problem for problem in error.value.problems)
    wide = dict(sources)
    for name, array in sources.items():
        if array.dtype.name == "float8_e4m3fn":
            rows, columns = (-(-extent // size) for extent, size in zip(array.shape, (12, 24), strict=True))
            exponents = np.arange(120, 120 + rows * columns, dtype=np.uint8).reshape(rows, columns)
            wide[name.removesuffix(".weight") + ".scale"] = exponents.view(sources["layers.0.attn.wkv.scale"].dtype)
    made = apply(compile_rules(family, "to_ms", "mcore", {}, config, specs_of(wide), F32), wide)
    scaled = made["decoder.layers.0.self_attention.linear_q_up_proj.weight"]
    codes = sources["layers.0.attn.wq_b.weight"].astype(np.float32)
    assert (scaled == np.ldexp(codes, (np.arange(64) // 12 - 7)[:, None])).all()


def test_layers_that_the_networks_do_not_have_are_dropped_or_carried():
    case = "f210_glm4moe_mcore_bf16"
    sources, config = read_tensors(case), {**read_config(case), "num_nextn_predict_layers": 1}
    layer, h = config["num_hidden_layers"], config["hidden_size"]
    names = [name for name in sources if name.startswith("model.layers.1.")]
    extra = {name.replace(".1.", f".{layer}.", 1): sources[name] for name in names}
    extra |= {f"model.layers.{layer}.{n}.weight": sources["model.norm.weight"] for n in ("enorm", "hnorm")}
    extra |= {f"model.layers.{layer}.eh_proj.weight": np.zeros((h, 2 * h), sources["model.norm.weight"].dtype)}
    extra |= {f"model.layers.{layer}.shared_head.norm.weight": sources["model.norm.weight"]}
    extra |= {f"model.layers.{layer}.embed_tokens.weight": sources["model.embed_tokens.weight"]}
    extra |= {f"model.layers.{layer}.shared_head.head.weight": sources["lm_head.weight"]}
    family, given = load_family("glm4_moe"), specs_of(sources | extra)
    dropping = compile_rules(family, "to_ms", "mcore", {"mtp_layers": "drop"}, config, given, None)
    assert {dropped.name for dropped in dropping.dropped} == extra.keys()
    assert summary_of(apply(dropping, sources)) == read_answer(case, "mf")
    carrying = compile_rules(family, "to_ms", "mcore", {}, config, given, None)
    made = apply(carrying, sources | extra)
    back = apply(compile_rules(family, "to_hf", "mcore", {}, config, specs_of(made), None), made)
    assert summary_of(back) == summary_of(sources | extra)
