"""Names, layouts and values of a request: a family's rules, dtypes, adapters, and strategies from parallel sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..engine.sources.tied_copies import compare_copies
from ..engine.workers import working
from ..errors import NotFound, PlanError, StrategyError, UsageError, option, raise_all
from ..models.compiling import copies_to_drop
from ..models.concatenated_runs import BLOCKS, blocks_for_cuts, has_contiguous_runs, run_axes
from ..models.detecting import Detection, detect
from ..models.expected_shapes import expected_shapes, multiplied_shapes
from ..models.family_file import FamilyKey, OwnFamily, load_family
from ..models.inferring import ModelSide, infer_sizes
from ..models.lora import find_adapters, is_adapter_name
from ..models.lora_config import parse_adapter_config, scalings
from ..models.parallel_config import ParallelConfig
from ..models.parallel_rules import has_layouts, load_layouts, naming_of
from ..models.parallel_strategy import derive_strategy, unchecked_heads, whole_embeddings
from ..models.pattern import name_key
from ..models.serving_rules import base_family, float32_names
from ..models.training_names import weight_of
from ..planning.catalog import Catalog, Entry, SourceObject, SourceSharding
from ..planning.change import Change, make_tensors
from ..planning.conversion import MAX_ATTACHMENT_BYTES
from ..planning.outputs.output import Attachment
from ..planning.sources.selection import NameFilter
from ..planning.targets.written_keys import is_companion
from ..storage import Location, open_location, open_source, read_object
from ..tensor import DType, Shape, Strategy, TensorSpec
from .contents import load_config, load_family_key, prefix_of
from .request import Request
from .serving import serving_of

_DTYPES = {"fp32": DType.F32, "fp16": DType.F16, "bf16": DType.BF16}
_ADAPTER_CONFIG = "adapter_config.json"


def change_of(
    request: Request, catalog: Catalog, renamed: Mapping[str, str], parallel: ParallelConfig | None = None
) -> tuple[Change, list[str]]:
    """Find out what to change; the notes say how that was detected.

    The networks of a training job, ``use_legacy``, choose the naming unless it is given. Raise UsageError for options
    that contradict the source or each other, and PlanError if the family is not known or adapters do not fit.
    """
    specs = {renamed[e.spec.name]: replace(e.spec, name=renamed[e.spec.name]) for e in catalog.entries}
    config = load_config(request.config, request.src)
    notes = check_whole_shapes(catalog, config)
    change = Change(config=config, dtype=_DTYPES[request.dtype] if request.dtype else None)
    change = replace(change, on_overflow=request.on_overflow or change.on_overflow)
    if request.lora or request.merge_lora:
        scaled, transposed = _adapters(request, catalog, specs)
        change = replace(change, scalings=scaled, transposed=transposed)
    to = request.to
    if request.serve:
        serving, to = serving_of(request, config, specs)
        change = replace(change, serving=serving)
    if to:
        change, told = _with_rules(change, request, to, specs, parallel)
        notes += told
        if change.direction == "to_hf":
            cut = ((renamed[entry.spec.name], entry) for entry in catalog.entries)
            change, told = _with_runs_of_source(change, dict(cut))
            notes += told
    elif change.serving is not None and change.dtype is not None:
        change = replace(change, kept=float32_names(change.serving, specs))
    if request.keep_dtype:
        cast = replace(change, serving=None)  # networks that serve hold what is made of these
        names = [tensor.spec.name for tensor in make_tensors(catalog, renamed, cast).tensors]
        chosen = NameFilter(keep=request.keep_dtype)
        if missed := chosen.unmatched_keep(names):
            raise UsageError(f"{option('keep_dtype', ', '.join(missed))} matches no tensor of the target")
        change = replace(change, kept=change.kept | frozenset(name for name in names if chosen.is_kept(name)))
    if change == Change(config=config, on_overflow=change.on_overflow):
        return Change(), notes  # a plan does not depend on what no option asks for
    return change, notes


def _with_rules(
    change: Change, request: Request, to: str, specs: Mapping[str, TensorSpec], parallel: ParallelConfig | None
) -> tuple[Change, list[str]]:
    """Choose the family's rules by the source's names and the request, for the names of one side."""
    names = [name for name in specs if not is_adapter_name(name)]
    key = load_family_key(request.family)
    found = detect(change.config, names, family=key)
    if found.direction != f"to_{to}":
        message = f"{option('to', to)}, but the source has {to} names already"
        raise UsageError(message, hint="; ".join(found.reasons))
    naming = _naming(found, key or found.family.name, request, parallel) if to == "ms" else found.naming
    options: dict[str, int | str | bool] = {**dict(found.options), **(request.option or {})}
    side = "hf" if to == "ms" else "ms"
    model = ModelSide(found.family, naming, side, options, change.config, {name: specs[name] for name in names})
    config = infer_sizes(model)
    told = [f"{key} {str(value).lower()}" for key, value in config.items() if key not in change.config]
    change = replace(
        change,
        family=found.family.name,
        family_file=key.text if isinstance(key, OwnFamily) else "",
        direction=found.direction,
        naming=naming,
        options=options,
        config=config,
    )
    notes = [f"found {found.family.name}: {'; '.join(found.reasons)}"]
    return change, [*notes, f"config.json does not say, but the tensors: {', '.join(told)}"] if told else notes


def _naming(found: Detection, key: FamilyKey, request: Request, parallel: ParallelConfig | None) -> str:
    """Choose the naming of the target: the given one, that of the job's networks, or the family's own."""
    use_legacy = None if parallel is None else parallel.use_legacy
    if use_legacy is None:
        return request.naming or found.naming
    known = load_layouts(key) if has_layouts(key) else {}
    names = [naming.name for naming in found.family.namings]
    having = {name: known[name].use_legacy if name in known else None for name in names}
    says = f"{option('parallel', request.parallel)} says use_legacy: {use_legacy}"
    if request.naming:
        if having.get(request.naming, use_legacy) is (not use_legacy):
            hint = f"Omit {option('naming')}, or give the training job that it belongs to."
            raise UsageError(f"{says}, but {option('naming', request.naming)} is of the other networks", hint=hint)
        return request.naming
    fitting = [name for name, value in having.items() if value is use_legacy]
    if not fitting:
        hint = f"Name one with {option('naming')} ({', '.join(names)}), or give the sizes without the file."
        raise UsageError(f"{says}, but no naming of {found.family.name} is of such networks", hint=hint)
    return found.naming if found.naming in fitting else fitting[0]


# Adapters.


def adapters_at(url: str) -> Location:
    """Open adapters that are stored apart, perhaps beside a whole model."""
    place = open_source(url)
    alone = place.child("adapter_model.safetensors")
    return alone if not url.endswith(".safetensors") and alone.head_or_none() else place


def _adapters(request: Request, catalog: Catalog, specs: Mapping[str, TensorSpec]) -> tuple[dict[str, float], bool]:
    """Find the scaling of every pair, and whether weights are stored transposed."""
    place = prefix_of(request.lora or request.src).child(_ADAPTER_CONFIG)
    try:
        config = parse_adapter_config(read_object(place), place.url)
    except NotFound:
        config = None
    is_apart = {i for i, item in enumerate(catalog.objects) if item.base}
    apart = {e.spec.name for e in catalog.entries if e.placements and e.placements[0].holders[0][0] in is_apart}
    transposed = config.fan_in_fan_out if config is not None else False
    found = find_adapters(
        [spec for name, spec in specs.items() if name not in apart],
        [spec for name, spec in specs.items() if name in apart],
        transposed=transposed,
    )
    if request.lora_scaling is None and config is None:
        raise UsageError(
            "The LoRA scaling is unknown",
            hint=f"Give {option('lora_scaling')} (alpha / rank), or put {_ADAPTER_CONFIG} beside the adapters.",
        )
    return scalings(found.pairs, request.lora_scaling, None if request.lora_scaling is not None else config), transposed


def check_whole_shapes(catalog: Catalog, config: Mapping[str, object]) -> list[str]:
    """Refuse whole tensors, joined of the pieces of ranks, whose sizes no cut of the model in config.json explains.

    Raise StrategyError for all of them. Names of no known family, and what the config does not state, say nothing; one
    that contradicts tensors that no rank cuts is of another model, and noted.
    """
    listed = {e.spec.name: e.spec.shape for e in catalog.entries if e.cuts}
    cut = {e.spec.name: e.spec.shape for e in catalog.entries if max(e.cuts, default=1) > 1}
    if not config or not cut:
        return []
    try:
        found = detect(config, [name for name in listed if not is_adapter_name(name)])
        expected = expected_shapes(found, config)
    except PlanError:
        return []
    for name in listed:
        wanted = expected.get(name_key(weight_of(name)))
        if name not in cut and wanted is not None and wanted != listed[name]:
            return [f"config.json is not of this model: {name} is {list(listed[name])}, by it {list(wanted)}"]
    wrong = list(multiplied_shapes(cut, expected))
    raise_all(
        StrategyError,
        f"{catalog.url}: by the source's strategy its tensors have other sizes than config.json gives this model",
        [f"{name}: {list(cut[name])}, expected {list(shape)}" for name, shape in wrong],
        "Is this the strategy that these shards were written under, and that model's config.json?",
    )
    return []


def check_copies(catalog: Catalog, renamed: Mapping[str, str], change: Change, concurrency: int) -> list[str]:
    """Compare what the rules drop as copies of other tensors, and note it; raise CatalogError for what differs."""
    if change.family:
        family = load_family(change.family_key)
        copies = copies_to_drop(family, change.direction, change.naming, change.options, change.config)
    elif change.serving is not None:
        family = load_family(base_family(change.serving.engine, change.serving.family))
        copies = copies_to_drop(family, "to_ms", family.namings[0].name, {}, change.config)
    else:
        return []
    own = {new: old for old, new in renamed.items()}
    held = {own[name]: own[of] for name, of in copies.items() if name in own and of in own}
    if not held:
        return []
    places = [open_source(catalog.url), *map(open_source, catalog.others)]
    with working(concurrency, *(place.store for place in places)) as workers:
        return compare_copies(catalog, held, places, workers)


# Runs of several parts in one tensor.


def _with_runs_of_source(change: Change, entries: Mapping[str, Entry]) -> tuple[Change, list[str]]:
    """Take from the source's layouts how many runs its tensors hold, or check the number that was given."""
    given = _given_blocks(change)
    if not (has_contiguous_runs(change.family_key, change.naming, change.options) or given):
        return change, []
    axes = run_axes(load_family(change.family_key), change.naming, change.options, change.config)
    cuts = [(name, entry.cuts) for name, entry in entries.items() if entry.cuts]
    found = blocks_for_cuts(axes, cuts, given, "source")
    if found is None and given is None:
        unsure = [n for n, e in entries.items() if name_key(n) in axes and e.sharding is SourceSharding.SHARDED]
        raise_all(
            UsageError,
            "the source does not tell how many runs of several parts its tensors hold",
            unsure,
            f"Give the tensor-parallel size of the job that wrote them: {option('option', f'{BLOCKS}=N')}.",
        )
    return _with_blocks(change, found, "source")


