"""MindSpore's own commands: what each writes where, and what of it is not taken over."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from cli.conftest import CASES
from cli.runner import ok, run
from oracle.cases import Case, read_content
from safetensors.numpy import save
from support.ckpt_parser import parse_ckpt

from reshard import compat
from reshard.cli.app import app
from reshard.errors import UsageError
from reshard.formats.containers import Container
from reshard.formats.mindspore.strategy_file import OperatorItem, StrategyFile
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.planning.limits import requests_for
from reshard.tensor import Layout

MANIFEST = "reshard-manifest.json"
RANKS = range(4)
CUT = Layout((4,), ((0,), ()))


def shards(place, name="ckpt", *, stem="llama_rank_{rank}-1_10", extra=None):
    """Four ranks of a small model, cut by ``strategy/``."""
    for rank in RANKS:
        tensors = {"w": np.full((2, 3), rank, np.float32), "norm": np.ones(3, np.float16)}
        tensors |= {head: value.astype(np.float32) for head, value in (extra(rank) if extra else {}).items()}
        place.put(f"{name}/rank_{rank}/{stem.format(rank=rank)}.safetensors", save(tensors, {"format": "ms"}))
    return place.at(name)


def strategy(place, *names, folder="strategy"):
    layouts = dict.fromkeys(("w", *names), CUT) | {"norm": Layout((4,), ((),))}
    for rank in RANKS:
        data = encode_protobuf(StrategyFile((OperatorItem("MatMul", 0),), layouts))
        place.put(f"{folder}/ckpt_strategy_rank_{rank}.ckpt", data)
    return place.at(folder)


def tensors(place, name):
    return read_content(place.read(name)).tensors


def unify(place, *flags):
    return run(
        "unified-safetensors", "--mindspore_ckpt_dir", shards(place), "--src_strategy_dirs", strategy(place),
        "--output_dir", place.at("whole"), *flags,
    )  # fmt: skip


# --- unified-safetensors


def test_unified_parts_are_where_the_documents_say(any_place):
    done = unify(any_place)
    assert done.code == 0, done.err
    assert any_place.keys("whole") == ["param_name_map.json", "part0.safetensors", MANIFEST]
    assert tensors(any_place, "whole/part0.safetensors")["w"].shape == (8, 3)
    assert "all compared bytes match" in ok("verify", any_place.at("whole")).out


def test_underscores_are_understood(memory):
    arguments = ["--mindspore-ckpt-dir", shards(memory), "--src-strategy-dirs", f"{strategy(memory)}"]
    ok("unified_safetensors", *arguments, "--output-dir", memory.at("whole"), "--max_process_num", "64")
    done = ok("convert", "--src_strategy", memory.at("strategy"), memory.at("ckpt"), memory.at("a.safetensors"))
    assert "a.safetensors" in done.out


@pytest.mark.parametrize("name", ["", "/ckpt_strategy_rank_2.ckpt", "/merged_ckpt_strategy.ckpt"])
def test_any_strategy_that_the_documents_allow(memory, name):
    """The folder holds the merged file too: the tool would make it anew there."""
    folder = strategy(memory)
    ok("merge_pipeline_strategys", folder, f"{folder}/merged_ckpt_strategy.ckpt")
    ok("unified-safetensors", "--mindspore_ckpt_dir", shards(memory), "--src_strategy_dirs", folder + name,
       "--output_dir", memory.at("whole"))  # fmt: skip
    assert tensors(memory, "whole/part0.safetensors")["w"].shape == (8, 3)


def test_buffers_are_left_out_and_told(memory):
    source = shards(memory, extra=lambda rank: {"accu_grads.w": np.full((2, 3), rank), "step": np.ones(1)})
    arguments = ["--mindspore_ckpt_dir", source, "--src_strategy_dirs", strategy(memory)]
    done = ok("unified-safetensors", *arguments, "--output_dir", memory.at("whole"))
    assert tensors(memory, "whole/part0.safetensors").keys() == {"w", "norm"}
    assert tensors(memory, "whole/hyper_param.safetensors").keys() == {"step"}
    assert "gradient-accumulation buffers" in done.out
    assert "accu_grads.w" in done.out


def test_nothing_is_said_of_buffers_where_there_are_none(memory):
    done = unify(memory)
    assert done.code == 0
    assert "accu_grads" not in done.out


@pytest.mark.parametrize(("text", "code"), [("True", 0), ("false", 0), ("1", 0), ("0", 0), ("yes", 0), ("perhaps", 2)])
def test_truth_values(memory, text, code):
    done = unify(memory, "--has_redundancy", text)
    assert done.code == code
    assert (f"has_redundancy is {text in ('True', '1', 'yes')};" in done.out) == (code == 0)


def test_file_suffix_and_format(memory):
    shards(memory, stem="llama_rank_{rank}-1_9", extra=lambda _: {"old": np.ones(1)})
    done = unify(memory)
    assert done.code == 0, done.err
    assert not [key for key in memory.keys("whole") if "hyper" in key]  # 1_10 comes after 1_9
    done = unify(memory, "--file_suffix", "1_9", "--overwrite")
    assert done.code == 0, done.err
    assert tensors(memory, "whole/hyper_param.safetensors").keys() == {"old"}
    assert unify(memory, "--format", "ckpt", "--overwrite").code == 2
    assert unify(memory, "--max_process_num", "-1", "--overwrite").code == 2
    assert unify(memory, "--src_strategy_dirs", "None", "--overwrite").code == 2


# --- transform-checkpoint


def transform(place, *flags):
    return run("transform-checkpoint", "--dst_checkpoint", place.at("out"), *flags)


def test_sliced_and_back(any_place):
    whole = ["--src_checkpoint", any_place.full, "--dst_strategy", any_place.strategy]
    done = transform(any_place, *whole, "--src_strategy", "None", "--world_size", "4", "--process_num", "2")
    assert done.code == 0, done.err
    assert any_place.keys("out") == [*(f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in RANKS), MANIFEST]
    ok("transform-checkpoint", "--src_checkpoint", any_place.at("out"), "--src_strategy", any_place.strategy,
       "--dst_checkpoint_dir", any_place.at("back"), "--format", "ckpt", "--prefix", "net_")  # fmt: skip
    assert any_place.keys("back") == ["rank_0/net_0.ckpt", MANIFEST]
    back = parse_ckpt(any_place.read("back/rank_0/net_0.ckpt"))
    assert back.values.keys() == tensors(any_place, "full/rank_0/full.safetensors").keys()


def test_ckpt_stays_ckpt_and_a_bare_object_is_whole(memory):
    source = f"{memory.full}/rank_0/full.safetensors"
    ok("safetensors-to-ckpt", source, memory.at("bare"))
    done = transform(memory, "--src_checkpoint", memory.at("bare"), "--dst_strategy", memory.strategy)
    assert done.code == 0, done.err
    assert memory.keys("out") == [*(f"rank_{rank}/checkpoint_{rank}.ckpt" for rank in RANKS), MANIFEST]
    done = transform(
        memory, "--src_checkpoint", memory.at("bare/full.ckpt"), "--dst_strategy", memory.strategy, "--overwrite"
    )
    assert done.code == 0, done.err


def test_one_process_share_of_the_ranks(memory):
    arguments = ["--src_checkpoint", memory.full, "--dst_strategy", memory.strategy, "--transform_by_rank", "True"]
    for rank in ("2", "0"):
        done = transform(memory, *arguments, "--rank_id", rank, "--world_size", "4", "--process_num", "2")
        assert done.code == 0, done.err
    assert memory.keys("out") == [
        *(f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in RANKS),
        "reshard-manifest-ranks_0-1.json", "reshard-manifest-ranks_2-3.json", MANIFEST,
    ]  # fmt: skip
    again = [*arguments, "--rank_id", "2", "--process_num", "2"]
    assert "skipped" in transform(memory, *again).out
    done = transform(memory, *again, "--if_exists", "fail")
    assert (done.code, "exist already" in done.err) == (4, True)


def test_without_by_rank_the_rank_chooses_nothing(memory):
    done = transform(memory, "--src_checkpoint", memory.full, "--dst_strategy", memory.strategy, "--rank_id", "2")
    assert done.code == 0, done.err
    assert len(memory.keys("out")) == 5


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--world_size", "8"], "the target strategy has 4"),
        (["--transform_by_rank", "1", "--process_num", "3"], "cannot be shared evenly by 3"),
        (["--transform_by_rank", "1", "--rank_id", "3", "--process_num", "2"], "a process writes 2 ranks"),
        (["--transform_by_rank", "1", "--rank_id", "1"], "a process writes 4 ranks"),
        (["--dst_strategy", "None"], "cannot both be None"),
        (["--dst_strategy", ""], "cannot both be None"),
    ],
    ids=" ".join,
)
def test_transform_flags_that_make_no_sense(memory, flags, told):
    done = transform(memory, "--src_checkpoint", memory.full, "--dst_strategy", memory.strategy, *flags)
    assert (done.code, told in done.err) == (2, True), done.err
    assert memory.keys("out") == []


def test_buffers_without_a_layout_are_dropped_others_refused(memory):
    source = shards(memory, extra=lambda rank: {"accu_grads.w": np.full((2, 3), rank)})
    before, after = strategy(memory, "accu_grads.w", folder="before"), strategy(memory, folder="after")
    arguments = ["--src_checkpoint", source, "--src_strategy", before, "--dst_strategy"]
    done = transform(memory, *arguments, after)
    assert done.code == 0, done.err
    assert "gradient-accumulation buffers" in done.out
    assert tensors(memory, "out/rank_1/checkpoint_1.safetensors").keys() == {"w", "norm"}
    done = transform(memory, *arguments, before, "--overwrite")
    assert done.code == 0, done.err
    assert "accu_grads.w" in tensors(memory, "out/rank_1/checkpoint_1.safetensors")
    done = transform(memory, *arguments, "None", "--overwrite")
    assert done.code == 0, done.err
    assert tensors(memory, "out/rank_0/checkpoint_0.safetensors")["accu_grads.w"].shape == (8, 3)


def test_other_cut_tensors_without_a_layout_are_an_error(memory):
    source = shards(memory, extra=lambda rank: {"adam_m.w": np.full((2, 3), rank)})
    before, after = strategy(memory, "adam_m.w", folder="before"), strategy(memory, folder="after")
    done = transform(memory, "--src_checkpoint", source, "--src_strategy", before, "--dst_strategy", after)
    assert (done.code, "adam_m.w" in done.err) == (4, True)
    ok("transform-checkpoint", "--src_checkpoint", source, "--src_strategy", before, "--dst_strategy", after,
       "--dst_checkpoint", memory.at("out"), "--drop", "adam_m.*")  # fmt: skip


# --- load-distributed-checkpoint


def test_ranks_named_net(any_place):
    ok("load-distributed-checkpoint", "--unified_safetensors_dir", any_place.full, "--predict_strategy",
       any_place.strategy, "--dst_safetensors_dir", any_place.at("out"), "--max_process_num", "64")  # fmt: skip
    assert any_place.keys("out") == [*(f"rank_{rank}/net.safetensors" for rank in RANKS), MANIFEST]


def test_one_rank_after_the_other(memory):
    arguments = ["--unified_safetensors_dir", memory.full, "--dst_safetensors_dir", memory.at("out")]
    for rank in ("3", "1"):
        ok("load-distributed-checkpoint", *arguments, "--predict_strategy", memory.strategy, "--rank_id", rank,
           "--format", "ckpt")  # fmt: skip
    assert memory.keys("out") == [
        "rank_1/net.ckpt", "rank_3/net.ckpt", "reshard-manifest-ranks_1.json", "reshard-manifest-ranks_3.json",
    ]  # fmt: skip
    assert run("verify", memory.at("out/reshard-manifest-ranks_3.json")).code == 0
    done = run("load-distributed-checkpoint", *arguments, "--rank_id", "1")
    assert (done.code, "--predict_strategy" in done.err) == (2, True)
    ok("load-distributed-checkpoint", *arguments[:-1], memory.at("one"), "--rank_id", "0")
    assert memory.keys("one") == ["rank_0/net.safetensors", MANIFEST]


def test_the_name_map_is_the_other_way_round(memory):
    """MindSpore's own case, with its own map."""
    case = CASES / "lds_single_file_name_map"
    call = json.loads((case / "case.json").read_text())["calls"][0]["kwargs"]
    for path in sorted(case.rglob("*")):
        if path.is_file() and path.parts[len(case.parts)] in ("in", "strategy"):
            memory.put(f"case/{path.relative_to(case).as_posix()}", path.read_bytes())
    names = memory.put("names.json", json.dumps(call["name_map"]).encode())
    ok("load_distributed_checkpoint", "--unified_safetensors_dir", memory.at(f"case/{call['unified_safetensors_dir']}"),
       "--predict_strategy", memory.at(f"case/{call['predict_strategy']}"), "--dst_safetensors_dir", memory.at("out"),
       "--name_map", names)  # fmt: skip
    expected = Case.named(case.name).below("expected")
    assert len(expected) == 2
    for name in expected:
        made = tensors(memory, f"out/{name.removeprefix('expected/')}")
        assert made == Case.named(case.name).content(name).tensors


