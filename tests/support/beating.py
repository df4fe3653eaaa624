"""The record of a run that is alive: it changes all the time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from reshard.engine.run_record import RunRecord, encode_record
from reshard.storage import Location


@contextmanager
def beating(place: Location, record: RunRecord, every_s: float = 0.01) -> Iterator[None]:
    """Keep a run's record alive for the length of a block, as long as nobody else writes it; it stays afterwards."""
    over, store = threading.Event(), place.writable_store()

    def beat() -> None:
        written = ""
        for number in itertools.count():
            info = place.head_or_none()
            if written and (info is None or info.etag != written):
                return
            written = store.put(place.key, encode_record(replace(record, beat=number))).etag
            begun.set()
            if over.wait(every_s):
                return

    begun = threading.Event()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()
