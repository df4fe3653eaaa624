"""Names of what training keeps in a checkpoint beside the weights of its network, of any family."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Any, cast

from ..formats.strict_yaml import parse_yaml
from ..tensor import Shape
from .family import Drop
from .pattern import parse_name

_FILE = Path(__file__).with_name("training_state.yaml")
_OUTSIDE = ("optimizer", "gradients", "counters", "statistics")


@cache
def _rows() -> tuple[dict[str, Any], ...]:
    # The file is part of the package: its values are taken to have the right types.
    return tuple(cast("list[dict[str, Any]]", parse_yaml(_FILE.read_bytes(), _FILE.name)))


@cache
def training_state_drops() -> tuple[Drop, ...]:
    """Read what becomes of the training state that a checkpoint of any family may hold."""
    return tuple(Drop("ms", tuple(parse_name(glob, _FILE.name) for glob in row["ms"]), row["why"]) for row in _rows())


@cache
def _pattern(*kinds: str) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for row in _rows() if row["kind"] in kinds for glob in row["ms"]))


@cache
def _state() -> re.Pattern[str]:
    globs = [glob for row in _rows() if row["kind"] in ("optimizer", "gradients") for glob in row["ms"]]
    heads = "|".join(re.escape(glob.removesuffix(".*")).replace(r"\*", "[^.]*") for glob in globs)
    return re.compile(rf"(?:{heads})\.(.+)", re.DOTALL)


def weight_of(name: str) -> str:
    """Return the name of the weight that an optimizer state or a gradient belongs to; other names as they are.

    Examples
    --------
    >>> weight_of("adam_m.lm_head.weight"), weight_of("lm_head.weight")
    ('lm_head.weight', 'lm_head.weight')
    """
    state = _state().fullmatch(name)
    return state[1] if state else name


def is_counter(name: str, shape: Shape = ()) -> bool:
    """Whether a tensor counts training: no layout cuts it, and MindSpore keeps it among the hyper-parameters.

    It has one axis at most, as learning rates of all steps have: a matrix that is called momentum is no counter.

    Examples
    --------
    >>> is_counter("global_step", (1,)), is_counter("model.global_step"), is_counter("momentum", (64, 64))
    (True, False, False)
    """
    return len(shape) < 2 and _pattern("counters").match(name) is not None


def is_of_network(name: str) -> bool:
    """Whether MindSpore Transformers' ``save_network_params`` keeps a tensor: the network has it, not its training.

    Examples
    --------
    >>> [is_of_network(name) for name in ("lm_head.weight", "adam_m.lm_head.weight", "loss_scale")]
    [True, False, False]

    Source: MindSpore Transformers ``CheckpointMonitor``.
    """
    return _pattern(*_OUTSIDE).match(name) is None
