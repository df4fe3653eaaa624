"""Runs the jobs of a batch: several at a time within one memory limit, each after those that it needs."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import partial

from ..api.request import Request
from ..api.resolve import resolve
from ..api.statements import convert_resolved
from ..engine.events import Answered, Event, Noted, PhaseStarted, Progress, Waiting
from ..engine.manifest import Manifest
from ..errors import Interrupted, UsageError, option
from ..planning.limits import Limits
from ..storage import shared_connections
from .job_file import Job

_POLL_S = 0.2
_STOP_WAIT_S = 120.0


class JobState(StrEnum):
    """Where a job is: the last five are final."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    BLOCKED = "blocked"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self not in (JobState.WAITING, JobState.RUNNING)

    @property
    def is_right(self) -> bool:
        """Whether the job's outcome is complete."""
        return self in (JobState.DONE, JobState.SKIPPED)


@dataclass(slots=True)
class JobStatus:
    """One job of a batch while it runs, and at the end.

    ``phase`` is that of the run, ``moved_bytes`` and ``total_bytes`` are read and written, ``waiting_s`` says for how
    long a store has not answered; ``reason`` says in words why
    a job failed or cannot run.
    """

    job: Job
    state: JobState = JobState.WAITING
    phase: str = ""
    moved_bytes: int = 0
    total_bytes: int = 0
    waiting_s: float = 0.0
    started_s: float = 0.0
    ended_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: BaseException | None = None
    reason: str = ""
    manifest: Manifest | None = None

    @property
    def seconds(self) -> float:
        """How long it has run."""
        if not self.started_s:
            return 0.0
        return (self.ended_s or time.monotonic()) - self.started_s

    @property
    def written_bytes(self) -> int:
        """Bytes of the outputs, once they are there."""
        return sum(receipt.nbytes for receipt in self.manifest.receipts) if self.manifest else 0


OnChange = Callable[[Sequence[JobStatus]], None]
"""Is called in the caller's thread, a few times a second and whenever a job's state changes."""


@shared_connections()
def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int = 1,
    memory_bytes: int | None = None,
    fail_fast: bool = False,
    on_change: OnChange = lambda _: None,
) -> tuple[JobStatus, ...]:
    """Run jobs, and return what became of each; an error of one job is in its status, not raised.

    Parameters
    ----------
    at_once
        Jobs that run at the same time.
    memory_bytes
        Limit of all buffers together, 512 MiB if None; every running job has an equal share, or less if it asks for
        less.
    fail_fast
        Start no further job once one has failed; those that run are finished.

    Raises
    ------
    KeyboardInterrupt
        And whatever else stops the caller's thread: running jobs are stopped first, and clean up.
    """
    share = (memory_bytes or Limits().memory_bytes) // at_once
    batch = _Batch([JobStatus(_within(job, share)) for job in jobs], fail_fast)
    on_change(batch.statuses)
    try:
        for changed in batch.run(at_once):
            if changed:
                on_change(batch.statuses)
    except BaseException:
        batch.stop()
        on_change(batch.statuses)
        raise
    return tuple(batch.statuses)


def chosen_jobs(jobs: Sequence[Job], names: Sequence[str], *, if_exists: str | None = None) -> tuple[Job, ...]:
    """Return the jobs whose names match some glob; all if there is none. Needs that are not chosen are left out.

    ``if_exists`` takes the place of what the jobs say. Raise UsageError for a glob that matches none.
    """
    if if_exists is not None:
        jobs = [replace(job, request=replace(job.request, if_exists=if_exists, overwrite=False)) for job in jobs]
    for glob in names:
        if not any(fnmatchcase(job.name, glob) for job in jobs):
            hint = f"Jobs: {', '.join(job.name for job in jobs[:20])}."
            raise UsageError(f"{option('only', glob)} matches no job", hint=hint)
    chosen = [job for job in jobs if not names or any(fnmatchcase(job.name, glob) for glob in names)]
    there = {job.name for job in chosen}
    return tuple(replace(job, needs=tuple(need for need in job.needs if need in there)) for job in chosen)


