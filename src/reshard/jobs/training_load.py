"""What one rank of a MindSpore Transformers job starts with, read into memory instead of being written for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, cast

from ..api.contents import inspect
from ..api.loads import READING_OPTIONS, Reading, as_stored, held_by, whole_tensors
from ..api.notebook_progress import listening
from ..api.request import Request
from ..api.resolve import resolve
from ..engine.events import Listener, Noted
from ..errors import UsageError, option
from ..formats.strict_yaml import PlainValue
from ..loading.loader import Loader
from ..planning.conversion import Conversion
from ..storage import shared_connections
from .training_config import TrainingConfig, config_of, read_training_config
from .training_job import decide
from .training_options import sharded_options
from .training_source import SourceKind, TrainingSource, find_source

_NOWHERE = "memory://nowhere/output"
_OF_FILES = ("dst", "form", "format", "prefix", "iteration", "remove_redundancy")
"""Options of a conversion that say how it is written."""


@shared_connections()
def load_for(
    config: str | PathLike[str] | Mapping[str, object],
    *,
    rank: int = 0,
    framework: str = "mindspore",
    max_gap: int | str = 0,
    on_event: Listener | None = None,
    **options: Any,
) -> Loader:
    """Open what one rank of a MindSpore Transformers job starts with; nothing is written.

    The rank gets the parameters of its network and, if the job resumes, its optimizer states and the counters of
    training. ``docs/howto/load.md`` says what each key does.

    Parameters
    ----------
    config
        Path or URL of the job's YAML file, or what it would say.
    rank
        The rank; 0 for a job on one card.
    framework, max_gap, on_event
        As for :func:`reshard.load`; a :class:`reshard.Noted` says what is loaded, and what in the configuration is
        in contradiction.
    options
        ``memory``, ``concurrency``, ``verify`` and ``give_up_after`` of :class:`reshard.api.Request`.

    Raises
    ------
    UsageError
        The configuration names no weights, contradicts itself, or its source does not fit the job and
        ``auto_trans_ckpt`` is not set; or there is no such rank.
    SourceError, PlanError, StorageError
        As for :func:`reshard.load`.
    """
    job_config = _read(config)
    given: dict[str, Any] = {} if job_config.resume_training else {"network_only": True}
    request = Request.of(READING_OPTIONS, **options)
    listener = listening(on_event)
    reading = Reading(request, framework, max_gap, listener)
    count = job_config.rank_count
    if not 0 <= rank < count:
        raise UsageError(f"{option('rank')} {rank} does not exist: expected one of 0..{count - 1}, those of the job")
    job = decide(job_config, on_event=listener, **options, **given)  # refuses what does not fit
    for note in (job.verdict, *job.contradictions):
        listener(Noted(note))
    source = find_source(job_config)
    if source is None:
        raise UsageError(f"{job_config.where}: no weights to load", hint="Set load_checkpoint or pretrained_model_dir.")
    if job.resolved is not None:
        conversion = job.resolved.conversion
    elif source.kind is SourceKind.RANKS and not source.knows_strategy:
        return _own_shard(source, rank, reading, given)
    else:
        conversion = _conversion(job_config, source, {**options, **given}, listener)
    return reading.loader(conversion, held_by(conversion, rank if count > 1 else None, keeps_redundancy=True))


def _read(config: str | PathLike[str] | Mapping[str, object]) -> TrainingConfig:
    """Read a configuration; where the job writes does not matter."""
    if isinstance(config, Mapping):
        read = config_of(cast("Mapping[str, PlainValue]", config))
    else:
        read = read_training_config(fspath(config))
    if read.conversions:
        hint = "Give that of a job, with load_checkpoint."
        raise UsageError(f"{read.where}: the file holds arguments of conversions, and no job", hint=hint)
    return replace(read, output_dir=_NOWHERE, only_save_strategy=False)


def _conversion(
    config: TrainingConfig, source: TrainingSource, given: Mapping[str, Any], on_event: Listener
) -> Conversion:
    """Return what the source becomes for the job, whose ranks read it as it is."""
    made = {**sharded_options(config, source, []), **given}
    kept = {name: value for name, value in made.items() if name not in _OF_FILES}
    if config.rank_count > 1:
        kept["dst"] = f"{_NOWHERE}/ranks"
    else:
        kept["dst"] = f"{_NOWHERE}/model.safetensors"
        del kept["parallel"]
    return resolve(Request.of(None, **kept), on_event).conversion


def _own_shard(source: TrainingSource, rank: int, reading: Reading, given: Mapping[str, Any]) -> Loader:
    """Open a rank's own objects, of shards that nothing says the layouts of."""
    catalog = inspect(source.url, file_suffix=source.file_suffix, **given)
    if catalog.metadata.get("remove_redundancy") == "True":
        hint = "Set src_strategy_path_or_dir to the strategy files of the run that wrote the shards."
        raise UsageError(f"{source.url}: each rank lacks what another has, and no strategy says which", hint=hint)
    conversion, above = as_stored(catalog), f"rank_{rank}/"
    names = [entry.spec.name for entry in catalog.entries if entry.spec.name.startswith(above)]
    held = [box for box in whole_tensors(conversion) if conversion.tensors[box[0]].spec.name.startswith(above)]
    return reading.loader(conversion, held, {name: name.removeprefix(above) for name in names})
