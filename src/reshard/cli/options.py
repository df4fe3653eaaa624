"""Arguments and flags that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "Concurrency",
    "DstLayout",
    "DstStrategy",
    "Memory",
    "Output",
    "OutputForm",
    "Prefix",
    "Quiet",
    "Ranks",
    "SrcLayout",
    "SrcStrategy",
]


class OutputForm(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


SrcStrategy = Annotated[
    str | None, typer.Option(metavar="S", help="Strategy file of the source's shards, or a prefix with all stages'.")
]
SrcLayout = Annotated[str | None, typer.Option(metavar="L.yaml", help="Layout file of the source's shards instead.")]
DstStrategy = Annotated[
    str | None, typer.Option(metavar="S", help="Strategy file of the target; without one it is a full checkpoint.")
]
DstLayout = Annotated[str | None, typer.Option(metavar="L.yaml", help="Layout file of the target instead.")]
Prefix = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default="checkpoint_", help="Objects are called rank_R/NAMER.safetensors."),
]
Ranks = Annotated[str | None, typer.Option(metavar="LIST", help="Write these ranks only, like 0-7,16.")]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", show_default="512MiB", help="Limit for all buffers, like 256MiB.")
]
Concurrency = Annotated[
    int | None, typer.Option(metavar="N", min=1, show_default="8", help="Requests in flight at once.")
]
Output = Annotated[OutputForm, typer.Option("--output", help="How to print the result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
