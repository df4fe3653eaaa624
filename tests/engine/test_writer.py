"""Writers of parts: one part at a time, by whoever has the plan, the upload ids and a store."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
from support.checkpoints import put_full, random_model, rank_key, stored
from support.conversions import planned, ranks_of
from support.faulty_store import Fault, FaultyStore

from reshard.engine.execute import execute
from reshard.engine.locations import Locations
from reshard.engine.writer import CopyRefusal, PartReceipt, PartWriter
from reshard.errors import StorageError, TargetInUse, Unsupported
from reshard.planning.limits import Limits
from reshard.planning.steps.steps import StreamedPart
from reshard.storage import LocalStore, Location, MemoryStore, StoreLimits
from reshard.storage.checksums import crc_of
from reshard.tensor import ByteRange, Layout, Strategy

LIMITS = Limits(concurrency=2, min_part_bytes=300, part_bytes=300, row_bytes=1, min_copy_source_bytes=300)
MODEL = random_model({"embed": ("F32", (24, 12)), "norm": ("F32", (12,))})
TWO = Strategy(2, ({"embed": Layout((2,), ((0,), ())), "norm": Layout((2,), ((),))},))
PART = StreamedPart(0, 2, ByteRange(300, 604))
SCRATCH = memoryview(b"")


def plan_and_locations(source_store, target_store):
    locations = Locations((Location(source_store, "from"),), Location(target_store, "to"))
    put_full(locations.sources[0], {"m.safetensors": MODEL})
    return planned(locations.sources[0], locations.target, ranks_of(TWO), LIMITS), locations


@pytest.fixture
def lab():
    limits = StoreLimits(min_part_bytes=1, min_copy_source_bytes=1)
    return plan_and_locations(MemoryStore(), MemoryStore(limits=limits))


def test_a_part_of_an_upload(lab):
    plan, locations = lab
    store = locations.target.store
    upload = store.create_upload(f"to/{rank_key(0)}")
    writer = PartWriter(plan, {rank_key(0): upload}, locations)
    receipt = writer.stream(rank_key(0), PART, memoryview(bytes(304)), SCRATCH)
    assert receipt == PartReceipt(rank_key(0), 2, receipt.etag, 304, crc_of(bytes(304)), "local")
    assert not stored(locations.target)
    store.complete_upload(upload, [(2, receipt.etag)])
    assert stored(locations.target) == {rank_key(0): bytes(304)}


def test_an_object_that_is_put(lab):
    plan, locations = lab
    writer = PartWriter(plan, {rank_key(0): None}, locations)
    receipt = writer.stream(rank_key(0), PART, memoryview(b"abc"), SCRATCH)
    found = locations.target.store.head(f"to/{rank_key(0)}")
    assert receipt == PartReceipt(rank_key(0), 2, found.etag, 3, crc_of(b"abc"), "local")


def test_only_keys_with_an_upload_are_written(lab):
    plan, locations = lab
    assert [list(PartWriter(plan, {rank_key(1): None}, locations).keys(output)) for output in (0, 1)] == [
        [],
        [rank_key(1)],
    ]


def test_who_leads_the_run_is_asked_before_an_object_becomes_visible(lab):
    def refuse(key, data, checksum):
        raise TargetInUse(f"{key}, {len(data)} bytes")

    plan, locations = lab
    with pytest.raises(TargetInUse, match="3 bytes"):
        PartWriter(plan, {rank_key(0): None}, locations, refuse).stream(rank_key(0), PART, memoryview(b"abc"), SCRATCH)
    assert not stored(locations.target)


def test_a_shorter_object_than_was_put_is_an_error(lab):
    class Losing(MemoryStore):
        def put(self, key, body, checksum=None, replaces=None):
            return super().put(key, body[:-1])

    plan, locations = lab
    locations = replace(locations, target=Location(Losing(), "to"))
    with pytest.raises(StorageError, match="expected 3 bytes in the store, found 2"):
        PartWriter(plan, {rank_key(0): None}, locations).stream(rank_key(0), PART, memoryview(b"abc"), SCRATCH)


def copied(plan, locations, store):
    locations = replace(locations, target=Location(store, "to"))
    upload = store.create_upload(f"to/{rank_key(0)}")
    source, etag = locations.source(plan.catalog.objects[0]), plan.catalog.objects[0].etag
    writer = PartWriter(plan, {rank_key(0): upload}, locations)
    return writer.copy_range(rank_key(0), 1, 0, source, ByteRange(8, 400), etag)


def test_a_copied_part_has_no_checksum(lab):
    plan, locations = lab
    receipt = copied(plan, locations, locations.target.store)
    assert receipt == PartReceipt(rank_key(0), 1, receipt.etag, 392, None, "copy")


def test_a_refused_copy_is_no_error(lab):
    plan, locations = lab
    refusal = Unsupported("made up", problems=["ask another"])
    result = copied(plan, locations, FaultyStore(locations.target.store, Fault("copy_part", 1, refusal)))
    assert result == CopyRefusal(rank_key(0), 1, 392, "made up", ("ask another",))


CHILD = """
import pickle, sys
writer, plan, step_ids = pickle.load(sys.stdin.buffer)
receipts = []
for step_id in step_ids:
    for part in plan.step(*step_id).parts:
        for key in writer.keys(part.output):
            receipts.append(writer.stream(key, part, memoryview(bytes(part.range.nbytes)), memoryview(b"")))
pickle.dump(receipts, sys.stdout.buffer)
"""


def test_a_writer_in_another_process(tmp_path):
    """It gets there pickled, with the plan; its receipts complete the upload here."""
    plan, locations = plan_and_locations(LocalStore(tmp_path / "from"), LocalStore(tmp_path / "to"))
    store = locations.target.store
    uploads = {key: store.create_upload(f"to/{key}") for output in plan.outputs for key in output.keys}
    ids = [(group, n) for group in range(len(plan.groups)) for n in plan.group_steps(group).numbers]
    sent = pickle.dumps((PartWriter(plan, uploads, locations, lambda: False), plan, ids))
    done = subprocess.run([sys.executable, "-c", CHILD], input=sent, capture_output=True, check=True)
    receipts = pickle.loads(done.stdout)
    for key, upload in uploads.items():
        parts = sorted((receipt.number, receipt.etag) for receipt in receipts if receipt.key == key)
        store.complete_upload(upload, parts)
    assert stored(locations.target) == {key: bytes(output.nbytes) for output in plan.outputs for key in output.keys}


def test_all_uploads_are_opened_before_the_first_part(lab):
    plan, locations = lab
    faulty = FaultyStore(locations.target.store)
    execute(plan, locations.sources[0], Location(faulty, "to"))
    verbs = [verb for verb, _ in faulty.log]
    assert verbs.count("create_upload") == 2
    assert verbs.index("upload_part") > max(i for i, verb in enumerate(verbs) if verb == "create_upload")
