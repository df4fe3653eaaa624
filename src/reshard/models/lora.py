"""Low-rank adapters: which tensors make one, and which weight it changes.

An adapter is a pair, A ``[rank, in]`` and B ``[out, rank]``. Merging it makes W + (B·A)·scaling of its
weight ``X.weight`` ``[out, in]``. The names of its two tensors are one of::

    X.mindpet_delta_lora_a   X.mindpet_delta_lora_b    MindFormers up to 1.8
    X.tk_delta_lora_a        X.tk_delta_lora_b         MindFormers before that
    X.lora_A.weight          X.lora_B.weight           MindFormers on mcore; PEFT
    X.lora_A.<name>.weight   X.lora_B.<name>.weight    PEFT, a model saved with its adapters
    X.lora_a                 X.lora_b                  MindFormers 2.1

PEFT puts ``base_model.model.`` before X. Unlike the original tools, these are errors here: half a pair, an
adapter without a weight, and names that resemble an adapter's but are not (DoRA's magnitudes, adapters of
embeddings or of experts).

Source: mindformers/tools/transform_ckpt_lora.py (1.6), transform_safetensors_lora.py (2.1); peft 0.17.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import PlanError, raise_all
from ..tensor import Box, DType, TensorSpec
from .training_names import weight_of

_LEAF = re.compile(
    r"(?P<stem>[^\n]+)\.(?:(?P<old>mindpet_delta_|tk_delta_)?lora_(?P<low>[ab])"
    r"|lora_(?P<up>[AB])(?:\.(?P<name>[^.\n]+))?\.weight)"
)
_RESEMBLES_ADAPTER = re.compile(r"(?:^|[._])lora_", re.IGNORECASE)
_PEFT_PREFIX = "base_model.model."
_FLOATS = (DType.F32, DType.BF16, DType.F16)


@dataclass(frozen=True, slots=True)
class AdapterPair:
    """One adapter and the weight that it changes, by name; its rank is the length of the axis that A and B share."""

    weight: str
    a: str
    b: str
    rank: int


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a merge does with the tensors of a model and its adapters.

    ``pairs`` are in the order of their weights' names. ``replaced`` are pairs (weight, adapter's tensor): tensors
    saved whole with the adapters (PEFT's ``modules_to_save``, biases), which take the weight's place. ``removed`` are
    names that are in no output: the adapters and their optimizer states.
    """

    pairs: tuple[AdapterPair, ...]
    replaced: tuple[tuple[str, str], ...]
    removed: tuple[str, ...]


def find_adapters(
    specs: Iterable[TensorSpec],
    adapter_specs: Iterable[TensorSpec] = (),
    *,
    transposed: bool = False,
    purpose: str = "merged",
) -> Adapters:
    """Pair adapters with their weights, and check every shape; errors name the purpose.

    Adapters are among the tensors of the model, or were saved apart from it. Weights are ``[in, out]`` if
    ``transposed`` (PEFT's ``fan_in_fan_out``); that is never guessed: a square weight would fit both ways.

    Raises
    ------
    PlanError
        There are no adapters, or tensors do not fit together; all problems are listed.

    Examples
    --------
    >>> shapes = {"q.weight": (6, 4), "q.lora_a": (2, 4), "q.lora_b": (6, 2), "adam_m.q.lora_a": (2, 4)}
    >>> found = find_adapters(TensorSpec(name, DType.F32, shape) for name, shape in shapes.items())
    >>> found.pairs
    (AdapterPair(weight='q.weight', a='q.lora_a', b='q.lora_b', rank=2),)
    >>> found.removed
    ('adam_m.q.lora_a', 'q.lora_a', 'q.lora_b')
    """
    model, apart = ({spec.name: spec for spec in group} for group in (specs, adapter_specs))
    problems = [f"{name}: both in the model and among its adapters" for name in sorted(model.keys() & apart.keys())]
    weights = {name: spec for name, spec in model.items() if not is_adapter_name(name)}
    inside = {name: spec for name, spec in model.items() if name not in weights}
    leaves = {name: spec for name, spec in (inside | apart).items() if not is_adapter_state(name)}
    replaced = _replaced(weights, {name: spec for name, spec in apart.items() if name in leaves}, problems)
    pairs = _pairs(weights, {name: spec for name, spec in leaves.items() if is_adapter_name(name)}, problems)
    problems += [line for pair in pairs for line in _misfits(pair, weights, leaves, transposed)]
    users: dict[str, list[str]] = {weight: [name] for weight, name in replaced}
    for pair in pairs:
        users.setdefault(pair.weight, []).append(pair.a)
    # Two adapters of one weight could be added or could replace each other: nothing says which.
    problems += [f"{weight}: changed by {', '.join(names)}" for weight, names in users.items() if len(names) > 1]
    if not pairs and not problems:
        problems = ["no adapters: expected names such as X.mindpet_delta_lora_a or X.lora_A.weight"]
    hint = "An adapter has A [rank, in] and B [out, rank] for a weight X.weight [out, in]. Nothing was converted."
    raise_all(PlanError, f"The adapters cannot be {purpose}.", problems, hint)
    states = {name for name in apart if is_adapter_state(name)}
    removed = set(inside) | states | {name for pair in pairs for name in (pair.a, pair.b)}
    return Adapters(tuple(pairs), tuple(replaced), tuple(sorted(removed)))


