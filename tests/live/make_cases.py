"""The side of the oracle: runs with MindSpore's own Python, never with the project's.

``make_cases.py make FOLDER`` does what every ``ask.json`` below a folder asks for, and writes ``done.json`` beside
it: for each call null, or how it failed. ``make_cases.py read FOLDER ANSWER`` loads every checkpoint
below a folder with ``mindspore.load_checkpoint`` and writes to ANSWER what came out of it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import psutil
from mindspore.common import np_dtype
from mindspore.train._utils import get_parameter_redundancy, remove_param_redundancy

FORK = multiprocessing.get_context("fork")
CALL_S = 60

DTYPES = {
    "BOOL": np.bool_, "I8": np.int8, "U8": np.uint8, "I16": np.int16, "U16": np.uint16, "I32": np.int32,
    "U32": np.uint32, "I64": np.int64, "U64": np.uint64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "BF16": np_dtype.bfloat16,
}  # fmt: skip
NAMES = {
    "Bool": "BOOL", "Int8": "I8", "UInt8": "U8", "Int16": "I16", "UInt16": "U16", "Int32": "I32", "UInt32": "U32",
    "Int64": "I64", "UInt64": "U64", "Float16": "F16", "BFloat16": "BF16", "Float32": "F32", "Float64": "F64",
}  # fmt: skip


def be_a_good_guest() -> None:
    """Neither wait while the machine's memory is in use (the tools do, for ever) nor take all of its cores."""
    psutil.virtual_memory = lambda: SimpleNamespace(percent=0.0)
    os.sched_setaffinity = lambda *_: None


def make(folder: Path) -> None:
    """Do what all the asks say."""
    for path in sorted(folder.glob("*/ask.json")):
        ask = json.loads(path.read_text())
        os.chdir(path.parent)
        done = {"prepare": tried(prepare, {"ask": ask})}
        for call in ask["calls"]:
            done[call["step"]] = tried(FUNCTIONS[call["function"]], call["kwargs"])
        Path("done.json").write_text(json.dumps(done, indent=1))


def tried(function: Callable[..., Any], kwargs: dict[str, Any]) -> str | None:
    """Call; return how it failed, or None.

    In a process of its own: the tools fork, which now and then hangs for ever in a process where
    MindSpore has started its threads. Hence also the time limit, and the second attempt.
    """
    for _ in range(2):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_answer, args=(sender, function, kwargs))
        process.start()
        sender.close()
        process.join(CALL_S)
        if process.exitcode is not None:
            return receiver.recv() if receiver.poll() else f"ended with exit code {process.exitcode}"
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return f"not done after {CALL_S} s, twice"


def _answer(sender: Any, function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    os.setsid()
    try:
        function(**kwargs)
        sender.send(None)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is MindSpore's answer
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}")


def prepare(ask: dict[str, Any]) -> None:
    """Save the model, and merge the strategies of pipelines."""
    for side in ask["merge"]:
        ms.merge_pipeline_strategys(f"strategy/{side}", f"strategy/{side}.ckpt")
    numbers = np.random.default_rng(ask["seed"])
    model = [{"name": name, "data": random_tensor(numbers, *spec)} for name, spec in ask["specs"].items()]
    for target in ask["save"]:
        Path(target["ckpt_file_name"]).parent.mkdir(parents=True, exist_ok=True)
        ms.save_checkpoint(model, **target)


def random_tensor(numbers: np.random.Generator, dtype: str, shape: list[int]) -> ms.Tensor:
    """Any bits at all; of BF16 no NaN, which the tools pass through float32."""
    kind = np.dtype(DTYPES[dtype])
    count = int(np.prod(shape, dtype=np.int64))
    bits = numbers.integers(0, 2 if dtype == "BOOL" else 256, count * kind.itemsize, np.uint8)
    if dtype == "BF16":
        bits[1::2] &= 0xBF
    return ms.Tensor(np.frombuffer(bits.tobytes(), kind).reshape(shape).copy())


def save_checkpoint(source: str, ckpt_file_name: str, **kwargs: Any) -> None:
    """Load and save again."""
    held = ms.load_checkpoint(source, format=kwargs["format"]).items()
    Path(ckpt_file_name).parent.mkdir(parents=True)
    ms.save_checkpoint([{"name": name, "data": data} for name, data in held], ckpt_file_name, **kwargs)


def unified(choice_func: dict[str, Any] | None = None, **kwargs: Any) -> None:
    if choice_func:
        names = choice_func["rename"]
        kwargs["choice_func"] = lambda name: names.get(name, True)
    ms.unified_safetensors(**kwargs)


def remove_redundancy(src_dir: str, strategy_dir: str, device_count: int, dst_dir: str) -> None:
    """Leave of every rank's shard what ModelCheckpoint(remove_redundancy=True) saves."""
    for stage, file in enumerate(sorted(Path(strategy_dir).iterdir(), key=first_rank)):
        groups = get_parameter_redundancy(str(file), initial_rank=stage * device_count)
        kept_by_rank = remove_param_redundancy(groups)
        for rank in range(stage * device_count, (stage + 1) * device_count):
            kept = kept_by_rank.get(rank, ())
            (path,) = Path(src_dir, f"rank_{rank}").iterdir()
            held = ms.load_checkpoint(str(path), format="safetensors").items()
            model = [{"name": name, "data": data} for name, data in held if name in kept or name not in groups]
            target = Path(dst_dir, f"rank_{rank}", path.name)
            target.parent.mkdir(parents=True)
            ms.save_checkpoint(model, str(target), format="safetensors", remove_redundancy=True)


def first_rank(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def save_twice(src_dir: str, dst_dir: str, suffixes: list[str]) -> None:
    """Two files a rank: the last as the source is, those before of nothing but zeros."""
    for path in Path(src_dir).glob("rank_*/*"):
        folder = Path(dst_dir, path.parent.name)
        folder.mkdir(parents=True)
        for suffix in suffixes:
            target = folder / f"net_{path.parent.name}{suffix}.safetensors"
            data = path.read_bytes()
            header = data[: 8 + int.from_bytes(data[:8], "little")]
            target.write_bytes(data if suffix == suffixes[-1] else header.ljust(len(data), b"\0"))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "save_checkpoint": save_checkpoint,
    "transform_checkpoints": ms.transform_checkpoints,
    "unified_safetensors": unified,
    "load_distributed_checkpoint": ms.load_distributed_checkpoint,
    "ckpt_to_safetensors": ms.ckpt_to_safetensors,
    "safetensors_to_ckpt": ms.safetensors_to_ckpt,
    "remove_redundancy": remove_redundancy,
    "save_twice": save_twice,
}


def read(folder: Path, answer: Path) -> None:
    """Load everything below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in (".ckpt", ".safetensors")]
    found: dict[str, Any] = {}
    for path in paths:
        try:
            loaded = ms.load_checkpoint(str(path), format=path.suffix[1:])
        except Exception as error:  # noqa: BLE001 - told to whoever compares
            found[path.relative_to(folder).as_posix()] = f"{type(error).__name__}: {error}"
            continue
        values = {name: value if isinstance(value, str) else described(value) for name, value in loaded.items()}
        found[path.relative_to(folder).as_posix()] = values
    answer.write_text(json.dumps(found))


def described(value: Any) -> list[Any]:
    data = value.get_bytes()
    return [NAMES[str(value.dtype)], list(value.shape), hashlib.sha256(data).hexdigest()[:32]]


if __name__ == "__main__":
    be_a_good_guest()
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]).absolute())
    else:
        read(Path(sys.argv[2]).absolute(), Path(sys.argv[3]).absolute())
