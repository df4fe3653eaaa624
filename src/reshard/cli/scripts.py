"""Command lines as people type them for MindSpore Transformers: ``python path/script.py ...`` in place of a command."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from ..errors import UsageError

# What stands before a script: a shell's or an interpreter's name, and what it is given.
_LAUNCHERS = re.compile(r"(?:.*/)?(?:python[0-9.]*|bash|sh|env|nohup)")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_SUFFIXES = (".py", ".sh")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

_TRANSFORM_PLACES = ("src_checkpoint", "src_strategy", "dst_checkpoint_dir", "dst_strategy", "world_size",
                     "transform_process_num", "prefix")  # fmt: skip
_COMMANDS: Mapping[str, str] = {
    "unified_safetensors.py": "unified-safetensors",
    "transform_checkpoint.py": "transform-checkpoint",
    "transform_checkpoint.sh": "transform-checkpoint",
    "transform_ckpt.py": "transform-checkpoint",
    "convert_weight.py": "convert-weight",
    "convert_reversed.py": "convert-weight",
    "transform_ckpt_lora.py": "transform-ckpt-lora",
    "transform_safetensors_lora.py": "transform-ckpt-lora",
}


def as_command(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the command that a script stands for; others are returned as they are.

    Assignments before the script are made in the environment, as a shell makes them. Raise UsageError for a script that
    no command stands for.

    Examples
    --------
    >>> as_command(["python", "mindformers/tools/transform_ckpt_lora.py", "--dst_ckpt_dir", "out"])
    ['transform-ckpt-lora', '--dst_ckpt_dir', 'out']
    >>> as_command(["bash", "transform_checkpoint.sh", "a.ckpt", "None", "out", "strategy", "8", "2"])[:5]
    ['transform-checkpoint', '--src_checkpoint', 'a.ckpt', '--src_strategy', 'None']
    >>> as_command(["inspect", "run.py"])
    ['inspect', 'run.py']
    """
    if not arguments or not _begins_script(arguments[0]):
        return list(arguments)
    at = next((at for at in range(len(arguments)) if _script_at(arguments, at)), None)
    script = "" if at is None else _script_at(arguments, at)
    path = PurePosixPath(script.replace("\\", "/"))
    if at is None or path.name not in _COMMANDS:
        raise _unknown(script or " ".join(arguments[:2]))
    assigned = (word.partition("=") for word in arguments[:at] if _ASSIGNMENT.fullmatch(word))
    os.environ.update({name: value for name, _, value in assigned})
    return [_COMMANDS[path.name], *_translated(path, arguments[at + 1 :])]


def _begins_script(word: str) -> bool:
    return bool(_LAUNCHERS.fullmatch(word) or _ASSIGNMENT.fullmatch(word)) or word.endswith(_SUFFIXES)


def _script_at(arguments: Sequence[str], at: int) -> str:
    """Return the path of the script that a word names, as a module after ``-m`` too; nothing if it names none."""
    word = arguments[at]
    if at and arguments[at - 1] == "-m" and _MODULE.fullmatch(word):
        return f"{word.replace('.', '/')}.py"
    return word if word.endswith(_SUFFIXES) and not _ASSIGNMENT.fullmatch(word) else ""


def _unknown(script: str) -> UsageError:
    message = f"{script}: reshard has no command for this script"
    return UsageError(message, hint=f"Known: {', '.join(_COMMANDS)}. `reshard --help` lists all commands.")


def _translated(path: PurePosixPath, arguments: Sequence[str]) -> list[str]:
    """Write a script's arguments as those of its command."""
    if path.name == "transform_checkpoint.sh":
        return _by_name(path.name, arguments)
    if path.name == "transform_safetensors_lora.py":
        return ["--save_format", "safetensors", *arguments]
    if path.name in ("convert_weight.py", "convert_reversed.py"):
        return _of_model(path, arguments)
    return list(arguments)


def _by_name(script: str, arguments: Sequence[str]) -> list[str]:
    """Name the arguments of a shell script, which are told by their order; flags of the command may follow."""
    count = next((at for at, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    most = len(_TRANSFORM_PLACES)
    if not most - 1 <= count <= most:
        *needed, last = _TRANSFORM_PLACES
        raise UsageError(
            f"{script}: expected {most - 1} or {most} arguments, found {count}",
            hint=f"The order is {' '.join(needed)} [{last}]; None stands for no strategy.",
        )
    named = zip(_TRANSFORM_PLACES, arguments[:count], strict=False)
    return [*(word for name, value in named for word in (f"--{name}", value)), *arguments[count:]]


def _of_model(path: PurePosixPath, arguments: Sequence[str]) -> list[str]:
    """Complete the arguments of a script in a model's folder, which tells the model, and often the direction."""
    from ..compat.weights import model_of_folder  # with all that weights need: not for other scripts

    given = [word.partition("=")[0].replace("-", "_") for word in arguments]
    found = next((model for folder in reversed(path.parent.parts) if (model := model_of_folder(folder))), None)
    more = ["--model", found] if found and "__model" not in given else []
    is_reversed = path.name == "convert_reversed.py" or "__reversed" in given
    if is_reversed and "__reversed" not in given:
        more += ["--reversed"]
    source, target = ("mindspore", "torch") if is_reversed else ("torch", "mindspore")
    places = {f"--{source}_ckpt_{end}": "--input_path" for end in ("path", "dir")}
    places |= {f"--{target}_ckpt_{end}": "--output_path" for end in ("path", "dir")}
    renamed = [_renamed(word, places) for word in arguments]
    return [*more, *renamed]


def _renamed(word: str, names: Mapping[str, str]) -> str:
    name, equals, value = word.partition("=")
    return f"{names.get(name.replace('-', '_').replace('__', '--', 1), name)}{equals}{value}"
