"""Write ``docs/reference/api.md`` and ``docs/reference/options.md`` from signatures, docstrings and options.

Run it after a change of a public function, class or option::

    python docs/make_api_reference.py
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from reshard.api import option_field
from reshard.api.option_field import OptionField
from reshard.api.request import OPTIONS, PLANNING_OPTIONS, Request

FOLDER = Path(__file__).with_name("reference")

DOORS = {
    "reshard": "The statements, their values and events.",
    "reshard.jobs": "[Job files](../howto/run.md) and [training configurations](../howto/training-yaml.md).",
    "reshard.compat": "[MindSpore's own functions](../original-commands.md), under their names.",
}
_ORDER = (
    *("inspect", "plan", "estimate", "explain", "load_plan", "convert", "verify"),
    *("load", "load_for", "filesystem", "open_zarr"),
)
_WIDTH = 100
_TYPES = {
    option_field.read_texts: "list of `str`",
    option_field.read_truth: "`bool`",
    option_field.read_pairs: "`dict`, or list of `'NAME=VALUE'`",
    option_field.read_config: "`dict`, or a URL",
    option_field.read_document: "`dict`, or a URL",
    option_field.read_ratio: "`float`, or like `'16/8'`",
    option_field.read_process_count: "`int` or `'auto'`",
    option_field.read_ranks: "list of `int`, or like `'0-7,16'`",
    option_field.parse_size: "`int`, or like `'256MiB'`",
    option_field.parse_patience: "`float`, or like `'15min'`",
}
_MARKED = re.compile("\u27e6(.*?)\u27e7")
_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?\.?(?:[\w.]*\.)?(\w+)`")
_STARTS = {
    "api.md": """\
# Python API

Every public name with its signature, made from the code by `docs/make_api_reference.py`; a test compares. For a guided
tour see [use as a library](../howto/library.md). Errors have [a page of their own](../errors.md), and so have the
[options](options.md) that `**options` stands for.
""",
    "options.md": """\
# Options

Every option has one name: `memory` is `--memory` on the [command line](cli.md), `memory=` in [Python](api.md), and the
key `memory` in a [job file](../howto/run.md). Made from the code by `docs/make_api_reference.py`; a test compares.

`plan`, `load` and `filesystem` take all options but those marked *only `convert`*; `inspect` takes those of the source.
Types are those of Python; on the command line a list is an option given several times.
""",
}


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every page with its text."""
    yield FOLDER / "api.md", "\n".join([_STARTS["api.md"], *(_door(name) for name in DOORS)])
    yield FOLDER / "options.md", "\n".join([_STARTS["options.md"], *_groups()])


def _door(name: str) -> str:
    module = importlib.import_module(name)
    names = sorted(module.__all__, key=lambda each: (_ORDER.index(each) if each in _ORDER else 99, each))
    values = [(each, getattr(module, each)) for each in names]
    return "\n".join([f"## {name}\n\n{DOORS[name]}\n", *(_entry(name, each, value) for each, value in values)])


def _entry(door: str, name: str, value: Any) -> str:
    title = f"### {door}.{name}\n" if door != "reshard" else f"### {name}\n"
    if isinstance(value, types.UnionType):
        return f"{title}\nOne of {', '.join(f'`{each.__name__}`' for each in value.__args__)}.\n"
    if isinstance(value, enum.EnumMeta):
        return f"{title}\n{_prose(value.__doc__ or '')}\n`{'`, `'.join(each.value for each in value)}`\n"
    if not inspect.isclass(value):
        return "\n".join([title, _block(_signature(name, value)), _prose(value.__doc__ or "")])
    body = [title, _block(_signature(f"class {name}", value)), _prose(value.__doc__ or "")]
    members = list(_members(value))
    return "\n".join([*body, *members, ""] if members else body)


