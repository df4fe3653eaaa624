"""The library's statements, and the same for strategies; the command line calls nothing else."""

from typing import TYPE_CHECKING

from ..doors import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .access import describe_access as describe_access
    from .contents import inspect as inspect
    from .estimates import estimate as estimate
    from .file_system import filesystem as filesystem
    from .loads import load as load
    from .request import Request as Request
    from .statements import convert as convert
    from .statements import load_plan as load_plan
    from .statements import plan as plan
    from .statements import save as save
    from .statements import verify as verify
    from .strategies import convert_strategy as convert_strategy
    from .strategies import make_strategy as make_strategy
    from .strategies import merge_strategies as merge_strategies
    from .strategies import read_strategy as read_strategy

_MODULES = {
    "access": ["describe_access"],
    "contents": ["inspect"],
    "estimates": ["estimate"],
    "file_system": ["filesystem"],
    "loads": ["load"],
    "request": ["Request"],
    "statements": ["convert", "load_plan", "plan", "save", "verify"],
    "strategies": ["convert_strategy", "make_strategy", "merge_strategies", "read_strategy"],
}
__all__ = sorted(name for names in _MODULES.values() for name in names)

if not TYPE_CHECKING:
    __getattr__ = _lazy_names(__name__, _MODULES)
