"""MindSpore's and MindSpore Transformers' own calls on checkpoints, each made one conversion.

Arguments have the names that these tools give them, and take URLs. Where a tool does otherwise than
its documents promise, the documents are followed; ``docs/original-commands.md`` lists what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict, Unpack

from ..api.options import Options, Size, check_options, listed
from ..api.statements import draw, load_strategy_source, name_map_from, run, wanted_from
from ..api.strategies import merge_strategies
from ..engine.events import Listener, ignore
from ..engine.manifest import Manifest
from ..engine.sources import SourceOptions
from ..engine.sources.headers import container_of
from ..engine.sources.strategy_files import StrategySource
from ..errors import UsageError, raise_all
from ..formats.containers import Container
from ..formats.mindspore.ms_strategy_file import split_stage
from ..planning.catalog import Catalog, SourceSharding
from ..planning.limits import Limits
from ..planning.plan import Plan
from ..planning.sources.selection import NameFilter
from ..planning.targets.rank_target import RankTarget
from ..storage import shared_connections
from ..tensor import Strategy

_BUFFERS = "accu_grads"
_DROP_BUFFERS = f"prefix:{_BUFFERS}"
_MOST_REQUESTS = 64


class Extras(TypedDict, total=False):
    """What the original tools do not know, but every conversion does; see :class:`reshard.api.Options`."""

    drop: Iterable[str] | None
    keep_rank: int | None
    memory: Size | None


@shared_connections()
def unified_safetensors(
    mindspore_ckpt_dir: str,
    src_strategy_dirs: str,
    output_dir: str,
    *,
    file_suffix: str | None = None,
    format: str | None = None,  # noqa: A002  the tool's name for it
    has_redundancy: bool | None = None,
    filter_out_param_prefix: Iterable[str] | str | None = None,
    max_process_num: int | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
    **extras: Unpack[Extras],
) -> Manifest:
    """Merge rank shards into MindSpore's full form, as ``toolkit/safetensors/unified_safetensors.py`` does.

    Parameters
    ----------
    mindspore_ckpt_dir
        Prefix with ``rank_R/``.
    src_strategy_dirs
        The strategy that cut them: a file, or a prefix with those of all stages.
    output_dir
        Gets ``part<i>.safetensors``, ``param_name_map.json`` and ``hyper_param.safetensors``.
    file_suffix
        End of the names to take; by default the last of each rank, if they belong together.
    format
        ``safetensors``, and nothing else.
    has_redundancy
        What is said about the shards. The headers decide; a note tells both.
    filter_out_param_prefix
        Starts of names to leave out, from all objects.
    max_process_num
        Each process stands for 8 requests in flight, 64 at most.

    Raises
    ------
    ReshardError
        As for :func:`reshard.convert`.
    """
    if format not in (None, Container.SAFETENSORS):
        raise UsageError(f"--format {format}: unified checkpoints are made of safetensors")
    if text_or_none(src_strategy_dirs) is None:
        raise UsageError("merging needs the strategy that the shards were cut by: --src_strategy_dirs")
    options: Options = {
        "src_strategy": src_strategy_dirs,
        "file_suffix": text_or_none(file_suffix),
        "form": "mindspore",
        "concurrency": requests_for(max_process_num),
        **extra_options(extras, [f"prefix:{prefix}" for prefix in listed(filter_out_param_prefix)]),
    }
    check_options(options)
    wanted = _without_buffers(wanted_from(options))
    made = draw(mindspore_ckpt_dir, output_dir, wanted, None, options, on_event=on_event)
    notes = (*buffer_notes(made), *_redundancy_notes(made, wanted, has_redundancy))
    return run(with_notes(made, notes), overwrite=overwrite, on_event=on_event)


@shared_connections()
def transform_checkpoint(
    src_checkpoint: str,
    dst_checkpoint: str,
    *,
    src_strategy: str | None = None,
    dst_strategy: str | None = None,
    prefix: str = "checkpoint_",
    rank_id: int | None = None,
    world_size: int | None = None,
    process_num: int | None = None,
    transform_by_rank: bool = False,
    format: str | None = None,  # noqa: A002  the tool's name for it
    file_suffix: str | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
    **extras: Unpack[Extras],
) -> Manifest:
    """Bring a checkpoint from one strategy to another, as ``transform_checkpoint.py`` does.

    Parameters
    ----------
    src_checkpoint
        One object, or a prefix: with ``rank_R/``, or of a full checkpoint in any form.
    dst_checkpoint
        Gets ``rank_R/<prefix>R.<format>``.
    src_strategy, dst_strategy
        A file, or a prefix with those of all stages; None for a full checkpoint.
    rank_id, transform_by_rank
        Only with ``transform_by_rank`` are single ranks written: ``world_size / process_num`` of them from
        ``rank_id`` on, as one process of the tool does. Their manifest has a name of its own.
    world_size
        Ranks of the target; must be what the strategy says.
    process_num
        Each process stands for 8 requests in flight, 64 at most.
    format
        ``ckpt`` or ``safetensors``; by default that of the source.
    file_suffix
        End of the names to take where ranks of the source have several objects.

    Raises
    ------
    ReshardError
        As for :func:`reshard.convert`.
    """
    src_strategy, dst_strategy = text_or_none(src_strategy), text_or_none(dst_strategy)
    if src_strategy is None and dst_strategy is None:
        raise UsageError(
            "--src_strategy and --dst_strategy cannot both be None",
            hint="reshard convert SRC DST --prefix checkpoint_ writes a full checkpoint anew.",
        )
    options: Options = {
        "src_strategy": src_strategy,
        "prefix": prefix,
        "format": format,
        "file_suffix": text_or_none(file_suffix),
        "concurrency": requests_for(process_num),
        **extra_options(extras),
    }
    check_options(options)
    target = load_strategy_source(dst_strategy) if dst_strategy else None
    wanted = for_target(wanted_from(options), target)
    share = _Share(rank_id or 0, process_num or 1) if transform_by_rank else None
    settle = partial(_settle_transform, format=format, world_size=world_size, share=share)
    made = draw(src_checkpoint, dst_checkpoint, wanted, target, options, settle=settle, on_event=on_event)
    made = with_notes(made, buffer_notes(made))
    return run(_part_of(made), overwrite=overwrite, on_event=on_event)


@shared_connections()
def load_distributed_checkpoint(
    unified_safetensors_dir: str,
    dst_safetensors_dir: str,
    predict_strategy: str | None = None,
    *,
    format: str | None = None,  # noqa: A002  the tool's name for it
    rank_id: int | None = None,
    name_map: Mapping[str, str] | str | None = None,
    max_process_num: int | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
    **extras: Unpack[Extras],
) -> Manifest:
    """Cut a full checkpoint, as ``mindspore.load_distributed_checkpoint`` does without a network.

    Parameters
    ----------
    unified_safetensors_dir
        A full checkpoint in any form.
    dst_safetensors_dir
        Gets ``rank_R/net.<format>``.
    predict_strategy
        A file, or a prefix with those of all stages; None for one rank that holds everything.
    format
        ``safetensors``, the default, or ``ckpt``.
    rank_id
        The only rank to write; its manifest has a name of its own.
    name_map
        Names in the source by those in the target: the other way round than ``--name-map`` of
        :func:`reshard.convert`. Or the URL of a JSON file that holds them.
    max_process_num
        Each process stands for 8 requests in flight, 64 at most.

    Raises
    ------
    ReshardError
        As for :func:`reshard.convert`.
    """
    strategy = text_or_none(predict_strategy)
    if strategy is None and rank_id:
        raise UsageError(f"--rank_id {rank_id} needs --predict_strategy", hint="Without one there is only rank 0.")
    container = Container(format) if format in ("ckpt", "safetensors") else Container.SAFETENSORS
    options: Options = {
        "prefix": f"net{container.suffix}",
        "format": format,
        "name_map": _turned(name_map),
        "concurrency": requests_for(max_process_num),
        **extra_options(extras),
    }
    check_options(options)
    target = load_strategy_source(strategy) if strategy else None

    def settle(_catalog: Catalog, strategy: Strategy | None) -> Options:
        return {} if strategy is None or rank_id is None else {"ranks": (rank_id,)}

    source, place = unified_safetensors_dir, dst_safetensors_dir
    made = draw(source, place, wanted_from(options), target, options, settle=settle, on_event=on_event)
    return run(_part_of(made), overwrite=overwrite, on_event=on_event)


def merge_pipeline_strategys(src_strategy_dirs: str, dst_strategy_file: str, *, overwrite: bool = False) -> Strategy:
    """Merge the strategy files of all stages into one; :func:`merge_strategies` under MindSpore's name."""
    return merge_strategies(src_strategy_dirs, dst_strategy_file, overwrite=overwrite)


