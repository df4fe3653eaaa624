"""Every merge of adapters that MindSpore Transformers made, given to ``transform-ckpt-lora``: the same tensors.

Inputs are made from the seed that the real ones were made from, and compared with their hashes.
"""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from cli.runner import ok, run
from support.model_cases import FOLDER, NUMPY, cast, read_answer, summary_of
from support.stores import arrays_at, new_place, objects_at, put, put_model

import reshard
from reshard import compat
from reshard.tensor import DType

LEAVES = {
    "mindpet": (".mindpet_delta_lora_a", ".mindpet_delta_lora_b"),
    "tk": (".tk_delta_lora_a", ".tk_delta_lora_b"),
    "loraA": (".lora_A.weight", ".lora_B.weight"),
    "plain": (".lora_a", ".lora_b"),
}
TYPES = {"float32": DType.F32, "bfloat16": DType.BF16}

# Of every case: how its adapters are called, the types of weights and adapters, and the scaling.
CASES = {
    "lora_merge160_default_scaling": ("mindpet", "float32", "float32", 1.0),
    "lora_merge160_loraA_float32_float32": ("loraA", "float32", "float32", 4.0),
    "lora_merge160_mindpet_bfloat16_float32": ("mindpet", "bfloat16", "float32", 4.0),
    "lora_merge160_mindpet_float32_float32": ("mindpet", "float32", "float32", 4.0),
    "lora_merge160_save_safetensors": ("mindpet", "float32", "float32", 0.5),
    "lora_merge210_safetensors_mindpet": ("mindpet", "bfloat16", "float32", 4.0),
    "lora_merge210_safetensors_pynative": ("plain", "bfloat16", "float32", 4.0),
}
FAILED_THERE = {
    "lora_merge160_mindpet_bfloat16_bfloat16": ("mindpet", "bfloat16", "bfloat16", 4.0),
    "lora_merge160_plain_float32_float32": ("plain", "float32", "float32", 4.0),
    "lora_merge160_tk_float32_float32": ("tk", "float32", "float32", 4.0),
}
DISTRIBUTED = "lora_merge160_dist_lora_dp2mp2"


def made_input(called, weights, adapters):
    """The checkpoint that the cases begin with: of one seed, tensor after tensor."""
    numbers, leaves = np.random.RandomState(3), LEAVES[called]
    made = {}

    def add(name, *shape, dtype=weights):
        values = numbers.randn(*shape).astype(np.float32) * 0.3
        made[name] = cast(values.astype(np.float32), np.dtype(NUMPY[TYPES[dtype]]))

    add("model.tok_embeddings.embedding_weight", 96, 64)
    for layer in range(2):
        matrices = {"wq": (64, 64), "wk": (16, 64), "wv": (16, 64), "wo": (64, 64)}
        matrices = {f"attention.{name}": shape for name, shape in matrices.items()}
        matrices |= {f"feed_forward.{name}": shape for name, shape in (("w1", (96, 64)), ("w2", (64, 96)))}
        matrices["feed_forward.w3"] = (96, 64)
        for name, (rows, columns) in matrices.items():
            add(f"model.layers.{layer}.{name}.weight", rows, columns)
            if name.startswith("attention"):
                add(f"model.layers.{layer}.{name}{leaves[0]}", 4, columns, dtype=adapters)
                add(f"model.layers.{layer}.{name}{leaves[1]}", rows, 4, dtype=adapters)
        add(f"model.layers.{layer}.attention_norm.weight", 64)
        add(f"model.layers.{layer}.ffn_norm.weight", 64)
    add("model.norm_out.weight", 64)
    add("lm_head.weight", 96, 64)
    return made


def case_json(case):
    return json.loads((FOLDER / case / "case.json").read_text())


def uploaded(case):
    """What the script was given, in memory."""
    called, weights, adapters, _ = (CASES | FAILED_THERE)[case]
    tensors = made_input(called, weights, adapters)
    name = "src.safetensors" if "210" in case else "lora_in.ckpt"
    assert summary_of(tensors) == read_answer(case, "mf", only=name)
    base = new_place()
    put_model(f"{base}/mf/{name}", tensors)
    if "210" in case:
        put(f"{base}/mf/adapter_config.json", json.dumps({"lora_alpha": 16, "r": 4}).encode())
    return base, f"{base}/mf/{name}", tensors


def test_every_case_is_known():
    assert {path.name for path in FOLDER.glob("lora_merge*")} == {*CASES, *FAILED_THERE, DISTRIBUTED}


def command_of(case, base):
    """The command line, word for word."""
    return [word.replace("<case>", base) for word in case_json(case)["command"]]


@pytest.mark.parametrize("case", CASES)
def test_as_the_script_does_it(case):
    base, _, _ = uploaded(case)
    more = ["--lora_scaling", "1"] if case.endswith("default_scaling") else []
    words = [*command_of(case, base), *more]
    ok(*words)
    target = next(word for flag, word in pairwise(words) if flag in ("--dst_ckpt_dir", "--dst_ckpt_path"))
    (answer,) = (name for name in case_json(case)["files"]["mf"] if "merged" in name)
    expected = read_answer(case, "mf", only=answer)
    found = arrays_at(target)
    assert_merged(found, expected)
    suffix = "safetensors" if "safetensors" in case else "ckpt"
    assert objects_at(target).keys() == {f"rank_0/checkpoint_0.{suffix}"}
    assert reshard.verify(target).is_ok


