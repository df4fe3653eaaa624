"""``reshard convert``: plan and carry out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import api
from .options import CONVERSION, Output, OutputForm, Quiet, with_options
from .output import show_manifest
from .progress import progress
from .signals import signals


@with_options(CONVERSION)
def convert(
    src: Annotated[str | None, typer.Argument(help="URL or path of the source checkpoint.")] = None,
    dst: Annotated[str | None, typer.Argument(help="URL or path of the target.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    keep_staging: Annotated[bool, typer.Option("--keep-staging", help="Keep what is staged for the next run.")] = False,
    plan: Annotated[str | None, typer.Option(metavar="FILE", help="Carry out a saved plan instead.")] = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Convert a checkpoint: full to rank shards, rank shards to full, or from one layout to another."""
    with progress(quiet=quiet) as listener:
        manifest = api.convert(
            src, dst, plan=plan, overwrite=overwrite, keep_staging=keep_staging, on_event=listener, **options
        )
        signals.work_is_done()
    show_manifest(manifest, output)
