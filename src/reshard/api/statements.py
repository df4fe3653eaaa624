"""The four statements of the library: inspect, plan, convert, verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

from ..engine.events import Listener, PhaseStarted, ignore
from ..engine.execute import execute, writable
from ..engine.manifest import Manifest, decode_manifest
from ..engine.source_check import head_or_none
from ..engine.sources.read_source import SourceOptions, read_catalog, read_contents
from ..engine.sources.strategy_files import StrategySource, read_layout_file, read_object, read_strategy_files
from ..engine.sources.training_state import read_counters
from ..engine.verify import Report, Subset, verify_manifest
from ..engine.workers import working
from ..errors import NotFound, TargetExists, UsageError
from ..formats.name_map import parse_name_map
from ..planning.catalog import Catalog
from ..planning.change import Change, make_tensors
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.limits import Limits
from ..planning.outputs.output import Attachment
from ..planning.plan import Plan, make_plan
from ..planning.plan_json import decode_plan, plan_id_of
from ..planning.sources.selection import NameFilter, Renames
from ..planning.staging import staged_plan
from ..planning.targets import Target
from ..storage import open_location, open_source, open_target, open_target_object, shared_connections
from ..tensor import Strategy
from .arguments import (
    check_apart,
    check_sources_kept,
    copy_bases,
    full_target,
    iteration_target,
    limits_for,
    manifest_url,
    rank_target,
    staging_mode,
    target_base,
)
from .changes import add_adapters, attach_companions, change_from, notes_on_numbers, strategy_by_numbers
from .options import Options, check_options, listed

Settle = Callable[[Catalog, Strategy | None], Options]
"""Options that follow from what a source holds and how a target is cut."""


@shared_connections()
def inspect(url: str, **options: Unpack[Options]) -> Catalog:
    """Describe what lies at a URL, reading headers only.

    Parameters
    ----------
    url
        A ``.safetensors`` or ``.ckpt`` object, or a prefix.
    options
        Those of :class:`reshard.api.Options` that speak of the source. Without a strategy of rank
        shards each rank's tensors are listed as ``rank_R/name``.

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
    check_options(options)
    wanted, location = wanted_from(options), open_source(url)
    with working(options.get("concurrency") or Limits().concurrency, location.store) as workers:
        return read_contents(location, wanted, workers)


@shared_connections()
def plan(src: str, dst: str, *, on_event: Listener = ignore, **options: Unpack[Options]) -> Plan:
    """Decide how to convert, from headers alone; nothing is written.

    Parameters
    ----------
    src, dst
        URLs. With a target strategy or layout ``dst`` gets ``rank_R/<prefix>R.safetensors``;
        without, a full checkpoint: one object if ``dst`` ends in ``.safetensors`` or ``.ckpt``,
        ``rank_0/<prefix>0.safetensors`` if a prefix is given (MindSpore's form for one device),
        else Hugging Face's form with an index where needed, or what ``form`` says; a prefix that ends
        in ``.zarr`` becomes a zarr store.
    on_event
        Told how reading the headers goes.
    options
        See :class:`reshard.api.Options`.

    Raises
    ------
    UsageError, SourceError, PlanError, StorageError
        As the tree in :mod:`reshard.errors` says; an OverBudget tells the memory that would do.
    """
    check_options(options)
    wanted = wanted_from(options)
    target = _strategy_source("dst", options.get("dst_strategy"), options.get("dst_layout"))
    return draw(src, dst, wanted, target, options, on_event=on_event)


def draw(
    src: str,
    dst: str,
    wanted: SourceOptions,
    target: StrategySource | None,
    options: Options,
    *,
    settle: Settle = lambda _catalog, _strategy: {},
    on_event: Listener = ignore,
) -> Plan:
    """Make a plan of what has been read of the options.

    Parameters
    ----------
    wanted, target
        What is asked of the source, and how the target is cut.
    options
        Those that speak of the target.
    settle
        Told the source and the target's strategy, gives options that go before the others.
    """
    renames = renames_from(options)
    base, name = target_base(dst, options)
    limits = limits_for(base, options)
    location = open_source(src)
    check_apart(location, base if name is None else base.child(name))
    on_event(PhaseStarted("headers"))
    with working(limits.concurrency, location.store) as workers:
        catalog = add_adapters(read_catalog(location, wanted, workers), options, workers)
    if catalog.dropped and not catalog.entries:
        raise UsageError(f"{src}: --keep and --drop leave no tensor", hint="reshard inspect lists names.")
    catalog, renamed = renamed_catalog(catalog, renames)
    change, notes = change_from(options, catalog, renamed, src)
    notes += notes_on_numbers(options.get("parallel"), change)
    catalog = replace(catalog, notes=(*catalog.notes, *notes))
    if options.get("form") == "iteration":
        tensors, places = make_tensors(catalog, renamed, change).tensors, open_source(catalog.url)
        with working(limits.concurrency, places.store) as workers:
            catalog = replace(catalog, counters=read_counters(catalog, tensors, places, workers))
    elif told := [f"{name} {value}" for name, value in catalog.counters.items() if value is not None]:
        note = f"what common.json counts is not written in this form: {', '.join(told)}"
        catalog = replace(catalog, notes=(*catalog.notes, note))
    strategy = _target_strategy(target, change, catalog, renamed, options)
    options = {**options, **settle(catalog, strategy)}
    wished = full_target(name, base, options, limits) if strategy is None else _cut_target(strategy, options, catalog)
    manifest_key = f"{name}.manifest.json" if name else MANIFEST_KEY
    attachments: Sequence[Attachment] = ()
    if wished.has_companions:
        catalog, attachments = attach_companions(catalog, src, options.get("config"))
    bases = copy_bases(base, catalog, options)
    conversion = Conversion(catalog, wished, base.url, manifest_key, renamed, change, tuple(attachments))
    made = make_plan(conversion, limits, bases)
    if (mode := staging_mode(base, catalog, options)) is not None:
        made = staged_plan(made, mode)
    check_sources_kept(made, open_source(catalog.url), base)
    return made


