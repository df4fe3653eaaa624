"""What several processes, and several machines, gain where a store is far: every request waits, connections are slow.

The barest server (:mod:`null_server`) holds every request back and bounds the bytes a second of each connection, so
that what limits is the number of connections. Each round runs all ways in turn, with 8 connections a process: one
process, two, and where ``RAY_PYTHON`` (or the environment of ``make test-ray``) has Ray, one and three simulated
machines of a cluster, of one process each. Whole commands are timed, start-up included. Ratios are of one round.
Writes ``results/slow_store.json``. ``python benchmarks/slow_store.py --size 64MiB --repeats 1`` is a quick run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import run
from client_limit import HERE, null_server
from ways import Job
from workloads import WORKLOADS

from reshard.api.option_field import parse_size

_HERE: Mapping[str, Sequence[str]] = {"one process": ("--processes", "1"), "two processes": ("--processes", "2")}
_MACHINES: Mapping[str, int] = {"one machine": 1, "three machines": 3}


def main() -> None:
    """Measure all ways in turn."""
    usual = run.parse([])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default="1GiB")
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--rate", type=parse_size, default="8MiB", help="bytes a second of a connection")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=report.RESULTS / "slow_store.json")
    asked = parser.parse_args()
    run.prepare()
    workload = WORKLOADS["hf_to_mp4"]
    job = Job(workload, workload.tensors(asked.size), usual.memory, usual.concurrency)
    rows: list[dict[str, Any]] = []
    flags = ("--delay-ms", str(asked.delay_ms), "--rate", str(asked.rate))
    with tempfile.TemporaryDirectory(prefix="reshard-slow-") as folder, null_server(Path(folder), *flags) as server:
        os.environ.update(server.environ)
        bench = run.Bench(server, job, usual, Path(folder))
        bench.put_source()
        commands = {way: [sys.executable, *_HERE[way]] for way in _HERE}
        rows += _medians(commands, job, bench, asked.repeats)
        with contextlib.ExitStack() as machines:
            commands = {
                way: [
                    _ray_python(),
                    "--engine",
                    "ray",
                    "--ray-address",
                    machines.enter_context(_cluster(count)),
                    *flags,
                ]
                for way, count in _MACHINES.items()
                for flags in [("--processes", str(count))]
                if _ray_python()
            }
            rows += _medians(commands, job, bench, asked.repeats)
    told = {"size": asked.size, "delay_ms": asked.delay_ms, "rate": asked.rate, "repeats": asked.repeats}
    result = report.head(usual, {}, can_copy=False) | told | {"workload": workload.name, "rows": rows}
    for name in ("workloads", "server"):
        result.pop(name, None)
    report.write_json(result, asked.out)


def _medians(commands: Mapping[str, Sequence[str]], job: Job, bench: run.Bench, repeats: int) -> list[dict[str, Any]]:
    """Run all ways in turn; seconds, and how many times as fast as the first way of the same round."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in commands}
    for _ in range(repeats):
        for way, command in commands.items():
            runs[way].append(_timed(command, job, bench))
            print(f"{way}: {runs[way][-1]['wall_s']:.2f} s", flush=True)
    return [{"way": way, **report.medians(found, next(iter(runs.values())))} for way, found in runs.items()]


def _timed(command: Sequence[str], job: Job, bench: run.Bench) -> dict[str, float]:
    python, *flags = command
    with bench.target() as target:
        arguments = ["-m", "reshard", "convert", *job.arguments(target), "--copy", "never", *flags]
        begun_s = time.monotonic()
        subprocess.run([python, *arguments], check=True, stdout=subprocess.DEVNULL)
        return {"wall_s": time.monotonic() - begun_s}


def _ray_python() -> str:
    found = os.environ.get("RAY_PYTHON") or str(run.ROOT / ".ray" / "venv" / "bin" / "python")
    return found if Path(found).exists() else ""


@contextlib.contextmanager
def _cluster(count: int) -> Iterator[str]:
    """Start so many machines; give the address of their cluster."""
    command = [_ray_python(), str(HERE / "ray_nodes.py"), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("address "):
                    yield line.split()[1]
                    return
            raise SystemExit("no cluster: Ray did not start")
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main()
