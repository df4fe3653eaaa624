"""Names that scripts rely on: commands and flags."""

from __future__ import annotations

import re

import pytest
from cli.runner import run
from typer.testing import CliRunner

from reshard.cli.app import app

SOURCE = {
    "--src-strategy", "--src-layout", "--file-suffix", "--check-crc", "--keep", "--drop", "--keep-rank", "--concurrency",
}  # fmt: skip
CONVERSION = SOURCE | {
    "--dst-strategy", "--dst-layout", "--rename", "--name-map", "--form", "--format", "--prefix", "--ranks",
    "--remove-redundancy", "--part-size", "--overwrite", "--memory",
}  # fmt: skip
SHOWN = {"--output", "--quiet", "--help"}

FLAGS = {
    "convert": CONVERSION | SHOWN | {"--plan"},
    "plan": CONVERSION | SHOWN | {"--out"},
    "inspect": SOURCE | {"--tensors", "--output", "--help"},
    "verify": SHOWN | {"--subset"},
    "strategy show": {"--for", "--output", "--help"},
    "strategy merge": {"--overwrite", "--output", "--help"},
    "strategy convert": {"--for", "--overwrite", "--output", "--help"},
}
ARGUMENTS = {"convert": ["src", "dst"], "plan": ["src", "dst"], "inspect": ["url"], "verify": ["url"]}


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_exactly_these(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert set(re.findall(r"^│ +(--[a-z-]+)", done.stdout, re.MULTILINE)) == FLAGS[command]
    usage = re.search(r"Usage: (.*)", done.stdout)[1]
    for argument in ARGUMENTS.get(command, ["src"]):
        assert re.search(rf"[\[{{]{argument}[\]}}]", usage), usage


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_explained(command):
    rows = re.findall(r"^│ +--.*", run(*command.split(), "-h").out, re.MULTILINE)
    assert len(rows) == len(FLAGS[command])
    for row in rows:
        told = re.split(r"  +", row.rstrip("│ "))[-1]
        assert len(told.split()) >= 4, row


def test_commands_are_exactly_these():
    done = CliRunner().invoke(app, ["--help"])
    listed = done.stdout.split("Commands")[1]
    assert re.findall(r"^│ ([a-z]+)", listed, re.MULTILINE) == ["inspect", "plan", "convert", "verify", "strategy"]
    assert re.findall(r"^│ ([a-z]+)", run("strategy", "--help").out.split("Commands")[1], re.MULTILINE) == [
        "show",
        "merge",
        "convert",
    ]


@pytest.mark.parametrize("arguments", [[], ["strategy"]])
def test_without_a_command_help_is_shown(arguments):
    done = run(*arguments)
    assert done.code == 2
    assert "Commands" in done.out + done.err


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["inspect"], ["plan", "a"], ["convert", "a", "b", "c"], ["convert", "a", "b", "--bogus"],
     ["inspect", "a", "--output", "xml"], ["convert", "a", "b", "--concurrency", "0"], ["strategy", "merge", "a"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments):
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage:" in done.err
