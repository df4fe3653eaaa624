"""One way to get a rank's tensors into memory, in a process of its own: ``python load_ways.py SPEC.json TOLD.json``.

Imports of this project only what loads with it: the other ways run where it is not installed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RANKS = 8


def status(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def cut(spec: dict[str, Any], name: str, shape: list[int]) -> tuple[slice, ...]:
    """The elements that the rank has of a tensor."""
    if len(shape) < 2:
        return (slice(None),)
    axis = 1 if any(part in name for part in spec["by_columns"]) else 0
    size = shape[axis] // RANKS
    mine = slice(spec["rank"] * size, (spec["rank"] + 1) * size)
    return (mine,) if axis == 0 else (slice(None), mine)


def with_reshard(spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The rank's boxes, straight into memory."""
    import reshard
    import reshard.storage.s3_store
    from reshard.formats.safetensors import plan_header
    from reshard.storage import MemoryStore
    from reshard.tensor import DType, TensorSpec

    tiny = plan_header([TensorSpec("norm.w", DType.BF16, (RANKS,))], {}).data + bytes(2 * RANKS)
    MemoryStore("tiny").put("model.safetensors", tiny)
    reshard.load("memory://tiny/model.safetensors", rank=0, dst_layout=spec["layout"]).tensors()

    def work() -> dict[str, Any]:
        with reshard.load(
            f"s3://{spec['bucket']}/{spec['prefix']}",
            rank=spec["rank"],
            dst_layout=spec["layout"],
            memory="64MiB",
            concurrency=8,
            max_gap=spec["max_gap"],
        ) as shard:
            return shard.tensors()

    return work


def with_download(spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Every object to local disk, 8 requests at once, then slices of safetensors."""
    import boto3
    import torch  # noqa: F401
    from boto3.s3.transfer import TransferConfig
    from safetensors import safe_open

    client = boto3.client("s3")

    def work() -> dict[str, Any]:
        found = {}
        for key in spec["keys"]:
            path = Path(key).name
            client.download_file(spec["bucket"], key, path, Config=TransferConfig(max_concurrency=8))
            with safe_open(path, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                    piece = opened.get_slice(name)
                    found[name] = piece[cut(spec, name, piece.get_shape())].clone()
        return found

    return work


def with_runai(spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The Run:ai streamer: every tensor whole into memory, of which a slice is kept."""
    from runai_model_streamer import SafetensorsStreamer

    def work() -> dict[str, Any]:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files([f"s3://{spec['bucket']}/{key}" for key in spec["keys"]])
            return {
                name: tensor[cut(spec, name, list(tensor.shape))].clone() for name, tensor in streamer.get_tensors()
            }

    return work


WAYS = {"reshard": with_reshard, "download": with_download, "runai": with_runai}


def content(tensors: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """A checksum of each tensor's bytes."""
    for name, tensor in sorted(tensors.items()):
        if hasattr(tensor, "contiguous"):
            import torch

            tensor = tensor.contiguous().view(torch.uint8).numpy()
        yield name, zlib.crc32(tensor.tobytes())


def main() -> None:
    """Load, and tell what it took; imports and comparing are not counted."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    work = WAYS[spec["way"]](spec)
    start_bytes, before = status("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    begun_s = time.monotonic()
    tensors = work()
    wall_s, after = time.monotonic() - begun_s, resource.getrusage(resource.RUSAGE_SELF)
    peak_bytes = status("VmHWM") - start_bytes
    told = {
        "wall_s": wall_s,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_bytes": peak_bytes,
        "disk_bytes": sum(path.stat().st_size for path in Path.cwd().iterdir()),
        "content": dict(content(tensors)),
        "needed_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "pid": os.getpid(),
    }
    Path(sys.argv[2]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
