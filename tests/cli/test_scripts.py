"""Scripts of MindSpore Transformers in the place of commands."""

from __future__ import annotations

import os

import pytest
from cli.runner import ok, run
from cli.test_originals import MANIFEST, RANKS

from reshard.cli.scripts import as_command

UNIFY = "toolkit/safetensors/unified_safetensors.py"
TRANSFORM = "mindformers/tools/ckpt_transform/transform_checkpoint.py"
SHELL = "mindformers/tools/ckpt_transform/transform_checkpoint.sh"


# --- what stands before a script, and which it is


@pytest.mark.parametrize(
    "before",
    [[], ["python"], ["python3"], ["python3.11", "-u"], ["/usr/bin/python"], ["nohup", "python", "-u"],
     ["env", "A=1", "python"], ["A=1", "python"], ["python", "-W", "ignore", "-X", "utf8"]],
    ids=" ".join,
)  # fmt: skip
def test_what_people_type_before_a_script(before, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert as_command([*before, UNIFY, "--output_dir", "o"]) == ["unified-safetensors", "--output_dir", "o"]
    assert os.environ == ({"A": "1"} if "A=1" in before else {})


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("unified_safetensors.py", "unified-safetensors"),
        ("./transform_checkpoint.py", "transform-checkpoint"),
        ("mindformers/tools/transform_ckpt.py", "transform-checkpoint"),
        ("/work/mindformers/tools/transform_ckpt_lora.py", "transform-ckpt-lora"),
        ("convert_weight.py", "convert-weight"),
    ],
)
def test_a_script_is_told_by_its_name_wherever_it_is(script, command):
    assert as_command([script, "--x", "1"]) == [command, "--x", "1"]
    assert as_command(["python", script, "--x", "1"]) == [command, "--x", "1"]


def test_a_module_is_a_script():
    assert as_command(["python", "-m", "mindformers.tools.transform_ckpt_lora", "--x"]) == [
        "transform-ckpt-lora",
        "--x",
    ]


@pytest.mark.parametrize(
    "typed", [["python", "run_mindformer.py", "--config", "x.yaml"], ["bash", "scripts/msrun_launcher.sh"],
              ["train.py"], ["python"], ["python", "-c", "1"]],
    ids=" ".join,
)  # fmt: skip
def test_other_scripts_are_refused_with_those_that_are_known(typed):
    done = run(*typed)
    assert (done.code, done.out) == (2, "")
    assert "no command for this script" in done.err
    assert "transform_checkpoint.sh" in done.err


def test_commands_are_no_scripts():
    assert as_command(["inspect", "run.py"]) == ["inspect", "run.py"]
    assert "No such command" in run("inspct", "a").err


# --- transform_checkpoint.sh


def test_arguments_by_their_order(place):
    typed = [place.full, "None", place.at("out"), place.strategy, "4", "2"]
    ok("bash", SHELL, *typed)
    assert place.keys("out") == [*(f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in RANKS), MANIFEST]
    ok(
        "transform_checkpoint.sh",
        place.at("out"),
        place.strategy,
        place.at("back"),
        "None",
        "1",
        "1",
        "net_",
        "--quiet",
    )
    assert place.keys("back") == ["rank_0/net_0.safetensors", MANIFEST]


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_too_few_or_too_many(count):
    done = run("bash", SHELL, *map(str, range(count)))
    assert done.code == 2
    assert f"expected 6 or 7 arguments, found {count}" in done.err
    assert "src_checkpoint src_strategy dst_checkpoint_dir dst_strategy world_size" in done.err


def test_the_number_of_ranks_is_compared(memory):
    done = run("bash", SHELL, memory.full, "None", memory.at("out"), memory.strategy, "8", "2")
    assert (done.code, "the target strategy has 4" in done.err) == (2, True)


# --- scripts of models


@pytest.mark.parametrize(
    ("script", "model"),
    [
        ("research/deepseek3/convert_weight.py", "deepseek3"),
        ("research/qwen2_5/convert_weight.py", "qwen2_5"),
        ("mindformers/models/llama/convert_weight.py", "llama"),
        ("research/llama3_1/convert_weight.py", "llama"),
        ("mindformers/models/qwen3_moe/utils/convert_weight.py", "qwen3-moe"),
    ],
)
def test_the_folder_tells_the_model(script, model):
    given = ["--input_path", "a", "--output_path", "b"]
    assert as_command([script, *given]) == ["convert-weight", "--model", model, *given]
    assert as_command([script, "--model", "mixtral", *given]) == ["convert-weight", "--model", "mixtral", *given]
    assert as_command([script, "--model=mixtral", *given])[1:] == ["--model=mixtral", *given]
    reverse = script.replace("convert_weight", "convert_reversed")
    assert as_command([reverse, *given]) == ["convert-weight", "--model", model, "--reversed", *given]


def test_places_by_what_lies_there():
    given = ["--torch_ckpt_path", "hf", "--mindspore_ckpt_path=ms"]
    forwards = as_command(["research/deepseek3/convert_weight.py", *given])
    assert forwards[3:] == ["--input_path", "hf", "--output_path=ms"]
    backwards = as_command(["research/deepseek3/convert_reversed.py", *given])
    assert backwards[3:] == ["--reversed", "--output_path", "hf", "--input_path=ms"]


def test_another_folder_needs_the_model():
    done = run("research/telechat2/convert_weight.py", "--input_path", "a", "--output_path", "b")
    assert (done.code, "--model" in done.err, "llama" in done.err) == (2, True, True)
    done = run("research/telechat2/convert_weight.py", "--input_path", "a", "--output_path", "b", "--model", "telechat")
    assert (done.code, "there are no rules for it" in done.err) == (2, True)
