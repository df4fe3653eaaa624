"""Requests for networks that serve a model: what is asked together, and what cannot be served."""

import ml_dtypes
import numpy as np
import pytest
from support.small_llama import small_llama
from support.stores import new_place, objects_at, put, put_model

import reshard
from reshard.errors import PlanError, UsageError
from reshard.planning.plan_json import encode_plan

PROJECTION = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model():
    return small_llama(family="qwen3")


def put_one(tensors, config):
    return put_model(f"{new_place()}/model", tensors, config)


def ranks_of(source, **options):
    target = f"{new_place()}/served"
    reshard.convert(source, target, **options)
    return objects_at(target)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"form": "vllm"}, "needs serve='tp=N'"),
        ({"serve": "tp=2", "vllm": "0.32"}, "needs form='vllm'"),
        ({"serve": "tp=2", "form": "dcp"}, "no form that `serve` writes"),
        ({"serve": "tp=2", "form": "hf"}, "no form that `serve` writes"),
        ({"serve": "tp=2", "to": "hf"}, "the networks decide the names"),
        ({"serve": "tp=2", "parallel": "mp=2"}, "cannot be used together"),
        ({"serve": "tp=2", "remove_redundancy": True}, "loads its own object alone"),
        ({"serve": "tp=2", "form": "vllm", "prefix": "x"}, "names of its own"),
        ({"serve": "tp=2", "form": "vllm", "format": "ckpt"}, "consists of safetensors"),
        ({"serve": "tp=2,pp=2"}, "expected tp=N or tp=N,ep=N"),
        ({"serve": "ep=2"}, "expected tp=N or tp=N,ep=N"),
        ({"serve": {"tp": "two"}}, "expected tp=N or tp=N,ep=N"),
        ({"serve": "tp=2", "naming": "mcore"}, "but the source has Hugging Face's"),
    ],
)
def test_options_that_contradict_each_other(model, options, problem):
    with pytest.raises(UsageError) as caught:
        reshard.plan(put_one(*model), f"{new_place()}/served", **options)
    assert problem in str(caught.value)


@pytest.mark.parametrize("form", ["vllm", None])
def test_plans_virtual_objects_and_single_ranks_are_what_is_written(model, form):
    source = put_one(*model)
    whole = ranks_of(source, serve="tp=2", form=form)
    files = reshard.filesystem(source, serve="tp=2", form=form)
    assert {name: files.cat_file(name) for name in whole} == whole
    last = max(whole)
    assert ranks_of(source, serve="tp=2", form=form, ranks="1") == {last: whole[last]}
    target = new_place()
    put(f"{target}/plan.json", encode_plan(reshard.plan(source, f"{target}/served", serve="tp=2", form=form)))
    reshard.convert(plan=f"{target}/plan.json")
    assert objects_at(f"{target}/served") == whole


def test_blocks_with_scales_are_dequantised_first(model):
    tensors, config = model
    small = np.asarray(np.clip(tensors[PROJECTION], -1, 1), ml_dtypes.float8_e4m3fn)
    plain = {**tensors, PROJECTION: small.astype(np.float32) * 2}
    quantised = {**tensors, PROJECTION: small, f"{PROJECTION}_scale_inv": np.full((1, 1), 2, np.float32)}
    want = ranks_of(put_one(plain, config), serve="tp=2", dtype="bf16")
    assert ranks_of(put_one(quantised, config), serve="tp=2", dtype="bf16") == want
    with pytest.raises(PlanError, match="hold no quantised weights"):
        ranks_of(put_one(quantised, config), serve="tp=2")


def test_vllm_is_not_told_that_plain_weights_are_quantised(model):
    tensors, config = model
    with pytest.raises(PlanError, match="quantization_config"):
        ranks_of(put_one(tensors, config | {"quantization_config": {"quant_method": "fp8"}}), serve="tp=2", form="vllm")


def test_adapters_are_merged_first(model):
    tensors, config = model
    rows, columns = tensors[PROJECTION].shape
    name = PROJECTION.removesuffix(".weight")
    halves = {
        f"{name}.lora_A.weight": np.ones((2, columns), np.float32),
        f"{name}.lora_B.weight": np.ones((rows, 2), np.float32),
    }
    want = ranks_of(put_one({**tensors, PROJECTION: tensors[PROJECTION] + 2}, config), serve="tp=2")
    source = put_one({**tensors, **halves}, config)
    found = ranks_of(source, serve="tp=2", merge_lora=True, lora_scaling=1)
    assert {rank: len(data) for rank, data in found.items()} == {rank: len(data) for rank, data in want.items()}
    with pytest.raises(PlanError, match="hold no adapters"):
        ranks_of(source, serve="tp=2")


def test_norms_keep_their_precision_in_mindspores_networks(model):
    tensors, config = model
    source = put_one(tensors, config)
    with reshard.load(source, rank=0, serve="tp=2", dtype="bf16") as shard:
        assert shard["decoder.layers.0.mlp.linear_fc2.weight"].dtype == ml_dtypes.bfloat16
        assert (shard["decoder.final_layernorm.weight"] == tensors["model.norm.weight"]).all()
    with reshard.load(source, rank=0, serve="tp=2", form="vllm", dtype="bf16") as shard:
        assert shard["model.norm.weight"].dtype == ml_dtypes.bfloat16


def test_a_model_that_has_the_tensors_of_another_family():
    tensors, config = small_llama()
    want = ranks_of(put_one(tensors, config), serve="tp=4", form="vllm")
    assert ranks_of(put_one(tensors, config | {"model_type": "mistral"}), serve="tp=4", form="vllm") == want


def test_loads_have_no_form_but_that_of_an_engine(model):
    with pytest.raises(UsageError, match="not written here"):
        reshard.load(put_one(*model), rank=0, dst_layout="l.yaml", form="dcp")