def requests_for(process_count: int | None) -> int | None:
    """Requests in flight that stand for a number of processes; None, the default, for no more than one.

    Examples
    --------
    >>> requests_for(1), requests_for(2), requests_for(64)
    (None, 16, 64)
    """
    if process_count is not None and process_count < 0:
        raise UsageError(f"{process_count} processes: expected a number from 1 on, or 0 for the default")
    return min(Limits().concurrency * process_count, _MOST_REQUESTS) if process_count and process_count > 1 else None


def text_or_none(text: str | None) -> str | None:
    """What was given; the word ``None`` is nothing, as in the tools' scripts."""
    return None if text in (None, "", "None") else text


def extra_options(extras: Extras, drop: Iterable[str] = ()) -> Options:
    """What every conversion is told of extras, and more names to leave out."""
    keep_rank, memory = extras.get("keep_rank"), extras.get("memory")
    return {"drop": (*(extras.get("drop") or ()), *drop), "keep_rank": keep_rank, "memory": memory}


@dataclass(frozen=True, slots=True)
class _NoBuffers(NameFilter):
    """Leaves gradient-accumulation buffers out too: nobody asked, so that there are none is nothing to tell."""

    def unmatched_drop(self, names: Iterable[str]) -> tuple[str, ...]:
        missed = NameFilter.unmatched_drop(self, frozenset(names))
        return tuple(pattern for pattern in missed if pattern != _DROP_BUFFERS)


