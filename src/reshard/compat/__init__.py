"""MindSpore's and MindSpore Transformers' own calls on checkpoints, under their names and with their arguments."""

import sys as _sys
from typing import TYPE_CHECKING

from ..doors import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .checkpoints import load_distributed_checkpoint as load_distributed_checkpoint
    from .checkpoints import merge_pipeline_strategys as merge_pipeline_strategys
    from .checkpoints import transform_checkpoint as transform_checkpoint
    from .format_conversion import ckpt_to_safetensors as ckpt_to_safetensors
    from .format_conversion import safetensors_to_ckpt as safetensors_to_ckpt
    from .unification import unified_safetensors as unified_safetensors
    from .weights import convert_weight as convert_weight
    from .weights import transform_ckpt_lora as transform_ckpt_lora

_MODULES = {
    "checkpoints": ["load_distributed_checkpoint", "merge_pipeline_strategys", "transform_checkpoint"],
    "format_conversion": ["ckpt_to_safetensors", "safetensors_to_ckpt"],
    "unification": ["unified_safetensors"],
    "weights": ["convert_weight", "transform_ckpt_lora"],
}  # fmt: skip
__all__ = sorted(name for names in _MODULES.values() for name in names)

# MindSpore has them under mindspore.parallel too: what its documents print works with this package for mindspore.
parallel = _sys.modules[__name__]

if not TYPE_CHECKING:
    __getattr__ = _lazy_names(__name__, _MODULES)
