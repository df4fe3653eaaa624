"""The five statements of the library: inspect, plan, convert, verify, and how a strategy is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from .engine.events import Listener, PhaseStarted, ignore
from .engine.execute import execute, writable
from .engine.manifest import Manifest, decode_manifest
from .engine.source import read_catalog, read_contents
from .engine.strategies import StrategySource, read_layout_file, read_object, read_strategy_files
from .engine.verify import Report, Subset, verify_manifest
from .engine.workers import working
from .errors import PlanError, UsageError
from .planning.catalog import Catalog
from .planning.limits import Limits
from .planning.plan import MANIFEST_KEY, Plan, make_plan
from .planning.plan_json import decode_plan, plan_id_of
from .planning.target import FullTarget, RankTarget, Target
from .storage import Location, open_location, open_source, open_target
from .tensor import Strategy

__all__ = ["convert", "inspect", "load_plan", "load_strategy_source", "parse_ranks", "parse_size", "plan", "verify"]

_SUFFIX = ".safetensors"
_DEFAULT_PREFIX = "checkpoint_"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
Size = int | str


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
    source, location = _strategy_source(src_strategy, src_layout), open_source(url)
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
        Start of the objects' names; may contain ``{rank}``. ``checkpoint_`` by default.
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
    source, target = _strategy_source(src_strategy, src_layout), _strategy_source(dst_strategy, dst_layout)
    base, name = _target_base(dst, is_full=target is None, prefix=prefix)
    limits = _limits(base, memory, concurrency)
    location = open_source(src)
    _check_apart(location.url, base.url if name is None else base.child(name).url)
    on_event(PhaseStarted("headers"))
    with working(limits.concurrency, location.store) as workers:
        catalog = read_catalog(location, source, workers)
    if target is None:
        if ranks is not None:
            raise UsageError("--ranks needs a target strategy or layout", hint="A full checkpoint has no ranks.")
        full = _full_target(name, prefix, limits)
        return _checked(make_plan(catalog, full, base.url, limits, f"{name}.manifest.json" if name else MANIFEST_KEY))
    strategy = target.strategy({entry.spec.name: entry.spec.shape for entry in catalog.entries}, local=False)
    return _checked(make_plan(catalog, _rank_target(strategy, prefix, ranks), base.url, limits))


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
    elif any((src, dst, src_strategy, src_layout, dst_strategy, dst_layout, prefix, ranks, memory, concurrency)):
        raise UsageError("a plan tells source, target and limits itself", hint="Leave the other arguments out.")
    source, target = open_source(made.catalog.url), open_target(made.target_url)
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
    place = open_location(_manifest_url(url))
    manifest = decode_manifest(read_object(place), place.url)
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


def load_plan(url: str) -> Plan:
    """Read a plan that was saved with ``reshard plan --out``."""
    place = open_location(url)
    return decode_plan(read_object(place), place.url)


def load_strategy_source(url: str) -> StrategySource:
    """Read a strategy of any form: a layout file if the name ends in .yaml or .yml, else MindSpore's files."""
    if url.endswith((".yaml", ".yml")):
        return read_layout_file(open_location(url))
    return read_strategy_files(open_location(url))


