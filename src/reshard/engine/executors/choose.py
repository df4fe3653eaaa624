"""Which executor a run has: threads of this process, or processes."""

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
from .crew import Crew, started
from .executor import Executor
from .processes import ProcessExecutor
from .threads import ThreadExecutor

_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))


@contextmanager
def crew_for(plan: Plan, locations: Locations) -> Iterator[Crew]:
    """Provide the processes that a plan asks for; none if it asks for one, or others would not find its stores.

    Enter it before anything that starts threads.
    """
    places = (*locations.sources, locations.target)
    finds_all = all(opens_anywhere(place.url) and not isinstance(place.store, Wrapper) for place in places)
    can_start = os.name == "posix" and bool(sys.executable)
    count = plan.limits.process_count if finds_all and can_start else 1
    with started(count if count > 1 else 0) as crew:
        yield crew


def choose_executor(
    crew: Crew, locations: Locations, workers: Workers, meter: Meter, ledger: ReadLedger | None = None
) -> Executor:
    """Return the executor that has a crew's processes move the bytes, or this one's threads if there are none."""
    if crew.members:
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
