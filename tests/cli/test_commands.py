"""Every command on local paths, memory and S3: what it prints where, and what it leaves."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from cli.conftest import CASES
from cli.runner import ok, run
from oracle.cases import read_content
from safetensors.numpy import save
from support.recording_store import RecordingStore

import reshard
from reshard.api import contents
from reshard.planning.conversion import MANIFEST_KEY
from reshard.storage import Location

RANKS = [f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in range(4)]
MANIFEST = "reshard-manifest.json"
LAYOUT = """
axes: {dp: 2, mp: 2}
rules:
  - {match: ["*.w1.weight", "*.wo.weight"], split: [null, mp]}
  - {match: "*.embedding_weight", split: [mp, null]}
  - {match: "*", split: []}
"""


def test_there_and_back(any_place):
    done = ok("convert", any_place.full, any_place.at("ranks"), "--dst-strategy", any_place.strategy)
    assert any_place.keys("ranks") == [*RANKS, MANIFEST]
    assert all(key in done.out for key in RANKS)
    *phases, pace = done.err.splitlines()
    assert phases == ["headers", "transfer", "commit"]
    assert re.fullmatch(r"51\.1 KiB in [\d.]+ s, [\d.]+ .iB/s, .*verified", pace)
    assert "all compared bytes match" in ok("verify", any_place.at("ranks")).out
    assert "all compared bytes match" in ok("verify", any_place.at(f"ranks/{MANIFEST}")).out
    ok("convert", any_place.at("ranks"), any_place.at("again"), "--src-strategy", any_place.strategy, "--quiet")
    assert any_place.keys("again") == ["model.safetensors", MANIFEST]
    again = read_content(any_place.read("again/model.safetensors"))
    before = read_content(any_place.read("full/rank_0/full.safetensors"))
    assert again.tensors == before.tensors
    assert again.order == before.order
    assert again.metadata == {"format": "pt"}


def test_to_one_object_and_to_mindspores_form(place):
    ok("convert", place.full, place.at("one.safetensors"))
    ok("convert", place.full, place.at("ms"), "--prefix", "net_")
    ok("convert", place.full, place.at("named"), "--prefix", "net.safetensors")
    assert set(place.keys()) >= {"one.safetensors", "one.safetensors.manifest.json"}
    assert place.keys("ms") == ["rank_0/net_0.safetensors", MANIFEST]
    assert place.keys("named") == ["rank_0/net.safetensors", MANIFEST]
    assert read_content(place.read("ms/rank_0/net_0.safetensors")).metadata == {"format": "ms"}
    assert "all compared bytes match" in ok("verify", place.at("one.safetensors")).out


def test_layout_file(place):
    layout = place.put("layout.yaml", LAYOUT.encode())
    ok("convert", place.full, place.at("ranks"), "--dst-layout", layout)
    assert place.keys("ranks") == [*RANKS, MANIFEST]
    assert place.read(f"ranks/{RANKS[0]}") == place.read(f"ranks/{RANKS[2]}") != place.read(f"ranks/{RANKS[1]}")
    ok("convert", place.at("ranks"), place.at("again.safetensors"), "--src-layout", layout)
    again = read_content(place.read("again.safetensors"))
    assert again.tensors == read_content(place.read("full/rank_0/full.safetensors")).tensors


def test_ranks_and_prefix(memory):
    ok("convert", memory.full, memory.at("a"), "--dst-strategy", memory.strategy, "--ranks", "1,3", "--prefix", "net_")
    assert memory.keys("a") == [
        "rank_1/net_1.safetensors",
        "rank_3/net_3.safetensors",
        "reshard-manifest-ranks_1_3.json",
    ]
    named = ["--dst-strategy", memory.strategy, "--ranks", "0-1", "--prefix", "llama_{rank}_of_4"]
    ok("convert", memory.full, memory.at("b"), *named)
    objects = ["rank_0/llama_0_of_4.safetensors", "rank_1/llama_1_of_4.safetensors"]
    assert memory.keys("b") == [*objects, "reshard-manifest-ranks_0-1.json"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--ranks", "4"], "0..3"),
        (["--ranks", "2-9"], "0..3"),
        (["--ranks", "3-2"], "3-2"),
        (["--ranks", "a"], "like 0-7,16"),
        (["--ranks", ""], "like 0-7,16"),
        (["--prefix", "a/b"], "no /"),
        (["--prefix", "{stage}_"], "{rank}"),
        (["--memory", "lots"], "like 256MiB"),
        (["--memory", "-1"], "like 256MiB"),
        (["--memory", "1e9"], "like 256MiB"),
        (["--memory", "10TB"], "like 256MiB"),
        (["--memory", "0"], "at least one byte"),
        (["--dst-layout", "x.yaml"], "Choose one"),
    ],
    ids=" ".join,
)
def test_flags_that_make_no_sense(memory, flags, told):
    done = run("convert", memory.full, memory.at("a"), "--dst-strategy", memory.strategy, *flags)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert done.err.splitlines()[-1] != "headers"
    assert memory.keys("a") == []


def test_flags_that_need_others(memory):
    for arguments in (["convert"], ["convert", memory.full], ["convert", "--memory", "1GiB"]):
        assert "convert needs SRC and DST, or --plan" in run(*arguments).err
    assert "target strategy or layout" in run("plan", memory.full, memory.at("a"), "--ranks", "0").err
    done = run("convert", memory.full, memory.at("a.safetensors"), "--dst-strategy", memory.strategy)
    assert (done.code, "need a prefix" in done.err) == (2, True)


def test_overwrite(any_place):
    command = ["convert", any_place.full, any_place.at("ranks"), "--dst-strategy", any_place.strategy]
    ok(*command)
    before = {key: any_place.read(f"ranks/{key}") for key in RANKS}
    any_place.put(f"ranks/{RANKS[2]}", b"damaged")
    done = run(*command)
    assert done.code == 4
    assert "objects were changed since this conversion was finished" in done.err
    assert [key for key in RANKS if key in done.err] == [RANKS[2]]
    assert "--overwrite" in done.err
    refused = run(*command, "--if-exists", "fail")
    assert (refused.code, "5 of 5 outputs exist already" in refused.err) == (4, True)
    assert all(key in refused.err for key in RANKS)
    assert any_place.read(f"ranks/{RANKS[2]}") == b"damaged"
    ok(*command, "--overwrite")
    assert {key: any_place.read(f"ranks/{key}") for key in RANKS} == before
    assert "skipped" not in ok(*command, "--if-exists", "replace").out


def test_what_is_finished_is_left_as_it_is(any_place):
    command = ["convert", any_place.full, any_place.at("ranks"), "--dst-strategy", any_place.strategy]
    first = ok(*command, "--output", "json").json
    before = any_place.read(f"ranks/{MANIFEST}")
    again = ok(*command, "--output", "json", "--memory", "64MiB").json
    assert (first.pop("state"), again.pop("state")) == ("converted", "skipped")
    assert (first, before) == (again, any_place.read(f"ranks/{MANIFEST}"))
    assert "skipped" in ok(*command).out


def test_another_conversion_is_not_taken_for_a_finished_one(any_place):
    command = ["convert", any_place.full, any_place.at("ranks"), "--dst-strategy", any_place.strategy]
    ok(*command)
    for other in (["--dtype", "bf16"], ["--drop", "lm_head.weight"], ["--remove-redundancy"]):
        done = run(*command, *other)
        assert (done.code, "outputs exist already" in done.err) == (4, True), other


def test_missing_outputs_are_made_again(any_place):
    command = ["convert", any_place.full, any_place.at("ranks"), "--dst-strategy", any_place.strategy]
    ok(*command)
    before = any_place.read(f"ranks/{RANKS[1]}")
    any_place.delete(f"ranks/{RANKS[1]}")
    done = ok(*command)
    assert "1 of 4 outputs of an earlier run are missing" in done.err
    assert any_place.read(f"ranks/{RANKS[1]}") == before
    assert any_place.keys("ranks") == [*RANKS, MANIFEST]


def test_what_lies_in_the_target_already_is_left_alone(place):
    place.put("ranks/notes.txt", b"mine")
    ok("convert", place.full, place.at("ranks"), "--dst-strategy", place.strategy)
    assert place.read("ranks/notes.txt") == b"mine"
    place.put("mixed/rank_9/other.safetensors", b"another checkpoint")
    done = run("convert", place.full, place.at("mixed"), "--dst-strategy", place.strategy)
    assert (done.code, "rank_9/other.safetensors" in done.err) == (4, True)
    assert place.keys("mixed") == ["rank_9/other.safetensors"]


def test_target_inside_source(any_place):
    for target in (
        any_place.full,
        f"{any_place.full}/",
        f"{any_place.full}/ranks",
        f"{any_place.full}/rank_0",
        f"{any_place.full}//x",
    ):
        done = run("convert", any_place.full, target, "--dst-strategy", any_place.strategy)
        assert (done.code, "inside SRC" in done.err) == (2, True), target
    assert any_place.keys("full") == ["rank_0/full.safetensors"]
    ok("convert", any_place.full, f"{any_place.full}er", "--dst-strategy", any_place.strategy)


def test_source_inside_target_is_never_replaced(place):
    """Beside is allowed; on top of the source is not, even with --overwrite."""
    done = run("convert", f"{place.full}/rank_0", place.full, "--prefix", "full.safetensors", "--overwrite")
    assert (done.code, "rank_0/full.safetensors" in done.err) == (4, True)
    assert place.keys("full") == ["rank_0/full.safetensors"]


@pytest.mark.parametrize(
    ("source", "with_strategy"),
    [("full", False), ("full/rank_0/full.safetensors", False), ("hf", False), ("ranks", False), ("ranks", True)],
)
def test_inspect_reads_headers_only(memory, monkeypatch, source, with_strategy):
    ok("convert", memory.full, memory.at("ranks"), "--dst-strategy", memory.strategy)
    memory.remove(f"ranks/{MANIFEST_KEY}")
    indexed(memory)
    stores = []

    def recorded(url):
        place = open_source(url)
        stores.append(RecordingStore(place.store))
        return Location(stores[-1], place.key)

    open_source = contents.open_source
    monkeypatch.setattr(contents, "open_source", recorded)
    flags = ["--src-strategy", memory.strategy] if with_strategy else []
    text = ok("inspect", memory.at(source), *flags)
    (store,) = stores
    headers = header_bytes(memory, source)
    assert store.figures.read_bytes == headers
    assert f"{headers} bytes of headers" in text.out
    assert text.err == ""
    assert ok("inspect", memory.at(source), *flags, "--output", "json").json["header_bytes"] == headers


def header_bytes(place, source):
    """Counted by hand: every object's header, and the index."""
    root = "" if source.endswith(".safetensors") else f"{source}/"
    names = [source] if not root else [f"{root}{key}" for key in place.keys(source)]
    total = 0
    for name in names:
        data = place.read(name)
        if name.endswith(".safetensors"):
            total += 8 + int.from_bytes(data[:8], "little")
        elif name.endswith(".index.json"):
            total += len(data)
    return total


