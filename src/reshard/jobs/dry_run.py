"""What the jobs of a batch would do, and what they would take; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..api.estimates import estimate
from ..api.preflight import would_skip
from ..api.resolve import resolve
from ..api.statements import plan_resolved
from ..errors import NotFound, OverBudget, ReshardError, SourceError
from ..planning.cost.estimate import Estimate
from ..planning.plan import Plan
from ..storage import shared_connections
from .job_file import Job, inputs_of
from .memory_shares import MemoryShares
from .places import is_within


class PlannedState(StrEnum):
    """What would become of a job."""

    CONVERT = "convert"
    SKIP = "skip"
    LATER = "later"
    BLOCKED = "blocked"
    REFUSED = "refused"

    @property
    def is_wrong(self) -> bool:
        """Whether the job's outcome would not come to be."""
        return self in (PlannedState.BLOCKED, PlannedState.REFUSED)


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of a batch: what would become of it, its plan and estimate if it has one, and else the reason."""

    job: Job
    state: PlannedState
    plan: Plan | None = None
    estimate: Estimate | None = None
    error: ReshardError | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


@shared_connections()
def plan_jobs(
    jobs: Sequence[Job], *, at_once: int = 1, memory_bytes: int | None = None, **assumptions: Any
) -> tuple[PlannedJob, ...]:
    """Plan every job of a batch as :func:`reshard.jobs.run_jobs` would run it with the same limits.

    A job whose source another job has yet to write cannot be planned: it comes ``LATER``. One that needs a job that is
    refused is ``BLOCKED``. A job that is refused has its error. ``assumptions`` are those of :func:`reshard.estimate`.
    """
    shares = MemoryShares.of(len(jobs), at_once, memory_bytes)
    names = {job.name for job in jobs}
    planned: dict[str, PlannedJob] = {}
    left = list(jobs)
    while ready := [job for job in left if all(need in planned or need not in names for need in job.needs)]:
        for job in ready:
            planned[job.name] = _planned(job, shares, planned, assumptions)
        left = [job for job in left if job.name not in planned]
    for job in left:  # needs that go round in a circle
        planned[job.name] = PlannedJob(job, PlannedState.BLOCKED, reason=f"needs {', '.join(job.needs)}")
    return tuple(planned[job.name] for job in jobs)


def _planned(job: Job, shares: MemoryShares, planned: dict[str, PlannedJob], assumptions: dict[str, Any]) -> PlannedJob:
    needs = [planned[need] for need in job.needs if need in planned]
    bad = [each.job.name for each in needs if each.state.is_wrong]
    if bad:
        return PlannedJob(job, PlannedState.BLOCKED, reason=f"needs {', '.join(bad)}")
    inputs = inputs_of(job.request)
    writers = [each for each in needs if any(is_within(url, each.job.request.dst) for url in inputs)]
    later = [each.job.name for each in writers if each.state is not PlannedState.SKIP]
    given, notes = shares.given_to(job), tuple(shares.notes(job))
    try:
        resolved = resolve(given.request)
        plan = plan_resolved(resolved)
        if would_skip(plan, given.request):
            why = "an earlier run has finished it"
            return PlannedJob(job, PlannedState.SKIP, reason=why, notes=(*notes, *plan.notes))
        made = estimate(plan, **assumptions)
        return PlannedJob(job, PlannedState.CONVERT, plan, made, notes=(*notes, *plan.notes))
    except ReshardError as error:
        if later and isinstance(error, NotFound | SourceError):
            return PlannedJob(job, PlannedState.LATER, reason=f"is planned after {', '.join(later)}", notes=notes)
        explained = shares.explained(error) if isinstance(error, OverBudget) else error
        return PlannedJob(job, PlannedState.REFUSED, error=explained, reason=explained.marked_message, notes=notes)
