"""The four statements of the library: inspect, plan, convert, verify."""

from __future__ import annotations

from collections.abc import Iterable

from ..engine.events import Listener, PhaseStarted, ignore
from ..engine.execute import execute, head_or_none, writable
from ..engine.manifest import Manifest, decode_manifest
from ..engine.source import read_catalog, read_contents
from ..engine.strategies import StrategySource, read_layout_file, read_object, read_strategy_files
from ..engine.verify import Report, Subset, verify_manifest
from ..engine.workers import working
from ..errors import NotFound, TargetExists, UsageError
from ..planning.catalog import Catalog
from ..planning.limits import Limits
from ..planning.plan import MANIFEST_KEY, Plan, make_plan
from ..planning.plan_json import decode_plan, plan_id_of
from ..storage import open_location, open_source, open_target, open_target_object
from .arguments import (
    Size,
    check_apart,
    check_sources_kept,
    full_target,
    limits_for,
    manifest_url,
    rank_target,
    target_base,
)

__all__ = ["convert", "inspect", "load_plan", "load_strategy_source", "plan", "save", "verify"]


def inspect(
    url: str,
    *,
    src_strategy: str | None = None,
    src_layout: str | None = None,
    concurrency: int | None = None,
) -> Catalog:
    """Describe what lies at a URL, reading headers only.

    Parameters
    ----------
    url
        A ``.safetensors`` object or a prefix.
    src_strategy, src_layout
        URL of the strategy or the layout file of rank shards; without one each rank's tensors
        are listed as ``rank_R/name``.
    concurrency
        Requests in flight at once.

    Raises
    ------
    SourceError
        Nothing there that makes a checkpoint.
    StorageError
        The store refused or failed.

    Examples
    --------
    >>> from reshard.formats.safetensors import plan_header
    >>> from reshard.storage import MemoryStore
    >>> from reshard.tensor import DType, TensorSpec
    >>> header = plan_header([TensorSpec("w", DType.F16, (2, 3))], {}).data
    >>> _ = MemoryStore("doc").put("m/model.safetensors", header + bytes(12))
    >>> [(e.spec.name, e.spec.shape) for e in inspect("memory://doc/m").entries]
    [('w', (2, 3))]
    """
    source, location = _strategy_source("src", src_strategy, src_layout), open_source(url)
    with working(concurrency or Limits().concurrency, location.store) as workers:
        return read_contents(location, source, workers)


def plan(
    src: str,
    dst: str,
    *,
    src_strategy: str | None = None,
    src_layout: str | None = None,
    dst_strategy: str | None = None,
    dst_layout: str | None = None,
    prefix: str | None = None,
    ranks: str | Iterable[int] | None = None,
    memory: Size | None = None,
    concurrency: int | None = None,
    on_event: Listener = ignore,
) -> Plan:
    """Decide how to convert, from headers alone; nothing is written.

    Parameters
    ----------
    src, dst
        URLs. With a target strategy or layout ``dst`` gets ``rank_R/<prefix>R.safetensors``;
        without, a full checkpoint: one object if ``dst`` ends in ``.safetensors``,
        ``rank_0/<prefix>0.safetensors`` if a prefix is given (MindSpore's form for one device),
        else Hugging Face's form with an index where needed.
    src_strategy, dst_strategy
        URLs of MindSpore strategy files, or of a prefix that holds those of all stages.
    src_layout, dst_layout
        URLs of layout files, instead.
    prefix
        Start of the objects' names, before the rank's number; ``checkpoint_`` by default. May
        contain ``{rank}`` elsewhere, or be the whole name if it ends in ``.safetensors``.
    ranks
        Ranks to write, like ``0-7,16``; all by default.
    memory
        Limit for all buffers, in bytes or like ``256MiB``.
    concurrency
        Requests in flight at once.
    on_event
        Told how reading the headers goes.

    Raises
    ------
    UsageError, SourceError, PlanError, StorageError
        As the tree in :mod:`reshard.errors` says; an OverBudget tells the memory that would do.
    """
    if ranks is not None and not (dst_strategy or dst_layout):
        raise UsageError("--ranks needs a target strategy or layout", hint="A full checkpoint has no ranks.")
    source = _strategy_source("src", src_strategy, src_layout)
    target = _strategy_source("dst", dst_strategy, dst_layout)
    base, name = target_base(dst, is_full=target is None, prefix=prefix)
    limits = limits_for(base, memory, concurrency)
    location = open_source(src)
    check_apart(location, base if name is None else base.child(name))
    on_event(PhaseStarted("headers"))
    with working(limits.concurrency, location.store) as workers:
        catalog = read_catalog(location, source, workers)
    manifest_key = f"{name}.manifest.json" if name else MANIFEST_KEY
    shapes = {entry.spec.name: entry.spec.shape for entry in catalog.entries}
    wished = (
        full_target(name, prefix, limits)
        if target is None
        else rank_target(target.strategy(shapes, local=False), prefix, ranks)
    )
    made = make_plan(catalog, wished, base.url, limits, manifest_key)
    check_sources_kept(made, location if catalog.url == location.url else location.parent, base)
    return made


