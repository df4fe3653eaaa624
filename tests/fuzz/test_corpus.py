"""The committed inputs are read, a few thousand mutants of them keep the limits, and dense text does too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .documents import own_documents
from .limits import end_watch, run_one
from .mutator import Mutator
from .run import CORPUS, fuzz, seeds_of
from .targets import TARGETS

_DENSE = Path(__file__).with_name("dense.py")


@pytest.fixture(autouse=True)
def _watched():
    """Whoever watches for hangs ends the process: not in the middle of another test."""
    yield
    end_watch()


@pytest.mark.parametrize("name", TARGETS)
def test_committed_inputs_keep_the_limits_and_some_are_read(name):
    ends = [run_one(TARGETS[name], data, sys.maxsize) for data in seeds_of(name)]
    assert [end.problem for end in ends if end.problem] == []
    assert "read" in [end.kind for end in ends]


def test_every_corpus_has_a_target():
    assert sorted([*(path.name for path in CORPUS.iterdir()), *own_documents()]) == sorted(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_mutants_keep_the_limits(name, tmp_path):
    seen = fuzz(name, count=200, seconds=5.0, seed=1, found=tmp_path)
    assert seen["problems"] == []


def test_equal_seeds_give_equal_inputs():
    made = [[Mutator(seeds_of("plan"), seed).make() for _ in range(20)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_what_breaks_a_limit_is_seen():
    def crash(data: bytes) -> None:
        raise KeyError(data)

    assert run_one(crash, b"x", sys.maxsize).problem.startswith("crash: ")
    assert "MiB" in run_one(lambda data: None, b"x", -(1 << 40)).problem


def test_dense_header_keeps_the_limits():
    done = subprocess.run(
        [sys.executable, str(_DENSE), "header_empty", "json_members"], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["case"] for line in lines] == ["header_empty", "json_members"]
