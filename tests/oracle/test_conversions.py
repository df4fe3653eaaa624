"""Every conversion that MindSpore Transformers made, asked of the library and of its commands: the same tensors."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from cli.runner import ok, run
from models.test_oracle_conversions import BACKWARD, FORWARD, RANKS, ROPE_UNDONE, config_of, read_config_of_ranks
from support.model_cases import FOLDER, read_answer, read_rank, read_tensors, summary_of
from support.stores import arrays_at, new_place, objects_at, put, put_model

import reshard
from reshard.errors import UsageError

# What the loader that cuts while it converts was told, as numbers of a job.
NUMBERS = {
    "qwen3moe_template210_single3d": "dp=1",
    "qwen3_template210_tp2": "mp=2,vocab_emb_dp=false",
    "qwen3_template210_tp4_kv2": "mp=4,vocab_emb_dp=false",
    "qwen3moe_template210_tp2ep2": "mp=2,ep=2,sp=true,vocab_emb_dp=false",
}

# Cases whose script failed or was wrong, and the case that has the right answer to the same command.
FAILED_THERE = {
    "llama_cli160_broken": "llama_cli150_llama_fp32_nodtype",
    "llama_cli180_broken": "llama_cli150_llama_fp32_nodtype",
    "qwen2_5_cli160_noflags": "qwen2_5_cli150_qwen2_bf16_nodtype",
    "mixtral_cli150_use_gmm_extra_false": "mixtral_cli150_bf16",
}

GLM_YAML = """
model:
  model_config: {type: ChatGLM2Config, num_layers: 2, padded_vocab_size: 96, hidden_size: 64, ffn_hidden_size: 96,
    kv_channels: 8, num_attention_heads: 8, multi_query_group_num: 2, rms_norm_eps: 1.e-5,
    qkv_concat: False, mlp_concat: False, use_rearrange_rope: True}
