"""From a call of MindSpore to the same asked of reshard: one function here for each of theirs, none knows a case."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from pathlib import PurePosixPath
from typing import Any

__all__ = ["TRANSLATIONS", "Request"]

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to ask of reshard, and where MindSpore's answer to the same lies.

    Parameters
    ----------
    arguments
        Of ``reshard.convert``.
    answer
        Where MindSpore's answer lies, below the case's folder.
    strip
        Start of our keys that MindSpore's names lack.
    """

    arguments: Arguments
    answer: str
    strip: str = ""

    @property
    def dst(self) -> str:
        return self.arguments["dst"]

    def name_of(self, key: str) -> str:
        """The name that MindSpore would give to one of our objects, below the case's folder."""
        assert key.startswith(self.strip), key
        return f"{self.answer}/{key.removeprefix(self.strip)}"

    def is_dropped(self, name: str) -> bool:
        """Whether a tensor was asked to be left out."""
        return any(fnmatchcase(name, pattern) for pattern in self.arguments.get("drop", ()))


def _transform_checkpoints(kwargs: Arguments, base_url: str) -> Request:
    kwargs.pop("process_num", None)
    answer = kwargs.pop("dst_checkpoints_dir")
    arguments = {
        "src": f"{base_url}/{kwargs.pop('src_checkpoints_dir')}",
        "dst": f"{base_url}/out/{answer}",
        "prefix": kwargs.pop("ckpt_prefix"),
        "format": kwargs.pop("output_format", "ckpt"),
        **_strategies(kwargs, base_url),
    }
    return _all_used(kwargs, Request(arguments, answer))


def _transform_checkpoint_by_rank(kwargs: Arguments, base_url: str) -> Request:
    """One rank's object, whose whole name is given; of the sources only where they lie."""
    rank, (answer, name) = kwargs.pop("rank_id"), os.path.split(kwargs.pop("save_checkpoint_file_name"))
    sources = kwargs.pop("checkpoint_files_map")
    assert all(f"/rank_{rank}/" in source for rank, source in sources.items())
    arguments = {
        "src": f"{base_url}/{os.path.commonpath(sources.values())}",
        "dst": f"{base_url}/out/{answer}/{rank}",
        "prefix": name,
        "format": "ckpt",
        "ranks": [rank],
        **_strategies(kwargs, base_url),
    }
    return _all_used(kwargs, Request(arguments, answer, strip=f"rank_{rank}/"))


def _load_distributed_checkpoint(kwargs: Arguments, base_url: str) -> Request:
    assert kwargs.pop("network") is None
    assert kwargs.pop("format") == "safetensors"
    kwargs.pop("max_process_num", None)
    strategy, rank = kwargs.pop("predict_strategy"), kwargs.pop("rank_id", None)
    form, answer = kwargs.pop("output_format", "safetensors"), kwargs.pop("dst_safetensors_dir")
    arguments = {
        "src": f"{base_url}/{kwargs.pop('unified_safetensors_dir')}",
        "dst": f"{base_url}/out/{answer}",
        "dst_strategy": _url(base_url, strategy),
        "prefix": f"net.{form}",
        "format": form,
        # MindSpore's map is from names of the target to names of the source.
        "name_map": {old: new for new, old in kwargs.pop("name_map", {}).items()},
    }
    if strategy and rank is not None:
        arguments["ranks"] = [rank]
    assert strategy or not rank
    return _all_used(kwargs, Request(arguments, answer))


def _unified_safetensors(kwargs: Arguments, base_url: str) -> Request:
    """Which ranks hold what is seen in the shards, so ``merge_with_redundancy`` says nothing new."""
    for name in ("merge_with_redundancy", "max_process_num"):
        kwargs.pop(name, None)
    answer = kwargs.pop("dst_dir")
    drop, rename = _choice(kwargs.pop("choice_func", ""))
    arguments = {
        "src": f"{base_url}/{kwargs.pop('src_dir')}",
        "dst": f"{base_url}/out/{answer}",
        "src_strategy": _url(base_url, kwargs.pop("src_strategy_file")),
        "form": "mindspore",
        "file_suffix": kwargs.pop("file_suffix", None),
        "drop": ["accu_grads*", *drop],  # MindSpore's rule for all its parts
        "rename": rename,
    }
    return _all_used(kwargs, Request(arguments, answer))


def _choice(told: str) -> tuple[list[str], list[str]]:
    """Patterns to drop and renames of a function that the case tells in words."""
    drop = re.findall(r"False for ([^,]+)", told)
    renames = [(glob, new) for new, glob in re.findall(r"'([^']+)' for ([^,]+)", told)]
    assert bool(told) == bool(drop or renames)
    return drop, [f"regex:{translate(glob)}={new}" for glob, new in renames]


def _convert_format(kwargs: Arguments, base_url: str, form: str) -> Request:
    """One object in another format; no strategy, so the whole name is for rank 0."""
    source, answer = kwargs.pop("file_path"), kwargs.pop("save_path")
    arguments = {
        "src": f"{base_url}/{source}",
        "dst": f"{base_url}/out/{answer}",
        "prefix": f"{PurePosixPath(source).stem}.{form}",
        "format": form,
        "name_map": kwargs.pop("name_map", None),
    }
    return _all_used(kwargs, Request(arguments, answer, strip="rank_0/"))


def _strategies(kwargs: Arguments, base_url: str) -> Arguments:
    return {f"{side}_strategy": _url(base_url, kwargs.pop(f"{side}_strategy_file", None)) for side in ("src", "dst")}


def _url(base_url: str, name: str | None) -> str | None:
    return f"{base_url}/{name}" if name else None


def _all_used(kwargs: Arguments, request: Request) -> Request:
    assert not kwargs, f"arguments nobody translates: {kwargs}"
    return request


TRANSLATIONS: Mapping[str, Callable[[Arguments, str], Request]] = {
    "mindspore.transform_checkpoints": _transform_checkpoints,
    "mindspore.transform_checkpoint_by_rank": _transform_checkpoint_by_rank,
    "mindspore.load_distributed_checkpoint": _load_distributed_checkpoint,
    "mindspore.unified_safetensors": _unified_safetensors,
    "mindspore.ckpt_to_safetensors": lambda kwargs, base_url: _convert_format(kwargs, base_url, "safetensors"),
    "mindspore.safetensors_to_ckpt": lambda kwargs, base_url: _convert_format(kwargs, base_url, "ckpt"),
}
