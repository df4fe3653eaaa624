"""``plan --out`` then ``convert --plan``: the same bytes, or a refusal."""

from __future__ import annotations

import json

from cli.runner import ok, run


def objects(place, name):
    return {key: place.read(f"{name}/{key}") for key in place.keys(name) if not key.startswith("reshard-manifest")}


def test_same_bytes_as_at_once(any_place):
    check_same_bytes(any_place)


def test_same_bytes_with_flags(memory):
    check_same_bytes(memory, "--memory", "64MiB", "--concurrency", "2", "--ranks", "0,2")


def check_same_bytes(place, *flags):
    arguments = [place.full, place.at("later"), "--dst-strategy", place.strategy, *flags]
    planned = ok("plan", *arguments, "--out", place.at("plan.json"), "--output", "json")
    assert place.keys("later") == []
    assert planned.err.split() == ["headers"]
    assert json.loads(place.read("plan.json")) == {key: planned.json[key] for key in planned.json if key != "estimate"}
    made = ok("convert", "--plan", place.at("plan.json"), "--output", "json")
    assert made.json["conversion_id"] == planned.json["conversion_id"]
    *phases, result = made.err.splitlines()[1:]
    assert phases == ["transfer", "commit"]
    assert result.endswith("what was written is verified")
    assert "the plan writes to" in made.err.splitlines()[0]
    ok("convert", place.full, place.at("now"), *arguments[2:])
    assert objects(place, "later") == objects(place, "now")
    verdict = run("verify", place.at("later"))
    expected = (6, "no run has finished ranks 1, 3") if "--ranks" in flags else (0, "all compared bytes match")
    assert (verdict.code, expected[1] in verdict.out) == (expected[0], True)


def saved(place):
    ok("plan", place.full, place.at("later"), "--dst-strategy", place.strategy, "--out", place.at("plan.json"))
    return ["convert", "--plan", place.at("plan.json")]


def test_refused_when_the_source_changed(any_place):
    command = saved(any_place)
    data = any_place.read("full/rank_0/full.safetensors")
    any_place.put("full/rank_0/full.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    done = run(*command)
    assert done.code == 3
    assert "full/rank_0/full.safetensors: expected" in done.err
    assert "Make a new plan" in done.err
    assert any_place.keys("later") == []


def test_refused_when_the_source_is_gone(memory):
    command = saved(memory)
    memory_store(memory).delete("full/rank_0/full.safetensors")
    done = run(*command)
    assert (done.code, "full.safetensors: gone" in done.err) == (3, True)
    assert memory.keys("later") == []


def test_refused_when_altered_or_no_plan(memory):
    command = saved(memory)
    body = json.loads(memory.read("plan.json"))
    for change in ({"target_url": "memory://cli/elsewhere"}, {"format": "reshard-plan/99"}, {"plan_id": "0"}):
        memory.put("plan.json", json.dumps(body | change).encode())
        done = run(*command)
        assert (done.code, "plan.json" in done.err) == (3, True)
    for data in (b"", b"{", b"[]", b"{}", b"\xff"):
        memory.put("plan.json", data)
        done = run(*command)
        assert (done.code, "plan.json" in done.err) == (3, True), data
    assert memory.keys("elsewhere") == memory.keys("later") == []


def test_takes_no_second_opinion(memory):
    command = saved(memory)
    for extra in (["--memory", "1GiB"], ["--ranks", "0"], ["--dst-strategy", memory.strategy], ["--prefix", "x"]):
        done = run(*command, *extra)
        assert (done.code, "--plan cannot be combined with" in done.err) == (2, True)
    assert memory.keys("later") == []


def test_refused_for_other_places_than_those_given(memory):
    command = saved(memory)
    for places, problem in (
        ([memory.at("elsewhere")], f"it writes to {memory.at('later')}, not to {memory.at('elsewhere')}"),
        ([memory.full, memory.url], f"it writes to {memory.at('later')}, not to {memory.url}"),
        ([memory.at("other"), memory.at("later")], f"not {memory.at('other')}"),
    ):
        done = run(*command, *places)
        assert (done.code, problem in done.err) == (2, True), done.err
    assert memory.keys("later") == memory.keys("elsewhere") == []


def test_places_that_are_those_of_the_plan(any_place):
    command = saved(any_place)
    ok(*command, any_place.at("later"))
    ok(*command, any_place.full, any_place.at("later"), "--overwrite")


def test_single_object_is_a_place_too(memory):
    target = memory.at("one.safetensors")
    ok("plan", memory.full, target, "--out", memory.at("plan.json"))
    ok("convert", "--plan", memory.at("plan.json"), target)


def test_outputs_that_exist(memory):
    command = saved(memory)
    ok(*command)
    assert "skipped" in ok(*command).out
    assert run(*command, "--if-exists", "fail").code == 4
    ok(*command, "--overwrite")


def memory_store(place):
    from reshard.storage import MemoryStore

    return MemoryStore(place.url.removeprefix("memory://"))
