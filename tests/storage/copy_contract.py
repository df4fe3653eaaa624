"""What every store that makes parts of bytes it holds must do, as tests: a subclass says which store.

Besides ``store`` a subclass gives ``neighbour``: another store that the first one copies from.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from storage.contract import ODD_NAMES, body, content
from support.recording_store import recording

from reshard.errors import Interrupted, NotFound, SourceChanged, StorageError, Unsupported, UsageError
from reshard.storage import ObjectInfo, PartCopier, PartInfo, Store, Upload
from reshard.storage.fsspec_store import FsspecStore
from reshard.tensor import ByteRange


class CopyContract:
    """Of :class:`reshard.storage.PartCopier`."""

    odd_names = ODD_NAMES
    honours_copy_etag = True
    sees_copies_past_the_end = True

    @pytest.fixture(scope="class")
    @classmethod
    def large(cls) -> bytes:
        """Enough for two ranges that may be parts, and for S3 to copy ranges of it."""
        return body(12 << 20, 7)

    @pytest.fixture
    def source(self, store: Store, base: str, large: bytes) -> ObjectInfo:
        return store.put(f"{base}/source/a", large)

    @pytest.fixture
    def part_bytes(self, store: Store) -> int:
        return store.limits.min_part_bytes

    def test_is_copier(self, store: Store, neighbour: Store) -> None:
        assert isinstance(store, PartCopier)
        assert store.limits.can_copy
        for source in (store, neighbour, recording(store), recording(recording(neighbour))):
            assert store.copies_from(source)

    def test_foreign_stores_are_refused(self, store: Store, base: str) -> None:
        foreign, upload = FsspecStore("https://host.example"), store.create_upload(f"{base}/a")
        assert not store.copies_from(foreign)
        with pytest.raises(Unsupported, match=r"cannot copy bytes from https://host\.example"):
            store.copy_part(upload, 1, 0, foreign, "a", ByteRange(0, 1))

    def test_copied_and_sent_parts_mix(
        self, store: Store, base: str, source: ObjectInfo, large: bytes, part_bytes: int
    ) -> None:
        first, second = ByteRange(17, 17 + part_bytes), ByteRange(3, 4 + part_bytes)
        sent = body(part_bytes, 1)
        expected = (large[first.start : first.stop], sent, large[second.start : second.stop], large[-5:], b"")
        upload = store.create_upload(f"{base}/a")
        copied = [
            (number, store.copy_part(upload, number, at(expected, number), store, source.key, span, source.etag).etag)
            for number, span in ((4, ByteRange(len(large) - 5, len(large))), (1, first), (3, second))
        ]
        streamed = (2, store.upload_part(upload, 2, part_bytes, sent).etag)
        info = store.complete_upload(upload, sorted([*copied, streamed]))
        assert info == store.head(f"{base}/a")
        assert content(store, info) == b"".join(expected)

    def test_copied_parts_are_listed(self, store: Store, base: str, source: ObjectInfo) -> None:
        upload = store.create_upload(f"{base}/a")
        part = store.copy_part(upload, 4, 7, store, source.key, ByteRange(3, 12), source.etag).etag
        assert list(store.list_parts(upload)) == [PartInfo(4, part, 9)]

    def test_small_last_part_is_sent_after_copied_ones(
        self, store: Store, base: str, source: ObjectInfo, large: bytes
    ) -> None:
        upload = store.create_upload(f"{base}/a")
        parts = [
            (1, copied(store, upload, source, ByteRange(0, source.nbytes))),
            (2, store.upload_part(upload, 2, source.nbytes, b"the end").etag),
        ]
        assert content(store, store.complete_upload(upload, parts)) == large + b"the end"

    def test_from_a_neighbour(self, store: Store, neighbour: Store, base: str, large: bytes) -> None:
        source = neighbour.put(f"{base}/a", large)
        upload = store.create_upload(f"{base}/a")
        for origin in (neighbour, recording(neighbour)):
            part = store.copy_part(upload, 1, 0, origin, source.key, ByteRange(1, 6), source.etag).etag
        assert content(store, store.complete_upload(upload, [(1, part)])) == large[1:6]
        assert content(neighbour, source) == large

    def test_part_made_again_replaces(self, store: Store, base: str, source: ObjectInfo, large: bytes) -> None:
        upload = store.create_upload(f"{base}/a")
        copied(store, upload, source, ByteRange(0, 9))
        store.upload_part(upload, 1, 0, b"sent")
        part = copied(store, upload, source, ByteRange(4, 9))
        assert content(store, store.complete_upload(upload, [(1, part)])) == large[4:9]

    def test_sent_part_replaces_a_copied_one(self, store: Store, base: str, source: ObjectInfo) -> None:
        upload = store.create_upload(f"{base}/a")
        copied(store, upload, source, ByteRange(0, 9))
        part = store.upload_part(upload, 1, 0, b"sent").etag
        assert content(store, store.complete_upload(upload, [(1, part)])) == b"sent"

    def test_object_is_made_anew_from_itself(self, store: Store, base: str, source: ObjectInfo, large: bytes) -> None:
        upload = store.create_upload(source.key)
        part = copied(store, upload, source, ByteRange(5, 1000))
        assert content(store, source) == large
        assert content(store, store.complete_upload(upload, [(1, part)])) == large[5:1000]

    def test_next_to_its_source(self, store: Store, base: str, source: ObjectInfo, large: bytes) -> None:
        for key in (f"{source.key}b", source.key[:-1] + "0", f"{base}/source.b"):
            upload = store.create_upload(key)
            part = copied(store, upload, source, ByteRange(0, 7))
            assert content(store, store.complete_upload(upload, [(1, part)])) == large[:7]
        assert content(store, source) == large

    def test_odd_keys_are_copied(self, store: Store, base: str, large: bytes) -> None:
        for number, name in enumerate(self.odd_names):
            source = store.put(f"{base}/from/{name}", large)
            upload = store.create_upload(f"{base}/to/{name}")
            part = copied(store, upload, source, ByteRange(number, number + 4))
            assert content(store, store.complete_upload(upload, [(1, part)])) == large[number : number + 4]

    def test_replaced_source_is_refused(self, store: Store, base: str, source: ObjectInfo, large: bytes) -> None:
        upload = store.create_upload(f"{base}/a")
        store.put(source.key, large[::-1])
        if self.honours_copy_etag:
            with pytest.raises(SourceChanged, match=f"{base}/source/a has changed"):
                copied(store, upload, source, ByteRange(0, 9))
        else:
            copied(store, upload, source, ByteRange(0, 9))
            assert store.head(source.key).etag != source.etag  # a look at the source tells
        part = store.copy_part(upload, 1, 0, store, source.key, ByteRange(0, 9)).etag
        assert content(store, store.complete_upload(upload, [(1, part)])) == large[:-10:-1]

    def test_missing_source_is_named(self, store: Store, base: str, source: ObjectInfo) -> None:
        upload = store.create_upload(f"{base}/a")
        for etag in (None, source.etag):
            with pytest.raises(NotFound, match=f"{base}/source/none"):
                store.copy_part(upload, 1, 0, store, f"{base}/source/none", ByteRange(0, 1), etag)

    def test_past_the_end(self, store: Store, base: str, source: ObjectInfo, large: bytes) -> None:
        upload = store.create_upload(f"{base}/a")
        past = ByteRange(source.nbytes - 3, source.nbytes + 1)
        if self.sees_copies_past_the_end:
            for span in (past, ByteRange(source.nbytes, source.nbytes + 1)):
                with pytest.raises(StorageError, match=f"{base}/source/a is .*cannot be read"):
                    copied(store, upload, source, span)
        else:
            part = copied(store, upload, source, past)
            assert content(store, store.complete_upload(upload, [(1, part)])) == large[-3:]  # its length tells

    @pytest.mark.parametrize(("start", "stop"), [(5, 5), (0, 0)])
    def test_nothing_is_no_part(self, store: Store, base: str, source: ObjectInfo, start: int, stop: int) -> None:
        upload = store.create_upload(f"{base}/a")
        with pytest.raises(UsageError, match="not a range"):
            copied(store, upload, source, ByteRange(start, stop))

    def test_copy_into_an_aborted_upload(self, store: Store, base: str, source: ObjectInfo) -> None:
        upload = store.create_upload(f"{base}/new/a")
        store.abort_upload(upload)
        with pytest.raises(StorageError):
            copied(store, upload, source, ByteRange(0, 9))
        assert [info.key for info in store.list(base)] == [source.key]

    def test_copies_stop_when_told(self, store: Store, base: str, source: ObjectInfo) -> None:
        upload = store.create_upload(f"{base}/a")
        store.should_stop = lambda: True
        try:
            with pytest.raises(Interrupted):
                copied(store, upload, source, ByteRange(0, 9))
        finally:
            store.should_stop = lambda: False


def copied(store: Store, upload: Upload, source: ObjectInfo, span: ByteRange) -> str:
    """Copy a range of an object of the same store into part 1, pinned."""
    return store.copy_part(upload, 1, 0, store, source.key, span, source.etag).etag


def at(parts: Sequence[bytes], number: int) -> int:
    """Where part ``number`` begins."""
    return sum(map(len, parts[: number - 1]))
