"""Original commands made of functions: arguments are read as annotated, errors name the command's own options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

from ..api.option_field import OptionField, read_nullable
from ..api.request import OPTIONS, Request
from ..api.resolve import Resolved
from ..engine.events import Listener, ignore
from ..errors import ReshardError, option, write_options
from ..planning.limits import Limits
from ..storage import shared_connections

if TYPE_CHECKING:
    from ..engine.manifest import Manifest

Translation = tuple[Request, Callable[[Request, Listener], Resolved]]
"""The request that a command line stands for, and how it is resolved."""

_MOST_REQUESTS = 64


def format_option(default: str) -> OptionField:
    """Describe the format of objects."""
    formats = ("ckpt", "safetensors")
    return OptionField("Format of the objects.", "|".join(formats), "", default, read_nullable, formats)


def processes_option(*flags: str) -> OptionField:
    """Describe a number of processes."""
    text = "Each process stands for 8 requests in flight, 64 at most."
    return OptionField(text, "N", default="1", least=0, flags=flags)


FileSuffix = Annotated[str | None, replace(OPTIONS["file_suffix"], read=read_nullable)]
Processes = Annotated[int | None, processes_option()]


def imitation(*shared: str, **parameters: str) -> Callable[[Callable[..., Translation]], Callable[..., Manifest]]:
    """Make an original command of the function that translates its arguments.

    Arguments are read as they are annotated, and errors name options by the command's own parameters: those whose
    names differ from the request's options are given by these. The command takes the ``shared`` options of
    :class:`reshard.api.Request` too, which the original does not have.
    """

    def decorate(translate: Callable[..., Translation]) -> Callable[..., Manifest]:
        own, kind = inspect.signature(translate, eval_str=True), inspect.Parameter.KEYWORD_ONLY
        added = {
            name: inspect.Parameter(name, kind, default=None, annotation=Annotated[Any, OPTIONS[name]])
            for name in (*shared, "if_exists", "overwrite")
        }
        events = inspect.Parameter("on_event", kind, default=ignore, annotation=Listener)
        shown = [*own.parameters.values(), *added.values(), events]
        signature = own.replace(parameters=shown, return_annotation="Manifest")

        @wraps(translate)
        @shared_connections()
        def command(*args: Any, on_event: Listener = ignore, **kwargs: Any) -> Manifest:
            from ..api.statements import convert_resolved  # with all that moves bytes: not for help

            given = signature.bind(*args, **kwargs).arguments
            try:
                read: dict[str, Any] = {}
                for name, value in given.items():
                    field = option_of(signature.parameters[name])
                    read[name] = value if value is None or field is None else field.parse(name, value)
                more: dict[str, Any] = {name: read.pop(name) for name in added if read.get(name) is not None}
                request, resolve = translate(**read)
                more["drop"] = (*more.get("drop", ()), *request.drop)
                request = replace(request, **more)
                return convert_resolved(resolve(request, on_event), request, on_event)
            except ReshardError as error:
                _rename_options(error, parameters)
                raise

        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return decorate


def option_of(parameter: inspect.Parameter) -> OptionField | None:
    """Return how a parameter of a command is read and shown."""
    found = (each for each in getattr(parameter.annotation, "__metadata__", ()) if isinstance(each, OptionField))
    return next(found, None)


def _rename_options(error: ReshardError, parameters: Mapping[str, str]) -> None:
    def renamed(text: str) -> str:
        return write_options(text, lambda name, value: option(parameters.get(name, name), value))

    error.marked_message, error.marked_hint = renamed(error.marked_message), renamed(error.marked_hint)
    error.marked_problems = tuple(map(renamed, error.marked_problems))


def requests_for(process_count: int | None) -> int | None:
    """Return the requests in flight that stand for a number of processes; None, the default, for at most one.

    Examples
    --------
    >>> requests_for(1), requests_for(2), requests_for(64)
    (None, 16, 64)
    """
    return min(Limits().concurrency * process_count, _MOST_REQUESTS) if process_count and process_count > 1 else None
