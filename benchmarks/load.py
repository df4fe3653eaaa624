"""One of 8 ranks into memory: ``reshard.load`` beside download and ``safe_open``, and beside the Run:ai streamer.

``make bench-load`` runs every way in turn against a real S3 server here: first once through a proxy that counts
requests and bytes, then several times for seconds, CPU and memory; all must get the same tensors. The other ways run
in ``.runai/venv``, where this project is not. Results go to ``benchmarks/results/load.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import report
from baselines import make_client
from proxy import proxy
from run import count, prepare
from sources import BUCKET, put_source
from workloads import WORKLOADS, source_objects

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("load_ways.py")
OTHERS = ROOT / ".runai" / "venv" / "bin" / "python"
SOURCE = WORKLOADS["hf_to_mp4"]
ROWS, COLUMNS = "rows", "columns"
BY_COLUMNS = ("o_proj", "down_proj")
WAYS = {
    "reshard": "`reshard.load`",
    "download": "boto3 downloads, `safe_open` slices",
    "runai": "the Run:ai streamer reads, slices are kept",
}


def layout_of(by_columns: tuple[str, ...]) -> str:
    """The layout file of 8 ranks: rows of matrices, or columns of those that are named."""
    rules = [f'  - {{match: "*{part}*", split: [null, mp]}}' for part in by_columns]
    rules += ['  - {match: "*norm*", split: []}', '  - {match: "*", split: [mp]}']
    return "\n".join(["axes: {mp: 8}", "rules:", *rules, ""])


def run(spec: Mapping[str, Any], environ: Mapping[str, str], disk: Path | None) -> dict[str, Any]:
    """Run one way in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="reshard-bench-", dir=disk) as name:
        folder = Path(name) / "run"
        folder.mkdir()
        given, told = Path(name) / "spec.json", Path(name) / "told.json"
        given.write_text(json.dumps(spec))
        python = sys.executable if spec["way"] == "reshard" else str(OTHERS)
        command = [python, str(WORKER), str(given), str(told)]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | environ, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            raise SystemExit(f"{spec['way']}: status {done.returncode}\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(told.read_text())
        return found


def settings(server: Any, endpoint: str) -> dict[str, str]:
    """What makes every way reach the server; the last are the Run:ai streamer's."""
    return {
        **server.environ,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_CONCURRENCY": "8",
        "PYTHONPATH": str(ROOT / "src"),
    }


def measure(asked: argparse.Namespace, server: Any, cut: str) -> dict[str, Any]:
    """Every way, for one cut of the model."""
    tensors = SOURCE.tensors(asked.size)
    by_columns = BY_COLUMNS if cut == COLUMNS else ()
    with tempfile.TemporaryDirectory() as folder:
        layout = Path(folder) / "layout.yaml"
        layout.write_text(layout_of(by_columns))
        keys = [f"{SOURCE.name}/{key}" for key in source_objects(SOURCE, tensors)]
        spec = {"bucket": BUCKET, "prefix": SOURCE.name, "keys": keys, "layout": str(layout), "rank": 3}
        spec |= {"by_columns": by_columns, "max_gap": asked.max_gap if by_columns else 0}
        counted: dict[str, dict[str, Any]] = {}
        with proxy(server.endpoint) as front:
            for way in WAYS:
                front.take()
                told = run({**spec, "way": way}, settings(server, front.endpoint), asked.disk)
                counted[way] = {"content": told["content"], "needed_bytes": told["needed_bytes"], **count(front.take())}
        if any(each["content"] != counted["reshard"]["content"] for each in counted.values()):
            raise SystemExit("the ways did not get the same tensors")
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for repeat in range(asked.repeats):
            for way, found in runs.items():
                told = run({**spec, "way": way}, settings(server, server.endpoint), asked.disk)
                found.append({name: value for name, value in told.items() if name not in ("content", "pid")})
                print(f"{cut} {repeat + 1}/{asked.repeats} {way} {found[-1]['wall_s']:.2f} s", flush=True)
    needed = counted["reshard"]["needed_bytes"]
    for way, each in counted.items():
        del each["content"]
        each["says"] = WAYS[way]
        each["medians"] = {name: statistics.median(run[name] for run in runs[way]) for name in runs[way][0]}
        each["medians"]["cpu_s_per_gib"] = each["medians"]["cpu_s"] / (needed / 2**30)
        each["runs"] = runs[way]
    return {"cut": cut, "source_bytes": sum(tensor.spec.nbytes for tensor in tensors), "ways": counted}


def others_versions() -> dict[str, str]:
    """Releases of what the other ways use."""
    names = ["runai-model-streamer", "safetensors", "torch", "boto3"]
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    done = subprocess.run([str(OTHERS), "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure both cuts, and write the result."""
    from reshard.api.option_field import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default="2GiB", help="bytes of the checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-gap", type=parse_size, default="64KiB", help="where columns are cut")
    parser.add_argument("--cuts", nargs="+", choices=[ROWS, COLUMNS], default=[ROWS, COLUMNS])
    parser.add_argument("--disk", type=Path, help="folder for what is downloaded; the system's")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "load.json")
    asked = parser.parse_args()
    if not OTHERS.exists():
        raise SystemExit(f"no environment at {OTHERS}: make bench-load makes it")
    prepare()
    from support import s3_servers

    with s3_servers.juicefs_server() as server:
        os.environ.update(server.environ)
        client = make_client(server.endpoint)
        client.create_bucket(Bucket=BUCKET)
        put_source(client, SOURCE, SOURCE.tensors(asked.size))
        result: dict[str, Any] = {
            "date": report.now(),
            "asked": {"size_bytes": asked.size, "repeats": asked.repeats, "max_gap": asked.max_gap},
            "machine": {**report.machine(), "load_average": os.getloadavg()[0]},
            "versions": {"reshard": version("reshard"), **others_versions()},
            "cuts": [],
        }
        for cut in asked.cuts:
            result["cuts"].append(measure(asked, server, cut))
            asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
