"""SIGKILL at chosen requests of whole runs against real servers, and the same command again: a matrix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cli.runner import PROGRAM
from support.checkpoints import put_full, put_ranks, random_model, shards
from support.killing_front import KillingFront, killing_front
from support.s3_servers import S3Server

import reshard
from reshard.storage import Store, open_target
from reshard.tensor import ByteRange, Layout, Strategy

KILLS = 7
PART_BYTES = 5 << 20
MODEL = random_model({f"layers.{i}.w": ("BF16", (4096, 1536)) for i in range(4)} | {"norm": ("F32", (1536,))})
FOUR = Strategy(4, ({f"layers.{i}.w": Layout((4,), ((0,), ())) for i in range(4)},))
LAYOUT = "axes: {mp: 4}\nrules:\n  - {match: '*.w', split: [mp]}\n  - {match: '*', split: []}\n"
INNER = "axes: {mp: 16}\nrules:\n  - {match: '*.w', split: [null, mp]}\n  - {match: '*', split: []}\n"


@dataclass
class Row:
    """One line of the table."""

    scenario: str
    requests: int = 0
    kills: int = 0
    worst_again_bytes: int = 0


SCENARIOS = {
    "full to ranks": ["full", "--dst-layout", "{folder}/four.yaml", "--copy", "never"],
    "merge": ["ranks", "--src-layout", "{folder}/four.yaml", "--copy", "never"],
    "copies": ["full", "--dst-layout", "{folder}/four.yaml"],
    "staged": ["full", "--dst-layout", "{folder}/inner.yaml", "--staging", "always", "--copy", "never"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "four.yaml").write_text(LAYOUT)
    (tmp_path / "inner.yaml").write_text(INNER)
    return tmp_path


@pytest.fixture
def front(weed_server: S3Server, clean_environ: pytest.MonkeyPatch) -> Iterator[KillingFront]:
    with killing_front(urlsplit(weed_server.endpoint).port or 0) as found:
        for name, value in weed_server.environ.items():
            clean_environ.setenv(name, value)
        clean_environ.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.port}")
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_and_started_again(scenario: str, weed_server: S3Server, front: KillingFront, folder: Path) -> None:
    base = f"s3://{weed_server.make_bucket('kills-' + scenario.replace(' ', '-'))}"
    put_full(open_target(f"{base}/full"), {"model.safetensors": MODEL})
    put_ranks(open_target(f"{base}/ranks"), shards(MODEL, FOUR))
    source, *flags = [word.format(folder=folder) for word in SCENARIOS[scenario]]

    def command(target: str) -> list[str]:
        return [*PROGRAM, "convert", f"{base}/{source}", f"{base}/{target}", *flags, "--memory", "96MiB", "--quiet"]

    front.begin()
    subprocess.run(command("clean"), check=True, env=dict(os.environ), capture_output=True, timeout=120)
    row = Row(scenario, front.count)
    expected, clean_bytes = _objects(f"{base}/clean"), front.sent_bytes
    for number in range(1, KILLS + 1):
        target = f"killed-{number}"
        at = 1 + number * (row.requests - 1) // (KILLS + 1)
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command(target), stdout=log, stderr=log, env=dict(os.environ))
            front.begin(at, process.kill)
            process.wait(120)
        sent = front.sent_bytes
        # The journal is written by the second, so a run may have a few requests less than the first one had.
        assert process.returncode == -signal.SIGKILL or front.count >= row.requests - 6
        row.kills += process.returncode == -signal.SIGKILL
        front.begin()
        again = subprocess.run(command(target), check=False, env=dict(os.environ), capture_output=True, timeout=180)
        assert again.returncode == 0, again.stderr.decode()
        assert _objects(f"{base}/{target}") == expected, f"killed at request {at}"
        place = open_target(f"{base}/{target}")
        assert isinstance(place.store, Store)
        assert list(place.store.open_uploads("")) == [], f"killed at request {at}"
        assert reshard.verify(f"{base}/{target}").is_ok
        row.worst_again_bytes = max(row.worst_again_bytes, sent + front.sent_bytes - clean_bytes)
    sys.stderr.write(f"\nkills: {row}\n")
    assert row.kills >= KILLS - 2
    # What was in flight: parts of eight requests, of every rank, and what the journal had not told yet.
    assert row.worst_again_bytes <= 24 * PART_BYTES, row


def _objects(url: str) -> dict[str, int]:
    """Every object of a target with its CRC, but the manifest; nothing else may be there, nor beside it."""
    place = open_target(url)
    found = {}
    for key, info in place.named_objects():
        data = place.store.read(info.key, ByteRange(0, info.nbytes), info.etag)
        found[key] = zlib.crc32(data)
    staging = open_target(f"{url}.staging")
    assert not list(staging.objects())
    assert not [key for key in found if "run" in key]
    return {key: crc for key, crc in found.items() if key != "reshard-manifest.json"}
