"""``reshard transform-checkpoint``: from one strategy to another."""

from __future__ import annotations

from typing import Any

from .. import api
from .options import EXTRAS, REQUIRED, Format, Output, OutputForm, Overwrite, Quiet, named, truth, with_options
from .output import show_manifest
from .progress import progress
from .signals import signals

_FLAGS: dict[str, tuple[Any, object]] = {
    "src_checkpoint": (
        named("--src_checkpoint", "URL", "One object, or a prefix: with rank_R/, or full.", str),
        REQUIRED,
    ),
    "dst_checkpoint": (
        named("--dst_checkpoint --dst_checkpoint_dir", "URL", "Where rank_R/PREFIXR.FORMAT go, at once.", str),
        REQUIRED,
    ),
    "src_strategy": (named("--src_strategy", "S", "Strategy file of the source or prefix of all; or None."), None),
    "dst_strategy": (named("--dst_strategy", "S", "Strategy file of the target or prefix of all; or None."), None),
    "prefix": (named("--prefix", "NAME", "Start of the objects' names, before the rank.", str), "checkpoint_"),
    "rank_id": (named("--rank_id", "R", "First rank to write, with --transform_by_rank.", int | None, min=0), None),
    "world_size": (named("--world_size", "N", "Ranks of the target, to be compared.", int | None, min=1), None),
    "process_num": (
        named(
            "--process_num --transform_process_num",
            "N",
            "Each stands for 8 requests in flight, 64 at most.",
            int | None,
            min=0,
        ),
        None,
    ),
    "transform_by_rank": (
        named("--transform_by_rank", "BOOL", "Write one process's share of the ranks only.", Any, parser=truth),
        False,
    ),
    "format": (
        named("--format", "ckpt|safetensors", "What the objects are.", Format | None, show_default="the source's"),
        None,
    ),
    "file_suffix": (named("--file_suffix", "E_S", "End of the names to take where ranks have several."), None),
}


@with_options(_FLAGS | EXTRAS)
def transform_checkpoint(
    overwrite: Overwrite = False, output: Output = OutputForm.TEXT, quiet: Quiet = False, **options: Any
) -> None:
    """Bring a checkpoint from one strategy to another: mindformers/tools/ckpt_transform/transform_checkpoint.py.

    The shell script's arguments, in their order: --src_checkpoint, --src_strategy, --dst_checkpoint,
    --dst_strategy, --world_size, --process_num, --prefix.
    """
    with progress(quiet=quiet) as listener:
        manifest = api.transform_checkpoint(**options, overwrite=overwrite, on_event=listener)
        signals.work_is_done()
    show_manifest(manifest, output)
