"""``reshard inspect``: what lies at a URL."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
from .options import Concurrency, Output, OutputForm, SrcLayout, SrcStrategy
from .output import show_catalog


def inspect(
    url: Annotated[str, typer.Argument(help="URL or path: one .safetensors object or a prefix.")],
    src_strategy: SrcStrategy = None,
    src_layout: SrcLayout = None,
    tensors: Annotated[int, typer.Option(metavar="N", min=0, help="Tensors to list in text; 0 for all.")] = 20,
    concurrency: Concurrency = None,
    output: Output = OutputForm.TEXT,
) -> None:
    """Show kind, shards, tensors, dtypes, shapes, sizes and metadata, reading headers only."""
    catalog = api.inspect(url, src_strategy=src_strategy, src_layout=src_layout, concurrency=concurrency)
    show_catalog(catalog, output, tensors)
