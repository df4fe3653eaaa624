"""``reshard transform-ckpt-lora``: low-rank adapters merged into their weights."""

from __future__ import annotations

from typing import Any

import typer

from .. import api
from .options import EXTRAS, REQUIRED, Format, Output, OutputForm, Overwrite, Quiet, named, with_options
from .output import show_manifest
from .progress import progress
from .signals import signals


def _scaling(text: str | float) -> float:
    """Read a number, or alpha/rank as the documents write it."""
    above, slash, below = str(text).partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r}: expected a number, or lora_alpha/lora_rank like 16/8") from None


_FLAGS: dict[str, tuple[Any, object]] = {
    "src_ckpt_path_or_dir": (
        named("--src_ckpt_path_or_dir", "URL", "Checkpoint with its adapters: one object, or a prefix.", str),
        REQUIRED,
    ),
    "dst_ckpt_dir": (named("--dst_ckpt_dir", "URL", "Where rank_R/PREFIXR.FORMAT go, at once.", str), REQUIRED),
    "src_ckpt_strategy": (
        named("--src_ckpt_strategy", "S", "Strategy file of the source or prefix of all; or None."),
        None,
    ),
    "dst_ckpt_strategy": (
        named("--dst_ckpt_strategy", "S", "Strategy file of the target or prefix of all; or None."),
        None,
    ),
    "prefix": (named("--prefix", "NAME", "Start of the objects' names, before the rank.", str), "checkpoint_"),
    "lora_scaling": (
        named(
            "--lora_scaling",
            "X",
            "Alpha divided by rank, also as 16/8.",
            Any,
            parser=_scaling,
            show_default="adapter_config.json",
        ),
        None,
    ),
    "save_format": (
        named("--save_format", "ckpt|safetensors", "What the objects are.", Format | None, show_default="ckpt"),
        None,
    ),
}


@with_options(_FLAGS | EXTRAS)
def transform_ckpt_lora(
    overwrite: Overwrite = False, output: Output = OutputForm.TEXT, quiet: Quiet = False, **options: Any
) -> None:
    """Merge low-rank adapters into their weights: mindformers/tools/transform_ckpt_lora.py."""
    with progress(quiet=quiet) as listener:
        manifest = api.transform_ckpt_lora(**options, overwrite=overwrite, on_event=listener)
        signals.work_is_done()
    show_manifest(manifest, output)
