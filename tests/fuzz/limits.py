"""The limits that every input must keep, and what runs one input within them."""

from __future__ import annotations

import faulthandler
import resource
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import ReshardError

from .targets import Target

MAX_SECONDS = 5.0
MEMORY_PER_BYTE = 10
MEMORY_BASE_BYTES = 64 << 20
_HANG_SECONDS = 60.0
_ARM_EVERY_SECONDS = 10.0
_PAGE_BYTES = resource.getpagesize()


@dataclass(slots=True)
class Outcome:
    """What became of one input: why it breaks the limits, if it does; processor time; memory at most."""

    problem: str
    seconds: float
    allocated_bytes: int
    kind: str


def resident_bytes() -> int:
    """Return what this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def peak_bytes() -> int:
    """Return the most that this process has held."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def forget_peak() -> None:
    """Let :func:`peak_bytes` begin anew, where the system can: what came before is no measure for inputs."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run_one(target: Target, data: bytes, baseline_bytes: int) -> Outcome:
    """Run a target on one input; ``baseline_bytes`` are what the process held before the first."""
    problem, kind = "", "read"
    _watch_for_hangs()
    started_s = time.process_time()
    try:
        target(data)
    except ReshardError as error:
        kind = f"{type(error).__name__}: {getattr(error, 'what', '')[:40]}"
        problem = _unshowable(error)
    except Exception:  # noqa: BLE001  # what it is about
        problem = "crash: " + traceback.format_exc()
    finally:
        seconds = time.process_time() - started_s
    allocated = peak_bytes() - baseline_bytes
    if seconds > MAX_SECONDS:
        problem = f"took {seconds:.1f} s"
    if allocated > MEMORY_PER_BYTE * len(data) + MEMORY_BASE_BYTES:
        problem = f"took {allocated >> 20} MiB for {len(data)} bytes"
    return Outcome(problem, seconds, allocated, kind)


_armed_s = float("-inf")


def _watch_for_hangs() -> None:
    """Have the process end, with a traceback, if no input begins for most of a minute; arming takes 70 microseconds."""
    global _armed_s
    now_s = time.monotonic()
    if now_s - _armed_s > _ARM_EVERY_SECONDS:
        faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        _armed_s = now_s


def end_watch() -> None:
    """Stop watching: what comes now may take long."""
    global _armed_s
    faulthandler.cancel_dump_traceback_later()
    _armed_s = float("-inf")


def _unshowable(error: ReshardError) -> str:
    """Return why an error's text cannot be shown, if it cannot."""
    try:
        str(error).encode()
    except UnicodeEncodeError as trouble:
        return f"crash: the message cannot be encoded: {trouble}"
    return ""
