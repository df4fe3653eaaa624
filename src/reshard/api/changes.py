"""What options say of names, layouts and values: a family's rules, dtypes, adapters, and strategies from numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..engine.source_check import head_or_none
from ..engine.sources.read_source import SourceOptions, read_catalog
from ..engine.sources.strategy_files import read_object
from ..engine.workers import Workers
from ..errors import NotFound, UsageError
from ..formats.strict_json import parse_json_object
from ..models.detecting import detect
from ..models.lora import find_adapters
from ..models.lora_config import AdapterConfig, parse_adapter_config, scalings
from ..models.parallel_config import ParallelConfig, parse_parallel, parse_parallel_yaml
from ..models.parallel_rules import load_layouts
from ..models.parallel_strategy import derive_strategy
from ..planning.catalog import Catalog, SourceObject
from ..planning.change import Change, make_tensors
from ..planning.conversion import MAX_ATTACHMENT_BYTES
from ..planning.outputs.output import Attachment, TargetTensor
from ..planning.sources.full_source import with_adapters
from ..planning.sources.selection import NameFilter
from ..storage import open_location, open_source
from ..tensor import DType, Shape, Strategy, TensorSpec
from .options import Options, listed

_DTYPES = {"fp32": DType.F32, "fp16": DType.F16, "bf16": DType.BF16}
_ADAPTER_CONFIG = "adapter_config.json"
_YAML = (".yaml", ".yml")
_COMPANIONS = ("config.json", "generation_config.json", "preprocessor_config.json", "chat_template.jinja")
_TOKENIZER = ("tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens", "spiece", "chat_template")


def change_from(options: Options, catalog: Catalog, renamed: Mapping[str, str], src: str) -> tuple[Change, list[str]]:
    """What to change, and how that was found out.

    Raises
    ------
    UsageError
        Options that contradict the source or each other.
    PlanError
        The family cannot be told, or adapters do not fit.
    """
    specs = {renamed[e.spec.name]: replace(e.spec, name=renamed[e.spec.name]) for e in catalog.entries}
    config = load_config(options.get("config"), src)
    change = Change(config=config, dtype=_dtype(options.get("dtype")))
    if options.get("lora") or options.get("merge_lora"):
        scaled, transposed = _adapters(options, catalog, specs, src)
        change = replace(change, scalings=scaled, transposed=transposed)
    notes: list[str] = []
    if options.get("to"):
        if not config:
            raise UsageError(f"{src}: there is no config.json beside it", hint="Name the model's: --config URL.")
        change, notes = _ruled(change, options, specs)
    patterns = listed(options.get("keep_dtype"))
    if patterns:
        names = [tensor.spec.name for tensor in make_tensors(catalog, renamed, change).tensors]
        change = replace(change, kept=_matching(patterns, names))
    if change == Change(config=config):
        return Change(), notes  # a plan does not depend on what nothing asks for
    return change, notes


def _dtype(text: str | None) -> DType | None:
    if text is None:
        return None
    if text not in _DTYPES:
        raise UsageError(f"dtype {text!r}: expected one of {', '.join(_DTYPES)}")
    return _DTYPES[text]


def _ruled(change: Change, options: Options, specs: Mapping[str, TensorSpec]) -> tuple[Change, list[str]]:
    """The family's rules, as the source's names and the options tell."""
    to, naming = options.get("to"), options.get("naming")
    names = [name for name in specs if ".lora_" not in name and "delta_lora" not in name]
    found = detect(change.config, names, family=options.get("family"))
    if found.direction != f"to_{to}":
        raise UsageError(f"--to {to}, but the source has {to} names already", hint="; ".join(found.reasons))
    stated = {**dict(found.options), **_pairs(listed(options.get("option")))}
    chosen = naming if to == "ms" and naming else found.naming
    ruled = replace(
        change,
        family=found.family.name,
        direction=found.direction,
        naming=chosen,
        options=stated,  # type: ignore[arg-type]
    )
    return ruled, [f"found {found.family.name}: {'; '.join(found.reasons)}"]


def _pairs(texts: Iterable[str]) -> dict[str, object]:
    """Options of a family as people write them, NAME=VALUE."""
    found: dict[str, object] = {}
    for item in texts:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise UsageError(f"--option {item}: expected NAME=VALUE")
        found[name] = int(value) if value.isdecimal() and len(value) < 10 else value
    return found


def _matching(patterns: tuple[str, ...], names: Iterable[str]) -> frozenset[str]:
    chosen, names = NameFilter(keep=patterns), list(names)
    missed = chosen.unmatched_keep(names)
    if missed:
        raise UsageError(f"--keep-dtype {', '.join(missed)} matches no tensor of the target")
    return frozenset(name for name in names if chosen.is_kept(name))


# Adapters.


def add_adapters(catalog: Catalog, options: Options, workers: Workers) -> Catalog:
    """Put adapters that are stored apart beside the model's tensors."""
    url = options.get("lora")
    if not url:
        return catalog
    place = open_source(url)
    alone = place.child("adapter_model.safetensors")  # beside a whole model, perhaps
    place = alone if not url.endswith(".safetensors") and head_or_none(alone) else place
    return with_adapters(catalog, read_catalog(place, SourceOptions(), workers))


