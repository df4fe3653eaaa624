"""The table: what MindSpore is asked, and the same asked of reshard.

A case is a chain of steps in one folder: the model is saved, cut, cut otherwise, merged. Each step reads what
MindSpore wrote in an earlier one, and its answer lies in ``out/<step>``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from live.drawing import Drawn, Partition

SUFFIX = {"safetensors": "safetensors", "ckpt": "ckpt"}
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One row: a call of MindSpore and its translation.

    Parameters
    ----------
    mindspore
        Name of the function (see ``make_cases.py``) and its arguments, paths relative to the case's folder.
    reshard
        Arguments of ``reshard.convert``; ``src``, ``src_strategy`` and ``dst_strategy`` relative to the case's folder.
        None where there is nothing to compare: the step only makes another one's input.
    applies
        Whether MindSpore answers rightly for a case.
    """

    name: str
    mindspore: Callable[[Drawn], tuple[str, Arguments]]
    reshard: Callable[[Drawn], Arguments] | None
    applies: Callable[[Drawn], bool] = lambda drawn: True


def strategy_path(cutting: Partition, side: str) -> str:
    """The one file that says all of a strategy; of several stages what MindSpore merged."""
    (name, *others) = cutting.files
    return f"strategy/{side}.ckpt" if others else f"strategy/{side}/{name}"


def _first(drawn: Drawn) -> str:
    return strategy_path(drawn.first, "first")


def _second(drawn: Drawn) -> str:
    return strategy_path(drawn.second, "second")


def _transform(src: str, dst: str, before: Callable | None, after: Callable | None, form: str) -> Callable:
    def call(drawn: Drawn) -> tuple[str, Arguments]:
        return "transform_checkpoints", {
            "src_checkpoints_dir": src,
            "dst_checkpoints_dir": f"out/{dst}",
            "ckpt_prefix": drawn.prefix,
            "src_strategy_file": before and before(drawn),
            "dst_strategy_file": after and after(drawn),
            "process_num": 1 + len(drawn.specs) % 2,
            "output_format": form,
        }

    return call


def _convert(src: str, before: Callable | None, after: Callable | None, **others: Any) -> Callable:
    def arguments(drawn: Drawn) -> Arguments:
        strategies = {"src_strategy": before and before(drawn), "dst_strategy": after and after(drawn)}
        return {"src": src, "prefix": drawn.prefix} | {k: v for k, v in strategies.items() if v} | others

    return arguments


def _unify(src: str, dst: str, **others: Any) -> Callable:
    def call(drawn: Drawn) -> tuple[str, Arguments]:
        arguments = {"src_dir": src, "src_strategy_file": _first(drawn), "dst_dir": f"out/{dst}", "max_process_num": 1}
        return "unified_safetensors", arguments | {k: v(drawn) if callable(v) else v for k, v in others.items()}

    return call


def _unified(src: str, **others: Any) -> Callable:
    def arguments(drawn: Drawn) -> Arguments:
        found = {"src": src, "src_strategy": _first(drawn), "form": "mindspore"}
        return found | {k: v(drawn) if callable(v) else v for k, v in others.items()}

    return arguments


def _load(dst: str, form: str = "safetensors", **others: Any) -> Callable:
    def call(drawn: Drawn) -> tuple[str, Arguments]:
        arguments = {
            "network": None,
            "predict_strategy": _second(drawn),
            "format": "safetensors",
            "unified_safetensors_dir": "out/unify",
            "dst_safetensors_dir": f"out/{dst}",
            "output_format": form,
            "max_process_num": 2,
        }
        return "load_distributed_checkpoint", arguments | {k: v(drawn) for k, v in others.items()}

    return call


def _loaded(**others: Any) -> Callable:
    def arguments(drawn: Drawn) -> Arguments:
        found = {"src": "out/unify", "dst_strategy": _second(drawn), "prefix": "net.safetensors"}
        return found | {k: v(drawn) if callable(v) else v for k, v in others.items()}

    return arguments


def _one_rank(drawn: Drawn) -> int:
    return len(drawn.specs) % drawn.second.strategy.rank_count


def _renamed(drawn: Drawn) -> dict[str, str]:
    return {name: f"renamed.{name}" for name in drawn.cut_names[::3]}


def _is_deduplicable(drawn: Drawn) -> bool:
    return drawn.first.is_deduplicable


def _deduplicate(drawn: Drawn) -> tuple[str, Arguments]:
    """What ``ModelCheckpoint(remove_redundancy=True)`` leaves of ``out/split``."""
    return "remove_redundancy", {
        "src_dir": "out/split",
        "strategy_dir": "strategy/first",
        "device_count": drawn.first.strategy.device_count,
        "dst_dir": "out/deduplicated",
    }


def _of_several_saves(drawn: Drawn) -> tuple[str, Arguments]:
    """Shards of two saves in every rank's folder, as training leaves them."""
    return "save_twice", {"src_dir": "out/split", "dst_dir": "out/twice", "suffixes": ["_0-1_1", "_0-2_10"]}


