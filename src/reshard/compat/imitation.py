"""Original commands made of functions: arguments are read as annotated, errors name the command's own options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from ..api.option_field import OptionField, read_nullable
from ..api.request import OPTIONS, Request
from ..api.resolve import Resolved, with_notes
from ..engine.events import Listener, ignore
from ..errors import ReshardError, option, write_options
from ..storage import shared_connections

if TYPE_CHECKING:
    from ..engine.manifest import Manifest

Translation = tuple[Request, Callable[[Request, Listener], Resolved]]
"""The request that a command line stands for, and how it is resolved."""

_R = TypeVar("_R")
_IDLE = {
    "device_id": "nothing runs on a device",
    "device_target": "nothing runs on a device",
    "trust_remote_code": "no code of a model is run",
}
"""Arguments of runs that people leave in a command line, and why they have no effect."""


@dataclass(frozen=True, slots=True)
class NoEffect:
    """Why an argument of the original has no effect here: it is accepted, and a note says so."""

    why: str

    def __repr__(self) -> str:
        return repr(f"no effect: {self.why}")


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


def imitation(
    *shared: str, without_effect: Mapping[str, str] | None = None, **parameters: str
) -> Callable[[Callable[..., Translation]], Callable[..., Manifest]]:
    """Make an original command of the function that translates its arguments.

    Arguments are read as they are annotated, and errors name options by the command's own parameters: those whose
    names differ from the request's options are given by these. Every spelling that the command line has for a
    parameter is a keyword too. The command takes the ``shared`` options of :class:`reshard.api.Request`, which the
    original does not have, and the original's arguments ``without_effect`` here, each with the reason.
    """

    def decorate(translate: Callable[..., Translation]) -> Callable[..., Manifest]:
        own, kind = inspect.signature(translate, eval_str=True), inspect.Parameter.KEYWORD_ONLY
        added = {name: _keyword(name, OPTIONS[name]) for name in (*shared, "if_exists", "overwrite")}
        idle = {name: _keyword(name, NoEffect(why)) for name, why in (_IDLE | dict(without_effect or {})).items()}
        events = inspect.Parameter("on_event", kind, default=ignore, annotation=Listener)
        shown = [*own.parameters.values(), *idle.values(), *added.values(), events]
        signature = own.replace(parameters=shown, return_annotation="Manifest")

        @wraps(translate)
        @shared_connections()
        def command(*args: Any, on_event: Listener = ignore, **kwargs: Any) -> Manifest:
            from ..api.statements import convert_resolved  # with all that moves bytes: not for help

            try:
                given = bind_arguments(translate.__name__, signature, args, kwargs)
                notes = _notes_of(signature, {name: given.pop(name) for name in idle if name in given})
                read = {name: _read(signature.parameters[name], value) for name, value in given.items()}
                more: dict[str, Any] = {name: read.pop(name) for name in added if read.get(name) is not None}
                request, resolve = translate(**{name: value for name, value in read.items() if name not in added})
                more["drop"] = (*more.get("drop", ()), *request.drop)
                request = replace(request, **more)
                return convert_resolved(_noted(resolve(request, on_event), notes), request, on_event)
            except ReshardError as error:
                _rename_options(error, parameters)
                raise

        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return decorate


def _keyword(name: str, description: OptionField | NoEffect) -> inspect.Parameter:
    annotation = Annotated[Any, description]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _read(parameter: inspect.Parameter, value: object) -> Any:
    field = option_of(parameter)
    return value if value is None or field is None else field.parse(parameter.name, value)


def _noted(resolved: Resolved, notes: Iterable[str]) -> Resolved:
    conversion = resolved.conversion
    return replace(resolved, conversion=replace(conversion, catalog=with_notes(conversion.catalog, *notes)))


def _notes_of(signature: inspect.Signature, given: Mapping[str, object]) -> list[str]:
    """Note the arguments that have no effect, unless they are given as nothing."""
    effects = {name: no_effect_of(signature.parameters[name]) for name in given}
    told = {name: effect.why for name, effect in effects.items() if effect and given[name] not in (None, "", "None")}
    return [f"{name} has no effect: {why}" for name, why in told.items()]


def bind_arguments(
    name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is given by parameter, keywords in any spelling of the command line.

    Raise TypeError for keywords that the function does not know, and for arguments that are missing or given twice.
    """
    spellings = {
        flag.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in signature.parameters.values()
        if (field := option_of(parameter))
        for flag in field.flags
    }
    named: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in kwargs.items():
        own = key if key in signature.parameters else spellings.get(key)
        if own is None:
            near = get_close_matches(key, [*signature.parameters, *spellings], n=1)
            problems.append(f"unknown argument {key}" + (f" (did you mean {near[0]}?)" if near else ""))
        elif own in named:
            problems.append(f"{key} is given twice: it is another name of {own}")
        else:
            named[own] = value
    if problems:
        raise TypeError(f"{name}: {'; '.join(problems)}")
    try:
        return dict(signature.bind(*args, **named).arguments)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def spelled_freely(function: Callable[..., _R]) -> Callable[..., _R]:
    """Let a function take its keywords in any spelling of the command line; see :func:`bind_arguments`."""
    signature = inspect.signature(function, eval_str=True)

    @wraps(function)
    def command(*args: Any, **kwargs: Any) -> _R:
        return function(**bind_arguments(function.__name__, signature, args, kwargs))

    return command


def no_effect_of(parameter: inspect.Parameter) -> NoEffect | None:
    """Return why a parameter of a command has no effect; None if it has one."""
    found = (each for each in getattr(parameter.annotation, "__metadata__", ()) if isinstance(each, NoEffect))
    return next(found, None)


def option_of(parameter: inspect.Parameter) -> OptionField | None:
    """Return how a parameter of a command is read and shown."""
    found = (each for each in getattr(parameter.annotation, "__metadata__", ()) if isinstance(each, OptionField))
    return next(found, None)


def _rename_options(error: ReshardError, parameters: Mapping[str, str]) -> None:
    def renamed(text: str) -> str:
        return write_options(text, lambda name, value: option(parameters.get(name, name), value))

    error.marked_message, error.marked_hint = renamed(error.marked_message), renamed(error.marked_hint)
    error.marked_problems = tuple(map(renamed, error.marked_problems))
