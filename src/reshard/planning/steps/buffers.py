"""How the memory limit is shared out over buffers, and what the least limit would be."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import OverBudget
from ..limits import KIB, MIB, Limits

_LEAST_READ_BYTES = 256 * KIB
_CLIENT_BYTES = 24 * MIB
_ITEM_BYTES = 5 * KIB


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory by use; sizes in bytes.

    Parameters
    ----------
    given
        The limits as they were given.
    read_bytes
        Largest ranged GET that fits.
    fixed_bytes
        One read and the client's own buffers for every request in flight.
    parts_bytes
        What is left for upload parts being filled or sent; may be negative.
    """

    given: Limits
    read_bytes: int
    fixed_bytes: int
    parts_bytes: int

    @property
    def limits(self) -> Limits:
        """The limits as given, with ``read_bytes`` lowered to what fits."""
        return replace(self.given, read_bytes=self.read_bytes)


def share_memory(limits: Limits) -> Buffers:
    """Give an eighth of the memory to reads in flight and, after the clients, the rest to parts.

    More memory never leaves less for parts, so there is one smallest limit under which a step fits.

    Examples
    --------
    >>> buffers = share_memory(Limits(memory_bytes=256 << 20, concurrency=8))
    >>> buffers.read_bytes >> 20, buffers.fixed_bytes >> 20, buffers.parts_bytes >> 20
    (4, 40, 216)
    """
    least, most = _reads_bytes(limits)
    reads_bytes = min(most, max(least, limits.memory_bytes // 8))
    read_bytes = reads_bytes // limits.concurrency
    client_bytes = limits.concurrency * (limits.client_bytes + limits.kernel_bytes)
    return Buffers(
        limits,
        read_bytes,
        fixed_bytes=limits.concurrency * read_bytes + client_bytes,
        parts_bytes=limits.memory_bytes - client_bytes - reads_bytes,
    )


def least_memory(limits: Limits, step_bytes: int) -> int:
    """The smallest limit under which a step of ``step_bytes`` still fits.

    Examples
    --------
    >>> limits = Limits(memory_bytes=8 << 20)
    >>> needed_bytes = least_memory(limits, 5 << 20)
    >>> [share_memory(replace(limits, memory_bytes=needed_bytes + n)).parts_bytes - (5 << 20) for n in (-1, 0)]
    [-1, 0]
    """
    least, most = _reads_bytes(limits)
    rest = limits.concurrency * (limits.client_bytes + limits.kernel_bytes) + step_bytes
    with_an_eighth = (rest - 1) * 8 // 7 + 1
    return min(rest + most, max(rest + least, with_an_eighth))


def process_bytes(buffer_bytes: int, item_count: int) -> int:
    """About what a process grows by that does what buffers are for: they, and what stands beside them.

    Measured, and rounded up: the client's models and connections, stacks of threads and objects in passing, and
    for each tensor and object its places in catalog, plan, steps and manifest (``benchmarks/results/bench.json``).

    Parameters
    ----------
    item_count
        Tensors and objects of the source, and objects to write.

    Examples
    --------
    >>> process_bytes(512 << 20, item_count=1000) >> 20
    540
    """
    return buffer_bytes + _CLIENT_BYTES + item_count * _ITEM_BYTES


def over_budget(buffers: Buffers, step_bytes: int) -> OverBudget:
    """The error for a step that does not fit; it tells the limit that would do."""
    given = buffers.given
    needed_bytes = least_memory(given, step_bytes)
    return OverBudget(
        f"this conversion needs at least {needed_bytes} bytes of memory "
        f"(concurrency {given.concurrency}), the limit is {given.memory_bytes}",
        needed_bytes=needed_bytes,
        hint=f"Allow --memory {-(-needed_bytes >> 20)}MiB, or lower --concurrency.",
    )


def _reads_bytes(limits: Limits) -> tuple[int, int]:
    """Least and most bytes for all reads in flight together."""
    most = limits.concurrency * limits.read_bytes
    return min(most, limits.concurrency * _LEAST_READ_BYTES), most
