"""One code for each class of error, and a message that says what to do."""

from __future__ import annotations

import pytest
from cli.runner import run


def test_3_for_a_broken_source(memory):
    memory.put("full/rank_0/full.safetensors", b"\xff" * 100)
    done = run("inspect", memory.full)
    assert done.code == 3
    assert done.err.startswith("error: memory://cli/full/rank_0/full.safetensors: ")
    assert done.out == ""


def test_4_for_a_refused_plan(memory):
    done = run("convert", memory.full, memory.at("a"), "--dst-strategy", memory.strategy, "--memory", "8MiB")
    assert done.code == 4
    needed = done.err.split("at least ")[1].split(" ")[0]
    assert int(needed) > 8 << 20
    assert "--memory" in done.err.splitlines()[-1]
    ok = run("convert", memory.full, memory.at("a"), "--dst-strategy", memory.strategy, "--memory", needed)
    assert ok.code == 0


def test_5_for_a_store(s3, local):
    done = run("inspect", "s3://no-such-bucket-at-all/model")
    assert done.code == 5
    assert "no such bucket" in done.err
    assert run("inspect", local.at("nothing.safetensors")).code == 5
    assert run("convert", s3.full, "s3://no-such-bucket-at-all/out").code == 5
    assert run("convert", local.full, local.at("a"), "--dst-strategy", local.at("no.ckpt")).code == 5


@pytest.mark.parametrize("url", ["foo://a/b", "s3://", "", "memory://", "s3://bucket/a/../../b"])
def test_2_for_urls_that_name_nothing(url, clean_environ):
    done = run("inspect", url)
    assert done.code == 2
    assert done.err.startswith("error: ")


def test_5_for_what_can_only_be_read(memory):
    done = run("convert", memory.full, "https://example.invalid/out")
    assert (done.code, "s3://" in done.err) == (5, True)


def test_verify_without_a_manifest(memory):
    done = run("verify", memory.full)
    assert done.code == 5
    assert "no manifest" in done.err
    assert "finished conversion" in done.err


def test_credentials_are_never_printed(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    done = run("inspect", s3.full, "--give-up-after", "0s")
    assert done.code == 5
    assert "127.0.0.1:1" in done.err
    assert "TOPSECRET" not in done.err