"""


def pairs(options):
    return [f"{name}={str(value).lower()}" for name, value in options.items()]


def dtype_of(dtype):
    return None if dtype is None else {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}[dtype.value]


def downloaded(case):
    """What lies on Hugging Face, in memory."""
    config = config_of(case)
    return put_model(f"{new_place()}/hf", read_tensors(case), config)


def forwards(source, case, **more):
    _, naming, dtype, options = FORWARD[case]
    target = f"{source.removesuffix('/hf')}/ms"
    asked = {"naming": naming, "dtype": dtype_of(dtype), "option": pairs(options)} | more
    reshard.convert(source, target, to="ms", **asked)
    assert reshard.verify(target).is_ok
    return target


@cache
def made_forwards(case):
    """What our own conversion made of a case, which is what the real one made."""
    made = arrays_at(forwards(downloaded(case), case))
    assert summary_of(made) == read_answer(case, "mf")
    return made


@pytest.mark.parametrize("case", sorted(FORWARD))
def test_forwards(case):
    assert made_forwards(case)


def backwards(case, **more):
    origin, dtype, options = BACKWARD[case]
    base = new_place()
    put_model(f"{base}/ms", made_forwards(origin), config_of(origin))
    asked = {"dtype": dtype_of(dtype), "option": pairs(options | more)}
    reshard.convert(f"{base}/ms", f"{base}/hf", to="hf", **asked)
    assert reshard.verify(f"{base}/hf").is_ok
    return arrays_at(f"{base}/hf")


@pytest.mark.parametrize("case", sorted(BACKWARD))
def test_backwards(case):
    if case in ROPE_UNDONE:  # the real code undoes what was not done
        assert summary_of(backwards(case)) == summary_of(read_tensors("glm4_legacy160_qc0_mc0_rr0_bf16"))
    else:
        assert summary_of(backwards(case)) == read_answer(case, "hf")


@pytest.mark.parametrize("case", RANKS)
def test_cut_while_converting(case):
    rank, _, options = RANKS[case]
    base = new_place()
    put_model(f"{base}/hf", read_tensors(case), read_config_of_ranks(case))
    asked = {"parallel": NUMBERS[case], "naming": "mcore", "option": pairs(options)}
    reshard.convert(f"{base}/hf", f"{base}/ranks", to="ms", dtype="fp32", **asked)  # as that loader has it
    found = arrays_at(f"{base}/ranks", [f"{rank}/checkpoint_{rank.removeprefix('rank_')}.safetensors"])
    assert summary_of(found) == read_rank(case, rank)
    assert reshard.verify(f"{base}/ranks").is_ok


# --- the command lines


def commands():
    """Every case that convert_weight.py made, with its arguments."""
    for path in sorted(FOLDER.glob("*/case.json")):
        command = json.loads(path.read_text()).get("command", [])
        is_script = len(command) > 1 and command[1].endswith(("convert_weight.py", "convert_reversed.py"))
        if is_script and path.parent.name in FORWARD.keys() | BACKWARD.keys():
            yield path.parent.name, command


COMMANDS = dict(commands())


def asked(case, base):
    """The command line for a place; what was a pickled file is a prefix."""
    words = [word.replace("<case>", base).replace("/pytorch_model.bin", "") for word in COMMANDS[case]]
    return [*words, "--quiet"]


@pytest.mark.parametrize("case", COMMANDS)
def test_as_the_script_does_it(case):
    backwards = case in BACKWARD
    base = new_place()
    words = asked(case, base)
    torch, mindspore = ("output", "input") if backwards else ("input", "output")
    sides = {"--input_path": "input", "--output_path": "output", "--torch_ckpt_path": torch}
    sides["--mindspore_ckpt_path"] = mindspore
    places = {sides[flag]: word for flag, word in pairwise(words) if flag in sides}
    source, target = places["input"], places["output"]
    if backwards:
        origin = BACKWARD[case][0]
        put_model(source, made_forwards(origin), None if "glm" in case else config_of(origin))
        put(f"{base}/model.yaml", GLM_YAML.encode())
    else:
        put_model(source, read_tensors(case), config_of(case))
    ok(*words)
    expected = read_answer(FAILED_THERE.get(case, case), "hf" if backwards else "mf")
    assert summary_of(arrays_at(target)) == expected
    if not target.endswith((".ckpt", ".safetensors")):
        names = {*objects_at(target)}
        forwards = {"checkpoints.ckpt"} if case.endswith("_ckpt") else {"part0.safetensors"}
        assert names == ({"model.safetensors"} if backwards else forwards)


@pytest.mark.parametrize("case", [case for case in FAILED_THERE if case not in FORWARD])
def test_where_the_script_failed(case):
    answer = FAILED_THERE[case]
    source = downloaded(answer)
    target = source.replace("/hf", "/mf/model.ckpt")
    ok("convert-weight", "--model", case.partition("_cli")[0], "--input_path", source, "--output_path", target)
    assert summary_of(arrays_at(target)) == read_answer(answer, "mf")


def test_every_qwen2_5_script_that_cannot_be_run_from_the_command_line():
    """Its reverse is in no list of the script, and fails for one .ckpt: here it is a model like any other."""
    made = made_forwards("qwen2_5_cli150_qwen2_bf16_nodtype")
    base = new_place()
    put_model(f"{base}/qwen.ckpt", made, config_of("qwen2_5_cli150_qwen2_bf16_nodtype"))
    ok(
        "convert_weight", "--model", "qwen", "--reversed", "--input-path", f"{base}/qwen.ckpt",
        "--output-path", f"{base}/hf",
    )  # fmt: skip
    assert summary_of(arrays_at(f"{base}/hf")) == read_answer("qwen2_5_reversed160_safetensors", "hf")


def test_mixtral_with_other_than_eight_experts():
    """The script counts to eight whatever config.json says, and mixes layers up."""
    case = "mixtral_cli150_bf16"
    config = config_of(case) | {"num_local_experts": 4}
    chosen = {}
    for name, array in read_tensors(case).items():
        if ".experts." in name and int(name.split(".experts.")[1][0]) > 3:
            continue
        chosen[name] = array[:4] if name.endswith("gate.weight") else array
    base = new_place()
    put_model(f"{base}/hf", chosen, config)
    flags = ["--input_path", f"{base}/hf", "--output_path", f"{base}/four.ckpt", "--dtype", "bf16"]
    ok("convert-weight", "--model", "mixtral", *flags)
    found, whole = arrays_at(f"{base}/four.ckpt"), made_forwards(case)
    assert found.keys() == whole.keys()
    for name, array in found.items():
        assert array.tobytes() == (whole[name][:4] if "feed_forward" in name else whole[name]).tobytes(), name


@pytest.mark.parametrize("qkv_concat", [True, False])
def test_glm_with_names_of_transformers(qkv_concat):
    """Online loading fails without concatenation; the right answer is the other case's, apart."""
    case = "online160_glm_fp32_qkvconcat1"
    whole = made_forwards(case)
    base = downloaded(case).removesuffix("/hf")
    more = [] if qkv_concat else ["--qkv_concat", "False", "--mlp_concat", "false"]
    ok("convert-weight", "--model", "glm4", "--input_path", f"{base}/hf", "--output_path", f"{base}/glm", *more)
    found = arrays_at(f"{base}/glm.ckpt")
    if qkv_concat:
        assert summary_of(found) == read_answer(case, "mf")
        return
    for name, array in whole.items():
        stem, _, leaf = name.rpartition(".")
        parts = {"query_key_value": ("wq", "wk", "wv"), "dense_h_to_4h": ("dense_left", "dense_right")}
        above, _, last = stem.rpartition(".")
        joined = [found[f"{above}.{part}.{leaf}"] for part in parts.get(last, ())] or [found[name]]
        assert (np.concatenate(joined) == array).all(), name


