"""Changes to a source's tensors before they are cut: adapters merged, a family's rules, dtypes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import PlanError, option, raise_all
from ..models.block_scales import Scale, find_scales
from ..models.compiling import CompiledRules, compile_rules
from ..models.family import Quantised
from ..models.family_file import FamilyKey, OwnFamily, load_family
from ..models.lora import find_adapters, working_dtype
from ..models.serving_rules import Serving
from ..models.training_names import is_counter
from ..tensor import DType, Patch, TensorSpec, extent_of, plain_patch
from .catalog import Catalog, SourceSharding
from .outputs.output import Computation, Piece, TargetTensor, sample
from .serving import is_fill, model_of, serve

OVERFLOWS = ("inf", "saturate", "refuse")
"""What may become of finite values that a dtype cannot hold."""
FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
"""Dtypes that can be cast, to each other."""

_QUANTISED = Quantised("_scale_inv", "quantization_config.weight_block_size", (128, 128))


@dataclass(frozen=True, slots=True)
class Change:
    """Changes to make; the target's tensors follow from them and the catalog.

    Parameters
    ----------
    family, direction, naming, options
        As :func:`reshard.models.compiling.compile_rules` takes them; without a family no rules are applied.
    config
        Content of the model's ``config.json``.
    dtype, kept
        Dtype of floating-point tensors in the target, None to keep theirs; and names of those that keep it anyway.
    scalings
        Factor of the product of each weight's adapters, by the weight's name; adapters are merged if there are any.
    transposed
        Whether those weights are stored transposed.
    family_file
        The text of the family's file if the package does not have it, so that a plan needs no other file.
    on_overflow
        What becomes of finite values that a dtype cannot hold: ``inf``, ``saturate`` or ``refuse``.
    serving
        The networks that are to hold the tensors, which then have Hugging Face's names after all other changes.
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
    family_file: str = ""
    on_overflow: str = "inf"
    serving: Serving | None = None

    @property
    def family_key(self) -> FamilyKey:
        """The family by its name, or with its file."""
        return OwnFamily(self.family, self.family_file) if self.family_file else self.family


NO_CHANGE = Change()


