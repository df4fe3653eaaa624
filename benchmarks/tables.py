"""Tables of the committed results, as pages show them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


_CLIENTS = {
    "bare": "the barest client",
    "boto3": "reshard, boto3's transfers, one process",
    "one": "reshard, one process",
    "two": "reshard, two processes",
}


@lru_cache
def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def setting() -> str:
    """Where and when the benchmark ran."""
    found = _read("bench.json")
    machine, asked = found["machine"], found["asked"]
    versions = ", ".join(f"{name} {is_}" for name, is_ in found["versions"].items())
    return (
        f"{found['date'][:10]}; {machine['cores']} cores ({machine['cpu']}), {_gib(machine['memory_bytes'])} GiB, "
        f"Linux {machine['kernel'].partition('-')[0]}; {versions}. Medians "
        f"of {asked['repeats']}, `--memory {asked['memory']} --concurrency {asked['concurrency']}`."
    )


def seconds() -> str:
    """Wall time of each way."""
    workloads = _read("bench.json")["workloads"]
    rows = [(*_own(each), *(_beside(each, way) for way in ("mindspore", "torch"))) for each in workloads]
    return table((*_OWN, "MindSpore's tool", "torch"), rows)


def seaweedfs() -> str:
    """The same of reshard against another server."""
    return table(_OWN, map(_own, _read("weed.json")["workloads"]))


def speed() -> str:
    """Seconds and local disk in short."""
    ways = {
        "reshard": "reshard", "reshard_copy": "reshard, the store copies",
        "mindspore": "download, MindSpore's tool, upload",
        "torch": "download, torch, upload",
    }  # fmt: skip
    rows = []
    for workload in _read("bench.json")["workloads"]:
        told = workload["ways"]
        cells = (f"{_wall_s(told, way):.1f} s" if way in told else "-" for way in ways)
        disk = max((told[way]["counted"]["disk_bytes"] for way in ("mindspore", "torch") if way in told), default=0)
        rows.append((workload["title"], *cells, f"{_gib(told['reshard']['counted']['disk_bytes'])}, {_gib(disk)} GiB"))
    return table(("", *ways.values(), "local disk: reshard, others"), rows)


def resources() -> str:
    """Client's CPU, memory, bytes, requests and local disk."""
    titles = (
        "", "CPU s/GiB: roofline, reshard, with copies", "peak above start: planned, measured", "bytes read / needed",
        "copied", "requests", "local disk: reshard, MindSpore, torch",
    )  # fmt: skip
    rows = []
    for workload in _read("bench.json")["workloads"]:
        ways = workload["ways"]
        plain, copying = ways["reshard"], ways["reshard_copy"]
        cpu = (ways[way]["medians"]["cpu_s_per_gib"] for way in ("roofline", "reshard", "reshard_copy"))
        peak = f"{_mib(plain['planned']['process_bytes'])}, {_mib(plain['medians']['peak_bytes'])} MiB"
        read = plain["counted"]["read_bytes"] / plain["planned"]["needed_bytes"]
        share = copying["planned"]["copied_bytes"] / (
            copying["planned"]["copied_bytes"] + copying["planned"]["written_bytes"]
        )
        requests = (sum(ways[way]["counted"]["requests"].values()) for way in ("reshard", "reshard_copy"))
        disk = (
            _gib(ways[way]["counted"]["disk_bytes"]) + " GiB" if way in ways else "-"
            for way in ("reshard", "mindspore", "torch")
        )
        rows.append(
            (workload["title"], ", ".join(f"{each:.2f}" for each in cpu), peak, f"{read:.4f}", f"{share:.0%}",
             ", ".join(map(str, requests)), ", ".join(disk))
        )  # fmt: skip
    return table(titles, rows)


def latency() -> str:
    """Wall time where every request waits."""
    found = _read("bench.json")["latency"]
    ways = list(found["rows"][0]["wall_s"])
    names = {"reshard_copy": "with copies", "mindspore": "MindSpore's tool"}
    rows = [
        (
            "no proxy" if row["delay_ms"] is None else f"{row['delay_ms']:.0f} ms",
            *(f"{row['wall_s'][way]:.1f} s" for way in ways),
        )
        for row in found["rows"]
    ]
    return table(("each request waits", *(names.get(way, way) for way in ways)), rows)


