"""What becomes of a source's tensors before they are cut: low-rank updates, a family's rules, dtypes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import PlanError, raise_all
from ..models.compiling import CompiledRules, Scale, SourcePart, compile_rules, find_scales
from ..models.family import Quantised
from ..models.family_file import load_family
from ..models.lora import AdapterPair, find_adapters, working_dtype
from ..tensor import DType, Patch, TensorSpec, extent_of, plain_patch
from .catalog import Catalog, SourceSharding
from .outputs.output import Computation, Piece, TargetTensor

FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
"""What can be cast, and to what."""

_QUANTISED = Quantised("_scale_inv", "quantization_config.weight_block_size", (128, 128))


@dataclass(frozen=True, slots=True)
class Change:
    """What to change, as it was asked for; the tensors follow from this and the catalog.

    Parameters
    ----------
    family
        Whose rules to apply; empty for none.
    direction, naming, options
        As :func:`reshard.models.compiling.compile_rules` takes them.
    config
        Of the model's ``config.json``.
    dtype
        Of floating-point tensors in the target; None to keep them.
    kept
        Names of the target whose dtype is kept.
    scalings
        What the product of each weight's adapters is multiplied by, by the weight's name; adapters
        are merged if there are any.
    transposed
        Whether those weights are stored turned over.
    """

    family: str = ""
    direction: str = ""
    naming: str = ""
    options: Mapping[str, int | str | bool] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    dtype: DType | None = None
    kept: frozenset[str] = frozenset()
    scalings: Mapping[str, float] = field(default_factory=dict)
    transposed: bool = False


NO_CHANGE = Change()


@dataclass(frozen=True, slots=True)
class Made:
    """Every tensor of a target, and what a person should know about how they came to be."""

    tensors: tuple[TargetTensor, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor that rules can take: an entry of the catalog, perhaps with its adapters merged."""

    spec: TensorSpec
    entry: int
    sharding: SourceSharding
    pair: tuple[int, int] | None = None
    rank: int = 0
    working: DType | None = None


def make_tensors(catalog: Catalog, renamed: Mapping[str, str], change: Change) -> Made:
    """Make the target's tensors of a source's.

    Parameters
    ----------
    renamed
        New names, by those of the source; what follows sees the new ones.

    Raises
    ------
    PlanError
        Tensors that do not fit the family's rules, or adapters that do not fit their weights; all are listed.
    """
    values, notes = _values(catalog, renamed, change)
    if not change.family:
        tensors = tuple(_plain(values, change))
        return Made(tensors, (*notes, *_cast_notes(tensors, catalog)))
    specs = {name: value.spec for name, value in values.items()}
    compiled = compile_rules(
        load_family(change.family),
        change.direction,
        change.naming,
        change.options,
        change.config,
        specs,
        change.dtype,
    )
    tensors = tuple(_compiled(compiled, values, change))
    return Made(tensors, (*notes, *_rule_notes(compiled), *_cast_notes(tensors, catalog)))


def _values(catalog: Catalog, renamed: Mapping[str, str], change: Change) -> tuple[dict[str, _Value], tuple[str, ...]]:
    """The source's tensors by the names that rules see, adapters merged into their weights."""
    values: dict[str, _Value] = {}
    for index, entry in enumerate(catalog.entries):
        name = renamed.get(entry.spec.name, entry.spec.name)
        spec = entry.spec if name == entry.spec.name else TensorSpec(name, entry.spec.dtype, entry.spec.shape)
        values[name] = _Value(spec, index, entry.sharding)
    if not change.scalings:
        return values, ()
    return _merged(catalog, values, change)


def _merged(catalog: Catalog, values: dict[str, _Value], change: Change) -> tuple[dict[str, _Value], tuple[str, ...]]:
    is_apart = {name: _is_apart(catalog, value.entry) for name, value in values.items()}
    adapters = find_adapters(
        [value.spec for name, value in values.items() if not is_apart[name]],
        [value.spec for name, value in values.items() if is_apart[name]],
        transposed=change.transposed,
    )
    unsaid = [pair.weight for pair in adapters.pairs if pair.weight not in change.scalings]
    raise_all(PlanError, "adapters without a scaling", unsaid, hint="Give --lora-scaling, or an adapter_config.json.")
    gone = {*adapters.removed, *(name for _, name in adapters.replaced)}
    left = {name: value for name, value in values.items() if name not in gone}
    for pair in adapters.pairs:
        left[pair.weight] = _with_pair(values, pair)
    for weight, name in adapters.replaced:
        left[weight] = _Value(left[weight].spec, values[name].entry, left[weight].sharding)
    said = sorted({change.scalings[pair.weight] for pair in adapters.pairs})
    notes = [f"{len(adapters.pairs)} adapters are merged, scaled by {', '.join(map(str, said[:5]))}"]
    states = len(adapters.removed) - 2 * len(adapters.pairs)
    notes += [f"{states} optimizer states of adapters are left out"] if states else []
    notes += [f"{len(adapters.replaced)} weights are the adapter's own"] if adapters.replaced else []
    return left, tuple(notes)


def _with_pair(values: Mapping[str, _Value], pair: AdapterPair) -> _Value:
    weight, a, b = values[pair.weight], values[pair.a], values[pair.b]
    working = working_dtype(a.spec.dtype, b.spec.dtype)
    return _Value(weight.spec, weight.entry, weight.sharding, (a.entry, b.entry), pair.rank, working)


