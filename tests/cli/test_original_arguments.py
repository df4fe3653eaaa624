"""Arguments of the original commands as people type them: values, spellings, those without effect and unknown ones."""

from __future__ import annotations

import numpy as np
import pytest
from cli.runner import ok, run
from cli.test_originals import MANIFEST, RANKS, shards, strategy, tensors
from oracle.cases import objects_below
from support.stores import new_place, put, put_model

from reshard import compat
from reshard.compat import weights
from reshard.errors import UsageError

UNIFY = "toolkit/safetensors/unified_safetensors.py"
TRANSFORM = "mindformers/tools/ckpt_transform/transform_checkpoint.py"


# --- flags with a truth value


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], "ms"), (["--reversed", "False"], "ms"), (["--reversed=0"], "ms"),
        (["--reversed"], "hf"), (["--reversed", "True"], "hf"), (["--reversed=true"], "hf"),
        (["--reversed", "1"], "hf"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_reversed_takes_a_value(flags, names, monkeypatch):
    seen = []

    def resolved(request, _on_event):
        seen.append(request.to)
        raise UsageError("seen")

    monkeypatch.setattr(weights, "resolve", resolved)
    source = put_model(f"{new_place()}/a", {"x": np.ones((2, 2), np.float32)}, {"model_type": "llama"})
    run("convert-weight", *flags, "--model", "llama", "--input_path", source, "--output_path", f"{new_place()}/b")
    assert seen == [names]


def test_a_flag_takes_no_other_value():
    done = run("convert-weight", "--reversed", "maybe", "--model", "llama", "--input_path", "a", "--output_path", "b")
    assert (done.code, "maybe" in done.err) == (2, True)


# --- arguments that have no effect here, and unknown ones


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--network", "net"], ["network has no effect: shards are written"]),
        (["--network", "None"], []),
        (["--strict_load"], ["strict_load has no effect: nothing is loaded"]),
        (["--strict_load", "--dec-mode", "AES-GCM"], ["strict_load has no effect", "dec_mode has no effect"]),
        (["--return_param_dict=True"], ["return_param_dict has no effect"]),
        (["--device_id", "0", "--trust-remote-code"], ["device_id has no effect", "trust_remote_code has no effect"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_has_no_effect_is_told(memory, flags, told):
    arguments = ["--unified_safetensors_dir", memory.full, "--predict_strategy", memory.strategy]
    done = ok("load-distributed-checkpoint", *flags, *arguments, "--dst_safetensors_dir", memory.at("out"))
    assert done.out.count("has no effect") == len(told)
    assert all(text in done.out for text in told)


def test_what_has_no_effect_is_told_in_python(memory):
    manifest = compat.load_distributed_checkpoint(
        memory.full, memory.at("out"), memory.strategy, network=object(), strict_load=True, dec_key=None
    )
    notes = [note for note in manifest.conversion.notes if "has no effect" in note]
    assert [note.split()[0] for note in notes] == ["network", "strict_load"]
    manifest = compat.unified_safetensors(
        shards(memory), strategy(memory), memory.at("whole"), split_dst_file=(1, 2), merge_with_redundancy=True
    )
    assert any(note.startswith("split_dst_file has no effect") for note in manifest.conversion.notes)
    assert any(note.startswith("has_redundancy is True") for note in manifest.conversion.notes)


def test_unknown_arguments_are_refused_with_what_is_near(memory):
    places = [shards(memory), strategy(memory), memory.at("whole")]
    with pytest.raises(TypeError, match=r"filter_out_param_prefx .did you mean filter_out_param_prefix"):
        compat.unified_safetensors(*places, filter_out_param_prefx="adam_")
    with pytest.raises(TypeError, match=r"unknown argument prefx .did you mean prefix"):
        compat.transform_checkpoint(memory.full, memory.at("out"), dst_strategy=memory.strategy, prefx="a")
    with pytest.raises(TypeError, match=r"unknown argument zzz$"):
        compat.ckpt_to_safetensors(memory.full, zzz=1)
    with pytest.raises(TypeError, match=r"unknown argument src_strategy_dir .did you mean src_strategy_dirs"):
        compat.merge_pipeline_strategys(src_strategy_dir="a", dst_strategy_file="b")
    with pytest.raises(TypeError, match="missing a required argument: 'output_path'"):
        compat.convert_weight("llama", "a")
    with pytest.raises(TypeError, match="src_strategy_path_or_dir is given twice"):
        compat.transform_checkpoint(
            memory.full, memory.at("out"), src_strategy="a", src_strategy_path_or_dir="b", dst_strategy="c"
        )
    done = run("unified-safetensors", "--filter_out_param_prefx", "adam_")
    assert (done.code, "--filter-out-param-prefix" in done.err) == (2, True)
    assert memory.keys("whole") == memory.keys("out") == []


# --- strategies under the documents' name


def test_src_strategy_path_or_dir_everywhere(memory):
    source, cut = shards(memory), strategy(memory)
    cutting = ["--src_strategy_path_or_dir", cut]
    ok("unified-safetensors", *cutting, "--mindspore_ckpt_dir", source, "--output_dir", memory.at("a"))
    ok("transform-checkpoint", *cutting, "--src_checkpoint", source, "--dst_checkpoint", memory.at("b"))
    ok("convert", *cutting, source, memory.at("c"))
    ok("inspect", *cutting, source)
    ok("plan", *cutting, source, memory.at("d"))
    ok("merge-pipeline-strategys", *cutting, "--dst_strategy_file", memory.at("merged.ckpt"))
    aims = ["--dst_strategy_path_or_dir", cut]
    ok("transform-checkpoint", *aims, "--src_checkpoint", memory.at("a"), "--dst_checkpoint", memory.at("e"))
    ok("load-distributed-checkpoint", *aims, "--unified_safetensors_dir", memory.at("a"), "--dst_safetensors_dir",
       memory.at("f"))  # fmt: skip
    ok("convert", *aims, memory.at("a"), memory.at("g"))
    compat.transform_checkpoint(memory.at("a"), memory.at("h"), dst_strategy_path_or_dir=cut)
    compat.merge_pipeline_strategys(src_strategy_path_or_dir=cut, dst_strategy_file=memory.at("again.ckpt"))
    assert memory.read("again.ckpt") == memory.read("merged.ckpt")
    compat.unified_safetensors(source, src_strategy_path_or_dir=cut, output_dir=memory.at("i"))
    whole = tensors(memory, "a/part0.safetensors")
    for name in ("b/rank_0/checkpoint_0.safetensors", "c/model.safetensors", "i/part0.safetensors"):
        assert tensors(memory, name) == whole
    assert memory.keys("e") == memory.keys("h")


def test_the_older_script_has_other_names(memory):
    ok("python", "mindformers/tools/transform_ckpt.py", "--src_ckpt_strategy", strategy(memory), "--src_ckpt_dir",
       shards(memory), "--dst_ckpt_dir", memory.at("out"), "--prefix", "whole_")  # fmt: skip
    assert memory.keys("out") == ["rank_0/whole_0.safetensors", MANIFEST]


# --- places


@pytest.mark.parametrize(
    "arguments",
    [
        ["--file_path", "SRC", "--save_path", "DST"], ["SRC", "--save_path", "DST"], ["--file_path", "SRC", "DST"],
        ["--file-path=SRC", "--save-path=DST"], ["SRC", "DST"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_places_by_name_or_by_order(memory, arguments):
    words = {"SRC": shards(memory), "DST": memory.at("out")}
    typed = [words.get(word, word.replace("SRC", words["SRC"]).replace("DST", words["DST"])) for word in arguments]
    ok("safetensors-to-ckpt", *typed)
    assert memory.keys("out") == [*(f"rank_{rank}/llama_rank_{rank}-1_10.ckpt" for rank in RANKS), MANIFEST]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--save_path", "b"], ["a", "b", "--file_path", "c"], ["a", "b", "--save_path", "c"]],
    ids=" ".join,
)
def test_each_place_once(arguments):
    done = run("ckpt-to-safetensors", *arguments)
    assert (done.code, "--file_path" in done.err) == (2, True)


def test_flat_folders_there_and_back(any_place):
    before = {}
    for number in range(3):
        data = any_place.read("full/rank_0/full.safetensors")
        any_place.put(f"flat/part{number}.safetensors", data)
        before[f"part{number}.safetensors"] = tensors(any_place, f"flat/part{number}.safetensors")
    any_place.put("flat/deep/other.safetensors", b"not read")
    ok("safetensors-to-ckpt", any_place.at("flat"), any_place.at("as-ckpt"), "--file_name_regex", "part[012]")
    assert any_place.keys("as-ckpt") == [*(f"part{number}.ckpt" for number in range(3)), MANIFEST]
    ok("ckpt-to-safetensors", any_place.at("as-ckpt"))
    found = {name: tensors(any_place, f"as-ckpt/{name}") for name in before}
    assert found == before


def test_objects_beside_ranks_are_told(memory):
    shards(memory)
    memory.put("ckpt/merged.safetensors", memory.read("full/rank_0/full.safetensors"))
    done = ok("safetensors-to-ckpt", memory.at("ckpt"), memory.at("out"))
    assert "objects beside rank*/ are not converted: merged.safetensors" in done.out
    assert "merged.ckpt" not in memory.keys("out")


# --- defaults of the originals that have no meaning here


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["python", UNIFY, "--src_strategy_dirs", "a", "--mindspore_ckpt_dir", "b"], "--output_dir"),
        (["python", TRANSFORM, "--src_checkpoint", "a"], "--dst_checkpoint"),
        (["transform_ckpt_lora.py", "--src_ckpt_path_or_dir", "a"], "--dst_ckpt_dir"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_target_is_asked_for_in_a_sentence(typed, told):
    done = run(*typed)
    assert done.code == 2
    assert f"Missing option '{told}'" in done.err
    assert "default" in done.err
    assert "does not apply" in done.err


# --- ranks


def test_the_rank_of_the_environment(memory, monkeypatch):
    arguments = ["--src_checkpoint", memory.full, "--dst_checkpoint", memory.at("out"),
                 "--dst_strategy", memory.strategy, "--world_size", "4",
                 "--process_num", "2", "--transform_by_rank", "True"]  # fmt: skip
    monkeypatch.setenv("RANK_ID", "2")
    ok("python", TRANSFORM, *arguments)
    assert [key for key in memory.keys("out") if key.endswith(".safetensors")] == [
        f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in (2, 3)
    ]
    monkeypatch.setenv("RANK_ID", "node")
    done = run("python", TRANSFORM, *arguments)
    assert (done.code, "RANK_ID" in done.err) == (2, True)
    monkeypatch.delenv("RANK_ID")
    ok("RANK_ID=0", "python", TRANSFORM, *arguments)
    assert len([key for key in memory.keys("out") if key.endswith(".safetensors")]) == 4


# --- choice_func, output_format, lora_scaling


def test_names_are_chosen_by_a_function(memory):
    answers = {"w": "weight", "norm": False}
    source = shards(memory, extra=lambda _: {"step": np.ones(1), "norm_out": np.ones(1), "a.norm": np.ones(1)})
    compat.unified_safetensors(
        source, strategy(memory), memory.at("whole"), choice_func=lambda name: answers.get(name, True)
    )
    assert tensors(memory, "whole/part0.safetensors").keys() == {"weight"}
    assert tensors(memory, "whole/hyper_param.safetensors").keys() == {"step", "norm_out", "a.norm"}
    with pytest.raises(UsageError, match="choice_func must return True, False or a name"):
        compat.unified_safetensors(source, memory.at("strategy"), memory.at("b"), choice_func=lambda _: None)


def test_a_function_is_asked_about_what_the_shared_options_leave(memory):
    """It is asked once about each name, where headers are read, whatever options chose the objects."""
    unlisted = {"adam_m.w": np.ones(1)}
    source = shards(memory, extra=lambda rank: {"own": np.full(1, rank), **unlisted})
    url, asked = strategy(memory), []

    def choose(name):
        asked.append(name)
        return "mine" if name == "own" else True

    compat.unified_safetensors(
        source, url, memory.at("whole"), choice_func=choose, network_only=True, keep_rank=1, drop=["norm"]
    )
    assert sorted(asked) == ["own", "w"]
    names = [tensors(memory, f"whole/{name}.safetensors").keys() for name in ("hyper_param", "part0")]
    assert set().union(*names) == {"mine", "w"}


def test_a_function_where_both_formats_lie(memory):
    source = shards(memory)
    for rank in range(4):
        name = next(key for key in memory.keys("") if f"rank_{rank}/" in key)
        put_model(memory.at(f"{name.rpartition('.')[0]}.ckpt"), {"w": np.zeros((1, 1), np.float32)})
    choices = {"choice_func": lambda _: True, "load_ckpt_format": "safetensors"}
    compat.unified_safetensors(source, strategy(memory), memory.at("whole"), **choices)
    assert tensors(memory, "whole/part0.safetensors").keys() == {"w", "norm"}


def test_the_format_of_the_output(memory):
    arguments = ["--unified_safetensors_dir", memory.full, "--predict_strategy", memory.strategy]
    ok("load-distributed-checkpoint", *arguments, "--dst_safetensors_dir", memory.at("out"), "--format", "safetensors",
       "--output_format", "ckpt")  # fmt: skip
    assert "rank_3/net.ckpt" in memory.keys("out")


def lora_source():
    base = new_place()
    weight = {"a.weight": np.zeros((2, 2), np.float32)}
    pair = {
        "a.mindpet_delta_lora_a": np.ones((1, 2), np.float32),
        "a.mindpet_delta_lora_b": np.ones((2, 1), np.float32),
    }
    put_model(f"{base}/x/lora.ckpt", weight | pair)
    return base


@pytest.mark.parametrize(("scaling", "value"), [("16/8", 2.0), ("0.5", 0.5), (3, 3.0), ("lora_alpha/lora_rank", 4.0)])
def test_scalings_as_ratios(scaling, value):
    base = lora_source()
    if "alpha" in str(scaling):
        put(f"{base}/x/adapter_config.json", b'{"lora_alpha": 4, "r": 1}')
    compat.transform_ckpt_lora(
        f"{base}/x/lora.ckpt", f"{base}/a", lora_scaling=scaling, save_format="safetensors", prefix="p"
    )
    ok("transform-ckpt-lora", "--src_ckpt_path_or_dir", f"{base}/x/lora.ckpt", "--dst_ckpt_dir", f"{base}/b",
       "--lora_scaling", str(scaling), "--save_format", "safetensors", "--prefix", "p")  # fmt: skip
    for place in ("a", "b"):
        data = objects_below(f"{base}/{place}")["rank_0/p0.safetensors"]
        assert np.frombuffer(data[-16:], np.float32).tolist() == [value] * 4


def test_the_printed_scaling_needs_a_configuration():
    base = lora_source()
    with pytest.raises(UsageError, match=r"adapter_config\.json"):
        compat.transform_ckpt_lora(f"{base}/x/lora.ckpt", f"{base}/a", lora_scaling="lora_alpha/lora_rank")
