"""How jobs that run at the same time share memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import OverBudget, option
from ..planning.limits import Limits
from .job_file import Job


@dataclass(frozen=True, slots=True)
class MemoryShares:
    """The memory of each job of a batch.

    With a limit every job has an equal share of it, or less if it asks for less. Without one a job has what it asks
    for, and those that ask for nothing share what a single conversion has by default.

    Parameters
    ----------
    at_once
        Jobs that run at the same time.
    limit_bytes
        Limit of all buffers together; None if the jobs decide.

    Examples
    --------
    >>> shares = MemoryShares.of(job_count=2, at_once=8, limit_bytes=1 << 30)
    >>> shares.at_once, shares.share_bytes
    (2, 536870912)
    """

    at_once: int
    limit_bytes: int | None

    @classmethod
    def of(cls, job_count: int, at_once: int, limit_bytes: int | None) -> MemoryShares:
        """Share memory among as many jobs as can run at the same time."""
        return cls(max(1, min(at_once, job_count)), limit_bytes)

    @property
    def share_bytes(self) -> int:
        """What a job has that asks for nothing."""
        return max(1, (self.limit_bytes or Limits().memory_bytes) // self.at_once)

    def given_to(self, job: Job) -> Job:
        """Return a job with the memory that it has."""
        asked = job.request.memory
        memory = self.share_bytes if asked is None else asked
        if self.limit_bytes is not None:
            memory = min(memory, self.share_bytes)
        return replace(job, request=replace(job.request, memory=memory))

    def notes(self, job: Job) -> list[str]:
        """Return what a person should know about a job's memory: that it has less than it asks for."""
        asked = job.request.memory
        if asked is None or self.limit_bytes is None or asked <= self.share_bytes:
            return []
        shared = f"{self.at_once} jobs share" if self.at_once > 1 else "the limit is"
        return [
            f"{option('memory', _size(asked))} is cut to {_size(self.share_bytes)}: {shared} {_size(self.limit_bytes)}"
        ]

    def explained(self, error: OverBudget) -> OverBudget:
        """Return the error of a job that needs more memory, with a hint that holds for the batch."""
        needed = error.needed_bytes
        hint = f"Set {option('memory', _size(needed))} in the job."
        if self.limit_bytes is not None and needed > self.share_bytes:
            together, hint = _size(needed * self.at_once), f"Raise the limit to {_size(needed)}."
            if self.at_once > 1:
                hint = f"Raise the limit that {self.at_once} jobs share to {together}, or run fewer at the same time."
        return OverBudget(error.marked_message, needed_bytes=needed, hint=hint)


def _size(nbytes: int) -> str:
    """Write a size as options take it, rounded up."""
    for unit, shift in (("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << shift:
            return f"{-(-nbytes >> shift)}{unit}"
    return str(nbytes)
