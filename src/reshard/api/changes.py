"""Names, layouts and values of a request: a family's rules, dtypes, adapters, and strategies from parallel sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..engine.sources.strategy_files import read_object
from ..errors import NotFound, UsageError, option
from ..models.detecting import Detection, detect
from ..models.family_file import FamilyKey, OwnFamily
from ..models.inferring import infer_sizes
from ..models.lora import find_adapters, is_adapter_name
from ..models.lora_config import parse_adapter_config, scalings
from ..models.parallel_config import ParallelConfig
from ..models.parallel_rules import load_layouts, naming_of
from ..models.parallel_strategy import derive_strategy
from ..planning.catalog import Catalog, SourceObject
from ..planning.change import Change, make_tensors
from ..planning.conversion import MAX_ATTACHMENT_BYTES
from ..planning.outputs.output import Attachment
from ..planning.sources.selection import NameFilter
from ..planning.targets.written_keys import is_companion
from ..storage import Location, open_location, open_source
from ..tensor import DType, Shape, Strategy, TensorSpec
from .contents import load_config, load_family_key, prefix_of
from .request import Request

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
    change = Change(config=config, dtype=_DTYPES[request.dtype] if request.dtype else None)
    if request.lora or request.merge_lora:
        scaled, transposed = _adapters(request, catalog, specs)
        change = replace(change, scalings=scaled, transposed=transposed)
    notes: list[str] = []
    if request.to:
        change, notes = _with_rules(change, request, specs, parallel)
    if request.keep_dtype:
        names = [tensor.spec.name for tensor in make_tensors(catalog, renamed, change).tensors]
        chosen = NameFilter(keep=request.keep_dtype)
        if missed := chosen.unmatched_keep(names):
            raise UsageError(f"{option('keep_dtype', ', '.join(missed))} matches no tensor of the target")
        change = replace(change, kept=frozenset(name for name in names if chosen.is_kept(name)))
    if change == Change(config=config):
        return Change(), notes  # a plan does not depend on what no option asks for
    return change, notes


def _with_rules(
    change: Change, request: Request, specs: Mapping[str, TensorSpec], parallel: ParallelConfig | None
) -> tuple[Change, list[str]]:
    """Choose the family's rules by the source's names and the request."""
    names = [name for name in specs if not is_adapter_name(name)]
    key = load_family_key(request.family)
    found = detect(change.config, names, family=key)
    if found.direction != f"to_{request.to}":
        message = f"{option('to', request.to)}, but the source has {request.to} names already"
        raise UsageError(message, hint="; ".join(found.reasons))
    naming = _naming(found, key or found.family.name, request, parallel) if request.to == "ms" else found.naming
    options: dict[str, int | str | bool] = {**dict(found.options), **(request.option or {})}
    side = "hf" if request.to == "ms" else "ms"
    config = infer_sizes(found.family, naming, side, options, change.config, {name: specs[name] for name in names})
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
    known = load_layouts(key)
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


# Strategies from the sizes of a parallel job.


def strategy_from_parallel(
    parallel: ParallelConfig, change: Change, specs: Iterable[TensorSpec], request: Request
) -> Strategy:
    """Make the layouts that training, or serving, with these sizes has."""
    by_name = {spec.name: spec for spec in specs}
    shapes: dict[str, Shape] = {name: spec.shape for name, spec in by_name.items()}
    family: FamilyKey | None = change.family_key or load_family_key(request.family)
    naming = change.naming or request.naming
    if change.direction == "to_hf":
        naming = "hf"
    family = family or detect(change.config, shapes).family.name
    naming = naming if naming and naming in load_layouts(family) else naming_of(family, shapes)
    return derive_strategy(
        family,
        naming,
        parallel,
        shapes,
        nbytes={name: spec.nbytes for name, spec in by_name.items()},
        config=change.config,
        options=dict(change.options),
    )


def embedding_notes(parallel: ParallelConfig | None, change: Change) -> list[str]:
    """Note embeddings that parallel sizes leave whole, where people may not expect it."""
    if parallel is None or change.naming == "mcore" or change.direction == "to_hf":
        return []
    if not parallel.vocab_emb_dp or parallel.mp * parallel.cp == 1 or parallel.pp > 1:
        return []
    return [
        "vocab_emb_dp is true, MindSpore Transformers' default: embedding and output layer are whole on "
        "every rank; vocab_emb_dp=false cuts them"
    ]


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
