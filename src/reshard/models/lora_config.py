"""adapter_config.json: what an adapter's product is multiplied by.

PEFT's file has some forty settings. Those that steer training only are passed over. Those that change what
a merge must compute are followed or refused, and so is whatever this version does not know and is
switched on: a setting of a later PEFT may be one of these.

Source: peft 0.17, tuners/lora/config.py and tuners/lora/layer.py (update_layer).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..errors import FormatError, PlanError, UsageError, raise_all
from ..formats.strict_json import json_kind, parse_json_object, shown
from .lora import AdapterPair

_T = TypeVar("_T")

# fmt: off
_TRAINING_ONLY = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_config", "megatron_core",
    "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}
_FOLLOWED = {
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "modules_to_save", "peft_type", "r",
    "rank_pattern", "target_modules", "use_rslora",
}
# fmt: on
# Of the ways to initialise: those after which the base is what it was. The others (pissa, olora, corda, loftq)
# move a part of the base into the adapters, which then belong to another base than the one on the disk.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_PLAIN_KEY = re.compile(r"\^?[\w.\-]+")
_HINT = "Merge with the tool that made the adapters, or give the scaling instead of this file."


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What a merge needs of an adapter_config.json.

    Parameters
    ----------
    lora_alpha
        Numerator of the scaling.
    r
        Rank; 0 where the file does not say.
    use_rslora
        Whether the denominator is the rank's square root.
    fan_in_fan_out
        Whether weights are ``[in, out]``.
    alpha_pattern, rank_pattern
        Other values for modules whose name is, or ends in, the first of each pair.
    target_modules, modules_to_save, bias
        What was trained; for messages.
    """

    lora_alpha: float
    r: int = 0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    target_modules: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"


def parse_adapter_config(data: bytes, where: str) -> AdapterConfig:
    """Read an adapter_config.json.

    Parameters
    ----------
    data
        The whole object.
    where
        Its name, for messages.

    Raises
    ------
    FormatError
        Not JSON, no ``lora_alpha``, or values of a wrong kind; it lists them all.
    PlanError
        Settings that ask for another computation than a merge of plain LoRA; it lists them all.

    Examples
    --------
    >>> parse_adapter_config(b'{"lora_alpha": 16, "r": 4}', "adapter_config.json").lora_alpha
    16.0
    >>> parse_adapter_config(b'{"lora_alpha": 16, "use_dora": true}', "adapter_config.json")
    Traceback (most recent call last):
    ...
    reshard.errors.PlanError: adapter_config.json: settings that change what the adapters mean, and are not supported: 1
      - use_dora: true
    Merge with the tool that made the adapters, or give the scaling instead of this file.
    """
    found = parse_json_object(data, where)
    read = _Reader(found, [])
    config = AdapterConfig(
        lora_alpha=read.number("lora_alpha", None),
        r=read.count("r"),
        use_rslora=read.flag("use_rslora"),
        fan_in_fan_out=read.flag("fan_in_fan_out"),
        alpha_pattern=tuple((key, read.as_number(key, value)) for key, value in read.table("alpha_pattern")),
        rank_pattern=tuple((key, read.as_count(key, value)) for key, value in read.table("rank_pattern")),
        target_modules=read.names("target_modules"),
        modules_to_save=read.names("modules_to_save"),
        bias=read.text("bias", "none"),
    )
    if read.problems:
        raise FormatError(
            "settings of a wrong kind", where=where, expected="as listed", found="others", problems=read.problems
        )
    unsupported = _unsupported(found)
    what = f"{where}: settings that change what the adapters mean, and are not supported: {len(unsupported)}"
    raise_all(PlanError, what, unsupported, _HINT)
    return config


