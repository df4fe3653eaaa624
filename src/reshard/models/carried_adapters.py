"""Adapters that are converted beside their weights: possible where a family's rules only rename the weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import PlanError, option, raise_all
from ..tensor import Patch, Shape, TensorSpec, plain_patch
from .lora import AdapterPair, find_adapters, is_adapter_name, is_adapter_state
from .pattern import name_key

_PEFT = ("lora_A.weight", "lora_B.weight")
_MINDPET = ("mindpet_delta_lora_a", "mindpet_delta_lora_b")


@dataclass(frozen=True, slots=True)
class UsedWeight:
    """A target tensor that a weight is used in, with its shape, and where; alone, or with parts of others."""

    target: str
    shape: Shape
    patch: Patch
    is_alone: bool


def adapters_among(specs: Mapping[str, TensorSpec]) -> tuple[AdapterPair, ...]:
    """Find the adapters of a checkpoint that are to stay adapters; their optimizer states are not among them.

    Raise PlanError for adapters that do not fit their weights.
    """
    if not any(is_adapter_name(name) and not is_adapter_state(name) for name in specs):
        return ()
    return find_adapters(specs.values(), purpose="converted").pairs


def carried_names(
    pairs: Iterable[AdapterPair],
    made_of: Mapping[str, list[UsedWeight]],
    specs: Mapping[str, TensorSpec],
    direction: str,
    naming: str,
) -> dict[str, str]:
    """Return the new name of every half of an adapter: that of its weight, with the leaf of the target's world.

    ``made_of`` has what the rules make of each weight. Raise PlanError for adapters of weights that are split, joined,
    stacked or permuted: the product of the two halves could follow, the halves cannot.

    Source: MindSpore Transformers 1.5 to 2.1 (``convert_reversed.py``, its mcore networks); peft 0.17.
    """
    leaves = _PEFT if direction == "to_hf" or naming == "mcore" else _MINDPET
    names: dict[str, str] = {}
    stuck: list[str] = []
    for pair in pairs:
        made = made_of.get(pair.weight, [])
        shape = specs[pair.weight].shape
        if len(made) == 1 and made[0].is_alone and made[0].shape == shape and made[0].patch == plain_patch(shape):
            stem = made[0].target.removesuffix(".weight")
            names |= {pair.a: f"{stem}.{leaves[0]}", pair.b: f"{stem}.{leaves[1]}"}
        else:
            stuck.append(pair.weight)
    layers = Counter(map(name_key, stuck))
    raise_all(
        PlanError,
        f"{len(stuck)} adapters cannot be converted beside their weights, which are split, joined or permuted",
        [f"{key}: {count} adapters" for key, count in layers.items()],
        f"Merge them first, in the same conversion: {option('merge_lora')}, with {option('lora_scaling')} "
        "(alpha / rank).",
    )
    return names
