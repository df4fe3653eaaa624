"""What each rank of serving networks holds, for random sizes: every element where the engine's own cuts have it."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.test_rules_properties import models, sources_of
from support.model_cases import apply, specs_of

from reshard.errors import PlanError, UsageError
from reshard.models.compiling import CompiledRules, CompiledTarget, SourcePart, compile_rules
from reshard.models.composition import compose
from reshard.models.family_file import load_family
from reshard.models.serving_rules import MINDSPORE, VLLM, Serving, base_family, served_families
from reshard.models.serving_tensors import served_model

SERVED = [
    (engine, family)
    for engine in (VLLM, MINDSPORE)
    for family in served_families(engine)
    if base_family(engine, family) == family
]
TRAINED = [pair for pair in SERVED if pair[1] != "glm4"]  # whose rotated rows stay where they are
SERVED_OPTIONS = {"hf_names": "transformers", "experts_in_layers": False}


@st.composite
def served(draw, engine, family):
    """The sizes of a model that some ranks can share, and how they are."""
    config, options = draw(models(load_family(family)))
    tp = draw(st.sampled_from([1, 2, 4] if engine == VLLM else [1, 2, 3]))  # vLLM pads its vocabulary to 64 rows
    groups = draw(st.sampled_from([count for count in (1, 2, 3, 4, 8) if not max(count, tp) % min(count, tp)]))
    config |= {
        "num_attention_heads": np.lcm(tp, groups).item() * draw(st.integers(1, 2)), "num_key_value_heads": groups,
        "intermediate_size": tp * config["intermediate_size"], "vocab_size": draw(st.integers(1, 70)),
        "moe_intermediate_size": tp * config["moe_intermediate_size"], "num_nextn_predict_layers": 0,
    }  # fmt: skip
    has_experts = family in ("mixtral", "qwen3_moe", "deepseek_v3")
    ep = draw(st.sampled_from([1, tp])) if has_experts else 1
    if engine == MINDSPORE:
        experts = tp * draw(st.integers(1, 2))
        config |= {"vocab_size": tp * config["vocab_size"], "num_experts": experts, "n_routed_experts": experts}
    if family == "qwen2_5":
        config["hidden_size"] = config["head_dim"] * config["num_attention_heads"]
    return (
        Serving(engine, family, tp, ep),
        config,
        options | {name: SERVED_OPTIONS[name] for name in options.keys() & SERVED_OPTIONS},
    )


def hf_tensors(family, config, options):
    """Tensors of Hugging Face's form, no two elements alike and none of them 0."""
    naming = load_family(family).namings[-1].name if family == "deepseek_v3" else load_family(family).namings[0].name
    wanted = sources_of(
        load_family(family), naming, config, options | {"blocks": 1} if "blocks" in options else options
    )
    return {name: array for name, array in wanted.items() if "inv_freq" not in name}


def made_ranks(model, sources):
    """What each rank holds."""
    fills = {
        fill.spec.name: np.full(fill.spec.shape, np.frombuffer(fill.element, np.float32)[0], np.float32)
        for fill in model.fills
    }
    whole = apply(CompiledRules("", "", "", (), (), model.tensors), {**sources, **fills})
    count = model.strategy.rank_count
    boxes = [
        {name: model.strategy.layout(name, rank).box_of(array.shape, rank) for name, array in whole.items()}
        for rank in range(count)
    ]
    return [{name: whole[name][tuple(map(slice, box.start, box.stop))] for name, box in held.items()} for held in boxes]


@pytest.mark.parametrize(("engine", "family"), SERVED)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_ranks_tile_every_tensor(engine, family, data):
    serving, config, options = data.draw(served(engine, family))
    sources = hf_tensors(family, config, options)
    ranks = made_ranks(served_model(serving, config, specs_of(sources)), sources)
    values = np.concatenate([array.ravel() for held in ranks for name, array in held.items() if "_scale" not in name])
    found = dict(zip(*np.unique(values[values != 0], return_counts=True), strict=True))
    tied = config["tie_word_embeddings"]
    for name, array in sources.items():
        counts = {found.pop(value, 0) for value in array.ravel().tolist()}
        copies = serving.tp // min(serving.tp, config["num_key_value_heads"])
        if tied and name == "lm_head.weight":
            assert counts == {0}
        elif re.search(r"\.([kv]_proj|key_value)\.", name):
            assert counts == {copies}, name
        elif re.search(r"norm|ln_f|gate\.|q_a_proj|kv_a_proj|(o_proj|down_proj|dense)\.bias", name):
            assert counts == {serving.tp}, name
        else:
            assert counts == {1}, name
    assert not found


