"""Documents of reshard's own, made anew: their form changes with the package, and old ones would be refused at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import save

import reshard
from reshard.engine.journal import Beginning, Journal, Progressed
from reshard.engine.manifest import ObjectReceipt, encode_manifest
from reshard.engine.run_record import RunRecord, encode_record
from reshard.engine.writer import PartReceipt
from reshard.planning.plan import Plan
from reshard.planning.plan_json import encode_plan, plan_id_of
from reshard.storage import open_target
from reshard.tensor import ByteRange

BASE = "memory://fuzz-documents"
"""Where the documents, and what they describe, are made."""

_LAYOUT = (
    b"axes: {dp: 2, mp: 2}\nrules:\n  - {match: '*.w', split: [mp], optimizer_shard: true}\n  - {match: '*', split: []}"
)
_CUT = {"dst_layout": f"{BASE}/layout.yaml"}
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
def own_plan() -> Plan:
    """Return the plan of the conversion whose journal is among the documents."""
    own_documents()
    return reshard.plan(f"{BASE}/src", f"{BASE}/journalled", **_CUT)


@cache
def own_documents() -> dict[str, list[bytes]]:
    """Return plans, manifests and what runs leave, of several kinds, by the name of the target that reads them."""
    tensors = {f"model.layers.{i}.w": np.zeros((8, 8), np.float32) for i in range(3)} | {"b": np.ones(8, np.float16)}
    for name, data in (
        ("src/model.safetensors", save(tensors, {"format": "pt"})),
        ("src/config.json", json.dumps({"model_type": "llama"}).encode()),
        ("layout.yaml", _LAYOUT),
    ):
        place = open_target(f"{BASE}/{name}")
        place.writable_store().put(place.key, data)
    asked = [(f"{BASE}/src", f"{BASE}/{name}", options) for name, options in _ASKED]
    plans = [reshard.plan(src, dst, **options) for src, dst, options in asked]
    manifests = [
        encode_manifest(reshard.convert(src, dst, overwrite=True, **options)) for src, dst, options in asked[:6]
    ]
    return {
        "plan": list(map(encode_plan, plans)),
        "manifest": manifests,
        "overwrite": manifests[:1],
        "shard_manifest": manifests[3:5],
        "verify": [manifests[0], manifests[3]],
        "journal": _journals(plans[3]),
        "run_record": [encode_record(RunRecord.of(plan.conversion)) for plan in plans[:2]],
    }


def _journals(plan: Plan) -> list[bytes]:
    """Write the journal of a run that was stopped: two uploads, parts of both, and a complete object."""
    place = open_target(f"{BASE}/journals").child("reshard-run.json")
    store = place.writable_store()
    first, second, third = (key for output in plan.outputs[:3] for key in output.keys[:1])
    journal = Journal(place, "0123456789abcdef")
    journal.begin(Progressed(Beginning(plan_id_of(plan), plan.limits, plan.copy_bases), {first: "e"}))
    for number, key in enumerate((first, second)):
        journal.upload(key, f"u{number}")
        journal.part(PartReceipt(key, 1, f"e{number}", 300, 17, "crc32c"))
    journal.anew(second)
    journal.object(ObjectReceipt(third, 300, "e", None, "md5"))
    journal.write()
    return [store.read(info.key, ByteRange(0, info.nbytes)) for info in store.list(place.parent.prefix)]
