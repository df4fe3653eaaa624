"""Numbers for people."""

from __future__ import annotations

_UNIT, _MINUTE, _HOUR = 1024.0, 60, 3600


def in_bytes(nbytes: float) -> str:
    """Format a number of bytes for people.

    Examples
    --------
    >>> in_bytes(999), in_bytes(3 << 20)
    ('999 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < _UNIT:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= _UNIT
    return f"{nbytes:.2f} TiB"


def in_time(seconds: float) -> str:
    """Format a length of time for people.

    Examples
    --------
    >>> in_time(0.04), in_time(12.3), in_time(200), in_time(7500)
    ('0.04 s', '12 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
