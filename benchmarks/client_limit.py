"""What a conversion costs its client: beside the barest client that moves the same bytes to the barest server.

The server sends files by sendfile and drops what it is sent, so the CPU is the client's. Every round runs all ways in
turn: the bare client, reshard with boto3's transfers, with its own in one process and in two. Over plain HTTP, then
through TLS. Ratios are of one round; start-up is included. Writes ``results/client_limit.json``.
``python benchmarks/client_limit.py --size 64MiB --repeats 1`` is a quick run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import report
import run
from ways import Job
from workloads import WORKLOADS

from reshard.api.option_field import parse_size

HERE = Path(__file__).resolve().parent
WAYS: Mapping[str, str] = {
    "bare": "http.client, nothing else",
    "boto3": "reshard, boto3's transfers",
    "one": "reshard, one process",
    "two": "reshard, two processes",
}
_OPTIONS: Mapping[str, Sequence[str]] = {
    "boto3": ("--processes", "1"),
    "one": ("--processes", "1"),
    "two": ("--processes", "2"),
}


@dataclass(frozen=True)
class Server:
    """A running null server, as the other benchmarks have theirs."""

    endpoint: str
    environ: Mapping[str, str]
    pid: int
    free_command: Sequence[str] = ()


@contextlib.contextmanager
def null_server(folder: Path, *flags: str, is_tls: bool = False) -> Iterator[Server]:
    """Start the barest server, and end it with the block."""
    asked, environ = (
        list(flags),
        {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1"},
    )
    if is_tls:
        import trustme

        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
        asked += ["--tls", str(folder / "certificate.pem"), str(folder / "key.pem")]
        environ["AWS_CA_BUNDLE"] = str(folder / "ca.pem")
    objects = folder / "objects"
    objects.mkdir()
    command = [sys.executable, str(HERE / "null_server.py"), str(objects), *asked]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            endpoint = f"http{'s' if is_tls else ''}://127.0.0.1:{process.stdout.readline().strip()}"
            yield Server(endpoint, environ | {"AWS_ENDPOINT_URL": endpoint}, process.pid)
        finally:
            process.stdin.close()


def main() -> None:
    """Measure all ways in turn, plain and through TLS."""
    usual = run.parse([])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(WORKLOADS), default="hf_to_mp4")
    parser.add_argument("--size", type=parse_size, default="2GiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=report.RESULTS / "client_limit.json")
    asked = parser.parse_args()
    run.prepare()
    rows = []
    with tempfile.TemporaryDirectory(prefix="reshard-limit-") as folder:
        requests = Path(folder) / "requests.json"
        for protocol in ("http", "https"):
            place = Path(folder) / protocol
            place.mkdir()
            with null_server(place, is_tls=protocol == "https") as server:
                rows += [{"protocol": protocol, **row} for row in _measure(server, requests, usual, asked)]
    result = report.head(usual, {}, can_copy=False) | {"workload": asked.workload, "size": asked.size, "rows": rows}
    result["repeats"] = asked.repeats
    for name in ("workloads", "server"):
        result.pop(name, None)
    report.write_json(result, asked.out)


def _measure(
    server: Server, requests: Path, usual: argparse.Namespace, asked: argparse.Namespace
) -> list[dict[str, Any]]:
    """All ways against one server; the first also tells which requests there are."""
    workload = WORKLOADS[asked.workload]
    job = Job(workload, workload.tensors(asked.size), usual.memory, usual.concurrency)
    os.environ.update(server.environ)
    bench = run.Bench(server, job, usual, requests.parent)
    bench.put_source()
    if not requests.exists():
        bench.counted(["reshard"])
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(asked.repeats):
        for way, found in runs.items():
            found.append(_timed(bench, job, way, server, requests))
            print(f"{server.endpoint} {way}: {found[-1]['wall_s']:.2f} s, {found[-1]['cpu_s']:.2f} CPU s", flush=True)
    moved = [r["received_bytes"] + r["sent_bytes"] for r in json.loads(requests.read_text())]
    return [
        {"way": way, "moved_bytes": sum(moved), **report.medians(found, runs["bare"])} for way, found in runs.items()
    ]


def _timed(bench: run.Bench, job: Job, way: str, server: Server, requests: Path) -> dict[str, float]:
    if way == "bare":
        command = [sys.executable, str(HERE / "bare.py"), str(requests), "bare-target", str(job.concurrency)]
        before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, env=os.environ | server.environ, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return {"wall_s": time.monotonic() - begun_s, "cpu_s": cpu_s}
    os.environ["RESHARD_S3_TRANSFERS"] = "boto3" if way == "boto3" else "direct"
    bench.job = replace(job, workload=replace(job.workload, options=(*job.workload.options, *_OPTIONS[way])))
    found = bench.timed("reshard")
    return {name: found[name] for name in ("wall_s", "cpu_s", "start_s")}


if __name__ == "__main__":
    main()
