"""Numbers of a parallel job as people write them: ``dp=2,mp=4``, or the configuration of a training job."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import FormatError, StrategyError, UsageError, raise_all
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..tensor import DType
from .parallel import Offset, Parallel

_NAMES = {
    "data_parallel": "dp",
    "model_parallel": "mp",
    "tp": "mp",
    "context_parallel": "cp",
    "pipeline_stage": "pp",
    "expert_parallel": "ep",
    "sp": "use_seq_parallel",
    "po": "optimizer_shard",
    "enable_parallel_optimizer": "optimizer_shard",
    "po_size": "optimizer_weight_shard_size",
    "po_threshold": "optimizer_threshold_kib",
    "parallel_optimizer_threshold": "optimizer_threshold_kib",
    "zbv": "zero_bubble_v",
    "param_init_type": "param_dtype",
    "params_dtype": "param_dtype",
}
_UNKNOWN = "no such number"
_HINT = "There are dp, mp, cp, pp, ep, sp, po, offset, vpp and more, see docs/howto/strategy.md."
_FIELDS = tuple(Parallel.__dataclass_fields__)
_FLAGS = frozenset(
    {"vocab_emb_dp", "use_seq_parallel", "optimizer_shard", "pipeline_interleave", "zero_bubble_v", "use_legacy"}
)
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NUMBER = re.compile(r"-?[0-9]{1,9}")
_DTYPES = {
    "float32": DType.F32,
    "fp32": DType.F32,
    "float16": DType.F16,
    "fp16": DType.F16,
    "bfloat16": DType.BF16,
    "bf16": DType.BF16,
}
# An item: a key, and what follows the equals sign up to a comma that is in no brackets.
_ITEM = re.compile(r"\s*([a-z_]+)\s*=\s*(\[[\[\]0-9,\s-]*\]|[^,\[\]]*?)\s*(?:,|$)")

_CONFIG_KEYS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("parallel_config",): (
        "data_parallel",
        "model_parallel",
        "context_parallel",
        "pipeline_stage",
        "expert_parallel",
        "vocab_emb_dp",
        "use_seq_parallel",
        "micro_batch_num",
        "ulysses_degree_in_cp",
    ),
    ("parallel",): ("enable_parallel_optimizer",),
    ("parallel", "parallel_optimizer_config"): ("parallel_optimizer_threshold", "optimizer_weight_shard_size"),
    ("parallel", "pipeline_config"): ("pipeline_interleave",),
    ("model", "model_config"): ("offset", "pp_interleave_num", "param_init_type", "params_dtype"),
    (): ("use_legacy",),
}


def parse_parallel(text: str) -> Parallel:
    """Read numbers written as ``key=value``, with commas between.

    Parameters
    ----------
    text
        Keys short (``dp``, ``mp`` or ``tp``, ``cp``, ``pp``, ``ep``, ``sp``, ``po``, ``vpp``, ``zbv``) or
        as MindSpore Transformers spells them. ``vpp=2`` switches interleave on and sets its chunks;
        offsets are lists.

    Raises
    ------
    UsageError
        Unknown or repeated keys, or values that are none; all of them are listed.
    StrategyError
        The numbers contradict each other.

    Examples
    --------
    >>> parallel = parse_parallel("dp=2,model_parallel=4,pp=2,po=true,offset=[1,0]")
    >>> parallel.mp, parallel.optimizer_shard, parallel.offset
    (4, True, (1, 0))
    >>> parse_parallel("dp=two,xp=1")
    Traceback (most recent call last):
    ...
    reshard.errors.UsageError: --parallel dp=two,xp=1 cannot be read
      - dp: expected a whole number, found 'two'
      - xp: no such number
    There are dp, mp, cp, pp, ep, sp, po, offset, vpp and more, see docs/howto/strategy.md.
    """
    said: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in _items(text, problems):
        for name, plain in _expanded(key, value):
            if name in said:
                problems.append(f"{key}: given twice")
            _take(said, problems, key, name, plain)
    is_unknown = any(problem.endswith(_UNKNOWN) for problem in problems)
    raise_all(UsageError, f"--parallel {text} cannot be read", problems, _HINT if is_unknown else "")
    return Parallel(**said)


def _items(text: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None:
            problems.append(f"{text[position:]!r}: expected KEY=VALUE, like dp=2")
            return
        yield match[1], match[2]
        position = match.end()


def _expanded(key: str, value: str) -> list[tuple[str, object]]:
    if key == "vpp":
        return [("pp_interleave_num", value), ("pipeline_interleave", True)]
    return [(_NAMES.get(key, key), value)]


def _take(said: dict[str, Any], problems: list[str], key: str, name: str, value: object) -> None:
    if name not in _FIELDS:
        problems.append(f"{key}: {_UNKNOWN}")
        return
    try:
        said[name] = _reader(name)(value)
    except ValueError as error:
        problems.append(f"{key}: expected {error}, found {value!r}")


def _reader(name: str) -> Callable[[object], object]:
    if name in _FLAGS:
        return _flag
    return {"offset": _offset, "param_dtype": _dtype}.get(name, _number)


def _number(value: object) -> int:
    if type(value) is int or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        return int(value)
    raise ValueError("a whole number")


def _flag(value: object) -> bool:
    word = _WORDS.get(str(value).lower())
    if word is None:
        raise ValueError("true or false")
    return word


def _dtype(value: object) -> DType:
    word = str(value).lower().rpartition(".")[2]
    if word not in _DTYPES:
        raise ValueError("float32, float16 or bfloat16")
    return _DTYPES[word]


def _offset(value: object) -> Offset:
    """A number, a list of numbers, or a list of such lists."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("a number, or lists like [1,0]") from None
    if type(value) is int:
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(row, list) and all(type(i) is int for i in row) for row in value):
        return tuple(tuple(row) for row in value)
    raise ValueError("a number, or lists like [1,0]")


