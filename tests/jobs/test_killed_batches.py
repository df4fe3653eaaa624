"""A batch of twenty jobs of six kinds that is killed again and again, and started again each time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import boto3
import pytest
from cli.runner import QUICK_PROGRAM
from support.checkpoints import put_full, put_ranks, random_model, shards
from support.s3_servers import S3Server

import reshard
from reshard.jobs import Job, JobState, read_job_file, run_jobs
from reshard.storage import open_target
from reshard.tensor import Layout, Strategy

KILLS = 10
MODEL = random_model(
    {
        **{f"model.layers.{i}.mlp.up_proj.weight": ("BF16", (1024, 2048)) for i in range(6)},
        "model.norm.weight": ("F32", (2048,)),
    }
)
FOUR = Strategy(4, ({f"model.layers.{i}.mlp.up_proj.weight": Layout((4,), ((0,), ())) for i in range(6)},))

BATCH = """
defaults: {{src: {base}/full, dst: "{base}/out/${{job}}", memory: 64MiB, concurrency: 4, copy: never}}
jobs:
  ranks:
    matrix: {{dst_layout: {{two: {folder}/two.yaml, four: {folder}/four.yaml, eight: {folder}/eight.yaml}}}}
  shares:
    dst: {base}/out/shares
    dst_layout: {folder}/four.yaml
    matrix: {{ranks: [0-1, "2", "3"]}}
  merged: {{src: {base}/ranks, src_layout: {folder}/four.yaml, matrix: {{form: [hf, mindspore]}}}}
  again:
    src: {base}/out/ranks/four
    src_layout: {folder}/four.yaml
    matrix: {{dst_layout: {{two: {folder}/two.yaml}}}}
  cast: {{matrix: {{dtype: [fp32, fp16]}}}}
  forms: {{matrix: {{form: [zarr, mindspore]}}}}
  ckpt: {{format: ckpt, matrix: {{dst_layout: {{two: {folder}/two.yaml, four: {folder}/four.yaml}}}}}}
  chosen: {{matrix: {{keep: {{first: "model.layers.0.*", second: "model.layers.1.*", third: "model.layers.2.*"}}}}}}
  renamed: {{rename: "prefix:model.=backbone."}}
  one: {{dst: {base}/out/one.safetensors}}
"""


@pytest.mark.slow
def test_killed_at_random_and_started_again(
    weed_server: S3Server, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    for name, value in weed_server.environ.items():
        clean_environ.setenv(name, value)
    base = f"s3://{weed_server.make_bucket('killed-batch')}"
    put_full(open_target(f"{base}/full"), {"model.safetensors": MODEL})
    put_ranks(open_target(f"{base}/ranks"), shards(MODEL, FOUR))
    for name, count in (("two", 2), ("four", 4), ("eight", 8)):
        rules = "[{match: '*.weight', split: [mp]}, {match: '*', split: []}]"
        text = rules.replace("'*.weight'", "'*.up_proj.weight'")
        (tmp_path / f"{name}.yaml").write_text(f"axes: {{mp: {count}}}\nrules: {text}\n")
    file = tmp_path / "batch.yaml"
    file.write_text(BATCH.format(base=base, folder=tmp_path))
    jobs = read_job_file(str(file))
    assert len(jobs) == 20

    numbers, finished = random.Random(20261130), dict[str, tuple[str, str]]()
    command = [*QUICK_PROGRAM, "run", str(file), "--jobs", "2", "--output", "json"]
    for kill in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(os.environ))
        told = b": done" if kill % 2 else b": running"  # however slow the machine is, some jobs get to their end
        assert any(told in line for line in process.stderr)
        time.sleep(numbers.uniform(0.1, 2.5))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        for name, written in _manifests(weed_server, base, jobs).items():
            assert finished.setdefault(name, written) == written, f"{name} was done again"
    done = subprocess.run(command, capture_output=True, env=dict(os.environ), timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    states = {job["name"]: job["state"] for job in json.loads(done.stdout)["jobs"]}
    assert set(states.values()) <= {"done", "skipped"}
    assert {name for name, state in states.items() if state == "skipped"} >= finished.keys()
    assert finished, "no job was finished before a kill: nothing was tested"
    assert finished.items() <= _manifests(weed_server, base, jobs).items()
    for url in sorted({job.request.dst for job in jobs}):
        report = reshard.verify(url)
        assert (report.is_ok, report.missing_ranks) == (True, ()), url
    assert not [key for key, _ in open_target(f"{base}/out").named_objects() if "reshard-run" in key]
    assert {status.state for status in run_jobs(jobs, at_once=2)} == {JobState.SKIPPED}


def _manifests(server: S3Server, base: str, jobs: Sequence[Job]) -> dict[str, tuple[str, str]]:
    """When the manifest of every job that has one was written, as the store says; its etag alone is that of any run."""
    client = boto3.client("s3", endpoint_url=server.endpoint)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=base.removeprefix("s3://"), Prefix="out/")
    objects = [each for page in pages for each in page.get("Contents", ())]
    there = {
        each["Key"].removeprefix("out/"): (each["ETag"], each["LastModified"].isoformat())
        for each in objects
        if "manifest" in each["Key"]
    }
    found = {}
    for job in jobs:
        place = job.request.dst.removeprefix(f"{base}/out/")
        ranks = f"-ranks_{job.name.rpartition('/')[2]}" if job.name.startswith("shares/") else ""
        key = f"{place}.manifest.json" if place.endswith(".safetensors") else f"{place}/reshard-manifest{ranks}.json"
        if key in there:
            found[job.name] = there[key]
    return found
