"""Runs what a job service asks of one node: its share of each conversion, and the wait for those of the other nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from ..api.access import describe_access
from ..api.request import Request
from ..api.resolve import Resolved
from ..engine.events import Event, Listener
from ..engine.manifest import Manifest
from ..engine.workers import is_stopping
from ..errors import Interrupted
from ..storage import shared_connections
from .batch import JobStatus, run_jobs
from .job_file import Job
from .node_share import NodeShare
from .nodes import Node, wait_for_shares
from .service_job import ServiceJob
from .training_run import run_training_job


@dataclass(frozen=True, slots=True)
class ShareStarted:
    """A node begins with one conversion: how each of its places is opened, and what of the target is this node's."""

    access: Sequence[tuple[str, str]]
    share: str


@dataclass(frozen=True, slots=True)
class ShareWritten:
    """A node has finished its share, or an earlier run had; the notes are those of the conversion."""

    object_count: int
    nbytes: int
    was_done: bool
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class SharesMissing:
    """A node waits for the others."""

    text: str


@dataclass(frozen=True, slots=True)
class StrategiesWritten:
    """The strategy files of a training job are there."""

    rank_count: int
    url: str


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A job of a batch begins."""

    name: str


@dataclass(frozen=True, slots=True)
class NodesJoined:
    """The Ray cluster of all nodes is there, or what there will be of it."""

    text: str


ServiceEvent = Event | NodesJoined | ShareStarted | ShareWritten | SharesMissing | StrategiesWritten | JobStarted
ServiceListener = Callable[[ServiceEvent], None]


@dataclass(frozen=True, slots=True)
class ServiceOutcome:
    """What came of a job on this node: the targets that are complete, with what this node wrote of each.

    ``wrong`` are the jobs of a batch whose outcome is not there.
    """

    complete: Sequence[tuple[str, ShareWritten | None]] = ()
    strategy_url: str | None = None
    wrong: Sequence[JobStatus] = ()


@shared_connections()
def run_service_job(job: ServiceJob, on_event: ServiceListener) -> ServiceOutcome:
    """Do this node's share of every conversion of a job, and wait for the others.

    The errors of a single conversion are raised; those of a batch are in the outcome, and hold up only what needs them.
    """
    with job.ray.joined(lambda text: on_event(NodesJoined(text))) if job.ray else nullcontext():
        return _run(job, on_event)


def _run(job: ServiceJob, on_event: ServiceListener) -> ServiceOutcome:
    if job.training is not None:
        run = _ShareRun(job.node, job.wait_s, on_event)
        is_first = not job.node.index
        made = run_training_job(job.training, on_event=on_event, convert=run.convert, writes_strategies=is_first)
        url = job.training.strategy_url if made.strategy else None
        if url is not None and made.strategy is not None:
            on_event(StrategiesWritten(made.strategy.rank_count, url))
        return ServiceOutcome(run.wait(), url)
    if len(job.jobs) == 1:
        run = _ShareRun(job.node, job.wait_s, on_event)
        run.convert(job.jobs[0].request, None, on_event)
        return ServiceOutcome(run.wait())
    complete: list[tuple[str, ShareWritten | None]] = []
    statuses = run_jobs(job.jobs, convert=partial(_convert_one, job, on_event, complete))
    return ServiceOutcome(complete, wrong=[status for status in statuses if status.state.is_wrong])


def _convert_one(
    service: ServiceJob,
    on_event: ServiceListener,
    complete: list[tuple[str, ShareWritten | None]],
    job: Job,
    batch_listener: Listener,
) -> Manifest | None:
    """Do this node's share of one job of a batch, and wait until the whole is there: other jobs may need it."""

    def listen(event: Event) -> None:
        batch_listener(event)
        on_event(event)

    on_event(JobStarted(job.name))
    run = _ShareRun(service.node, service.wait_s, on_event)
    manifest = run.convert(job.request, None, listen)
    complete += run.wait()
    return manifest


class _ShareRun:
    """One conversion on one node."""

    def __init__(self, node: Node, wait_s: float, on_event: ServiceListener) -> None:
        self._node, self._wait_s, self._on_event = node, wait_s, on_event
        self._share: NodeShare | None = None
        self._written: ShareWritten | None = None

    def convert(self, request: Request, resolved: Resolved | None, on_event: Listener) -> Manifest | None:
        """Write this node's share, unless an earlier run has; None if nothing is this node's."""
        access = [(url, describe_access(url)) for url in (request.src, request.dst)]
        share = self._share = NodeShare.of(request, self._node, resolved, on_event)
        self._on_event(ShareStarted(access, share.described))
        if share.is_empty:
            return None
        manifest = share.write(on_event)
        nbytes = sum(receipt.nbytes for receipt in manifest.receipts)
        notes = manifest.conversion.notes
        self._written = ShareWritten(len(manifest.receipts), nbytes, manifest.was_done, notes)
        self._on_event(self._written)
        return manifest

    def wait(self) -> list[tuple[str, ShareWritten | None]]:
        """Wait until the shares of all nodes are there; return the target with what this node wrote of it."""
        share = self._share
        if share is None:
            return []
        if self._node.count > 1:
            wait_for_shares(partial(_missing, share), self._node, self._wait_s, self._show)
        return [(share.request.dst, self._written)]

    def _show(self, text: str) -> None:
        self._on_event(SharesMissing(text))


def _missing(share: NodeShare) -> Sequence[int] | None:
    if is_stopping():
        raise Interrupted("stopped")
    return share.missing()
