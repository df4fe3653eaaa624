"""What the imitations of original commands share: how arguments are read, and how errors name them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Annotated, ParamSpec, TypeVar, get_args, get_type_hints

from ..api.option_field import OptionField, read_nullable
from ..api.request import OPTIONS
from ..errors import ReshardError, UsageError, option, write_options
from ..planning.limits import Limits
from ..storage import shared_connections

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MOST_REQUESTS = 64


def format_option(default: str) -> OptionField:
    """Describe the format of objects."""
    formats = ("ckpt", "safetensors")
    return OptionField("Format of the objects.", "|".join(formats), "", default, read_nullable, formats)


def processes_option(*flags: str) -> OptionField:
    """Describe a number of processes."""
    text = "Each process stands for 8 requests in flight, 64 at most."
    return OptionField(text, "N", default="1", least=0, flags=flags)


Drop = Annotated[Iterable[str] | None, OPTIONS["drop"]]
KeepRank = Annotated[int | None, OPTIONS["keep_rank"]]
Memory = Annotated[int | str | None, OPTIONS["memory"]]
Overwrite = Annotated[bool, OPTIONS["overwrite"]]
FileSuffix = Annotated[str | None, replace(OPTIONS["file_suffix"], read=read_nullable)]
Processes = Annotated[int | None, processes_option()]


def command(**parameters: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function an imitation: arguments are read as annotated, stores opened once, errors name its parameters.

    Parameters
    ----------
    parameters
        Its parameters by the names of the options of :class:`reshard.api.Request` that they stand for, where
        these differ.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature, options = inspect.signature(function), options_of(function)

        @wraps(function)
        def imitation(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = signature.bind(*args, **kwargs)
            try:
                for name, value in given.arguments.items():
                    if name in options and value is not None:
                        given.arguments[name] = options[name].parse(name, value)
                with shared_connections():
                    return function(*given.args, **given.kwargs)
            except ReshardError as error:
                _rename_options(error, parameters)
                raise

        return imitation

    return decorate


def options_of(function: Callable[..., object]) -> Mapping[str, OptionField]:
    """Return how each parameter of an imitation is read and shown."""
    hints = get_type_hints(function, include_extras=True)
    found = {name: [each for each in get_args(hint) if isinstance(each, OptionField)] for name, hint in hints.items()}
    return {name: each[0] for name, each in found.items() if each}


def _rename_options(error: ReshardError, parameters: Mapping[str, str]) -> None:
    def renamed(text: str) -> str:
        return write_options(text, lambda name, value: option(parameters.get(name, name), value))

    error.message, error.hint = renamed(error.message), renamed(error.hint)
    error.problems = tuple(map(renamed, error.problems))


def requests_for(process_count: int | None) -> int | None:
    """Return the requests in flight that stand for a number of processes; None, the default, for at most one.

    Examples
    --------
    >>> requests_for(1), requests_for(2), requests_for(64)
    (None, 16, 64)
    """
    if process_count is not None and process_count < 0:
        raise UsageError(f"{process_count} processes: expected a number from 1 on, or 0 for the default")
    return min(Limits().concurrency * process_count, _MOST_REQUESTS) if process_count and process_count > 1 else None
