"""Low-rank adapters: which tensors make one, and which weight it belongs to.

An adapter is a pair, A ``[rank, in]`` and B ``[out, rank]``; merging it makes W + (B·A)·scaling of its
weight ``X.weight`` ``[out, in]``. Its two tensors are called one of::

    X.mindpet_delta_lora_a   X.mindpet_delta_lora_b    MindFormers up to 1.8
    X.tk_delta_lora_a        X.tk_delta_lora_b         MindFormers before that
    X.lora_A.weight          X.lora_B.weight           MindFormers on mcore; PEFT
    X.lora_A.<name>.weight   X.lora_B.<name>.weight    PEFT, a model saved with its adapters
    X.lora_a                 X.lora_b                  MindFormers 2.1

PEFT puts ``base_model.model.`` before X. Where the original tools forgive, here is an error: half a pair, an
adapter of no weight, and names that look like an adapter's and are none (DoRA's magnitudes, adapters of
embeddings or of experts).

Source: mindformers/tools/transform_ckpt_lora.py (1.6), transform_safetensors_lora.py (2.1); peft 0.17.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import PlanError, raise_all
from ..tensor import Box, DType, TensorSpec

_LEAF = re.compile(
    r"(?P<stem>[^\n]+)\.(?:(?P<old>mindpet_delta_|tk_delta_)?lora_(?P<low>[ab])"
    r"|lora_(?P<up>[AB])(?:\.(?P<name>[^.\n]+))?\.weight)"
)
_LOOKS_LIKE_ONE = re.compile(r"(?:^|[._])lora_", re.IGNORECASE)
_STATES = ("adam_m.", "adam_v.", "accu_grads.")
_PEFT_PREFIX = "base_model.model."
_FLOATS = (DType.F32, DType.BF16, DType.F16)
_HINT = "Merging needs A [rank, in] and B [out, rank] for a weight X.weight [out, in]; nothing was converted."


@dataclass(frozen=True, slots=True)
class AdapterPair:
    """One adapter and the weight that it changes.

    Parameters
    ----------
    weight, a, b
        Names of the tensors.
    rank
        Length of the axis that A and B share.
    """

    weight: str
    a: str
    b: str
    rank: int


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a merge does with the tensors it is given.

    Parameters
    ----------
    pairs
        In the order of their weights' names.
    replaced
        Pairs (weight, adapter's tensor): tensors that came whole with the adapters, as PEFT saves what it
        trained whole (``modules_to_save``, biases), and that take the weight's place.
    removed
        Names that are in no output: the adapters, and the optimizer's states of them.
    """

    pairs: tuple[AdapterPair, ...]
    replaced: tuple[tuple[str, str], ...]
    removed: tuple[str, ...]


def find_adapters(
    specs: Iterable[TensorSpec], adapter_specs: Iterable[TensorSpec] = (), *, transposed: bool = False
) -> Adapters:
    """Pair adapters with their weights, and check every shape.

    Parameters
    ----------
    specs
        Tensors of the model; with their adapters, if it was saved so.
    adapter_specs
        Tensors of adapters that were saved alone, onto this model.
    transposed
        Whether the weights are ``[in, out]`` (PEFT's ``fan_in_fan_out``). Never guessed: a square weight does not tell.

    Raises
    ------
    PlanError
        No adapters, or tensors that do not fit together; it lists them all.

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
    twice = sorted(model.keys() & apart.keys())
    problems = [f"{name}: is in the model and among its adapters" for name in twice]
    weights = {name: spec for name, spec in model.items() if not is_adapter_name(name)}
    inside = {name: spec for name, spec in model.items() if name not in weights}
    leaves = {name: spec for name, spec in (inside | apart).items() if not name.startswith(_STATES)}
    replaced = _replaced(weights, {name: spec for name, spec in apart.items() if name in leaves}, problems)
    pairs = _pairs(weights, {name: spec for name, spec in leaves.items() if is_adapter_name(name)}, problems)
    problems += [line for pair in pairs for line in _misfits(pair, weights, leaves, transposed)]
    problems += _shared(pairs, replaced)
    if not pairs and not problems:
        problems = ["no adapters: expected names such as X.mindpet_delta_lora_a or X.lora_A.weight"]
    raise_all(PlanError, f"adapters that cannot be merged: {len(problems)}", problems, _HINT)
    states = {name for name in apart if name.startswith(_STATES)}
    removed = set(inside) | states | {name for pair in pairs for name in (pair.a, pair.b)}
    return Adapters(tuple(pairs), tuple(replaced), tuple(sorted(removed)))


def is_adapter_name(name: str) -> bool:
    """Whether a name is, or looks like, an adapter's.

    Examples
    --------
    >>> is_adapter_name("adam_m.q.tk_delta_lora_a"), is_adapter_name("q.lora_magnitude_vector")
    (True, True)
    >>> is_adapter_name("q.weight")
    False
    """
    return _LOOKS_LIKE_ONE.search(name) is not None


def adapter_boxes(box: Box, rank: int, *, transposed: bool = False) -> tuple[Box, Box]:
    """The boxes of A ``[rank, in]`` and B ``[out, rank]`` that a box of their weight needs.

    Parameters
    ----------
    box
        Of the weight ``[out, in]``, or ``[in, out]`` if it is stored transposed.

    Examples
    --------
    >>> adapter_boxes(Box((2, 0), (4, 8)), 16)
    (Box(start=(0, 0), stop=(16, 8)), Box(start=(2, 0), stop=(4, 16)))
    """
    (r0, c0), (r1, c1) = (box.start[::-1], box.stop[::-1]) if transposed else (box.start, box.stop)
    return Box((0, c0), (rank, c1)), Box((r0, 0), (r1, rank))


def working_dtype(a: DType, b: DType) -> DType:
    """The type in which MindFormers 1.5 to 1.8 multiply: F16 where both are, F32 for everything else.

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
    """Bring the halves together; a half is known by what its name is without the letter."""
    halves: dict[tuple[str, ...], dict[str, str]] = {}
    for name in sorted(leaves):
        leaf = _LEAF.fullmatch(name)
        if leaf is None:
            problems.append(f"{name}: looks like part of an adapter of a kind that cannot be merged")
            continue
        stem, old, low, up, given = leaf.group("stem", "old", "low", "up", "name")
        key = (stem, old or "", given or "", "upper" if up else "lower")
        halves.setdefault(key, {})[low or up.lower()] = name
    pairs = []
    for (stem, *_), half in halves.items():
        weight = _weight_of(stem, weights)
        if len(half) == 1:
            (present,) = half.values()
            problems.append(f"{present}: its {'B' if 'a' in half else 'A'} is missing")
        elif weight is None:
            problems.append(f"{half['a']}: there is no {stem.removeprefix(_PEFT_PREFIX)}.weight for it to change")
        else:
            pairs.append(AdapterPair(weight, half["a"], half["b"], (*leaves[half["a"]].shape, 0)[0]))
    return sorted(pairs, key=lambda pair: pair.weight)


