"""Which tensors make an adapter, whose it is, and what it is multiplied by."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import FormatError, PlanError, UsageError
from reshard.models.lora import AdapterPair, adapter_boxes, find_adapters, is_adapter_name, working_dtype
from reshard.models.lora_config import AdapterConfig, parse_adapter_config, scalings
from reshard.tensor import Box, DType, TensorSpec

NAMINGS = [
    ("{}.mindpet_delta_lora_a", "{}.mindpet_delta_lora_b"),
    ("{}.tk_delta_lora_a", "{}.tk_delta_lora_b"),
    ("{}.lora_A.weight", "{}.lora_B.weight"),
    ("{}.lora_a", "{}.lora_b"),
    ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
]
APART = [(f"base_model.model.{a}", f"base_model.model.{b}") for a, b in (NAMINGS[2], NAMINGS[4])]
Q = "model.layers.0.self_attn.q_proj"
SHAPES = {"a": (2, 4), "b": (6, 2), "weight": (6, 4)}


def specs(shapes, dtype=DType.BF16):
    return [TensorSpec(name, dtype, tuple(shape)) for name, shape in shapes.items()]


def lora(naming, stem=Q, **shapes):
    shapes = SHAPES | shapes
    return {naming[0].format(stem): shapes["a"], naming[1].format(stem): shapes["b"]}


def base(stem=Q, shape=(6, 4)):
    return {f"{stem}.weight": shape}


def problems_of(*groups, **options):
    with pytest.raises(PlanError) as error:
        find_adapters(*(specs(group) for group in groups), **options)
    return list(error.value.problems)


@pytest.mark.parametrize("naming", NAMINGS)
def test_adapters_among_the_weights(naming):
    found = find_adapters(specs(base() | lora(naming) | {"norm.weight": (4,)}))
    a, b = (half.format(Q) for half in naming)
    assert found.pairs == (AdapterPair(f"{Q}.weight", a, b, 2),)
    assert found.removed == tuple(sorted([a, b]))
    assert found.replaced == ()


@pytest.mark.parametrize("naming", NAMINGS + APART)
def test_adapters_saved_alone(naming):
    found = find_adapters(specs(base() | {"norm.weight": (4,)}), specs(lora(naming)))
    a, b = (half.format(Q) for half in naming)
    assert found.pairs == (AdapterPair(f"{Q}.weight", a, b, 2),)
    assert found.removed == tuple(sorted([a, b]))


def test_states_of_adapters_go_and_those_of_weights_stay():
    adapter = lora(NAMINGS[0])
    states = {
        f"{state}.{name}": shape for state in ("adam_m", "adam_v", "accu_grads") for name, shape in adapter.items()
    }
    others = {"adam_m.norm.weight": (4,), "global_step": (1,), f"adam_v.{Q}.weight": (6, 4)}
    found = find_adapters(specs(base() | adapter | states | others))
    assert set(found.removed) == adapter.keys() | states.keys()
    assert len(found.pairs) == 1


def test_every_problem_is_listed():
    adapter = lora(NAMINGS[0])
    half = dict([next(iter(lora(NAMINGS[1], "k").items()))])
    other = lora(NAMINGS[2], "v", a=(3, 4))
    orphan = lora(NAMINGS[3], "o")
    odd = {"embed.lora_embedding_A": (2, 9), "x.lora_magnitude_vector": (6,), "experts.w1_lora_a": (4, 2, 4)}
    weights = base() | base("k") | base("v")
    found = problems_of(weights | adapter | half | other | orphan | odd)
    assert found == [
        *(f"{name}: resembles an adapter of a kind that cannot be merged" for name in sorted(odd)),
        "k.tk_delta_lora_a: its B is missing",
        "o.lora_a: the model has no o.weight for it to change",
        "v.weight: A [3, 4], B [6, 2], weight [6, 4]: expected A [rank, in] and B [out, rank]",
    ]


def test_halves_of_different_kinds_are_no_pair():
    mixed = {f"{Q}.mindpet_delta_lora_a": (2, 4), f"{Q}.tk_delta_lora_b": (6, 2)}
    assert problems_of(base() | mixed) == [
        f"{Q}.mindpet_delta_lora_a: its B is missing",
        f"{Q}.tk_delta_lora_b: its A is missing",
    ]


def test_one_weight_has_one_adapter():
    found = problems_of(base() | lora(NAMINGS[0]) | lora(NAMINGS[3]))
    assert found == [f"{Q}.weight: changed by {Q}.lora_a, {Q}.mindpet_delta_lora_a"]
    two = {name.replace("default", "other"): shape for name, shape in lora(NAMINGS[4]).items()}
    assert problems_of(base(), lora(NAMINGS[4]) | two) == [
        f"{Q}.weight: changed by {Q}.lora_A.default.weight, {Q}.lora_A.other.weight"
    ]


def test_a_transposed_weight_is_never_guessed():
    wide = base(shape=(4, 6)) | lora(NAMINGS[3])
    (problem,) = problems_of(wide)
    assert problem.endswith("does not have the weight's shape (fits if fan_in_fan_out is true)")
    assert find_adapters(specs(wide), transposed=True).pairs[0].rank == 2
    (problem,) = problems_of(base() | lora(NAMINGS[3]), transposed=True)
    assert problem.endswith("(fits if fan_in_fan_out is false)")
    (problem,) = problems_of(base(shape=(5, 5)) | lora(NAMINGS[3]))
    assert problem.endswith("does not have the weight's shape")


@pytest.mark.parametrize("shapes", [{"a": (0, 4), "b": (6, 0)}, {"a": (4,)}, {"a": ()}, {"b": (6, 2, 1)}])
def test_shapes_that_are_no_adapter(shapes):
    (problem,) = problems_of(base() | lora(NAMINGS[3], **shapes))
    assert problem.endswith("expected A [rank, in] and B [out, rank]")


def test_weights_that_cannot_be_added_to():
    group = [TensorSpec(f"{Q}.weight", DType.F8_E4M3, (6, 4)), *specs(lora(NAMINGS[3]), DType.F32)]
    with pytest.raises(PlanError, match=r"q_proj\.weight: F8_E4M3: expected F32, BF16, F16; convert FP8"):
        find_adapters(group)


def test_no_adapters_at_all():
    assert problems_of(base()) == ["no adapters: expected names such as X.mindpet_delta_lora_a or X.lora_A.weight"]


def test_what_came_whole_with_the_adapters_takes_its_place():
    adapter = lora(APART[0]) | {"base_model.model.lm_head.weight": (9, 4)}
    found = find_adapters(specs(base() | {"lm_head.weight": (9, 4)}), specs(adapter))
    assert found.replaced == (("lm_head.weight", "base_model.model.lm_head.weight"),)
    assert problems_of(base() | {"lm_head.weight": (8, 4)}, adapter) == [
        "base_model.model.lm_head.weight: would replace lm_head.weight: expected BF16 [8, 4], found BF16 [9, 4]"
    ]
    assert problems_of(base(), adapter) == [
        "base_model.model.lm_head.weight: saved with the adapters, but the model has no lm_head.weight"
    ]
    changed_twice = problems_of(base(), lora(APART[0]) | {f"base_model.model.{Q}.weight": (6, 4)})
    assert changed_twice == [f"{Q}.weight: changed by base_model.model.{Q}.weight, base_model.model.{Q}.lora_A.weight"]


def test_the_same_adapter_from_both_sides():
    assert problems_of(base() | lora(NAMINGS[3]), lora(NAMINGS[3]))[:2] == [
        f"{Q}.lora_a: both in the model and among its adapters",
        f"{Q}.lora_b: both in the model and among its adapters",
    ]


def test_names_of_models_are_not_taken_for_adapters():
    names = ["model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "explora_a.weight", "q_lora.weight", "lora.weight"]
    assert not [name for name in names if is_adapter_name(name)]


@given(st.lists(st.tuples(st.sampled_from(NAMINGS), st.integers(0, 5)), unique_by=lambda item: item[1], min_size=1))
def test_any_mixture_of_namings(drawn):
    weights = {f"layers.{i}.weight": (6, 4) for i in range(7)}
    adapters = [lora(naming, f"layers.{i}") for naming, i in drawn]
    found = find_adapters(specs(weights | {name: shape for one in adapters for name, shape in one.items()}))
    assert {(pair.weight, pair.a, pair.b) for pair in found.pairs} == {
        (f"layers.{i}.weight", *one) for (_, i), one in zip(drawn, adapters, strict=True)
    }
    assert set(found.removed) == {name for one in adapters for name in one}


def test_boxes():
    box = Box((1, 2), (3, 7))
    assert adapter_boxes(box, 4) == (Box((0, 2), (4, 7)), Box((1, 0), (3, 4)))
    assert adapter_boxes(box, 4, transposed=True) == (Box((0, 1), (4, 3)), Box((2, 0), (7, 4)))


def test_the_type_that_is_worked_in():
    assert {working_dtype(a, b) for a in DType for b in DType if (a, b) != (DType.F16, DType.F16)} == {DType.F32}


# adapter_config.json

PEFT = {
    "alpha_pattern": {"k_proj": 8},
    "auto_mapping": None,
    "base_model_name_or_path": "some/model",
    "bias": "none",
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 16,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": ["lm_head"],
    "peft_type": "LORA",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {"^model.layers.0.v_proj": 2},
    "revision": None,
    "target_modules": ["q_proj", "k_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def parsed(**changes):
    return parse_adapter_config(json.dumps(PEFT | changes).encode(), "adapter_config.json")


def test_a_configuration_as_peft_writes_it():
    assert parsed() == AdapterConfig(
        lora_alpha=16,
        r=4,
        alpha_pattern=(("k_proj", 8),),
        rank_pattern=(("^model.layers.0.v_proj", 2),),
    )
    assert parsed(target_modules="all-linear") == parsed()
    assert parsed(fan_in_fan_out=True).fan_in_fan_out


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"use_dora": True}, "use_dora: true"),
        ({"use_qalora": True}, "use_qalora: true"),
        ({"lora_bias": True}, "lora_bias: true"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication: [[0, 4], [2, 5]]"),
        ({"of_a_later_peft": {"x": 1}}, "of_a_later_peft: {'x': 1}"),
        ({"peft_type": "LOHA"}, "peft_type: 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4': it changed the base before"),
        ({"alpha_pattern": {".*_proj": 8}}, "alpha_pattern: '.*_proj': a regular expression"),
        ({"rank_pattern": {"(a+)+$": 8}}, "rank_pattern: '(a+)+$': a regular expression"),
    ],
)
def test_settings_that_change_the_arithmetic(setting, problem):
    with pytest.raises(PlanError, match=r"adapter_config\.json: these settings change what the adapters mean") as error:
        parsed(**setting)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(problem)


def test_settings_of_a_wrong_type_are_listed():
    wrong = {"lora_alpha": "16", "r": 0, "use_rslora": 1, "alpha_pattern": [], "target_modules": [1], "bias": None}
    with pytest.raises(FormatError) as error:
        parsed(**wrong, rank_pattern={"k_proj": True}, fan_in_fan_out="no")
    assert error.value.problems == (
        "lora_alpha: expected a number, found a string '16'",
        "r: expected a positive integer, found a number 0",
        "use_rslora: expected true or false, found a number 1",
        "fan_in_fan_out: expected true or false, found a string 'no'",
        "alpha_pattern: expected an object, found an array []",
        "k_proj: expected a positive integer, found a boolean True",
        "target_modules: expected a string or an array of strings, found an array [1]",
        "bias: expected a string, found nothing",
    )
    with pytest.raises(FormatError, match="settings of a wrong type"):
        parse_adapter_config(b"{}", "adapter_config.json")


PAIRS = [
    AdapterPair("model.layers.0.q_proj.weight", "a", "b", 4),
    AdapterPair("model.layers.0.k_proj.weight", "a", "b", 4),
    AdapterPair("model.layers.0.v_proj.weight", "a", "b", 2),
]


def test_every_pair_has_its_scaling():
    assert list(scalings(PAIRS, config=parsed()).values()) == [4, 2, 8]
    assert list(scalings(PAIRS, config=parsed(use_rslora=True)).values()) == [8, 4, 16 / 2**0.5]
    assert list(scalings(PAIRS, 0.5).values()) == [0.5] * 3


def test_patterns_match_whole_names_only():
    pairs = [AdapterPair(f"{name}.weight", "a", "b", 4) for name in ("k_proj", "x.k_proj", "xk_proj")]
    assert list(scalings(pairs, config=AdapterConfig(4, alpha_pattern=(("k_proj", 8),))).values()) == [2, 2, 1]
    assert list(scalings(pairs, config=AdapterConfig(4, alpha_pattern=(("^k_proj", 8),))).values()) == [2, 1, 1]


def test_ranks_must_agree():
    with pytest.raises(PlanError, match="another rank") as error:
        scalings(PAIRS, config=AdapterConfig(16, r=2))
    assert error.value.problems == ("a: expected 2, found 4", "a: expected 2, found 4")


def test_the_scaling_has_no_default():
    with pytest.raises(UsageError, match=r"expected a number or an adapter_config.json, found neither"):
        scalings(PAIRS)
    with pytest.raises(UsageError, match="found both"):
        scalings(PAIRS, 1.0, AdapterConfig(1))
    with pytest.raises(UsageError, match="expected a finite number, found nan"):
        scalings(PAIRS, float("nan"))


@given(
    st.dictionaries(st.sampled_from(sorted(PEFT)), st.none() | st.booleans() | st.integers() | st.text() | st.floats())
)
def test_any_values_are_read_or_refused(changes):
    data = json.dumps(PEFT | changes, allow_nan=True).encode()
    with contextlib.suppress(FormatError, PlanError):
        assert parse_adapter_config(data, "adapter_config.json").r >= 0
