"""The library's statements, MindSpore's own calls, and the same for strategies; the command line calls nothing else."""

from ..compat.checkpoints import (
    load_distributed_checkpoint,
    merge_pipeline_strategys,
    transform_checkpoint,
    unified_safetensors,
)
from ..compat.rewriting import ckpt_to_safetensors, safetensors_to_ckpt
from ..compat.weights import convert_weight, transform_ckpt_lora
from .estimates import Assumptions, estimate, explain
from .numbers import make_strategy
from .options import Options
from .statements import convert, inspect, load_plan, plan, save, verify
from .strategies import convert_strategy, merge_strategies, read_strategy

__all__ = [
    "Assumptions",
    "Options",
    "ckpt_to_safetensors",
    "convert",
    "convert_strategy",
    "convert_weight",
    "estimate",
    "explain",
    "inspect",
    "load_distributed_checkpoint",
    "load_plan",
    "make_strategy",
    "merge_pipeline_strategys",
    "merge_strategies",
    "plan",
    "read_strategy",
    "safetensors_to_ckpt",
    "save",
    "transform_checkpoint",
    "transform_ckpt_lora",
    "unified_safetensors",
    "verify",
]