# --- what the commands refuse


LLAMA = "llama_cli150_llama_bf16_bf16"


def refused(*words, case=LLAMA):
    source = downloaded(case)
    words = ("--input_path", source, "--output_path", source.replace("/hf", "/mf/a.ckpt"), *words)
    done = run("convert-weight", *(words if "--model" in words else ("--model", "llama", *words)))
    assert done.code == 2, done.err
    return done.err


def test_contradictions_are_all_named():
    told = refused("--num_layers", "3", "--n_head", "4", "--hidden_size=64")
    assert "--num_layers is 3, but num_hidden_layers is 2" in told
    assert "num_attention_heads" in told
    assert "hidden_size" not in told
    assert "model_type of config.json is 'llama'" in refused("--model", "qwen2_5").replace('"', "'")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "telechat"], "Known: llama, qwen2_5"),
        (["--is_lora", "True"], "transform-ckpt-lora"),
        (["--v_head_dim", "3", "--use_gmm", "1"], "--use_gmm does not concern llama"),
        (["--qkv_concat", "perhaps"], "expected True or False"),
        (["--save_format", "safetensors"], "but --save_format safetensors is given"),
        (["--reversed"], "has no .ckpt"),
        (["--output_path", "memory://x/pytorch_model.bin", "--reversed"], "pickled files are not written"),
    ],
)
def test_what_makes_no_sense_is_refused(words, told):
    assert told in " ".join(refused(*words).replace("│", "").split())


def test_false_is_no_concatenation():
    """The script takes every text for true."""
    source = downloaded(LLAMA)
    for said, name in (("False", "attention.wq.weight"), ("True", "attention.w_qkv.weight")):
        target = source.replace("/hf", f"/{said}.ckpt")
        flags = ["--input_path", source, "--output_path", target, "--qkv_concat", said]
        ok("convert-weight", "--model", "llama", *flags)
        assert f"model.layers.0.{name}" in arrays_at(target)


def test_sizes_stand_in_for_a_configuration():
    case = "qwen3_mcore180_qwen3_bf16_interleaved"
    base = new_place()
    put_model(f"{base}/mf", made_forwards(case))
    flags = ["--num_layers=2", "--kv_channels=16", "--num_query_groups=2", "--num_attention_heads=8"]
    words = ["--model", "qwen3", "--reversed", "--input_path", f"{base}/mf", "--output_path", f"{base}/hf", *flags]
    ok("convert-weight", *words, "--ffn_hidden_size=96", "--vocab_size=96", "--hidden_size=64")
    assert summary_of(arrays_at(f"{base}/hf")) == read_answer("qwen3_mcore180_reversed_qwen3_bf16_interleaved", "hf")


ASKED_FOR = {
    "online160_llama_fp32_qkvconcat1": "num_attention_heads=8",
    "glm4_legacy160_qc0_mc0_rr0_bf16": "num_attention_heads=8",
    "glm4_legacy160_qc0_mc0_rr1_bf16": "num_attention_heads=8",
    "glm4_legacy160_qc1_mc1_rr0_bf16": "num_attention_heads=8",
    "glm4_legacy160_qc1_mc1_rr1_bf16": "num_attention_heads=8",
    "online160_glm_fp32_qkvconcat1": "num_attention_heads=8",
}
"""What tensors cannot tell, by the case that is converted; with Hugging Face's names of ChatGLM, too."""


