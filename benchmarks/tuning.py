"""How long one conversion takes with other limits than the usual ones, one changed at a time.

Every round runs all of them once, the usual ones among them; ratios are of one round. Writes ``results/tuning.json``.
``python benchmarks/tuning.py --size 256MiB --repeats 1`` is a quick run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import run
from ways import Job
from workloads import WORKLOADS

from reshard.api.option_field import parse_size

MIB = 1 << 20
CHANGES: dict[str, tuple[int, ...]] = {
    "read_bytes": (1 * MIB, 4 * MIB, 16 * MIB, 32 * MIB),
    "part_bytes": (8 * MIB, 32 * MIB, 64 * MIB),
    "concurrency": (2, 4, 16, 32),
}


def jobs(usual: Job) -> Iterator[tuple[str, int, Job]]:
    """The usual job first, then every change."""
    yield "usual", 0, usual
    for name, values in CHANGES.items():
        for value in values:
            changed = {"concurrency": value} if name == "concurrency" else {"limits": {name: value}}
            yield name, value, replace(usual, **changed)  # type: ignore[arg-type]


def main() -> None:
    """Measure all of them in turn, with each delay."""
    usual = run.parse([])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=list(WORKLOADS), default="hf_to_mp4")
    parser.add_argument("--size", type=parse_size, default="1GiB")
    # Enough that no limit is lowered: reads get an eighth of it.
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--delays", type=float, nargs="*", default=[20.0], help="ms that requests wait, besides none")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "tuning.json")
    asked = parser.parse_args()
    usual.size, usual.memory, usual.repeats = asked.size, asked.memory, asked.repeats
    run.prepare()
    sweeps = []
    with run.bench_for(usual, WORKLOADS[asked.workload], asked.size) as bench:
        bench.put_source()
        every = list(jobs(bench.job))
        for delay_ms in (None, *asked.delays):
            runs: list[list[float]] = [[] for _ in every]
            with bench.delayed(delay_ms) as endpoint:
                for _ in range(asked.repeats):
                    for (name, value, job), found in zip(every, runs, strict=True):
                        bench.job = job
                        found.append(bench.timed("reshard", endpoint)["wall_s"])
                        print(f"{delay_ms} ms, {name} {value}: {found[-1]:.2f} s", flush=True)
            rows = [_row(name, value, found, runs[0]) for (name, value, _), found in zip(every, runs, strict=True)]
            sweeps.append({"delay_ms": delay_ms, "rows": rows})
    result = report.head(usual, {}, can_copy=True) | {"workload": asked.workload, "sweeps": sweeps}
    del result["workloads"]
    report.write_json(result, asked.out)


def _row(name: str, value: int, found: list[float], usual: list[float]) -> dict[str, Any]:
    ratios = [mine / its for mine, its in zip(found, usual, strict=True)]
    wall_s = statistics.median(found)
    return {"limit": name, "value": value, "wall_s": wall_s, "ratio": statistics.median(ratios), "runs": found}


if __name__ == "__main__":
    main()
