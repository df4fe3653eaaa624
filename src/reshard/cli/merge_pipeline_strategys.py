"""``reshard merge-pipeline-strategys``: the strategy files of all stages in one."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
from ..errors import UsageError
from .options import Output, OutputForm, Overwrite
from .output import show_strategy


def merge_pipeline_strategys(
    src: Annotated[str | None, typer.Argument(help="Prefix that holds the files of all ranks or stages.")] = None,
    dst: Annotated[str | None, typer.Argument(help="Merged file: JSON if it ends in .json, else protobuf.")] = None,
    src_strategy_dirs: Annotated[str | None, typer.Option("--src_strategy_dirs", help="SRC by its own name.")] = None,
    dst_strategy_file: Annotated[str | None, typer.Option("--dst_strategy_file", help="DST by its own name.")] = None,
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
) -> None:
    """Merge the strategy files of pipeline stages: mindspore.merge_pipeline_strategys."""
    places = [place for place in (src, src_strategy_dirs, dst, dst_strategy_file) if place]
    if len(places) != 2 or bool(src) == bool(src_strategy_dirs):
        raise UsageError("expected SRC and DST once each, as arguments or as --src_strategy_dirs, --dst_strategy_file")
    show_strategy(api.merge_pipeline_strategys(*places, overwrite=overwrite), output, written=places[1])