def _without_buffers(wanted: SourceOptions) -> SourceOptions:
    return replace(wanted, names=_NoBuffers(wanted.names.keep, (*wanted.names.drop, _DROP_BUFFERS)))


def for_target(wanted: SourceOptions, target: StrategySource | None) -> SourceOptions:
    """Leave buffers out that a target strategy has no layouts for; a layout file's rules may have."""
    if target is None or target.rules is not None:
        return wanted
    names = (split_stage(name)[1] for file in target.files for name in file.layouts)
    return wanted if any(name.startswith(_BUFFERS) for name in names) else _without_buffers(wanted)


def with_notes(made: Plan, notes: tuple[str, ...]) -> Plan:
    """Add notes about the source to a plan."""
    catalog = replace(made.conversion.catalog, notes=(*made.conversion.catalog.notes, *notes))
    return replace(made, conversion=replace(made.conversion, catalog=catalog))


def buffer_notes(made: Plan) -> tuple[str, ...]:
    """How many buffers of gradient accumulation were left out."""
    buffers = [name for name in made.catalog.dropped if name.startswith(_BUFFERS)]
    told = f"{len(buffers)} of the tensors left out are gradient-accumulation buffers ({_BUFFERS}*), as in MindSpore"
    return (told,) if buffers else ()


def _redundancy_notes(made: Plan, wanted: SourceOptions, said: bool | None) -> tuple[str, ...]:
    """What was said of redundancy beside what the headers show."""
    if said is None or wanted.strategy is None:
        return ()
    lacking = _lacking_copies(made.catalog, wanted.strategy)
    found = f"{lacking} copies are missing, so it was removed" if lacking else "every rank holds all it owns"
    verdict = "as said" if said is not bool(lacking) else "not as said; the headers decide"
    return (f"has_redundancy {said} was said; in the headers {found}: {verdict}",)


def _lacking_copies(catalog: Catalog, source: StrategySource) -> int:
    """How many ranks lack a tensor that the strategy gives them, over all tensors."""
    strategy = source.strategy({entry.spec.name: entry.spec.shape for entry in catalog.entries}, local=False)
    held = [
        {index for placement in entry.placements for index, _ in placement.holders}
        for entry in catalog.entries
        if entry.sharding is not SourceSharding.UNLISTED and entry.placements
    ]
    return sum(strategy.device_count - len(objects) for objects in held)


@dataclass(frozen=True, slots=True)
class _Share:
    """The ranks that one process of the tool writes."""

    rank_id: int
    process_count: int

    def ranks(self, rank_count: int) -> range:
        """Those of so many.

        Raises
        ------
        UsageError
            The processes do not share the ranks evenly, or there is no such rank.
        """
        count, rest = divmod(rank_count, min(self.process_count, rank_count))
        if rest:
            raise UsageError(f"{rank_count} ranks cannot be shared evenly by {self.process_count} processes")
        if not 0 <= self.rank_id <= rank_count - count:
            raise UsageError(
                f"--rank_id {self.rank_id}: a process writes {count} ranks from there on, and there are {rank_count}",
                hint=f"Expected 0, {count}, ... up to {rank_count - count}.",
            )
        return range(self.rank_id, self.rank_id + count)


def _settle_transform(
    catalog: Catalog,
    strategy: Strategy | None,
    *,
    format: str | None,  # noqa: A002  as the option is called
    world_size: int | None,
    share: _Share | None,
) -> Options:
    """What the source decides: its own format is kept, and ranks are counted by the target strategy."""
    rank_count = 1 if strategy is None else strategy.rank_count
    if world_size not in (None, rank_count):
        what = "a full checkpoint is one rank" if strategy is None else f"the target strategy has {rank_count}"
        raise UsageError(f"--world_size {world_size}: {what}", hint="Leave it out, or name the strategy that is meant.")
    ranks = None if share is None else share.ranks(rank_count)
    return {
        "format": format or container_of(catalog.objects[0].key),
        "ranks": None if strategy is None else ranks,
    }


def _part_of(made: Plan) -> Plan:
    """A plan for some ranks gets a manifest of its own: other processes write the others to the same place."""
    target = made.conversion.target
    if not isinstance(target, RankTarget) or len(target.ranks) == target.strategy.rank_count:
        return made
    first, last = target.ranks[0], target.ranks[-1]
    span = str(first) if first == last else f"{first}-{last}"
    conversion = replace(made.conversion, manifest_key=f"reshard-manifest-rank_{span}.json")
    return replace(made, conversion=conversion)


def _turned(name_map: Mapping[str, str] | str | None) -> dict[str, str]:
    """New names by old, of a map from new names to old."""
    targets: dict[str, list[str]] = {}
    for target, name in name_map_from(name_map).items():
        targets.setdefault(name, []).append(target)
    raise_all(
        UsageError,
        "a tensor of the source can have one name in the target only",
        [f"{name}: {', '.join(several)}" for name, several in targets.items() if len(several) > 1],
        hint="The map is {name in the target: name in the source}.",
    )
    return {name: several[0] for name, several in targets.items()}
