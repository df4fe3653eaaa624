"""The ways in which a workload is done, and what each process is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sources import BUCKET
from workloads import Tensor, Workload, recipe_of, where_full

from reshard.api.request import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
RESHARD = str(Path(sys.executable).with_name("reshard"))
OUT = "out"
WAYS = {
    "roofline": "the same requests with the same client, nothing in between",
    "roofline_http": "the same requests with http.client",
    "reshard": "reshard convert, every byte through the client",
    "reshard_copy": "reshard convert, the store copies what it can",
    "mindspore": "download, MindSpore's tool, upload",
    "torch": "download, safetensors with torch, upload",
}
_INTERPRETERS = {
    "mindspore": ("ORACLE_PYTHON", ROOT / ".oracle/venv/bin/python"),
    "torch": ("GENERATE_PYTHON", ROOT / ".generate/venv/bin/python"),
}


@dataclass(frozen=True)
class Job:
    """A workload of a certain size, and how much reshard may take for it."""

    workload: Workload
    tensors: Sequence[Tensor]
    memory: str
    concurrency: int
    limits: Mapping[str, int] = field(default_factory=dict)
    """Other limits than reshard's own, which have no flags."""

    def arguments(self, target: str) -> list[str]:
        """What ``reshard plan`` and ``reshard convert`` are told."""
        workload = self.workload
        found = [f"s3://{BUCKET}/{workload.name}", f"s3://{target}/{OUT}"]
        for flag, grid in (("--src-strategy", workload.source), ("--dst-strategy", workload.target)):
            if grid is not None:
                found += [flag, f"s3://{BUCKET}/strategy/{workload.name}/{grid.name}.ckpt"]
        return [*found, *workload.options, "--memory", self.memory, "--concurrency", str(self.concurrency), "--quiet"]

    def spec(self, way: str, target: str, requests: Path) -> dict[str, Any]:
        """What the process of one way is told."""
        if way.startswith("roofline"):
            plain = {"requests": str(requests), "target": target, "concurrency": self.concurrency}
            return {"kind": way, **plain}
        if way.startswith("reshard"):
            argv = ["convert", *self.arguments(target), *copying(way)]
            return {"kind": "reshard", "argv": argv, "limits": dict(self.limits)}
        name = self.workload.name
        fetched = [(BUCKET, name, "in"), *([(BUCKET, f"strategy/{name}", "strategy")] if way == "mindspore" else [])]
        found = {"kind": way, "python": interpreter(way), "target": target, "target_prefix": OUT, "fetched": fetched}
        if way == "torch":
            return found | {"asked": {"recipe": recipe_of(self.workload, self.tensors)}}
        asked = {"name": self.workload.tool, "arguments": tool_arguments(self.workload)}
        return found | {"asked": asked, "files": self._name_map()}

    def cost(self, way: str, target: str, environ: Mapping[str, str]) -> dict[str, Any]:
        """What reshard plans: the cost of the plan."""
        command = [RESHARD, "plan", *self.arguments(target), *copying(way), "--output", "json"]
        done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.workload.name}: {done.stderr}")
        told = json.loads(done.stdout)
        cost: dict[str, Any] = told["cost"] | {"process_bytes": told["estimate"]["process_bytes"]}
        return cost

    def _name_map(self) -> dict[str, str]:
        """MindSpore's own index in the place of Hugging Face's, which it does not read."""
        if self.workload.source is not None or self.workload.object_count == 1:
            return {}
        return {"in/param_name_map.json": json.dumps(where_full(self.workload, self.tensors))}


def tool_arguments(workload: Workload) -> dict[str, Any]:
    """How MindSpore's function is called in a folder with ``in`` and ``strategy``."""
    source, target = (f"strategy/{grid.name}.ckpt" if grid else None for grid in (workload.source, workload.target))
    if workload.tool == "unified_safetensors":
        return {"src_dir": "in", "dst_dir": "out", "max_process_num": 2, "src_strategy_file": source}
    if workload.tool == "transform_checkpoints":
        places = {"src_checkpoints_dir": "in", "dst_checkpoints_dir": "out", "ckpt_prefix": "net_"}
        strategies = {"src_strategy_file": source, "dst_strategy_file": target}
        return places | strategies | {"process_num": 1, "output_format": "safetensors"}
    folders = {"unified_safetensors_dir": "in", "dst_safetensors_dir": "out"}
    return folders | {"network": None, "predict_strategy": target, "max_process_num": 2, "format": "safetensors"}


def copying(way: str) -> list[str]:
    """The flag that says whether the store copies, if there is one."""
    if not can_copy():
        return []
    return ["--copy", "auto" if way == "reshard_copy" else "never"]


def can_copy() -> bool:
    """Whether this reshard can leave copying to the store, and be told not to."""
    return "copy" in OPTIONS


@lru_cache
def interpreter(way: str) -> str | None:
    """The Python that a way needs, if it is there and has what it needs."""
    name, usual = _INTERPRETERS[way]
    python = Path(os.environ.get(name) or usual).absolute()
    looks = f"import importlib.util as u, sys; sys.exit(u.find_spec({way!r}) is None)"
    if not python.exists() or subprocess.run([python, "-c", looks], check=False).returncode:
        return None
    return str(python)


def missing(way: str, workload: Workload) -> str | None:
    """Why a way cannot be gone; None if it can."""
    if way == "reshard_copy" and not can_copy():
        return "this reshard has no --copy"
    if way == "mindspore" and workload.tool is None:
        return "no tool of MindSpore's does it"
    if way in _INTERPRETERS and interpreter(way) is None:
        return f"{_INTERPRETERS[way][0]} names no Python with {way}"
    return None