def parse_parallel_config(data: bytes, where: str) -> Parallel:
    """Read the numbers out of the YAML configuration of a MindSpore Transformers training job.

    Parameters
    ----------
    data
        The file. Read are ``parallel_config``, ``parallel`` (``enable_parallel_optimizer``,
        ``parallel_optimizer_config``, ``pipeline_config``), from ``model.model_config`` the ``offset``,
        ``pp_interleave_num`` and the element type of weights, and ``use_legacy``.
    where
        What the file is, for errors.

    Raises
    ------
    FormatError
        The text is no YAML, or values are none; all of them are listed.
    StrategyError
        The numbers contradict each other.

    Examples
    --------
    >>> text = b"parallel_config: {data_parallel: 2, model_parallel: 4}\\nmodel: {model_config: {eps: 1.e-6}}"
    >>> parse_parallel_config(text, "train.yaml").rank_count
    8

    Source: MindSpore Transformers 1.6.0 and 1.8.0, ``configs/`` and ``core/parallel_config.py``.
    """
    document = parse_yaml(data, where, foreign=True)
    said: dict[str, Any] = {}
    problems: list[str] = []
    for path, keys in _CONFIG_KEYS.items():
        section = _section(document, path, problems)
        for key in keys:
            if section.get(key) is not None:
                _take(said, problems, ".".join((*path, key)), _NAMES.get(key, key), section[key])
    pipeline = _section(document, ("parallel", "pipeline_config"), [])
    said["zero_bubble_v"] = pipeline.get("pipeline_scheduler") == "zero_bubble_v"
    if problems:
        raise FormatError("numbers of the parallel job cannot be read", where=where, problems=problems)
    try:
        return Parallel(**said)
    except StrategyError as error:
        raise StrategyError(f"{where}: {error.message}", hint=error.hint, problems=error.problems) from error


def _section(document: PlainValue, path: tuple[str, ...], problems: list[str]) -> dict[str, PlainValue]:
    value = document
    for depth, key in enumerate(path):
        value = value.get(key) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, dict):
            problems.append(f"{'.'.join(path[: depth + 1])}: expected a mapping")
            return {}
        if isinstance(value, dict) and "<<" in value:
            problems.append(f"{'.'.join(path[: depth + 1])}: merged keys are not read; write them out")
    return value if isinstance(value, dict) else {}
