"""A process that moves bytes for the leader of a run: ``python -m reshard.engine.executors.child FD``.

It lives no longer than its leader: when the pipe between them ends, it ends at once.
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

from ...errors import Interrupted, ReshardError
from ...storage import fresh_connections
from ..digest import ReadLedger
from ..events import Event, Progress
from ..kernels.overflow import Found
from ..meter import Meter
from ..workers import POLL_S, Workers, stopped_by, working
from .executor import StepId
from .messages import STOP, Begin, Done, Down, Ended, Failed, FromChild, Steps, Wanting, Work
from .threads import ThreadExecutor, Transfer


def serve(connection: Connection) -> NoReturn:
    """Do the steps of one run after another, until the leader says stop, or is gone. Never returns."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the leader decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.freeze()  # or collecting garbage would copy every page that is shared with the leader
        attend(connection)
        code = 0
    finally:
        os._exit(code)  # whatever the leader has registered for its own end must not run here


class Pipe(Protocol):
    """What leads to the leader: its methods raise OSError, or EOFError, once that is gone."""

    def send_bytes(self, data: bytes, /) -> None:
        """Send a message."""

    def recv_bytes(self) -> bytes:
        """Wait for a message, and return it."""


def attend(pipe: Pipe) -> None:
    """Do the steps of one run after another, until the leader says stop. If it is gone, the process ends."""
    line = _Line(pipe)
    while not line.is_stopped.is_set() and (data := line.receive()) != STOP:
        _carry_out(pickle.loads(data), line)  # noqa: S301 - as its leader has pickled it


class _Line:
    """The pipe to the leader. One thread receives, so that a stop is seen at once; any thread may send."""

    def __init__(self, pipe: Pipe) -> None:
        self.is_stopped = threading.Event()
        self._pipe = pipe
        self._lock = threading.Lock()
        self._received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True, name="reshard-leader").start()

    def receive(self, wait_s: float | None = None) -> bytes:
        """Return the next message, pickled; raise queue.Empty if there is none in time."""
        return self._received.get(timeout=wait_s)

    def send(self, message: FromChild) -> None:
        """Tell the leader something."""
        data = pickle.dumps(message)
        try:
            with self._lock:
                self._pipe.send_bytes(data)
        except OSError:
            os._exit(1)

    def _listen(self) -> None:
        while True:
            try:
                data = self._pipe.recv_bytes()
            except (EOFError, OSError):
                os._exit(1)  # the leader is gone: what is in flight is in flight
            if data == STOP:
                self.is_stopped.set()
            self._received.put(data)


def _carry_out(begin: Begin, line: _Line) -> None:
    """Do the steps that the leader hands out, until there are no more or one fails."""
    try:
        with fresh_connections(begin.policy, lambda outage: line.send(Down(outage))):
            work: Work = pickle.loads(begin.work)  # noqa: S301 - opens the places, with these connections
            stores = work.locations.stores
            with stopped_by(line.is_stopped.is_set), working(work.plan.limits.concurrency, *stores) as workers:
                _run(work, workers, line)
    except Interrupted:
        if not line.is_stopped.is_set():
            raise
    except Exception as error:  # noqa: BLE001 - the leader raises it
        line.send(Failed(_portable(error)))


def _run(work: Work, workers: Workers, line: _Line) -> None:
    def listener(event: Event) -> None:
        if isinstance(event, Progress):
            line.send(event)

    meter = Meter(work.plan.cost, listener)
    ledger = None if work.kept is None else ReadLedger(work.kept)
    results: defaultdict[StepId, list[Any]] = defaultdict(list)

    def finish(step_id: StepId, overflows: Found) -> None:
        ranges = ledger.take() if ledger is not None else {}
        line.send(Done(step_id, tuple(results.pop(step_id, ())), overflows, ranges))

    executor = ThreadExecutor(work.locations, workers, meter, ledger)
    deliver = lambda step_id, result: results[step_id].append(result)  # noqa: E731 - appending is atomic
    transfer = Transfer(work.plan, work.sink, executor, deliver=deliver, finish=finish)
    for _ in transfer.run(_handed_out(line, workers, meter)):
        pass
    line.send(Ended())


def _handed_out(line: _Line, workers: Workers, meter: Meter) -> Iterator[StepId]:
    """Ask for steps, one after the other: a process that is slow gets fewer."""
    while True:
        line.send(Wanting())
        while True:
            with suppress(queue.Empty):
                data = line.receive(POLL_S)
                break
            workers.check()
            meter.report()
        workers.check()
        steps: Steps = pickle.loads(data)  # noqa: S301
        if not steps.step_ids:
            return
        yield from steps.step_ids


def _portable(error: Exception) -> Exception:
    """Return an error that another process can raise."""
    if isinstance(error, ReshardError):
        return error
    return RuntimeError("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
