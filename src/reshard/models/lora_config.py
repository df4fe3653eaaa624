"""The scaling of adapters, from ``adapter_config.json``.

Of PEFT's forty settings or so, those that only steer training are ignored. Those that change what a merge must
compute are followed or refused, and so is every unknown one that is switched on: a setting of a later PEFT may
change the computation too.

Source: peft 0.17, tuners/lora/config.py and tuners/lora/layer.py (update_layer).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from ..errors import FormatError, PlanError, UsageError, option, raise_all
from ..formats.strict_json import json_kind, parse_json_object, shown
from .lora import AdapterPair

# fmt: off
_TRAINING_ONLY = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_config", "megatron_core",
    "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}
# fmt: on
# Initialisations that leave the base as it was. The others (pissa, olora, corda, loftq) move a part of the base
# into the adapters, which then belong to another base than the published one.
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
_PLAIN_KEY = re.compile(r"\^?[\w.\-]+")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The settings of an ``adapter_config.json`` that a merge follows.

    The scaling is ``lora_alpha`` divided by the rank ``r`` (0 if the file does not state it), with ``use_rslora`` by
    its square root. With ``fan_in_fan_out`` weights are ``[in, out]``. The patterns hold other values for modules
    whose name is, or ends in, the key.
    """

    lora_alpha: float
    r: int = 0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()


_Type = tuple[str, Callable[[object], bool]]
_NUMBER: _Type = ("a number", lambda value: type(value) in (int, float) and abs(cast("float", value)) <= 1e30)
_COUNT: _Type = ("a positive integer", lambda value: type(value) is int and 0 < value < 1 << 31)
_FLAG: _Type = ("true or false", lambda value: isinstance(value, bool))
_TABLE: _Type = ("an object", lambda value: isinstance(value, dict))
_NAMES: _Type = (
    "a string or an array of strings",
    lambda value: all(isinstance(name, str) for name in (value if isinstance(value, list) else [value])),
)
_TYPES: Mapping[str, _Type] = {
    "lora_alpha": _NUMBER,
    "r": _COUNT,
    "use_rslora": _FLAG,
    "fan_in_fan_out": _FLAG,
    "alpha_pattern": _TABLE,
    "rank_pattern": _TABLE,
    "target_modules": _NAMES,
    "modules_to_save": _NAMES,
    "bias": ("a string", lambda value: isinstance(value, str)),
}
_ENTRY_TYPES = {"alpha_pattern": _NUMBER, "rank_pattern": _COUNT}


def parse_adapter_config(data: bytes, where: str) -> AdapterConfig:
    """Parse an ``adapter_config.json``.

    Raises
    ------
    FormatError
        The object is not JSON, has no ``lora_alpha``, or has values of a wrong type; all are listed.
    PlanError
        Settings ask for another computation than a merge of plain LoRA; all are listed.

    Examples
    --------
    >>> parse_adapter_config(b'{"lora_alpha": 16, "r": 4}', "adapter_config.json").lora_alpha
    16.0
    >>> parse_adapter_config(b'{"lora_alpha": 16, "use_dora": true}', "adapter_config.json")
    Traceback (most recent call last):
    ...
    reshard.errors.PlanError: adapter_config.json: these settings change what the adapters mean and are not supported
      - use_dora: true
    Merge with the tool that made the adapters, or set `lora_scaling` instead of using this file.
    """
    found: Mapping[str, object] = parse_json_object(data, where)
    problems = list(_wrong_types(found))
    if problems:
        raise FormatError("settings of a wrong type", where=where, problems=problems)
    hint = f"Merge with the tool that made the adapters, or set {option('lora_scaling')} instead of using this file."
    what = f"{where}: these settings change what the adapters mean and are not supported"
    raise_all(PlanError, what, list(_unsupported(found)), hint)
    tables = {key: found.get(key) for key in _ENTRY_TYPES}
    alphas, ranks = (tuple(table.items()) if isinstance(table, dict) else () for table in tables.values())
    alpha, rank = found["lora_alpha"], found.get("r")
    assert isinstance(alpha, int | float)
    return AdapterConfig(
        lora_alpha=float(alpha),
        r=rank if isinstance(rank, int) else 0,
        use_rslora=found.get("use_rslora") is True,
        fan_in_fan_out=found.get("fan_in_fan_out") is True,
        alpha_pattern=tuple((key, float(value)) for key, value in alphas),
        rank_pattern=ranks,
    )


