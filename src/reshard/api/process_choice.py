"""How many processes a conversion has: as many as it is told, or as are worth starting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..engine.executors.choose import core_count
from ..errors import OverBudget
from ..planning.conversion import Conversion
from ..planning.limits import MIB, Limits
from ..planning.plan import Plan, make_plan
from ..storage import opens_anywhere
from .option_field import MOST_PROCESSES

_LEAST_TARGET_BYTES = 512 * MIB
"""Less to write is done before another process has begun to help."""
_LEAST_MEMORY_BYTES = 128 * MIB
_MOST = 16


def plan_for_processes(
    conversion: Conversion,
    limits: Limits,
    copy_bases: tuple[int, ...],
    process_count: int | None,
    machines: Sequence[int] = (),
) -> Plan:
    """Make a plan for a number of processes; for None choose one, and rather a smaller one than refuse.

    They are this machine's, or those of a cluster's ``machines``, by their number of cores: each has the memory of the
    limits, and the plan that of all. Errors are those of :func:`reshard.planning.plan.make_plan`.
    """
    if machines:
        return _plan_for_machines(conversion, limits, copy_bases, process_count, machines)
    if process_count is not None:
        return make_plan(conversion, replace(limits, process_count=process_count), copy_bases)
    for count in range(choose_count(conversion, limits.memory_bytes), 1, -1):
        try:
            return make_plan(conversion, replace(limits, process_count=count), copy_bases)
        except OverBudget:
            continue
    return make_plan(conversion, limits, copy_bases)


def _plan_for_machines(
    conversion: Conversion,
    limits: Limits,
    copy_bases: tuple[int, ...],
    process_count: int | None,
    machines: Sequence[int],
) -> Plan:
    count = process_count or _count_on(conversion, limits.memory_bytes, machines)

    def make(on_each: int) -> Plan:
        all_count = min(count, on_each * len(machines))
        memory_bytes = all_count * (limits.memory_bytes // on_each)
        return make_plan(conversion, replace(limits, process_count=all_count, memory_bytes=memory_bytes), copy_bases)

    most = -(-count // len(machines))
    for on_each in range(most, 1, -1) if process_count is None else ():
        try:
            return make(on_each)
        except OverBudget:
            continue
    return make(1 if process_count is None else most)


def choose_count(conversion: Conversion, memory_bytes: int) -> int:
    """Return how many processes are worth starting here, for a conversion within so much memory."""
    if not all(map(opens_anywhere, conversion.urls)):
        return 1
    counts = core_count(), _worth(conversion), memory_bytes // _LEAST_MEMORY_BYTES
    return max(1, min(_MOST, *counts))


def _count_on(conversion: Conversion, memory_bytes: int, machines: Sequence[int]) -> int:
    """Return how many processes are worth starting on machines: one on each at least."""
    on_each = max(1, memory_bytes // _LEAST_MEMORY_BYTES)
    room = sum(min(cores, on_each) for cores in machines)
    return min(MOST_PROCESSES, room, max(len(machines), _worth(conversion)))


def _worth(conversion: Conversion) -> int:
    written_bytes = sum(output.nbytes * len(output.keys) for output in conversion.outputs)
    return written_bytes // _LEAST_TARGET_BYTES
