"""Buffers of gradient accumulation, which most original commands leave out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from ..api.request import Request
from ..api.resolve import Headers, Hooks
from ..engine.sources import SourceOptions
from ..engine.sources.strategy_files import StrategySource
from ..formats.mindspore.strategy_file import split_stage
from ..planning.sources.selection import NameFilter

_BUFFERS = "accu_grads"
_DROP_BUFFERS = f"prefix:{_BUFFERS}"


class LeaveOutBuffers(Hooks):
    """Leaves out gradient-accumulation buffers that a target strategy has no layouts for; a layout file may have."""

    def select(self, wanted: SourceOptions, target: StrategySource | None) -> SourceOptions:
        """Leave out the buffers where that is due."""
        if target is None or target.rules is not None:
            return wanted
        names = (split_stage(name)[1] for file in target.files for name in file.layouts)
        return wanted if any(name.startswith(_BUFFERS) for name in names) else without_buffers(wanted)

    def complete(self, request: Request, headers: Headers) -> tuple[Request, Sequence[str]]:
        """Note how many were left out."""
        buffers = [name for name in headers.catalog.dropped if name.startswith(_BUFFERS)]
        note = f"{len(buffers)} of the tensors left out are gradient-accumulation buffers ({_BUFFERS}*)"
        return request, (note,) if buffers else ()


@dataclass(frozen=True, slots=True)
class NoBuffers(NameFilter):
    """Leaves out buffers too, without a word where there are none."""

    def unmatched_drop(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the patterns that leave out nothing, but for that of the buffers."""
        missed = NameFilter.unmatched_drop(self, frozenset(names))
        return tuple(pattern for pattern in missed if pattern != _DROP_BUFFERS)


def without_buffers(wanted: SourceOptions) -> SourceOptions:
    """Leave out the buffers, whatever else is left out."""
    own = {each.name: getattr(wanted.names, each.name) for each in fields(wanted.names) if each.init}
    return replace(wanted, names=NoBuffers(**own | {"drop": (*wanted.names.drop, _DROP_BUFFERS)}))