def _target_strategy(
    target: StrategySource | None, change: Change, catalog: Catalog, renamed: Mapping[str, str], options: Options
) -> Strategy | None:
    """How the target is cut: as files say, or as numbers do; None for a full checkpoint."""
    numbers = options.get("parallel")
    if target is None and numbers is None:
        return None
    tensors = make_tensors(catalog, renamed, change).tensors
    if target is not None:
        return target.strategy({tensor.spec.name: tensor.spec.shape for tensor in tensors}, local=False)
    assert numbers is not None
    return strategy_by_numbers(numbers, change, tensors, options)


def _cut_target(strategy: Strategy, options: Options, catalog: Catalog) -> Target:
    if options.get("form") == "iteration":
        return iteration_target(strategy, options, catalog.counters)
    return rank_target(strategy, options)


def renamed_catalog(catalog: Catalog, renames: Renames) -> tuple[Catalog, dict[str, str]]:
    """Every tensor's new name, and the catalog with a note of rules that found nothing."""
    names = [entry.spec.name for entry in catalog.entries]
    missed = (*renames.unmatched_map(names), *renames.unmatched_rules(names))
    note = f"{len(missed)} renames match no tensor: {', '.join(missed[:5])}"
    return replace(catalog, notes=(*catalog.notes, note)) if missed else catalog, renames.apply(names)


@shared_connections()
def convert(
    src: str | None = None,
    dst: str | None = None,
    *,
    plan: Plan | str | None = None,
    overwrite: bool = False,
    keep_staging: bool = False,
    on_event: Listener = ignore,
    **options: Unpack[Options],
) -> Manifest:
    """Convert a checkpoint, streaming; returns the manifest, which is also written beside the outputs.

    Parameters
    ----------
    src, dst, options
        As for :func:`plan`; left out when a plan is given.
    plan
        A plan, or the URL of a saved one.
    overwrite
        Whether outputs that exist may be replaced.
    keep_staging
        Whether to keep what is staged, if anything is, for the next conversion of the same source.
    on_event
        Told how the run goes, a few times a second.

    Raises
    ------
    ReshardError
        As the tree in :mod:`reshard.errors` says. Whatever is raised, KeyboardInterrupt too,
        nothing of this run stays in the target.
    """
    given = [name for name, value in options.items() if value not in (None, False, ())]
    if plan is not None and (src is not None or dst is not None or given):
        raise UsageError(
            "a plan is given, and arguments that it has decided already",
            hint="Leave out SRC, DST and everything else but --overwrite and --keep-staging.",
        )
    made = load_plan(plan) if isinstance(plan, str) else plan
    if made is None:
        if src is None or dst is None:
            raise UsageError("convert needs SRC and DST, or a plan")
        made = _plan(src, dst, on_event=on_event, **options)
    return run(made, overwrite=overwrite, keep_staging=keep_staging, on_event=on_event)


@shared_connections()
def run(plan: Plan, *, overwrite: bool = False, keep_staging: bool = False, on_event: Listener = ignore) -> Manifest:
    """Carry out a plan."""
    source, target = open_source(plan.catalog.url), open_target(plan.conversion.target_url)
    check_sources_kept(plan, source, target)
    others = [open_source(url) for url in plan.catalog.others]
    return execute(
        plan,
        source,
        target,
        others=others,
        overwrite=overwrite,
        keep_staging=keep_staging,
        listener=on_event,
    )


_plan = plan


@shared_connections()
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
    for _ in manifest.plan.conversion.manifest_key.split("/"):
        target = target.parent
    return verify_manifest(
        manifest,
        plan_id_of(manifest.plan),
        open_source(manifest.plan.catalog.url),
        target,
        others=[open_source(url) for url in manifest.plan.catalog.others],
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
    return _of_stages(read_strategy_files(open_location(url), Limits().concurrency))


def _of_stages(source: StrategySource) -> StrategySource:
    """Leave a merged file beside the files it was merged from aside: MindSpore Transformers puts it there."""
    stages = tuple(file for file in source.files if not file.is_merged)
    return replace(source, files=stages) if any(file.layouts for file in stages) else source


def _strategy_source(side: str, strategy: str | None, layout: str | None) -> StrategySource | None:
    if strategy and layout:
        raise UsageError(
            f"--{side}-strategy {strategy} and --{side}-layout {layout} are both given", hint="Give one of them."
        )
    if layout:
        return read_layout_file(open_location(layout))
    return load_strategy_source(strategy) if strategy else None


def wanted_from(options: Options) -> SourceOptions:
    """What the options ask of a source."""
    return SourceOptions(
        strategy=_strategy_source("src", options.get("src_strategy"), options.get("src_layout")),
        names=NameFilter(listed(options.get("keep")), listed(options.get("drop"))),
        file_suffix=options.get("file_suffix"),
        keep_rank=options.get("keep_rank"),
        check_crc=bool(options.get("check_crc")),
    )


def renames_from(options: Options) -> Renames:
    """What the options say of names in the target."""
    return Renames(name_map_from(options.get("name_map")), listed(options.get("rename")))


def name_map_from(name_map: Mapping[str, str] | str | None) -> Mapping[str, str]:
    """Read a name map unless it is one already."""
    if not isinstance(name_map, str):
        return name_map or {}
    place = open_location(name_map)
    return parse_name_map(read_object(place), place.url)
