"""Changes to tensors before they are cut: pieces, dtypes, notes, and what is refused."""

from dataclasses import replace

import pytest
from support.checkpoints import catalog_of_objects, random_model

from reshard.errors import PlanError, UsageError
from reshard.models.family_file import load_family
from reshard.planning.change import NO_CHANGE, Change, make_tensors
from reshard.planning.sources.full_source import with_adapters
from reshard.tensor import DType

MODEL = {"a.weight": ("BF16", (6, 4)), "b.weight": ("F32", (4,)), "step": ("I64", (1,)), "packed": ("F4", (6,))}
ADAPTERS = {"a.lora_A.weight": ("F32", (2, 4)), "a.lora_B.weight": ("F32", (6, 2))}
BLOCKED = {"quantization_config": {"weight_block_size": [4, 4]}}


def catalog_of(tensors, key="m.safetensors", url="memory://source"):
    return catalog_of_objects({key: random_model(tensors)}, url)


def made(change, tensors=MODEL, renamed=None):
    return make_tensors(catalog_of(tensors), renamed or {}, change)


def dtypes(found):
    return {tensor.spec.name: tensor.spec.dtype.value for tensor in found.tensors}


def kernels(found):
    return {t.spec.name: piece.computation.kernel for t in found.tensors for piece in t.pieces if piece.computation}


def test_nothing_changes_unless_asked_for():
    found = made(NO_CHANGE)
    assert dtypes(found) == {name: dtype for name, (dtype, _) in MODEL.items()}
    assert not kernels(found)
    assert not found.notes
    assert all(tensor.tile_itemsize == 0 for tensor in found.tensors)


def test_floats_are_cast_and_nothing_else():
    found = made(Change(dtype=DType.F32))
    assert dtypes(found) == {"a.weight": "F32", "b.weight": "F32", "step": "I64", "packed": "F4"}
    assert kernels(found) == {"a.weight": "cast"}
    assert found.notes == (
        "cast: 1 tensors, BF16 to F32",
        "1 tensors stay F4: no scales NAME_scale_inv are beside them: packed",
    )


def test_kept_names_are_those_of_the_target():
    kept = Change(dtype=DType.F16, kept=frozenset({"new", "b.weight"}))
    assert dtypes(made(kept, renamed={"a.weight": "new"}))["new"] == "BF16"
    assert dtypes(made(kept))["a.weight"] == "F16"
    assert dtypes(made(kept))["b.weight"] == "F32"


SCALED = {"w": ("F8_E4M3", (6, 5)), "w_scale_inv": ("F32", (2, 2)), "v": ("F8_E4M3", (3,))}


def test_scales_are_consumed_where_a_dtype_is_asked_for():
    assert dtypes(made(Change(config=BLOCKED))) == {name: dtype for name, (dtype, _) in MODEL.items()}
    assert not kernels(made(Change(config=BLOCKED), SCALED))
    found = made(Change(config=BLOCKED, dtype=DType.BF16), SCALED)
    assert dtypes(found) == {"w": "BF16", "v": "F8_E4M3"}
    assert kernels(found) == {"w": "dequantise"}
    [computation] = [piece.computation for tensor in found.tensors for piece in tensor.pieces if piece.computation]
    assert computation.blocks == (4, 4)
    with pytest.raises(PlanError, match="do not fit their tensors"):
        made(Change(dtype=DType.BF16), SCALED)  # blocks of 128


@pytest.mark.parametrize("is_apart", [False, True])
def test_adapters_leave_no_tensor_of_their_own(is_apart):
    change = Change(scalings={"a.weight": 2.0})
    inside = MODEL | ADAPTERS
    catalog = catalog_of(MODEL if is_apart else inside)
    if is_apart:
        catalog = with_adapters(catalog, catalog_of(ADAPTERS, "adapter_model.safetensors", "memory://lora"))
    found = make_tensors(catalog, {}, change)
    assert dtypes(found) == {name: dtype for name, (dtype, _) in MODEL.items()}
    assert kernels(found) == {"a.weight": "merge_lora"}
    assert found.notes[0] == "1 adapters are merged, scaled by 2.0"
    [computation] = [piece.computation for tensor in found.tensors for piece in tensor.pieces if piece.computation]
    names = [catalog.entries[index].spec.name for index in computation.extras]
    assert names == ["a.lora_A.weight", "a.lora_B.weight"]
    assert (computation.rank, computation.scaling, computation.working) == (2, 2.0, DType.F32)
    with pytest.raises(PlanError, match="scaling of these weights is unknown"):
        make_tensors(catalog, {}, replace(change, scalings={"other": 1.0}))


def test_unknown_families_and_namings_are_refused():
    with pytest.raises(UsageError, match="Unknown family"):
        made(Change(family="../llama"))
    with pytest.raises(UsageError, match="naming"):
        made(Change(family="llama", direction="to_ms", naming="other"))
    with pytest.raises(PlanError, match="does not fit the rules"):
        made(Change(family="llama", direction="to_ms", naming="legacy", config={"num_hidden_layers": 1}))


@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "mixtral", "qwen3_moe"])
def test_numbers_without_end_cost_nothing(family):
    counts = ("num_hidden_layers", "num_nextn_predict_layers", "n_routed_experts", "num_local_experts", "num_experts")
    huge = dict.fromkeys(counts, 1 << 39)
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size"), 8)
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads", "q_lora_rank", "kv_lora_rank"), 1)
    config = {**huge, **sizes, **heads, "first_k_dense_replace": 0}
    for naming in (each.name for each in load_family(family).namings):
        for direction in ("to_ms", "to_hf"):
            with pytest.raises(PlanError, match=r"more than any model|findings"):
                made(Change(family=family, direction=direction, naming=naming, config=config))
