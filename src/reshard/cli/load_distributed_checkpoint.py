"""``reshard load-distributed-checkpoint``: a full checkpoint to rank shards."""

from __future__ import annotations

from typing import Any

from .. import api
from .options import EXTRAS, REQUIRED, Format, Output, OutputForm, Overwrite, Quiet, named, with_options
from .output import show_manifest
from .progress import progress
from .signals import signals

_FLAGS: dict[str, tuple[Any, object]] = {
    "unified_safetensors_dir": (
        named("--unified_safetensors_dir", "URL", "Prefix or object of the full checkpoint.", str),
        REQUIRED,
    ),
    "dst_safetensors_dir": (named("--dst_safetensors_dir", "URL", "Where rank_R/net.FORMAT go.", str), REQUIRED),
    "predict_strategy": (
        named("--predict_strategy", "S", "Strategy file of the target or prefix of all; or None."),
        None,
    ),
    "format": (
        named("--format", "ckpt|safetensors", "What the objects are.", Format | None, show_default="safetensors"),
        None,
    ),
    "rank_id": (
        named("--rank_id", "R", "The only rank to write.", int | None, min=0, show_default="all"),
        None,
    ),
    "name_map": (named("--name_map", "FILE.json", 'Names in the source by those in the target: {"new": "old"}.'), None),
    "max_process_num": (
        named("--max_process_num", "N", "Each stands for 8 requests in flight, 64 at most.", int | None, min=0),
        None,
    ),
}


@with_options(_FLAGS | {name: EXTRAS[name] for name in ("drop", "memory")})
def load_distributed_checkpoint(
    overwrite: Overwrite = False, output: Output = OutputForm.TEXT, quiet: Quiet = False, **options: Any
) -> None:
    """Cut a full checkpoint and save it: mindspore.load_distributed_checkpoint with network=None."""
    with progress(quiet=quiet) as listener:
        manifest = api.load_distributed_checkpoint(**options, overwrite=overwrite, on_event=listener)
        signals.work_is_done()
    show_manifest(manifest, output)
