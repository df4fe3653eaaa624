"""``reshard strategy``: show, merge, convert and make strategies."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
from ..api import numbers
from ..errors import UsageError
from .options import Output, OutputForm, Side
from .output import show_strategy

app = typer.Typer(help="Show, merge, convert and make parallel strategies.", no_args_is_help=True)

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


@app.command()
def make(
    dst: Annotated[str, typer.Argument(help="Layout file if it ends in .yaml, .json, else protobuf.")],
    parallel: Annotated[
        str, typer.Option(metavar="dp=2,mp=4,... | URL.yaml", help="Numbers, or the configuration of a training job.")
    ],
    checkpoint: Annotated[
        str, typer.Option("--for", metavar="URL", help="Full checkpoint whose tensors the strategy is for.")
    ],
    to: Annotated[
        Side | None, typer.Option(help="It is for what the checkpoint becomes when it is converted to ms or hf names.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="from config.json", help="Family of models whose rules to follow."),
    ] = None,
    naming: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="from the names", help="How the tensors are called.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="URL", show_default="beside the checkpoint", help="Where the model's config.json lies."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Option of the naming. Repeatable.")
    ] = None,
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
) -> None:
    """Make the strategy of a training job from its numbers, without the job."""
    options = dict(_pair(item) for item in option or ())
    strategy = numbers.make_strategy(
        dst,
        checkpoint=checkpoint,
        parallel=parallel,
        to=to,
        family=family,
        naming=naming,
        config=config,
        options=options,
        overwrite=overwrite,
    )
    show_strategy(strategy, output, written=dst)


def _pair(item: str) -> tuple[str, object]:
    name, equals, value = item.partition("=")
    if not name or not equals:
        raise UsageError(f"--option {item}: expected NAME=VALUE")
    return name, int(value) if value.isdecimal() and len(value) < 10 else value
