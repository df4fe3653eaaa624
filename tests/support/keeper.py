"""Ends servers and removes what they keep when the process that started them is gone, whatever ended it.

A keeper is a small process of its own. It reads a pipe that only the process that started it can write to, and
that closes with that process, even by SIGKILL. Run as a program, this file is such a process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


class Keeper:
    """The keeper of this process's servers and of one folder."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def keep(self, pid: int) -> None:
        """End a process with this one, and its group if it leads one."""
        self._say(f"+{pid}")

    def release(self, pid: int) -> None:
        """A process has ended: its number may be another's soon."""
        self._say(f"-{pid}")

    def remove(self, pattern: str) -> None:
        """Remove files by a glob pattern in the end."""
        self._say(f"x{pattern}")

    def _say(self, line: str) -> None:
        os.write(self._pipe, f"{line}\n".encode())


@contextlib.contextmanager
def keeper(folder: Path) -> Iterator[Keeper]:
    """Have a folder and processes looked after; at the end of the block both are gone."""
    command = [sys.executable, "-I", "-S", __file__, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True)
    assert process.stdin is not None
    try:
        yield Keeper(process.stdin.fileno())
    finally:
        process.stdin.close()
        process.wait(30)


def _look_after(folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept: dict[int, str] = {}
    patterns = []
    for line in sys.stdin:
        what, rest = line[0], line[1:].rstrip("\n")
        if what == "x":
            patterns.append(rest)
        elif what == "+":
            kept[int(rest)] = _begun(int(rest))
        else:
            kept.pop(int(rest), None)
    for pid, begun in kept.items():
        if _begun(pid) != begun:  # the number is another's by now, perhaps that of a thread
            continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
    for path in (path for pattern in patterns for path in Path("/").glob(pattern.lstrip("/"))):
        path.unlink(missing_ok=True)
    for _ in range(20):  # a process that is being killed may still write
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return


def _begun(pid: int) -> str:
    """Return when a process began, as the system counts; empty if it is gone, or the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


if __name__ == "__main__":
    _look_after(sys.argv[1])
