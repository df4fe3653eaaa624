"""Which executor a run has: threads of this process, processes of this machine, or those of a Ray cluster."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...planning.plan import Plan
from ...storage import Wrapper, opens_anywhere
from ..digest import ReadLedger
from ..locations import Locations
from ..meter import Meter
from ..workers import Workers
from .cluster import Cluster
from .crew import AnyCrew
from .executor import Executor
from .local_crew import started
from .processes import ProcessExecutor
from .threads import ThreadExecutor

_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))


@contextmanager
def crew_for(plan: Plan, locations: Locations, cluster: Cluster | None = None) -> Iterator[AnyCrew]:
    """Provide the processes that a plan asks for, on this machine or those of a cluster.

    There are none on this one if the plan asks for one, or others would not find its stores. Enter it before anything
    that starts threads. Raise UsageError if the cluster cannot be used.
    """
    places = (*locations.sources, locations.target)
    if cluster is not None:
        count = plan.limits.process_count
        with cluster.crew([place.url for place in places], count, plan.limits.memory_bytes // count) as workers:
            yield workers
        return
    finds_all = all(opens_anywhere(place.url) and not isinstance(place.store, Wrapper) for place in places)
    can_start = os.name == "posix" and bool(sys.executable)
    count = plan.limits.process_count if finds_all and can_start else 1
    with started(count if count > 1 else 0) as crew:
        yield crew


def choose_executor(
    crew: AnyCrew, locations: Locations, workers: Workers, meter: Meter, ledger: ReadLedger | None = None
) -> Executor:
    """Return the executor that has a crew's processes move the bytes, or this one's threads if there are none."""
    if crew.members or not crew.is_here:
        return ProcessExecutor(crew, locations, workers, meter, ledger)
    return ThreadExecutor(locations, workers, meter, ledger)


def core_count() -> int:
    """Return how many processors this process may use: those it is bound to, or its container's share of them."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        count = os.cpu_count() or 1
    for path in _QUOTAS:
        try:
            quota, *period = path.read_text().split()
            length = int(period[0] if period else path.with_name("cpu.cfs_period_us").read_text())
            allowed = int(quota) / length
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
        if allowed > 0:
            count = min(count, math.ceil(allowed))
    return count