def test_two_names_for_one_tensor_are_refused(memory):
    names = memory.put("names.json", b'{"a": "lm_head.weight", "b": "lm_head.weight"}')
    done = run("load-distributed-checkpoint", "--unified_safetensors_dir", memory.full, "--dst_safetensors_dir",
               memory.at("out"), "--name_map", names)  # fmt: skip
    assert (done.code, "lm_head.weight: a, b" in done.err) == (2, True)


# --- merge-pipeline-strategys


def test_merged_under_both_kinds_of_arguments(memory):
    folder = strategy(memory)
    ok("merge-pipeline-strategys", folder, memory.at("a.ckpt"))
    ok("merge_pipeline_strategys", "--src-strategy-dirs", folder, "--dst_strategy_file", memory.at("b.ckpt"))
    assert memory.read("a.ckpt") == memory.read("b.ckpt")
    assert run("merge-pipeline-strategys", folder, memory.at("a.ckpt")).code == 4
    ok("merge-pipeline-strategys", folder, memory.at("a.ckpt"), "--overwrite")


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "--src_strategy_dirs", "c"], ["--dst_strategy_file", "c"]])
def test_each_place_once(arguments):
    assert run("merge-pipeline-strategys", *arguments).code == 2


# --- ckpt-to-safetensors, safetensors-to-ckpt


