"""CRC-32C of whole objects, joined from those of their parts."""

from __future__ import annotations

from collections.abc import Iterable

from awscrt import checksums

from ..storage import Body


def crc32c(data: Body) -> int:
    """Return the CRC-32C of some bytes."""
    return int(checksums.crc32c(data))


def combined_crc32c(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC-32C of joined parts from ``(crc, nbytes)`` of each, in order.

    Examples
    --------
    >>> combined_crc32c([(crc32c(b"1234"), 4), (crc32c(b""), 0), (crc32c(b"56789"), 5)]) == crc32c(b"123456789")
    True
    """
    total = 0
    for crc, nbytes in parts:
        total = int(checksums.combine_crc32c(total, crc, nbytes))
    return total
