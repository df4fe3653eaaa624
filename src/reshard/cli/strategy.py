"""``reshard strategy``: show, merge and convert strategies."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
from .options import Output, OutputForm
from .output import show_strategy

app = typer.Typer(help="Show, merge and convert parallel strategies.", no_args_is_help=True)

Checkpoint = Annotated[
    str | None, typer.Option("--for", metavar="URL", help="Full checkpoint whose tensors a layout file is for.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")]
Source = Annotated[str, typer.Argument(help="Strategy file, prefix with all stages' files, or layout file.")]


@app.command()
def show(src: Source, checkpoint: Checkpoint = None, output: Output = OutputForm.TEXT) -> None:
    """Show every tensor's layout, stage by stage."""
    show_strategy(api.read_strategy(src, checkpoint=checkpoint), output)


@app.command()
def merge(
    src: Annotated[str, typer.Argument(help="Prefix that holds the files of all ranks or stages.")],
    dst: Annotated[str, typer.Argument(help="Merged file: JSON if it ends in .json, else protobuf.")],
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
) -> None:
    """Merge the strategy files of pipeline stages into one."""
    show_strategy(api.merge_strategies(src, dst, overwrite=overwrite), output, written=dst)


@app.command()
def convert(
    src: Source,
    dst: Annotated[str, typer.Argument(help="Layout file if it ends in .yaml, .json, else protobuf.")],
    checkpoint: Checkpoint = None,
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
) -> None:
    """Write a strategy in another form."""
    show_strategy(api.convert_strategy(src, dst, checkpoint=checkpoint, overwrite=overwrite), output, written=dst)
