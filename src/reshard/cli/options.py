"""Arguments and flags that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

_Command = TypeVar("_Command", bound=Callable[..., None])


class OutputForm(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


class Format(StrEnum):
    """What single objects are written as."""

    SAFETENSORS = "safetensors"
    CKPT = "ckpt"


class Side(StrEnum):
    """Whose names and layouts."""

    MS = "ms"
    HF = "hf"


class FloatType(StrEnum):
    """Types of floating-point tensors."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class CopyMode(StrEnum):
    """Whether stores copy bytes by themselves."""

    AUTO = "auto"
    NEVER = "never"


class Staging(StrEnum):
    """Whether tensors are written to a zarr store in between."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Standing(StrEnum):
    """Where this machine stands, seen from a store."""

    REGION = "region"
    INTERNET = "internet"


class Form(StrEnum):
    """How a checkpoint is laid out over objects."""

    HF = "hf"
    MINDSPORE = "mindspore"
    ZARR = "zarr"
    ITERATION = "iteration"


def truth(text: str | bool) -> bool:
    """Read a truth value as the original scripts' users write it."""
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(text).strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r}: expected True or False")
    return found


def named(names: str, metavar: str, text: str, kind: Any = str | None, **settings: Any) -> Any:
    """An option of an original tool, under all names that it has there; a dash does as well as an underscore."""
    return Annotated[kind, typer.Option(*names.split(), metavar=metavar, help=text, **settings)]


def _text(metavar: str, text: str, *, default: str | bool = True) -> Any:
    return Annotated[str | None, typer.Option(metavar=metavar, help=text, show_default=default)]


def _texts(metavar: str, text: str) -> Any:
    return Annotated[list[str] | None, typer.Option(metavar=metavar, help=text)]


_CRC = Annotated[bool, typer.Option("--check-crc", help="Compare .ckpt objects with their checksums first.")]
_KEEP_RANK = Annotated[
    int | None,
    typer.Option(metavar="R", min=0, help="Take rank R's of tensors outside the strategy that differ between ranks."),
]
_LESS = Annotated[
    bool,
    typer.Option("--remove-redundancy", help="Write what several ranks own on one of them only."),
]
_CONCURRENCY = Annotated[
    int | None, typer.Option(metavar="N", min=1, show_default="8", help="Requests in flight at once.")
]
_PART_SIZES = "5GB; mindspore: 3GiB; zarr: 64MiB"

SOURCE: dict[str, tuple[Any, object]] = {
    "src_strategy": (_text("S", "Strategy file of the source's shards, or a prefix with all stages'."), None),
    "src_layout": (_text("L.yaml", "Layout file of the source's shards instead."), None),
    "file_suffix": (_text("E_S", "End of the names to take where ranks have several, like 1_10."), None),
    "check_crc": (_CRC, False),
    "keep": (_texts("PATTERN", "Take only tensors like this: a glob, prefix:TEXT or regex:EXPR. Repeatable."), None),
    "drop": (_texts("PATTERN", "Leave out tensors like this. Repeatable."), None),
    "keep_rank": (_KEEP_RANK, None),
    "concurrency": (_CONCURRENCY, None),
}
"""Options of :class:`reshard.api.Options` that speak of the source, each with its default."""