def indexed(place):
    """The full checkpoint as two objects with Hugging Face's index."""
    weight_map = {}
    for number in (1, 2):
        name = f"model-{number:05d}-of-00002.safetensors"
        weight_map |= {f"t{number}.{i}": name for i in range(3)}
        place.put(f"hf/{name}", save({f"t{number}.{i}": np.zeros((4, 4), np.float32) for i in range(3)}))
    place.put("hf/model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


def test_inspect_tells_what_is_there(memory):
    done = ok("inspect", memory.full)
    assert "one rank's safetensors object" in done.out
    assert "F32 x 6, I32 x 4, F16 x 4, BF16 x 3, I8 x 3" in done.out
    assert "format=ms" in done.out
    assert "rank_0/full.safetensors" in done.out
    assert "lm_head.weight" in done.out
    body = ok("inspect", memory.full, "--output", "json").json
    told = [
        "url",
        "kind",
        "objects",
        "tensors",
        "metadata",
        "notes",
        "header_bytes",
        "texts",
        "dropped",
        "training_state",
    ]
    assert list(body) == told
    assert body["objects"][0]["key"] == "rank_0/full.safetensors"
    assert {"name": "lm_head.weight", "dtype": "I8", "shape": [48, 32], "nbytes": 1536} in body["tensors"]
    assert len(body["tensors"]) == 20
    assert body["metadata"] == {"format": "ms"}


def test_inspect_lists_as_many_tensors_as_wanted(memory):
    assert "... and 17 more" in ok("inspect", memory.full, "--tensors", "3").out
    assert "more" not in ok("inspect", memory.full, "--tensors", "0").out


def test_inspect_shards_with_and_without_strategy(memory):
    ok("convert", memory.full, memory.at("ranks"), "--dst-strategy", memory.strategy)
    known = ok("inspect", memory.at("ranks"), "--output", "json").json
    memory.remove(f"ranks/{MANIFEST_KEY}")
    apart = ok("inspect", memory.at("ranks"), "--output", "json").json
    joined = ok("inspect", memory.at("ranks"), "--src-strategy", memory.strategy, "--output", "json").json
    assert len(apart["tensors"]) == 80
    assert {"name": "rank_3/lm_head.weight", "dtype": "I8", "shape": [12, 32], "nbytes": 384} in apart["tensors"]
    assert {"name": "lm_head.weight", "dtype": "I8", "shape": [48, 32], "nbytes": 1536} in joined["tensors"]
    assert len(joined["tensors"]) == 20
    assert joined["tensors"] == known["tensors"]  # the manifest said the same
    assert any("not compared" in note for note in joined["notes"])


def test_json_of_convert_and_verify(any_place):
    done = ok(
        "convert", any_place.full, any_place.at("ranks"), "--dst-strategy", any_place.strategy, "--output", "json"
    )
    ids, lists = ["conversion_id", "whole_id"], ["sources", "outputs", "tensors", "reads", "overflows"]
    assert list(done.json) == ["state", "format", *ids, "source_url", "target_url", *lists]
    assert done.json["state"] == "converted"
    assert [output["key"] for output in done.json["outputs"]] == RANKS
    assert all(output.keys() >= {"nbytes", "etag", "crc32c", "tensors"} for output in done.json["outputs"])
    stored = json.loads(any_place.read(f"ranks/{MANIFEST}"))
    assert {"state": "converted", **{key: stored[key] for key in done.json if key != "state"}} == done.json
    report = ok("verify", any_place.at("ranks"), "--output", "json").json
    assert report["is_ok"] is True
    assert report["problems"] == []
    assert report["checked_bytes"] == report["total_bytes"] == sum(o["nbytes"] for o in done.json["outputs"])
    assert report["conversion_id"] == done.json["conversion_id"]
    assert report["object_count"] == 4


def test_json_of_plan(memory):
    done = ok("plan", memory.full, memory.at("ranks"), "--dst-strategy", memory.strategy, "--output", "json")
    assert done.json.keys() >= {"plan_id", "format", "conversion", "limits", "cost", "notes", "estimate"}
    assert done.json["conversion"].keys() >= {"catalog", "target", "target_url"}
    assert done.json["cost"]["put_count"] == 4
    assert done.json["cost"]["peak_bytes"] <= done.json["limits"]["memory_bytes"]
    assert memory.keys("ranks") == []


def test_quiet_is_silent(memory):
    plan = memory.at("plan.json")
    for arguments in (
        ["plan", memory.full, memory.at("a"), "--dst-strategy", memory.strategy, "--out", plan],
        ["convert", "--plan", plan],
        ["verify", memory.at("a")],
    ):
        assert ok(*arguments, "--quiet", "--output", "json").err == ""
        if arguments[0] == "convert":
            ok("convert", memory.full, memory.at("b"), "-q")


def test_errors_are_told_in_spite_of_quiet(memory):
    done = run("convert", memory.at("nothing"), memory.at("a"), "--quiet")
    assert done.code == 3
    assert done.err.startswith("error: memory://cli/nothing: no checkpoint there")


def test_verify_finds_a_flipped_byte(any_place):
    ok("convert", any_place.full, any_place.at("ranks"), "--dst-strategy", any_place.strategy)
    data = bytearray(any_place.read(f"ranks/{RANKS[2]}"))
    data[-1] ^= 1
    any_place.put(f"ranks/{RANKS[2]}", bytes(data))
    done = run("verify", any_place.at("ranks"), "--output", "json")
    assert done.code == 6
    assert done.json["is_ok"] is False
    (problem,) = done.json["problems"]
    assert RANKS[2] in problem
    assert f"byte {len(data) - 1} differs (in tensor lm_head.weight, its byte 383)" in problem
    assert "1 difference" in run("verify", any_place.at("ranks")).out
    assert "--overwrite" in run("verify", any_place.at("ranks")).err


def test_verify_finds_what_is_gone(place):
    ok("convert", place.full, place.at("ranks"), "--dst-strategy", place.strategy)
    place.put(f"ranks/{RANKS[1]}", b"short")
    done = run("verify", place.at("ranks"), "--subset", "1/1")
    assert (done.code, RANKS[1] in done.out) == (6, True)


def test_verify_in_shares(memory):
    ok("convert", memory.full, memory.at("ranks"), "--dst-strategy", memory.strategy)
    shares = [ok("verify", memory.at("ranks"), "--subset", f"{n}/3", "--output", "json").json for n in (1, 2, 3)]
    assert sum(share["checked_bytes"] for share in shares) == shares[0]["total_bytes"]
    assert run("verify", memory.at("ranks"), "--subset", "4/3").code == 2


def test_strategy_show_merge_convert(place):
    stages = CASES / "lds_pp2_ckpt" / "strategy" / "dp2mp2pp2_stages"
    for path in stages.iterdir():
        place.put(f"stages/{path.name}", path.read_bytes())
    merged = place.at("merged.ckpt")
    assert "8 = 2 stages x 4 devices" in ok("strategy", "merge", place.at("stages"), merged).out
    theirs = CASES / "lds_pp2_ckpt" / "strategy" / "dp2mp2pp2_merged.ckpt"
    shown = ok("strategy", "show", merged, "--output", "json").json
    assert shown == ok("strategy", "show", str(theirs), "--output", "json").json
    assert (shown["rank_count"], shown["device_count"], len(shown["stages"])) == (8, 4, 2)
    weight = shown["stages"][0]["model.layers.0.attention.wq.weight"]
    assert weight["device_matrix"] == [2, 2]
    assert weight["tensor_map"] == [[0], []]
    for form in ("strategy.json", "strategy.yaml", "other.ckpt"):
        ok("strategy", "convert", merged, place.at(form))
    assert json.loads(place.read("strategy.json"))["parallel_layout_item"]
    assert yaml.safe_load(place.read("strategy.yaml"))["axes"]
    for form in ("strategy.json", "other.ckpt"):
        assert ok("strategy", "show", place.at(form), "--output", "json").json == shown


def test_layout_file_for_a_checkpoint(memory):
    layout = memory.put("layout.yaml", LAYOUT.encode())
    done = run("strategy", "show", layout)
    assert (done.code, "--for URL" in done.err) == (2, True)
    shown = ok("strategy", "show", layout, "--for", memory.full, "--output", "json").json
    assert (shown["rank_count"], len(shown["stages"][0])) == (4, 17)  # counters have none
    ok("strategy", "convert", layout, memory.at("made.ckpt"), "--for", memory.full)
    ok("convert", memory.full, memory.at("a"), "--dst-layout", layout)
    ok("convert", memory.full, memory.at("b"), "--dst-strategy", memory.at("made.ckpt"))
    assert {key: memory.read(f"a/{key}") for key in RANKS} == {key: memory.read(f"b/{key}") for key in RANKS}


def test_nothing_is_printed_but_results(memory, capfd):
    """Nor do libraries write past the streams that were redirected."""
    ok("convert", memory.full, memory.at("ranks"), "--dst-strategy", memory.strategy)
    assert reshard.verify(memory.at("ranks")).is_ok
    assert capfd.readouterr() == ("", "")


def test_ls_shows_prefixes_with_what_is_below(any_place):
    assert "full/     1 object" in ok("ls", any_place.url).out
    shown = ok("ls", any_place.url, "--recursive", "--output", "json").json
    assert [(each["name"], each["object_count"]) for each in shown["entries"]] == [
        ("full/rank_0/full.safetensors", 1),
        ("mp4.ckpt", 1),
    ]


def test_doctor_says_what_a_store_can_do(any_place):
    before = any_place.keys()
    done = ok("doctor", any_place.url, "--output", "json")
    assert done.json["is_ok"]
    assert any_place.keys() == before


def test_doctor_fails_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("doctor", str(tmp_path / "file" / "below"))
    assert done.code == 5
    assert "conversions cannot work here" in done.err
