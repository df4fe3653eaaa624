"""Measures conversions against a roofline: the same ranged GETs and part PUTs with nothing in between.

``make bench`` runs every workload several times, roofline and reshard in turn, each in a process of
its own against a real S3 server on this machine, prints a table and writes ``benchmarks/results.json``.
Compare ratios, not seconds: client and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

BUCKET = "bench"
LAYOUT = Path(__file__).with_name("mp4.yaml")
WORKLOADS: dict[str, dict[str, Any]] = {
    "full -> mp4": {"src": "full", "dst_layout": str(LAYOUT)},
    "mp4 -> full": {"src": "mp4", "src_layout": str(LAYOUT)},
}


def make_source(store: Any, nbytes: int) -> None:
    """Write a Hugging Face checkpoint of about ``nbytes``, an object a layer, never holding it all."""
    from reshard.formats.safetensors import plan_header
    from reshard.formats.weight_index import encode_weight_index
    from reshard.tensor import DType, TensorSpec

    hidden, inner = 2048, 5632
    shapes = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
    }
    layer_bytes = sum(TensorSpec("", DType.BF16, shape).nbytes for shape in shapes.values())
    count, noise, weight_map = max(1, round(nbytes / layer_bytes)), os.urandom(layer_bytes), {}
    for layer in range(count):
        specs = [TensorSpec(f"model.layers.{layer}.{name}", DType.BF16, shape) for name, shape in shapes.items()]
        key = f"model-{layer + 1:05d}-of-{count:05d}.safetensors"
        store.put(f"full/{key}", plan_header(specs, {"format": "pt"}).data + noise)
        weight_map |= {spec.name: key for spec in specs}
    store.put("full/model.safetensors.index.json", encode_weight_index(weight_map, count * layer_bytes))


def convert(plan_url: str) -> None:
    """The thing measured."""
    import reshard

    reshard.convert(plan=plan_url, overwrite=True)


def roofline(plan_url: str) -> None:
    """The same requests with the same client and concurrency, and no conversion between them."""
    import reshard
    from reshard.storage import Location, Store, open_location
    from reshard.tensor import ByteRange

    plan = reshard.load_plan(plan_url)
    source = open_location(plan.catalog.url)
    target: Location = open_location(plan.target_url).child("roofline")
    store = target.store
    assert isinstance(store, Store)
    body = bytearray(max(part.range.nbytes for g in range(len(plan.groups)) for s in plan.steps(g) for part in s.parts))
    uploads = {key: store.create_upload(target.child(key).key) for output in plan.outputs for key in output.keys}
    etags: dict[str, list[tuple[int, str]]] = {key: [] for key in uploads}

    def read(key: str, span: ByteRange) -> None:
        store_key = source.child(key).key
        source.store.read_into(store_key, span, memoryview(bytearray(span.nbytes)))

    def send(key: str, number: int, span: ByteRange) -> None:
        etags[key].append(
            (number, store.upload_part(uploads[key], number, span.start, memoryview(body)[: span.nbytes]))
        )

    with ThreadPoolExecutor(plan.limits.concurrency) as pool:
        waiting = []
        for group in range(len(plan.groups)):
            for step in plan.steps(group):
                waiting += [pool.submit(read, plan.catalog.objects[r.object].key, r.range) for r in step.reads]
                for part in step.parts:
                    for key in plan.outputs[part.output].keys:
                        waiting.append(pool.submit(send, key, part.number, part.range))
        for future in waiting:
            future.result()
    for key, upload in uploads.items():
        store.complete_upload(upload, sorted(etags[key]))
        store.delete(target.child(key).key)


def measured(kind: str, plan_url: str) -> dict[str, float]:
    """Run one of both in a fresh process."""
    command = [sys.executable, __file__, "--one", kind, "--plan", plan_url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def run_one(kind: str, plan_url: str) -> None:
    """In the fresh process: import first, then measure."""
    import reshard

    reshard.load_plan(plan_url)  # imports the client and opens its first connection
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun_s = time.monotonic()
    {"reshard": convert, "roofline": roofline}[kind](plan_url)
    wall_s = time.monotonic() - begun_s
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "peak_rss_kib": after.ru_maxrss, "rss_kib": before.ru_maxrss}))


def bench(nbytes: int, repeats: int, memory: str, server: Any) -> list[dict[str, Any]]:
    """Run every workload, roofline and reshard in turn."""
    import reshard
    from reshard.api import save
    from reshard.planning.plan_json import encode_plan
    from reshard.storage import Store, open_location

    os.environ.update(server.environ)
    server.make_bucket(BUCKET)
    store = open_location(f"s3://{BUCKET}").store
    assert isinstance(store, Store)
    make_source(store, nbytes)
    rows = []
    for name, options in WORKLOADS.items():
        src = options["src"]
        dst = f"s3://{BUCKET}/" + ("mp4" if src == "full" else "merged")
        keywords = {key: value for key, value in options.items() if key != "src"}
        plan = reshard.plan(f"s3://{BUCKET}/{src}", dst, memory=memory, **keywords)
        plan_url = f"s3://{BUCKET}/plans/{src}.json"
        save(plan_url, encode_plan(plan), overwrite=True)
        runs: dict[str, list[dict[str, float]]] = {"roofline": [], "reshard": []}
        for repeat in range(repeats + 1):
            for kind, found in runs.items():
                figures = measured(kind, plan_url)
                if repeat:  # the first round warms the server up
                    found.append(figures)
        rows.append(_row(name, plan, runs))
        print(_line(rows[-1]), flush=True)
    return rows


def _row(name: str, plan: Any, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    moved_gb = (plan.cost.read_bytes + plan.cost.written_bytes) / 2e9
    ratios = [mine["wall_s"] / floor["wall_s"] for mine, floor in zip(runs["reshard"], runs["roofline"], strict=True)]
    return {
        "workload": name,
        "gb": moved_gb,
        "over_read": plan.cost.read_bytes / plan.cost.needed_bytes,
        "requests": plan.cost.request_count,
        "planned_peak_mib": plan.cost.peak_bytes / 2**20,
        "measured_peak_mib": max(r["peak_rss_kib"] - r["rss_kib"] for r in runs["reshard"]) / 2**10,
        "wall_s": {kind: statistics.median(r["wall_s"] for r in found) for kind, found in runs.items()},
        "cpu_s_per_gb": {kind: statistics.median(r["cpu_s"] for r in found) / moved_gb for kind, found in runs.items()},
        "wall_ratio": statistics.median(ratios),
        "runs": runs,
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['workload']:<14} {row['gb']:.2f} GB each way  wall {row['wall_s']['reshard']:.1f} s, "
        f"roofline {row['wall_s']['roofline']:.1f} s, ratio {row['wall_ratio']:.2f}  client CPU "
        f"{row['cpu_s_per_gb']['reshard']:.2f} s/GB, roofline {row['cpu_s_per_gb']['roofline']:.2f}  "
        f"peak +{row['measured_peak_mib']:.0f} MiB, planned {row['planned_peak_mib']:.0f}  "
        f"over-read {row['over_read']:.3f}"
    )


def main() -> None:
    """Parse, start a server, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=["reshard", "roofline"])
    parser.add_argument("--plan")
    parser.add_argument("--mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--server", choices=["weed", "juicefs"], default="weed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    asked = parser.parse_args()
    if asked.one:
        run_one(asked.one, asked.plan)
        return
    from support import s3_servers

    with getattr(s3_servers, f"{asked.server}_server")() as server:
        rows = bench(asked.mib << 20, asked.repeats, asked.memory, server)
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "server": asked.server,
        **{name: version(name) for name in ("boto3", "numpy", "awscrt")},
    }
    asked.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
