"""``reshard plan``: decide, show, save."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
from ..planning.plan_json import encode_plan
from .options import (
    Concurrency,
    DstLayout,
    DstStrategy,
    Memory,
    Output,
    OutputForm,
    Prefix,
    Quiet,
    Ranks,
    SrcLayout,
    SrcStrategy,
)
from .output import show_plan
from .progress import progress


def plan(
    src: Annotated[str, typer.Argument(help="URL or path of the source checkpoint.")],
    dst: Annotated[str, typer.Argument(help="URL or path of the target.")],
    src_strategy: SrcStrategy = None,
    src_layout: SrcLayout = None,
    dst_strategy: DstStrategy = None,
    dst_layout: DstLayout = None,
    prefix: Prefix = None,
    ranks: Ranks = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE if it exists; for outputs, convert decides.")
    ] = False,
    memory: Memory = None,
    concurrency: Concurrency = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Save the plan, for convert --plan.")] = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
) -> None:
    """Show what a conversion would read, write and need; nothing is written."""
    with progress(quiet=quiet) as listener:
        made = api.plan(
            src,
            dst,
            src_strategy=src_strategy,
            src_layout=src_layout,
            dst_strategy=dst_strategy,
            dst_layout=dst_layout,
            prefix=prefix,
            ranks=ranks,
            memory=memory,
            concurrency=concurrency,
            on_event=listener,
        )
    if out is not None:
        api.save(out, encode_plan(made), overwrite=overwrite)
    show_plan(made, output, saved_as=out)
