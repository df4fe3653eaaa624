"""Whatever names hold, a terminal shows it and obeys nothing; secrets of URLs are not shown."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from cli.runner import run
from safetensors.numpy import save

from reshard.cli.printing import plain
from reshard.errors import ReshardError, UsageError, redacted
from reshard.storage import open_source

NASTY = "w\x1b]0;owned\x07\x9b2J\x7f\u202egnp.\u2066"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("output", ["text", "json"])
def test_names_of_tensors(memory, output):
    memory.put("odd/model.safetensors", save({NASTY: np.zeros(4, np.float32)}, {"k\x1b[2J": "v\x1b[2J\r"}))
    done = run("inspect", memory.at("odd"), "--output", output)
    assert done.code == 0
    assert not RAW.search(done.out)
    assert "owned" in done.out
    if output == "json":
        assert done.json["tensors"][0]["name"] == NASTY


def test_errors(memory):
    memory.put("odd/model.safetensors", save({NASTY: np.zeros(4, np.float32)}))
    done = run(
        "convert", memory.at("odd"), memory.at("out"), "--drop", f"{NASTY}-not", "--rename", f"{NASTY}={NASTY}x="
    )
    assert done.code
    assert not RAW.search(done.err)


def test_line_breaks_forge_no_lines():
    assert plain("name\nerror: pay", is_line=True) == "name\\nerror: pay"
    assert plain("half \ud800") == "half \\ud800"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("s3://AKIA:wJalr/XUtn+FEMI@bucket/key", "XUtn"),
        ("at s3://user:pw@bucket: gone", "pw@"),
        ("https://ghp_abcdef@host/x", "ghp_"),
        ("https://user:p@ss@host:9000/x", "p@ss"),
        ("https://h/b?X-Amz-Credential=AKIA%2F&X-Amz-Signature=abc123&x=1", "abc123"),
        ("https://h/b?X-Amz-Credential=AKIA%2F&x=1", "AKIA"),
        ("https://h/b?x=1&token=abc123", "abc123"),
        ("https://h/b?Expires=1&Signature=abc123&AWSAccessKeyId=AK", "AWSAccessKeyId=AK"),
        ("https://blob/x?sv=2020&sig=abc%2B123", "abc%2B123"),
        ("obs://b/x?X-Obs-Security-Token=abc123", "abc123"),
    ],
)
def test_secrets_are_redacted(text, secret):
    assert secret not in redacted(text)
    error = ReshardError(text, hint=text, problems=[text])
    assert secret not in str(error) + error.marked_message + error.marked_hint + "".join(error.marked_problems)


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:9000/a@b", "s3://bucket/a@b:c", "a@b: x=1?", "s3://b/k?versionId=7"]
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:pw-secret@bucket/key",
        "s3://user:pw/secret@bucket/key",
        "obs://user:secret@bucket/key",
        "https://user:pw/secret@host/key",
        "s3://bucket/key?X-Amz-Signature=secret",
        "https://host/key?token=secret",
    ],
)
def test_urls_with_secrets_are_refused_without_showing_them(url):
    with pytest.raises(UsageError) as caught:
        open_source(url)
    assert "secret" not in str(caught.value)
    done = run("inspect", url)
    assert done.code == 2
    assert "secret" not in done.err


def test_json_has_no_secrets(capsys):
    from reshard.cli.printing import print_json

    print_json({"a": ["s3://u:secret@b/k"], "b": 1})
    assert json.loads(capsys.readouterr().out) == {"a": ["s3://***@b/k"], "b": 1}


LAYERS = [f"model.layers.{layer}.input_layernorm.weight: missing" for layer in range(2, 30)]
ODD = [f"tensor_{letter * count}: odd" for letter in "abcdef" for count in range(1, 6)]


@pytest.fixture
def many_problems(monkeypatch):
    def read(*_args, **_options):
        raise UsageError("58 problems", problems=[*LAYERS, *ODD], hint="Leave them out.")

    monkeypatch.setattr("reshard.api.contents.inspect", read)


def test_findings_fit_a_screen(many_problems):
    told = run("inspect", "memory://cli/full").err.splitlines()
    assert told[1] == "  - model.layers.{2..29}.input_layernorm.weight: missing (28)"
    assert told[-2:] == ["  ... and 11 more (-v lists all)", "Leave them out."]
    assert len(told) <= 24


def test_v_lists_all_findings(many_problems):
    told = run("inspect", "memory://cli/full", "-v").err
    assert all(problem in told for problem in ODD)
    assert "more" not in told


@pytest.mark.parametrize(
    ("arguments", "environ", "is_colored"),
    [
        ([], {}, False),
        ([], {"FORCE_COLOR": "1"}, True),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colours(memory, monkeypatch, arguments, environ, is_colored):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    shown = run("inspect", memory.full, *arguments)
    failed = run("inspect", memory.at("nothing"), *arguments)
    assert ("\x1b[" in shown.out) == ("\x1b[" in failed.err) == is_colored
