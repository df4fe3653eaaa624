"""Documents where they lie: read by the statement that meets them there, with forged ids made right."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import reshard
from reshard.engine.claim import read_record
from reshard.engine.journal import journal_key, journal_keys, read_journal
from reshard.engine.locations import Locations
from reshard.engine.manifest import Manifest, decode_manifest
from reshard.engine.resume import adopt, plan_of_earlier, remove_left
from reshard.engine.sources.shard_manifest import read_shard_manifest
from reshard.engine.workers import Workers
from reshard.errors import FormatError, ReshardError
from reshard.planning.explain import explain
from reshard.planning.plan import Plan
from reshard.planning.plan_json import conversion_from_json, conversion_ids, decode_plan, encode_plan
from reshard.storage import LocalStore, Location, MemoryStore, Upload, open_target

from .answers import SEPARATOR
from .documents import BASE, own_documents, own_plan

Target = Callable[[bytes], object]

_WHERE = "input"
_RUN_ID = "0123456789abcdef"
_EXPECTED_ID = re.compile(r"expected ([0-9a-f]{64})")
_MOST_STEPS = 20


def read_plan(data: bytes) -> object:
    """Read a saved plan as its forger would have made it, with the right id; derive steps, explain, write it again."""
    try:
        plan = decode_plan(data, _WHERE)
    except FormatError as error:
        made = _EXPECTED_ID.search(error.marked_message)
        if made is None:
            raise
        plan = decode_plan(json.dumps(json.loads(data) | {"plan_id": made[1]}).encode(), _WHERE)
    return _derived(plan)


def _derived(plan: Plan) -> object:
    for group in range(min(len(plan.groups), 4)):
        for _ in itertools.islice(plan.steps(group), _MOST_STEPS):
            pass
    names = [
        *(tensor.spec.name for tensor in plan.tensors[:1]),
        *(key for out in plan.outputs[:1] for key in out.keys[:1]),
    ]
    for name in names:
        explain(plan, name)
    return encode_plan(plan)


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest as its forger would have made it, with the right ids."""
    return decode_manifest(_with_ids(data), _WHERE)


def _with_ids(data: bytes) -> bytes:
    try:
        body = json.loads(data)
        own, whole = conversion_ids(conversion_from_json(body["conversion"], len(data)))
    except (ReshardError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return data
    if (body.get("conversion_id"), body.get("whole_id")) == (own, whole):
        return data
    return json.dumps(body | {"conversion_id": own, "whole_id": whole}).encode()


def _verify(data: bytes) -> object:
    """Verify what a manifest says is there."""
    own_documents()
    url = f"{BASE}/{'ranks' if b'/ranks' in data else 'full'}"
    place = open_target(f"{url}/reshard-manifest.json")
    place.writable_store().put(place.key, _with_ids(data))
    return reshard.verify(url).is_ok


def _overwrite(data: bytes) -> object:
    """Convert to where a manifest says what an earlier run has written: nothing else may go."""
    own_documents()
    store = MemoryStore("fuzz-overwrite")
    store.clear()
    kept = {"out/train.py": b"mine", "out/a/notes.txt": b"mine", "elsewhere/model.safetensors": b"mine"}
    for key, body in kept.items():
        store.put(key, body)
    store.put("out/reshard-manifest.json", _with_ids(data))
    try:
        return reshard.convert(f"{BASE}/src", "memory://fuzz-overwrite/out", overwrite=True)
    finally:
        assert {key: store.head(key).nbytes for key in kept} == {key: len(body) for key, body in kept.items()}


def _shard_manifest(data: bytes) -> object:
    """Read how shards are cut from the manifest beside them."""
    own_documents()
    place = open_target(f"{BASE}/shards")
    place.writable_store().put(f"{place.key}/reshard-manifest.json", _with_ids(data))
    objects = {
        name: info for name, info in open_target(f"{BASE}/ranks").named_objects() if name.endswith(".safetensors")
    }
    found, why = read_shard_manifest(place, "", objects, [*objects, "reshard-manifest.json"])
    if found is not None:
        found.check_agrees(found.strategy, place.url)
    return why


@cache
def _journal_place() -> tuple[Plan, Location]:
    plan = own_plan()
    return plan, open_target(f"{BASE}/journalled").child("reshard-run.json")


def _journal(data: bytes) -> object:
    """Go on with what a journal says an earlier run has left, and remove it."""
    plan, place = _journal_place()
    store = place.writable_store()
    for key in journal_keys(place):
        store.delete(key)
    for number, each in enumerate(data.split(SEPARATOR)[:4]):
        store.put(journal_key(place.key, _RUN_ID, number), each)
    found = read_journal(place, _RUN_ID)
    locations = Locations([open_target(f"{BASE}/src")], place.parent)
    plan_of_earlier(plan, found)
    adopted = adopt(found, plan, locations, found.before, _NO_THREADS)
    return adopted.nbytes, remove_left(place.parent, place, found)


class _Here(Workers):
    """Does everything in the calling thread."""

    def map(self, action, items) -> None:  # type: ignore[no-untyped-def]
        """Do one after the other."""
        for item in items:
            action(item)


_NO_THREADS = _Here(0)


def _run_record(data: bytes) -> object:
    """Read the record of a run, and whether it has ended."""
    place = open_target("memory://fuzz-record/reshard-run.json")
    place.writable_store().put(place.key, data)
    record = read_record(place)
    return record and (record.has_ended, record.ended())


@cache
def _local_store() -> tuple[LocalStore, Upload, Path]:
    folder = tempfile.mkdtemp(prefix="reshard-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    store = LocalStore(folder)
    upload = store.create_upload("a/b.bin")
    return store, upload, next(Path(folder).rglob(".reshard-*+b.bin"))


def _local_record(data: bytes) -> object:
    """Read the record that a local upload keeps of its parts."""
    store, upload, record = _local_store()
    record.write_bytes(data)
    return list(store.list_parts(upload))


def _checkpoint(data: bytes) -> object:
    """Inspect a prefix with objects that a document names: a name, a line break, content."""
    store = MemoryStore("fuzz-checkpoint")
    store.clear()
    for each in data.split(SEPARATOR)[:12]:
        name, _, content = each.partition(b"\n")
        store.put("c/" + (name.decode("utf-8", "replace").strip("/") or "a"), content)
    return reshard.inspect("memory://fuzz-checkpoint/c", concurrency=1)


STORES: Mapping[str, Target] = {
    "checkpoint": _checkpoint,
    "journal": _journal,
    "local_record": _local_record,
    "manifest": read_manifest,
    "overwrite": _overwrite,
    "plan": read_plan,
    "run_record": _run_record,
    "shard_manifest": _shard_manifest,
    "verify": _verify,
}
"""Targets by their names."""
