"""SIGKILL at chosen points of whole runs against real servers and folders, and the same command again: a matrix."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cli.runner import QUICK_PROGRAM
from support.checkpoints import put_full, put_ranks, random_model, shards
from support.killing_front import KillingFront, killing_front
from support.s3_servers import S3Server

import reshard
from reshard.storage import Store, open_target
from reshard.tensor import ByteRange, Layout, Strategy

KILLS = int(os.environ.get("KILLS", "3"))
"""Runs of a workload that are killed, each at another point; the environment may say how many."""

SLACK_BYTES = 1 << 20
"""Records and journals, which a run that goes on writes anew."""

MODEL = random_model({f"layers.{i}.w": ("BF16", (4096, 1536)) for i in range(4)} | {"norm": ("F32", (1536,))})
FOUR = Strategy(4, ({f"layers.{i}.w": Layout((4,), ((0,), ())) for i in range(4)},))
LAYOUT = "axes: {mp: 4}\nrules:\n  - {match: '*.w', split: [mp]}\n  - {match: '*', split: []}\n"
INNER = "axes: {mp: 16}\nrules:\n  - {match: '*.w', split: [null, mp]}\n  - {match: '*', split: []}\n"
RECORDS = ("reshard-run.json", "reshard-staging-use.json")


@dataclass
class Row:
    """One line of the table."""

    store: str
    workload: str
    requests: int = 0
    kills: int = 0
    again_bytes: int = 0
    in_flight_bytes: int = 0

    def __str__(self) -> str:
        """Return the line; bytes are those of the worst share of runs."""
        cells = (self.store, self.workload, self.requests, self.kills, self.again_bytes, self.in_flight_bytes)
        return f"| kills: {' | '.join(map(str, cells))} |"


WORKLOADS = {
    "full to ranks": ["full", "--dst-layout", "{folder}/four.yaml", "--copy", "never"],
    "merge": ["ranks", "--src-layout", "{folder}/four.yaml", "--copy", "never"],
    "copies": ["full", "--dst-layout", "{folder}/four.yaml"],
    "staged": ["full", "--dst-layout", "{folder}/inner.yaml", "--staging", "always", "--copy", "never"],
}
ON_SERVERS = [("weed", name) for name in WORKLOADS] + [("juicefs", "full to ranks"), ("juicefs", "copies")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "four.yaml").write_text(LAYOUT)
    (tmp_path / "inner.yaml").write_text(INNER)
    return tmp_path


@contextmanager
def fronted(server: S3Server, environ: pytest.MonkeyPatch) -> Iterator[KillingFront]:
    with killing_front(urlsplit(server.endpoint).port or 0) as front:
        for name, value in server.environ.items():
            environ.setenv(name, value)
        environ.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{front.port}")
        yield front


class Lab:
    """A workload below one URL: its source, its command, and what its target must look like in the end."""

    def __init__(self, base: str, workload: str, folder: Path) -> None:
        self.base = base
        put_full(open_target(f"{base}/full"), {"model.safetensors": MODEL})
        put_ranks(open_target(f"{base}/ranks"), shards(MODEL, FOUR))
        self._source, *self._flags = [word.format(folder=folder) for word in WORKLOADS[workload]]
        self.run("clean")
        self.expected = self.objects("clean")

    def command(self, target: str) -> list[str]:
        urls = [f"{self.base}/{self._source}", f"{self.base}/{target}"]
        return [*QUICK_PROGRAM, "convert", *urls, *self._flags, "--memory", "96MiB", "--quiet"]

    def run(self, target: str) -> None:
        """Run the command to its end, which must be a good one."""
        done = subprocess.run(self.command(target), check=False, env=dict(os.environ), capture_output=True, timeout=180)
        assert done.returncode == 0, done.stderr.decode()

    def killed(self, target: str, prepare: Callable[[Callable[[], object]], object]) -> bool:
        """Run the command until ``prepare`` has it killed; return whether that came before its end."""
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(self.command(target), stdout=log, stderr=log, env=dict(os.environ))
            prepare(process.kill)
            process.wait(180)
            log.seek(0)
            assert process.returncode in (0, -signal.SIGKILL), log.read().decode()
        return process.returncode == -signal.SIGKILL

    def check(self, target: str, said: str) -> None:
        """The target holds what a run leaves that nobody has killed, and nothing else."""
        assert self.objects(target) == self.expected, said
        place = open_target(f"{self.base}/{target}")
        assert isinstance(place.store, Store)
        uploads = [*place.store.open_uploads(place.prefix), *place.store.open_uploads(f"{place.key}.staging")]
        # A store is asked what it checks with an upload of the first key that is written, which is that of a record.
        assert [upload for upload in uploads if not upload.key.endswith(RECORDS)] == [], said
        assert reshard.verify(f"{self.base}/{target}").is_ok

    def objects(self, target: str) -> dict[str, int]:
        """Every object of a target with its CRC, but the manifest; nothing may be beside it."""
        place = open_target(f"{self.base}/{target}")
        found = {}
        for key, info in place.named_objects():
            found[key] = zlib.crc32(place.store.read(info.key, ByteRange(0, info.nbytes), info.etag))
        assert not list(open_target(f"{self.base}/{target}.staging").objects())
        return {key: crc for key, crc in found.items() if key != "reshard-manifest.json"}


@pytest.mark.matrix
@pytest.mark.server
@pytest.mark.timeout(1500)  # some forty processes, one after the other
@pytest.mark.parametrize(("server", "workload"), ON_SERVERS)
def test_killed_on_a_server_and_started_again(
    server: str,
    workload: str,
    request: pytest.FixtureRequest,
    clean_environ: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    folder: Path,
) -> None:
    found = request.getfixturevalue(f"{server}_server")
    with fronted(found, clean_environ) as front:
        lab = Lab(f"s3://{found.make_bucket(f'kills-{zlib.crc32(workload.encode())}')}", workload, folder)
        front.begin()
        lab.run("counted")
        row, clean_bytes = Row(server, workload, front.count), front.sent_bytes
        for number in range(1, KILLS + 1):
            # Every third run is killed a second time, while it goes on.
            points = [1 + number * (row.requests - 2) // (KILLS + 1), *([5] if number % 3 == 0 else [])]
            again_bytes, in_flight_bytes = -clean_bytes, 0
            for at in points:
                was_killed = lab.killed(f"killed-{number}", lambda kill, at=at: front.begin(at, kill))
                row.kills += was_killed
                again_bytes += front.sent_bytes
                in_flight_bytes += front.in_flight_bytes
            front.begin()
            lab.run(f"killed-{number}")
            again_bytes += front.sent_bytes
            said = f"{row} killed at {points}: {again_bytes} bytes again, {in_flight_bytes} in flight"
            lab.check(f"killed-{number}", said)
            assert again_bytes <= in_flight_bytes + SLACK_BYTES, said
            if again_bytes > row.again_bytes:
                row.again_bytes, row.in_flight_bytes = again_bytes, in_flight_bytes
        record_property("table", str(row))
        assert row.kills >= KILLS


@pytest.mark.matrix
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("workload", ["full to ranks"])
def test_killed_in_a_folder_and_started_again(
    workload: str, record_property: Callable[[str, object], None], folder: Path
) -> None:
    lab = Lab(f"{folder}/data", workload, folder)
    begun_s = time.monotonic()
    lab.run("timed")
    whole_s, row = time.monotonic() - begun_s, Row("folder", workload)
    for number in range(1, KILLS + 1):
        wait_s = whole_s * (0.25 + 0.75 * number / (KILLS + 1))  # before that it starts Python
        row.kills += lab.killed(f"killed-{number}", lambda kill, wait_s=wait_s: (time.sleep(wait_s), kill()))
        lab.run(f"killed-{number}")
        lab.check(f"killed-{number}", f"{row} killed after {wait_s:.2f} of {whole_s:.2f} s")
        files = [path.name for path in (folder / "data" / f"killed-{number}").rglob(".*")]
        assert not files
    record_property("table", str(row))
    assert row.kills >= KILLS // 2


@pytest.mark.matrix
@pytest.mark.server
@pytest.mark.timeout(600)
@pytest.mark.parametrize("server", ["weed"])
def test_stopped_for_so_long_that_another_run_has_finished(
    server: str, request: pytest.FixtureRequest, clean_environ: pytest.MonkeyPatch, folder: Path
) -> None:
    """A run that was only slow wakes up, and does no harm."""
    found = request.getfixturevalue(f"{server}_server")
    with fronted(found, clean_environ) as front:
        lab = Lab(f"s3://{found.make_bucket('stopped')}", "full to ranks", folder)
        front.begin()
        lab.run("counted")
        count = front.count
        for number, at in enumerate((4, count // 2, count - 6)):
            target = f"stopped-{number}"
            command = lab.command(target)
            with tempfile.TemporaryFile() as log:
                slow = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
                front.begin(at, lambda pid=slow.pid: os.kill(pid, signal.SIGSTOP))
                while front.count < at and slow.poll() is None:
                    time.sleep(0.02)
                front.begin()
                done = subprocess.run(command, check=False, env=dict(os.environ), capture_output=True, timeout=180)
                slow.send_signal(signal.SIGCONT)
                slow.wait(180)
                log.seek(0)
                said = log.read().decode()
            assert done.returncode == 0, done.stderr.decode()
            assert slow.returncode == 4, said  # the target is in use, in words
            lab.check(target, said)
