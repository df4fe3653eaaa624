"""A conversion beside programs that only copy: the source down to memory and up again, against the same server.

s5cmd and rclone, each with its own defaults but for requests in flight, move as many bytes as ``reshard convert --copy
never`` and do nothing to them. ``COPIERS`` is the folder of their programs, or what ``make bench-copiers`` installs.
Each round runs all in turn; ratios are to reshard in the same round. Writes ``results/copiers.json``.
``python benchmarks/copiers.py --size 64MiB --repeats 1`` is a quick run.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import run
from sources import BUCKET
from ways import OUT
from workloads import WORKLOADS

from reshard.api.option_field import parse_size

PROGRAMS = Path(os.environ.get("COPIERS") or run.ROOT / ".copiers" / "venv" / "bin")
_MEMORY = Path("/dev/shm")  # noqa: S108  # the other programs' files, as fast as they can be
Commands = Callable[[str, str, int], Sequence[Sequence[str]]]


def s5cmd(target: str, folder: str, concurrency: int) -> Sequence[Sequence[str]]:
    """Down, and up."""
    program = [str(PROGRAMS / "s5cmd"), "--endpoint-url", os.environ["AWS_ENDPOINT_URL"]]
    copy = [*program, "--numworkers", str(concurrency), "cp", "--concurrency", str(concurrency)]
    name = WORKLOADS["hf_to_mp4"].name
    return [*copy, f"s3://{BUCKET}/{name}/*", f"{folder}/"], [*copy, f"{folder}/", f"s3://{target}/{OUT}/"]


def rclone(target: str, folder: str, concurrency: int) -> Sequence[Sequence[str]]:
    """Down, and up."""
    remote = f":s3,provider=Other,env_auth=true,endpoint='{os.environ['AWS_ENDPOINT_URL']}',upload_concurrency=4:"
    copy = [str(PROGRAMS / "rclone"), "copy", "--config", "/dev/null", "--transfers", str(concurrency)]
    name = WORKLOADS["hf_to_mp4"].name
    return [*copy, f"{remote}{BUCKET}/{name}", folder], [*copy, folder, f"{remote}{target}/{OUT}"]


COPIERS: Mapping[str, Commands] = {"s5cmd": s5cmd, "rclone": rclone}


def main() -> None:
    """Measure all in turn."""
    usual = run.parse([])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default="2GiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--server", choices=["weed", "juicefs"], default="juicefs")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "copiers.json")
    asked = parser.parse_args()
    usual.server = asked.server
    run.prepare()
    workload = WORKLOADS["hf_to_mp4"]
    runs: dict[str, list[dict[str, float]]] = {"reshard": [], **{name: [] for name in COPIERS}}
    with run.bench_for(usual, workload, asked.size) as bench:
        source_bytes = bench.put_source()
        for _ in range(asked.repeats):
            for name, found in runs.items():
                found.append(_copied(COPIERS[name], bench, usual.concurrency) if name in COPIERS else _converted(bench))
                print(f"{name}: {found[-1]['wall_s']:.2f} s, {found[-1]['cpu_s']:.2f} CPU s", flush=True)
    rows = [{"way": name, **report.medians(found, runs["reshard"])} for name, found in runs.items()]
    result = report.head(usual, {}, can_copy=False) | {"source_bytes": source_bytes, "repeats": asked.repeats}
    result |= {"rows": rows, "programs": {name: _version(name) for name in COPIERS}}
    result.pop("workloads")
    report.write_json(result, asked.out)


def _converted(bench: run.Bench) -> dict[str, float]:
    with bench.target() as target:
        arguments = ["convert", *bench.job.arguments(target), "--copy", "never"]
        return _timed([[sys.executable, "-m", "reshard", *arguments]])


def _copied(commands: Commands, bench: run.Bench, concurrency: int) -> dict[str, float]:
    with bench.target() as target, tempfile.TemporaryDirectory(prefix="reshard-copiers-", dir=_MEMORY) as folder:
        return _timed(commands(target, folder, concurrency))


def _timed(commands: Sequence[Sequence[str]]) -> dict[str, float]:
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"wall_s": time.monotonic() - begun_s, "cpu_s": cpu_s}


def _version(name: str) -> str:
    told: Any = subprocess.run([PROGRAMS / name, "version"], capture_output=True, text=True, check=True)
    return str(told.stdout.split("\n")[0])


if __name__ == "__main__":
    main()
