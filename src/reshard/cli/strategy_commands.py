"""``reshard strategy``: show, merge, convert and make strategies."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..api import strategies
from ..api.request import STRATEGY_OPTIONS
from ..planning.ownership import strategy_grids
from .flags import Output, OutputForm, Overwrite, Picture, patient, request_flags, with_flags
from .pictures import show_pictures
from .results import show_strategy

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="Strategy file, prefix with the files of all stages, or layout file.")
]
_SET = "a file for each rank if it ends in / or is a prefix"
Made = Annotated[
    str, typer.Argument(metavar="DST", help=f"Layout file if it ends in .yaml; .json; {_SET}; else protobuf.")
]
_FOR = typer.Option("--for", metavar="URL", help="Full checkpoint whose tensors the strategy is for.")


@patient
def show(
    src: Source,
    checkpoint: Annotated[str | None, _FOR] = None,
    picture: Picture = None,
    output: Output = OutputForm.TEXT,
) -> None:
    """Show every tensor's layout, stage by stage."""
    strategy, specs = strategies.read_strategy_of(src, checkpoint=checkpoint)
    if not picture:
        show_strategy(strategy, output)
        return
    show_pictures([grid for name in picture for grid in strategy_grids(strategy, name, specs.get(name))])


@patient
def merge(
    src: Annotated[str, typer.Argument(metavar="SRC", help="Prefix that holds the files of all ranks or stages.")],
    dst: Annotated[
        str, typer.Argument(metavar="DST", help=f"Merged file: JSON if it ends in .json; {_SET}; else protobuf.")
    ],
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
) -> None:
    """Merge the strategy files of pipeline stages into one."""
    show_strategy(strategies.merge_strategies(src, dst, overwrite=overwrite), output, written=dst)


@patient
def convert(
    src: Source,
    dst: Made,
    checkpoint: Annotated[str | None, _FOR] = None,
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
) -> None:
    """Write a strategy in another form."""
    made = strategies.convert_strategy(src, dst, checkpoint=checkpoint, overwrite=overwrite)
    show_strategy(made, output, written=dst)


@patient
@with_flags(request_flags(STRATEGY_OPTIONS[1:]))
def make(
    dst: Made,
    parallel: Annotated[
        str, typer.Option(metavar="dp=2,mp=4,...|URL.yaml", help="Sizes, or a training job's YAML.  [required]")
    ],
    checkpoint: Annotated[
        str, typer.Option("--for", metavar="URL", help="Full checkpoint whose tensors the strategy is for.  [required]")
    ],
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
    **options: Any,
) -> None:
    """Make the strategy of a training job from its parallel sizes, without the job."""
    made = strategies.make_strategy(dst, checkpoint=checkpoint, parallel=parallel, overwrite=overwrite, **options)
    show_strategy(made, output, written=dst)
