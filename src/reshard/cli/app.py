"""The command ``reshard``: its commands, and what happens when one fails."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer

from ..errors import ReshardError
from . import convert, inspect, plan, strategy, verify
from .output import print_error

__all__ = ["app", "main"]

app = typer.Typer(
    name="reshard",
    help="Model checkpoints in object stores, turned into other parallel layouts without touching local disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(inspect.inspect)
app.command()(plan.plan)
app.command()(convert.convert)
app.command()(verify.verify)
app.add_typer(strategy.app, name="strategy")

_INTERRUPTED = 130


class _Stopped(BaseException):
    """A signal asked to stop. Not a KeyboardInterrupt: typer would end the program on that without a word."""


class _Signals:
    """Stops the program at the first signal, cleanly; repeated ones must not break off the cleaning up."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            raise _Stopped
        if self._count == 2:
            os.write(2, b"stopping: what this run began is being removed; once more to leave it and stop at once\n")
            return
        os._exit(_INTERRUPTED)


def main() -> None:
    """Run the command line; errors become a message on stderr and an exit code by class."""
    signals = _Signals()
    for number in (signal.SIGINT, signal.SIGTERM):  # a stopped job is sent SIGTERM
        signal.signal(number, signals)
    try:
        app()
    except ReshardError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except _Stopped as stopped:
        left = getattr(stopped, "__notes__", ["nothing of this run was left behind"])
        sys.stderr.write("interrupted: " + "\n".join(left) + "\n")
        sys.exit(_INTERRUPTED)
