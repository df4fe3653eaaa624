"""Whatever the family, the sizes and the parallel numbers: whole tensors that are found are the right ones."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reshard.errors import StrategyError
from reshard.models.compiling import compile_rules
from reshard.models.expansion import expand
from reshard.models.family_file import family_names, load_family
from reshard.models.full_shapes import solve_full_shapes
from reshard.models.parallel_config import ParallelConfig
from reshard.models.parallel_rules import load_layouts
from reshard.models.parallel_strategy import derive_strategy
from reshard.models.settings import resolve_settings
from reshard.tensor import DType, TensorSpec

NAMINGS = [
    (name, naming)
    for name in family_names()
    for naming in load_layouts(name)
    if naming == "hf" or any(known.name == naming for known in load_family(name).namings)
]
POWERS = st.sampled_from([1, 2, 4])
SIZES = st.sampled_from([8, 16, 24, 32, 48, 64, 96])


@st.composite
def models(draw, family):
    """What config.json states, and the options."""
    groups, repeats = draw(POWERS), draw(POWERS)
    experts, heads = draw(st.sampled_from([2, 4])), groups * repeats
    config = {
        "num_hidden_layers": 2, "vocab_size": draw(SIZES), "hidden_size": draw(SIZES), "intermediate_size": draw(SIZES),
        "moe_intermediate_size": draw(SIZES), "head_dim": draw(st.sampled_from([2, 4, 8])),
        "num_attention_heads": heads, "num_key_value_heads": groups, "num_local_experts": experts,
        "num_experts": experts, "n_routed_experts": experts, "n_shared_experts": 1,
        "num_nextn_predict_layers": draw(st.integers(0, 1)), "first_k_dense_replace": 1,
        "q_lora_rank": draw(SIZES), "kv_lora_rank": draw(SIZES), "qk_nope_head_dim": draw(st.sampled_from([2, 4, 8])),
        "qk_rope_head_dim": draw(st.sampled_from([2, 4, 8])), "v_head_dim": draw(st.sampled_from([2, 4, 8])),
        "o_groups": groups, "o_lora_rank": draw(SIZES), "index_n_heads": heads, "index_head_dim": 4, "hc_mult": 2,
        "num_hash_layers": draw(st.integers(0, 1)), "compress_ratios": [4, 0], "num_experts_per_tok": 2,
        "tie_word_embeddings": draw(st.booleans()), "model_type": family.model_types[-1],
    }  # fmt: skip
    options = {option.name: draw(st.sampled_from(option.values or (1,))) for option in family.options}
    return config, {**options, **dict.fromkeys(options.keys() & {"ms_lm_head", "hf_lm_head"}, "omit")}


def whole_shapes(family, naming, config, options):
    """The tensors of a model by the family's rows, of the side that the naming is of."""
    rows = family.namings[0].name if naming == "hf" else naming
    chosen = resolve_settings(family, config, options)
    expansions = [expand(row, "to_ms", chosen) for row in family.naming(rows).rows if not row.optional]
    wanted = [part for expansion in expansions if expansion for one in expansion.targets() for part, _ in one.parts]
    shapes = {part.name: part.shape for part in wanted}
    if naming == "hf":
        return shapes
    specs = {name: TensorSpec(name, DType.F32, shape) for name, shape in shapes.items()}
    return {
        t.spec.name: t.spec.shape for t in compile_rules(family, "to_ms", rows, options, config, specs, None).targets
    }


@st.composite
def parallel_numbers(draw):
    try:
        return ParallelConfig(
            **{key: draw(POWERS) for key in ("dp", "mp", "ep")},
            pp=draw(st.sampled_from([1, 1, 2])),
            vocab_emb_dp=draw(st.booleans()),
            use_seq_parallel=True,
            optimizer_shard=draw(st.booleans()),
            optimizer_weight_shard_size=draw(st.sampled_from([-1, 2, 4])),
            optimizer_threshold_kib=draw(st.sampled_from([0, 1, 2, 4, 8])),
        )
    except StrategyError:
        assume(False)


@st.composite
def shards(draw, name, naming):
    """A model, the pieces of its tensors that ranks hold, and what is known of it besides."""
    family, parallel = load_family(name), draw(parallel_numbers())
    config, options = draw(models(family))
    shapes = whole_shapes(family, naming, config, options)
    if naming != "hf" and draw(st.booleans()):
        shapes |= {f"adam_m.{weight}": shape for weight, shape in shapes.items()}
    dtype = draw(st.sampled_from([DType.F32, DType.BF16]))
    nbytes = {name: TensorSpec(name, dtype, shape).nbytes for name, shape in shapes.items()}
    try:
        strategy = derive_strategy(name, naming, parallel, shapes, nbytes=nbytes, config=config, options=options)
    except StrategyError:
        assume(False)
    pieces = {}
    for tensor, shape in shapes.items():
        layout = next((stage[tensor] for stage in strategy.stages if tensor in stage), None)
        pieces[tensor] = TensorSpec(tensor, dtype, layout.box_of(shape, 0).shape if layout else shape)
    return shapes, (name, naming, parallel, pieces), config, options


@pytest.mark.parametrize(("name", "naming"), NAMINGS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_an_answer_is_right_whatever_is_known(name, naming, data):
    shapes, question, config, options = data.draw(shards(name, naming))
    known = data.draw(st.sets(st.sampled_from(sorted(config))))
    told = data.draw(st.sets(st.sampled_from(sorted(options))))
    try:
        found = solve_full_shapes(
            *question,
            config={key: config[key] for key in known},
            options={option: options[option] for option in told},
        )
    except StrategyError:
        return
    assert found == shapes


@pytest.mark.parametrize(("name", "naming"), NAMINGS)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_the_whole_config_json_decides(name, naming, data):
    shapes, question, config, options = data.draw(shards(name, naming))
    assert solve_full_shapes(*question, config=config, options=options) == shapes
