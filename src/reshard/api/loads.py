"""Tensors of a target without the target: read from the source into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

from ..engine.events import Listener, ignore
from ..errors import UsageError, option
from ..loading.boxes import BoxesTarget, WantedBox
from ..loading.frameworks import open_framework
from ..loading.loader import Loader
from ..loading.reading import BoxReader, limits_for
from ..planning.catalog import Catalog
from ..planning.conversion import Conversion
from ..planning.outputs.output import whole_box
from ..planning.plan import Plan
from ..planning.targets.iteration_target import IterationTarget
from ..planning.targets.rank_target import RankTarget
from ..planning.targets.sharded_target import ShardedTarget
from .connecting import connecting
from .notebook_progress import listening
from .option_field import parse_size
from .request import CHANGE_OPTIONS, SOURCE_OPTIONS, Request
from .resolve import resolve
from .statements import load_plan

# Where a target would go that is never written.
_FILES, _OBJECT = "memory://nowhere/target", "memory://nowhere/model.safetensors"

READING_OPTIONS = ("memory", "concurrency", "verify", "give_up_after")
"""Options that say how to read."""

LOAD_OPTIONS = (
    *SOURCE_OPTIONS,
    *CHANGE_OPTIONS,
    *("dst_strategy", "dst_layout", "parallel", "serve", "form", "vllm", "remove_redundancy"),
    *READING_OPTIONS,
)
"""Options that concern what is loaded."""


def load(
    src: str | None = None,
    *,
    rank: int | None = None,
    plan: Plan | str | PathLike[str] | None = None,
    framework: str = "numpy",
    max_gap: int | str = 0,
    on_event: Listener | None = None,
    **options: Any,
) -> Loader:
    """Open what one rank, or a full checkpoint, would hold after a conversion; nothing is written.

    Headers are read now, tensors when they are asked for: see :class:`reshard.loading.loader.Loader`.

    Parameters
    ----------
    src
        URL of the source.
    rank
        The rank, for a target that a strategy, a layout file or parallel sizes cut. With ``remove_redundancy`` it holds
        what it would write.
    plan
        A plan, or the URL of a saved one, instead of ``src`` and of options that describe a conversion.
    framework
        ``numpy``, ``torch``, ``mindspore`` or ``dlpack``: what tensors are made of.
    max_gap
        Most bytes between two pieces of an object to read for nothing, rather than sending another request, like
        ``64KiB``. With 0 nothing is read that is not needed.
    on_event
        Is called with the events of reading headers and tensors; as for :func:`reshard.convert`.
    options
        Those of :class:`reshard.api.Request` that concern the source, names and values, what cuts the target, and
        ``memory``, ``concurrency``, ``verify`` and ``give_up_after``. The memory comes on top of the tensors.

    Raises
    ------
    UsageError
        The rank does not exist, the framework is not installed, or options contradict each other.
    SourceError, PlanError, StorageError
        As for :func:`reshard.plan`.

    Examples
    --------
    >>> import numpy as np
    >>> from reshard.formats.safetensors import plan_header
    >>> from reshard.storage import MemoryStore
    >>> from reshard.tensor import DType, TensorSpec
    >>> header = plan_header([TensorSpec("w", DType.F32, (4, 3))], {}).data
    >>> _ = MemoryStore("doc").put("m/model.safetensors", header + np.arange(12, dtype=np.float32).tobytes())
    >>> with load("memory://doc/m") as full:
    ...     full.keys(), full.get_slice("w")[1:3, 2].tolist()
    (['w'], [5.0, 8.0])
    """
    request = request_of(src, rank, plan, options)
    listener = listening(on_event)
    reading = Reading(request, framework, max_gap, listener)
    with connecting(request, listener):
        conversion = conversion_of(request, plan, listener)
        return reading.loader(conversion, held_by(conversion, rank))


def request_of(
    src: str | None, rank: int | None, plan: object, options: dict[str, Any], more: Sequence[str] = ()
) -> Request:
    """Read the options of a statement that loads; UsageError unless there is either a source or a plan.

    ``more`` are options that it takes besides, about the objects that a target has.
    """
    if (src is None) == (plan is None):
        raise UsageError(f"expected either {option('src')} or {option('plan')}")
    if plan is not None:
        return Request.of(READING_OPTIONS, **options)
    ranks = {} if rank is None or rank < 0 else {"ranks": str(rank)}
    is_sharded = any(options.get(name) for name in ("dst_strategy", "dst_layout", "parallel", "serve"))
    if rank is not None and not is_sharded:
        message = f"{option('rank')} {rank} needs a target strategy, a layout file or parallel sizes"
        raise UsageError(message, hint="A full checkpoint has no ranks.")
    if "form" not in more and options.get("form") not in (None, "vllm"):
        message = f"{option('form', options['form'])} is about objects, which are not written here"
        raise UsageError(message, hint="Ranks hold the same tensors in every form but that of an engine that serves.")
    own = {"src": src, "copy": "never", "staging": "never", **ranks}
    request = Request.of(("src", *LOAD_OPTIONS, *own, *more), **options, **own)
    return replace(request, dst=_FILES if is_sharded or more else _OBJECT)


def conversion_of(request: Request, plan: Plan | str | PathLike[str] | None, on_event: Listener = ignore) -> Conversion:
    """Return what a request or a plan makes."""
    if plan is None:
        return resolve(request, on_event).conversion
    return (plan if isinstance(plan, Plan) else load_plan(fspath(plan))).conversion


@dataclass(frozen=True, slots=True)
class Reading:
    """How tensors are read, and what is made of them; see :func:`load`. The request says within which limits."""

    request: Request
    framework: str
    max_gap: int | str = 0
    on_event: Listener = ignore

    def __post_init__(self) -> None:
        open_framework(self.framework)  # before headers are read

    def reader(self, conversion: Conversion) -> BoxReader:
        """Make the reader of a conversion's tensors, with the connections of the block that runs."""
        gap_bytes = self.max_gap if isinstance(self.max_gap, int) else parse_size(self.max_gap)
        read_count = 2 if self.request.reads_twice else 1
        limits = limits_for(self.request.memory, self.request.concurrency, gap_bytes, read_count)
        return BoxReader(conversion, limits, copy_context(), self.on_event)

    def loader(
        self, conversion: Conversion, held: Sequence[WantedBox], names: Mapping[str, str] | None = None
    ) -> Loader:
        """Make a loader of some tensors; ``names`` are those that the caller shall know them by."""
        return Loader(self.reader(conversion), held, open_framework(self.framework), names)


