"""Documents of reshard's own, made anew: their form changes with the package, and old ones would be refused at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import save

import reshard
from reshard.engine.manifest import encode_manifest
from reshard.engine.run_record import RunRecord, encode_record
from reshard.planning.plan_json import encode_plan
from reshard.storage import open_target

_BASE = "memory://fuzz-documents"
_LAYOUT = (
    b"axes: {dp: 2, mp: 2}\nrules:\n  - {match: '*.w', split: [mp], optimizer_shard: true}\n  - {match: '*', split: []}"
)
_CUT = {"dst_layout": f"{_BASE}/layout.yaml"}
_ASKED: Sequence[tuple[str, dict[str, Any]]] = (
    ("full", {}),
    ("z.zarr", {}),
    ("parts", {"form": "mindspore", "part_size": "300"}),
    ("ranks", _CUT),
    ("shares", _CUT | {"ranks": "0-1"}),
    ("iteration", _CUT | {"form": "iteration", "iteration": 3}),
    ("staged", _CUT | {"staging": "always"}),
    ("bf16", {"dtype": "bf16", "rename": "prefix:model.=net."}),
)


@cache
def own_documents() -> dict[str, list[bytes]]:
    """Return plans, manifests and run records of several kinds, by the name of the target that reads them."""
    tensors = {f"model.layers.{i}.w": np.zeros((8, 8), np.float32) for i in range(3)} | {"b": np.ones(8, np.float16)}
    for name, data in (
        ("src/model.safetensors", save(tensors, {"format": "pt"})),
        ("src/config.json", json.dumps({"model_type": "llama"}).encode()),
        ("layout.yaml", _LAYOUT),
    ):
        place = open_target(f"{_BASE}/{name}")
        place.writable_store().put(place.key, data)
    asked = [(f"{_BASE}/src", f"{_BASE}/{name}", options) for name, options in _ASKED]
    plans = [reshard.plan(src, dst, **options) for src, dst, options in asked]
    manifests = [reshard.convert(src, dst, overwrite=True, **options) for src, dst, options in asked[:6]]
    return {
        "plan": list(map(encode_plan, plans)),
        "manifest": list(map(encode_manifest, manifests)),
        "run_record": [encode_record(RunRecord.of(plan.conversion)) for plan in plans[:2]],
    }
