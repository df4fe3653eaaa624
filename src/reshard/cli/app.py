"""The command ``reshard``: its commands, and what happens when one fails."""

from __future__ import annotations

import gc
import sys

import typer

from ..errors import ReshardError
from . import (
    ckpt_to_safetensors,
    convert,
    convert_weight,
    inspect,
    load_distributed_checkpoint,
    merge_pipeline_strategys,
    plan,
    safetensors_to_ckpt,
    strategy,
    transform_checkpoint,
    transform_ckpt_lora,
    unified_safetensors,
    verify,
)
from .output import print_error
from .signals import INTERRUPTED, Stopped, signals


def _with_dashes(name: str) -> str:
    """MindSpore's names have underscores: either spelling of a command or a flag is understood."""
    return name.replace("_", "-")


app = typer.Typer(
    name="reshard",
    help="Model checkpoints in object stores, turned into other parallel layouts without touching local disk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _with_dashes},
)
app.command()(inspect.inspect)
app.command()(plan.plan)
app.command()(convert.convert)
app.command()(verify.verify)
app.add_typer(strategy.app, name="strategy")
_ORIGINALS = "MindSpore's and MindSpore Transformers' own commands"
app.command(rich_help_panel=_ORIGINALS)(unified_safetensors.unified_safetensors)
app.command(rich_help_panel=_ORIGINALS)(transform_checkpoint.transform_checkpoint)
app.command(rich_help_panel=_ORIGINALS)(load_distributed_checkpoint.load_distributed_checkpoint)
app.command(rich_help_panel=_ORIGINALS)(merge_pipeline_strategys.merge_pipeline_strategys)
app.command(rich_help_panel=_ORIGINALS)(ckpt_to_safetensors.ckpt_to_safetensors)
app.command(rich_help_panel=_ORIGINALS)(safetensors_to_ckpt.safetensors_to_ckpt)
app.command(rich_help_panel=_ORIGINALS)(convert_weight.convert_weight)
app.command(rich_help_panel=_ORIGINALS)(transform_ckpt_lora.transform_ckpt_lora)


def main() -> None:
    """Run the command line; errors become a message on stderr and an exit code by class."""
    # Plans are very many objects that all live on: looking for cycles among them again and again finds none.
    gc.freeze()
    gc.set_threshold(20_000)
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