CONVERSION: dict[str, tuple[Any, object]] = SOURCE | {
    "to": (
        Annotated[Side | None, typer.Option(help="Names and layouts of MindSpore Transformers (ms), or back (hf).")],
        None,
    ),
    "family": (_text("NAME", "Whose rules to apply.", default="from config.json and names"), None),
    "naming": (_text("NAME", "Which of the family's namings, legacy or mcore.", default="the family's"), None),
    "option": (_texts("NAME=VALUE", "Option of the family's rules, like qkv_concat=true. Repeatable."), None),
    "config": (_text("URL", "The model's config.json.", default="beside the source"), None),
    "dtype": (
        Annotated[FloatType | None, typer.Option(help="Type of floating-point tensors; FP8 is scaled first.")],
        None,
    ),
    "keep_dtype": (_texts("PATTERN", "Tensors of the target that keep their type. Repeatable."), None),
    "merge_lora": (
        Annotated[bool, typer.Option("--merge-lora", help="Merge adapters that the source holds into their weights.")],
        False,
    ),
    "lora": (_text("URL", "Merge the adapters there, PEFT's form."), None),
    "lora_scaling": (
        Annotated[
            float | None,
            typer.Option(metavar="X", show_default="adapter_config.json", help="What their product is multiplied by."),
        ],
        None,
    ),
    "parallel": (_text("dp=2,mp=4,...|Y.yaml", "Cut by numbers, or as a training job's YAML says."), None),
    "rename": (_texts("OLD=NEW", "Also prefix:OLD=NEW or regex:EXPR=NEW; the first that matches. Repeatable."), None),
    "name_map": (_text("FILE.json", 'New names by old: {"old": "new"}.'), None),
    "dst_strategy": (_text("S", "Strategy file of the target; without one it is a full checkpoint."), None),
    "dst_layout": (_text("L.yaml", "Layout file of the target instead."), None),
    "form": (
        Annotated[Form | None, typer.Option(help="Of a full checkpoint hf, mindspore or zarr; of ranks iteration.")],
        None,
    ),
    "format": (
        Annotated[Format | None, typer.Option(show_default="safetensors", help="What single objects are.")],
        None,
    ),
    "iteration": (
        Annotated[int | None, typer.Option(metavar="N", min=0, help="Folder that --form iteration writes.")],
        None,
    ),
    "prefix": (_text("NAME", "Objects are called rank_R/NAMER.safetensors.", default="checkpoint_"), None),
    "ranks": (_text("LIST", "Write these ranks only, like 0-7,16."), None),
    "remove_redundancy": (_LESS, False),
    "part_size": (
        _text("SIZE", "Largest object of a full checkpoint.", default="5GB; mindspore: 3GiB; zarr: 64MiB"),
        None,
    ),
    "memory": (_text("SIZE", "Limit for all buffers, like 256MiB.", default="512MiB"), None),
    "copy": (
        Annotated[CopyMode | None, typer.Option(show_default="auto", help="Whether the store copies what it can.")],
        None,
    ),
    "staging": (
        Annotated[
            Staging | None, typer.Option(show_default="auto", help="Write tensors to zarr first: where it is cheaper.")
        ],
        None,
    ),
    "staging_url": (_text("URL", "Where that zarr store goes.", default="beside DST"), None),
}
"""All options of :class:`reshard.api.Options`, each with its default."""

EXTRAS = {name: CONVERSION[name] for name in ("drop", "keep_rank", "memory")}
"""What the original tools do not have, but every conversion does."""

REWRITING: dict[str, tuple[Any, object]] = {
    "name_map": (named("--name_map", "FILE.json", 'New names by old: {"old": "new"}.'), None),
    "file_name_regex": (named("--file_name_regex", "EXPR", "Take objects below SRC whose names match."), None),
    "processes_num": (
        named("--processes_num", "N", "Each stands for 8 requests in flight, 64 at most.", int | None, min=0),
        None,
    ),
    "drop": CONVERSION["drop"],
    "memory": CONVERSION["memory"],
}
"""Options of the two commands that write each object in another format."""

REQUIRED: object = inspect.Parameter.empty
"""In the place of a default: the option must be given."""

Output = Annotated[OutputForm, typer.Option("--output", help="How to print the result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def with_options(options: dict[str, tuple[Any, object]]) -> Callable[[_Command], _Command]:
    """Put options in the place of a command's ``**options``, so that each is told once for all commands."""

    def expand(command: _Command) -> _Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = [p for p in own if typer.models.ArgumentInfo in map(type, getattr(p.annotation, "__metadata__", ()))]
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in options.items()
        ]
        rest = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p not in first]
        expanded = [*first, *shared, *rest]

        @wraps(command)
        def expanded_command(*args: Any, **kwargs: Any) -> None:
            command(*args, **kwargs)

        expanded_command.__signature__ = signature.replace(parameters=expanded)  # type: ignore[attr-defined]
        expanded_command.__annotations__ = {p.name: p.annotation for p in expanded} | {"return": None}
        return expanded_command  # type: ignore[return-value]

    return expand
