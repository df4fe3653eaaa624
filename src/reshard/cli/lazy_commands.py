"""Commands that are imported when they run, and how all of them show help and errors.

Help is plain text: drawing it in boxes takes longer than everything else that ``--help`` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import ReshardError, as_field, write_options
from .spelling import as_flag, spell_by, with_value

_WIDTH = 110
_COLUMN = 28


@dataclass(frozen=True, slots=True)
class ListedCommand:
    """One command of a group: the module of this package that has it, and its help; or a group below."""

    module: str
    help: str
    below: Mapping[str, Mapping[str, ListedCommand]] | None = None


class Command(TyperCommand):
    """One command: its help in sections, its options spelled as it has them, its errors as messages."""

    of_other = ""
    """What follows an option that this command does not have."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error becomes a message on stderr and an exit code by class."""
        spell_by(self.spell)
        try:
            return super().invoke(ctx)
        except ReshardError as error:
            from .printing import write_error  # seldom needed

            write_error(error, self.spell)
            raise typer.Exit(error.exit_code) from error

    def spell(self, name: str, value: str | None) -> str:
        """Spell an option as a flag or an argument of this command."""
        param = next((each for each in self.params if each.name == name), None)
        if param is None:
            return as_flag(name, value) + self.of_other
        if param.param_type_name == "argument":
            return str(param.metavar)
        return with_value(next(flag for flag in param.opts if flag.startswith("--")), value)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, those of a group under its heading."""
        _write_parameters(self.get_params(ctx), formatter, self.spell)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write examples, each as it is typed."""
        from .examples import EXAMPLES  # of commands, not of their list

        found = EXAMPLES.get(ctx.command_path, ())
        if found:
            formatter.write("\nExamples:\n" + "".join(f"  {line}\n" for line in found))


class CompatCommand(Command):
    """An original command: what it has no flag for is an option of ``reshard convert``."""

    of_other = " of `reshard convert`"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read arguments as the original does: a flag may have a truth value, and one without effect none."""
        try:
            return super().parse_args(ctx, self._plain(args))
        except typer.BadParameter as error:
            if type(error).__name__ == "MissingParameter":  # typer does not show the class
                text = write_options(getattr(error.param, "help", None) or "", self.spell)
                error.message = text.removesuffix("  [required]")
            raise

    def _plain(self, args: Sequence[str]) -> list[str]:
        from ..api.option_field import find_truth  # help needs nothing of the library

        params = {flag.replace("_", "-"): param for param in self.params for flag in param.opts}
        plain: list[str] = []
        at = 0
        while at < len(args):
            head, equals, value = args[at].partition("=")
            param = params.get(head.replace("_", "-"))
            at += 1
            following = args[at] if at < len(args) else ""
            if getattr(param, "is_flag", False):
                at += not equals and find_truth(following) is not None
                said = value if equals else following
                plain += [] if find_truth(said) is False else [head]
            elif getattr(param, "hidden", False) and not equals and (not following or following.startswith("--")):
                plain += [head, "True"]
            else:
                plain.append(args[at - 1])
        return plain


class RunCommand(Command):
    """A command whose jobs have options that it does not have itself: these are fields of a job file."""

    def spell(self, name: str, value: str | None) -> str:
        """Spell an option as a flag, or as a job file has it."""
        if name == "overwrite":
            name, value = "if_exists", "replace"
        return super().spell(name, value) if any(each.name == name for each in self.params) else as_field(name, value)


class HyperParameterCommand(Command):
    """A command that takes hyper-parameters of any name: options are spelled as people pass them there."""

    def spell(self, name: str, value: str | None) -> str:
        """Spell an option as a hyper-parameter."""
        return f"--{name}" if value is None else f"--{name}={value}"


def _write_parameters(params: Any, formatter: Any, spell: Callable[[str, str | None], str]) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if getattr(param, "hidden", False):
            continue
        text = write_options(getattr(param, "help", None) or "", spell)
        if param.param_type_name == "argument":
            sections.setdefault("Arguments", []).append((param.metavar, text))
            continue
        spellings = (*param.opts, *param.secondary_opts)
        flags = ", ".join(sorted(spellings, key=lambda flag: flag.startswith("--")))
        row = flags if getattr(param, "is_flag", False) or not param.metavar else f"{flags} {param.metavar}"
        sections.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append((row, text))
    general = sections.pop("Options", [])
    for heading, rows in {**sections, "Options": general}.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=_COLUMN)


def group_class(commands: Mapping[str, Mapping[str, ListedCommand]]) -> type[TyperGroup]:
    """Make the class of a group that imports its commands, given by heading and name, when they are asked for."""
    listed = {name: each for section in commands.values() for name, each in section.items()}

    class LazyGroup(TyperGroup):
        """Lists commands without importing them."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.commands = dict.fromkeys(listed)  # type: ignore[assignment]  # names alone, to suggest one

        def list_commands(self, _ctx: Any) -> list[str]:
            return list(listed)

        def get_command(self, _ctx: Any, cmd_name: str) -> Any:
            return _load(cmd_name, listed[cmd_name]) if cmd_name in listed else None

        def format_options(self, ctx: Any, formatter: Any) -> None:
            _write_parameters(self.get_params(ctx), formatter, as_flag)
            for heading, section in commands.items():
                with formatter.section(heading):
                    formatter.write_dl([(name, each.help) for name, each in section.items()], col_max=_COLUMN)

    return LazyGroup


