from __future__ import annotations

import pytest
from storage.contract import StoreContract
from storage.copy_contract import CopyContract

from reshard.errors import StorageError, Unsupported
from reshard.storage import LocalStore, MemoryStore, StoreLimits
from reshard.tensor import ByteRange


class TestMemoryStore(StoreContract, CopyContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(limits=StoreLimits(min_part_bytes=1000))

    @pytest.fixture
    def neighbour(self) -> MemoryStore:
        return MemoryStore()

    def test_same_name_same_objects(self) -> None:
        MemoryStore("here").put("a", b"1")
        assert MemoryStore("here").head("a").nbytes == 1
        assert list(MemoryStore("there").list("")) == list(MemoryStore().list("")) == []
        MemoryStore("here").clear()
        assert list(MemoryStore("here").list("")) == []

    def test_insists_on_its_smallest_part(self, store: MemoryStore) -> None:
        upload = store.create_upload("a")
        sent = [(number, store.upload_part(upload, number, 0, b"x" * 999).etag) for number in (1, 2)]
        with pytest.raises(StorageError, match="below 1000 bytes"):
            store.complete_upload(upload, sent)

    def test_insists_on_a_source_long_enough(self, store: MemoryStore) -> None:
        fewest = store.limits.min_copy_source_bytes
        for key, nbytes in (("short", fewest - 1), ("long", fewest)):
            store.put(key, bytes(nbytes))
        upload = store.create_upload("a")
        with pytest.raises(Unsupported, match=f"short is shorter than {fewest} bytes"):
            store.copy_part(upload, 1, 0, store, "short", ByteRange(0, 1))
        assert store.copy_part(upload, 1, 0, store, "long", ByteRange(0, 1)).etag

    def test_copies_nothing_if_its_limits_say_so(self, neighbour: MemoryStore, tmp_path: object) -> None:
        store = MemoryStore(limits=StoreLimits(can_copy=False))
        assert not store.copies_from(neighbour)
        assert neighbour.copies_from(store)
        assert not neighbour.copies_from(LocalStore(str(tmp_path)))
