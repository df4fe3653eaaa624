"""What people write, read: sizes, ranks, names of outputs, and what of it contradicts itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from ..engine.sources.headers import container_of
from ..errors import PlanError, UsageError, raise_all
from ..formats.containers import Container
from ..formats.mindspore.iteration import CommonValue
from ..planning.catalog import Catalog
from ..planning.conversion import MANIFEST_KEY
from ..planning.limits import Limits
from ..planning.plan import Plan, StagingMode
from ..planning.steps.copies import REPLICAS
from ..planning.targets.full_target import FullTarget, PartsTarget
from ..planning.targets.iteration_target import IterationTarget
from ..planning.targets.rank_target import RankTarget
from ..planning.targets.zarr_target import ZarrTarget
from ..storage import Location, open_source, open_target, open_target_object
from ..tensor import Strategy
from .options import Options, Size

_DEFAULT_PREFIX = "checkpoint_"
_OF_RANKS = ("dst_strategy", "dst_layout", "parallel", "prefix")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


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
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([KMG]?I?)B?\s*", str(size).upper())
    if not match or match[2] not in _UNITS:
        raise UsageError(f"size {size!r}: expected bytes or a number with KB, MB, GB, KiB, MiB or GiB, like 256MiB")
    nbytes = int(Decimal(match[1]) * _UNITS[match[2]])
    if not nbytes:
        raise UsageError(f"size {size!r}: expected at least one byte")
    return nbytes


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
    if not found or not all(0 <= rank < rank_count for rank in found):
        raise UsageError(f"ranks {ranks!r}: expected some of 0..{rank_count - 1}, those of the target strategy")
    return tuple(sorted(found))


def target_base(dst: str, options: Options) -> tuple[Location, str | None]:
    """Where outputs' keys count from, and the name of the single object if ``dst`` is one."""
    container = container_of(dst.rstrip("/"))
    if container is None:
        base = open_target(dst)
        if _is_called_zarr(base, options) and any(options.get(name) for name in _OF_RANKS):
            raise UsageError(
                f"{dst}: the name says zarr, which is of a full checkpoint; rank shards were asked for",
                hint="Write them below another name.",
            )
        return base, None
    if any(options.get(name) for name in (*_OF_RANKS, "form")):
        what = f"{options.get('form')} checkpoints" if options.get("form") else "rank shards"
        raise UsageError(
            f"{dst}: {what} need a prefix to lie below, not the name of one object",
            hint=f"Leave {container.suffix} away; --prefix names rank shards.",
        )
    if options.get("format") not in (None, container.value):
        raise UsageError(f"{dst}: the name says {container.value}, --format says {options.get('format')}")
    return open_target_object(dst.rstrip("/"))


def limits_for(target: Location, options: Options) -> Limits:
    """The default limits, with what the target's store accepts and what was asked for."""
    accepted = target.writable_store().limits
    limits = Limits(
        min_part_bytes=accepted.min_part_bytes,
        max_part_bytes=min(accepted.max_part_bytes, accepted.max_put_bytes),
        max_part_count=accepted.max_part_count,
        max_object_bytes=accepted.max_object_bytes,
        min_copy_source_bytes=accepted.min_copy_source_bytes,
    )
    memory, concurrency = options.get("memory"), options.get("concurrency")
    if memory is not None:
        limits = replace(limits, memory_bytes=parse_size(memory))
    return limits if concurrency is None else replace(limits, concurrency=concurrency)


def copy_bases(target: Location, catalog: Catalog, options: Options) -> tuple[int, ...]:
    """What the target's store can copy by itself; see :class:`Plan`."""
    store = target.writable_store()
    if options.get("copy") == "never" or not store.copies_from(store):
        return ()
    places = (open_source(url) for url in (catalog.url, *catalog.others))
    bases = (base for base, place in enumerate(places) if store.copies_from(place.store))
    return (REPLICAS, *bases)


def staging_mode(target: Location, catalog: Catalog, options: Options) -> StagingMode | None:
    """Whether to stage, and where; None for never.

    Raises
    ------
    UsageError
        The place is the source's or the target's, or inside one, or around one.
    """
    mode, url = options.get("staging") or "auto", options.get("staging_url")
    if mode == "never":
        if url:
            raise UsageError("--staging-url is for staging, but --staging says never")
        return None
    if not url and not target.key:  # a whole bucket has nothing beside it
        if mode == "always":
            raise UsageError(f"--staging always needs --staging-url: there is no place beside {target.url}")
        return None
    name = target.key.rpartition("/")[2]
    place = open_target(url) if url else target.parent.child(f"{name}.staging")
    _check_beside(place, target)
    _check_holds_no_source(place, catalog)
    is_near = target.writable_store().copies_from(place.store)
    return StagingMode(place.url, is_near, mode == "always", limits_for(place, options))


def _check_beside(place: Location, target: Location) -> None:
    """Refuse to stage inside the target, or around it."""
    here, there = f"{place.identity}/", f"{target.identity}/"
    if here.startswith(there) or there.startswith(here):
        raise UsageError(
            f"staging at {place.url} is not apart from {target.url}", hint="Choose another place with --staging-url."
        )


