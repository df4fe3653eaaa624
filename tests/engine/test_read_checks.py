"""What proves that bytes arrived as they are stored: checksums of ranges joined, and reads that agree."""

import random
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import encode, random_model, stored
from support.faulty_store import FaultyStore

import reshard
from reshard.engine.digest import ReadLedger, ReadProof
from reshard.engine.execute import execute
from reshard.engine.manifest import decode_manifest, encode_manifest
from reshard.errors import StorageError, UsageError
from reshard.planning.limits import Integrity, Limits
from reshard.storage import KeptChecksum, Location, MemoryStore
from reshard.storage.checksums import crc_of, read_until_equal
from reshard.tensor import ByteRange

MODEL = random_model({f"block.{n}": ("F32", (64, 32)) for n in range(4)})
DATA = encode(MODEL)
ALGORITHMS = ("crc32c", "crc64nvme", "crc32")


def ledger_of(data, spans, algorithm="crc32c", damaged=None):
    ledger = ReadLedger({7: KeptChecksum(algorithm, crc_of(data, algorithm))})
    for number, (start, stop) in enumerate(spans):
        block = bytearray(data[start:stop])
        if number == damaged:
            block[len(block) // 2] ^= 1
        ledger.add(7, ByteRange(start, stop), memoryview(block))
    return ledger


def settled(ledger, data):
    return ledger.settle(7, len(data), lambda span: data[span.start : span.stop])


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(0, 300)), st.sampled_from(ALGORITHMS), st.data())
def test_ranges_in_any_order_with_any_gaps(data, cuts, algorithm, draw):
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    spans = [(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    some = draw.draw(st.lists(st.sampled_from(spans), min_size=1, unique=True))
    assert settled(ledger_of(data, some, algorithm), data) is True
    assert settled(ledger_of(data, some, algorithm, draw.draw(st.integers(0, len(some) - 1))), data) is False


@given(st.binary(min_size=50, max_size=300), st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), max_size=9))
def test_ranges_that_overlap(data, pairs):
    spans = [(start % len(data), min(len(data), start % len(data) + nbytes)) for start, nbytes in pairs]
    assert settled(ledger_of(data, spans), data) is (True if spans else None)


def test_too_little_of_an_object_proves_nothing():
    data = bytes(17 << 20)
    assert settled(ledger_of(data, [(0, 100)]), data) is None
    assert settled(ledger_of(data, []), data) is None


def test_objects_without_a_checksum_are_not_counted():
    ledger = ReadLedger({})
    ledger.add(0, ByteRange(0, 3), memoryview(b"abc"))
    assert not ledger.kept


@pytest.mark.parametrize(("reads", "right"), [(["a", "a"], "a"), (["x", "a", "a"], "a"), (["a", "x", "a"], "a")])
def test_two_reads_must_agree(reads, right):
    coming = iter(reads[1:])
    target = bytearray(reads[0].encode())

    def fetch():
        target[:] = next(coming).encode()

    read_until_equal(memoryview(target), fetch, "here")
    assert target == right.encode()
    assert next(coming, None) is None


def test_reads_that_never_agree_are_given_up():
    target = bytearray(4)

    def fetch():
        target[:] = random.randbytes(4)

    with pytest.raises(StorageError, match=r"here: no two of 5 reads"):
        read_until_equal(memoryview(target), fetch, "here")


class Damaging(FaultyStore):
    """Flips a bit of every third read of tensors."""

    count = 0

    def read_into(self, key, span, target, etag=None):
        super().read_into(key, span, target, etag)
        type(self).count += 1
        if type(self).count % 3 == 0:
            target[len(target) // 2] ^= 16


def places():
    source, target = MemoryStore(), MemoryStore()
    source.put("hf/model.safetensors", DATA)
    return Location(source, "hf"), Location(target, "to")


@pytest.mark.parametrize("read_count", [1, 2])
def test_reading_twice_is_what_finds_damaged_reads(read_count):
    Damaging.count = 0
    source, target = places()
    how = {"rename": ["block=layer"], "concurrency": 1, "memory": "16MiB", "copy": "never", "verify": read_count == 2}
    plan = reshard.plan(source.url, target.url, **how)
    plan = replace(plan, limits=replace(plan.limits, read_bytes=9000))
    manifest = execute(plan, Location(Damaging(source.store), "hf"), target)
    right = reshard.convert(source.url, f"memory://{uuid.uuid4().hex}/to", **how | {"verify": False})
    clean = stored(Location(MemoryStore(right.conversion.target_url.split("/")[2]), "to"))
    found = stored(target)
    assert (found["model.safetensors"] == clean["model.safetensors"]) is (read_count == 2)
    assert manifest.reads == ReadProof(read_count, 1, 0)


def test_a_second_read_is_in_the_plan():
    source, target = places()
    once, twice = (reshard.plan(source.url, target.url, copy="never", verify=verify).cost for verify in (False, True))
    assert (twice.read_bytes, twice.get_count) == (2 * once.read_bytes, 2 * once.get_count)
    assert twice.peak_bytes == once.peak_bytes


@pytest.mark.parametrize("integrity", list(Integrity))
def test_what_was_proven_is_in_the_manifest(integrity):
    source, target = places()
    manifest = reshard.convert(source.url, target.url, integrity=integrity.value)
    assert manifest.limits.integrity is integrity
    assert manifest.reads == ReadProof(2 if integrity is Integrity.STRICT else 1, 1, 0)
    assert {receipt.proof for receipt in manifest.receipts} == {"local"}
    again = decode_manifest(encode_manifest(manifest), "here")
    assert (again.reads, again.limits, again.receipts) == (manifest.reads, manifest.limits, manifest.receipts)


def test_contradicting_options():
    with pytest.raises(UsageError, match="contradict"):
        reshard.plan("memory://a/b", "memory://a/c", verify=True, integrity="off")


def test_limits_of_reading():
    with pytest.raises(UsageError, match="read_count must be at most 2"):
        Limits(read_count=3)


def test_proofs_of_several_runs():
    assert ReadProof.joined([ReadProof(2, 3, 1), ReadProof(1, 4, 4)]) == ReadProof(1, 7, 5)
    assert ReadProof.joined([]) == ReadProof()