def parse_size(size: Size) -> int:
    """Read a number of bytes.

    Raises
    ------
    UsageError
        Not a number with, at most, a known unit.

    Examples
    --------
    >>> parse_size("256MiB"), parse_size("2GB"), parse_size(17)
    (268435456, 2000000000, 17)
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?)B?\s*", str(size).upper())
    if not match or match[2] not in _UNITS:
        raise UsageError(f"size {size!r}: expected bytes or a number with KB, MB, GB, KiB, MiB or GiB, like 256MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_ranks(ranks: str | Iterable[int], rank_count: int) -> tuple[int, ...]:
    """Read ranks like ``0-7,16``; ascending, each once.

    Raises
    ------
    UsageError
        Not of that form, or a rank that does not exist.

    Examples
    --------
    >>> parse_ranks("6,0-2", 8)
    (0, 1, 2, 6)
    """
    if isinstance(ranks, str):
        found: set[int] = set()
        for item in ranks.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", item)
            if not match:
                raise UsageError(f"ranks {ranks!r}: expected numbers and spans, like 0-7,16")
            found.update(range(int(match[1]), min(int(match[2] or match[1]), rank_count) + 1))
    else:
        found = set(ranks)
    beyond = sorted(rank for rank in found if not 0 <= rank < rank_count)
    if beyond or not found:
        raise UsageError(f"ranks {beyond or ranks} do not exist: the target strategy has ranks 0..{rank_count - 1}")
    return tuple(sorted(found))


def _strategy_source(strategy: str | None, layout: str | None) -> StrategySource | None:
    if strategy and layout:
        raise UsageError("a strategy and a layout are given for one side", hint="Give one of them.")
    if layout:
        return read_layout_file(open_location(layout))
    return load_strategy_source(strategy) if strategy else None


def _target_base(dst: str, *, is_full: bool, prefix: str | None) -> tuple[Location, str | None]:
    """Where outputs' keys count from, and the name of the single object if ``dst`` is one."""
    if not dst.rstrip("/").endswith(_SUFFIX):
        return open_target(dst), None
    if not is_full or prefix is not None:
        raise UsageError(
            f"{dst}: rank shards need a prefix to lie below, not the name of one object",
            hint="Leave .safetensors away; --prefix names the objects.",
        )
    base, _, name = dst.rstrip("/").rpartition("/")
    return open_target(base or ("/" if dst.startswith("/") else ".")), name


def _limits(target: Location, memory: Size | None, concurrency: int | None) -> Limits:
    accepted = writable(target).limits
    limits = Limits(
        min_part_bytes=accepted.min_part_bytes,
        max_part_bytes=min(accepted.max_part_bytes, accepted.max_put_bytes),
        max_part_count=accepted.max_part_count,
    )
    if memory is not None:
        limits = replace(limits, memory_bytes=parse_size(memory))
    return limits if concurrency is None else replace(limits, concurrency=concurrency)


def _full_target(name: str | None, prefix: str | None, limits: Limits) -> FullTarget:
    if name is not None:
        return FullTarget(name, name, "", "pt", limits.object_bytes)
    if prefix is not None:
        key = f"rank_0/{_named(prefix).format(rank=0)}"
        return FullTarget(key, key, "", "ms", limits.object_bytes)
    return FullTarget(
        "model-{part:05d}-of-{parts:05d}.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "pt",
        limits.object_bytes,
    )


def _rank_target(strategy: Strategy, prefix: str | None, ranks: str | Iterable[int] | None) -> Target:
    chosen = range(strategy.rank_count) if ranks is None else parse_ranks(ranks, strategy.rank_count)
    return RankTarget(strategy, tuple(chosen), f"rank_{{rank}}/{_named(prefix)}")


def _named(prefix: str | None) -> str:
    """The name of a rank's object, ``{rank}`` standing for its number."""
    name = _DEFAULT_PREFIX if prefix is None else prefix
    rest = name.replace("{rank}", "")
    if "/" in rest or "{" in rest or "}" in rest:
        raise UsageError(f"prefix {prefix!r}: expected the start of a name, with no / and no braces but {{rank}}")
    return f"{name if '{rank}' in name else name + '{rank}'}{_SUFFIX}"


def _check_apart(source_url: str, target_url: str) -> None:
    """Refuse a target inside its source: what is written would become part of what is read."""
    if f"{target_url}/".startswith(f"{source_url}/"):
        raise UsageError(
            f"DST {target_url} is inside SRC {source_url}",
            hint="Choose a destination outside the source.",
        )


def _checked(made: Plan) -> Plan:
    """Refuse a plan whose outputs would replace its own source."""
    sources = {f"{made.catalog.url}/{item.key}" for item in made.catalog.objects}
    hit = sorted(sources.intersection(f"{made.target_url}/{key}" for key in (*made.keys, made.manifest_key)))
    if hit:
        raise PlanError("outputs would replace objects of the source", problems=hit, hint="Choose another destination.")
    return made


def _manifest_url(url: str) -> str:
    if url.endswith(".json"):
        return url
    return f"{url}.manifest.json" if url.endswith(_SUFFIX) else f"{url.rstrip('/')}/{MANIFEST_KEY}"
