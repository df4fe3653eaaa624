"""Every default of the package, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from ..errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
_MOST_REQUESTS = 64
KERNEL_BYTES = 3 * MIB
"""Most memory that a kernel takes for itself (measured: 2 MiB and little more)."""


class Integrity(StrEnum):
    """What must prove that a store has received the bytes that it was sent, from the cheapest.

    Parameters
    ----------
    OFF
        Lengths alone.
    FAST
        A checksum that costs next to nothing, where the store checks such a one: CRC-32C.
    AUTO
        The same; where the store checks MD5 only, MD5.
    STRICT
        The same; a store that checks neither is refused.
    """

    OFF = "off"
    FAST = "fast"
    AUTO = "auto"
    STRICT = "strict"


# Threads and buffers are sized by these, and a saved plan may be forged: no machine gains from more.
_MOST = {
    "memory_bytes": 1 << 44,
    "concurrency": 1024,
    "read_bytes": 1 << 30,
    "max_part_count": 1 << 16,
    "read_count": 2,
    "process_count": 256,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The resources of a conversion, and what its target store accepts; sizes in bytes.

    Parameters
    ----------
    memory_bytes
        For all buffers of all processes together, on a Ray cluster those of all machines; interpreters are not counted.
    concurrency
        Requests that each process has in flight at once.
    read_bytes
        Longest ranged GET. Lowered if the memory is small.
    part_bytes
        Wished size of an upload part. Lowered if the memory is small, raised if an object
        would need more parts than its store allows.
    max_gap_bytes
        Most unneeded bytes to read rather than sending another request; about what a connection carries in the time
        of a round trip.
    max_over_read
        Most bytes to read for each needed byte, over gaps.
    client_bytes
        Memory of the store's client for each request in flight, besides our buffers (measured).
    kernel_bytes
        Memory of a thread that computes values; 0 if nothing is computed.
    row_bytes
        Tensors are cut between upload parts at rows of at most this length, if they have such rows.
    unit_bytes
        Longest unit of a transposed tensor that is kept in one step.
    object_bytes, mindspore_part_bytes
        Largest object of a full checkpoint in Hugging Face's form, and average part in MindSpore's.
    chunk_bytes, copy_bytes
        Wished size of a zarr chunk, and longest part that the store copies.
    min_part_bytes, max_part_bytes, max_part_count, max_object_bytes
        What the target store accepts.
    min_copy_source_bytes
        Shortest object that it copies a range of.
    read_count
        How often each range is read: twice to prove that its bytes arrived as they are stored.
    integrity
        What must prove that bytes which are sent have arrived.
    process_count
        Processes that move bytes, each with an equal share of the memory; on a Ray cluster on all machines together.
    """

    memory_bytes: int = 512 * MIB
    concurrency: int = 8
    read_bytes: int = 8 * MIB
    part_bytes: int = 16 * MIB
    max_gap_bytes: int = 512 * KIB
    max_over_read: int = 4096
    client_bytes: int = 1 * MIB
    kernel_bytes: int = 0
    row_bytes: int = 256 * KIB
    unit_bytes: int = 128 * MIB
    object_bytes: int = 5_000_000_000
    mindspore_part_bytes: int = 3 << 30
    chunk_bytes: int = 64 * MIB
    copy_bytes: int = 512 * MIB
    min_part_bytes: int = 5 * MIB
    max_part_bytes: int = 5 << 30
    max_part_count: int = 10_000
    max_object_bytes: int = 5 << 40
    min_copy_source_bytes: int = 5 * MIB + 1
    read_count: int = 1
    integrity: Integrity = Integrity.AUTO
    process_count: int = 1

    @property
    def request_count(self) -> int:
        """Requests in flight of all processes together."""
        return self.concurrency * self.process_count

    @property
    def most_copied_bytes(self) -> int:
        """Length of the longest copied part: half of a longer range is still long enough for a part."""
        return min(self.max_part_bytes, max(self.copy_bytes, 2 * self.min_part_bytes))

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "integrity":
                continue
            least = 0 if name in ("max_gap_bytes", "kernel_bytes") else 1
            if value < least:
                raise UsageError(f"{name} must be at least {least}, found {value}")
            if value > _MOST.get(name, value):
                raise UsageError(f"{name} must be at most {_MOST[name]}, found {value}")


def requests_for(process_count: int | None) -> int | None:
    """Return the requests in flight that stand for a number of processes; None, the default, for at most one.

    Examples
    --------
    >>> requests_for(1), requests_for(2), requests_for(64)
    (None, 16, 64)
    """
    return min(Limits().concurrency * process_count, _MOST_REQUESTS) if process_count and process_count > 1 else None