def held_by(conversion: Conversion, rank: int | None, *, keeps_redundancy: bool = False) -> tuple[WantedBox, ...]:
    """Return what a rank holds, or all tensors if the target has no ranks; UsageError if there is no such rank.

    With ``keeps_redundancy`` also what another rank would write for it.
    """
    tensors, target = conversion.tensors, conversion.target
    if not isinstance(target, RankTarget | IterationTarget | ShardedTarget):
        if rank is not None:
            raise UsageError(f"{option('rank')} {rank}: the target is a full checkpoint, which has no ranks")
        return whole_tensors(conversion)
    count = target.strategy.rank_count
    if rank is None or not 0 <= rank < count:
        found = "is missing" if rank is None else f"{rank} does not exist"
        raise UsageError(f"{option('rank')} {found}: expected one of 0..{count - 1}, those of the target")
    is_reduced = isinstance(target, RankTarget | IterationTarget) and target.remove_redundancy and not keeps_redundancy
    alone = RankTarget(target.strategy, (rank,), "{rank}", remove_redundancy=is_reduced)
    [output] = alone.outputs(tensors, conversion.source_metadata)
    return tuple(zip(output.tensors, output.boxes, strict=True))


def whole_tensors(conversion: Conversion) -> tuple[WantedBox, ...]:
    """Return every tensor of a conversion, whole."""
    return tuple((index, whole_box(tensor)) for index, tensor in enumerate(conversion.tensors))


def as_stored(catalog: Catalog) -> Conversion:
    """Return a conversion of which nothing is asked but the tensors of a source, as they are."""
    return Conversion(catalog, BoxesTarget(()), catalog.url)