def _save(form: str) -> Callable:
    def call(drawn: Drawn) -> tuple[str, Arguments]:
        numbers = {"epoch_num_": 3, "step_num_": len(drawn.specs), "loss_": 0.5, "done_": True}
        text = {"note_": f"{drawn.prefix} \u6d4b\u8bd5"} if form == "ckpt" else {}
        return "save_checkpoint", {
            "source": f"in/full/rank_0/full.{form}",
            "ckpt_file_name": f"out/saved/rank_0/{drawn.prefix}0.{form}",
            "format": form,
            "append_dict": numbers | text,
            "crc_check": form == "ckpt" and len(drawn.specs) % 2 == 0,
        }

    return call


def _files(function: str) -> Callable:
    def call(drawn: Drawn) -> tuple[str, Arguments]:
        return function, {"file_path": "out/split", "save_path": f"out/{function}"}

    return call


def _rewritten(function: str, **others: Any) -> Callable:
    """The function of reshard's own that has this name, in the place of ``convert``."""

    def arguments(drawn: Drawn) -> Arguments:
        found = {"function": function, "src": "out/split"}
        return found | {k: v(drawn) if callable(v) else v for k, v in others.items()}

    return arguments


def _files_renamed(function: str) -> Callable:
    def call(drawn: Drawn) -> tuple[str, Arguments]:
        return function, {"file_path": "out/split", "save_path": "out/renamed", "name_map": _renamed(drawn)}

    return call


_ONE_RANK = _load("load_one_rank", rank_id=_one_rank)

SAFETENSORS = (
    Step("saved", _save("safetensors"), _convert("out/saved", None, None)),
    Step("split", _transform("in/full", "split", None, _first, "safetensors"), _convert("in/full", None, _first)),
    Step(
        "reshard",
        _transform("out/split", "reshard", _first, _second, "safetensors"),
        _convert("out/split", _first, _second),
    ),
    Step("whole", _transform("out/split", "whole", _first, None, "safetensors"), _convert("out/split", _first, None)),
    Step(
        "split_to_ckpt",
        _transform("in/full", "split_to_ckpt", None, _first, "ckpt"),
        _convert("in/full", None, _first, format="ckpt"),
        applies=lambda drawn: drawn.first.is_flat,
    ),
    Step("unify", _unify("out/split", "unify"), _unified("out/split")),
    Step(
        "unify_renamed",
        _unify("out/split", "unify_renamed", choice_func=lambda drawn: {"rename": _renamed(drawn)}),
        _unified("out/split", name_map=_renamed),
    ),
    Step(
        "deduplicated",
        _deduplicate,
        _convert("in/full", None, _first, remove_redundancy=True),
        applies=_is_deduplicable,
    ),
    Step(
        "unify_deduplicated",
        _unify("out/deduplicated", "unify_deduplicated", merge_with_redundancy=False),
        _unified("out/deduplicated"),
        applies=_is_deduplicable,
    ),
    # MindSpore's tool drops tensors without a word when it is given deduplicated shards: the answer for whole ones.
    Step(
        "reshard_deduplicated",
        _transform("out/split", "reshard_deduplicated", _first, _second, "safetensors"),
        _convert("out/deduplicated", _first, _second),
        applies=_is_deduplicable,
    ),
    Step("twice", _of_several_saves, None),
    Step(
        "unify_suffix",
        _unify("out/twice", "unify_suffix", file_suffix="2_10"),
        _unified("out/twice", file_suffix="2_10"),
    ),
    Step("load", _load("load"), _loaded()),
    Step("load_one_rank", _ONE_RANK, _loaded(ranks=lambda drawn: [_one_rank(drawn)])),
    Step("load_to_ckpt", _load("load_to_ckpt", "ckpt"), _loaded(prefix="net.ckpt", format="ckpt")),
    Step("safetensors_to_ckpt", _files("safetensors_to_ckpt"), _rewritten("safetensors_to_ckpt")),
)  # fmt: skip

CKPT = (
    Step("saved", _save("ckpt"), _convert("out/saved", None, None, format="ckpt")),
    Step("split", _transform("in/full", "split", None, _first, "ckpt"),
         _convert("in/full", None, _first, format="ckpt")),
    Step("reshard", _transform("out/split", "reshard", _first, _second, "ckpt"),
         _convert("out/split", _first, _second, format="ckpt")),
    Step("whole", _transform("out/split", "whole", _first, None, "ckpt"),
         _convert("out/split", _first, None, format="ckpt")),
    Step("ckpt_to_safetensors", _files("ckpt_to_safetensors"), _rewritten("ckpt_to_safetensors")),
    Step("renamed", _files_renamed("ckpt_to_safetensors"), _rewritten("ckpt_to_safetensors", name_map=_renamed)),
)  # fmt: skip

CHAINS: Mapping[str, tuple[Step, ...]] = {"safetensors": SAFETENSORS, "ckpt": CKPT}
