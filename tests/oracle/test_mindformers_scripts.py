"""What MindSpore Transformers' own scripts made, and the same command lines given to reshard.

A case is a folder with ``mf/in``, what the script was given, and ``case.json``, which has the command.
``script_outputs.json`` says what the scripts made of it: names, dtypes, shapes and hashes. A file that several
cases share lies in one of them; ``copies.json`` tells where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from cli.runner import Done, run
from oracle.cases import Content, Tensor, memory_url, objects_below, read_any, read_content

from reshard.storage import open_target

FOLDER = Path(__file__).parents[1] / "conformance" / "mindformers"
CASES = sorted(path.parent.name for kind in ("unify", "transform") for path in FOLDER.glob(f"{kind}160_*/case.json"))
MANIFEST = "reshard-manifest.json"

# Cases whose script failed, or whose answer is known to be wrong, and the case that has what is right.
FAILED_THERE = {
    "unify160_nosuffix_fails": "unify160_suffix",
    "unify160_noredund_nometa_flag_True": "unify160_noredund_flag_False",
    "transform160_sh_proc2": "transform160_sh_proc1",
}


@cache
def files_of(name: str) -> dict[str, bytes]:
    """Every file of a case, by its name there."""
    here = {path.relative_to(FOLDER / name).as_posix(): path for path in (FOLDER / name).rglob("*") if path.is_file()}
    for copied, place in json.loads((FOLDER / "copies.json").read_text()).items():
        case, _, file = copied.partition("/")
        if case == name:
            here[file] = FOLDER / place
    return {file: path.read_bytes() for file, path in here.items()}


def uploaded(name: str) -> str:
    """What the script was given, in memory."""
    base = open_target(memory_url(f"scripts-{name.lower().replace('_', '-')}"))
    for file, data in files_of(name).items():
        if file.startswith("mf/in/"):
            base.store.put(base.child(file).key, data)
    return base.url


def command_of(name: str) -> list[str]:
    """The command line, word for word."""
    return json.loads((FOLDER / name / "case.json").read_text())["command"]


def ask(name: str, *more: str) -> tuple[Done, dict[str, bytes]]:
    """Give the command line to reshard; what came of it."""
    base = uploaded(name)
    done = run(*(word.replace("<case>", base) for word in command_of(name)), *more, "--quiet")
    return done, objects_below(f"{base}/mf/out")


def expected_of(name: str) -> dict[str, Content | object]:
    """What the script wrote, without the folders that its documents do not promise."""
    made = json.loads((FOLDER / "script_outputs.json").read_text())[name]
    return {
        file.partition("unified_safe/" if "unified_safe/" in file else "/")[2]: told_of(file, said)
        for file, said in made.items()
    }


def told_of(file: str, said: dict) -> Content | object:
    """What ``script_outputs.json`` says of a file: its tensors, or itself."""
    if file.endswith(".json"):
        return said
    tensors = {name: Tensor(dtype, tuple(shape), sha) for name, (dtype, shape, sha) in said["tensors"].items()}
    return Content(tensors, said.get("metadata", {}), said.get("texts", {}))


def compare(found: Mapping[str, bytes], expected: Mapping[str, Content | object]) -> None:
    """Compare names of objects, and what each says."""
    assert sorted({*found} - {MANIFEST}) == sorted(expected)
    assert MANIFEST in found
    for key, theirs in expected.items():
        ours = read_any(key, found[key])
        if not isinstance(theirs, Content):
            assert ours == theirs
            continue
        assert ours.tensors == theirs.tensors, key
        assert ours.texts == theirs.texts, key
        if not key.endswith(".ckpt"):
            # That redundancy was not removed goes without saying.
            assert theirs.metadata | {"remove_redundancy": "False"} == ours.metadata | {"remove_redundancy": "False"}


def test_all_cases_are_here():
    assert len([name for name in CASES if name.startswith("unify")]) == 9
    assert len([name for name in CASES if name.startswith("transform")]) == 7


@pytest.mark.parametrize("name", [name for name in CASES if name not in FAILED_THERE and "none_none" not in name])
def test_as_the_script_does_it(name):
    done, found = ask(name)
    assert done.code == 0, done.err
    expected = expected_of(name)
    if name == "unify160_filter_layer0":
        # Rank 0's slices of what was filtered out: the script takes them for hyper-parameters.
        raw = expected.pop("hyper_param.safetensors")
        assert all(tensor.startswith("model.layers.0") for tensor in raw.tensors)
    compare(found, expected)


@pytest.mark.parametrize("name", FAILED_THERE)
def test_where_the_script_failed(name):
    assert json.loads((FOLDER / name / "case.json").read_text())["returncode"] != 0
    done, found = ask(name)
    assert done.code == 0, done.err
    compare(found, expected_of(FAILED_THERE[name]))


def test_without_any_strategy_both_refuse():
    theirs = json.loads((FOLDER / "transform160_none_none" / "case.json").read_text())
    assert "cannot both be None" in theirs["error"]
    done, found = ask("transform160_none_none")
    assert (done.code, found) == (2, {})
    assert "cannot both be None" in done.err


@pytest.mark.parametrize("name", [name for name in CASES if "redund" in name])
def test_redundancy_is_told_from_the_headers(name):
    done, _ = ask(name)
    said = name.endswith("True")
    told = next(line for line in done.out.splitlines() if "has_redundancy" in line)
    assert f"has_redundancy is {said};" in told
    assert ("it was removed" in told) == ("noredund" in name)
    assert ("not as given" in told) == (said == ("noredund" in name))


def test_what_is_filtered_out_is_nowhere():
    done, found = ask("unify160_filter_layer0")
    assert "hyper_param.safetensors" not in found
    assert not [name for name in read_content(found["part0.safetensors"]).tensors if name.startswith("model.layers.0")]
    assert "are left out" in done.out


def test_adam_can_be_filtered_out_without_a_trace():
    done, found = ask("unify160_adam_all", "--filter_out_param_prefix", "adam_m", "--filter-out-param-prefix", "adam_v")
    assert done.code == 0, done.err
    whole = expected_of("unify160_adam_all")["part0.safetensors"].tensors
    left = {name: tensor for name, tensor in whole.items() if not name.startswith("adam_")}
    assert 0 < len(left) < len(whole)
    assert read_content(found["part0.safetensors"]).tensors == left
    assert read_content(found["hyper_param.safetensors"]).tensors.keys() == {
        "epoch_num", "global_step", "loss_scale", "step_num",
    }  # fmt: skip
    assert json.loads(found["param_name_map.json"])["weight_map"].keys() == left.keys()


def test_two_processes_share_the_ranks_without_a_race():
    """What the shell script starts: each process writes its own ranks, whichever comes first."""
    name = "transform160_sh_proc2"
    base, expected = uploaded(name), expected_of("transform160_sh_proc1")
    for rank in ("2", "0"):
        words = [word.replace("<case>", base) for word in command_of(name)]
        done = run(*words, "--transform_by_rank", "True", "--rank_id", rank)
        assert done.code == 0, done.err
        assert f"reshard-manifest-ranks_{rank}-{int(rank) + 1}.json" in done.out
    found = objects_below(f"{base}/mf/out")
    assert all(found.pop(f"reshard-manifest-ranks_{span}.json") for span in ("0-1", "2-3"))
    compare(found, expected)
    assert run("verify", f"{base}/mf/out/reshard-manifest-ranks_2-3.json").code == 0