def _is_apart(catalog: Catalog, entry: int) -> bool:
    """Whether a tensor stands in another place than the model."""
    placements = catalog.entries[entry].placements
    return bool(placements) and catalog.objects[placements[0].holders[0][0]].base > 0


def _plain(values: Mapping[str, _Value], change: Change) -> Iterable[TargetTensor]:
    """Every tensor as it is, but for its dtype."""
    specs = {name: value.spec for name, value in values.items()}
    scales, problems = find_scales(_QUANTISED, change.config, specs if change.dtype else {})
    raise_all(PlanError, "scales that do not fit their tensors", problems)
    consumed = {scale.tensor for scale in scales.values()}
    for name, value in values.items():
        if name in consumed:
            continue
        scale = scales.get(name)
        dtype = _wished(value.spec, change) if scale is None else change.dtype or DType.BF16
        spec = TensorSpec(name, dtype, value.spec.shape)
        patch = plain_patch(extent_of(value.spec)[0])
        yield _tensor(spec, [(value, patch, scale)], values, change, value.sharding)


def _wished(spec: TensorSpec, change: Change) -> DType:
    if change.dtype is None or spec.dtype not in FLOATS or spec.name in change.kept:
        return spec.dtype
    return change.dtype


def _compiled(compiled: CompiledRules, values: Mapping[str, _Value], change: Change) -> Iterable[TargetTensor]:
    for target in compiled.targets:
        spec = target.spec
        sources = {values[part.source].spec.dtype for part in target.parts} if spec.name in change.kept else set()
        if len(sources) == 1 and sources <= FLOATS:
            spec = TensorSpec(spec.name, sources.pop(), spec.shape)
        yield _tensor(spec, [_taken(part, values) for part in target.parts], values, change)


def _taken(part: SourcePart, values: Mapping[str, _Value]) -> tuple[_Value, Patch, Scale | None]:
    return values[part.source], part.patch, part.scale


def _tensor(
    spec: TensorSpec,
    parts: Sequence[tuple[_Value, Patch, Scale | None]],
    values: Mapping[str, _Value],
    change: Change,
    sharding: SourceSharding = SourceSharding.WHOLE,
) -> TargetTensor:
    if len(parts) > 1:  # one after the other, so that pieces are found by their place
        parts = sorted(parts, key=lambda part: part[1].target_hull.start)
    pieces = tuple(
        Piece(patch, value.entry, _making(spec.dtype, value, scale, values, change)) for value, patch, scale in parts
    )
    held = [
        (value.spec.dtype.itemsize + spec.dtype.itemsize + _beside(value, scale)) * (1 if patch.is_plain else 2)
        for (value, patch, scale), piece in zip(parts, pieces, strict=True)
        if piece.computation is not None
    ]
    unit = pieces[0].patch.unit if pieces else (0, 1)
    return TargetTensor(spec, pieces, sharding, max(held, default=0), unit)


def _beside(value: _Value, scale: Scale | None) -> int:
    """Bytes of scales or adapters for each element, about: tiles of some 64 rows are taken to be the least."""
    if scale is not None:
        return -(-8 // math.prod(scale.block))
    return -(-value.rank // 16)


def _making(
    dtype: DType, value: _Value, scale: Scale | None, values: Mapping[str, _Value], change: Change
) -> Computation | None:
    if scale is not None:
        return Computation("dequantise", dtype, (values[scale.tensor].entry,), scale.block)
    if value.pair is not None:
        return _merging(dtype, value, change)
    return None if value.spec.dtype is dtype else Computation("cast", dtype)


def _merging(dtype: DType, value: _Value, change: Change) -> Computation:
    assert value.pair is not None
    return Computation(
        "merge_lora",
        dtype,
        value.pair,
        scaling=change.scalings[value.spec.name],
        rank=value.rank,
        working=value.working,
        transposed=change.transposed,
    )


def _rule_notes(compiled: CompiledRules) -> list[str]:
    options = ", ".join(f"{name} {str(value).lower()}" for name, value in compiled.options)
    notes = [f"rules of {compiled.family}, {compiled.direction}, naming {compiled.naming}; options: {options}"]
    for why, count in Counter(dropped.why for dropped in compiled.dropped).items():
        names = [dropped.name for dropped in compiled.dropped if dropped.why == why]
        some = ", ".join(names[:3]) + (", ..." if count > 3 else "")
        notes.append(f"{count} tensors of the source are dropped, {why}: {some}")
    if compiled.copied:
        notes.append(f"{len(compiled.copied)} tensors repeat another: {', '.join(a for a, _ in compiled.copied[:3])}")
    return [*notes, *compiled.notes]


def _cast_notes(tensors: Iterable[TargetTensor], catalog: Catalog) -> list[str]:
    """Which dtypes become which."""
    counts = Counter(
        (piece.computation.kernel, catalog.entries[piece.source].spec.dtype, piece.computation.dtype)
        for tensor in tensors
        for piece in tensor.pieces
        if piece.computation is not None
    )
    return [f"{kernel}: {count} tensors, {a} to {b}" for (kernel, a, b), count in sorted(counts.items())]
