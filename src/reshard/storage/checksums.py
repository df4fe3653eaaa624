"""CRCs of bodies, and of bodies that are joined; they cost next to nothing at the speed of awscrt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Literal

from ..errors import StorageError
from .protocol import Body

Algorithm = Literal["crc32c", "crc64nvme", "crc32"]

_MOST_READS = 5

Crc = Callable[[Body], int]
Join = Callable[[int, int, int], int]


@cache
def _functions(algorithm: Algorithm) -> tuple[Crc, Join]:
    """Return the function that takes a CRC, and the one that joins two."""
    from awscrt import checksums  # takes a while to load, and inspecting needs none

    found: Mapping[Algorithm, tuple[Crc, Join]] = {
        "crc32c": (checksums.crc32c, checksums.combine_crc32c),
        "crc64nvme": (checksums.crc64nvme, checksums.combine_crc64nvme),
        "crc32": (checksums.crc32, checksums.combine_crc32),
    }
    return found[algorithm]


def crc_of(data: Body, algorithm: Algorithm = "crc32c") -> int:
    """Return a CRC of some bytes.

    Examples
    --------
    >>> f"{crc_of(b'123456789'):08x} {crc_of(b'123456789', 'crc64nvme'):016x} {crc_of(b'123456789', 'crc32'):08x}"
    'e3069283 ae8b14860a799888 cbf43926'
    """
    return int(_functions(algorithm)[0](data))


def joined_crc(parts: Iterable[tuple[int, int]], algorithm: Algorithm = "crc32c") -> int:
    """Return the CRC of joined parts from ``(crc, nbytes)`` of each, in order.

    Examples
    --------
    >>> joined_crc([(crc_of(b"1234"), 4), (crc_of(b""), 0), (crc_of(b"56789"), 5)]) == crc_of(b"123456789")
    True
    """
    join, total = _functions(algorithm)[1], 0
    for crc, nbytes in parts:
        total = int(join(total, crc, nbytes))
    return total


def read_until_equal(target: memoryview, fetch: Callable[[], object], where: str) -> None:
    """Fill a buffer again until it has come twice with the same bytes; it has been filled once.

    Raise StorageError if no two reads agree.
    """
    seen = {crc_of(target)}
    for _ in range(_MOST_READS - 1):
        fetch()
        crc = crc_of(target)
        if crc in seen:
            return
        seen.add(crc)
    raise StorageError(
        f"{where}: no two of {_MOST_READS} reads brought the same bytes",
        hint="Something between here and the store changes bytes: a proxy, a network card, memory.",
    )
