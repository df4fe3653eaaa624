"""``reshard convert``: plan and carry out."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
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
from .output import show_manifest
from .progress import progress
from .signals import signals


def convert(
    src: Annotated[str | None, typer.Argument(help="URL or path of the source checkpoint.")] = None,
    dst: Annotated[str | None, typer.Argument(help="URL or path of the target.")] = None,
    src_strategy: SrcStrategy = None,
    src_layout: SrcLayout = None,
    dst_strategy: DstStrategy = None,
    dst_layout: DstLayout = None,
    prefix: Prefix = None,
    ranks: Ranks = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    memory: Memory = None,
    concurrency: Concurrency = None,
    plan: Annotated[str | None, typer.Option(metavar="FILE", help="Carry out a saved plan instead.")] = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint: full to rank shards, rank shards to full, or from one layout to another."""
    with progress(quiet=quiet) as listener:
        manifest = api.convert(
            src,
            dst,
            plan=plan,
            src_strategy=src_strategy,
            src_layout=src_layout,
            dst_strategy=dst_strategy,
            dst_layout=dst_layout,
            prefix=prefix,
            ranks=ranks,
            memory=memory,
            concurrency=concurrency,
            overwrite=overwrite,
            on_event=listener,
        )
        signals.work_is_done()
    show_manifest(manifest, output)
