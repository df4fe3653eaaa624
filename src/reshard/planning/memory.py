"""How the memory limit is shared out over buffers, and what the least limit would be."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .limits import KIB, Limits

__all__ = ["Buffers", "share_memory"]

_LEAST_READ_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory by use; sizes in bytes.

    Parameters
    ----------
    limits
        As given, with ``read_bytes`` lowered to what fits.
    fixed_bytes
        One read and the client's own buffers for every request in flight.
    parts_bytes
        What is left for upload parts being filled or sent; may be negative.
    """

    limits: Limits
    fixed_bytes: int
    parts_bytes: int


def share_memory(limits: Limits) -> Buffers:
    """Give an eighth of the memory to reads in flight and, after the clients, the rest to parts.

    Examples
    --------
    >>> buffers = share_memory(Limits(memory_bytes=256 << 20, concurrency=8))
    >>> buffers.limits.read_bytes >> 20, buffers.fixed_bytes >> 20, buffers.parts_bytes >> 20
    (4, 40, 216)
    """
    wished = limits.memory_bytes // (8 * limits.concurrency)
    read_bytes = min(limits.read_bytes, max(_LEAST_READ_BYTES, wished))
    fixed_bytes = limits.concurrency * (read_bytes + limits.client_bytes)
    return Buffers(replace(limits, read_bytes=read_bytes), fixed_bytes, limits.memory_bytes - fixed_bytes)


def least_memory(limits: Limits, step_bytes: int) -> int:
    """The smallest limit under which a step of ``step_bytes`` still fits."""
    smallest = limits.concurrency * (_LEAST_READ_BYTES + limits.client_bytes) + step_bytes
    # Reads take an eighth of the memory once that is more than their least size.
    return max(smallest, -(-(limits.concurrency * limits.client_bytes + step_bytes) * 8 // 7))