def _check_holds_no_source(place: Location, catalog: Catalog) -> None:
    """Refuse to stage, and then to tidy up, where objects are that are read."""
    sources = [open_source(url) for url in (catalog.url, *catalog.others)]
    inside = [
        item.key
        for item in catalog.objects
        if sources[item.base].child(item.key).identity.startswith(f"{place.identity}/")
    ]
    hint = "Choose another place with --staging-url."
    raise_all(UsageError, f"staging at {place.url} is where the source's objects are", inside, hint)


def full_target(
    name: str | None, base: Location, options: Options, limits: Limits
) -> FullTarget | PartsTarget | ZarrTarget:
    """What a full checkpoint is written as below ``base``; see :class:`Options`."""
    size, prefix = options.get("part_size"), options.get("prefix")
    if options.get("form") == "zarr" or (name is None and _is_called_zarr(base, options)):
        return ZarrTarget(parse_size(size) if size is not None else limits.chunk_bytes)
    if options.get("form") == "mindspore":
        return PartsTarget(parse_size(size) if size is not None else limits.mindspore_part_bytes)
    object_bytes = parse_size(size) if size is not None else limits.object_bytes
    container = _container(name, options)
    if name is not None and size is not None:
        raise UsageError(f"--part-size is for full checkpoints of several objects, {name} is one")
    if name is None and prefix is not None:
        name = f"rank_0/{_named(prefix, container).format(rank=0)}"
        return FullTarget(name, name, "", "ms", object_bytes, container)
    if name is None and container is Container.CKPT:
        name = "model.ckpt"
    if name is not None:
        return FullTarget(name, name, "", "pt", object_bytes, container)
    return FullTarget(
        "model-{part:05d}-of-{parts:05d}.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "pt",
        object_bytes,
    )


def _is_called_zarr(base: Location, options: Options) -> bool:
    """Whether the target's name alone asks for zarr."""
    return base.key.endswith(".zarr") and not (options.get("form") or options.get("format"))


def rank_target(strategy: Strategy, options: Options) -> RankTarget:
    """What rank shards are written as; see :class:`Options`."""
    ranks, container = options.get("ranks"), _container(None, options)
    chosen = range(strategy.rank_count) if ranks is None else parse_ranks(ranks, strategy.rank_count)
    name = f"rank_{{rank}}/{_named(options.get('prefix'), container)}"
    return RankTarget(strategy, tuple(chosen), name, container, bool(options.get("remove_redundancy")))


def iteration_target(
    strategy: Strategy, options: Options, training_state: Mapping[str, CommonValue]
) -> IterationTarget:
    """What the newer layout of MindSpore Transformers is written as; see :class:`Options`."""
    iteration = options.get("iteration")
    if iteration is None:
        step = training_state.get("global_step")
        if type(step) is not int:
            raise UsageError(
                "which iteration this is cannot be told from the source: it has no global_step",
                hint="Give it: --iteration N.",
            )
        iteration = step
    prefix = options.get("prefix") or ""
    if iteration < 0 or "/" in prefix:
        raise UsageError(
            f"--iteration {iteration} --prefix {prefix!r}: expected a number that is not negative, "
            "and the start of a name, with no /"
        )
    return IterationTarget(strategy, iteration, prefix, bool(options.get("remove_redundancy")), training_state)


def _container(name: str | None, options: Options) -> Container:
    return (container_of(name) if name else None) or Container(options.get("format") or Container.SAFETENSORS)


def _named(prefix: str | None, container: Container) -> str:
    """The name of a rank's object, ``{rank}`` standing for its number."""
    name = _DEFAULT_PREFIX if prefix is None else prefix
    rest = name.replace("{rank}", "")
    if "/" in rest or "{" in rest or "}" in rest or rest.startswith("."):
        raise UsageError(
            f"prefix {prefix!r}: expected the start of a name, with no /, no dot in front and no braces but {{rank}}"
        )
    if container_of(name) not in (None, container):
        raise UsageError(f"prefix {prefix!r}: expected a name that ends in {container.suffix}, or the start of one")
    if name.endswith(container.suffix):
        return name
    return f"{name if '{rank}' in name else name + '{rank}'}{container.suffix}"


def check_apart(source: Location, target: Location) -> None:
    """Refuse a target inside its source: what is written would become part of what is read."""
    if f"{target.identity}/".startswith(f"{source.identity}/"):
        raise UsageError(
            f"DST {target.url} is inside SRC {source.url}",
            hint="Choose a destination outside the source.",
        )


def check_sources_kept(made: Plan, source: Location, target: Location) -> None:
    """Refuse a plan whose outputs would replace its own source."""
    sources = {source.child(item.key).identity for item in made.catalog.objects if not item.base}
    others = [open_source(url) for url in made.catalog.others]
    sources |= {others[item.base - 1].child(item.key).identity for item in made.catalog.objects if item.base}
    keys = (*made.conversion.keys, made.conversion.manifest_key)
    hit = sorted(target.child(key).url for key in keys if target.child(key).identity in sources)
    raise_all(
        PlanError, "outputs would replace objects of the source", hint="Choose another destination.", problems=hit
    )


def manifest_url(url: str) -> str:
    """Where the manifest of a target is, or the URL itself if it names one."""
    if url.endswith(".json"):
        return url
    return f"{url}.manifest.json" if container_of(url) else f"{url.rstrip('/')}/{MANIFEST_KEY}"