def plans() -> str:
    """How long planning takes."""
    titles = ("model", "target", "copies", "plan, s", "CPU, s", "memory of it", "saved plan", "read again, s", "copied")
    rows = [
        (
            case["model"],
            case["says"],
            "found" if case["copies"] else "not looked for",
            f"{case['plan_s']:.1f}",
            f"{case['plan_cpu_s']:.1f}",
            f"{_mib(case['plan_rss_bytes'])} MiB",
            f"{case['plan_json_bytes'] / 1e6:.1f} MB",
            f"{case['decode_s']:.1f}",
            f"{case['copied_share']:.1%}",
        )
        for case in _read("plans.json")["cases"]
    ]
    return table(titles, rows)


def tuning() -> str:
    """Wall time with other limits, as a multiple of that with the usual ones."""
    found = _read("tuning.json")
    sweeps = found["sweeps"]
    waits = ("no delay" if each["delay_ms"] is None else f"{each['delay_ms']:.0f} ms a request" for each in sweeps)
    rows = []
    for places in zip(*(each["rows"] for each in sweeps), strict=True):
        name, value = places[0]["limit"], places[0]["value"]
        told = str(value) if name == "concurrency" else f"{value >> 20} MiB"
        cells = (f"{row['wall_s']:.1f} s" if name == "usual" else f"{row['ratio']:.2f}" for row in places)
        rows.append(("as it is" if name == "usual" else f"`{name}` {told}", *cells))
    return table(("", *waits), rows)


def simulated_setting() -> str:
    """Which machines and stores were simulated."""
    found = _read("simulate.json")
    limits, speeds = found["limits"], found["cases"][0]["speeds"]
    cpu = " and ".join(f"{each:.2f}" for each in sorted({case["speeds"]["cpu_s_per_gib"] for case in found["cases"]}))
    return (
        f"{found['date'][:10]}, python {found['versions']['python']}, reshard {found['versions']['reshard']}. "
        "Each machine: "
        f"{speeds['core_count']} cores, {speeds['bandwidth_bytes_s'] * 8 / 1e9:g} Gbit/s in each direction, "
        f"`--processes {limits['process_count']} --concurrency {limits['concurrency']} "
        f"--memory {limits['memory_bytes'] >> 30}GiB`. The store: {speeds['latency_s'] * 1e3:g} ms a request, "
        f"{speeds['connection_bytes_s'] / 1e6:g} MB/s a connection, {speeds['error_rate'] * 1e4:g} in 10 000 requests "
        "fail. "
        f"CPU seconds a GiB: {cpu}, as measured then for bytes that only move (Llama) and for FP8 to bf16 (DeepSeek). "
        f"The leader needs {speeds['handout_s'] * 1e3:.2f} ms for a step."
    )


def simulated() -> str:
    """How long many machines take, what limits them, and what losing some costs."""
    titles = (
        "model", "allowed as on", "machines", "time", "limited by", "with losses", "lost", "moved again",
        "formula / simulation",
    )  # fmt: skip
    rows = [
        (
            case["model"],
            case["service"],
            row["nodes"],
            _minutes(row["seconds"]),
            row["formula"]["limited_by"],
            _minutes(row["with_losses"]["seconds"]),
            row["with_losses"]["lost_count"],
            f"{row['with_losses']['redone_bytes'] / 1e9:.0f} GB",
            f"{row['formula']['seconds'] / row['seconds']:.2f}",
        )
        for case in _read("simulate.json")["cases"]
        for row in case["rows"]
    ]
    return table(titles, rows)


def enough_machines() -> str:
    """From how many machines on more hardly help."""
    cases = _read("simulate.json")["cases"]
    services = list(dict.fromkeys(case["service"] for case in cases))
    found = {(case["model"], case["service"]): case["enough_nodes"] for case in cases}
    models = dict.fromkeys(case["model"] for case in cases)
    return table(("model", *services), [(model, *(found[model, each] for each in services)) for model in models])


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"


_OWN = ("", "source", "read and written", "roofline", "reshard", "with copies")


def _own(workload: Mapping[str, Any]) -> tuple[str, ...]:
    """Reshard's seconds, and the roofline's."""
    ways, ratios = workload["ways"], workload["ratios"]
    told = (f"{_wall_s(ways, way):.1f} s ({ratios[way]['wall_s']:.2f})" for way in ("reshard", "reshard_copy"))
    sizes = f"{_gib(workload['source_bytes'])} GiB", f"{workload['moved_gib']:.1f} GiB"
    return workload["title"], *sizes, f"{_wall_s(ways, 'roofline'):.1f} s", *told


