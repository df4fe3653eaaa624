"""``reshard convert-weight``: Hugging Face's weights to MindSpore Transformers' and back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import api
from .options import (
    EXTRAS,
    REQUIRED,
    FloatType,
    Format,
    Output,
    OutputForm,
    Overwrite,
    Quiet,
    named,
    truth,
    with_options,
)
from .output import show_manifest
from .progress import progress
from .signals import signals


def _size(names: str, text: str) -> tuple[Any, object]:
    return named(names, "N", f"{text}, to be compared.", int | None, min=0, show_default="config.json"), None


def _choice(names: str, text: str) -> tuple[Any, object]:
    return named(names, "BOOL", text, Any, parser=truth, show_default="the rules'"), None


_FURTHER: dict[str, tuple[Any, object]] = {
    "qkv_concat": _choice("--qkv_concat", "Write q, k and v, and gate and up, as one tensor."),
    "mlp_concat": _choice("--mlp_concat", "GLM: write gate and up as one tensor."),
    "use_rearrange_rope": _choice("--use_rearrange_rope", "GLM: rows of rotary pairs are parted."),
    "use_gmm": _choice("--use_gmm", "Mixtral: experts for the grouped product."),
    "use_grouped_gemm": _choice("--use_grouped_gemm", "DeepSeek: experts for the grouped product."),
    "num_layers": _size("--num_layers", "Number of the model's layers"),
    "num_nextn_predict_layers": _size("--num_nextn_predict_layers", "Layers that predict further tokens"),
    "first_k_dense_replace": _size("--first_k_dense_replace", "First layers, without experts"),
    "num_routed_experts": _size("--num_routed_experts", "Experts of a layer"),
    "hidden_size": _size("--hidden_size", "Size of hidden states"),
    "vocab_size": _size("--vocab_size", "Rows of the embedding"),
    "ffn_hidden_size": _size("--ffn_hidden_size", "Rows of a layer's gate"),
    "moe_ffn_hidden_size": _size("--moe_ffn_hidden_size", "Rows of an expert's gate"),
    "num_attention_heads": _size("--num_attention_heads --n_head", "Heads of the attention"),
    "num_query_groups": _size("--num_query_groups", "Heads of keys and values"),
    "kv_channels": _size("--kv_channels", "Rows of a head"),
    "qk_nope_head_dim": _size("--qk_nope_head_dim", "DeepSeek: rows without rotation"),
    "qk_rope_head_dim": _size("--qk_rope_head_dim", "DeepSeek: rows that are rotated"),
    "v_head_dim": _size("--v_head_dim", "DeepSeek: rows of a value"),
}

_FLAGS: dict[str, tuple[Any, object]] = {
    "model": (named("--model", "NAME", "What the script calls the model, like llama or deepseekv3.", str), REQUIRED),
    "input_path": (named("--input_path", "URL", "The checkpoint to convert, whole, in any form.", str), REQUIRED),
    "output_path": (named("--output_path", "URL", "One object, or a prefix for several.", str), REQUIRED),
    "reversed": (
        Annotated[bool, typer.Option("--reversed", help="From MindSpore Transformers to Hugging Face.")],
        False,
    ),
    "dtype": (named("--dtype", "TYPE", "fp32, fp16 or bf16 for all weights.", FloatType | None), None),
    "config": (named("--config", "URL", "A config.json, or a YAML configuration of training."), None),
    "is_lora": (named("--is_lora", "BOOL", "Adapters alone: not converted, an error.", Any, parser=truth), False),
    "save_format": (named("--save_format", "ckpt|safetensors", "What the objects are.", Format | None), None),
    "max_worker": (
        named("--max_worker", "N", "Each stands for 8 requests in flight, 64 at most.", int | None, min=0),
        None,
    ),
}


@with_options(_FLAGS | _FURTHER | EXTRAS)
def convert_weight(
    overwrite: Overwrite = False, output: Output = OutputForm.TEXT, quiet: Quiet = False, **options: Any
) -> None:
    """Hugging Face's weights to MindSpore Transformers' names, or back: convert_weight.py."""
    flags = {name: options.pop(name) for name in _FURTHER}
    with progress(quiet=quiet) as listener:
        manifest = api.convert_weight(**options, flags=flags, overwrite=overwrite, on_event=listener)
        signals.work_is_done()
    show_manifest(manifest, output)
