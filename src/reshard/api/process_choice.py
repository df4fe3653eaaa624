"""How many processes a conversion has: as many as it is told, or as are worth starting."""

from __future__ import annotations

from dataclasses import replace

from ..engine.executors.choose import core_count
from ..errors import OverBudget
from ..planning.conversion import Conversion
from ..planning.limits import MIB, Limits
from ..planning.plan import Plan, make_plan
from ..storage import opens_anywhere

_LEAST_TARGET_BYTES = 512 * MIB
"""Less to write is done before another process has begun to help."""
_LEAST_MEMORY_BYTES = 128 * MIB
_MOST = 16


def plan_for_processes(
    conversion: Conversion, limits: Limits, copy_bases: tuple[int, ...], process_count: int | None
) -> Plan:
    """Make a plan for a number of processes; for None choose one, and rather a smaller one than refuse.

    Errors are those of :func:`reshard.planning.plan.make_plan`.
    """
    if process_count is not None:
        return make_plan(conversion, replace(limits, process_count=process_count), copy_bases)
    for count in range(choose_count(conversion, limits.memory_bytes), 1, -1):
        try:
            return make_plan(conversion, replace(limits, process_count=count), copy_bases)
        except OverBudget:
            continue
    return make_plan(conversion, limits, copy_bases)


def choose_count(conversion: Conversion, memory_bytes: int) -> int:
    """Return how many processes are worth starting here, for a conversion within so much memory."""
    urls = (conversion.catalog.url, *conversion.catalog.others, conversion.target_url)
    if not all(map(opens_anywhere, urls)):
        return 1
    written_bytes = sum(output.nbytes * len(output.keys) for output in conversion.outputs)
    counts = core_count(), written_bytes // _LEAST_TARGET_BYTES, memory_bytes // _LEAST_MEMORY_BYTES
    return max(1, min(_MOST, *counts))