def converted_without_config(source, target, **asked):
    """Convert with the tensors alone; what they do not tell is asked for in one sentence, and given then."""
    said = ""
    try:
        reshard.convert(source, target, **asked)
    except UsageError as error:
        said = str(error)
    found = re.fullmatch(
        r"neither config.json nor the tensors tell (\w+), which the rules of \w+ need\n"
        r"Give config='URL', that of the model's config.json, or the numbers: config='\1=N'\.",
        said,
    )
    return found[1] if found else said


@pytest.mark.parametrize("case", sorted(FORWARD))
def test_forwards_without_a_configuration(case):
    family, naming, dtype, options = FORWARD[case]
    source, target = f"{new_place()}/hf", f"{new_place()}/ms"
    put_model(source, read_tensors(case))
    asked = {"to": "ms", "naming": naming, "dtype": dtype_of(dtype), "option": pairs(options), "family": family}
    missing = converted_without_config(source, target, **asked)
    assert missing == ASKED_FOR.get(case, "").partition("=")[0]
    if missing:
        reshard.convert(source, target, config=ASKED_FOR[case], **asked)
    assert summary_of(arrays_at(target)) == read_answer(case, "mf")


@pytest.mark.parametrize("case", sorted(BACKWARD))
def test_backwards_without_a_configuration(case):
    origin, dtype, options = BACKWARD[case]
    base = new_place()
    put_model(f"{base}/ms", made_forwards(origin))
    asked = {"to": "hf", "dtype": dtype_of(dtype), "option": pairs(options), "family": FORWARD[origin][0]}
    missing = converted_without_config(f"{base}/ms", f"{base}/hf", **asked)
    assert missing == ASKED_FOR.get(origin, "").partition("=")[0]
    if missing:
        reshard.convert(f"{base}/ms", f"{base}/hf", config=ASKED_FOR[origin], **asked)
    assert summary_of(arrays_at(f"{base}/hf")) == summary_of(backwards(case))


# --- the two cases that are of no script's result as a whole


def test_blocks_of_every_shape_are_scaled():
    base, answer = new_place(), read_answer("fp8_dequant_blocks", "mf")
    put_model(f"{base}/hf", read_tensors("fp8_dequant_blocks"))
    made = {}
    for dtype, head in (("fp32", "f32."), ("bf16", "")):
        reshard.convert(f"{base}/hf", f"{base}/{dtype}", dtype=dtype)
        assert reshard.verify(f"{base}/{dtype}").is_ok
        made |= {f"{head}{name}": array for name, array in arrays_at(f"{base}/{dtype}").items()}
    assert summary_of(made) == answer


def test_biases_are_grouped_like_their_weights():
    """The offline script of Llama leaves them as q, k, v, which its own network reads wrongly."""
    case = "llama_qkv_concat_bias_offline150"
    sources, config, base = read_tensors(case), config_of(case), new_place()
    put_model(f"{base}/hf", sources, config)
    flags = ["--input_path", f"{base}/hf", "--output_path", f"{base}/ms.ckpt", "--qkv_concat", "True"]
    ok("convert-weight", "--model", "qwen2_5", "--dtype", "bf16", *flags)
    found, answer = arrays_at(f"{base}/ms.ckpt"), read_answer(case, "mf", only="concat.ckpt")
    said, biases = summary_of(found), {name for name in answer if name.endswith("w_qkv.bias")}
    assert said.keys() == answer.keys()
    assert len(biases) == config["num_hidden_layers"]
    assert {name for name in said if said[name] != answer[name]} == biases
    for name in biases:
        q, k, v = (sources[f"model.layers.{name.split('.')[2]}.self_attn.{part}_proj.bias"] for part in "qkv")
        groups = config["num_key_value_heads"]
        wanted = np.concatenate([part.reshape(groups, -1) for part in (q, k, v)], axis=1)
        assert found[name].tobytes() == wanted.astype(found[name].dtype).tobytes()