def make_app(cls: type[TyperGroup], root: Callable[..., None], *, add_completion: bool = False) -> typer.Typer:
    """Make a group of commands."""
    app = typer.Typer(add_completion=add_completion, **_SETTINGS)
    app.callback(cls=cls, no_args_is_help=True)(root)
    return app


def _load(name: str, listed: ListedCommand) -> Any:
    """Import one command, or make a group."""
    if listed.below is not None:

        def root() -> None:
            pass

        root.__doc__ = listed.help
        group = typer.main.get_command(make_app(group_class(listed.below), root))
        group.name = name
        return group
    module = import_module(f"{__package__}.{listed.module}")
    app = typer.Typer(add_completion=False, **_SETTINGS)
    command = with_appearance(getattr(module, name.replace("-", "_")))
    settings = dict(_SETTINGS["context_settings"])
    cls, text = CompatCommand if listed.module == "compat_commands" else Command, listed.help
    if listed.module == "run_command":
        cls = RunCommand
    if listed.module == "modelarts_command":
        cls, text = HyperParameterCommand, command.__doc__ or ""
        settings |= {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, cls=cls, help=text, context_settings=settings)(command)
    return typer.main.get_command(app)


def with_appearance(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that say how much it shows, and in which colours."""

    @wraps(command)
    def run(*args: Any, verbose: int, color: Color, **kwargs: Any) -> None:
        from .terminal import appearing  # help needs none of it

        with appearing(verbose, color.value):
            command(*args, **kwargs)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, default, annotation in (("verbose", 0, _VERBOSE), ("color", Color.AUTO, _COLOR))
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "verbose": _VERBOSE, "color": _COLOR}
    return run


class Color(StrEnum):
    """When results and messages have colours."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


_VERBOSE = Annotated[
    int,
    typer.Option(
        *("--verbose", "-v"),
        count=True,
        show_default=False,
        help="Show findings whole, and log each request to a store on stderr; -vv with its headers, never secrets.",
    ),
]
_COLOR = Annotated[
    Color,
    typer.Option(
        "--color",
        metavar="auto|always|never",
        show_default=False,
        help="When to use colours.  [default: auto, on terminals unless NO_COLOR is set]",
    ),
]

_SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {
        "help_option_names": ["-h", "--help"],
        "max_content_width": _WIDTH,
        # MindSpore's names have underscores: either spelling of a command or a flag is understood.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
}