def _adapters(
    options: Options, catalog: Catalog, specs: Mapping[str, TensorSpec], src: str
) -> tuple[dict[str, float], bool]:
    """The scaling of every pair, and whether weights are stored turned over."""
    config, scaling = _adapter_config(options, src), options.get("lora_scaling")
    is_apart = {i for i, item in enumerate(catalog.objects) if item.base}
    apart = {e.spec.name for e in catalog.entries if e.placements and e.placements[0].holders[0][0] in is_apart}
    transposed = config.fan_in_fan_out if config is not None else False
    found = find_adapters(
        [spec for name, spec in specs.items() if name not in apart],
        [spec for name, spec in specs.items() if name in apart],
        transposed=transposed,
    )
    if scaling is None and config is None:
        raise UsageError(
            "what the adapters' product is multiplied by is not said",
            hint=f"Give --lora-scaling (alpha / rank), or put {_ADAPTER_CONFIG} beside the adapters.",
        )
    said = None if scaling is not None else config
    return scalings(found.pairs, scaling, said), transposed


def _adapter_config(options: Options, src: str) -> AdapterConfig | None:
    place = open_location(options.get("lora") or src)
    base = place.parent if place.key.endswith((".safetensors", ".ckpt")) else place
    try:
        return parse_adapter_config(read_object(base.child(_ADAPTER_CONFIG)), base.child(_ADAPTER_CONFIG).url)
    except NotFound:
        return None


# Strategies from numbers.


def strategy_by_numbers(text: str, change: Change, tensors: Iterable[TargetTensor], options: Options) -> Strategy:
    """The layouts that training, or serving, with these numbers has."""
    shapes: dict[str, Shape] = {tensor.spec.name: tensor.spec.shape for tensor in tensors}
    family, naming = change.family or options.get("family"), change.naming or options.get("naming")
    if change.direction == "to_hf":
        naming = "hf"
    family = family or detect(change.config, shapes).family.name
    naming = naming if naming and naming in load_layouts(family) else naming_of(family, shapes)
    nbytes = {tensor.spec.name: tensor.spec.nbytes for tensor in tensors}
    numbers = load_parallel(text)
    return derive_strategy(
        family, naming, numbers, shapes, nbytes=nbytes, config=change.config, options=dict(change.options)
    )


def load_parallel(text: str) -> ParallelConfig:
    """Read numbers as text, or from the YAML configuration at a URL.

    Examples
    --------
    >>> load_parallel("dp=2,mp=4").rank_count
    8
    """
    if not text.endswith(_YAML):
        return parse_parallel(text)
    place = open_location(text)
    return parse_parallel_yaml(read_object(place), place.url)


def load_config(said: Mapping[str, object] | str | None, checkpoint: str) -> dict[str, object]:
    """Read config.json unless that was done; an empty one if none is named and none lies beside the checkpoint."""
    if isinstance(said, Mapping):
        return dict(said)
    if said is not None:
        place = open_location(said)
        return parse_json_object(read_object(place), place.url)
    base = open_location(checkpoint)
    beside = base.parent if checkpoint.rstrip("/").endswith((".safetensors", ".ckpt")) else base
    place = beside.child("config.json")
    try:
        return parse_json_object(read_object(place), place.url)
    except NotFound:
        return {}


def naming_of(family: str, shapes: Mapping[str, Shape]) -> str:
    """The naming of a family that knows all tensors.

    Raises
    ------
    UsageError
        None does, or several do.
    """
    namings = load_layouts(family)
    unknown = {naming: rules.unknown(shapes) for naming, rules in namings.items()}
    fitting = [naming for naming, names in unknown.items() if not names]
    if len(fitting) == 1:
        return fitting[0]
    found = [f"{naming}: {len(names)} unknown, {', '.join(names[:3])}" for naming, names in unknown.items() if names]
    told = f"the tensors fit {' and '.join(fitting) or 'none'} of the namings of {family}"
    raise UsageError(told, hint="Name the one that is meant: --naming.", problems=found)


def notes_on_numbers(text: str | None, change: Change) -> list[str]:
    """What numbers leave as it is, where people do not expect it."""
    if text is None or change.naming == "mcore" or change.direction == "to_hf":
        return []
    numbers = load_parallel(text)
    if not numbers.vocab_emb_dp or numbers.mp * numbers.cp == 1 or numbers.pp > 1:
        return []
    return [
        "vocab_emb_dp is true, as MindSpore Transformers has it by default: embedding and output layer are whole on "
        "every rank; vocab_emb_dp=false cuts them"
    ]


# What lies beside Hugging Face's weights.


def attach_companions(
    catalog: Catalog, src: str, config: Mapping[str, object] | str | None
) -> tuple[Catalog, list[Attachment]]:
    """Find config.json and the tokenizer's objects, to be copied: the catalog with them, and where they go."""
    place = open_source(config).parent if config and isinstance(config, str) else open_source(src)
    if place.key.endswith((".safetensors", ".ckpt")):
        place = place.parent
    infos = {name: info for name, info in place.named_objects() if "/" not in name and _is_companion(name)}
    others = (*catalog.others, place.url) if infos else catalog.others
    objects, found = list(catalog.objects), []
    for name, info in infos.items():
        if info.nbytes <= MAX_ATTACHMENT_BYTES:
            found.append(Attachment(name, len(objects), info.nbytes))
            objects.append(SourceObject(name, info.nbytes, info.etag, len(others)))
    return replace(catalog, objects=tuple(objects), others=others), found


def _is_companion(name: str) -> bool:
    return name in _COMPANIONS or (name.startswith(_TOKENIZER) and name.endswith((".json", ".txt", ".model", ".jinja")))
