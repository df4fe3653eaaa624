from __future__ import annotations

import pytest
from storage.contract import StoreContract

from reshard.errors import StorageError
from reshard.storage import MemoryStore, StoreLimits


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(limits=StoreLimits(min_part_bytes=1000))

    def test_same_name_same_objects(self) -> None:
        MemoryStore("here").put("a", b"1")
        assert MemoryStore("here").head("a").nbytes == 1
        assert list(MemoryStore("there").list("")) == list(MemoryStore().list("")) == []
        MemoryStore("here").clear()
        assert list(MemoryStore("here").list("")) == []

    def test_insists_on_its_smallest_part(self, store: MemoryStore) -> None:
        upload = store.create_upload("a")
        sent = [(number, store.upload_part(upload, number, 0, b"x" * 999)) for number in (1, 2)]
        with pytest.raises(StorageError, match="below 1000 bytes"):
            store.complete_upload(upload, sent)
