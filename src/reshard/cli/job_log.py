"""Plain lines for the log of a job service."""

from __future__ import annotations

import sys
import time

from .printing import plain
from .spelling import spelled


class JobLog:
    """Writes lines with time, level and node to stdout: no live line, no control character, each sent at once."""

    def __init__(self, node: object = "node ?") -> None:
        self.node = node

    def info(self, text: str) -> None:
        """Tell how the job goes."""
        self._write("INFO", text)

    def warning(self, text: str) -> None:
        """Tell what is odd, although the job goes on."""
        self._write("WARNING", text)

    def error(self, text: str) -> None:
        """Tell why the job ends."""
        self._write("ERROR", text)

    def _write(self, level: str, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        for line in plain(spelled(text)).splitlines():
            sys.stdout.write(f"{stamp} {level} {plain(str(self.node))}: {line}\n")
        sys.stdout.flush()
