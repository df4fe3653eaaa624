"""``reshard unified-safetensors``: rank shards to MindSpore's full form."""

from __future__ import annotations

from typing import Any

from .. import api
from .options import EXTRAS, REQUIRED, Output, OutputForm, Overwrite, Quiet, named, truth, with_options
from .output import show_manifest
from .progress import progress
from .signals import signals

_FLAGS: dict[str, tuple[Any, object]] = {
    "mindspore_ckpt_dir": (named("--mindspore_ckpt_dir", "URL", "Prefix of the shards: with rank_R/.", str), REQUIRED),
    "src_strategy_dirs": (
        named("--src_strategy_dirs", "S", "Strategy file of the shards, or a prefix with all stages'.", str),
        REQUIRED,
    ),
    "output_dir": (named("--output_dir", "URL", "Where the parts and param_name_map.json go, at once.", str), REQUIRED),
    "file_suffix": (
        named("--file_suffix", "E_S", "End of the names to take, like 1_10.", show_default="the last of each rank"),
        None,
    ),
    "format": (named("--format", "FORMAT", "Only safetensors, as the tool has it."), None),
    "has_redundancy": (
        named("--has_redundancy", "BOOL", "What is said of the shards; the headers decide.", Any, parser=truth),
        None,
    ),
    "filter_out_param_prefix": (
        named("--filter_out_param_prefix", "TEXT", "Start of names to leave out. Repeatable.", list[str] | None),
        None,
    ),
    "max_process_num": (
        named("--max_process_num", "N", "Each stands for 8 requests in flight, 64 at most.", int | None, min=0),
        None,
    ),
}


@with_options(_FLAGS | EXTRAS)
def unified_safetensors(
    overwrite: Overwrite = False, output: Output = OutputForm.TEXT, quiet: Quiet = False, **options: Any
) -> None:
    """Merge rank shards into part<i>.safetensors with a map: toolkit/safetensors/unified_safetensors.py."""
    with progress(quiet=quiet) as listener:
        manifest = api.unified_safetensors(**options, overwrite=overwrite, on_event=listener)
        signals.work_is_done()
    show_manifest(manifest, output)
