"""Flags of commands, made from the descriptions of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

from ..api.option_field import OptionField, read_pairs, read_texts, read_truth
from ..api.request import OPTIONS, Request

_Command = TypeVar("_Command", bound=Callable[..., None])


class OutputForm(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[
    OutputForm,
    typer.Option("--output", metavar="text|json", show_default=False, help="How to print the result.  [default: text]"),
]
Picture = Annotated[
    list[str] | None,
    typer.Option(metavar="TENSOR", help="Draw which rank holds which box of a tensor instead. Repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress on stderr.")]


def flag(name: str, field: OptionField, *, is_required: bool = False, is_original: bool = False) -> inspect.Parameter:
    """Make the parameter of a command from the description of an option; an original one keeps its underscores."""
    spelling = name if is_original else name.replace("_", "-")
    kind, default = _kind(field)
    text = field.help + " Repeatable." * (kind == list[str])
    note = "required" if is_required else f"default: {field.default}" if field.default else ""
    annotation = typer.Option(
        *(field.flags or (f"--{spelling}",)),
        metavar=field.metavar,
        help=f"{text}  [{note}]" if note else text,
        show_default=False,
        min=field.least,
        rich_help_panel=field.group or None,
    )
    default = inspect.Parameter.empty if is_required else default
    kind = kind if is_required or kind is bool else kind | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, annotation]
    )


def _kind(field: OptionField) -> tuple[Any, object]:
    """Return the type that typer reads, and what stands for an option that is not given."""
    if field.read is read_truth and not field.metavar:
        return bool, False
    if field.read in (read_texts, read_pairs):
        return list[str], None
    if field.choices:
        return StrEnum("Choice", {choice: choice for choice in field.choices}), None
    return (str if field.least is None else int), None


def request_flags(names: Iterable[str]) -> list[inspect.Parameter]:
    """Make the flags of options of a request."""
    return [flag(name, OPTIONS[name]) for name in names if name not in ("src", "dst")]


def with_flags(flags: Iterable[inspect.Parameter]) -> Callable[[_Command], _Command]:
    """Put flags in the place of a command's ``**options``; they come after its arguments, before its own flags."""

    def expand(command: _Command) -> _Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = [p for p in own if typer.models.ArgumentInfo in map(type, getattr(p.annotation, "__metadata__", ()))]
        rest = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p not in first]
        expanded = [*first, *flags, *rest]

        @wraps(command)
        def expanded_command(*args: Any, **kwargs: Any) -> None:
            command(*args, **kwargs)

        expanded_command.__signature__ = signature.replace(parameters=expanded)  # type: ignore[attr-defined]
        expanded_command.__annotations__ = {p.name: p.annotation for p in expanded} | {"return": None}
        return expanded_command  # type: ignore[return-value]

    return expand


def patient(command: _Command) -> _Command:
    """Give a command the flag that says how long to wait for a store, and have it wait so long."""

    @wraps(command)
    def waiting_command(*args: Any, give_up_after: str | None, **kwargs: Any) -> None:
        from ..api.connecting import connecting  # help needs nothing of stores

        with connecting(Request.of(give_up_after=give_up_after)):
            command(*args, **kwargs)

    signature, added = inspect.signature(command, eval_str=True), request_flags(["give_up_after"])
    parameters = [*signature.parameters.values(), *added]
    waiting_command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    waiting_command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return waiting_command  # type: ignore[return-value]
