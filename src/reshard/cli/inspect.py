"""``reshard inspect``: what lies at a URL."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import api
from .options import SOURCE, Output, OutputForm, with_options
from .output import show_catalog


@with_options(SOURCE)
def inspect(
    url: Annotated[str, typer.Argument(help="URL or path: one object or a prefix.")],
    tensors: Annotated[int, typer.Option(metavar="N", min=0, help="Tensors to list in text; 0 for all.")] = 20,
    output: Output = OutputForm.TEXT,
    **options: Any,
) -> None:
    """Show kind, shards, tensors, dtypes, shapes, sizes and metadata, reading headers only."""
    show_catalog(api.inspect(url, **options), output, tensors)