def test_one_object_in_place_and_elsewhere(any_place):
    source = f"{any_place.full}/rank_0/full.safetensors"
    before = tensors(any_place, "full/rank_0/full.safetensors")
    ok("safetensors-to-ckpt", source)
    assert any_place.keys("full") == [f"rank_0/full{end}" for end in (".ckpt", ".ckpt.manifest.json", ".safetensors")]
    ok("ckpt-to-safetensors", f"{any_place.full}/rank_0/full.ckpt", any_place.at("back"), "--processes_num", "4")
    assert any_place.keys("back") == ["full.safetensors", "full.safetensors.manifest.json"]
    back = read_content(any_place.read("back/full.safetensors"))
    assert (dict(back.tensors), back.metadata) == (dict(before), {"format": "ms"})
    assert "all compared bytes match" in ok("verify", any_place.at("back/full.safetensors")).out


def test_a_tree_in_place_there_and_back(any_place):
    shards(any_place)
    any_place.put("ckpt/notes.txt", b"mine")
    names = [f"rank_{rank}/llama_rank_{rank}-1_10" for rank in RANKS]
    before = {name: tensors(any_place, f"ckpt/{name}.safetensors") for name in names}
    ok("safetensors-to-ckpt", any_place.at("ckpt"))
    manifest = "reshard-manifest-ckpt.json"
    assert sorted(any_place.keys("ckpt")) == sorted(
        ["notes.txt", manifest, *(name + end for name in names for end in (".ckpt", ".safetensors"))]
    )
    assert "skipped" in ok("safetensors-to-ckpt", any_place.at("ckpt")).out
    done = run("safetensors-to-ckpt", any_place.at("ckpt"), "--if_exists", "fail")
    assert (done.code, "5 of 5 outputs exist already" in done.err) == (4, True)
    ok("safetensors-to-ckpt", any_place.at("ckpt"), "--overwrite")
    ok("verify", any_place.at(f"ckpt/{manifest}"))
    # Back over the sources of the first: they are outputs now, and must be asked for.
    assert run("ckpt-to-safetensors", any_place.at("ckpt")).code == 4
    ok("ckpt-to-safetensors", any_place.at("ckpt"), any_place.at("back"), "--processes_num", "2")
    assert any_place.keys("back") == [*(f"{name}.safetensors" for name in names), MANIFEST]
    assert {name: tensors(any_place, f"back/{name}.safetensors") for name in names} == before


