from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from storage.contract import StoreContract
from storage.copy_contract import CopyContract
from support.faulty_store import Fault, FaultyStore
from support.recording_store import RecordingReadStore, RecordingStore, recording

from reshard.errors import NotFound, Transient
from reshard.storage import MemoryStore, Store, StoreLimits, unwrapped
from reshard.storage.fsspec_store import FsspecStore
from reshard.tensor import ByteRange


class TestRecordingStore(StoreContract, CopyContract):
    @pytest.fixture
    def store(self) -> RecordingStore:
        return RecordingStore(MemoryStore(limits=StoreLimits(min_part_bytes=1000)))

    @pytest.fixture
    def neighbour(self) -> RecordingStore:
        return RecordingStore(MemoryStore())


def test_counts_by_kind() -> None:
    store = RecordingStore(MemoryStore())
    store.put("a", b"12345")
    upload = store.create_upload("b")
    etag = store.upload_part(upload, 1, 0, b"123").etag
    list(store.list_parts(upload))
    store.complete_upload(upload, [(1, etag)])
    store.abort_upload(upload)
    store.head("a")
    list(store.list(""))
    store.read("a", ByteRange(0, 2))
    store.read_into("a", ByteRange(0, 4), memoryview(bytearray(4)))
    store.delete("a")
    list(store.open_uploads(""))
    expected = {"put", "create", "part", "parts", "complete", "abort", "head", "list", "get", "delete", "uploads"}
    assert store.figures.requests == dict.fromkeys(expected, 1) | {"get": 2}
    assert (store.figures.read_bytes, store.figures.written_bytes, store.figures.request_count) == (6, 8, 12)


def test_copies_count_where_they_go() -> None:
    source, target = recording(MemoryStore()), RecordingStore(MemoryStore(limits=StoreLimits(min_copy_source_bytes=1)))
    unwrapped(source).put("a", b"12345")
    upload = target.create_upload("b")
    target.copy_part(upload, 1, 0, source, "a", ByteRange(1, 4))
    with pytest.raises(NotFound):
        target.copy_part(upload, 2, 3, source, "none", ByteRange(1, 4))
    figures = target.figures
    assert figures.requests == {"create": 1, "copy": 2}
    assert (figures.copied_bytes, figures.read_bytes, figures.written_bytes) == (3, 0, 0)
    assert source.figures.request_count == 0


def test_figures_are_a_snapshot() -> None:
    store = RecordingStore(MemoryStore())
    before = store.figures
    store.put("a", b"x")
    assert (before.request_count, store.figures.request_count) == (0, 1)


def test_counts_from_many_threads() -> None:
    store = RecordingStore(MemoryStore())
    store.put("a", b"x" * 10)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.read("a", ByteRange(0, 10)), range(500)))
    assert (store.figures.requests["get"], store.figures.read_bytes) == (500, 5000)


def test_failed_calls_count_without_bytes() -> None:
    store = RecordingStore(FaultyStore(MemoryStore(), Fault("put")))
    with pytest.raises(Transient):
        store.put("a", b"x")
    assert (store.figures.requests["put"], store.figures.written_bytes) == (1, 0)


def test_wraps_by_what_the_store_can_do() -> None:
    assert isinstance(recording(MemoryStore()), RecordingStore)
    read_only = recording(FsspecStore("memory://x"))
    assert type(read_only) is RecordingReadStore
    assert not isinstance(read_only, Store)


def test_unwrapped_is_the_store_that_does_the_work() -> None:
    store = MemoryStore()
    assert unwrapped(recording(recording(store))) is unwrapped(store) is store


def test_identity_and_provider_are_passed_on() -> None:
    for store, identity, provider in (
        (MemoryStore("lab"), "memory://lab", "memory"),
        (FsspecStore("https://host.example"), "https://host.example", "https://"),
    ):
        assert (recording(store).identity, recording(store).provider) == (identity, provider)


class TestFaultyStore:
    def test_passes_on(self) -> None:
        store = FaultyStore(MemoryStore())
        store.put("a", b"hello")
        assert store.read("a", ByteRange(0, 5)) == b"hello"
        assert [info.key for info in store.list("")] == ["a"]
        assert store.log == [("put", "a"), ("read", "a"), ("list", "")]
        assert isinstance(store, Store)

    def test_fails_at_the_call_wanted(self) -> None:
        store = FaultyStore(MemoryStore(), Fault("put", 2, OSError("made up")))
        store.put("a", b"1")
        with pytest.raises(OSError, match="made up"):
            store.put("b", b"2")
        store.put("c", b"3")
        assert [info.key for info in store.inner.list("")] == ["a", "c"]

    def test_cuts_a_read(self) -> None:
        store = FaultyStore(MemoryStore(), Fault("read_into"))
        store.put("a", b"hello!")
        buffer = bytearray(6)
        with pytest.raises(Transient):
            store.read_into("a", ByteRange(0, 6), memoryview(buffer))
        assert buffer == b"hel\0\0\0"

    def test_loses_an_answer(self) -> None:
        store = FaultyStore(MemoryStore(), Fault("put", after=True))
        with pytest.raises(Transient):
            store.put("a", b"x")
        assert store.head("a").nbytes == 1

    def test_calls_a_hook(self) -> None:
        seen = []
        store = FaultyStore(MemoryStore(), Fault("put", error=lambda: seen.append("now")))
        store.put("a", b"x")
        assert seen == ["now"]
        assert store.head("a").nbytes == 1
