"""MindSpore's and MindSpore Transformers' own calls on checkpoints, each made one conversion.

Arguments have the names that these tools give them, and take URLs. Where a tool deviates from its
documentation, the documentation is followed; ``docs/original-commands.md`` lists the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from ..api.option_field import OptionField, read_document, read_nullable, read_texts, read_truth
from ..api.request import Request
from ..api.resolve import Headers, Hooks, load_name_map, resolve
from ..engine.sources import SourceOptions
from ..engine.sources.strategy_files import StrategySource
from ..errors import UsageError, option, raise_all
from ..formats.containers import Container, container_of
from ..formats.mindspore.strategy_file import split_stage
from ..planning.catalog import SourceSharding
from ..planning.sources.selection import NameFilter
from ..tensor import Strategy
from .imitation import FileSuffix, Processes, Translation, format_option, imitation, processes_option, requests_for

_BUFFERS = "accu_grads"
_DROP_BUFFERS = f"prefix:{_BUFFERS}"


def _strategy_of(side: str) -> OptionField:
    text = f"Strategy file of the {side}, or a prefix with those of all stages; None for a full checkpoint."
    return OptionField(text, "URL", read=read_nullable)


SourceStrategy = Annotated[str | None, _strategy_of("source")]
TargetStrategy = Annotated[str | None, _strategy_of("target")]
Prefix = Annotated[str, OptionField("Prefix of the objects' names, before the rank.", "NAME", default="checkpoint_")]


@imitation(
    "drop",
    "keep_rank",
    "memory",
    src="mindspore_ckpt_dir",
    src_strategy="src_strategy_dirs",
    dst="output_dir",
    concurrency="max_process_num",
)
def unified_safetensors(
    mindspore_ckpt_dir: Annotated[str, OptionField("Prefix of the rank shards, with rank_R/.", "URL")],
    src_strategy_dirs: Annotated[
        str,
        OptionField("Strategy file of the shards, or a prefix with those of all stages.", "URL", read=read_nullable),
    ],
    output_dir: Annotated[str, OptionField("Where the parts and param_name_map.json go.", "URL")],
    *,
    file_suffix: FileSuffix = None,
    format: Annotated[str | None, OptionField("safetensors, and nothing else.", "FORMAT")] = None,  # noqa: A002
    has_redundancy: Annotated[
        bool | None,
        OptionField("Whether redundancy was kept; the headers decide, a note compares.", "BOOL", read=read_truth),
    ] = None,
    filter_out_param_prefix: Annotated[
        Iterable[str] | str | None, OptionField("Prefix of names to leave out.", "TEXT", read=read_texts)
    ] = None,
    max_process_num: Processes = None,
) -> Translation:
    """Merge rank shards into MindSpore's full form, as ``toolkit/safetensors/unified_safetensors.py`` does."""
    if format not in (None, Container.SAFETENSORS):
        raise UsageError(f"{option('format', format)}: unified checkpoints consist of safetensors")
    if not src_strategy_dirs:
        raise UsageError(f"Merging needs the strategy that cut the shards: {option('src_strategy')}")
    request = Request.of(
        src=mindspore_ckpt_dir,
        dst=output_dir,
        src_strategy=src_strategy_dirs,
        file_suffix=file_suffix,
        form="mindspore",
        concurrency=requests_for(max_process_num),
        drop=[f"prefix:{prefix}" for prefix in filter_out_param_prefix or ()],
    )
    return request, partial(resolve, hooks=_Unify(has_redundancy))