def test_what_another_conversion_left_stays(memory):
    """Its manifest stays true, and what it wrote is read, not removed."""
    ok("convert", memory.full, memory.at("ranks"), "--dst-strategy", memory.strategy)
    before = {key: memory.read(f"ranks/{key}") for key in memory.keys("ranks")}
    ok("safetensors-to-ckpt", memory.at("ranks"))
    ok("safetensors-to-ckpt", memory.at("ranks"), "--overwrite")
    after = {key: memory.read(f"ranks/{key}") for key in memory.keys("ranks")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 5
    ok("verify", memory.at("ranks"))


def test_names_are_mapped_in_every_object(memory):
    names = memory.put("names.json", b'{"w": "weight", "absent": "x"}')
    done = ok("safetensors-to-ckpt", shards(memory), memory.at("out"), "--name_map", names)
    assert "1 renames match no tensor: absent" in done.out
    for rank in RANKS:
        values = parse_ckpt(memory.read(f"out/rank_{rank}/llama_rank_{rank}-1_10.ckpt")).values
        assert values.keys() == {"weight", "norm"}
        assert values["weight"].data == np.full((2, 3), rank, np.float32).tobytes()
    clashing = memory.put("clashing.json", b'{"w": "norm"}')
    done = run("safetensors-to-ckpt", memory.at("ckpt"), memory.at("b"), "--name_map", clashing)
    assert done.code == 4
    assert done.err.count("'norm' is the new name of") == 4
    done = ok("safetensors-to-ckpt", memory.at("ckpt/rank_0/llama_rank_0-1_10.safetensors"), memory.at("c"),
              "--name_map", names, "--drop", "norm")  # fmt: skip
    assert parse_ckpt(memory.read("c/llama_rank_0-1_10.ckpt")).values.keys() == {"weight"}


def test_objects_chosen_by_name(memory):
    shards(memory, stem="llama_rank_{rank}-1_9")
    ok("safetensors-to-ckpt", shards(memory), memory.at("out"), "--file_name_regex", "1_9")
    assert memory.keys("out") == [*(f"rank_{rank}/llama_rank_{rank}-1_9.ckpt" for rank in RANKS), MANIFEST]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["ckpt/rank_0/llama_rank_0-1_10.ckpt"], 5, "does not exist"),
        (["full/rank_0/full.safetensors"], 2, "expected a .ckpt object"),
        (["full"], 3, "rank*/*.ckpt"),
        (["ckpt", "out.safetensors"], 2, "expected a prefix"),
        (["x.ckpt", "out", "--file_name_regex", "a"], 2, "is one object"),
        (["ckpt", "out", "--file_name_regex", "("], 2, "not a regular expression"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_rewritten(memory, arguments, code, told):
    shards(memory)
    urls = [memory.at(word) if number < 2 else word for number, word in enumerate(arguments)]
    done = run("ckpt-to-safetensors", *urls)
    assert (done.code, told in done.err) == (code, True), done.err


def test_text_stays_in_ckpt(memory):
    frame = Container.CKPT.definition.make_frame([], {}, {"note": "a text"})
    data = bytearray(frame.nbytes)
    for place, known in frame.literals:
        data[place : place + len(known)] = known
    memory.put("in/a.ckpt", bytes(data))
    done = run("ckpt-to-safetensors", memory.at("in/a.ckpt"))
    assert (done.code, "note" in done.err) == (4, True)
    ok("ckpt-to-safetensors", memory.at("in/a.ckpt"), "--drop", "note")


# --- options in errors and notes


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--prefix", "a/b"], "--prefix a/b: expected the start of a name"),
        (["--memory", "lots"], "--memory lots: expected bytes"),
        (["--rank_id", "x"], "--rank_id"),
        (["--keep-rank", "9"], "--keep-rank"),
    ],
    ids=" ".join,
)
def test_options_are_spelled_as_the_command_has_them(memory, flags, told):
    done = transform(memory, "--src_checkpoint", memory.full, "--dst_strategy", memory.strategy, *flags)
    assert done.code != 0
    assert told in done.err


