"""SIGINT and SIGTERM: they stop a command cleanly, and have no effect once its work is done."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that was stopped."""


class Stopped(BaseException):
    """A signal asked to stop. Not a KeyboardInterrupt: typer would end the program on that without a word."""


class Signals:
    """Stops the program at the first signal, cleanly; repeated ones must not break off the cleaning up."""

    def __init__(self) -> None:
        self._count = 0
        self._is_done = False

    def install(self) -> None:
        """Take over, from the start; a stopped job is sent SIGTERM."""
        self._count, self._is_done = 0, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def work_is_done(self) -> None:
        """Ignore signals from now on: the result is complete and stays."""
        self._is_done = True

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Deal with one signal."""
        if self._is_done:
            return
        self._count += 1
        if self._count == 1:
            raise Stopped
        if self._count == 2:
            os.write(2, b"stopping: what this run began is being removed; once more to leave it and stop at once\n")
            return
        os._exit(INTERRUPTED)


signals = Signals()
"""Those of this process."""