@dataclass(frozen=True, slots=True)
class ChangedTensors:
    """Every tensor of a target, and remarks for people about the changes."""

    tensors: tuple[TargetTensor, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Weight:
    """A tensor that rules can take: an entry of the catalog, perhaps with a pair of adapters to merge."""

    spec: TensorSpec
    entry: int
    sharding: SourceSharding
    pair: tuple[int, int] | None = None
    rank: int = 0
    working: DType | None = None
    is_permuted: bool = False


_Part = tuple[_Weight, Patch, Scale | None]


def make_tensors(catalog: Catalog, renamed: Mapping[str, str], change: Change) -> ChangedTensors:
    """Make the target's tensors of a source's, by their new names.

    Raise PlanError for tensors that do not fit the family's rules or those of networks that serve it, and adapters that
    do not fit their weights; all are listed.
    """
    weights, notes = _rename(catalog, renamed), list[str]()
    if change.scalings:
        weights, notes = _merge_adapters(catalog, weights, change)
    if change.family:
        compiled = compile_rules(
            load_family(change.family_key),
            change.direction,
            change.naming,
            change.options,
            change.config,
            {name: weight.spec for name, weight in weights.items()},
            change.dtype,
        )
        tensors = tuple(_apply_rules(compiled, weights, change))
        notes += _rule_notes(compiled)
    else:
        tensors = tuple(_keep_or_cast(weights, change))
    if change.serving is not None:
        model = model_of(tensors, change.serving, change.config)
        tensors = tuple(serve(model, tensors, catalog))
        notes += model.notes
    return ChangedTensors(tensors, (*notes, *_computation_notes(tensors, catalog), *_uncast_notes(tensors, change)))


def _rename(catalog: Catalog, renamed: Mapping[str, str]) -> dict[str, _Weight]:
    weights: dict[str, _Weight] = {}
    for index, entry in enumerate(catalog.entries):
        if is_fill(entry.spec.name):
            continue
        name = renamed.get(entry.spec.name, entry.spec.name)
        spec = entry.spec if name == entry.spec.name else TensorSpec(name, entry.spec.dtype, entry.spec.shape)
        weights[name] = _Weight(spec, index, entry.sharding, is_permuted=bool(entry.axes))
    return weights


# Adapters.


def _merge_adapters(
    catalog: Catalog, weights: Mapping[str, _Weight], change: Change
) -> tuple[dict[str, _Weight], list[str]]:
    is_apart = {name: _is_apart(catalog, weight.entry) for name, weight in weights.items()}
    adapters = find_adapters(
        [weight.spec for name, weight in weights.items() if not is_apart[name]],
        [weight.spec for name, weight in weights.items() if is_apart[name]],
        transposed=change.transposed,
    )
    without = [pair.weight for pair in adapters.pairs if pair.weight not in change.scalings]
    hint = f"Give {option('lora_scaling')}, or an adapter_config.json."
    raise_all(PlanError, "the LoRA scaling of these weights is unknown", without, hint=hint)
    removed = {*adapters.removed, *(name for _, name in adapters.replaced)}
    merged = {name: weight for name, weight in weights.items() if name not in removed}
    for pair in adapters.pairs:
        weight, a, b = weights[pair.weight], weights[pair.a], weights[pair.b]
        working = working_dtype(a.spec.dtype, b.spec.dtype)
        ends = a.entry, b.entry
        ranks = pair.rank, working, weight.is_permuted
        merged[pair.weight] = _Weight(weight.spec, weight.entry, weight.sharding, ends, *ranks)
    for name, replacement in adapters.replaced:
        merged[name] = _Weight(merged[name].spec, weights[replacement].entry, merged[name].sharding)
    scalings = sorted({change.scalings[pair.weight] for pair in adapters.pairs})
    notes = [f"{len(adapters.pairs)} adapters are merged, scaled by {', '.join(map(str, scalings[:5]))}"]
    state_count = len(adapters.removed) - 2 * len(adapters.pairs)
    notes += [f"{state_count} optimizer states of adapters are left out"] if state_count else []
    notes += [f"{len(adapters.replaced)} weights are the adapter's own"] if adapters.replaced else []
    return merged, notes


def _is_apart(catalog: Catalog, entry: int) -> bool:
    """Return whether a tensor is stored elsewhere than the model."""
    placements = catalog.entries[entry].placements
    return bool(placements) and catalog.objects[placements[0].holders[0][0]].base > 0


# The target's tensors.


def _keep_or_cast(weights: Mapping[str, _Weight], change: Change) -> Iterable[TargetTensor]:
    """Yield every tensor with its own shape, cast or dequantised if a dtype is asked for."""
    specs = {name: weight.spec for name, weight in weights.items()}
    scales, problems = find_scales(_QUANTISED, change.config, specs if change.dtype else {})
    raise_all(PlanError, "scales that do not fit their tensors", problems)
    used = {scale.tensor for scale in scales.values()}
    for name, weight in weights.items():
        if name in used:
            continue
        scale, dtype = scales.get(name), weight.spec.dtype
        if scale is not None:
            dtype = change.dtype or DType.BF16
        elif change.dtype is not None and dtype in FLOATS and name not in change.kept:
            dtype = dtype if is_counter(name, weight.spec.shape) else change.dtype
        spec = weight.spec if dtype is weight.spec.dtype else TensorSpec(name, dtype, weight.spec.shape)
        patch = plain_patch(extent_of(weight.spec)[0])
        yield _tensor(spec, [(weight, patch, scale)], weight.sharding, weights, change)


def _apply_rules(compiled: CompiledRules, weights: Mapping[str, _Weight], change: Change) -> Iterable[TargetTensor]:
    for target in compiled.targets:
        spec = target.spec
        dtypes = {weights[part.source].spec.dtype for part in target.parts} if spec.name in change.kept else set()
        if len(dtypes) == 1 and dtypes <= FLOATS:
            spec = TensorSpec(spec.name, dtypes.pop(), spec.shape)
        parts = [(weights[part.source], part.patch, part.scale) for part in target.parts]
        sharding = parts[0][0].sharding if is_counter(spec.name, spec.shape) else SourceSharding.WHOLE
        yield _tensor(spec, parts, sharding, weights, change)


def _tensor(
    spec: TensorSpec,
    parts: Sequence[_Part],
    sharding: SourceSharding,
    weights: Mapping[str, _Weight],
    change: Change,
) -> TargetTensor:
    if len(parts) > 1:  # in order, so that the pieces of a box are found by bisection
        parts = sorted(parts, key=lambda part: part[1].target_hull.start)
    pieces = tuple(
        Piece(patch, weight.entry, _computation(spec.dtype, weight, scale, weights, change))
        for weight, patch, scale in parts
    )
    tile_itemsizes = [
        _tile_itemsize(spec.dtype, part)
        for part, piece in zip(parts, pieces, strict=True)
        if piece.computation is not None
    ]
    unit = pieces[0].patch.unit if pieces else (0, 1)
    if any(weight.is_permuted for weight, _, _ in parts):
        unit = 0, max(1, spec.shape[0])  # of any row, elements are spread over all that is stored
    return TargetTensor(spec, pieces, sharding, max(tile_itemsizes, default=0), unit)


def _tile_itemsize(dtype: DType, part: _Part) -> int:
    """Return the bytes of buffers for each element that is computed: its input, its result, and scales or adapters."""
    weight, patch, scale = part
    # Scales and adapters of an element, about: tiles are assumed to have at least some 64 rows.
    extras = -(-8 // math.prod(scale.block)) if scale is not None else -(-weight.rank // 16)
    nbytes = weight.spec.dtype.itemsize + dtype.itemsize + extras
    return nbytes if patch.is_plain else 2 * nbytes  # the hull of a patch has more elements than the patch


def _computation(
    dtype: DType, weight: _Weight, scale: Scale | None, weights: Mapping[str, _Weight], change: Change
) -> Computation | None:
    if scale is not None:
        extras = (weights[scale.tensor].entry,)
        return Computation("dequantise", dtype, extras, scale.block, scale.packed, on_overflow=change.on_overflow)
    if weight.pair is None:
        return None if weight.spec.dtype is dtype else Computation("cast", dtype, on_overflow=change.on_overflow)
    return Computation(
        "merge_lora",
        dtype,
        weight.pair,
        scaling=change.scalings[weight.spec.name],
        rank=weight.rank,
        working=weight.working,
        transposed=change.transposed,
        on_overflow=change.on_overflow,
    )


# Remarks.


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


def _uncast_notes(tensors: Iterable[TargetTensor], change: Change) -> Iterable[str]:
    """Yield which tensors keep a quantised dtype because nothing with the name of their scales is beside them."""
    stay = [each.spec for each in tensors if each.spec.dtype.value.startswith("F") and each.spec.dtype not in FLOATS]
    if stay and change.dtype is not None:
        dtypes = ", ".join(sorted({spec.dtype.value for spec in stay}))
        names = sample([spec.name for spec in stay], 5)
        yield f"{len(stay)} tensors stay {dtypes}: no scales NAME{_QUANTISED.suffix} are beside them: {names}"


def _computation_notes(tensors: Iterable[TargetTensor], catalog: Catalog) -> list[str]:
    """Return how many tensors each kernel computes, by the dtypes of its input and result."""
    counts = Counter(
        (piece.computation.kernel, catalog.entries[piece.source].spec.dtype, piece.computation.dtype)
        for tensor in tensors
        for piece in tensor.pieces
        if piece.computation is not None
    )
    return [f"{kernel}: {count} tensors, {a} to {b}" for (kernel, a, b), count in sorted(counts.items())]