@imitation("drop", "keep_rank", "memory", src="src_checkpoint", dst="dst_checkpoint", concurrency="process_num")
def transform_checkpoint(
    src_checkpoint: Annotated[str, OptionField("One object, or a prefix: with rank_R/, or full.", "URL")],
    dst_checkpoint: Annotated[
        str,
        OptionField("Where rank_R/<prefix>R.<format> go.", "URL", flags=("--dst_checkpoint", "--dst_checkpoint_dir")),
    ],
    *,
    src_strategy: SourceStrategy = None,
    dst_strategy: TargetStrategy = None,
    prefix: Prefix = "checkpoint_",
    rank_id: Annotated[
        int | None, OptionField(f"First rank to write, with {option('transform_by_rank')}.", "R", least=0)
    ] = None,
    world_size: Annotated[
        int | None, OptionField("Ranks of the target; must agree with the strategy.", "N", least=1)
    ] = None,
    process_num: Annotated[int | None, processes_option("--process_num", "--transform_process_num")] = None,
    transform_by_rank: Annotated[
        bool,
        OptionField("Write one process's share of the ranks only: world_size / process_num.", "BOOL", read=read_truth),
    ] = False,
    format: Annotated[str | None, format_option("the source's")] = None,  # noqa: A002
    file_suffix: FileSuffix = None,
) -> Translation:
    """Bring a checkpoint from one strategy to another, as ``transform_checkpoint.py`` does."""
    if src_strategy is None and dst_strategy is None:
        raise UsageError(
            f"{option('src_strategy')} and {option('dst_strategy')} cannot both be None",
            hint="reshard convert SRC DST --prefix checkpoint_ writes a full checkpoint in another form.",
        )
    request = Request.of(
        src=src_checkpoint,
        dst=dst_checkpoint,
        src_strategy=src_strategy,
        dst_strategy=dst_strategy,
        prefix=prefix,
        format=format,
        file_suffix=file_suffix,
        concurrency=requests_for(process_num),
    )
    share = partial(_share, rank_id or 0, process_num or 1) if transform_by_rank else None
    return request, partial(resolve, hooks=_Transform(world_size, share))


@imitation(
    "drop",
    "memory",
    src="unified_safetensors_dir",
    dst="dst_safetensors_dir",
    dst_strategy="predict_strategy",
    ranks="rank_id",
    concurrency="max_process_num",
)
def load_distributed_checkpoint(
    unified_safetensors_dir: Annotated[str, OptionField("Prefix or object of the full checkpoint.", "URL")],
    dst_safetensors_dir: Annotated[str, OptionField("Where rank_R/net.<format> go.", "URL")],
    predict_strategy: TargetStrategy = None,
    *,
    format: Annotated[str | None, format_option("safetensors")] = None,  # noqa: A002
    rank_id: Annotated[int | None, OptionField("The only rank to write.", "R", least=0, default="all")] = None,
    name_map: Annotated[
        Mapping[str, str] | str | None,
        OptionField(
            'Names in the source by those in the target, {"new": "old"}, or the URL of a JSON file with them.',
            "URL.json",
            read=read_document,
        ),
    ] = None,
    max_process_num: Processes = None,
) -> Translation:
    """Cut a full checkpoint, as ``mindspore.load_distributed_checkpoint`` does without a network.

    The name map is the other way round than that of :func:`reshard.convert`.
    """
    if predict_strategy is None and rank_id:
        needs = f"{option('rank_id', rank_id)} needs {option('predict_strategy')}"
        raise UsageError(needs, hint="Without one there is only rank 0.")
    request = Request.of(
        src=unified_safetensors_dir,
        dst=dst_safetensors_dir,
        dst_strategy=predict_strategy,
        prefix=f"net.{format or Container.SAFETENSORS}",
        format=format,
        name_map=_inverted(load_name_map(name_map)),
        concurrency=requests_for(max_process_num),
    )
    return request, partial(resolve, hooks=_OneRank(rank_id))


def merge_pipeline_strategys(src_strategy_dirs: str, dst_strategy_file: str, *, overwrite: bool = False) -> Strategy:
    """Merge the strategy files of all stages into one: ``merge_strategies`` under MindSpore's name."""
    from ..api.strategies import merge_strategies  # with all that writes: not for help

    return merge_strategies(src_strategy_dirs, dst_strategy_file, overwrite=overwrite)


# What follows from a source.


class LeaveOutBuffers(Hooks):
    """Leaves out gradient-accumulation buffers that a target strategy has no layouts for; a layout file may have."""

    def select(self, wanted: SourceOptions, target: StrategySource | None) -> SourceOptions:
        """Leave out the buffers where that is due."""
        if target is None or target.rules is not None:
            return wanted
        names = (split_stage(name)[1] for file in target.files for name in file.layouts)
        return wanted if any(name.startswith(_BUFFERS) for name in names) else _without_buffers(wanted)

    def complete(self, request: Request, headers: Headers) -> tuple[Request, Sequence[str]]:
        """Note how many were left out."""
        buffers = [name for name in headers.catalog.dropped if name.startswith(_BUFFERS)]
        note = f"{len(buffers)} of the tensors left out are gradient-accumulation buffers ({_BUFFERS}*)"
        return request, (note,) if buffers else ()