def assert_merged(found, expected):
    """The same names, types and bytes."""
    said = summary_of(found)
    assert said.keys() == expected.keys()
    assert [name for name in said if said[name] != expected[name]] == []


def merged_by_numpy(tensors, called, scaling):
    """W + (B A) scaling, in float32."""
    first, second = LEAVES[called]
    made = {name: array for name, array in tensors.items() if "lora" not in name}
    for name in [name for name in tensors if name.endswith(first)]:
        stem = name.removesuffix(first)
        a, b = tensors[name].astype(np.float32), tensors[stem + second].astype(np.float32)
        weight = tensors[f"{stem}.weight"]
        total = weight.astype(np.float32) + (b @ a) * np.float32(scaling)
        made[f"{stem}.weight"] = total.astype(weight.dtype)
    return made


@pytest.mark.parametrize("case", FAILED_THERE)
def test_where_the_script_failed(case):
    assert case_json(case)["returncode"] != 0
    base, _, tensors = uploaded(case)
    ok(*command_of(case, base))
    called, *_, scaling = FAILED_THERE[case]
    expected, found = merged_by_numpy(tensors, called, scaling), arrays_at(f"{base}/mf/out")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        rounding = 2.0**-7 if array.dtype.itemsize == 2 else 2.0**-20
        near = np.allclose(found[name].astype(np.float32), array.astype(np.float32), rtol=rounding, atol=1e-6)
        assert near, name


def test_the_silent_scaling_of_one_is_refused():
    """The script's default; the documents say alpha / rank, which it cannot know."""
    base, source, _ = uploaded("lora_merge160_default_scaling")
    flags = ["--src_ckpt_path_or_dir", source, "--dst_ckpt_dir", f"{base}/mf/out"]
    done = run("transform-ckpt-lora", *flags)
    assert done.code == 2
    assert "adapter_config.json" in done.err
    assert objects_at(f"{base}/mf/out") == {}
    ok("transform-ckpt-lora", *flags, "--lora_scaling", "16/4", "--prefix", "merged_")
    expected = read_answer("lora_merge160_mindpet_float32_float32", "mf", only="out/merged_lora.ckpt")
    assert_merged(arrays_at(f"{base}/mf/out"), expected)
    assert objects_at(f"{base}/mf/out").keys() == {"rank_0/merged_0.ckpt"}
    assert run("transform-ckpt-lora", *flags, "--lora_scaling", "16/none").code == 2


def distributed():
    """Four ranks and their strategy; ranks 2 and 3 repeat 0 and 1."""
    base, shards = new_place(), FOLDER / DISTRIBUTED / "mf" / "in" / "ckpt"
    for rank in range(4):
        put(
            f"{base}/ckpt/rank_{rank}/checkpoint_{rank}.ckpt",
            (shards / f"rank_{rank % 2}" / f"checkpoint_{rank % 2}.ckpt").read_bytes(),
        )
    strategy = FOLDER / "strategy_llama_lora_dp2mp2" / "strategy" / "ckpt_strategy_rank_0.ckpt"
    put(f"{base}/strategy/ckpt_strategy_rank_0.ckpt", strategy.read_bytes())
    return base


def answer_of_distributed():
    types = {"float32": "F32"}
    said = case_json(DISTRIBUTED)["merged"]
    return {name: (types[dtype], tuple(shape), sha256) for name, (shape, dtype, sha256) in said.items()}


def test_distributed_adapters():
    base = distributed()
    compat.transform_ckpt_lora(
        f"{base}/ckpt", f"{base}/out", src_ckpt_strategy=f"{base}/strategy", lora_scaling=4, save_format="safetensors"
    )
    assert_merged(arrays_at(f"{base}/out"), answer_of_distributed())
    assert reshard.verify(f"{base}/out").is_ok


def test_distributed_adapters_stay_distributed():
    """With a target strategy the script merges rank 0's slice only; here every rank's."""
    base = distributed()
    strategy = f"{base}/strategy/ckpt_strategy_rank_0.ckpt"
    ok(
        "transform-ckpt-lora", "--src_ckpt_path_or_dir", f"{base}/ckpt", "--dst_ckpt_dir", f"{base}/out",
        "--src_ckpt_strategy", strategy, "--dst_ckpt_strategy", strategy, "--lora_scaling", "4",
    )  # fmt: skip
    assert objects_at(f"{base}/out").keys() == {f"rank_{rank}/checkpoint_{rank}.ckpt" for rank in range(4)}
    assert reshard.verify(f"{base}/out").is_ok
    reshard.convert(f"{base}/out", f"{base}/whole", src_strategy=strategy)
    assert_merged(arrays_at(f"{base}/whole"), answer_of_distributed())
