"""Requests from other places: job files and batches, training configurations, hyper-parameters of job services."""

from typing import TYPE_CHECKING

from ..doors import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .batch import JobState as JobState
    from .batch import JobStatus as JobStatus
    from .batch import run_jobs as run_jobs
    from .editor_schema import job_schema as job_schema
    from .job_file import Job as Job
    from .job_file import parse_job_file as parse_job_file
    from .job_file import read_job_file as read_job_file

_MODULES = {
    "batch": ["JobState", "JobStatus", "run_jobs"],
    "job_file": ["Job", "parse_job_file", "read_job_file"],
    "editor_schema": ["job_schema"],
}
__all__ = sorted(name for names in _MODULES.values() for name in names)

if not TYPE_CHECKING:
    __getattr__ = _lazy_names(__name__, _MODULES)
