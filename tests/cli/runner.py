"""Runs the command line in this process as a shell would: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from reshard.cli.app import main

# What the command ``reshard`` runs, for tests that need a process of its own.
PROGRAM = [sys.executable, "-c", "from reshard.cli.app import main; main()"]
_QUICK = "from reshard.engine import claim; claim.BEAT_S, claim.SILENCE_S, claim._LOOK_S = 0.3, 3.0, 0.2; "
QUICK_PROGRAM = [*PROGRAM[:2], _QUICK + PROGRAM[2]]
"""The same, with runs that are silent dead soon."""


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON value and nothing else."""
        return json.loads(self.out)


def run(*arguments: str) -> Done:
    """Run one command, errors handled as for a user."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["reshard", *arguments]),
        _handlers_kept(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def ok(*arguments: str) -> Done:
    """Run one command that must succeed."""
    done = run(*arguments)
    assert done.code == 0, done.err
    return done


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
