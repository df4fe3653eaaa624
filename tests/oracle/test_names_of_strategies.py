"""Hugging Face's weights given to commands that cut: the strategy's names ask for the family's rules."""

from __future__ import annotations

import pytest
from cli.runner import ok, run
from models.test_oracle_conversions import FORWARD, config_of
from oracle.test_conversions import downloaded, pairs
from support.model_cases import FOLDER, read_answer, read_tensors, summary_of
from support.stores import arrays_at, new_place, objects_at, put, put_model

import reshard
from reshard import compat
from reshard.errors import PlanError, UsageError

# Models whose real conversion keeps the source's dtype, or is bf16 as the source is; and sizes that cut them.
CASES = {
    "llama_cli150_llama_bf16_bf16": "dp=2,mp=2",
    "qwen2_5_cli150_qwen2_bf16_nodtype": "mp=2,pp=2",
    "glm4_legacy160_qc0_mc0_rr0_bf16": "mp=2",
    "glm4_legacy160_qc1_mc1_rr0_bf16": "mp=2",
    "deepseek3_train150_bf16_gmm_safetensors": "dp=2,mp=2,ep=2",
    "deepseek3_train150_bf16_bmm_safetensors": "dp=2,mp=2,ep=2",
    "deepseekv3_mcore180_bf16": "dp=2,mp=2,ep=2",
    "qwen3_mcore180_qwen3_bf16_interleaved": "mp=2",
    "qwen3moe_mcore180_interleaved": "dp=2,mp=2,ep=2",
    "mixtral_cli150_bf16": "mp=2",
}


def strategy_for(source, case, parallel):
    """The strategy of a job that trains this model."""
    _, naming, _, options = FORWARD[case]
    chosen = [word for pair in pairs(options) for word in ("--option", pair)]
    place = f"{new_place()}/strategy/ckpt_strategy_rank_0.ckpt"
    sizes = f"{parallel},sp=true,vocab_emb_dp=false"
    ok("strategy", "make", place, "--for", source, "--to", "ms", "--naming", naming, "--parallel", sizes, *chosen)
    return place


@pytest.mark.parametrize("case", CASES)
def test_the_rules_that_the_strategy_asks_for(case):
    source = downloaded(case)
    strategy = strategy_for(source, case, CASES[case])
    base = new_place()
    done = ok("transform-checkpoint", "--src_checkpoint", source, "--dst_checkpoint", f"{base}/a", "--dst_strategy",
              strategy)  # fmt: skip
    assert "the source has Hugging Face's names" in done.out
    ok("load-distributed-checkpoint", "--unified_safetensors_dir", source, "--dst_safetensors_dir", f"{base}/b",
       "--predict_strategy", strategy)  # fmt: skip
    _, naming, _, options = FORWARD[case]
    asked = {"to": "ms", "naming": naming, "option": pairs(options)}
    reshard.convert(source, f"{base}/c", dst_strategy=strategy, prefix="net.safetensors", **asked)
    assert objects_at(f"{base}/b") == objects_at(f"{base}/c")
    reshard.convert(f"{base}/a", f"{base}/whole", src_strategy=strategy)
    reshard.convert(source, f"{base}/expected", **asked)
    whole = summary_of(arrays_at(f"{base}/whole"))
    assert whole == summary_of(arrays_at(f"{base}/expected"))
    # What the real code wrote, where it has the same dtypes.
    real = read_answer(case, "mf")
    assert whole.keys() == real.keys()
    assert [name for name in whole if whole[name][:2] == real[name][:2] and whole[name] != real[name]] == []
    assert reshard.verify(f"{base}/a", source=source).is_ok


def llama_with(strategy, *, config=True):
    """A Llama from Hugging Face, and genuine strategy files."""
    case, base = "llama_cli150_llama_bf16_bf16", new_place()
    put_model(f"{base}/hf", read_tensors(case), config_of(case) if config else None)
    for path in (FOLDER / strategy / "strategy").iterdir():
        put(f"{base}/strategy/{path.name}", path.read_bytes())
    return base


@pytest.mark.parametrize("strategy", ["strategy_llama_dp2mp2_vocabmp", "strategy_llama_dp2mp2_vocabdp"])
def test_strategies_that_training_wrote(strategy):
    base = llama_with(strategy)
    compat.transform_checkpoint(f"{base}/hf", f"{base}/ranks", dst_strategy=f"{base}/strategy")
    assert len(objects_at(f"{base}/ranks")) == 4
    compat.transform_checkpoint(f"{base}/ranks", f"{base}/whole", src_strategy=f"{base}/strategy")
    assert summary_of(arrays_at(f"{base}/whole")) == read_answer("llama_cli150_llama_bf16_bf16", "mf")


def test_names_tell_options_of_the_rules():
    base = llama_with("strategy_llama_qkvconcat_bias_mp2")
    compat.load_distributed_checkpoint(f"{base}/hf", f"{base}/out", f"{base}/strategy")
    assert "model.layers.0.attention.w_qkv.weight" in arrays_at(f"{base}/out/rank_0")


def test_the_tensors_stand_in_for_a_configuration():
    base = llama_with("strategy_llama_dp2mp2_vocabmp", config=False)
    compat.transform_checkpoint(f"{base}/hf", f"{base}/ranks", dst_strategy=f"{base}/strategy")
    compat.transform_checkpoint(f"{base}/ranks", f"{base}/whole", src_strategy=f"{base}/strategy")
    assert summary_of(arrays_at(f"{base}/whole")) == read_answer("llama_cli150_llama_bf16_bf16", "mf")


def test_numbers_that_the_tensors_do_not_tell_are_asked_for():
    base = llama_with("strategy_llama_qkvconcat_bias_mp2", config=False)
    arguments = ["load-distributed-checkpoint", "--unified_safetensors_dir", f"{base}/hf", "--dst_safetensors_dir",
                 f"{base}/out", "--predict_strategy", f"{base}/strategy"]  # fmt: skip
    done = run(*arguments)
    assert (done.code, "--config num_attention_heads=N" in done.err) == (2, True)
    ok(*arguments, "--config", "num_attention_heads=8")
    with pytest.raises(UsageError, match=r"config\.json"):
        compat.load_distributed_checkpoint(f"{base}/hf", f"{base}/b", f"{base}/strategy")


def test_a_strategy_of_another_family_is_refused():
    base = llama_with("strategy_mcore_qwen3_dp2mp2_vocabmp")
    with pytest.raises(PlanError, match="the target strategy's names are not those of llama") as caught:
        compat.transform_checkpoint(f"{base}/hf", f"{base}/out", dst_strategy=f"{base}/strategy")
    assert "qwen3" in caught.value.hint
    assert objects_at(f"{base}/out") == {}


def test_names_that_agree_are_left_alone():
    base = llama_with("strategy_llama_dp2mp2_vocabmp")
    reshard.convert(f"{base}/hf", f"{base}/ms", to="ms")
    done = ok("load-distributed-checkpoint", "--unified_safetensors_dir", f"{base}/ms", "--dst_safetensors_dir",
              f"{base}/out", "--predict_strategy", f"{base}/strategy")  # fmt: skip
    assert "Hugging Face" not in done.out
