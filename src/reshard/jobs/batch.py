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

from ..api.resolve import resolve
from ..api.statements import convert_resolved
from ..engine.events import Answered, Event, Listener, Noted, PhaseStarted, Progress, Waiting
from ..engine.manifest import Manifest
from ..engine.workers import stopped_by
from ..errors import Interrupted, OverBudget, ReshardError, UsageError, add_problems, counted, option
from ..storage import shared_connections
from .job_file import Job
from .memory_shares import MemoryShares

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

    @property
    def is_wrong(self) -> bool:
        """Whether the job has ended, or will never start, and its outcome is not there."""
        return self.is_final and not self.is_right


@dataclass(slots=True)
class JobStatus:
    """One job of a batch while it runs, and at the end.

    ``phase`` is that of the run, ``moved_bytes`` and ``total_bytes`` are read and written, ``waiting_s`` says for how
    long a store has not answered; ``reason`` says in words why a job failed or cannot run; ``notes`` are what a person
    should know although it went well.
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

Convert = Callable[[Job, Listener], Manifest | None]
"""Does the work of one job, in a thread of its own; None if there was nothing to write."""


def convert_job(job: Job, on_event: Listener) -> Manifest:
    """Carry out the request of a job, unless its outcome is there."""
    return convert_resolved(resolve(job.request, on_event), job.request, on_event)


@shared_connections()
def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int = 1,
    memory_bytes: int | None = None,
    fail_fast: bool = False,
    convert: Convert = convert_job,
    on_change: OnChange = lambda _: None,
) -> tuple[JobStatus, ...]:
    """Run jobs, and return what became of each; an error of one job is in its status, not raised.

    Parameters
    ----------
    at_once
        Jobs that run at the same time.
    memory_bytes
        Limit of all buffers together; None if the jobs' own limits hold. See :class:`MemoryShares`.
    fail_fast
        Start no further job once one has failed; those that run are finished.
    convert
        What is done for each job.

    Raises
    ------
    KeyboardInterrupt
        And whatever else stops the caller's thread: running jobs are stopped first, and clean up.
    """
    batch = _Batch(jobs, MemoryShares.of(len(jobs), at_once, memory_bytes), convert, fail_fast)
    on_change(batch.statuses)
    try:
        for changed in batch.run():
            if changed:
                on_change(batch.statuses)
    except BaseException as error:
        add_problems(error, batch.stop())
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


class _Batch:
    """Jobs, and threads that each run one at a time."""

    def __init__(self, jobs: Sequence[Job], shares: MemoryShares, convert: Convert, fail_fast: bool) -> None:
        self.statuses = [JobStatus(shares.given_to(job), notes=shares.notes(job)) for job in jobs]
        self._by_name = {status.job.name: status for status in self.statuses}
        self._shares = shares
        self._convert = convert
        self._fail_fast = fail_fast
        self._is_stopped = threading.Event()
        self._ended: queue.SimpleQueue[JobStatus] = queue.SimpleQueue()
        self._running = 0

    def run(self) -> Iterator[bool]:
        """Run all jobs; yield now and then, and say whether there may be something to show."""
        while True:
            self._block()
            for status in self._ready()[: self._shares.at_once - self._running]:
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

    def stop(self) -> list[str]:
        """Stop the jobs that run, and wait until they have cleaned up; return in words what is left of them."""
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
        left = list[str]()
        for status in self.statuses:
            if status.state is JobState.RUNNING:
                status.state = JobState.STOPPED
                status.reason = f"it did not stop in {_STOP_WAIT_S:.0f} s: what it has begun may be left"
                left.append(f"{status.job.name}: {status.reason}")
            elif status.state is JobState.STOPPED and isinstance(status.error, ReshardError):
                left += [f"{status.job.name}: {problem}" for problem in status.error.problems]
        done = sum(status.state.is_right for status in self.statuses)
        verb = "is done and stays" if done == 1 else "are done and stay"
        count = f"{done} of {counted(len(self.statuses), 'job')} {verb}"
        return [count + ("" if left else "; nothing of the others was left behind"), *left]

    def _ready(self) -> list[JobStatus]:
        waiting = [status for status in self.statuses if status.state is JobState.WAITING]
        return [s for s in waiting if all(self._by_name[need].state.is_right for need in s.job.needs)]

    def _block(self) -> None:
        """Give up jobs that cannot run any more, and those that need them."""
        has_failed = any(status.state in (JobState.FAILED, JobState.STOPPED) for status in self.statuses)
        changed = True
        while changed:
            changed = False
            for status in self.statuses:
                if status.state is not JobState.WAITING:
                    continue
                bad = [need for need in status.job.needs if self._by_name[need].state.is_wrong]
                if bad or (self._fail_fast and has_failed):
                    status.state, changed = JobState.BLOCKED, True
                    status.reason = f"needs {', '.join(bad)}" if bad else "another job has failed"

    def _start(self, status: JobStatus) -> None:
        status.state, status.started_s = JobState.RUNNING, time.monotonic()
        self._running += 1
        # The connections that are shared in this context are shared with the job's thread, too.
        work = partial(contextvars.copy_context().run, self._work, status)
        threading.Thread(target=work, name=f"reshard-job-{status.job.name}", daemon=True).start()

    def _work(self, status: JobStatus) -> None:
        state = JobState.DONE
        try:
            with stopped_by(self._is_stopped.is_set):
                status.manifest = self._convert(status.job, partial(self._listen, status))
            if status.manifest is not None:
                state = JobState.SKIPPED if status.manifest.was_done else JobState.DONE
                status.notes += [note for note in status.manifest.conversion.notes if note not in status.notes]
        except Interrupted as error:
            state, status.error = JobState.STOPPED, error
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others go on
            explained = self._shares.explained(error) if isinstance(error, OverBudget) else error
            state, status.error, status.reason = JobState.FAILED, explained, in_words(explained)
        finally:
            status.state, status.ended_s = state, time.monotonic()
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


def in_words(error: BaseException) -> str:
    """Say in one line why a job failed, with options still marked."""
    message = getattr(error, "marked_message", None) or str(error) or type(error).__name__
    return str(message)