@dataclass(frozen=True, slots=True)
class _NoBuffers(NameFilter):
    """Leaves out buffers too, without a word where there are none."""

    def unmatched_drop(self, names: Iterable[str]) -> tuple[str, ...]:
        missed = NameFilter.unmatched_drop(self, frozenset(names))
        return tuple(pattern for pattern in missed if pattern != _DROP_BUFFERS)


def _without_buffers(wanted: SourceOptions) -> SourceOptions:
    return replace(wanted, names=_NoBuffers(wanted.names.keep, (*wanted.names.drop, _DROP_BUFFERS)))


@dataclass(frozen=True)
class _Unify(LeaveOutBuffers):
    has_redundancy: bool | None

    def select(self, wanted: SourceOptions, _target: StrategySource | None) -> SourceOptions:
        return _without_buffers(wanted)

    def complete(self, request: Request, headers: Headers) -> tuple[Request, Sequence[str]]:
        request, notes = super().complete(request, headers)
        if self.has_redundancy is None or headers.source_strategy is None:
            return request, notes
        lacking = _missing_copies(headers)
        found = f"{lacking} copies are missing, so it was removed" if lacking else "every rank holds all it owns"
        verdict = "as given" if self.has_redundancy is not bool(lacking) else "not as given; the headers decide"
        return request, (*notes, f"has_redundancy is {self.has_redundancy}; in the headers {found}: {verdict}")


def _missing_copies(headers: Headers) -> int:
    """Count the ranks that lack a tensor that the source's strategy gives them, over all tensors."""
    assert headers.source_strategy is not None
    entries = headers.catalog.entries
    strategy = headers.source_strategy.strategy({entry.spec.name: entry.spec for entry in entries}, local=False)
    held = [
        {index for placement in entry.placements for index, _ in placement.holders}
        for entry in entries
        if entry.sharding is not SourceSharding.UNLISTED and entry.placements
    ]
    return sum(strategy.device_count - len(objects) for objects in held)


def _share(rank_id: int, process_count: int, rank_count: int) -> range:
    """Return the ranks that one process of the tool writes."""
    count, rest = divmod(rank_count, min(process_count, rank_count))
    if rest:
        raise UsageError(f"{rank_count} ranks cannot be shared evenly by {process_count} processes")
    if not 0 <= rank_id <= rank_count - count:
        raise UsageError(
            f"{option('rank_id', rank_id)}: a process writes {count} ranks from there on, and there are {rank_count}",
            hint=f"Expected 0, {count}, ... up to {rank_count - count}.",
        )
    return range(rank_id, rank_id + count)


@dataclass(frozen=True)
class _Transform(LeaveOutBuffers):
    """The source's format is kept, and ranks are counted by the target strategy."""

    world_size: int | None
    share: Callable[[int], range] | None

    def complete(self, request: Request, headers: Headers) -> tuple[Request, Sequence[str]]:
        rank_count = 1 if headers.target_strategy is None else headers.target_strategy.rank_count
        if self.world_size not in (None, rank_count):
            is_full = headers.target_strategy is None
            has = "a full checkpoint is one rank" if is_full else f"the target strategy has {rank_count}"
            hint = "Leave it out, or name the strategy that is meant."
            raise UsageError(f"{option('world_size', self.world_size)}: {has}", hint=hint)
        ranks = None if self.share is None else self.share(rank_count)
        request = replace(
            request,
            format=request.format or container_of(headers.catalog.objects[0].key),
            ranks=(ranks,) if ranks and headers.target_strategy is not None else None,
        )
        return super().complete(request, headers)


@dataclass(frozen=True)
class _OneRank(Hooks):
    rank_id: int | None

    def complete(self, request: Request, headers: Headers) -> tuple[Request, Sequence[str]]:
        if headers.target_strategy is None or self.rank_id is None:
            return request, ()
        return replace(request, ranks=(range(self.rank_id, self.rank_id + 1),)), ()


def _inverted(name_map: Mapping[str, str]) -> dict[str, str]:
    """Return new names by old, of a map from new names to old."""
    targets: dict[str, list[str]] = {}
    for target, name in name_map.items():
        targets.setdefault(name, []).append(target)
    raise_all(
        UsageError,
        "a tensor of the source can have one name in the target only",
        [f"{name}: {', '.join(several)}" for name, several in targets.items() if len(several) > 1],
        hint="The map is {name in the target: name in the source}.",
    )
    return {name: several[0] for name, several in targets.items()}