def _weight_of(stem: str, weights: Mapping[str, TensorSpec]) -> str | None:
    names = (f"{stem}.weight", f"{stem.removeprefix(_PEFT_PREFIX)}.weight")
    return next((name for name in names if name in weights), None)


def _misfits(
    pair: AdapterPair, weights: Mapping[str, TensorSpec], leaves: Mapping[str, TensorSpec], transposed: bool
) -> list[str]:
    weight, a, b = weights[pair.weight], leaves[pair.a], leaves[pair.b]
    problems = [
        f"{spec.name}: {spec.dtype}: expected {', '.join(_FLOATS)}; FP8 has to be made one of them first"
        for spec in (weight, a, b)
        if spec.dtype not in _FLOATS
    ]
    shapes = f"A {list(a.shape)}, B {list(b.shape)}, weight {list(weight.shape)}"
    if {len(spec.shape) for spec in (weight, a, b)} != {2} or a.shape[0] != b.shape[1] or not pair.rank:
        return [*problems, f"{pair.weight}: {shapes}: expected A [rank, in] and B [out, rank]"]
    made = (b.shape[0], a.shape[1])
    if weight.shape != (made[::-1] if transposed else made):
        other = weight.shape == (made if transposed else made[::-1])
        advice = f" (fits if fan_in_fan_out is {str(not transposed).lower()})" if other else ""
        problems.append(f"{pair.weight}: {shapes}: B·A does not have the weight's shape{advice}")
    return problems


def _replaced(
    weights: Mapping[str, TensorSpec], apart: Mapping[str, TensorSpec], problems: list[str]
) -> list[tuple[str, str]]:
    """Find the weight of every tensor among the adapters that is not one."""
    found = []
    for name in sorted(name for name in apart if not is_adapter_name(name)):
        weight = name.removeprefix(_PEFT_PREFIX)
        if weight not in weights:
            problems.append(f"{name}: came with the adapters, and the model has no {weight}")
        elif (weights[weight].shape, weights[weight].dtype) != (apart[name].shape, apart[name].dtype):
            sides = [f"{spec.dtype} {list(spec.shape)}" for spec in (weights[weight], apart[name])]
            problems.append(f"{name}: would replace {weight}: expected {sides[0]}, found {sides[1]}")
        else:
            found.append((weight, name))
    return found


def _shared(pairs: Iterable[AdapterPair], replaced: Iterable[tuple[str, str]]) -> list[str]:
    """Weights that more than one adapter would change: which sum is meant cannot be known."""
    users: dict[str, list[str]] = {weight: [name] for weight, name in replaced}
    for pair in pairs:
        users.setdefault(pair.weight, []).append(pair.a)
    return [f"{weight}: changed by {', '.join(names)}" for weight, names in users.items() if len(names) > 1]
