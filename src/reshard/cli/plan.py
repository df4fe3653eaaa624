"""``reshard plan``: decide, show, save."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import api
from ..planning.plan_json import encode_plan
from .options import CONVERSION, Output, OutputForm, Quiet, with_options
from .output import show_plan
from .progress import progress


@with_options(CONVERSION)
def plan(
    src: Annotated[str, typer.Argument(help="URL or path of the source checkpoint.")],
    dst: Annotated[str, typer.Argument(help="URL or path of the target.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE if it exists; for outputs, convert decides.")
    ] = False,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Save the plan, for convert --plan.")] = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Show what a conversion would read, write and need; nothing is written."""
    with progress(quiet=quiet) as listener:
        made = api.plan(src, dst, on_event=listener, **options)
    if out is not None:
        api.save(out, encode_plan(made), overwrite=overwrite)
    show_plan(made, output, saved_as=out)
