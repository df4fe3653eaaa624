"""Threads that carry requests, most urgent first, and stop together at the first failure."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from ..errors import Interrupted
from ..storage import ReadStore, ShouldStop, never, report_outages

Task = Callable[[], object]
T = TypeVar("T")
POLL_S = 0.2
"""Longest wait between two looks at whether to stop."""
_STOP_WAIT_S = 10.0
_SHOULD_STOP: ContextVar[ShouldStop] = ContextVar("_SHOULD_STOP", default=never)


class Workers:
    """A fixed number of threads and one queue of tasks.

    Tasks run most urgent first, then oldest first. A task that raises stops the others: queued ones
    are dropped, and running ones may look at :attr:`is_stopped`. Threads are daemons, so a connection
    that hangs cannot keep a stopped program alive. They stop, too, once ``should_stop`` answers yes.
    """

    def __init__(self, count: int, should_stop: ShouldStop = never) -> None:
        self._should_stop = should_stop
        self._queue: queue.PriorityQueue[tuple[int, int, Task | None]] = queue.PriorityQueue()
        self._order = itertools.count()  # makes entries of equal urgency comparable, oldest first
        self._idle = threading.Condition()
        self._pending = 0
        self._stopped = threading.Event()
        self.error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"reshard-{i}") for i in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def is_stopped(self) -> bool:
        """Whether a task failed, :meth:`stop` was called, or someone outside asks to stop."""
        return self._stopped.is_set() or self._should_stop()

    def submit(self, task: Task, *, urgency: int = 0) -> None:
        """Queue a task; a higher urgency goes first."""
        with self._idle:
            self._pending += 1
        self._queue.put((-urgency, next(self._order), task))

    def check(self) -> None:
        """Raise the error that a task raised, or Interrupted after a stop from outside.

        Whoever waits for tasks calls this often, so it tells of stores that do not answer, too.
        """
        report_outages()
        if self.error is not None:
            raise self.error
        if self.is_stopped:
            raise Interrupted("stopped")

    def is_idle(self, wait_s: float) -> bool:
        """Return whether every task is done, after waiting for the next to end, ``wait_s`` at most.

        Raise the first error of a task.
        """
        self.check()
        with self._idle:
            if self._pending:
                self._idle.wait(wait_s)
            is_idle = not self._pending
        self.check()  # the last task may have failed
        return is_idle

    def wait(self, on_wait: Callable[[], object] = lambda: None) -> None:
        """Wait until every task is done, calling ``on_wait`` meanwhile; raises as :meth:`is_idle` does."""
        while not self.is_idle(POLL_S):
            on_wait()

    def map(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        """Run ``function`` on every item and wait."""
        for item in items:
            self.submit(lambda item=item: function(item))  # type: ignore[misc]
        self.wait()

    def call(self, task: Callable[[], T]) -> T:
        """Run a task and return its result. A signal that ends the wait here does not break the task off halfway."""
        results: list[T] = []
        self.submit(lambda: results.append(task()))
        self.wait()
        return results[0]

    def stop(self) -> None:
        """Drop queued tasks and ask running ones to end."""
        self._stopped.set()

    def drain(self) -> bool:
        """After a stop, wait some seconds for running tasks; return whether all have ended."""
        deadline = time.monotonic() + _STOP_WAIT_S
        with self._idle:
            while self._pending and time.monotonic() < deadline:
                self._idle.wait(POLL_S)
            return not self._pending

    def drain_quietly(self, wait_s: float) -> None:
        """Wait until every task is done, or none has ended for ``wait_s``; a signal does not cut the wait short."""
        left, deadline = self._pending, time.monotonic() + wait_s
        while self._pending and time.monotonic() < deadline:
            try:
                with self._idle:
                    self._idle.wait(POLL_S)
            except BaseException:  # noqa: BLE001, S112 - the caller is about to raise the error it cleans up after
                continue
            if self._pending < left:
                left, deadline = self._pending, time.monotonic() + wait_s

    def close(self, wait_s: float = 0.0) -> None:
        """End the threads, and wait ``wait_s`` at most until they and their buffers are gone."""
        for _ in self._threads:
            self._queue.put((1, next(self._order), None))  # behind every task
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
                # What fails after a stop fails because of it; only the first error is the cause.
                if self.error is None and not self.is_stopped:
                    self.error = error
                self._stopped.set()
            finally:
                task = None  # or an idle thread would keep the buffers that its last task refers to
                with self._idle:
                    self._pending -= 1
                    self._idle.notify_all()


@contextmanager
def stopped_by(should_stop: ShouldStop) -> Iterator[None]:
    """Have the workers that :func:`working` provides in this context stop once ``should_stop`` answers yes."""
    token = _SHOULD_STOP.set(should_stop)
    try:
        yield
    finally:
        _SHOULD_STOP.reset(token)


def is_stopping() -> bool:
    """Whether someone outside asks to stop what runs in this context; see :func:`stopped_by`."""
    return _SHOULD_STOP.get()()


@contextmanager
def working(count: int, *stores: ReadStore) -> Iterator[Workers]:
    """Provide workers for the length of a block; a block left by an error stops them and transfers in flight.

    Until the block is left, the stores break off their transfers once the workers are stopped.
    """
    workers = Workers(count, _SHOULD_STOP.get())
    for store in stores:
        store.should_stop = lambda: workers.is_stopped
    wait_s = _STOP_WAIT_S
    try:
        yield workers
    except BaseException:
        wait_s = 0.0
        workers.stop()
        workers.drain()
        raise
    finally:
        for store in stores:
            store.should_stop = never  # undoing sends requests of its own
        workers.close(wait_s)  # two passes, or two conversions, do not hold memory at the same time
        workers.error = None  # its traceback refers to the workers, and to all that these refer to