def with_runs_of_target(change: Change, strategy: Strategy | None) -> tuple[Change, list[str]]:
    """Make as many runs as the target's strategy cuts tensors of several parts into, or check the given number.

    Raise StrategyError for a strategy that cuts such tensors differently, and UsageError for another given number.
    """
    if change.direction != "to_ms" or strategy is None:
        return change, []
    given = _given_blocks(change)
    if not (has_contiguous_runs(change.family_key, change.naming, change.options) or given):
        return change, []
    axes = run_axes(load_family(change.family_key), change.naming, change.options, change.config)
    cuts = [(name, layout.cuts) for stage in strategy.stages for name, layout in stage.items()]
    return _with_blocks(change, blocks_for_cuts(axes, cuts, given, "target"), "target")


def _given_blocks(change: Change) -> int | None:
    value = str(change.options.get(BLOCKS, ""))
    return int(value) if value.isdigit() else None


def _with_blocks(change: Change, blocks: int | None, side: str) -> tuple[Change, list[str]]:
    if blocks is None or BLOCKS in change.options:
        return change, []
    note = f"{BLOCKS} is {blocks}: the {side} strategy cuts tensors of several parts into as many pieces"
    return replace(change, options={**change.options, BLOCKS: blocks}), [note]


# Strategies from the sizes of a parallel job.