def _wrong_types(found: Mapping[str, object]) -> Iterator[str]:
    for key, (expected, fits) in _TYPES.items():
        value = found.get(key, "none" if key == "bias" else None)
        absent = value is None and key not in ("lora_alpha", "bias")
        checks = [] if absent else [(key, value, expected, fits)]
        if key in _ENTRY_TYPES and isinstance(value, dict):
            checks += [(name, entry, *_ENTRY_TYPES[key]) for name, entry in value.items()]
        for name, entry, wanted, is_valid in checks:
            if not is_valid(entry):
                actual = "nothing" if entry is None else f"{json_kind(entry)} {shown(entry)}"
                yield f"{name}: expected {wanted}, found {actual}"


def _unsupported(found: Mapping[str, object]) -> Iterator[str]:
    """Yield settings that are switched on, and neither followed nor for training only."""
    followed = _TYPES.keys() | {"init_lora_weights", "peft_type"}
    for key, value in found.items():
        if key not in _TRAINING_ONLY | followed and value not in (None, False, 0, "") and value != [] and value != {}:
            yield f"{shown(key)[1:-1]}: {_json(value)}"
    if str(found.get("peft_type", "LORA")).upper() != "LORA":
        yield f"peft_type: {_json(found['peft_type'])}"
    init = found.get("init_lora_weights")
    if not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INITS):
        yield f"init_lora_weights: {_json(init)}: it changed the base before training"
    for name in _ENTRY_TYPES:
        table = found.get(name)
        for key in table if isinstance(table, dict) else ():
            if not _PLAIN_KEY.fullmatch(key):
                yield f"{name}: {shown(key)}: a regular expression"


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)


def scalings(
    pairs: Iterable[AdapterPair], scaling: float | None = None, config: AdapterConfig | None = None
) -> dict[str, float]:
    """Return the scaling of each weight's adapter, by the weight's name: one number, or computed from ``config``.

    There is no default: the original's, 1, is right for no adapter whose alpha differs from its rank.

    Raises
    ------
    UsageError
        Neither or both are given.
    PlanError
        Adapters have another rank than the configuration says; all are listed.

    Examples
    --------
    >>> pair = AdapterPair("q.weight", "q.lora_a", "q.lora_b", rank=4)
    >>> scalings([pair], config=AdapterConfig(16, r=4)), scalings([pair], config=AdapterConfig(16, use_rslora=True))
    ({'q.weight': 4.0}, {'q.weight': 8.0})
    """
    if scaling is not None and config is None:
        if not math.isfinite(scaling):
            raise UsageError(f"{option('lora_scaling')}: expected a finite number, found {scaling}")
        return {pair.weight: float(scaling) for pair in pairs}
    if config is None or scaling is not None:
        found = "neither" if config is None else "both"
        hint = "The scaling is lora_alpha divided by the rank, as set in training."
        raise UsageError(f"LoRA scaling: expected a number or an adapter_config.json, found {found}", hint=hint)
    result, problems = {}, []
    for pair in pairs:
        rank = int(_matching(config.rank_pattern, pair, config.r))
        if rank not in (0, pair.rank):
            problems.append(f"{pair.a}: expected {rank}, found {pair.rank}")
        alpha = _matching(config.alpha_pattern, pair, config.lora_alpha)
        result[pair.weight] = alpha / (math.sqrt(pair.rank) if config.use_rslora else pair.rank)
    raise_all(PlanError, "Adapters have another rank than adapter_config.json says.", problems)
    return result


def _matching(patterns: Iterable[tuple[str, float]], pair: AdapterPair, default: float) -> float:
    """Return the value of the first pattern that matches the module, as PEFT looks it up."""
    module = pair.weight.removesuffix(".weight")
    for key, value in patterns:
        bare = key.removeprefix("^")
        if module == bare or (bare == key and module.endswith(f".{bare}")):
            return value
    return default
