"""Runs under another interpreter, in a folder that holds a downloaded checkpoint: MindSpore's tools, or torch.

Imports nothing of this project: neither of the two environments has it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BLOCK = 128


def mindspore_tool(asked: dict[str, Any]) -> dict[str, Any]:
    """Call one function of MindSpore's; without its pause while half of the machine's memory is in use."""
    begun_s = time.monotonic()
    import mindspore
    import numpy as np
    import psutil
    import safetensors

    psutil.virtual_memory = lambda: SimpleNamespace(percent=0.0)
    imported_s = time.monotonic()
    getattr(mindspore, asked["name"])(**asked["arguments"])
    versions = {module.__name__: module.__version__ for module in (mindspore, np, safetensors)}
    return {"import_s": imported_s - begun_s, "tool_s": time.monotonic() - imported_s, "versions": versions}


def torch_tool(asked: dict[str, Any]) -> dict[str, Any]:
    """Make every object of the recipe as scripts do: open, take slices, join, save; one object after the other."""
    begun_s = time.monotonic()
    import safetensors
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    imported_s = time.monotonic()
    opened: dict[str, Any] = {}

    def read(key: str, name: str, axis: int | None = None, start: int = 0, stop: int = 0) -> Any:
        if key not in opened:
            opened[key] = safe_open(Path("in") / key, "pt")
        if axis is None:
            return opened[key].get_tensor(name)
        stored = opened[key].get_slice(name)
        return stored[start:stop] if axis == 0 else stored[:, start:stop]

    def make(made: dict[str, Any]) -> Any:
        taken, join = [read(*each) for each in made["take"]], made.get("join")
        found = torch.stack(taken) if join == "stack" else taken[0] if len(taken) == 1 else torch.cat(taken, join)
        if "scale" in made:
            rows, columns = found.shape
            scale = read(*made["scale"]).repeat_interleave(BLOCK, 0)[:rows]
            found = found.to(torch.float32) * scale.repeat_interleave(BLOCK, 1)[:, :columns]
        dtype = {"F32": torch.float32, "BF16": torch.bfloat16, None: found.dtype}[made.get("dtype")]
        return found.to(dtype).contiguous()

    for key, tensors in asked["recipe"].items():
        path = Path("out") / key
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: make(made) for name, made in tensors.items()}, path, {"format": "pt"})
    versions = {"torch": torch.__version__, "safetensors": safetensors.__version__}
    return {"import_s": imported_s - begun_s, "tool_s": time.monotonic() - imported_s, "versions": versions}


if __name__ == "__main__":
    tools = {"mindspore": mindspore_tool, "torch": torch_tool}
    print("\n" + json.dumps(tools[sys.argv[1]](json.load(sys.stdin))))
