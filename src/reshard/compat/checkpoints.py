"""MindSpore's and MindSpore Transformers' own calls on checkpoints, each made one conversion.

Arguments have the names that these tools give them, and take URLs. Where a tool deviates from its
documentation, the documentation is followed; ``docs/original-commands.md`` lists the differences.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from ..api.option_field import OptionField, read_document, read_nullable, read_truth
from ..api.request import Request
from ..api.resolve import Headers, Hooks, load_name_map, resolve
from ..engine.sources.strategy_files import StrategySource
from ..errors import UsageError, option, raise_all
from ..formats.containers import Container, container_of
from ..planning.catalog import Catalog
from ..planning.limits import requests_for
from ..tensor import Strategy
from .buffers import LeaveOutBuffers
from .imitation import (
    FileSuffix,
    Processes,
    Translation,
    format_option,
    imitation,
    processes_option,
    spelled_freely,
)
from .name_rules import with_rules


def strategy_option(side: str, *flags: str) -> OptionField:
    """Describe the strategy of one side, under the flags of a tool and under the name that its documents have."""
    text = f"Strategy file of the {side}, or a prefix with those of all stages; None for a full checkpoint."
    general = "--src_strategy_path_or_dir" if side == "source" else "--dst_strategy_path_or_dir"
    return OptionField(text, "URL", read=read_nullable, flags=(*flags, general))


Prefix = Annotated[str, OptionField("Prefix of the objects' names, before the rank.", "NAME", default="checkpoint_")]


@imitation(
    "drop",
    "load_ckpt_format",
    "network_only",
    "keep_rank",
    "memory",
    "config",
    "family",
    src="src_checkpoint",
    dst="dst_checkpoint",
    concurrency="process_num",
)
def transform_checkpoint(
    src_checkpoint: Annotated[
        str,
        OptionField(
            "One object, or a prefix: with rank_R/, or full.", "URL", flags=("--src_checkpoint", "--src_ckpt_dir")
        ),
    ],
    dst_checkpoint: Annotated[
        str,
        OptionField(
            "Where rank_R/<prefix>R.<format> go; ./transformed_checkpoint, the script's default, does not apply.",
            "URL",
            flags=("--dst_checkpoint", "--dst_checkpoint_dir", "--dst_ckpt_dir"),
        ),
    ],
    *,
    src_strategy: Annotated[str | None, strategy_option("source", "--src_strategy", "--src_ckpt_strategy")] = None,
    dst_strategy: Annotated[str | None, strategy_option("target", "--dst_strategy", "--dst_ckpt_strategy")] = None,
    prefix: Prefix = "checkpoint_",
    rank_id: Annotated[
        int | None,
        OptionField(
            f"First rank to write, with {option('transform_by_rank')}.",
            "R",
            default="the variable RANK_ID, or 0",
            least=0,
        ),
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
    share = partial(_share, rank_id or _rank_of_process(), process_num or 1) if transform_by_rank else None
    return request, partial(resolve, hooks=_Transform(world_size, share))


@imitation(
    "drop",
    "load_ckpt_format",
    "network_only",
    "memory",
    "config",
    "family",
    src="unified_safetensors_dir",
    dst="dst_safetensors_dir",
    dst_strategy="predict_strategy",
    ranks="rank_id",
    concurrency="max_process_num",
    without_effect={
        "network": "shards are written, nothing is loaded into a network",
        "checkpoint_filenames": "the objects are those of `unified_safetensors_dir`",
        "train_strategy_filename": "a full checkpoint has no strategy",
        "strict_load": "nothing is loaded into a network",
        "return_param_dict": "shards are written, not returned",
        "dec_key": "encrypted objects are not read",
        "dec_mode": "encrypted objects are not read",
    },
)
def load_distributed_checkpoint(
    unified_safetensors_dir: Annotated[str, OptionField("Prefix or object of the full checkpoint.", "URL")],
    dst_safetensors_dir: Annotated[str, OptionField("Where rank_R/net.<format> go.", "URL")],
    predict_strategy: Annotated[str | None, strategy_option("target", "--predict_strategy")] = None,
    *,
    format: Annotated[str | None, format_option("safetensors")] = None,  # noqa: A002
    output_format: Annotated[str | None, format_option("--format")] = None,
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
    format = output_format or format or Container.SAFETENSORS.value  # noqa: A001
    request = Request.of(
        src=unified_safetensors_dir,
        dst=dst_safetensors_dir,
        dst_strategy=predict_strategy,
        prefix=f"net.{format}",
        format=format,
        name_map=_inverted(load_name_map(name_map)),
        concurrency=requests_for(max_process_num),
    )
    return request, partial(resolve, hooks=_OneRank(rank_id))


@spelled_freely
def merge_pipeline_strategys(
    src_strategy_dirs: Annotated[
        str,
        OptionField(
            "Prefix that holds the files of all ranks or stages.",
            "URL",
            flags=("--src_strategy_dirs", "--src_strategy_path_or_dir"),
        ),
    ],
    dst_strategy_file: str,
    *,
    overwrite: bool = False,
) -> Strategy:
    """Merge the strategy files of all stages into one: ``merge_strategies`` under MindSpore's name."""
    from ..api.strategies import merge_strategies  # with all that writes: not for help

    return merge_strategies(src_strategy_dirs, dst_strategy_file, overwrite=overwrite)


# What follows from a source.


def _rank_of_process() -> int:
    """Return the rank that starts the process: the script reads it where none, or 0, is given."""
    value = os.environ.get("RANK_ID", "").strip() or "0"
    if not (value.isdecimal() and len(value) < 10):
        raise UsageError(f"the environment variable RANK_ID is {value[:40]!r}: expected a rank", hint="Unset it.")
    return int(value)


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

    def choose_rules(
        self, request: Request, catalog: Catalog, target: StrategySource | None
    ) -> tuple[Request, Sequence[str]]:
        return with_rules(request, catalog, target)

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

    def choose_rules(
        self, request: Request, catalog: Catalog, target: StrategySource | None
    ) -> tuple[Request, Sequence[str]]:
        return with_rules(request, catalog, target)

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
