"""The journal of a run."""

import threading

import pytest

from reshard.engine.journal import Journal, journal_keys
from reshard.engine.writer import PartReceipt
from reshard.storage import Location, MemoryStore

PART = PartReceipt("a", 1, "etag", 10, None)


class SlowStore(MemoryStore):
    """A store that takes its time with each object that is PUT."""

    def __init__(self):
        super().__init__()
        self.is_asked, self.may_go_on = threading.Event(), threading.Event()

    def put(self, key, body, checksum=None):
        self.is_asked.set()
        assert self.may_go_on.wait(10)
        return super().put(key, body, checksum)


def test_what_is_written_late_does_not_stay():
    """A request that is under way while its run is undone reaches the store after all else is gone."""
    place = Location(SlowStore(), "to/reshard-run.json")
    journal = Journal(place, "0123456789abcdef")
    journal.part(PART)
    late = threading.Thread(target=journal.write)
    late.start()
    assert place.store.is_asked.wait(10)
    journal.remove()
    place.store.may_go_on.set()
    late.join()
    assert journal_keys(place) == []


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_is_written_after_it_is_removed(count):
    place = Location(MemoryStore(), "to/reshard-run.json")
    journal = Journal(place, "0123456789abcdef")
    for _ in range(count):
        journal.part(PART)
        journal.write()
    assert len(journal_keys(place)) == count
    journal.remove()
    journal.part(PART)
    journal.write()
    assert journal_keys(place) == []
