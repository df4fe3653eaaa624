"""Names and small objects of a MindSpore Transformers checkpoint folder: which iteration, which objects, which step.

::

    latest_checkpointed_iteration.txt                   the newest iteration, written last
    iteration_00000007/model-0000000-0000004.safetensors
    iteration_00000007/opt-0000000-0000004.safetensors  optimizer states, when they are kept
    iteration_00000007/common.json                      training state: epoch, step, loss scale, ...
    iteration_00000007/metadata.json                    which object holds what: ``iteration_metadata``

Source: MindFormers 1.7 to 2.1, ``mindformers/checkpoint``: ``utils.py`` (names), ``checkpoint.py`` (the rest).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

from ...errors import FormatError
from ..findings import Findings
from ..strict_json import json_kind, parse_json_object, shown
from ..weight_index import relative_key_problem

TRACKER_NAME = "latest_checkpointed_iteration.txt"
COMMON_NAME = "common.json"
METADATA_NAME = "metadata.json"

ObjectKind = Literal["model", "opt"]
CommonValue = int | float | str | bool | None

_COUNTS = ("epoch_num", "step_num", "global_step", "global_batch_size", "consumed_samples", "ckpt_status")

COMMON_KEYS = ("epoch_num", "step_num", "global_step", "loss_scale", *_COUNTS[3:])
"""The keys of ``common.json``, in its order; a ``ckpt_status`` of 0 is healthy. Source: MindFormers ``CommonInfo``."""

_LARGEST_NUMBER = 10**18 - 1
_TRACKER = re.compile(rb"[ \t\r\n]*(0|[1-9][0-9]{0,17})[ \t\r\n]*")
_LONGEST_TRACKER_BYTES = 256
_ITERATION = re.compile(r"iteration_([0-9]{8,18})")
_OBJECT = re.compile(r"(?:(.+)-)?(model|opt)-([0-9]{7,18})-([0-9]{7,18})\.safetensors", re.DOTALL)

# Names of optimizer states: the part before a weight's own name, and numbers that belong to no weight.
# Source: mindspore 2.10.0 ``nn/optim``, MindFormers ``core/optim``; ``accu_grads`` is gradient accumulation's.
_STATE_HEADS = {"accu_grads", "accum", "adam_m", "adam_v", "exp_avg", "exp_avg_sq", "moment1", "moment2", "moments"}
_STATE_NAMES = {"beta1_power", "beta2_power", "global_step", "learning_rate", "momentum", "weight_decay"}
# MindFormers' training loop keeps these beside them.
_STATE_NAMES |= {"current_iterator_step", "last_overflow_iterator_step", "loss_scale", "scale_sense"}


@dataclass(frozen=True, slots=True)
class ObjectName:
    """The parts of the name of an object of weights (``"model"``) or optimizer states (``"opt"``).

    ``number`` of ``count`` objects of the kind, from 0, is the rank with redundancy; without redundancy, ranks
    that hold nothing are not counted. ``prefix`` is the user's own start of the name.

    Examples
    --------
    >>> str(ObjectName("opt", 3, 16, "CKP"))
    'CKP-opt-0000003-0000016.safetensors'
    """

    kind: ObjectKind
    number: int
    count: int
    prefix: str = ""

    def __post_init__(self) -> None:
        in_range = 0 <= self.number < self.count <= _LARGEST_NUMBER
        if self.kind not in ("model", "opt") or not in_range or _prefix_problem(self.prefix):
            raise FormatError(
                "not an object name",
                expected="model or opt, a number below its count, and a prefix that is a plain name",
                found=shown((self.kind, self.number, self.count, self.prefix)),
            )

    def __str__(self) -> str:
        start = f"{self.prefix}-" if self.prefix else ""
        return f"{start}{self.kind}-{self.number:07d}-{self.count:07d}.safetensors"


def _prefix_problem(prefix: str) -> str:
    return "a path" if "/" in prefix else relative_key_problem(f"{prefix}-")


def parse_object_name(name: str) -> ObjectName | None:
    """Parse the name of an object of weights, relative to the iteration's folder; None for any other name.

    Examples
    --------
    >>> parse_object_name("CKP-model-0000001-0000004.safetensors")
    ObjectName(kind='model', number=1, count=4, prefix='CKP')
    >>> parse_object_name("model-0000004-0000004.safetensors"), parse_object_name("model-1-4.safetensors")
    (None, None)
    """
    match = _OBJECT.fullmatch(name)
    if not match or _prefix_problem(match[1] or ""):
        return None
    number, count = int(match[3]), int(match[4])
    if not number < count:
        return None
    parsed = ObjectName("opt" if match[2] == "opt" else "model", number, count, match[1] or "")
    return parsed if str(parsed) == name else None  # a number with too many zeros


def iteration_name(iteration: int) -> str:
    """Name the folder of an iteration; raise FormatError for a number that is negative or absurd."""
    return f"iteration_{_checked_iteration(iteration):08d}"


def parse_iteration_name(name: str) -> int | None:
    """Read the iteration from its folder's name; None for any other name.

    Examples
    --------
    >>> parse_iteration_name("iteration_00000007"), parse_iteration_name("iteration_7")
    (7, None)
    """
    match = _ITERATION.fullmatch(name)
    if not match:
        return None
    iteration = int(match[1])
    return iteration if iteration_name(iteration) == name else None


def parse_tracker(data: bytes, where: str) -> int:
    """Read the newest iteration from the tracker, which must be one integer, with or without white space around it."""
    match = _TRACKER.fullmatch(data) if len(data) <= _LONGEST_TRACKER_BYTES else None
    if not match:
        raise FormatError(
            "no iteration",
            where=where,
            expected="one integer, such as 7",
            found=shown(data) if data else "nothing",
            hint="Name the iteration's own folder as the source instead.",
        )
    return int(match[1])


def encode_tracker(iteration: int) -> bytes:
    """Write the tracker; raise FormatError for a number that is negative or absurd."""
    return str(_checked_iteration(iteration)).encode("ascii")


def _checked_iteration(iteration: int) -> int:
    if not 0 <= iteration <= _LARGEST_NUMBER:
        raise FormatError("not an iteration", expected=f"0 to {_LARGEST_NUMBER}", found=shown(iteration))
    return iteration


def parse_common(data: bytes, where: str) -> dict[str, CommonValue]:
    """Read the training state from ``common.json``: all of ``COMMON_KEYS``, None if unknown, then its other keys.

    Raise FormatError for anything but strict JSON, invalid counts, and values that are no scalars; all are listed.

    Examples
    --------
    >>> common = parse_common(b'{"global_step": 7, "loss_scale": null}', "common.json")
    >>> common["global_step"], common["loss_scale"], common["epoch_num"]
    (7, None, None)
    """
    return _checked_common(parse_json_object(data, where), where)


def encode_common(values: Mapping[str, CommonValue]) -> bytes:
    """Write ``common.json`` with four spaces and no newline at the end, as MindFormers does.

    ``values`` may lack some of ``COMMON_KEYS`` and have other keys; FormatError lists those that
    ``parse_common`` would refuse.

    Examples
    --------
    >>> print(encode_common({"global_step": 7}).decode()[:45])
    {
        "epoch_num": null,
        "step_num": null
    """
    common = _checked_common(values, COMMON_NAME)
    encoded = json.dumps(common, indent=4).encode("ascii")
    parse_json_object(encoded, COMMON_NAME)  # refuses text that UTF-8 cannot encode
    return encoded


def _checked_common(values: Mapping[str, object], where: str) -> dict[str, CommonValue]:
    common: dict[str, CommonValue] = dict.fromkeys(COMMON_KEYS)
    findings = Findings()
    for key, value in values.items():
        if expected := _common_problem(key, value):
            findings.add(shown(key), expected, f"{shown(value)} ({json_kind(value)})")
        elif value is None or isinstance(value, int | float | str):
            common[key] = value
    findings.raise_any("unusable values", where=where, expected="one number or string a key")
    return common


def _common_problem(key: str, value: object) -> str:
    """Return what the value should have been; empty when it is right."""
    if value is None:
        return ""
    if key in _COUNTS:
        in_range = type(value) is int and 0 <= value <= _LARGEST_NUMBER
        return "" if in_range else f"an integer from 0 to {_LARGEST_NUMBER}, or null"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if key == "loss_scale":
        return "" if type(value) in (int, float) else "a number or null"
    return "" if isinstance(value, int | float | str) else "one number or string"


def is_optimizer_state(name: str, all_names: Container[str]) -> bool:
    """Return whether a tensor belongs in the ``opt-`` objects instead of the ``model-`` ones.

    MindFormers asks the network: every tensor that is not one of its parameters belongs to the optimizer. Without
    the network, a state is recognised by its name, which is one word before the name of its weight (``adam_m.``,
    ``moments.``), or by being one of the optimizer's own numbers (``global_step``).

    Source: MindFormers 2.1 ``save_checkpoint`` (``model_keys``).

    Examples
    --------
    >>> names = {"embed.weight", "adam_m.embed.weight", "muon.embed.weight", "global_step"}
    >>> sorted(name for name in names if is_optimizer_state(name, names))
    ['adam_m.embed.weight', 'global_step', 'muon.embed.weight']
    """
    head, _, weight = name.partition(".")
    return name in _STATE_NAMES or (bool(weight) and (head in _STATE_HEADS or weight in all_names))
