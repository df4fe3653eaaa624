"""What it costs the client to prove bytes: one conversion at every level of integrity, and read twice.

Every round runs all of them once, ``off`` first; ratios are of one round. SeaweedFS checks a CRC-32C of what it
receives, JuiceFS an MD5 only. Writes ``results/integrity.json``.
``python benchmarks/integrity.py --size 64MiB --repeats 1`` is a quick run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import run
from workloads import WORKLOADS

from reshard.api.option_field import parse_size

LEVELS: Mapping[str, Sequence[str]] = {
    "off": ("--integrity", "off"),
    "fast": ("--integrity", "fast"),
    "auto": (),
    "auto, verify": ("--verify",),
}
SERVERS = ("weed", "juicefs")


def main() -> None:
    """Measure all levels in turn, on each server."""
    usual = run.parse([])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=list(WORKLOADS), default="hf_to_mp4")
    parser.add_argument("--size", type=parse_size, default="256MiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=report.RESULTS / "integrity.json")
    asked = parser.parse_args()
    usual.size, usual.repeats = asked.size, asked.repeats
    run.prepare()
    rows = [row for server in SERVERS for row in _measure(server, usual, asked)]
    usual.server = SERVERS[0]
    result = report.head(usual, {}, can_copy=True) | {"workload": asked.workload, "rows": rows}
    del result["workloads"]
    report.write_json(result, asked.out)


def _measure(server: str, usual: argparse.Namespace, asked: argparse.Namespace) -> list[dict[str, Any]]:
    usual.server = server
    runs: dict[str, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    with run.bench_for(usual, WORKLOADS[asked.workload], asked.size) as bench:
        bench.put_source()
        plain = bench.job
        for _ in range(asked.repeats):
            for level, flags in LEVELS.items():
                options = (*plain.workload.options, *flags)
                bench.job = replace(plain, workload=replace(plain.workload, options=options))
                runs[level].append(bench.timed("reshard"))
                print(f"{server}, {level}: {runs[level][-1]['cpu_s']:.2f} CPU s", flush=True)
    return [{"server": server, "level": level, **report.medians(found, runs["off"])} for level, found in runs.items()]


if __name__ == "__main__":
    main()