@pytest.mark.parametrize(("tp", "groups"), [(1, 2), (2, 2), (2, 4), (4, 2), (8, 1)])
def test_ranks_have_their_own_heads(tp, groups):
    config = {
        "num_hidden_layers": 1, "hidden_size": 6, "intermediate_size": 16, "vocab_size": 100, "head_dim": 3,
        "num_attention_heads": 8, "num_key_value_heads": groups,
    }  # fmt: skip
    sources = hf_tensors("llama", config, {})
    ranks = made_ranks(served_model(Serving(VLLM, "llama", tp), config, specs_of(sources)), sources)
    q, k, v = (sources[f"model.layers.0.self_attn.{name}_proj.weight"].reshape(-1, 3, 6) for name in "qkv")
    gate, up, down = (sources[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    head = np.concatenate([sources["lm_head.weight"], np.zeros((28, 6), np.float32)])
    for rank, held in enumerate(ranks):
        own = rank * groups // tp if tp > groups else slice(rank * groups // tp, (rank + 1) * groups // tp)
        parts = [q[rank * 8 // tp : (rank + 1) * 8 // tp], k[own], v[own]]
        qkv = np.concatenate([part.reshape(-1, 6) for part in parts])
        assert (held["model.layers.0.self_attn.qkv_proj.weight"] == qkv).all()
        rows = slice(rank * 16 // tp, (rank + 1) * 16 // tp)
        assert (held["model.layers.0.mlp.gate_up_proj.weight"] == np.concatenate([gate[rows], up[rows]])).all()
        assert (held["model.layers.0.mlp.down_proj.weight"] == down[:, rows]).all()
        assert (held["lm_head.weight"] == np.split(head, tp)[rank]).all()
        assert held["model.layers.0.self_attn.attn._k_scale"] == 1


def test_experts_that_do_not_divide_are_shared_out_in_blocks():
    config = {
        "num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 3, "vocab_size": 64, "head_dim": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 6,
    }  # fmt: skip
    sources = hf_tensors("mixtral", config, {})
    ranks = made_ranks(served_model(Serving(VLLM, "mixtral", 4, 4), config, specs_of(sources)), sources)
    name = "model.layers.0.block_sparse_moe.experts"
    down = [held[f"{name}.routed_experts.w2_weight"] for held in ranks]
    assert [len(held) for held in down] == [2, 2, 1, 1]
    assert (np.concatenate(down) == np.stack([sources[f"{name}.{e}.w2.weight"] for e in range(6)])).all()


def test_a_model_that_only_an_engine_knows():
    sizes = {"hidden_size": 8, "num_experts": 2, "moe_intermediate_size": 2, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 4, "head_dim": 2}
    sources = {name: array for name, array in hf_tensors("qwen3_moe", sizes | heads, {}).items() if "_norm" not in name}
    at, count = "model.layers.0.mlp", max(array.max() for array in sources.values())
    for name, shape in {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}.items():
        sources[f"{at}.shared_expert.{name}.weight"] = np.arange(48, dtype=np.float32).reshape(shape) + count + 1
        count += 48
    sources[f"{at}.shared_expert_gate.weight"] = np.ones((1, 8), np.float32)
    config = sizes | heads | {"shared_expert_intermediate_size": 6}
    ranks = made_ranks(served_model(Serving(VLLM, "qwen2_moe", 2), config, specs_of(sources)), sources)
    shared = f"{at}.experts._shared_experts._layer"
    for rank, held in enumerate(ranks):
        rows = slice(3 * rank, 3 * rank + 3)
        parts = [sources[f"{at}.shared_expert.{name}_proj.weight"][rows] for name in ("gate", "up")]
        assert (held[f"{shared}.gate_up_proj.weight"] == np.concatenate(parts)).all()
        assert (held[f"{shared}.down_proj.weight"] == sources[f"{at}.shared_expert.down_proj.weight"][:, rows]).all()
        assert (held[f"{shared}.expert_gate.weight"] == 1).all()
        assert (held[f"{at}.gate.weight"] == sources[f"{at}.gate.weight"]).all()


@pytest.mark.parametrize(("engine", "family"), TRAINED)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_a_training_checkpoint_of_any_layout_gives_the_same_ranks(engine, family, data):
    serving, config, options = data.draw(served(engine, family))
    rules = load_family(family)
    naming = data.draw(st.sampled_from([each.name for each in rules.namings if each.name != "legacy_infer"]))
    options |= {"blocks": 1} if "blocks" in options else {}
    sources = sources_of(rules, naming, config, options)
    there = compile_rules(rules, "to_ms", naming, options, config, specs_of(sources), None)
    trained = apply(there, sources)
    back = compile_rules(rules, "to_hf", naming, options, config, specs_of(trained), None)
    middle = {target.spec.name: target for target in back.targets}
    model = served_model(serving, config, {name: target.spec for name, target in middle.items()})
    composed = [
        CompiledTarget(
            target.spec,
            tuple(
                SourcePart(inner.source, patch)
                for part in target.parts
                for inner in (middle[part.source].parts if part.source in middle else [part])
                for patch in (compose(part.patch, inner.patch) if inner is not part else [part.patch])
            ),
        )
        for target in model.tensors
    ]
    fills = {
        fill.spec.name: np.full(fill.spec.shape, np.frombuffer(fill.element, np.float32)[0], np.float32)
        for fill in model.fills
    }
    ours = apply(CompiledRules("", "", "", (), (), tuple(composed)), {**trained, **fills})
    theirs = apply(CompiledRules("", "", "", (), (), model.tensors), {**apply(back, trained), **fills})
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


SIZES = {
    "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "head_dim": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("serving", "config", "problem"),
    [
        (("vllm", "llama", 3), {}, "num_attention_heads of config.json = 4 does not divide by 3"),
        (("vllm", "llama", 4), {"num_attention_heads": 12, "num_key_value_heads": 3}, "3 key/value heads"),
        (("vllm", "llama", 4), {"intermediate_size": 6}, "intermediate_size of config.json = 6 does not divide by 4"),
        (("vllm", "qwen2_5", 2), {"head_dim": 4}, "ignores head_dim"),
        (("vllm", "llama", 2, 2), {}, "the model has no experts"),
        (("mindspore", "qwen3", 2), {"vocab_size": 9}, "vocab_size of config.json = 9 does not divide by 2"),
    ],
)
def test_sizes_that_an_engine_cannot_serve(serving, config, problem):
    with pytest.raises(PlanError) as caught:
        served_model(Serving(*serving), {**SIZES, **config}, {})
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("serving", "problem"),
    [
        (("mindspore", "mixtral", 2), "no rules for mixtral"),
        (("vllm", "llama", 2, 1, "0.15"), "known of 0.24 and newer, 0.19, 0.11"),
        (("vllm", "llama", 2, 1, "new"), "known of"),
        (("vllm", "deepseek_v3", 2, 1, "0.11"), "in version 0.11"),
    ],
)
def test_engines_without_rules(serving, problem):
    with pytest.raises(UsageError, match=re.escape(problem)):
        served_model(Serving(*serving), SIZES, {})


def test_ranks_of_data_parallelism_have_no_files():
    with pytest.raises(UsageError, match="expected ep=2"):
        Serving(VLLM, "mixtral", 2, 4)


@pytest.mark.parametrize(
    ("version", "experts", "router", "scales"),
    [
        ("0.11.2", "experts.w13_weight", "mlp.gate.weight", 0),
        ("", "experts.routed_experts.w13_weight", "mlp.experts.gate.weight", 4),
    ],
)
def test_names_are_those_of_the_version(version, experts, router, scales):
    config = SIZES | {"moe_intermediate_size": 4, "num_experts": 2}
    sources = hf_tensors("qwen3_moe", config, {})
    model = served_model(Serving(VLLM, "qwen3_moe", 2, version=version), config, specs_of(sources))
    names = [tensor.spec.name for tensor in model.tensors]
    assert {f"model.layers.0.mlp.{experts}", f"model.layers.0.{router}"} < set(names)
    assert sum("_scale" in name for name in names) == scales
