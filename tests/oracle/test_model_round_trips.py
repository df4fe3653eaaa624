"""Of every family: from Hugging Face to rank shards by numbers in one pass, and back from these shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from models.test_rules_properties import sources_of
from support.model_cases import NUMPY, cast
from support.stores import arrays_at, new_place, objects_at, put_model

import reshard
from reshard.api import make_strategy
from reshard.models.family_file import family_names, load_family
from reshard.models.parallel_rules import load_layouts
from reshard.tensor import DType

NAMINGS = [
    (family, naming.name)
    for family in family_names()
    for naming in load_family(family).namings
    if naming.name in load_layouts(family)
]
DTYPES = {None: DType.F32, "fp32": DType.F32, "fp16": DType.F16, "bf16": DType.BF16}
# What layers that predict further tokens repeat of the model.
COPIES = (".embed_tokens.weight", ".shared_head.head.weight")
EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3", "deepseek_v4", "glm4_moe", "telechat3_moe")


@st.composite
def numbers(draw, family):
    """Of a job: everything that the family's networks can be cut by."""
    said = {
        "dp": draw(st.sampled_from([1, 2])),
        "mp": draw(st.sampled_from([1, 2])),
        "pp": draw(st.sampled_from([1, 2])),
    }
    if family in EXPERTS:
        said |= {"ep": draw(st.sampled_from([1, said["dp"]])), "sp": "true"}
    if family != "deepseek_v4" and draw(st.booleans()):
        said |= {"po": "true", "parallel_optimizer_threshold": 0}
    said["vocab_emb_dp"] = draw(st.sampled_from(["true", "false"]))
    return said


@st.composite
def models(draw, family, mp):
    """config.json of a tiny model whose every size can be halved twice, and options of its rules."""
    count, even = st.integers(1, 2), st.sampled_from([4, 8])
    groups, experts = draw(st.sampled_from([2, 4])), draw(st.sampled_from([2, 4]))
    config = {
        "num_hidden_layers": draw(st.integers(2, 3)), "vocab_size": 8 * draw(count), "hidden_size": draw(even),
        "intermediate_size": draw(even), "moe_intermediate_size": draw(even), "head_dim": draw(even),
        "num_attention_heads": groups * draw(count), "num_key_value_heads": groups, "num_local_experts": experts,
        "num_experts": experts, "n_routed_experts": experts, "n_shared_experts": 1,
        "num_nextn_predict_layers": draw(st.integers(0, 1)), "decoder_sparse_step": 1, "first_k_dense_replace": 1,
        "q_lora_rank": draw(even), "kv_lora_rank": draw(even), "qk_nope_head_dim": draw(even),
        "qk_rope_head_dim": draw(even), "v_head_dim": draw(even), "tie_word_embeddings": draw(st.booleans()),
        "model_type": family.model_types[-1], "num_experts_per_tok": draw(count), "hc_mult": draw(count),
        "o_groups": groups, "o_lora_rank": draw(even), "index_n_heads": draw(count), "index_head_dim": draw(count),
        "num_hash_layers": draw(st.integers(0, 1)), "compress_ratios": draw(st.permutations([0, 4, 128])),
    }  # fmt: skip
    free = {option.name: option.values for option in family.options if option.name in FREE}
    options = {name: draw(st.sampled_from(values)) for name, values in free.items()}
    blocks = {"blocks": mp} if any(option.name == "blocks" for option in family.options) else {}
    return config, options | blocks


# Options that any cut agrees with.
FREE = {"qkv_concat", "mlp_layout", "qkv_layout", "use_rearrange_rope", "ms_lm_head", "expert_axes"}


def random_tensors(family, naming, config, options, seed):
    """As on Hugging Face, of random values that fp16 and bf16 have to round."""
    made = np.random.default_rng(seed)
    shapes = sources_of(family, naming, config, options)
    return {name: (9 * made.standard_normal(array.shape)).astype(array.dtype) for name, array in shapes.items()}


@pytest.mark.parametrize(("name", "naming"), NAMINGS)
@given(data=st.data())
@settings(max_examples=6, phases=(Phase.generate,), deadline=None, suppress_health_check=list(HealthCheck))
def test_to_ranks_and_back(name, naming, data):
    family = load_family(name)
    said = data.draw(numbers(name))
    config, options = data.draw(models(family, said["mp"]))
    more = config["num_nextn_predict_layers"] if (name, naming) == ("deepseek_v3", "legacy") else 0
    if (config["num_hidden_layers"] + more) % said["pp"]:
        said["offset"] = "[1,0]"
    parallel = ",".join(f"{key}={value}" for key, value in said.items())
    dtype = data.draw(st.sampled_from(sorted(DTYPES, key=str)))
    sources = random_tensors(family, naming, config, options, data.draw(st.integers(0, 99)))
    base = new_place()
    put_model(f"{base}/hf", sources, config)
    stated = [f"{key}={str(value).lower()}" for key, value in options.items()]
    asked = {"naming": naming, "parallel": parallel, "option": stated, "dtype": dtype}
    reshard.convert(f"{base}/hf", f"{base}/ranks", to="ms", **asked)
    assert reshard.verify(f"{base}/ranks").is_ok
    make_strategy(
        f"{base}/strategy.ckpt", checkpoint=f"{base}/hf", to="ms", parallel=parallel, naming=naming, option=options
    )
    back = {"src_strategy": f"{base}/strategy.ckpt", "config": f"{base}/hf/config.json", "option": stated}
    reshard.convert(f"{base}/ranks", f"{base}/back", to="hf", **back)
    assert reshard.verify(f"{base}/back").is_ok
    found = arrays_at(f"{base}/back")
    copies = {tensor for tensor in found if tensor.endswith(COPIES)} - sources.keys()
    assert found.keys() - copies == sources.keys()
    for tensor in sources:
        array = found[tensor]
        # Norms of some families are float32 always, tables int64, and experts of DeepSeek-V4 bfloat16.
        fixed = (np.float32, np.int64, *[NUMPY[DType.BF16]] * (name == "deepseek_v4"))
        assert array.dtype in (NUMPY[DTYPES[dtype]], *fixed)
        assert array.tobytes() == cast(sources[tensor], array.dtype).tobytes(), tensor
    assert len(objects_at(f"{base}/ranks")) == said["dp"] * said["mp"] * said["pp"]
