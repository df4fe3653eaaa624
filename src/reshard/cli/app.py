"""The command ``reshard``: its commands, and what happens when one fails."""

from __future__ import annotations

import sys

import typer

from ..errors import ReshardError
from . import convert, inspect, plan, strategy, verify
from .output import print_error
from .signals import INTERRUPTED, Stopped, signals

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


def main() -> None:
    """Run the command line; errors become a message on stderr and an exit code by class."""
    signals.install()
    try:
        app()
    except ReshardError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        left = getattr(stopped, "__notes__", ["nothing of this run was left behind"])
        sys.stderr.write("interrupted: " + "\n".join(left) + "\n")
        sys.exit(INTERRUPTED)
