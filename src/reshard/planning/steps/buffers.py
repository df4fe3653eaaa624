"""How the memory limit is divided over buffers, and the smallest limit that a step fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import OverBudget, option
from ..limits import KIB, MIB, Limits

_LEAST_READ_BYTES = 256 * KIB
_CLIENT_BYTES = 24 * MIB
_ITEM_BYTES = 5 * KIB


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory of one process by use; sizes in bytes.

    ``read_bytes`` is the largest ranged GET that fits, lowered from that of the ``given`` limits. ``fixed_bytes`` has
    one read and the client's own buffers for every request in flight; ``parts_bytes`` is the rest, for upload parts
    being filled or sent, and may be negative.
    """

    given: Limits
    read_bytes: int
    fixed_bytes: int
    parts_bytes: int

    @property
    def limits(self) -> Limits:
        """The given limits, with ``read_bytes`` lowered to what fits."""
        return replace(self.given, read_bytes=self.read_bytes)


def share_memory(limits: Limits) -> Buffers:
    """Give an eighth of a process's memory to reads in flight and, after the clients, the rest to parts.

    More memory never leaves less for parts, so that there is one smallest limit that a step fits.

    Examples
    --------
    >>> buffers = share_memory(Limits(memory_bytes=256 << 20, concurrency=8))
    >>> buffers.read_bytes >> 20, buffers.fixed_bytes >> 20, buffers.parts_bytes >> 20
    (4, 40, 216)
    """
    least, most = _reads_bytes(limits)
    memory_bytes = limits.memory_bytes // limits.process_count
    reads_bytes = min(most, max(least, memory_bytes // 8))
    read_bytes = reads_bytes // limits.concurrency
    client_bytes = limits.concurrency * (limits.client_bytes + limits.kernel_bytes)
    return Buffers(
        limits,
        read_bytes,
        fixed_bytes=limits.concurrency * read_bytes + client_bytes,
        parts_bytes=memory_bytes - client_bytes - reads_bytes,
    )


def least_memory(limits: Limits, step_bytes: int) -> int:
    """Return the smallest memory limit that a step of ``step_bytes`` fits.

    Examples
    --------
    >>> limits = Limits(memory_bytes=8 << 20)
    >>> needed_bytes = least_memory(limits, 5 << 20)
    >>> [share_memory(replace(limits, memory_bytes=needed_bytes + n)).parts_bytes - (5 << 20) for n in (-1, 0)]
    [-1, 0]
    """
    least, most = _reads_bytes(limits)
    rest = limits.concurrency * (limits.client_bytes + limits.kernel_bytes) + step_bytes
    with_an_eighth = (rest - 1) * 8 // 7 + 1  # the least memory of which seven eighths are the rest
    return limits.process_count * min(rest + most, max(rest + least, with_an_eighth))


def process_bytes(buffer_bytes: int, item_count: int) -> int:
    """Estimate the memory that a process grows by: its buffers, its clients, and the plan.

    Measured, and rounded up: the client's models and connections, stacks of threads and short-lived objects, and
    the entries of each tensor and object in catalog, plan, steps and manifest (``benchmarks/results/bench.json``).
    Items are tensors and objects of the source, and objects to write.

    Examples
    --------
    >>> process_bytes(512 << 20, item_count=1000) >> 20
    540
    """
    return buffer_bytes + _CLIENT_BYTES + item_count * _ITEM_BYTES


def over_budget(buffers: Buffers, step_bytes: int) -> OverBudget:
    """Return the error for a step that does not fit; it carries the limit that would suffice."""
    given = buffers.given
    needed_bytes = least_memory(given, step_bytes)
    processes = f"{given.process_count} processes, each with " if given.process_count > 1 else ""
    fewer = f"{option('processes')} or " if processes else ""
    return OverBudget(
        f"this conversion needs at least {needed_bytes} bytes of memory "
        f"({processes}concurrency {given.concurrency}), the limit is {given.memory_bytes}",
        needed_bytes=needed_bytes,
        hint=f"Allow {option('memory', f'{-(-needed_bytes >> 20)}MiB')}, or lower {fewer}{option('concurrency')}.",
    )


def _reads_bytes(limits: Limits) -> tuple[int, int]:
    """Return the least and the most bytes for all reads in flight together."""
    most = limits.concurrency * limits.read_bytes
    return min(most, limits.concurrency * _LEAST_READ_BYTES), most
