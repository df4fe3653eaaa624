"""unified_safetensors, made one conversion.

Where the tool deviates from its documentation, the documentation is followed; ``docs/original-commands.md`` lists the
differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from ..api.option_field import OptionField, read_nullable, read_texts, read_truth
from ..api.request import Request
from ..api.resolve import Headers, resolve
from ..engine.sources import SourceOptions
from ..engine.sources.strategy_files import StrategySource
from ..errors import UsageError, option, raise_all
from ..formats.containers import Container
from ..planning.catalog import SourceSharding
from ..planning.limits import requests_for
from ..planning.sources.selection import NameFilter
from .buffers import LeaveOutBuffers, NoBuffers, without_buffers
from .imitation import FileSuffix, Processes, Translation, imitation


@imitation(
    "drop",
    "load_ckpt_format",
    "network_only",
    "keep_rank",
    "memory",
    src="mindspore_ckpt_dir",
    src_strategy="src_strategy_dirs",
    dst="output_dir",
    concurrency="max_process_num",
    without_effect={"split_dst_file": "one conversion writes all parts"},
)
def unified_safetensors(
    mindspore_ckpt_dir: Annotated[str, OptionField("Prefix of the rank shards, with rank_R/.", "URL")],
    src_strategy_dirs: Annotated[
        str,
        OptionField(
            "Strategy file of the shards, or a prefix with those of all stages.",
            "URL",
            read=read_nullable,
            flags=("--src_strategy_dirs", "--src_strategy_path_or_dir"),
        ),
    ],
    output_dir: Annotated[
        str, OptionField("Where the parts and param_name_map.json go; the script's default does not apply.", "URL")
    ],
    *,
    file_suffix: FileSuffix = None,
    format: Annotated[str | None, OptionField("safetensors, and nothing else.", "FORMAT")] = None,  # noqa: A002
    has_redundancy: Annotated[
        bool | None,
        OptionField(
            "Whether redundancy was kept; the headers decide, a note compares.",
            "BOOL",
            read=read_truth,
            flags=("--has_redundancy", "--merge_with_redundancy"),
        ),
    ] = None,
    filter_out_param_prefix: Annotated[
        Iterable[str] | str | None, OptionField("Prefix of names to leave out.", "TEXT", read=read_texts)
    ] = None,
    max_process_num: Processes = None,
    choice_func: Callable[[str], bool | str] | None = None,
) -> Translation:
    """Merge rank shards into MindSpore's full form, as ``toolkit/safetensors/unified_safetensors.py`` does.

    ``choice_func`` is that of ``mindspore.unified_safetensors``: it returns True to keep a name, False to leave it
    out, or its new name.
    """
    if format not in (None, Container.SAFETENSORS):
        raise UsageError(f"{option('format', format)}: unified checkpoints consist of safetensors")
    request = Request.of(
        src=mindspore_ckpt_dir,
        dst=output_dir,
        src_strategy=src_strategy_dirs,
        file_suffix=file_suffix,
        form="mindspore",
        concurrency=requests_for(max_process_num),
        drop=[f"prefix:{prefix}" for prefix in filter_out_param_prefix or ()],
    )
    return request, partial(resolve, hooks=_Unify(has_redundancy, choice_func))


@dataclass(frozen=True, slots=True)
class _AskedNames(NoBuffers):
    """Leaves out the names that a function rejects; it is asked once about each that nothing else leaves out."""

    choose: Callable[[str], object] = bool
    answers: dict[str, object] = field(default_factory=dict, compare=False)

    def is_kept(self, name: str) -> bool:
        if not NameFilter.is_kept(self, name):
            return False
        if name not in self.answers:
            self.answers[name] = self.choose(name)
        return self.answers[name] is not False


@dataclass(frozen=True)
class _Unify(LeaveOutBuffers):
    has_redundancy: bool | None
    choose: Callable[[str], bool | str] | None
    answers: dict[str, object] = field(default_factory=dict)

    def select(self, wanted: SourceOptions, _target: StrategySource | None) -> SourceOptions:
        wanted = without_buffers(wanted)
        if self.choose is None:
            return wanted
        names = wanted.names
        asked = _AskedNames(names.keep, names.drop, names.network_only, choose=self.choose, answers=self.answers)
        return replace(wanted, names=asked)

    def choose_names(self, _names: Sequence[str]) -> Mapping[str, str]:
        odd = [f"{name}: {answer!r}" for name, answer in self.answers.items() if not isinstance(answer, bool | str)]
        raise_all(UsageError, "choice_func must return True, False or a name", odd)
        return {name: answer for name, answer in self.answers.items() if isinstance(answer, str)}

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
    specs = {entry.spec.name: entry.spec for entry in entries}
    strategy = headers.source_strategy.strategy(specs, local=False, others=headers.catalog.dropped)
    held = [
        {index for placement in entry.placements for index, _ in placement.holders}
        for entry in entries
        if entry.sharding is not SourceSharding.UNLISTED and entry.placements
    ]
    return sum(strategy.device_count - len(objects) for objects in held)
