"""Several nodes of one ModelArts job, each a process with the variables of its node, on a real S3 server."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
from support.s3_servers import ACCESS_KEY, S3Server

import reshard
from reshard.api.access import describe_access
from reshard.formats.safetensors import plan_header
from reshard.storage import Location, Store, open_target
from reshard.tensor import DType, TensorSpec

pytestmark = [pytest.mark.server, pytest.mark.slow]

RANKS = 16
LAYOUT = b"""
axes: {mp: 16}
rules:
  - {match: "*.weight", split: [mp]}
  - {match: "*", split: []}
"""
SHAPES = {f"layers.{layer}.weight": (2048, 2048) for layer in range(12)} | {"norm": (64,)}
"""192 MiB: long enough to kill a node on its way, with parts of 5 MiB at least for each rank."""


@dataclass
class Job:
    """A job in a bucket: its variables, and where its source and target are."""

    environ: Mapping[str, str]
    url: str
    name: str = "out"
    waits_s: int = 120
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def target(self) -> Location:
        return open_target(f"{self.url}/{self.name}")

    def start(self, index: int, count: int, *more: str) -> subprocess.Popen[str]:
        """Start a node as ModelArts does."""
        hosts = ",".join(f"job-worker-{number}.job" for number in range(count))
        place = {
            "MA_NUM_HOSTS": str(count),
            "VC_WORKER_NUM": str(count),
            "VC_WORKER_HOSTS": hosts,
            "VC_TASK_INDEX": str(index),
            "MA_NUM_GPUS": str(RANKS // count),
            "MA_JOB_DIR": "/home/ma-user/modelarts/user-job-dir",
        }
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "reshard.modelarts", f"--src={self.url}/model", f"--dst={self.target.url}"),
                *(f"--dst_layout={self.url}/layout.yaml", f"--wait={self.waits_s}"),
                *(f"--npu_num_per_node={RANKS // count}", *more),
            ],
            env={**self.environ, **place},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.append(process)
        return process


@pytest.fixture
def job(weed_server: S3Server, clean_environ: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Job]:
    bucket = weed_server.make_bucket(re.sub(r"[\W_]+", "-", request.node.name).strip("-"))
    host = weed_server.endpoint.removeprefix("http://")
    settings = {"S3_ENDPOINT": host, "S3_USE_HTTPS": "0", "S3_VERIFY_SSL": "0"}
    settings |= {"ACCESS_KEY_ID": ACCESS_KEY, "SECRET_ACCESS_KEY": weed_server.secret_key}
    for name, value in settings.items():
        clean_environ.setenv(name, value)
    url = f"obs://{bucket}"
    put(f"{url}/model/model.safetensors", source())
    put(f"{url}/layout.yaml", LAYOUT)
    made = Job(dict(os.environ), url)
    yield made
    for process in made.running:
        process.kill()
        process.wait(30)
        process.stdout.close()


def source() -> bytes:
    specs = [TensorSpec(name, DType.F32, shape) for name, shape in SHAPES.items()]
    return plan_header(specs, {"format": "pt"}).data + random.Random(0).randbytes(sum(spec.nbytes for spec in specs))


def put(url: str, data: bytes) -> None:
    place = open_target(url)
    assert isinstance(place.store, Store)
    place.store.put(place.key, data)


def ended(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


def etags(job: Job) -> dict[str, str]:
    return {name: info.etag for name, info in job.target.named_objects() if name.startswith("rank_")}


def check_whole(job: Job) -> None:
    assert sorted(etags(job)) == sorted(f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in range(RANKS))
    report = reshard.verify(job.target.url)
    assert report.is_ok
    assert report.object_count == RANKS


@pytest.mark.parametrize("count", [2, 4])
def test_nodes_at_once_make_one_checkpoint(job: Job, count: int) -> None:
    logs = [ended(process) for process in [job.start(index, count) for index in range(count)]]
    shares = [re.search(r"a target of 16 ranks: ranks (\d+)-(\d+) are this node's", log) for log in logs]
    written = [rank for share in shares for rank in range(int(share[1]), int(share[2]) + 1)]
    assert written == list(range(RANKS))
    assert all(f"wrote {RANKS // count} objects" in log for log in logs)
    assert all("credentials from ACCESS_KEY_ID" in log for log in logs)
    check_whole(job)
    before = etags(job)
    again = [ended(process) for process in [job.start(index, count) for index in range(count)]]
    assert all("as an earlier run left them" in log for log in again)
    assert etags(job) == before


def test_a_node_that_is_killed_and_started_again(job: Job) -> None:
    small = "--memory=32MiB", "--concurrency=1"  # ranks of several parts, so that a node is caught between two
    nodes = [job.start(index, 4, *small) for index in range(4)]
    assert any(line.endswith(": transfer\n") for line in nodes[2].stdout)
    nodes[2].send_signal(signal.SIGKILL)
    nodes[2].wait(30)
    assert ": wrote " not in nodes[2].stdout.read()  # caught on its way
    others = {f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in range(RANKS) if rank not in range(8, 12)}
    wait_until(lambda: etags(job).keys() >= others)
    before = {name: etag for name, etag in etags(job).items() if name in others}
    assert "as an earlier run left them" not in ended(job.start(2, 4, *small))
    logs = [ended(nodes[index]) for index in (0, 1, 3)]
    assert any("ranks 8-11 of node 2 are missing" in log for log in logs)
    assert etags(job).items() >= before.items()
    assert len(etags(job)) == RANKS
    assert reshard.verify(job.target.url).is_ok


@pytest.mark.timeout(900)  # what a killed node has claimed is waited for, half a minute each time
def test_a_node_that_is_killed_at_any_moment(job: Job) -> None:
    moments = [("transfer", 0.0), ("transfer", 0.3), ("commit", 0.0), ("commit", 0.1), ("commit", 0.2), ("commit", 0.3)]
    for number, (phase, delay_s) in enumerate(moments):
        again = replace(job, name=f"out{number}", waits_s=0)
        small = "--memory=32MiB", "--concurrency=1"
        node = again.start(0, 2, *small)
        assert any(line.endswith(f": {phase}\n") for line in node.stdout)
        time.sleep(delay_s)
        node.kill()
        node.communicate()
        other = again.start(1, 2, *small)
        other.communicate(timeout=120)
        assert other.returncode in (0, 5)
        ended(again.start(0, 2, *small))
        check_whole(again)


def wait_until(is_so) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_store_that_refuses_the_keys(job: Job) -> None:
    environ = {**job.environ, "SECRET_ACCESS_KEY": "not this one"}
    refused = Job(environ, job.url).start(0, 2)
    out, _ = refused.communicate(timeout=60)
    assert refused.returncode == 5
    assert "the secret key does not belong to the access key" in out
    assert "not this one" not in out
    assert "credentials from ACCESS_KEY_ID" in describe_access(job.url)
