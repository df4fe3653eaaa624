"""Conversions whose bytes workers on the machines of a Ray cluster move: simulated ones, all of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from cli.runner import PROGRAM, ok
from support.checkpoints import put_full, random_model
from support.killing_front import KillingFront, killing_front
from support.s3_servers import S3Server
from support.settings import clear_settings

import reshard
from reshard.errors import UsageError
from reshard.storage import open_target, read_object

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
MIB = 1 << 20
MODEL = random_model({f"{i}.w": ("F32", (1024, 1024)) for i in range(30)})
MODEL_BYTES = 120 * MIB
FLAGS = ("--memory", "24MiB", "--concurrency", "2", "--processes", "3", "--copy", "never", "--staging", "never")
NAMES = [f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in range(2)]


def patiently(start: Callable[[], Any]) -> Any:
    """Start part of a cluster; Ray gives up after 30 s, which is little for a busy machine."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@dataclass
class Machines:
    """A cluster of three machines that take workers, and one that takes none."""

    cluster: Any
    nodes: list[Any]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        added = patiently(lambda: self.cluster.add_node(num_cpus=1, memory=2 << 30, object_store_memory=80 * MIB))
        self.nodes.append(added)

    def kill_one(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environ:
        clear_settings(environ)  # they know no store but by their leader
        environ.setenv("RAY_enable_worker_prestart", "0")  # nothing that is not needed
        head = {"num_cpus": 0, "object_store_memory": 80 * MIB, "memory": 1 << 30, "include_dashboard": False}
        cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        found = Machines(cluster, [])
        try:
            for _ in range(3):
                found.add()
            cluster.wait_for_nodes()
            yield found
        finally:
            cluster.shutdown()


@pytest.fixture
def front(moto_url: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[KillingFront]:
    """The store that all machines reach, with the model in it."""
    clear_settings(monkeypatch)
    with killing_front(urlsplit(moto_url.endpoint).port or 80) as front:
        for name, value in (moto_url.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{front.port}"}).items():
            monkeypatch.setenv(name, value)
        yield front


@pytest.fixture
def bucket(front: KillingFront, moto_url: S3Server, tmp_path: Path) -> str:
    (tmp_path / "layout.yaml").write_text("axes: {mp: 2}\nrules:\n  - {match: '*', split: [null, mp]}\n")
    base = f"s3://{moto_url.make_bucket(f'ray-{time.monotonic_ns()}')}"
    put_full(open_target(f"{base}/hf"), {"model.safetensors": MODEL})
    return base


def started(machines: Machines, bucket: str, folder: Path) -> subprocess.Popen[str]:
    where = ["--engine", "ray", "--ray-address", machines.address]
    arguments = ["convert", f"{bucket}/hf", f"{bucket}/ray", "--dst-layout", str(folder / "layout.yaml")]
    return subprocess.Popen(
        [*PROGRAM, *arguments, *FLAGS, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until_half_is_sent(front: KillingFront, process: subprocess.Popen[str]) -> None:
    """And hold everything up, so that all machines are at work by then."""
    front.begin()
    front.pause_s = 2.0
    while front.sent_bytes < MODEL_BYTES / 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    front.pause_s = 0.0


def check_bytes(bucket: str, folder: Path) -> None:
    ok("convert", f"{bucket}/hf", f"{bucket}/here", "--dst-layout", str(folder / "layout.yaml"))
    for name in NAMES:
        made, expected = (read_object(open_target(f"{bucket}/{kind}").child(name)) for kind in ("ray", "here"))
        assert made == expected, name


def tell(what: str, sent_bytes: int) -> None:
    print(f"{what}: {sent_bytes / MODEL_BYTES - 1:.1%} of the bytes were sent twice")


def test_three_machines_write_the_same_bytes(machines, front, bucket, tmp_path):
    front.begin()
    begun_s = time.monotonic()
    with started(machines, bucket, tmp_path) as process:
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    print(f"converted by three workers in {time.monotonic() - begun_s:.0f} s")
    tell("nothing killed", front.sent_bytes)
    check_bytes(bucket, tmp_path)


def test_a_machine_is_killed_half_way(machines, front, bucket, tmp_path):
    with started(machines, bucket, tmp_path) as process:
        wait_until_half_is_sent(front, process)
        machines.kill_one()
        _, err = process.communicate(timeout=280)
    machines.add()
    assert process.returncode == 0, err
    assert "is gone" in err
    tell("a machine killed", front.sent_bytes)
    check_bytes(bucket, tmp_path)


def test_the_leader_is_killed_and_the_same_command_goes_on(machines, front, bucket, tmp_path):
    with started(machines, bucket, tmp_path) as process:
        wait_until_half_is_sent(front, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    deadline_s = time.monotonic() + 30
    while workers := [each for each in psutil.process_iter(["cmdline"]) if "ray::Worker" in str(each.info["cmdline"])]:
        assert time.monotonic() < deadline_s, f"still there: {workers}"
        time.sleep(0.2)
    sent_bytes = front.sent_bytes
    front.begin()
    with started(machines, bucket, tmp_path) as process:
        _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "were sent by an earlier run, and are not sent again" in err
    assert front.sent_bytes < MODEL_BYTES, "not everything"
    tell("the leader killed", sent_bytes + front.sent_bytes)
    check_bytes(bucket, tmp_path)


def test_stopped_by_sigterm(machines, front, bucket, tmp_path):
    """Ray would take the signal over."""
    with started(machines, bucket, tmp_path) as process:
        wait_until_half_is_sent(front, process)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "bytes that were sent are kept" in err


def test_a_batch_shares_one_connection(machines, front, bucket, tmp_path):
    """The job that ends first leaves it to the other."""
    (tmp_path / "batch.yaml").write_text(
        f"defaults: {{engine: ray, ray_address: '{machines.address}', src: {bucket}/hf, processes: 1}}\n"
        f"jobs:\n  few: {{dst: {bucket}/few, keep: 0.w}}\n"
        f"  ray: {{dst: {bucket}/ray, dst_layout: {tmp_path}/layout.yaml}}\n"
    )
    done = subprocess.run(
        [*PROGRAM, "run", str(tmp_path / "batch.yaml"), "--jobs", "2"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    check_bytes(bucket, tmp_path)


def test_the_library_and_what_it_refuses(machines, front, bucket, tmp_path):
    where = {"engine": "ray", "ray_address": machines.address}
    made = reshard.plan(f"{bucket}/hf", f"{bucket}/full", memory="128MiB", **where)
    assert made.limits.process_count == 3, "one on each machine that has a CPU"
    assert made.limits.memory_bytes == 3 * 128 * MIB
    assert reshard.plan(f"{bucket}/hf", str(tmp_path / "to"), **where).limits.process_count == 3, "one machine's path"
    with pytest.raises(UsageError, match="memory://lab/to is in the memory of one process"):
        reshard.plan(f"{bucket}/hf", "memory://lab/to", **where)
    with pytest.raises(UsageError, match="no Ray cluster at"):
        reshard.plan(f"{bucket}/hf", f"{bucket}/full", engine="ray", ray_address="127.0.0.1:1")


def test_nodes_of_a_modelarts_job_make_a_cluster(front, bucket, tmp_path):
    """On one machine: the first starts Ray and leads, the other joins, waits, and ends well."""
    arguments = [f"--src={bucket}/hf", f"--dst={bucket}/ray", f"--dst_layout={tmp_path}/layout.yaml", "--engine=ray"]
    logs = []
    with contextlib.ExitStack() as stack:
        nodes = []
        for index in ("0", "1"):
            place = {
                "VC_WORKER_HOSTS": "127.0.0.1,127.0.0.1",
                "VC_TASK_INDEX": index,
                "RAY_enable_worker_prestart": "0",
            }
            node = subprocess.Popen(
                [sys.executable, "-m", "reshard.modelarts", *arguments, "--wait=200"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **place},
            )  # fmt: skip
            nodes.append(stack.enter_context(node))
            stack.callback(node.terminate)  # with the Ray that it has started
        for node in nodes:
            logs.append(node.communicate(timeout=250)[0])
            assert node.returncode == 0, logs
    assert "nodes have joined the Ray cluster" in logs[0]
    assert "wrote 2 objects" in logs[0]
    assert "nothing of it is this node's" in logs[1]
    check_bytes(bucket, tmp_path)