def integrity() -> str:
    """CPU and wall time of each level, as multiples of those with none."""
    rows = [
        (row["server"], row["level"], *(f"{row[name]:.2f}" for name in ("cpu_s", "cpu_s_ratio", "wall_s_ratio")))
        for row in _read("integrity.json")["rows"]
    ]
    return table(("server", "`--integrity`", "CPU seconds", "x `off`", "wall time x `off`"), rows)


def client_limit() -> str:
    """CPU and wall time of each way, as multiples of those of the barest client."""
    found = _read("client_limit.json")
    rows = [
        (
            row["protocol"],
            _CLIENTS[row["way"]],
            *(f"{row[name]:.2f}" for name in ("cpu_s", "cpu_s_ratio", "wall_s", "wall_s_ratio")),
            f"{row['cpu_s'] / row['moved_bytes'] * (1 << 30):.2f}",
        )
        for row in found["rows"]
    ]
    titles = ("", "way", "CPU seconds", "x barest", "seconds", "x barest", "CPU seconds a GiB moved")
    return table(titles, rows)


def slow_store() -> str:
    """Wall time of each way, and how many times as fast as one process or one machine it is."""
    rows = [
        (row["way"], f"{row['wall_s']:.1f} s", f"{1 / row['wall_s_ratio']:.2f}")
        for row in _read("slow_store.json")["rows"]
    ]
    return table(("", "time", "times as fast"), rows)


def copiers() -> str:
    """Wall time and CPU of a conversion, and of programs that copy."""
    rows = [
        (row["way"], *(f"{row[name]:.2f}" for name in ("wall_s", "wall_s_ratio", "cpu_s")))
        for row in _read("copiers.json")["rows"]
    ]
    return table(("", "seconds", "x reshard", "CPU seconds"), rows)


def fuzzing_run() -> str:
    """Where and when the fuzzing ran, and what came of it."""
    found = _read("fuzz.json")
    machine, asked, targets = found["machine"], found["asked"], found["targets"]
    versions = ", ".join(f"{name} {is_}" for name, is_ in found["versions"].items())
    inputs, broken = (sum(each[name] for each in targets) for name in ("inputs", "broken"))
    full = sum(each["inputs"] >= asked["count"] for each in targets)
    short = sum(each.get("pass") == "short" for each in targets)
    return (
        f"{found['date'][:10]}; {machine['cores']} cores ({machine['cpu']}), {versions}; one process at the lowest "
        f"priority beside other work, {asked['minutes']:.0f} minutes for all targets, the fastest first. {inputs:,} "
        f"inputs to {len(targets)} of {asked['targets']} targets; {full} had {asked['count']:,} each, the others what "
        f"the time allowed{f', {short} of them in a short pass beside it' if short else ''}. "
        f"{broken} inputs broke a limit."
    )


def fuzzing() -> str:
    """What each target was given, and what it did."""
    titles = ("target", "inputs", "read without an error", "ways to end", "slowest, s", "memory grew", "broke a limit")
    rows = [
        (
            f"`{each['target']}`",
            *(f"{each[name]:,}" for name in ("inputs", "read", "ends")),
            f"{each['slowest_s']:.3f}",
            f"{each['grown_mib']} MiB",
            each["broken"],
        )
        for each in sorted(_read("fuzz.json")["targets"], key=lambda each: str(each["target"]))
    ]
    return table(titles, rows)


def _beside(workload: Mapping[str, Any], way: str) -> str:
    """Another way's seconds, and how many times reshard's they are: every byte through the client, and with copies."""
    ways = workload["ways"]
    if way not in ways:
        return "-"
    wall_s = _wall_s(ways, way)
    times = (f"{wall_s / _wall_s(ways, mine):.1f}" for mine in ("reshard", "reshard_copy"))
    return f"{wall_s:.1f} s ({', '.join(times)} x)"


def _wall_s(ways: Mapping[str, Any], way: str) -> float:
    return float(ways[way]["medians"]["wall_s"])


def _gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f}".removesuffix(".0")


def _mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:.0f}"


TABLES: Mapping[str, Callable[[], str]] = {
    "setting": setting,
    "speed": speed,
    "seconds": seconds,
    "seaweedfs": seaweedfs,
    "resources": resources,
    "latency": latency,
    "plans": plans,
    "tuning": tuning,
    "integrity": integrity,
    "simulated_setting": simulated_setting,
    "simulated": simulated,
    "enough_machines": enough_machines,
    "client_limit": client_limit,
    "slow_store": slow_store,
    "copiers": copiers,
    "fuzzing_run": fuzzing_run,
    "fuzzing": fuzzing,
}
