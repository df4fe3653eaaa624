"""``reshard ckpt-to-safetensors``: objects of one format into the other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import api
from .options import REWRITING, Output, OutputForm, Overwrite, Quiet, with_options
from .output import show_manifest
from .progress import progress
from .signals import signals


@with_options(REWRITING)
def ckpt_to_safetensors(
    src: Annotated[str, typer.Argument(help="One .ckpt object, or a prefix that holds rank*/.")],
    dst: Annotated[str | None, typer.Argument(help="Prefix for the results; beside the sources by default.")] = None,
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Write .ckpt objects as safetensors, each on its own: mindspore.ckpt_to_safetensors."""
    with progress(quiet=quiet) as listener:
        manifest = api.ckpt_to_safetensors(src, dst, **options, overwrite=overwrite, on_event=listener)
        signals.work_is_done()
    show_manifest(manifest, output)
