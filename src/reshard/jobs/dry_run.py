"""What the jobs of a batch would do, and what they would take; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..api.estimates import estimate
from ..api.resolve import resolve
from ..api.statements import find_finished, plan_resolved
from ..errors import NotFound, ReshardError, SourceError
from ..planning.cost.estimate import Estimate
from ..planning.plan import Plan
from ..storage import shared_connections
from .job_file import Job


class Prospect(StrEnum):
    """What would become of a job."""

    CONVERT = "convert"
    SKIP = "skip"
    LATER = "later"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of a batch: what would become of it, its plan and estimate if it has one, and else the reason."""

    job: Job
    prospect: Prospect
    plan: Plan | None = None
    estimate: Estimate | None = None
    error: ReshardError | None = None
    reason: str = ""


@shared_connections()
def plan_jobs(jobs: Sequence[Job], **assumptions: Any) -> tuple[PlannedJob, ...]:
    """Plan every job of a batch, with the assumptions that :func:`reshard.estimate` takes.

    A job whose source another job has yet to write cannot be planned: it comes ``LATER``. A job that is refused has its
    error.
    """
    return tuple(_planned(job, assumptions) for job in jobs)


def _planned(job: Job, assumptions: dict[str, Any]) -> PlannedJob:
    try:
        resolved = resolve(job.request)
        _, missing = find_finished(resolved.conversion, job.request) or (None, 1)
        if not missing:
            return PlannedJob(job, Prospect.SKIP, reason="an earlier run has finished it")
        plan = plan_resolved(resolved)
        return PlannedJob(job, Prospect.CONVERT, plan, estimate(plan, **assumptions))
    except (NotFound, SourceError) as error:
        if job.needs:
            return PlannedJob(job, Prospect.LATER, reason=f"is planned after {', '.join(job.needs)}")
        return PlannedJob(job, Prospect.REFUSED, error=error, reason=error.marked_message)
    except ReshardError as error:
        return PlannedJob(job, Prospect.REFUSED, error=error, reason=error.marked_message)
