"""Threads that carry requests, most urgent first, and stop together at the first failure."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..errors import Interrupted
from ..storage import ReadStore, ShouldStop, never

Task = Callable[[], None]
T = TypeVar("T")
_POLL_S = 0.2
_STOP_WAIT_S = 10.0


class Workers:
    """A fixed number of threads and one queue of tasks.

    Tasks run most urgent first, then oldest first. A task that raises stops the others: what is
    queued is dropped, what runs may look at :attr:`is_stopped`. Threads are daemons, so that a
    hung connection cannot keep a stopped program alive.
    """

    def __init__(self, count: int) -> None:
        self._queue: queue.PriorityQueue[tuple[int, int, Task | None]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._idle = threading.Condition()
        self._pending = 0
        self._stopped = threading.Event()
        self.error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"reshard-{i}") for i in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def is_stopped(self) -> bool:
        """Whether a task failed or :meth:`stop` was called."""
        return self._stopped.is_set()

    def submit(self, task: Task, *, urgency: int = 0) -> None:
        """Queue a task; a higher urgency goes first."""
        with self._idle:
            self._pending += 1
        self._queue.put((-urgency, next(self._order), task))

    def check(self) -> None:
        """Raise what a task raised, or Interrupted when stopped from outside."""
        if self.error is not None:
            raise self.error
        if self.is_stopped:
            raise Interrupted("stopped")

    def wait(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Wait until every task is done; ``on_wait`` is called now and then meanwhile.

        Raises
        ------
        BaseException
            The first error of a task.
        """
        while True:
            self.check()
            with self._idle:
                if not self._pending:
                    break
                self._idle.wait(_POLL_S)
            on_wait()
        self.check()

    def map(self, function: Callable[[T], None], items: Iterable[T]) -> None:
        """Run ``function`` on every item and wait."""
        for item in items:
            self.submit(lambda item=item: function(item))  # type: ignore[misc]
        self.wait()

    def stop(self) -> None:
        """Drop what is queued and tell running tasks to end."""
        self._stopped.set()

    def settle(self) -> bool:
        """After a stop, wait some seconds for running tasks; whether all have ended."""
        deadline = time.monotonic() + _STOP_WAIT_S
        with self._idle:
            while self._pending and time.monotonic() < deadline:
                self._idle.wait(_POLL_S)
            return not self._pending

    def settle_quietly(self, wait_s: float) -> None:
        """Wait until every task is done, ``wait_s`` at most; a signal does not cut the waiting short."""
        deadline = time.monotonic() + wait_s
        while self._pending and time.monotonic() < deadline:
            try:
                with self._idle:
                    self._idle.wait(_POLL_S)
            except BaseException:  # noqa: BLE001, S112 - whoever waits has an error to raise already
                continue

    def close(self, wait_s: float = 0.0) -> None:
        """Send the threads home, and wait ``wait_s`` at most until they and their buffers are gone."""
        for _ in self._threads:
            self._queue.put((1, next(self._order), None))
        deadline = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            _, _, task = self._queue.get()
            if task is None:
                return
            try:
                if not self.is_stopped:
                    task()
            except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
                if self.error is None and not self.is_stopped:
                    self.error = error
                self._stopped.set()
            finally:
                with self._idle:
                    self._pending -= 1
                    self._idle.notify_all()


@contextmanager
def working(count: int, *stores: ReadStore) -> Iterator[Workers]:
    """Workers for the length of a block; a block left by an error stops them, and transfers in flight.

    Parameters
    ----------
    stores
        Asked to break off their transfers once the workers are stopped, until the block is left.
    """
    workers = Workers(count)
    _ask(stores, lambda: workers.is_stopped)
    wait_s = _STOP_WAIT_S
    try:
        yield workers
    except BaseException:
        wait_s = 0.0
        workers.stop()
        workers.settle()
        raise
    finally:
        _ask(stores, never)
        workers.close(wait_s)  # two passes, or two conversions, do not hold memory at the same time
        workers.error = None  # its frames hold the workers, and all that these hold


def _ask(stores: Iterable[ReadStore], question: ShouldStop) -> None:
    for store in stores:
        store.should_stop = question
