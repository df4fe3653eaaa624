"""For every family and random small sizes: each target is tiled once, and backwards undoes forwards."""

from functools import reduce

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model_cases import apply, specs_of

from reshard.models.compiling import compile_rules
from reshard.models.detecting import detect
from reshard.models.expansion import expand
from reshard.models.family_file import family_names, load_family
from reshard.models.inferring import ModelSide, infer_sizes
from reshard.models.settings import resolve_settings
from reshard.tensor import DType

NAMINGS = [(name, naming.name) for name in family_names() for naming in load_family(name).namings]
LABELS = {"hf_expert_bias", "ms_lm_head", "hf_lm_head"}


@st.composite
def models(draw, family):
    count = st.integers(1, 3)
    groups, repeats, half = draw(count), draw(count), draw(count)
    experts, blocks = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, groups]))
    config = {
        "num_hidden_layers": draw(count), "vocab_size": draw(count), "hidden_size": draw(count),
        "intermediate_size": draw(count) * blocks, "moe_intermediate_size": draw(count), "head_dim": 2 * half,
        "num_attention_heads": groups * repeats, "num_key_value_heads": groups,
        "num_local_experts": experts, "num_experts": experts, "n_routed_experts": experts,
        "n_shared_experts": draw(st.integers(1, 2)), "num_nextn_predict_layers": draw(st.integers(0, 2)),
        "decoder_sparse_step": draw(st.integers(1, 2)), "first_k_dense_replace": 1, "q_lora_rank": draw(count),
        "kv_lora_rank": draw(count), "qk_nope_head_dim": draw(count), "qk_rope_head_dim": 2 * half,
        "v_head_dim": draw(count), "tie_word_embeddings": draw(st.booleans()),
        "model_type": family.model_types[-1], "num_experts_per_tok": draw(count), "hc_mult": draw(count),
        "o_groups": groups, "o_lora_rank": draw(count), "index_n_heads": draw(count), "index_head_dim": draw(count),
        "num_hash_layers": draw(st.integers(0, 1)), "compress_ratios": draw(st.permutations([0, 4, 128])),
    }  # fmt: skip
    options = {option.name: draw(st.sampled_from(option.values or (blocks,))) for option in family.options}
    return config, {**options, **dict.fromkeys(options.keys() & {"ms_lm_head", "hf_lm_head"}, "omit")}


def sources_of(family, naming, config, options):
    """Tensors of the shapes that the rows expect, no two elements alike."""
    chosen = resolve_settings(family, config, options)
    expansions = [expand(row, "to_ms", chosen) for row in family.naming(naming).rows if not row.optional]
    wanted = [part for expansion in expansions if expansion for one in expansion.targets() for part, _ in one.parts]
    shapes = {part.name: part.shape for part in wanted}
    starts = reduce(lambda done, shape: [*done, done[-1] + int(np.prod(shape))], shapes.values(), [1])
    return {
        name: np.arange(start, start + np.prod(shape), dtype=kind_of(name)).reshape(shape)
        for (name, shape), start in zip(shapes.items(), starts, strict=False)
    }


def kind_of(name):
    return np.int64 if name.endswith(".tid2eid") else np.float32


@pytest.mark.parametrize(("name", "naming"), NAMINGS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_backwards_undoes_forwards(name, naming, data):
    family = load_family(name)
    config, options = data.draw(models(family))
    if (name, naming) == ("glm4", "mcore"):  # the networks of mcore have no counterpart for ChatGLM's own
        options["hf_names"] = "transformers"
    sources = sources_of(family, naming, config, options)
    there = compile_rules(family, "to_ms", naming, options, config, specs_of(sources), None)
    middle = apply(there, sources)  # asserts that every element is filled exactly once
    back = compile_rules(family, "to_hf", naming, options, config, specs_of(middle), None)
    made = apply(back, middle)
    copies = {copy for copy, _ in back.copied}
    assert made.keys() - copies == sources.keys()
    assert all((made[name] == sources[name]).all() for name in sources)
    found = detect(config, middle)
    assert (found.family.name, found.direction) == (name, "to_hf")


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_llama_reads_the_mindspore_names_of_qwen2_5_alike(data):
    """Without config.json these names are taken for those of llama: every element goes to the same place."""
    qwen, llama = load_family("qwen2_5"), load_family("llama")
    config, options = data.draw(models(qwen))
    sources = sources_of(qwen, "legacy", config, options)
    middle = apply(compile_rules(qwen, "to_ms", "legacy", options, config, specs_of(sources), None), sources)
    assert detect({}, middle).family.name == "llama"
    options = {option.name: options[option.name] for option in llama.options}
    known = {"num_attention_heads": config["num_attention_heads"], "head_dim": config["head_dim"]}
    ours, theirs = (
        apply(compile_rules(family, "to_hf", "legacy", options, infer_sizes(model), model.specs, None), middle)
        for family in (llama, qwen)
        for model in [ModelSide(family, "legacy", "ms", options, known, specs_of(middle))]
    )
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_plain_cut_of_the_blocked_form_gives_every_rank_its_own_parts(data):
    family = load_family("qwen3")
    config, options = data.draw(models(family))
    ranks = config["num_key_value_heads"]
    config["intermediate_size"] = 2 * ranks
    options |= {"qkv_layout": "contiguous", "mlp_layout": "contiguous", "blocks": ranks}
    sources = sources_of(family, "mcore", config, options)
    made = apply(compile_rules(family, "to_ms", "mcore", options, config, specs_of(sources), None), sources)
    for target, parts in (("self_attention.linear_qkv", "self_attn.qkv"), ("mlp.linear_fc1", "mlp.gate up")):
        labels = [f"self_attn.{letter}" for letter in "qkv"] if "qkv" in parts else ["mlp.gate", "mlp.up"]
        pieces = [np.split(sources[f"model.layers.0.{label}_proj.weight"], ranks) for label in labels]
        wanted = [np.concatenate(of_rank) for of_rank in zip(*pieces, strict=True)]
        cut = np.split(made[f"decoder.layers.0.{target}.weight"], ranks)
        assert all((a == b).all() for a, b in zip(wanted, cut, strict=True))


def test_dtypes_round_once_and_what_is_no_floating_point_stays():
    family = load_family("llama")
    config = {"num_hidden_layers": 0, "vocab_size": 2, "hidden_size": 2, "tie_word_embeddings": True}
    sources = {"model.embed_tokens.weight": np.ones((2, 2), np.float32), "model.norm.weight": np.ones(2, np.float16)}
    compiled = compile_rules(family, "to_ms", "legacy", {}, config, specs_of(sources), DType.BF16)
    assert {target.spec.dtype for target in compiled.targets} == {DType.BF16}
    assert apply(compiled, sources)["model.norm_out.weight"].dtype == ml_dtypes.bfloat16
