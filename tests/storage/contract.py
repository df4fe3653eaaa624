"""What every store must do, as tests: a subclass says which store.

A subclass gives the fixture ``store`` (empty, or at least without keys below ``base``); one of
ReadStoreContract also gives ``write``, which puts an object there by other means. ``reopen`` opens a
store by its URL, as another process would.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from reshard.errors import Interrupted, NotFound, SourceChanged, StorageError, UsageError
from reshard.storage import Location, ObjectInfo, PartInfo, ReadStore, Store, Upload, open_store
from reshard.tensor import ByteRange

Write = Callable[[str, bytes], object]
Reopen = Callable[[str], ReadStore]

ODD_NAMES = [
    "with space.bin",
    "plus+and%percent%2F.bin",
    "权重-ünï.safetensors",
    "a=b&c;d,e@f!g(h)'i~$.bin",
    "colon:star*.bin",
    ".hidden",
    "UPPER.bin",
]


def body(nbytes: int, seed: int = 0) -> bytes:
    """Bytes that differ everywhere, so that a shift shows."""
    return random.Random(seed).randbytes(nbytes)


class ReadStoreContract:
    """Of :class:`reshard.storage.ReadStore`."""

    odd_names = ODD_NAMES

    @pytest.fixture
    def base(self) -> str:
        return f"t-{uuid.uuid4().hex}"

    @pytest.fixture
    def reopen(self) -> Reopen:
        return open_store

    def test_is_read_store(self, store: ReadStore) -> None:
        assert isinstance(store, ReadStore)
        assert not store.url.endswith("/")
        assert store.provider

    def test_url_opens_an_equal_store(self, store: ReadStore, write: Write, reopen: Reopen, base: str) -> None:
        write(f"{base}/a", b"hello")
        again = reopen(store.url)
        assert again is not store
        assert (again.url, again.identity, again.provider) == (store.url, store.identity, store.provider)
        assert isinstance(again, Store) == isinstance(store, Store)
        assert again.head(f"{base}/a") == store.head(f"{base}/a")
        assert content(again, store.head(f"{base}/a")) == b"hello"

    def test_head_or_none(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        place = Location(store, base)
        assert place.child("a").head_or_none() == store.head(f"{base}/a")
        assert place.child("b").head_or_none() is None

    def test_head_tells_length_and_etag(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        info = store.head(f"{base}/a")
        assert (info.key, info.nbytes) == (f"{base}/a", 5)
        assert info.etag

    def test_etag_follows_content(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        before = store.head(f"{base}/a").etag
        assert store.head(f"{base}/a").etag == before
        write(f"{base}/a", b"world!")
        assert store.head(f"{base}/a").etag != before

    def test_missing_object_is_not_found(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        with pytest.raises(NotFound, match=base):
            store.head(f"{base}/b")
        with pytest.raises(NotFound, match=base):
            store.read(f"{base}/b", ByteRange(0, 1))

    def test_prefix_is_no_object(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        with pytest.raises(NotFound):
            store.head(base)

    def test_list_is_in_key_order(self, store: ReadStore, write: Write, base: str) -> None:
        names = ["a/b", "a.txt", "a/c/d", "a0", "b", "a/B"]
        for name in names:
            write(f"{base}/{name}", name.encode())
        found = list(store.list(f"{base}/"))
        assert [info.key for info in found] == sorted(f"{base}/{name}" for name in names)
        assert found == [store.head(info.key) for info in found]

    def test_list_takes_any_prefix(self, store: ReadStore, write: Write, base: str) -> None:
        for name in ["ab/1", "ab/2", "abc", "b"]:
            write(f"{base}/{name}", b"x")

        def listed(prefix: str) -> list[str]:
            return [info.key.removeprefix(f"{base}/") for info in store.list(f"{base}/{prefix}")]

        assert listed("ab") == ["ab/1", "ab/2", "abc"]
        assert listed("ab/") == ["ab/1", "ab/2"]
        assert listed("ab/2") == ["ab/2"]
        assert listed("none/") == []

    def test_list_is_lazy_or_empty(self, store: ReadStore, base: str) -> None:
        assert list(store.list(f"{base}/nothing/here/")) == []

    def test_read_ranges(self, store: ReadStore, write: Write, base: str) -> None:
        data = body(1000)
        write(f"{base}/a", data)
        etag = store.head(f"{base}/a").etag
        for start, stop in [(0, 1000), (0, 1), (999, 1000), (17, 517), (5, 5), (1000, 1000)]:
            assert store.read(f"{base}/a", ByteRange(start, stop)) == data[start:stop]
            assert store.read(f"{base}/a", ByteRange(start, stop), etag) == data[start:stop]

    def test_read_into_fills_the_given_view_only(self, store: ReadStore, write: Write, base: str) -> None:
        data = body(3 << 20)
        write(f"{base}/a", data)
        buffer = bytearray(len(data) + 2)
        store.read_into(f"{base}/a", ByteRange(0, len(data)), memoryview(buffer)[1:-1])
        assert buffer == b"\0" + data + b"\0"

    @pytest.mark.parametrize("target", [memoryview(bytearray(3)), memoryview(bytes(2)), memoryview(bytearray(4))[::2]])
    def test_read_into_wants_a_fitting_buffer(self, store: ReadStore, target: memoryview, base: str) -> None:
        with pytest.raises(UsageError, match="buffer"):
            store.read_into(f"{base}/a", ByteRange(0, 2), target)

    def test_read_past_the_end_fails(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        for start, stop in [(0, 6), (5, 6), (7, 9)]:
            with pytest.raises(StorageError, match="cannot be read"):
                store.read(f"{base}/a", ByteRange(start, stop))

    def test_replaced_object_is_refused(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        etag = store.head(f"{base}/a").etag
        write(f"{base}/a", b"HELLO, longer")
        with pytest.raises(SourceChanged, match=base):
            store.read(f"{base}/a", ByteRange(0, 5), etag)
        assert store.read(f"{base}/a", ByteRange(0, 5)) == b"HELLO"

    def test_empty_object(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/empty", b"")
        assert store.head(f"{base}/empty").nbytes == 0
        assert store.read(f"{base}/empty", ByteRange(0, 0)) == b""

    def test_odd_keys_are_read(self, store: ReadStore, write: Write, base: str) -> None:
        for name in self.odd_names:
            write(f"{base}/{name}", name.encode())
        assert [info.key for info in store.list(f"{base}/")] == sorted(f"{base}/{name}" for name in self.odd_names)
        for name in self.odd_names:
            nbytes = store.head(f"{base}/{name}").nbytes
            assert store.read(f"{base}/{name}", ByteRange(0, nbytes)) == name.encode()

    def test_many_threads_read(self, store: ReadStore, write: Write, base: str) -> None:
        data = body(64 << 10)
        write(f"{base}/a", data)
        spans = [ByteRange(start, start + 4096) for start in range(0, len(data), 4096)]
        with ThreadPoolExecutor(8) as pool:
            assert b"".join(pool.map(lambda span: store.read(f"{base}/a", span), spans)) == data

    def test_stops_when_told(self, store: ReadStore, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        store.should_stop = lambda: True
        try:
            with pytest.raises(Interrupted):
                store.read(f"{base}/a", ByteRange(0, 5))
        finally:
            store.should_stop = lambda: False
        assert store.read(f"{base}/a", ByteRange(0, 5)) == b"hello"


class StoreContract(ReadStoreContract):
    """Of :class:`reshard.storage.Store`."""

    knows_last_part = True
    looks_before_writing = True

    @pytest.fixture
    def write(self, store: Store) -> Write:
        return store.put

    @pytest.fixture
    def parts(self, store: Store) -> list[bytes]:
        """Three parts, the last a small one."""
        size = store.limits.min_part_bytes
        return [body(size, 1), body(size + 3, 2), b"the end"]

    @pytest.fixture(autouse=True)
    def _no_upload_left(self, store: Store, base: str) -> Iterator[None]:
        yield
        for upload in list(store.open_uploads(base)):
            store.abort_upload(upload)

    def test_is_store(self, store: Store) -> None:
        assert isinstance(store, Store)
        assert Location(store, "a").writable_store() is store

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_put_takes_any_buffer(self, store: Store, base: str, kind: type) -> None:
        info = store.put(f"{base}/a", kind(b"hello"))
        assert info == store.head(f"{base}/a")
        assert content(store, info) == b"hello"

    def test_put_of_a_large_body(self, store: Store, base: str) -> None:
        data = body(300_000)
        assert content(store, store.put(f"{base}/a", memoryview(data)[7:])) == data[7:]

    def test_put_replaces(self, store: Store, base: str) -> None:
        store.put(f"{base}/a", b"a longer one")
        assert content(store, store.put(f"{base}/a", b"short")) == b"short"

    def test_put_over_one_object_only(self, store: Store, base: str) -> None:
        """A store refuses, or does not look: in no case may it do anything else."""
        made = store.put(f"{base}/a", b"first", None, "")
        again = store.put(f"{base}/a", b"second", None, made.etag)
        assert content(store, again) == b"second"
        for replaces in ("", made.etag):
            try:
                store.put(f"{base}/a", b"third", None, replaces)
            except SourceChanged:
                assert content(store, again) == b"second"
            else:
                assert not self.looks_before_writing

    def test_delete(self, store: Store, base: str) -> None:
        store.put(f"{base}/a", b"hello")
        store.delete(f"{base}/a")
        store.delete(f"{base}/a")
        with pytest.raises(NotFound):
            store.head(f"{base}/a")
        assert list(store.list(base)) == []

    def test_parts_in_any_order(self, store: Store, base: str, parts: list[bytes]) -> None:
        upload = store.create_upload(f"{base}/a")
        sent = {number: send(store, upload, number, parts) for number in (3, 1, 2)}
        info = store.complete_upload(upload, sorted(sent.items()))
        assert info == store.head(f"{base}/a")
        assert info.nbytes == sum(map(len, parts))
        assert content(store, info) == b"".join(parts)

    def test_part_sent_again_replaces(self, store: Store, base: str, parts: list[bytes]) -> None:
        upload = store.create_upload(f"{base}/a")
        store.upload_part(upload, 1, 0, parts[0][::-1])
        store.upload_part(upload, 3, len(parts[0]) + len(parts[1]), b"The END")
        sent = [(number, send(store, upload, number, parts)) for number in (1, 2, 3)]
        assert content(store, store.complete_upload(upload, sent)) == b"".join(parts)

    def test_only_part_may_be_small(self, store: Store, base: str) -> None:
        upload = store.create_upload(f"{base}/a")
        sent = [(1, store.upload_part(upload, 1, 0, memoryview(b"--small")[2:]).etag)]
        assert content(store, store.complete_upload(upload, sent)) == b"small"

    def test_invisible_until_complete(self, store: Store, base: str) -> None:
        upload = store.create_upload(f"{base}/new/a")
        sent = [(1, store.upload_part(upload, 1, 0, b"hello").etag)]
        with pytest.raises(NotFound):
            store.head(f"{base}/new/a")
        assert list(store.list(base)) == []
        store.complete_upload(upload, sent)
        assert [info.key for info in store.list(base)] == [f"{base}/new/a"]

    def test_old_object_stays_until_complete(self, store: Store, base: str) -> None:
        store.put(f"{base}/a", b"old")
        upload = store.create_upload(f"{base}/a")
        sent = [(1, store.upload_part(upload, 1, 0, b"new one").etag)]
        assert content(store, store.head(f"{base}/a")) == b"old"
        assert content(store, store.complete_upload(upload, sent)) == b"new one"

    def test_aborted_upload_is_gone(self, store: Store, base: str) -> None:
        upload = store.create_upload(f"{base}/new/a")
        sent = [(1, store.upload_part(upload, 1, 0, b"hello").etag)]
        store.abort_upload(upload)
        store.abort_upload(upload)
        assert list(store.open_uploads(base)) == []
        with pytest.raises(StorageError):
            store.upload_part(upload, 2, 5, b"late")
        with pytest.raises(StorageError):
            store.complete_upload(upload, sent)
        assert list(store.list(base)) == []

    def test_complete_refuses_wrong_parts(self, store: Store, base: str) -> None:
        upload = store.create_upload(f"{base}/a")
        store.upload_part(upload, 1, 0, b"hello")
        with pytest.raises(StorageError):
            store.complete_upload(upload, [(1, "0" * 32)])
        with pytest.raises(NotFound):
            store.head(f"{base}/a")

    def test_parts_are_listed(self, store: Store, base: str, parts: list[bytes]) -> None:
        upload = store.create_upload(f"{base}/new/a b+%")
        assert list(store.list_parts(upload)) == []
        etags = {number: send(store, upload, number, parts) for number in (3, 1)}
        found = list(store.list_parts(upload))
        assert found == [PartInfo(number, etags[number], len(parts[number - 1])) for number in (1, 3)]
        assert list(store.list(base)) == []

    def test_part_sent_again_is_listed_once(self, store: Store, base: str, parts: list[bytes]) -> None:
        upload = store.create_upload(f"{base}/a")
        for number in (1, 2, 2):
            etag = send(store, upload, number, parts)
        first, second = store.list_parts(upload)
        assert second == PartInfo(2, etag, len(parts[1]))
        etag = send(store, upload, 1, [parts[0][:-1]])
        found = list(store.list_parts(upload))
        assert found == ([PartInfo(1, etag, len(parts[0]) - 1), second] if self.knows_last_part else [second])
        assert first.etag != etag

    def test_parts_are_those_of_one_upload(self, store: Store, base: str) -> None:
        first, second = (store.create_upload(f"{base}/a") for _ in range(2))
        store.upload_part(first, 1, 0, b"one")
        store.upload_part(second, 2, 0, b"second")
        assert [(each.number, each.nbytes) for each in store.list_parts(first)] == [(1, 3)]
        assert [(each.number, each.nbytes) for each in store.list_parts(second)] == [(2, 6)]

    def test_parts_of_no_upload_are_not_found(self, store: Store, base: str) -> None:
        done, aborted = (store.create_upload(f"{base}/{name}") for name in ("done", "aborted"))
        store.complete_upload(done, [(1, store.upload_part(done, 1, 0, b"x").etag)])
        store.upload_part(aborted, 1, 0, b"x")
        store.abort_upload(aborted)
        for upload in (done, aborted):
            with pytest.raises(NotFound):
                list(store.list_parts(upload))

    def test_another_process_continues(self, store: Store, reopen: Reopen, base: str, parts: list[bytes]) -> None:
        upload = store.create_upload(f"{base}/a")
        send(store, upload, 2, parts)
        other = Location(reopen(store.url), "").writable_store()
        known = Upload(upload.key, upload.upload_id)
        assert known in list(other.open_uploads(upload.key))
        for number in {1, 2, 3} - {each.number for each in other.list_parts(known)}:
            send(other, known, number, parts)
        info = other.complete_upload(known, [(each.number, each.etag) for each in other.list_parts(known)])
        assert content(store, info) == b"".join(parts)

    def test_open_uploads_are_listed(self, store: Store, base: str) -> None:
        names = ["x/a", "x/b c+%", "xy", "z"]
        uploads = {name: store.create_upload(f"{base}/{name}") for name in names}
        assert {upload.key for upload in store.open_uploads(f"{base}/x")} == {f"{base}/{name}" for name in names[:3]}
        assert list(store.open_uploads(f"{base}/z")) == [uploads["z"]]
        sent = store.upload_part(uploads["z"], 1, 0, b"z").etag
        store.complete_upload(uploads["z"], [(1, sent)])
        store.abort_upload(uploads["xy"])
        assert {upload.key for upload in store.open_uploads(base)} == {f"{base}/{name}" for name in names[:2]}

    def test_two_uploads_of_one_key(self, store: Store, base: str) -> None:
        first, second = (store.create_upload(f"{base}/a") for _ in range(2))
        sent = [store.upload_part(upload, 1, 0, name).etag for upload, name in ((first, b"first"), (second, b"second"))]
        assert content(store, store.complete_upload(first, [(1, sent[0])])) == b"first"
        assert content(store, store.complete_upload(second, [(1, sent[1])])) == b"second"

    def test_odd_keys_are_written_by_parts(self, store: Store, base: str) -> None:
        for name in self.odd_names:
            upload = store.create_upload(f"{base}/{name}")
            sent = [(1, store.upload_part(upload, 1, 0, name.encode()).etag)]
            assert content(store, store.complete_upload(upload, sent)) == name.encode()

    def test_many_threads_write(self, store: Store, base: str, parts: list[bytes]) -> None:
        def write(name: int) -> bytes:
            upload = store.create_upload(f"{base}/folder/{name}")
            sent = [(number, send(store, upload, number, parts)) for number in (2, 1, 3)]
            return content(store, store.complete_upload(upload, sorted(sent)))

        with ThreadPoolExecutor(4) as pool:
            assert all(data == b"".join(parts) for data in pool.map(write, range(4)))

    def test_writes_stop_when_told(self, store: Store, base: str) -> None:
        upload = store.create_upload(f"{base}/a")
        stop = threading.Event()
        store.should_stop = stop.is_set
        stop.set()
        try:
            with pytest.raises(Interrupted):
                store.upload_part(upload, 1, 0, body(200_000))
            with pytest.raises(Interrupted):
                store.put(f"{base}/b", body(200_000))
        finally:
            store.should_stop = lambda: False
        assert list(store.list(base)) == []


def send(store: Store, upload: object, number: int, parts: list[bytes]) -> str:
    """Upload part ``number`` of ``parts``."""
    return store.upload_part(upload, number, sum(map(len, parts[: number - 1])), memoryview(parts[number - 1])).etag


def content(store: ReadStore, info: ObjectInfo) -> bytes:
    """Read an object whole, pinned to its etag."""
    return store.read(info.key, ByteRange(0, info.nbytes), info.etag)
