"""MindSpore's and MindSpore Transformers' own commands, made from the functions of :mod:`reshard.compat`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from .. import compat
from ..api.option_field import OptionField
from ..compat.imitation import no_effect_of, option_of
from ..compat.weights import FLAGS
from ..errors import UsageError
from .flags import Output, OutputForm, Overwrite, Quiet, flag, with_flags
from .progress import progress
from .results import show_manifest, show_pace, show_strategy
from .signals import signals

_PLACES = ("file_path", "save_path")
_FLAG = "_flag"


def _command(function: Callable[..., Any], more: Mapping[str, OptionField] | None = None) -> Callable[..., None]:
    """Make a command from an imitation; ``more`` are flags that it takes as one mapping."""
    parameters, more = inspect.signature(function).parameters.values(), more or {}
    flags = [_flag(each, field) for each in parameters if (field := option_of(each)) and each.name != "overwrite"]
    flags += [flag(name, field, is_original=True) for name, field in more.items()]
    places = [(each, field) for each in parameters if each.name in _PLACES and (field := option_of(each))]
    flags += [_by_name(each, field) for each, field in places]
    flags += [_without_effect(each.name) for each in parameters if no_effect_of(each)]

    def command(
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
        output: Output = OutputForm.TEXT,
        quiet: Quiet = False,
        **given: Any,
    ) -> None:
        if more:
            given["flags"] = {name: given.pop(name) for name in more}
        if places:
            given = _joined(given)
        # Where nothing is given, the function's own defaults apply.
        given = {name: value for name, value in given.items() if value is not None}
        begun_s = time.monotonic()
        with progress(quiet=quiet) as listener:
            manifest = function(**given, overwrite=overwrite, on_event=listener)
            signals.work_is_done()
        took_s = time.monotonic() - begun_s
        show_manifest(manifest, output)
        if not quiet:
            show_pace(manifest, took_s)

    return with_flags(flags)(command)


def _flag(parameter: inspect.Parameter, field: OptionField) -> inspect.Parameter:
    """Make a flag of a parameter; places are arguments where the original has them so."""
    is_required = parameter.default is parameter.empty
    field = replace(field, group="")  # one list of flags, as the original has it
    if parameter.name not in _PLACES:
        is_original = parameter.name != "keep_rank"
        return flag(parameter.name, field, is_required=is_required, is_original=is_original)
    note = f"  [default: {field.default}]" * bool(field.default)
    argument = typer.Argument(metavar=field.metavar, help=f"{field.help}{note}", show_default=False)
    return flag(parameter.name, field).replace(annotation=Annotated[str | None, argument])


def _by_name(parameter: inspect.Parameter, field: OptionField) -> inspect.Parameter:
    """Make the flag of a place that is an argument too."""
    own = replace(field, help=f"{field.metavar} by its own name.", default="", group="")
    return flag(f"{parameter.name}{_FLAG}", own)


def _joined(given: Mapping[str, Any]) -> dict[str, Any]:
    """Bring places together, of which each is an argument or a flag; those that are arguments keep their order."""
    rest = {name: value for name, value in given.items() if name.removesuffix(_FLAG) not in _PLACES}
    words = [given[name] for name in _PLACES if given[name] is not None]
    for name in _PLACES:
        flagged = given[f"{name}{_FLAG}"]
        rest[name] = flagged if flagged is not None else (words.pop(0) if words else None)
    if words or rest["file_path"] is None:
        raise UsageError("expected SRC, and DST at most once, as arguments or as --file_path, --save_path")
    return rest


def _without_effect(name: str) -> inspect.Parameter:
    """Make the flag of an argument that has no effect: it is read, and not shown."""
    annotation = Annotated[str | None, typer.Option(f"--{name}", hidden=True)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


unified_safetensors = _command(compat.unified_safetensors)
transform_checkpoint = _command(compat.transform_checkpoint)
load_distributed_checkpoint = _command(compat.load_distributed_checkpoint)
ckpt_to_safetensors = _command(compat.ckpt_to_safetensors)
safetensors_to_ckpt = _command(compat.safetensors_to_ckpt)
convert_weight = _command(compat.convert_weight, FLAGS)
transform_ckpt_lora = _command(compat.transform_ckpt_lora)


def merge_pipeline_strategys(
    src: Annotated[
        str | None, typer.Argument(metavar="SRC", help="Prefix that holds the files of all ranks or stages.")
    ] = None,
    dst: Annotated[
        str | None, typer.Argument(metavar="DST", help="Merged file: JSON if it ends in .json, else protobuf.")
    ] = None,
    src_strategy_dirs: Annotated[
        str | None,
        typer.Option("--src_strategy_dirs", "--src_strategy_path_or_dir", metavar="URL", help="SRC by its own name."),
    ] = None,
    dst_strategy_file: Annotated[
        str | None, typer.Option("--dst_strategy_file", metavar="URL", help="DST by its own name.")
    ] = None,
    overwrite: Overwrite = False,
    output: Output = OutputForm.TEXT,
) -> None:
    """Merge the strategy files of pipeline stages, as mindspore.merge_pipeline_strategys does."""
    places = [place for place in (src, src_strategy_dirs, dst, dst_strategy_file) if place]
    if len(places) != 2 or bool(src) == bool(src_strategy_dirs):
        raise UsageError("expected SRC and DST once each, as arguments or as --src_strategy_dirs, --dst_strategy_file")
    made = compat.merge_pipeline_strategys(*places, overwrite=overwrite)
    show_strategy(made, output, written=places[1])