def convert(
    src: str | None = None,
    dst: str | None = None,
    *,
    plan: Plan | str | None = None,
    src_strategy: str | None = None,
    src_layout: str | None = None,
    dst_strategy: str | None = None,
    dst_layout: str | None = None,
    prefix: str | None = None,
    ranks: str | Iterable[int] | None = None,
    memory: Size | None = None,
    concurrency: int | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
) -> Manifest:
    """Convert a checkpoint, streaming; returns the manifest, which is also written beside the outputs.

    Parameters
    ----------
    src, dst, src_strategy, src_layout, dst_strategy, dst_layout, prefix, ranks, memory, concurrency
        As for :func:`plan`; left out when a plan is given.
    plan
        A plan, or the URL of a saved one.
    overwrite
        Whether outputs that exist may be replaced.
    on_event
        Told how the run goes, a few times a second.

    Raises
    ------
    ReshardError
        As the tree in :mod:`reshard.errors` says. Whatever is raised, KeyboardInterrupt too,
        nothing of this run stays in the target.
    """
    others = (src, dst, src_strategy, src_layout, dst_strategy, dst_layout, prefix, ranks, memory, concurrency)
    if plan is not None and any(other is not None for other in others):
        raise UsageError(
            "a plan is given, and arguments that it has decided already",
            hint="Leave out SRC, DST and everything else but --overwrite.",
        )
    made = load_plan(plan) if isinstance(plan, str) else plan
    if made is None:
        if src is None or dst is None:
            raise UsageError("convert needs SRC and DST, or a plan")
        made = _plan(
            src,
            dst,
            src_strategy=src_strategy,
            src_layout=src_layout,
            dst_strategy=dst_strategy,
            dst_layout=dst_layout,
            prefix=prefix,
            ranks=ranks,
            memory=memory,
            concurrency=concurrency,
            on_event=on_event,
        )
    source, target = open_source(made.catalog.url), open_target(made.target_url)
    check_sources_kept(made, source, target)
    return execute(made, source, target, overwrite=overwrite, listener=on_event)


_plan = plan


def verify(url: str, *, subset: str | None = None, on_event: Listener = ignore) -> Report:
    """Compare a finished conversion with its source, bit for bit, in bounded memory.

    Parameters
    ----------
    url
        Of the manifest, or of the target that holds it.
    subset
        ``n/t``: only every t-th step, from the n-th.
    on_event
        Told how the comparison goes, a few times a second.

    Returns
    -------
    Report
        Lists every difference; ``report.is_ok`` tells whether there is none.

    Raises
    ------
    NotFound
        No manifest there: the conversion was not finished.
    SourceChanged
        The source is no longer what was converted.
    """
    place = open_location(manifest_url(url))
    try:
        manifest = decode_manifest(read_object(place), place.url)
    except NotFound as error:
        raise NotFound(
            f"{place.url}: no manifest there ({error.message.rstrip('.')})",
            hint="Name the manifest, or the target of a finished conversion: a manifest is written last.",
        ) from error
    target = place
    for _ in manifest.plan.manifest_key.split("/"):
        target = target.parent
    return verify_manifest(
        manifest,
        plan_id_of(manifest.plan),
        open_source(manifest.plan.catalog.url),
        target,
        subset=Subset.parse(subset) if subset else Subset(),
        listener=on_event,
    )


def save(url: str, data: bytes, *, overwrite: bool = False) -> None:
    """Write one small object, or a local file: a plan or a strategy.

    Raises
    ------
    TargetExists
        It exists, and ``overwrite`` is not set: it may be the input of something.
    """
    base, name = open_target_object(url)
    place = base.child(name)
    if not overwrite and head_or_none(place):
        raise TargetExists(f"{place.url} exists already", hint="Give --overwrite to replace it, or another name.")
    writable(base).put(place.key, data)


def load_plan(url: str) -> Plan:
    """Read a plan that was saved with ``reshard plan --out``."""
    place = open_location(url)
    return decode_plan(read_object(place), place.url)


def load_strategy_source(url: str) -> StrategySource:
    """Read a strategy of any form: a layout file if the name ends in .yaml or .yml, else MindSpore's files."""
    if url.endswith((".yaml", ".yml")):
        return read_layout_file(open_location(url))
    return read_strategy_files(open_location(url))


def _strategy_source(side: str, strategy: str | None, layout: str | None) -> StrategySource | None:
    if strategy and layout:
        raise UsageError(
            f"--{side}-strategy {strategy} and --{side}-layout {layout} are both given", hint="Give one of them."
        )
    if layout:
        return read_layout_file(open_location(layout))
    return load_strategy_source(strategy) if strategy else None
