"""Fuzz every target, or some: ``make fuzz ARGS="--only plan --count 100000"``.

Mutated inputs come from the committed corpus. With ``--engine atheris``, where that is installed, libFuzzer chooses
them by what code they reach. An input that breaks a limit is written to ``--found``, and the run ends with exit 1.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from report import machine, now, write_json

from fuzz.documents import own_documents
from fuzz.limits import end_watch, forget_peak, peak_bytes, resident_bytes, run_one
from fuzz.mutator import Mutator
from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
_MAX_POOL = 2000
_MOST_PROBLEMS = 20
_LEAST_SECONDS = 30.0
_PACKAGES = ("reshard", "botocore", "fsspec", "numpy", "PyYAML", "regex")


def seeds_of(name: str) -> list[bytes]:
    """Return the inputs of a target that others are made of: committed ones, or documents of this version."""
    if not (CORPUS / name).is_dir():
        return own_documents()[name]
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def fuzz(name: str, count: int, seconds: float, seed: int, found: Path) -> dict[str, Any]:
    """Fuzz one target with so many inputs, or for so long; return what was seen."""
    target, seeds = TARGETS[name], seeds_of(name)
    for data in seeds:
        run_one(target, data, sys.maxsize)
    gc.collect()
    forget_peak()
    baseline, mutator = max(resident_bytes(), peak_bytes()), Mutator(seeds, seed)
    kinds: dict[str, int] = {}
    problems: list[str] = []
    done, slowest, started_s, started_cpu_s = 0, 0.0, time.monotonic(), time.process_time()
    while done < count and time.monotonic() - started_s < seconds:
        data = mutator.make()
        outcome = run_one(target, data, baseline)
        done, slowest = done + 1, max(slowest, outcome.seconds)
        kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
        # An input that ends in a way that is new, or that is read, leads further.
        if kinds[outcome.kind] <= (500 if outcome.kind == "read" else 3) and len(mutator.pool) < _MAX_POOL:
            mutator.pool.append(data)
        if outcome.problem:
            problems.append(f"{_kept(found, name, data)}: {outcome.problem}")
            if len(problems) >= _MOST_PROBLEMS:
                break
            baseline = max(baseline, peak_bytes() - (16 << 20)) if "MiB" in outcome.problem else baseline
    end_watch()
    return {
        "target": name,
        "inputs": done,
        "read": kinds.get("read", 0),
        "ends": len(kinds),
        "slowest_s": round(slowest, 3),
        "grown_mib": max(0, peak_bytes() - baseline) >> 20,
        "seconds": round(time.monotonic() - started_s, 1),
        "cpu_s": round(time.process_time() - started_cpu_s, 3),
        "problems": problems,
    }


def _kept(found: Path, name: str, data: bytes) -> Path:
    found.mkdir(parents=True, exist_ok=True)
    path = found / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def by_speed(names: Sequence[str], found: Path) -> list[str]:
    """Return targets, fastest first."""
    seen = {name: fuzz(name, 300, 5.0, 1, found) for name in names}
    return sorted(names, key=lambda name: seen[name]["cpu_s"] / max(1, seen[name]["inputs"]))


def fuzz_by_coverage(name: str, count: int, seconds: float, seed: int, found: Path) -> None:
    """Have libFuzzer choose the inputs of one target; it ends the process."""
    import atheris

    found.mkdir(parents=True, exist_ok=True)
    target, baseline = TARGETS[name], max(resident_bytes(), peak_bytes())
    atheris.instrument_all()

    def one(data: bytes) -> None:
        outcome = run_one(target, data, baseline)
        if outcome.problem:
            raise AssertionError(outcome.problem)

    limits = [f"-runs={count}", f"-max_total_time={int(seconds)}", f"-seed={seed}", "-timeout=60", "-max_len=65536"]
    with tempfile.TemporaryDirectory() as folder:  # libFuzzer adds what it finds
        for number, data in enumerate(seeds_of(name)):
            (Path(folder) / f"seed-{number}").write_bytes(data)
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={found}/{name}-", folder], one)
        atheris.Fuzz()


def record(names: Sequence[str], asked: argparse.Namespace) -> int:
    """Fuzz targets, fastest first, within a time for all of them, and keep what was seen after each."""
    result = {
        "date": now(),
        "asked": {"targets": len(names), "count": asked.count, "minutes": asked.minutes, "seed": asked.seed},
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "targets": _kept_targets(asked.record, names),
    }
    end_s = time.monotonic() + 60 * asked.minutes
    ordered = by_speed(names, asked.found)
    for number, name in enumerate(ordered, 1):
        # The fast ones take what they need, as long as each of those after them has its least.
        spare_s = end_s - time.monotonic() - _LEAST_SECONDS * (len(ordered) - number)
        seen = fuzz(name, asked.count, max(_LEAST_SECONDS, spare_s), asked.seed, asked.found)
        problems = seen.pop("problems")
        result["targets"].append(seen | {"broken": len(problems)})
        write_json(result, asked.record)
        print(json.dumps(seen | {"problems": problems}), flush=True)
    return int(any(seen["broken"] for seen in result["targets"]))


def _kept_targets(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what an earlier record has of targets that are not fuzzed again."""
    before = json.loads(path.read_text())["targets"] if path.exists() else []
    return [seen for seen in before if seen["target"] not in names]


def main(arguments: Sequence[str]) -> int:
    """Fuzz, and print a line of JSON for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=TARGETS, metavar="TARGET", help="fuzz this one; repeatable")
    parser.add_argument("--count", type=int, default=5_000, help="inputs a target at most (5000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time a target at most (10)")
    parser.add_argument("--seed", type=int, default=0, help="of randomness (0)")
    parser.add_argument("--engine", choices=("mutator", "atheris"), default="mutator", help="what chooses inputs")
    parser.add_argument("--found", type=Path, default=Path(".fuzz"), help="where inputs that break a limit go (.fuzz)")
    parser.add_argument("--record", type=Path, help="write what was seen as JSON, fastest targets first")
    parser.add_argument("--minutes", type=float, default=120.0, help="time for all targets of a record (120)")
    chosen = parser.parse_args(arguments)
    names = chosen.only or sorted(TARGETS)
    bounds = chosen.count, chosen.seconds, chosen.seed, chosen.found
    if chosen.engine == "atheris":
        if len(names) != 1:
            parser.error("libFuzzer takes the process over: name one target with --only")
        fuzz_by_coverage(names[0], *bounds)
        return 0
    if chosen.record:
        return record(names, chosen)
    broken = 0
    for name in names:
        seen = fuzz(name, *bounds)
        broken += bool(seen["problems"])
        print(json.dumps(seen), flush=True)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