def _members(value: type) -> Iterator[str]:
    """Yield the documented methods and properties of a class, as its definition has them."""
    for name, member in vars(value).items():
        if name.startswith("_"):
            continue
        bare = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(bare, property):
            kind = _annotation(inspect.signature(bare.fget).return_annotation)  # type: ignore[arg-type]
            yield f"- `.{name}: {kind}`: {_first(bare.__doc__)}"
        elif inspect.isfunction(bare) and bare.__doc__:
            yield f"- `{_one_line(_signature('.' + name, bare))}`: {_first(bare.__doc__)}"


def _first(docstring: str | None) -> str:
    return _ROLE.sub(r"`\1`", " ".join(inspect.cleandoc(docstring or "").split("\n\n")[0].split())).replace("``", "`")


def _signature(name: str, value: Any) -> str:
    """Write a signature on one line, or one parameter a line where that would be too long."""
    found = inspect.signature(value)
    shown: list[str] = []
    keyword_only = False
    for each in found.parameters.values():
        if each.name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and not keyword_only:
            shown.append("*")
        keyword_only |= each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        shown.append(_parameter(each))
    result = "" if inspect.isclass(value) else f" -> {_annotation(found.return_annotation)}"
    line = f"{name}({', '.join(shown)}){result}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){result}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {_annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    if isinstance(default, enum.Enum):
        return f"{text} = {type(default).__name__}.{default.name}"
    plain = isinstance(default, bool | int | float | str | tuple | type(None))
    name = getattr(default, "__name__", "<")
    return f"{text} = {repr(default) if plain else '...' if name.startswith('<') else name}"


def _annotation(annotation: Any) -> str:
    """Write a type, without what an option says of itself beside it."""
    if isinstance(annotation, str):
        return re.sub(r"^Annotated\[([^,]+),.*", r"\1", annotation)
    if get_origin(annotation) is Annotated:
        return _annotation(annotation.__origin__)
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b(?:[a-z_]+\.)+", "", str(annotation))


def _one_line(text: str) -> str:
    return re.sub(r",\s*\)", ")", re.sub(r"\(\s+", "(", " ".join(text.split())))


def _block(code: str) -> str:
    return f"<!-- not run: a signature -->\n```python\n{code}\n```\n"


def _prose(docstring: str) -> str:
    """Turn a numpydoc docstring into Markdown."""
    text = _ROLE.sub(r"`\1`", inspect.cleandoc(docstring)).replace("``", "`")
    parts = _SECTION.split(text)
    paragraphs = [parts[0].rstrip() + "\n"]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title == "Examples":
            paragraphs.append(f"<!-- not run: the tests run it where it stands -->\n```python\n{body.strip()}\n```\n")
        else:
            paragraphs.append(f"**{title}**\n\n{_items(body)}\n")
    return "\n".join(paragraphs)


def _items(body: str) -> str:
    """Turn the entries of a section, each a name with an indented text, into a list."""
    entries = re.findall(r"^(\S.*)\n((?:(?:[ ]+.*)?\n)*)", body.rstrip() + "\n\n", re.MULTILINE)
    lines = []
    for name, text in entries:
        meaning = " ".join(textwrap.dedent(text).split())
        lines.append(f"- `{name}`: {meaning}" if meaning else f"- {name}")
    return "\n".join(lines) + "\n"


def _groups() -> Iterator[str]:
    """Yield a table for each group of options."""
    annotations = inspect.get_annotations(Request)
    for group in dict.fromkeys(field.group for field in OPTIONS.values() if field.group):
        rows = ["| option | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, field in OPTIONS.items():
            if field.group == group:
                default = field.default or ("off" if field.read is option_field.read_truth else "none")
                told = _MARKED.sub(lambda match: f"`{match[1]}`", field.help.replace("<", "&lt;"))
                note = "" if name in PLANNING_OPTIONS else " *Only `convert`.*"
                cells = (f"`{name}`", _type(str(annotations[name]), field), default, told + note)
                rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        yield f"## {group}\n\n" + "\n".join(rows) + "\n"


def _type(annotation: str, field: OptionField) -> str:
    if field.choices:
        return ", ".join(f"`{each!r}`" for each in field.choices)
    return _TYPES.get(field.read) or f"`{annotation.removesuffix(' | None')}`"


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text)