def _within(job: Job, share: int) -> Job:
    memory = min(job.request.memory or share, share)
    return replace(job, request=replace(job.request, memory=memory))


class _Batch:
    """Jobs, and threads that each run one at a time."""

    def __init__(self, statuses: list[JobStatus], fail_fast: bool) -> None:
        self.statuses = statuses
        self._by_name = {status.job.name: status for status in statuses}
        self._fail_fast = fail_fast
        self._is_stopped = threading.Event()
        self._ended: queue.SimpleQueue[JobStatus] = queue.SimpleQueue()
        self._running = 0

    def run(self, at_once: int) -> Iterator[bool]:
        """Run all jobs; yield now and then, and tell whether there may be something to show."""
        while True:
            self._block()
            for status in self._ready()[: at_once - self._running]:
                self._start(status)
            if not self._running:
                return
            yield True
            try:
                self._ended.get(timeout=_POLL_S)
                self._running -= 1
            except queue.Empty:
                continue
            yield True

    def stop(self) -> None:
        """Stop the jobs that run, and wait until they have cleaned up."""
        self._is_stopped.set()
        for status in self.statuses:
            if status.state is JobState.WAITING:
                status.state = JobState.STOPPED
        end_s = time.monotonic() + _STOP_WAIT_S
        while self._running and time.monotonic() < end_s:
            try:
                self._ended.get(timeout=_POLL_S)
                self._running -= 1
            except queue.Empty:
                continue

    def _ready(self) -> list[JobStatus]:
        waiting = [status for status in self.statuses if status.state is JobState.WAITING]
        return [s for s in waiting if all(self._by_name[need].state.is_right for need in s.job.needs)]

    def _block(self) -> None:
        """Give up jobs that cannot run any more, and those that need them."""
        has_failed = any(status.state is JobState.FAILED for status in self.statuses)
        while True:
            changed = False
            for status in self.statuses:
                if status.state is not JobState.WAITING:
                    continue
                bad = [n for n in status.job.needs if self._by_name[n].state in (JobState.FAILED, JobState.BLOCKED)]
                if bad or (self._fail_fast and has_failed):
                    status.state, changed = JobState.BLOCKED, True
                    status.reason = f"needs {', '.join(bad)}" if bad else "another job has failed"
            if not changed:
                return

    def _start(self, status: JobStatus) -> None:
        status.state, status.started_s = JobState.RUNNING, time.monotonic()
        self._running += 1
        # The connections that are shared in this context are shared with the job's thread, too.
        work = partial(contextvars.copy_context().run, self._work, status)
        threading.Thread(target=work, name=f"reshard-job-{status.job.name}", daemon=True).start()

    def _work(self, status: JobStatus) -> None:
        listener = partial(self._listen, status)
        try:
            request = status.job.request
            status.manifest = _converted(request, listener)
            status.state = JobState.SKIPPED if status.manifest.was_done else JobState.DONE
        except Interrupted:
            status.state = JobState.STOPPED
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others go on
            status.state, status.error, status.reason = JobState.FAILED, error, _in_words(error)
        finally:
            status.ended_s = time.monotonic()
            self._ended.put(status)

    def _listen(self, status: JobStatus, event: Event) -> None:
        if self._is_stopped.is_set():
            raise Interrupted("stopped")
        if isinstance(event, PhaseStarted):
            status.phase = event.name
        elif isinstance(event, Waiting | Answered):
            status.waiting_s = event.seconds if isinstance(event, Waiting) else 0.0
        elif isinstance(event, Noted):
            status.notes.append(event.text)
        elif isinstance(event, Progress):
            status.moved_bytes = event.read_bytes + event.written_bytes
            status.total_bytes = event.total_read_bytes + event.total_written_bytes


def _converted(request: Request, listener: Callable[[Event], None]) -> Manifest:
    return convert_resolved(resolve(request, listener), request, listener)


def _in_words(error: BaseException) -> str:
    message = getattr(error, "marked_message", None) or str(error) or type(error).__name__
    return str(message)
