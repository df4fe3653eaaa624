"""A bit that flips in what decides what other bytes mean: a header, a listing, a number that training resumes by."""

import dataclasses
import uuid
from contextlib import contextmanager

import numpy as np
import pytest
from support.checkpoints import encode, encode_ckpt, random_model
from support.settings import clear_settings

import reshard
from reshard.engine.digest import ReadProof
from reshard.errors import SourceError, StorageError
from reshard.storage import KeptChecksum, Location, MemoryStore
from reshard.storage.checksums import crc_of
from reshard.tensor import ByteRange, DType

MODEL = random_model({"block.0.weight": ("F32", (6, 4)), "block.1.weight": ("BF16", (3, 5)), "norm": ("F16", (7,))})
LAYOUT = b"""
axes: {mp: 2}
rules: [{match: "*w", split: [mp]}]
"""
STEP = random_model({"w": ("F32", (8, 8)), "adam_m.w": ("F32", (8, 8))})
STEP["global_step"] = (DType.I32, (1,), np.array([[210, 4, 0, 0]], np.uint8))


class Network:
    """What lies between a memory store and its reader: it flips one bit in the ``number``-th read of it."""

    def __init__(self, monkeypatch, *, keeps: bool) -> None:
        self.seen, self.number, self.bit = 0, 0, 0
        self.lost_names = 0
        read_into, head, listing = MemoryStore.read_into, MemoryStore.head, MemoryStore.list

        def damaged(store, key, span, target, etag=None):
            read_into(store, key, span, target, etag)
            at = self.bit // 8 - span.start
            if "source" in store.url and 0 <= at < span.nbytes:
                self.seen += 1
                target[at] ^= (self.seen == self.number) << self.bit % 8

        def told(store, key):
            info = head(store, key)
            if not keeps:
                return info
            body = bytearray(info.nbytes)
            read_into(store, key, ByteRange(0, info.nbytes), memoryview(body))
            return dataclasses.replace(info, checksum=KeptChecksum("crc32c", crc_of(body)))

        def listed(store, prefix):
            found = list(listing(store, prefix))
            self.lost_names, lost = max(0, self.lost_names - 1), self.lost_names
            return iter(found[:-1] if lost and "source" in store.url else found)

        monkeypatch.setattr(MemoryStore, "read_into", damaged)
        monkeypatch.setattr(MemoryStore, "head", told)
        monkeypatch.setattr(MemoryStore, "list", listed)
        monkeypatch.setattr(MemoryStore, "may_keep_checksums", keeps)

    @contextmanager
    def flipping(self, bit: int, number: int):
        self.seen, self.number, self.bit = 0, number, bit
        yield
        assert self.seen >= number
        self.number = 0


@pytest.fixture(params=["verify", "kept"])
def proving(request, monkeypatch):
    """A network that damages bytes, and the options of a run that proves what it reads."""
    clear_settings(monkeypatch)
    return Network(monkeypatch, keeps=request.param == "kept"), {"verify": request.param == "verify"}


def place_of(**objects: bytes) -> Location:
    store = MemoryStore(f"source-{uuid.uuid4().hex}")
    for name, data in objects.items():
        store.put(f"hf/{name.replace('__', '.')}", data)
    return Location(store, "hf")


def target() -> str:
    return f"memory://{uuid.uuid4().hex}/to"


def header_bytes(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


@pytest.mark.parametrize("number", [1, 2])
def test_bits_all_over_a_header(proving, number):
    network, how = proving
    data = encode(MODEL)
    source, dst = place_of(model__safetensors=data), target()
    right = reshard.plan(source.url, dst, rename=["block=layer"], **how).conversion
    for byte in range(number, header_bytes(data), 4):
        with network.flipping(8 * byte + byte % 8, number):
            assert reshard.plan(source.url, dst, rename=["block=layer"], **how).conversion == right


@pytest.mark.parametrize("number", [1, 2])
def test_bits_all_over_a_ckpt(proving, number):
    network, how = proving
    data = encode_ckpt(random_model({f"t{n}": ("F32", (4,)) for n in range(4)}))
    source, dst = place_of(model__ckpt=data), target()
    right = reshard.plan(source.url, dst, **how).conversion
    for byte in range(number, len(data), 5):
        with network.flipping(8 * byte + byte % 8, number):
            assert reshard.plan(source.url, dst, **how).conversion == right


def test_without_a_proof_a_flipped_name_goes_through(monkeypatch):
    network = Network(monkeypatch, keeps=True)
    data = encode(MODEL)
    source = place_of(model__safetensors=data)
    with network.flipping(8 * data.index(b"norm"), 1):
        plan = reshard.plan(source.url, target(), integrity="off")
    assert "oorm" in {entry.spec.name for entry in plan.catalog.entries}


def test_a_header_that_never_comes_the_same_is_refused(proving, monkeypatch):
    _, how = proving
    data, count = encode(MODEL), iter(range(10**6))
    source, read_into = place_of(model__safetensors=data), MemoryStore.read_into

    def always(store, key, span, into, etag=None):
        read_into(store, key, span, into, etag)
        if "source" in store.url:
            into[0] ^= next(count) % 255 + 1

    monkeypatch.setattr(MemoryStore, "read_into", always)
    with pytest.raises(StorageError, match="no two of 5 reads"):
        reshard.plan(source.url, target(), **how)


def test_a_listing_that_loses_a_name(monkeypatch):
    """A source of two objects without an index would be refused; with the last lost it would be the first alone."""
    network = Network(monkeypatch, keeps=False)
    source = place_of(a__safetensors=encode(MODEL), b__safetensors=encode(STEP))
    network.lost_names = 1
    assert reshard.plan(source.url, target()).catalog.objects
    network.lost_names = 1
    with pytest.raises(SourceError, match="2 safetensors objects and no index"):
        reshard.plan(source.url, target(), verify=True)


def test_the_gaps_of_a_checksum_are_read_again(monkeypatch):
    """The ranges of a run are right, and the header that is read for nothing but the checksum is not."""
    network = Network(monkeypatch, keeps=True)
    data = encode(random_model({"a": ("F32", (64, 64))}))
    source, dst = place_of(model__safetensors=data), target()
    with network.flipping(80, 3):  # the plan reads it twice
        manifest = reshard.convert(source.url, dst, copy="never", rename=["a=b"])
    assert manifest.reads == ReadProof(1, 1, 1)


@pytest.mark.parametrize("number", [1, 2])
def test_the_step_that_training_resumes_at(monkeypatch, number):
    network = Network(monkeypatch, keeps=False)
    source = place_of(model__safetensors=encode(STEP), layout__yaml=LAYOUT)
    how = {"form": "iteration", "dst_layout": source.child("layout.yaml").url}
    right = reshard.plan(source.url, target(), **how).catalog
    [entry] = [entry for entry in right.entries if entry.spec.name == "global_step"]
    with network.flipping(8 * entry.placements[0].holders[0][1] + 3, number):
        found = reshard.plan(source.url, target(), **how).catalog
    assert found.training_state == right.training_state
    assert found.training_state["global_step"] is not None
