"""Every default of the package, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
KERNEL_BYTES = 3 * MIB
"""No kernel takes more memory of its own than this (measured: 2 MiB and little more)."""

# Beyond what any machine gains from: a saved plan's limits become threads and buffers.
_MOST = {"memory_bytes": 1 << 44, "concurrency": 1024, "read_bytes": 1 << 30, "max_part_count": 1 << 16}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a conversion may use; sizes in bytes.

    Parameters
    ----------
    memory_bytes
        For all buffers together; the interpreter itself is not counted.
    concurrency
        Requests in flight at once.
    read_bytes
        Largest ranged GET. Lowered when the memory is small.
    part_bytes
        Wished size of an upload part. Lowered when the memory is small, raised when an object
        would need more parts than its store allows.
    max_gap_bytes
        Unneeded bytes that are read rather than starting another request; about what a
        connection carries in the time of a round trip.
    max_over_read
        Bytes read for each byte needed, at most, when gaps are read.
    client_bytes
        What the store's client holds for each request in flight, besides our buffers (measured).
    kernel_bytes
        What a thread holds besides while it computes values; 0 where nothing is computed.
    row_bytes
        Finest step in which tensors are cut between upload parts.
    unit_bytes
        Largest piece that is kept together between upload parts where a tensor's axes are turned over.
    object_bytes
        Largest object of a full checkpoint in Hugging Face's form.
    mindspore_part_bytes
        What MindSpore's form holds in each part on average, at most.
    chunk_bytes
        Wished size of a zarr chunk.
    copy_bytes
        Largest part that a store is asked to copy by itself, where it can.
    min_part_bytes, max_part_bytes, max_part_count, max_object_bytes
        What the target store accepts.
    min_copy_source_bytes
        Shortest object that it copies a range of.

    Examples
    --------
    >>> Limits(concurrency=0)
    Traceback (most recent call last):
    ...
    reshard.errors.UsageError: concurrency must be at least 1, found 0
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

    @property
    def most_copied_bytes(self) -> int:
        """The largest copied part; halves of what is longer are still long enough."""
        return min(self.max_part_bytes, max(self.copy_bytes, 2 * self.min_part_bytes))

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("max_gap_bytes", "kernel_bytes") else 1
            if value < least:
                raise UsageError(f"{name} must be at least {least}, found {value}")
            if value > _MOST.get(name, value):
                raise UsageError(f"{name} must be at most {_MOST[name]}, found {value}")
