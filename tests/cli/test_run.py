"""``reshard run``: job files and training configurations from the command line."""

import io
import json
import sys

import pytest
from cli.runner import ok, run


@pytest.fixture
def batch(any_place):
    """A batch of four kinds, with one job that fails."""
    text = f"""
        defaults: {{src: {any_place.full}}}
        jobs:
          ranks: {{dst: {any_place.at("ranks")}, dst_strategy: {any_place.strategy}}}
          back:
            src: {any_place.at("ranks")}
            src_strategy: {any_place.strategy}
            dst: {any_place.at("back.safetensors")}
          cut:
            matrix: {{format: [ckpt, safetensors]}}
            dst: {any_place.at("cut")}-${{matrix.format}}
            dst_strategy: {any_place.strategy}
          bad: {{src: {any_place.at("nothing")}, dst: {any_place.at("bad")}}}
        """
    return any_place.put("batch.yaml", text.encode())


def test_a_batch_and_the_same_again(any_place, batch):
    done = run("run", batch, "--jobs", "2", "--output", "json")
    assert done.code == 3
    jobs = {job["name"]: job for job in done.json["jobs"]}
    assert {name: job["state"] for name, job in jobs.items()} == {
        "ranks": "done", "back": "done", "cut/ckpt": "done", "cut/safetensors": "done", "bad": "failed",
    }  # fmt: skip
    assert done.json["is_ok"] is False
    assert (jobs["back"]["needs"], jobs["bad"]["exit_code"]) == (["ranks"], 3)
    assert "no checkpoint there" in jobs["bad"]["why"]
    for name in ("ranks", "back.safetensors", "cut-ckpt"):
        ok("verify", any_place.at(name))
    again = run("run", batch)
    assert again.code == 3
    assert [line.split()[:2] for line in again.out.strip().splitlines()[1:]] == [
        ["ranks", "skipped"], ["back", "skipped"], ["cut/ckpt", "skipped"], ["cut/safetensors", "skipped"],
        ["bad", "failed"],
    ]  # fmt: skip
    assert "error: bad: " in again.err
    assert ok("run", batch, "--only", "cut/*", "--quiet").err == ""


def test_one_job(memory):
    text = f"src: {memory.full}\ndst: ${{WHERE:-{memory.at('one')}}}\n"
    url = memory.put("one.yaml", text.encode())
    assert "done" in ok("run", url).out
    assert "done" in ok("run", url, "--set", f"dst={memory.at('two')}", "--set", "dtype=bf16").out
    assert memory.keys("one") == ["model.safetensors", "reshard-manifest.json"]
    assert memory.keys("two") == ["model.safetensors", "reshard-manifest.json"]
    replaced = ok("run", url, "--if-exists", "replace", "--output", "json").json
    assert replaced["jobs"][0]["state"] == "done"
    assert run("run", url, "--if-exists", "fail").code == 4


def test_standard_input(memory, monkeypatch):
    text = f"{{src: {memory.full}, dst: {memory.at('in')}}}"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert "done" in ok("run", "-").out


def test_check_names_every_mistake_and_asks_no_store(memory):
    url = memory.put("bad.yaml", b"src: s3://nowhere/m\ndts: x\ndtype: float\n")
    done = run("run", url, "--check")
    assert (done.code, done.out) == (2, "")
    assert "3 mistakes" in done.err
    for line in ("line 1: dst is missing", "line 2: dts: unknown (did you mean dst?)", "line 3: dtype: float"):
        assert line in done.err
    good = memory.put("good.yaml", b"{jobs: {a: {src: s3://nowhere/m, dst: s3://nowhere/n}}}")
    assert "1, no mistakes" in ok("run", good, "--check").out
    assert ok("run", good, "--check", "--output", "json").json["jobs"][0]["src"] == "s3://nowhere/m"


def test_a_dry_run_shows_every_plan_and_totals(batch, any_place):
    done = run("run", batch, "--dry-run")
    assert done.code == 3
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert "convert" in lines["ranks"]
    assert "is planned after ranks" in lines["back"]
    assert "no checkpoint there" in lines["bad"]
    assert lines["jobs"].split(maxsplit=1)[1] == "3 convert, 1 later, 1 refused"
    assert {"read", "write", "requests", "time", "money"} <= lines.keys()
    assert any_place.keys("ranks") == []
    body = run("run", batch, "--dry-run", "--output", "json").json
    assert body["totals"]["read_bytes"] == sum(
        job["estimate"]["cost"]["read_bytes"] for job in body["jobs"] if job["estimate"]
    )


def test_fail_fast(memory):
    bad, good = (f"{{src: {src}, dst: {memory.at(dst)}}}" for src, dst in ((memory.at("x"), "y"), (memory.full, "z")))
    text = f"{{jobs: {{bad: {bad}, good: {good}}}}}"
    url = memory.put("b.yaml", text.encode())
    assert "blocked" in run("run", url, "--fail-fast").out
    assert "done" in run("run", url, "--keep-going").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run needs either JOB.yaml or --config"),
        (["a.yaml", "--config", "b.yaml"], "run needs either JOB.yaml or --config"),
        (["memory://cli/absent.yaml"], "does not exist"),
        (["--config", "x", "--set", "a"], "expected PATH=VALUE"),
    ],
)
def test_what_cannot_be_run(memory, arguments, message):
    done = run("run", *arguments)
    assert done.code in (2, 5)
    assert message in done.err


def test_the_schema():
    assert json.loads(ok("run", "--schema").out)["title"] == "Job file of reshard"