@pytest.mark.parametrize(
    ("command", "option", "flag"),
    [
        ("transform-checkpoint", ("src_strategy", "S"), "--src_strategy S"),
        ("transform-checkpoint", ("dst_checkpoint", None), "--dst_checkpoint"),
        ("transform-checkpoint", ("remove_redundancy", None), "--remove-redundancy of `reshard convert`"),
        ("ckpt-to-safetensors", ("file_path", None), "SRC"),
        ("convert-weight", ("num_attention_heads", "8"), "--num_attention_heads 8"),
        ("convert", ("src_strategy", "S"), "--src-strategy S"),
        ("convert", ("dst", None), "DST"),
    ],
)
def test_each_command_spells_options_its_own_way(command, option, flag):
    assert typer.main.get_command(app).get_command(None, command).spell(*option) == flag


def test_the_library_spells_the_functions_own_arguments(memory):
    with pytest.raises(UsageError, match=r"^`src_strategy_dirs` .* cut the shards|`src_strategy_dirs`"):
        compat.unified_safetensors(shards(memory), "None", memory.at("whole"))
    with pytest.raises(UsageError, match="rank_id='3' needs `predict_strategy`"):
        compat.load_distributed_checkpoint(memory.full, memory.at("out"), rank_id=3)


# --- the library


def test_numbers_of_processes():
    assert [requests_for(count) for count in (None, 0, 1, 2, 8, 64, 1000)] == [None, None, None, 16, 64, 64, 64]


def test_one_prefix_as_a_text(memory):
    source = shards(memory, extra=lambda rank: {"adam_m.w": np.full((2, 3), rank)})
    manifest = compat.unified_safetensors(
        source, strategy(memory, "adam_m.w"), memory.at("whole"), filter_out_param_prefix="adam_"
    )
    assert sorted(receipt.key for receipt in manifest.receipts) == ["param_name_map.json", "part0.safetensors"]
    assert tensors(memory, "whole/part0.safetensors").keys() == {"w", "norm"}


def test_a_source_that_an_earlier_conversion_left_is_not_removed(memory):
    ok("convert", memory.full, memory.at("there"))
    done = run("convert", memory.at("there/model.safetensors"), memory.at("there"), "--prefix", "net_", "--overwrite")
    assert (done.code, "the source of this one" in done.err) == (4, True)
    assert "model.safetensors" in memory.keys("there")
