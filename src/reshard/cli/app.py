"""The command ``reshard``: its commands, and what happens when one fails."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import ReshardError
from .lazy_commands import ListedCommand, group_class, make_app
from .signals import INTERRUPTED, Stopped, signals
from .spelling import as_flag

# Only what is listed here is imported for --help: a command's module is imported when the command runs.
_STRATEGY = {
    "Commands": {
        "show": ListedCommand("strategy_commands", "Show the layout of every tensor, stage by stage."),
        "merge": ListedCommand("strategy_commands", "Merge the strategy files of all stages into one."),
        "convert": ListedCommand("strategy_commands", "Write a strategy in another form."),
        "make": ListedCommand("strategy_commands", "Make the strategy of a training job from its parallel sizes."),
    }
}
_FAMILY = {
    "Commands": {
        "check": ListedCommand(
            "family_commands", "Say what a family's file covers of a model, and what it leaves open."
        )
    }
}
_COMMANDS = {
    "Commands": {
        "inspect": ListedCommand("commands", "Show what a checkpoint holds: tensors, shards, sizes and metadata."),
        "ls": ListedCommand("store_commands", "List what lies below a URL, with sizes."),
        "cat": ListedCommand("cat_command", "Show one tensor or a piece of it, or save it as .npy."),
        "plan": ListedCommand(
            "commands", "Show what a conversion would read, write, take and cost; nothing is written."
        ),
        "convert": ListedCommand(
            "commands", "Convert a checkpoint to rank shards, to a full one, or to another layout."
        ),
        "run": ListedCommand("run_command", "Run a job file: one conversion, or a batch of them."),
        "verify": ListedCommand("commands", "Compare the outputs of a conversion with its source, bit for bit."),
        "modelarts": ListedCommand(
            "modelarts_command", "Do one node's share of a conversion, as the boot file of a ModelArts job."
        ),
        "runs": ListedCommand("runs_commands", "List the runs below a prefix that have not finished."),
        "abort": ListedCommand("runs_commands", "Remove what runs that have ended early have left at a target."),
        "doctor": ListedCommand("store_commands", "Try what a store can do, and say what reshard will use."),
        "family": ListedCommand("", "Check the rules of a model family.", _FAMILY),
        "strategy": ListedCommand("", "Show, merge, convert and make parallel strategies.", _STRATEGY),
    },
    "MindSpore's and MindSpore Transformers' own commands": {
        "unified-safetensors": ListedCommand(
            "compat_commands", "Merge rank shards into part<i>.safetensors with a map."
        ),
        "transform-checkpoint": ListedCommand("compat_commands", "Bring a checkpoint from one strategy to another."),
        "load-distributed-checkpoint": ListedCommand("compat_commands", "Cut a full checkpoint into rank shards."),
        "merge-pipeline-strategys": ListedCommand("compat_commands", "Merge the strategy files of pipeline stages."),
        "ckpt-to-safetensors": ListedCommand("compat_commands", "Write .ckpt objects as safetensors, one by one."),
        "safetensors-to-ckpt": ListedCommand("compat_commands", "Write safetensors objects as .ckpt, one by one."),
        "convert-weight": ListedCommand(
            "compat_commands", "Convert Hugging Face's weights to MindSpore Transformers', or back."
        ),
        "transform-ckpt-lora": ListedCommand("compat_commands", "Merge LoRA adapters into their weights."),
    },
}


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        sys.stdout.write(f"reshard {__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Convert model checkpoints in object stores to other parallel layouts, without touching local disk."""


app = make_app(group_class(_COMMANDS), _root, add_completion=True)


def _arguments() -> list[str]:
    """Return the command and its arguments; a script that people type in its place is understood as one."""
    words = sys.argv[1:]
    known = {name for section in _COMMANDS.values() for name in section}
    if not words or words[0].startswith("-") or words[0].replace("_", "-") in known:
        return words
    from .scripts import as_command  # seldom needed

    try:
        return as_command(words)
    except ReshardError as error:
        from .printing import write_error

        write_error(error, as_flag)
        sys.exit(error.exit_code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, sys.argv unless told; errors become a message on stderr and an exit code by class."""
    # Plans are very many objects that all live on: looking for cycles among them again and again finds none.
    gc.freeze()
    gc.set_threshold(20_000)
    signals.install()
    try:
        app(_arguments() if arguments is None else arguments, prog_name="reshard")
    except Stopped as stopped:
        from .printing import write

        left = getattr(stopped, "__notes__", ["nothing of this run was left behind"])
        write("interrupted: " + "\n".join(left), sys.stderr)
        sys.exit(INTERRUPTED)
