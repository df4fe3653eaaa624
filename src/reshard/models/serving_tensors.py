"""Applying the rules of an engine to one checkpoint: every tensor of all ranks, and how the ranks cut it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import PlanError, option, raise_all
from ..tensor import DType, Layout, Patch, RowSplit, Shape, Strategy, TensorSpec, plain_patch
from .carried_adapters import adapters_among
from .compiling import CompiledTarget, SourcePart, compile_rules
from .expansion import index_values
from .pattern import name_key
from .serving_rules import Serving, ServingRules, load_rules

_FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
FILL_PREFIX = "reshard-fill."
"""Start of the names of sources that are no tensors: elements that are all alike."""


@dataclass(frozen=True, slots=True)
class FilledTensor:
    """Elements that are all alike, as a source: padding, and what a network has and no checkpoint."""

    spec: TensorSpec
    element: bytes

    @classmethod
    def of(cls, dtype: DType, shape: Shape, element: bytes) -> FilledTensor:
        """Name a fill by its content."""
        sizes = "x".join(map(str, shape))
        return cls(TensorSpec(f"{FILL_PREFIX}{dtype}.{sizes}.{element.hex()}", dtype, shape), element)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the ranks hold: tensors of all of them, their cuts, the fills that the tensors' parts name, and notes."""

    tensors: tuple[CompiledTarget, ...]
    strategy: Strategy
    fills: tuple[FilledTensor, ...] = ()
    notes: tuple[str, ...] = ()


def served_model(serving: Serving, config: Mapping[str, object], specs: Mapping[str, TensorSpec]) -> ServedModel:
    """Compute what every rank of the serving networks holds, given the tensors of Hugging Face's form.

    Raises
    ------
    UsageError
        There are no rules for this family or version.
    PlanError
        The ranks cannot share the model, or its tensors do not fit the rules; all problems are listed.
    """
    rules = load_rules(serving, config)
    taken, notes = _without_layers_beyond(rules, specs)
    family = replace(rules.family, namings=(rules.naming,))
    _refuse_leftovers(taken)
    compiled = compile_rules(family, "to_ms", "serving", rules.settings.options, config, taken, None)
    fills: dict[str, FilledTensor] = {}
    tensors = [_finished(rules, target, fills) for target in compiled.targets]
    axes = rules.cut_axes()
    if rules.shares_experts:
        rotated = [glob for block in rules.blocks for glob in block.rotated]
        chosen = {target.spec.name for target in tensors if any(glob.match(target.spec.name) for glob in rotated)}
        tensors = [_rotated(target, serving.tp) if target.spec.name in chosen else target for target in tensors]
        axes |= {name_key(name): 0 for name in chosen}
    tensors += _constants(rules, fills)
    for why in dict.fromkeys(dropped.why for dropped in compiled.dropped):
        names = [dropped.name for dropped in compiled.dropped if dropped.why == why]
        notes.append(f"{len(names)} tensors are left out, {why}: {', '.join(names[:3])}")
    copies = rules.settings.numbers["kv_copies"]
    notes += [f"{copies} neighbouring ranks hold the same key/value heads"] if copies > 1 else []
    return ServedModel(
        tuple(tensors),
        _strategy(axes, serving.tp, tensors, rules.shares_experts),
        tuple(fills.values()),
        (*notes, *compiled.notes),
    )


def _without_layers_beyond(
    rules: ServingRules, specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, TensorSpec], list[str]]:
    """Leave out the layers that the network does not have."""
    if rules.beyond is None:
        return dict(specs), []
    number = re.compile(re.escape(rules.beyond.prefix) + r"(\d{1,9})\.")
    most = rules.settings.numbers.get(rules.beyond.count, 0)
    beyond = [name for name in specs if (match := number.match(name)) and int(match[1]) >= most]
    note = f"{len(beyond)} tensors are left out, {rules.beyond.why}: {', '.join(beyond[:3])}"
    return {name: spec for name, spec in specs.items() if name not in set(beyond)}, [note] if beyond else []