def scalings(
    pairs: Iterable[AdapterPair], scaling: float | None = None, config: AdapterConfig | None = None
) -> dict[str, float]:
    """What each weight's product is multiplied by, under the weight's name.

    Parameters
    ----------
    pairs
        As found in the checkpoint.
    scaling
        One number for all of them.
    config
        Where to find it otherwise. There is no default: the original's, 1, is right for no
        adapter whose alpha differs from its rank.

    Raises
    ------
    UsageError
        Neither, or both.
    PlanError
        The file says another rank than the tensors have; it lists them all.

    Examples
    --------
    >>> pair = AdapterPair("q.weight", "q.lora_a", "q.lora_b", rank=4)
    >>> scalings([pair], config=AdapterConfig(16, r=4)), scalings([pair], config=AdapterConfig(16, use_rslora=True))
    ({'q.weight': 4.0}, {'q.weight': 8.0})
    """
    if (scaling is None) == (config is None):
        raise UsageError(
            "the scaling of the adapters: expected a number, or an adapter_config.json, found "
            + ("neither" if scaling is None else "both"),
            hint="It is lora_alpha divided by the rank, as set in training.",
        )
    if scaling is not None:
        if not math.isfinite(scaling):
            raise UsageError(f"the scaling of the adapters: expected a finite number, found {scaling}")
        return {pair.weight: float(scaling) for pair in pairs}
    assert config is not None
    pairs = list(pairs)
    raise_all(PlanError, "adapters of another rank than their configuration says", _other_ranks(pairs, config))
    return {pair.weight: _scaling(pair, config) for pair in pairs}


def _scaling(pair: AdapterPair, config: AdapterConfig) -> float:
    alpha = _matching(config.alpha_pattern, pair, config.lora_alpha)
    return alpha / (math.sqrt(pair.rank) if config.use_rslora else pair.rank)


def _other_ranks(pairs: Iterable[AdapterPair], config: AdapterConfig) -> list[str]:
    expected = ((pair, int(_matching(config.rank_pattern, pair, config.r))) for pair in pairs)
    return [f"{pair.a}: expected {rank}, found {pair.rank}" for pair, rank in expected if rank not in (0, pair.rank)]


def _matching(patterns: Iterable[tuple[str, float]], pair: AdapterPair, otherwise: float) -> float:
    """The first pattern's value that fits the module, as PEFT looks it up."""
    module = pair.weight.removesuffix(".weight")
    for key, value in patterns:
        bare = key.removeprefix("^")
        if module == bare or (bare == key and module.endswith(f".{bare}")):
            return value
    return otherwise


def _unsupported(found: Mapping[str, object]) -> list[str]:
    """What is switched on and is neither ours nor for training only."""
    known = _TRAINING_ONLY | _FOLLOWED
    others = [(key, value) for key, value in found.items() if key not in known and _is_on(value)]
    problems = [f"{shown(key)[1:-1]}: {_json(value)}" for key, value in others]
    if str(found.get("peft_type", "LORA")).upper() != "LORA":
        problems.append(f"peft_type: {_json(found['peft_type'])}")
    start = found.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        problems.append(f"init_lora_weights: {_json(start)}: the base was changed when training began")
    for name in ("alpha_pattern", "rank_pattern"):
        table = found.get(name)
        keys = table if isinstance(table, dict) else {}
        problems += [f"{name}: {shown(key)}: a regular expression" for key in keys if not _PLAIN_KEY.fullmatch(key)]
    return problems


def _is_on(value: object) -> bool:
    return value not in (None, False, 0, "") and value != [] and value != {}


def _json(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else shown(value)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes settings out of a parsed object, and notes those of a wrong kind."""

    found: Mapping[str, object]
    problems: list[str]

    def number(self, key: str, otherwise: float | None) -> float:
        value = self.found.get(key, otherwise)
        return self.as_number(key, value)

    def as_number(self, key: str, value: object) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e30:
            return float(value)
        return self._wrong(key, "a number", value, 0.0)

    def count(self, key: str) -> int:
        value = self.found.get(key)
        return 0 if value is None else self.as_count(key, value)

    def as_count(self, key: str, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31:
            return value
        return self._wrong(key, "a positive integer", value, 0)

    def flag(self, key: str) -> bool:
        value = self.found.get(key)
        if isinstance(value, bool) or value is None:
            return bool(value)
        return self._wrong(key, "true or false", value, False)

    def text(self, key: str, otherwise: str) -> str:
        value = self.found.get(key, otherwise)
        return value if isinstance(value, str) else self._wrong(key, "a string", value, otherwise)

    def table(self, key: str) -> tuple[tuple[str, object], ...]:
        value = self.found.get(key)
        if isinstance(value, dict):
            return tuple(value.items())
        return () if value is None else self._wrong(key, "an object", value, ())

    def names(self, key: str) -> tuple[str, ...]:
        value = self.found.get(key)
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return tuple(value)
        return () if value is None else self._wrong(key, "a string or an array of strings", value, ())

    def _wrong(self, key: str, expected: str, value: object, instead: _T) -> _T:
        found = "nothing" if value is None else f"{json_kind(value)} {shown(value)}"
        self.problems.append(f"{key}: expected {expected}, found {found}")
        return instead
