"""The library's statements, and the same for strategies; the command line calls nothing else."""

from .options import Options
from .statements import convert, inspect, load_plan, plan, save, verify
from .strategies import convert_strategy, merge_strategies, read_strategy

__all__ = [
    "Options",
    "convert",
    "convert_strategy",
    "inspect",
    "load_plan",
    "merge_strategies",
    "plan",
    "read_strategy",
    "save",
    "verify",
]