def _refuse_leftovers(specs: Mapping[str, TensorSpec]) -> None:
    """Refuse what has to become a weight first: blocks with scales, and adapters."""
    quantised = [name for name, spec in specs.items() if spec.dtype.value.startswith("F") and spec.dtype not in _FLOATS]
    hint = f"Dequantise them in the same pass: {option('dtype', 'bf16')}."
    raise_all(PlanError, "networks that serve hold no quantised weights", quantised, hint)
    adapters = [name for pair in adapters_among(specs) for name in (pair.a, pair.b)]
    hint = f"Merge them in the same pass ({option('merge_lora', 'true')}), or leave them out ({option('drop')})."
    raise_all(PlanError, "networks that serve hold no adapters", adapters, hint)


def _finished(rules: ServingRules, target: CompiledTarget, fills: dict[str, FilledTensor]) -> CompiledTarget:
    """Give a tensor the dtype that the network keeps it in, and the rows that it is filled up with."""
    spec, parts = target.spec, target.parts
    if spec.dtype in _FLOATS and any(glob.match(spec.name) for block in rules.blocks for glob in block.float32):
        spec = replace(spec, dtype=DType.F32)
    rows = spec.shape[0] if spec.shape else 0
    padded = -(-rows // rules.multiple) * rules.multiple
    if spec.name not in rules.padded or rows == padded:
        return CompiledTarget(spec, parts)
    fill = FilledTensor.of(spec.dtype, (padded - rows, *spec.shape[1:]), bytes(spec.dtype.itemsize))
    fills[fill.spec.name] = fill
    shape = (padded, *spec.shape[1:])
    views = tuple((extent,) for extent in shape)
    filled = replace(plain_patch(fill.spec.shape), target_views=views, target_start=(rows, *(0,) * (len(shape) - 1)))
    wider = [replace(part, patch=replace(part.patch, target_views=views)) for part in parts]
    return CompiledTarget(replace(spec, shape=shape), (*wider, SourcePart(fill.spec.name, filled)))


def _constants(rules: ServingRules, fills: dict[str, FilledTensor]) -> Iterator[CompiledTarget]:
    scalar = Patch((), (), (), (), (), ())
    for block in rules.blocks:
        for constant in block.constants:
            fill = FilledTensor.of(DType.F32, (), struct.pack("<f", constant.value))
            fills[fill.spec.name] = fill
            for numbers in index_values(constant.name.names, rules.settings):
                spec = TensorSpec(constant.name.render(numbers), DType.F32, ())
                yield CompiledTarget(spec, (SourcePart(fill.spec.name, scalar),))


def _rotated(target: CompiledTarget, ranks: int) -> CompiledTarget:
    """Give each rank all rows, its own first: those of every rank, one after another, are the tensor."""
    (part,), (rows, *rest) = target.parts, target.spec.shape
    views = tuple((extent,) for extent in (ranks * rows, *rest))
    parts = []
    for rank in range(ranks):
        own = rank * (rows // ranks)
        for at, first, count in ((rank * rows, own, rows - own), ((rank + 1) * rows - own, 0, own)):
            zeros = (0,) * len(rest)
            moved = replace(part.patch, target_views=views, target_start=(at, *zeros), source_start=(first, *zeros))
            parts += [SourcePart(part.source, replace(moved, shape=(count, *rest)))] if count else []
    return CompiledTarget(replace(target.spec, shape=(ranks * rows, *rest)), tuple(parts))


def _strategy(axes: Mapping[str, int], ranks: int, tensors: list[CompiledTarget], is_uneven: bool) -> Strategy:
    """Cut every tensor over the ranks, experts in blocks as equal as can be, the larger ones first."""
    layouts: dict[str, Layout] = {}
    known: dict[tuple[int, int | None, int], Layout] = {}
    for target in tensors:
        shape, axis = target.spec.shape, axes.get(name_key(target.spec.name))
        left = shape[axis] % ranks if axis is not None else 0
        if left and (axis or not is_uneven):
            raise PlanError(f"{target.spec.name}: axis {axis} of {list(shape)} does not divide by {ranks} ranks")
        key = len(shape), axis, shape[0] if left else 0
        if key not in known:
            known[key] = Layout((ranks,), tuple((0,) if n == axis else () for n in range(len(shape))))
            if left:
                counts = tuple(shape[0] // ranks + (rank < left) for rank in range(ranks))
                offsets = tuple(sum(counts[:rank]) for rank in range(ranks))
                known[key] = replace(known[key], row_split=RowSplit(counts, offsets))
        layouts[target.spec.name] = known[key]
    return Strategy(ranks, (layouts,))