def is_adapter_name(name: str) -> bool:
    """Whether a name is an adapter's, or resembles one.

    Examples
    --------
    >>> is_adapter_name("adam_m.q.tk_delta_lora_a"), is_adapter_name("q.lora_magnitude_vector")
    (True, True)
    >>> is_adapter_name("q.weight")
    False
    """
    return _RESEMBLES_ADAPTER.search(name) is not None


def is_adapter_state(name: str) -> bool:
    """Whether a name is that of an optimizer state or of a gradient, be it an adapter's."""
    return weight_of(name) != name


def adapter_boxes(box: Box, rank: int, *, transposed: bool = False) -> tuple[Box, Box]:
    """Return the boxes of A ``[rank, in]`` and B ``[out, rank]`` that a box of their weight needs.

    The weight is ``[out, in]``, or ``[in, out]`` if transposed.

    Examples
    --------
    >>> adapter_boxes(Box((2, 0), (4, 8)), 16)
    (Box(start=(0, 0), stop=(16, 8)), Box(start=(2, 0), stop=(4, 16)))
    """
    (r0, c0), (r1, c1) = (box.start[::-1], box.stop[::-1]) if transposed else (box.start, box.stop)
    return Box((0, c0), (rank, c1)), Box((r0, 0), (r1, rank))


def working_dtype(a: DType, b: DType) -> DType:
    """Return the dtype in which MindFormers 1.5 to 1.8 multiply: F16 if both are, else F32.

    Adapters in BF16 fail there on a CPU; the tool of 2.1 multiplies everything in F32.

    Examples
    --------
    >>> working_dtype(DType.F16, DType.F16), working_dtype(DType.BF16, DType.BF16)
    (<DType.F16: 'F16'>, <DType.F32: 'F32'>)
    """
    return DType.F16 if a == b == DType.F16 else DType.F32


def _pairs(
    weights: Mapping[str, TensorSpec], leaves: Mapping[str, TensorSpec], problems: list[str]
) -> list[AdapterPair]:
    """Match the halves, whose names are equal but for the letter."""
    halves: dict[tuple[str, ...], dict[str, str]] = {}
    for name in sorted(leaves):
        leaf = _LEAF.fullmatch(name)
        if leaf is None:
            problems.append(f"{name}: resembles an adapter of a kind that cannot be merged")
            continue
        stem, old, low, up, given = leaf.group("stem", "old", "low", "up", "name")
        key = (stem, old or "", given or "", "upper" if up else "lower")
        halves.setdefault(key, {})[low or up.lower()] = name
    pairs = []
    for (stem, *_), half in halves.items():
        bare = f"{stem.removeprefix(_PEFT_PREFIX)}.weight"
        weight = next((name for name in (f"{stem}.weight", bare) if name in weights), None)
        if len(half) == 1:
            (present,) = half.values()
            problems.append(f"{present}: its {'B' if 'a' in half else 'A'} is missing")
        elif weight is None:
            problems.append(f"{half['a']}: the model has no {bare} for it to change")
        else:
            pairs.append(AdapterPair(weight, half["a"], half["b"], (*leaves[half["a"]].shape, 0)[0]))
    return sorted(pairs, key=lambda pair: pair.weight)


def _misfits(
    pair: AdapterPair, weights: Mapping[str, TensorSpec], leaves: Mapping[str, TensorSpec], transposed: bool
) -> list[str]:
    weight, a, b = weights[pair.weight], leaves[pair.a], leaves[pair.b]
    problems = [
        f"{spec.name}: {spec.dtype}: expected {', '.join(_FLOATS)}; convert FP8 to one of them first"
        for spec in (weight, a, b)
        if spec.dtype not in _FLOATS
    ]
    shapes = f"A {list(a.shape)}, B {list(b.shape)}, weight {list(weight.shape)}"
    if {len(spec.shape) for spec in (weight, a, b)} != {2} or a.shape[0] != b.shape[1] or not pair.rank:
        return [*problems, f"{pair.weight}: {shapes}: expected A [rank, in] and B [out, rank]"]
    product = (b.shape[0], a.shape[1])
    if weight.shape != (product[::-1] if transposed else product):
        fits = weight.shape == (product if transposed else product[::-1])
        advice = f" (fits if fan_in_fan_out is {str(not transposed).lower()})" if fits else ""
        problems.append(f"{pair.weight}: {shapes}: B·A does not have the weight's shape{advice}")
    return problems


def _replaced(
    weights: Mapping[str, TensorSpec], apart: Mapping[str, TensorSpec], problems: list[str]
) -> list[tuple[str, str]]:
    """Find the weight that each tensor saved whole with the adapters replaces."""
    found = []
    for name in sorted(name for name in apart if not is_adapter_name(name)):
        weight = name.removeprefix(_PEFT_PREFIX)
        if weight not in weights:
            problems.append(f"{name}: saved with the adapters, but the model has no {weight}")
        elif (weights[weight].shape, weights[weight].dtype) != (apart[name].shape, apart[name].dtype):
            sides = [f"{spec.dtype} {list(spec.shape)}" for spec in (weights[weight], apart[name])]
            problems.append(f"{name}: would replace {weight}: expected {sides[0]}, found {sides[1]}")
        else:
            found.append((weight, name))
    return found