def strategy_from_parallel(
    parallel: ParallelConfig, change: Change, specs: Iterable[TensorSpec], request: Request
) -> tuple[Strategy, list[str]]:
    """Make the layouts that training, or serving, with these sizes has, with notes on what people may not expect."""
    by_name = {spec.name: spec for spec in specs}
    shapes: dict[str, Shape] = {name: spec.shape for name, spec in by_name.items()}
    family: FamilyKey | None = change.family_key or load_family_key(request.family)
    naming = change.naming or request.naming
    if change.direction == "to_hf":
        naming = "hf"
    # A change that no option asks for says nothing of the model, but heads are cut all the same.
    config = change.config or load_config(request.config, request.src)
    family = family or detect(config, shapes).family.name
    naming = naming if naming and naming in load_layouts(family) else naming_of(family, shapes)
    options = dict(change.options if change.family else request.option or {})
    if change.direction == "to_ms" and BLOCKS not in options and has_contiguous_runs(family, naming, options):
        options[BLOCKS] = parallel.mp
    strategy = derive_strategy(
        family,
        naming,
        parallel,
        shapes,
        nbytes={name: spec.nbytes for name, spec in by_name.items()},
        config=config,
        options=options,
    )
    return strategy, [*whole_embeddings(family, naming, parallel, strategy), *unchecked_heads(parallel, config)]


# Companions of Hugging Face's weights.


def attach_companions(request: Request, catalog: Catalog) -> tuple[Catalog, tuple[Attachment, ...]]:
    """Find config.json and the tokenizer's objects, to be copied: the catalog with them, and where they go."""
    config = request.config
    place = open_location(config).parent if isinstance(config, str) else prefix_of(request.src)
    infos = {name: info for name, info in place.named_objects() if is_companion(name)}
    others = (*catalog.others, place.url) if infos else catalog.others
    objects, found = list(catalog.objects), []
    for name, info in infos.items():
        if info.nbytes <= MAX_ATTACHMENT_BYTES:
            found.append(Attachment(name, len(objects), info.nbytes))
            objects.append(SourceObject(name, info.nbytes, info.etag, len(others)))
    return replace(catalog, objects=tuple(objects), others=others), tuple(found)
