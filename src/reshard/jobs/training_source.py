"""What a training job's source is: full or ranks, in which names and formats, and where its strategy lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..api.contents import inspect, load_config
from ..engine.sources import Listing
from ..engine.sources.full_checkpoint import has_full_checkpoint
from ..errors import NotFound, PlanError
from ..formats.containers import Container, container_of
from ..formats.mindspore.rank_names import epoch_step_of
from ..formats.mindspore.rank_objects import parse_meta
from ..models.detecting import Detection, detect
from ..planning.conversion import MANIFEST_KEY
from ..planning.targets.full_target import HYPER_NAME
from ..storage import Location, open_source, read_object
from .training_config import TrainingConfig

_STRATEGY = "strategy"
_STRATEGY_SUFFIXES = (".ckpt", ".json")
_TRACKER = "latest_checkpointed_iteration.txt"
_METADATA = re.compile(r"(iteration_[0-9]+/)?metadata\.json")
_AFTER_RANK = re.compile(r"rank_[0-9]+(?P<rest>.*)", re.DOTALL)


class SourceKind(StrEnum):
    """How a source holds its tensors."""

    FULL = "full weights"
    RANKS = "shards of ranks"
    ITERATION = "an iteration"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSource:
    """What lies where a job's weights come from.

    Parameters
    ----------
    url, name
        Where it is, and the last part of that without the format's suffix.
    rank_count
        Ranks that have objects; 1 for full weights.
    formats
        Formats of its objects.
    strategy_url
        Where its strategy lies; None if it is full, or nothing was found.
    has_manifest
        Whether shards have a manifest beside them, which tells how they are cut.
    looked_at
        Where a strategy was looked for.
    file_suffix
        End of the names to take, of several checkpoints side by side; None for the last.
    has_counters
        Whether full weights have the counters of training beside them.
    """

    url: str
    name: str
    kind: SourceKind
    rank_count: int = 1
    formats: frozenset[Container] = frozenset()
    strategy_url: str | None = None
    has_manifest: bool = False
    looked_at: tuple[str, ...] = ()
    file_suffix: str | None = None
    has_counters: bool = True
    objects: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def is_full(self) -> bool:
        """Whether every tensor is whole."""
        return self.kind is SourceKind.FULL

    @property
    def knows_strategy(self) -> bool:
        """Whether it is known how the shards are cut."""
        return self.kind is not SourceKind.RANKS or self.strategy_url is not None or self.has_manifest


def find_source(config: TrainingConfig) -> TrainingSource | None:
    """Find out what a job's source is, from names of objects; None if the job has no source.

    Raise NotFound if nothing lies where ``load_checkpoint`` points.
    """
    url = config.load_checkpoint or config.pretrained_model_dir
    if not url:
        return None
    location = open_source(url)
    name = location.key.rpartition("/")[2] or location.store.url.rpartition("/")[2]
    container = container_of(location.key)
    if container is not None:
        name = name.removesuffix(container.suffix)
        return TrainingSource(url=url, name=name, kind=SourceKind.FULL, formats=frozenset([container]))
    listing = Listing(location)
    if not listing.objects or (not config.load_checkpoint and not listing.tensor_names):
        if config.load_checkpoint:
            raise NotFound(f"load_checkpoint: nothing lies at {location.url}", hint="Check the path.")
        return None
    return _found(config, listing, url, name)


def _found(config: TrainingConfig, listing: Listing, url: str, name: str) -> TrainingSource:
    by_rank = {rank: names for rank, names in listing.rank_objects.by_rank.items() if names}
    objects = frozenset(listing.objects)
    if _TRACKER in objects or any(_METADATA.fullmatch(key) for key in objects):
        return TrainingSource(url=url, name=name, kind=SourceKind.ITERATION, objects=objects)
    if not by_rank or has_full_checkpoint(listing):
        direct = [key for key in listing.tensor_names if "/" not in key]
        formats = frozenset(each for each in map(container_of, direct) if each)
        counters = HYPER_NAME in objects
        kind = SourceKind.FULL
        return TrainingSource(url=url, name=name, kind=kind, formats=formats, has_counters=counters, objects=objects)
    found = frozenset(each for names in by_rank.values() for each in map(container_of, names) if each)
    suffix = _resumed(config, listing, by_rank)
    if tuple(by_rank) == (0,):  # one device holds everything
        return TrainingSource(
            url=url, name=name, kind=SourceKind.FULL, formats=found, file_suffix=suffix, objects=objects
        )
    strategy_url, looked_at = _strategy(config, listing)
    return TrainingSource(
        url=url,
        name=name,
        kind=SourceKind.RANKS,
        rank_count=len(by_rank),
        formats=found,
        strategy_url=strategy_url,
        has_manifest=MANIFEST_KEY in objects,
        looked_at=looked_at,
        file_suffix=suffix,
        objects=objects,
    )


def _strategy(config: TrainingConfig, listing: Listing) -> tuple[str | None, tuple[str, ...]]:
    """Find the strategy of shards, and name the places that were looked at.

    Source: MindSpore Transformers, ``load_checkpoint_utils``: the folder ``strategy`` beside that of the shards.
    """
    given = config.src_strategy_path_or_dir
    if given:
        return given, (given,)
    places = (listing.location.parent.child(_STRATEGY), listing.location.child(_STRATEGY))
    looked_at = (*(place.url for place in places), listing.location.child(MANIFEST_KEY).url)
    return next((place.url for place in places if holds_strategy(place)), None), looked_at


def holds_strategy(place: Location) -> bool:
    """Whether strategy files lie right below a place."""
    return any("/" not in name and name.endswith(_STRATEGY_SUFFIXES) for name, _ in place.named_objects())


def _resumed(config: TrainingConfig, listing: Listing, by_rank: Mapping[int, tuple[str, ...]]) -> str | None:
    """Return the end of the names that a resumed job takes; None where there is nothing to choose."""
    if isinstance(config.resume_training, str):
        return suffix_of(config.resume_training)
    if not config.resume_training or all(len(names) == 1 for names in by_rank.values()):
        return None
    metas = listing.rank_objects.metas
    if metas.keys() < by_rank.keys():
        return None  # without the records of all ranks, names decide
    places = {rank: listing.location.child(metas[rank]) for rank in by_rank}
    records = [parse_meta(read_object(place), place.url) for place in places.values()]
    saved = {(record.last_epoch, record.last_step) for record in records}
    if len(saved) == 1:
        return None  # then the records themselves are followed
    # A run that was stopped between two ranks' saves goes on from the last that all have.
    common = set.intersection(*(set(map(epoch_step_of, names)) for names in by_rank.values()))
    last = max((each for each in common if each is not None and each <= min(saved)), default=None)
    return None if last is None else f"{last[0]}_{last[1]}"


def suffix_of(file_name: str) -> str:
    """Return the end that a file's name has in common with those of other ranks.

    Examples
    --------
    >>> suffix_of("llama_7b_rank_0-3_2.ckpt"), suffix_of("net-3_2.safetensors")
    ('-3_2', 'net-3_2')
    """
    base = file_name.rpartition("/")[2]
    container = container_of(base)
    stem = base.removesuffix(container.suffix) if container else base
    match = _AFTER_RANK.search(stem)
    return match["rest"] if match and match["rest"] else stem


def family_of(
    config: TrainingConfig, source: TrainingSource, notes: list[str]
) -> tuple[Detection | None, dict[str, object]]:
    """Detect the family of full weights, and read the model's ``config.json`` with the job's sizes on top.

    The family is None for tensors of no known one. Notes say where the two differ.
    """
    model = load_model_config(config, source, notes)
    names = [entry.spec.name for entry in inspect(source.url).entries]
    plain = [name for name in names if ".lora_" not in name and "delta_lora" not in name]
    try:
        return detect(model, plain), model
    except PlanError:
        return None, model


def load_model_config(config: TrainingConfig, source: TrainingSource, notes: list[str]) -> dict[str, object]:
    """Read ``config.json`` from ``pretrained_model_dir``, or beside the source; the job's own sizes replace its."""
    model: dict[str, object] = {}
    if config.pretrained_model_dir:
        model = load_config(None, config.pretrained_model_dir)
    model = model or load_config(None, source.url)
    for name, value in config.model_sizes.items():
        if name in model and model[name] != value:
            notes.append(f"model_config says {name} {value}, config.json {model[name]}: the first is taken")
    network = config.values.get("model.arch.type")
    known = {**model, **config.model_sizes}
    return (
        known if not network or known.keys() & {"model_type", "architectures"} else known | {"architectures": network}
    )
