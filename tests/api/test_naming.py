"""Which naming a training job's networks ask for."""

import pytest
from models.test_oracle_conversions import config_of
from support.model_cases import read_tensors
from support.stores import new_place, put, put_model

import reshard
from reshard.errors import StrategyError, UsageError

DEEPSEEK, LLAMA = "deepseekv3_mcore180_bf16", "llama_cli150_llama_fp32_nodtype"
JOB = "use_legacy: {}\nparallel_config: {{data_parallel: 1, model_parallel: 1}}\n"


def planned(case, use_legacy, **asked):
    base = new_place()
    put_model(f"{base}/hf", read_tensors(case), config_of(case))
    put(f"{base}/job.yaml", JOB.format(use_legacy).encode())
    return reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", parallel=f"{base}/job.yaml", **asked)


@pytest.mark.parametrize(
    ("use_legacy", "asked", "naming"),
    [
        ("False", {}, "mcore"),
        ("True", {}, "legacy"),
        ("", {}, "legacy"),
        ("False", {"naming": "mcore"}, "mcore"),
        ("", {"naming": "mcore"}, "mcore"),
    ],
)
def test_the_networks_choose_the_naming(use_legacy, asked, naming):
    assert planned(DEEPSEEK, use_legacy, **asked).conversion.change.naming == naming


@pytest.mark.parametrize(("use_legacy", "naming"), [("False", "legacy"), ("True", "mcore")])
def test_a_naming_of_the_other_networks_is_refused(use_legacy, naming):
    with pytest.raises(UsageError) as error:
        planned(DEEPSEEK, use_legacy, naming=naming)
    assert f"says use_legacy: {use_legacy}, but naming='{naming}' is of the other networks" in str(error.value)


def test_a_family_without_such_networks():
    with pytest.raises(UsageError) as error:
        planned(LLAMA, "False")
    assert "says use_legacy: False, but no naming of llama is of such networks" in str(error.value)
    assert "naming" in error.value.hint


def test_sources_with_mindspores_names_have_their_networks():
    base = new_place()
    put_model(f"{base}/hf", read_tensors(LLAMA), config_of(LLAMA))
    put(f"{base}/job.yaml", JOB.format("False").encode())
    reshard.convert(f"{base}/hf", f"{base}/ms", to="ms")
    with pytest.raises(StrategyError, match="use_legacy: False, but networks with these names have True"):
        reshard.plan(f"{base}/ms", f"{base}/ranks", parallel=f"{base}/job.yaml", family="llama")


def test_strategies_made_for_what_a_checkpoint_becomes():
    base = new_place()
    put_model(f"{base}/hf", read_tensors(DEEPSEEK), config_of(DEEPSEEK))
    put(f"{base}/job.yaml", JOB.format("False").encode())
    made = reshard.api.make_strategy(f"{base}/s.yaml", checkpoint=f"{base}/hf", parallel=f"{base}/job.yaml", to="ms")
    assert "decoder.final_layernorm.weight" in made.names
