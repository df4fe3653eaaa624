"""Decisions on training jobs, as people and programs see them."""

from __future__ import annotations

import json

import pytest
from jobs.training_places import new_place, put_full

from reshard.cli.flags import OutputForm
from reshard.cli.training_text import show_training_job
from reshard.jobs.training_config import read_training_config
from reshard.jobs.training_job import TrainingJob, decide


@pytest.fixture
def job() -> TrainingJob:
    place = new_place()
    return decide(
        read_training_config(
            None,
            {
                "load_checkpoint": put_full(f"{place}/unified"),
                "load_ckpt_format": "ckpt",
                "auto_trans_ckpt": True,
                "parallel_config.model_parallel": 2,
                "output_dir": f"{place}/output",
                "runner_config.epochs": 2,
                "runner_config.batch_size": 1,
                "callbacks.CheckpointMonitor.save_checkpoint_steps": 1000,
                "keep_checkpoint_maximum": 3,
            },
        )
    )


def test_people_see_the_decision_and_every_key(job: TrainingJob, capsys: pytest.CaptureFixture[str]) -> None:
    show_training_job(job, OutputForm.TEXT)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == "verdict    Cut the full weights for 2 ranks."
    assert job.options is not None
    assert lines[1:4] == [
        f"source     {job.options['src']}",
        f"target     {job.options['dst']}",
        f"strategies {job.strategy_url}",
    ]
    assert "option     parallel: model_parallel=2" in lines
    assert any(line.startswith("conflict   load_ckpt_format is ckpt, but safetensors lies at ") for line in lines)
    assert any(line.startswith("note       use_parallel is not given, and taken for True") for line in lines)
    assert any(line.split() == ["runner_config.*", "2"] for line in lines)
    assert any(line.split() == ["callbacks.CheckpointMonitor.*", "1"] for line in lines)
    assert lines[-2:] == ["unknown                  value", "keep_checkpoint_maximum  3"]


def test_every_key_is_shown(job: TrainingJob, capsys: pytest.CaptureFixture[str]) -> None:
    show_training_job(job, OutputForm.TEXT)
    text = capsys.readouterr().out
    for key in (*job.config.keys_of("used"), *job.config.keys_of("unknown")):
        assert key.path in text


def test_programs_get_every_key(job: TrainingJob, capsys: pytest.CaptureFixture[str]) -> None:
    show_training_job(job, OutputForm.JSON)
    shown = json.loads(capsys.readouterr().out)
    assert shown["verdict"] == job.verdict
    assert shown["strategy_url"] == job.strategy_url
    assert shown["options"]["parallel"] == "model_parallel=2"
    assert {key["key"]: key["use"] for key in shown["keys"]} == {key.path: key.use for key in job.config.keys}
    assert len(shown["contradictions"]) == 1


def test_nothing_to_do_has_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    show_training_job(decide(read_training_config(None)), OutputForm.TEXT)
    shown = capsys.readouterr().out
    assert shown == "verdict    Nothing to do: the job names no weights, so they are initialised at random.\n"
