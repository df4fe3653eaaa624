"""From a request to a conversion: reads headers and small documents, and decides all that planning starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..engine.events import Listener, PhaseStarted, ignore
from ..engine.executors.cluster import Cluster
from ..engine.sources import SourceOptions, read_catalog
from ..engine.sources.saved_point import confirm_point, resumable_name
from ..engine.sources.strategy_files import StrategySource
from ..engine.sources.training_state import read_training_state
from ..engine.workers import working
from ..errors import PlanError, UsageError, option, raise_all
from ..formats.mindspore.rank_names import SavedAt
from ..formats.name_map import parse_name_map
from ..models.parallel_config import ParallelConfig
from ..planning.catalog import Catalog
from ..planning.change import Change, make_tensors
from ..planning.conversion import Conversion
from ..planning.limits import Integrity, Limits
from ..planning.outputs.output import Attachment, TargetTensor
from ..planning.plan import StagingMode
from ..planning.share_documents import manifest_key_of
from ..planning.sources.full_source import with_adapters
from ..planning.sources.selection import Renames
from ..planning.steps.copies import REPLICAS
from ..planning.targets.strategy_check import is_state
from ..storage import Location, open_location, open_source, open_target, read_object, shared_connections
from ..tensor import Strategy
from .changes import (
    adapters_at,
    attach_companions,
    change_of,
    check_copies,
    strategy_from_parallel,
    with_runs_of_target,
)
from .connecting import connecting
from .contents import load_parallel, open_checkpoint, source_options, strategy_source
from .request import Request
from .serving import with_serving
from .target_choice import choose_target, promised_point, target_place


@dataclass(frozen=True, slots=True)
class Resolved:
    """A conversion, and what planning needs besides it: limits, what the store can copy from, where to stage.

    ``process_count`` is None if the number of processes is still to be chosen; they are this machine's, or those of a
    ``cluster``, whose machines each have the memory of the limits.
    """

    conversion: Conversion
    limits: Limits
    copy_bases: tuple[int, ...] = ()
    staging: StagingMode | None = None
    process_count: int | None = None
    cluster: Cluster | None = None


@dataclass(frozen=True, slots=True)
class Headers:
    """Facts known once headers are read: the source, how it is cut, and how the target is cut."""

    catalog: Catalog
    source_strategy: StrategySource | None
    target_strategy: Strategy | None


class Hooks:
    """Decisions of an original command once it knows the source; this base class decides nothing."""

    def select(self, wanted: SourceOptions, _target: StrategySource | None) -> SourceOptions:
        """Choose what to read, knowing the files that cut the target."""
        return wanted

    def choose_names(self, _names: Sequence[str]) -> Mapping[str, str]:
        """Choose new names for some of the source's, before all rules of the request."""
        return {}

    def choose_rules(
        self, request: Request, _catalog: Catalog, _target: StrategySource | None
    ) -> tuple[Request, Sequence[str]]:
        """Choose the rules that names are changed by, with notes for the reader."""
        return request, ()

    def complete(self, request: Request, _headers: Headers) -> tuple[Request, Sequence[str]]:
        """Complete the request, with notes for the reader."""
        return request, ()


def resolve(request: Request, on_event: Listener = ignore, hooks: Hooks | None = None) -> Resolved:
    """Find out what a request means; nothing is written. Errors are those of the tree in :mod:`reshard.errors`."""
    with connecting(request, on_event):
        return _resolve(request, on_event, hooks or Hooks())


def _resolve(request: Request, on_event: Listener, hooks: Hooks) -> Resolved:
    # Whatever needs no headers comes first, so that mistakes in it show at once.
    target_files = strategy_source(request.dst_strategy, request.dst_layout)
    wanted = hooks.select(source_options(request), target_files)
    renames = Renames(load_name_map(request.name_map), request.rename)
    parallel = None if request.parallel is None else load_parallel(request.parallel)
    base, name = place = target_place(request)
    limits = limits_of(base, request)
    _check_apart(open_checkpoint(request.src), base if name is None else base.child(name))
    on_event(PhaseStarted("headers"))
    catalog = _read_headers(request, wanted, limits.concurrency)
    names = [entry.spec.name for entry in catalog.entries]
    renames = replace(renames, name_map={**renames.name_map, **hooks.choose_names(names)})
    catalog = note_unmatched(catalog, (*renames.unmatched_map(names), *renames.unmatched_rules(names)))
    renamed = renames.apply(names)
    request, chosen = hooks.choose_rules(request, catalog, target_files)
    change, notes = change_of(request, catalog, renamed, parallel)
    catalog, served = with_serving(catalog, renamed, change)
    tensors = make_tensors(catalog, renamed, change).tensors if request.is_sharded else ()
    compared = check_copies(catalog, renamed, change, limits.concurrency)
    catalog = with_notes(catalog, *chosen, *notes, *compared)
    catalog = _with_training_state(catalog, request, tensors, limits.concurrency)
    strategy, notes = _target_strategy(target_files, parallel, change, tensors, catalog, request)
    strategy = served or strategy
    change, more = with_runs_of_target(change, strategy)
    catalog = with_notes(catalog, *notes, *more)
    # Now that the source is known, an original command may decide the rest.
    request, decided = hooks.complete(request, Headers(catalog, wanted.strategy, strategy))
    catalog, saved_at = _with_resume_point(with_notes(catalog, *decided), request, tensors, limits.concurrency)
    target = choose_target(request, place, strategy, limits, catalog.training_state, saved_at)
    attachments: tuple[Attachment, ...] = ()
    manifest_key = f"{name}.manifest.json" if name else manifest_key_of(target)
    if target.has_companions:
        catalog, attachments = attach_companions(request, catalog)
    conversion = Conversion(catalog, target, base.url, manifest_key, renamed, change, attachments)
    bases, staging = copy_bases(base, catalog, request), _staging_mode(base, catalog, request)
    return Resolved(conversion, limits, bases, staging, request.processes, cluster_of(request))


def _target_strategy(
    files: StrategySource | None,
    parallel: ParallelConfig | None,
    change: Change,
    tensors: Sequence[TargetTensor],
    catalog: Catalog,
    request: Request,
) -> tuple[Strategy | None, list[str]]:
    """Make the strategy that cuts the target, with notes for the reader; None for a full checkpoint."""
    specs = [each.spec for each in tensors]
    if files is not None:
        return files.strategy({spec.name: spec for spec in specs}, local=False, others=catalog.dropped), []
    return (None, []) if parallel is None else strategy_from_parallel(parallel, change, specs, request)


def _read_headers(request: Request, wanted: SourceOptions, concurrency: int) -> Catalog:
    """Read the source, and the adapters that are stored apart."""
    location = open_source(request.src)
    adapters = adapters_at(request.lora) if request.lora else None
    stores = (place.store for place in (location, adapters) if place is not None)
    with working(concurrency, *stores) as workers:
        catalog = read_catalog(location, wanted, workers)
        if adapters is not None:
            catalog = with_adapters(catalog, read_catalog(adapters, SourceOptions(proof=wanted.proof), workers))
    if catalog.dropped and not catalog.entries:
        message = f"{request.src}: {option('keep')} and {option('drop')} leave no tensor"
        raise UsageError(message, hint="Run reshard inspect to list the names.")
    return catalog


def load_name_map(name_map: Mapping[str, str] | str | None) -> Mapping[str, str]:
    """Read a name map unless it is one already."""
    if not isinstance(name_map, str):
        return name_map or {}
    place = open_location(name_map)
    return parse_name_map(read_object(place), place.url)


def note_unmatched(catalog: Catalog, missed: Sequence[str]) -> Catalog:
    """Note renames that match no tensor."""
    note = f"{len(missed)} renames match no tensor: {', '.join(missed[:5])}"
    return with_notes(catalog, note) if missed else catalog


def with_notes(catalog: Catalog, *notes: str) -> Catalog:
    """Add notes for the reader."""
    return replace(catalog, notes=(*catalog.notes, *notes))


def _with_training_state(
    catalog: Catalog, request: Request, tensors: Sequence[TargetTensor], concurrency: int
) -> Catalog:
    """Read the training state where the target has a place for it."""
    if request.form == "iteration":
        place = open_source(catalog.url)
        with working(concurrency, place.store) as workers:
            return replace(catalog, training_state=read_training_state(catalog, tensors, place, workers))
    lost = [f"{name} {value}" for name, value in catalog.training_state.items() if value is not None]
    note = f"the training state in common.json is not written in this form: {', '.join(lost)}"
    return with_notes(catalog, note) if lost else catalog


def _with_resume_point(
    catalog: Catalog, request: Request, tensors: Sequence[TargetTensor], concurrency: int
) -> tuple[Catalog, SavedAt | None]:
    """Decide whether training shall find the ranks to resume from, and note why not where one may expect it.

    Their names must be such that training finds them, they must hold training state, and the source must have been
    saved at the epoch and step that the names tell.
    """
    names = {tensor.spec.name for tensor in tensors}
    if request.form is not None or not any(is_state(name, names) for name in names):
        return catalog, None
    point = promised_point(request)
    if point is None:
        known = resumable_name(catalog)
        note = f"training finds ranks to resume from by names such as the source's: {option('prefix', known)}"
        return (with_notes(catalog, note) if known else catalog), None
    place = open_source(catalog.url)
    with working(concurrency, place.store) as workers:
        reason = confirm_point(catalog, place, point, workers)
    if not reason:
        return catalog, point
    return with_notes(catalog, f"no meta.json is written, for training to resume at {point}: {reason}"), None


# Limits and places.


def cluster_of(request: Request) -> Cluster | None:
    """Return the Ray cluster whose workers move the bytes; None if this machine does."""
    if request.engine != "ray":
        return None
    return Cluster(request.ray_address or "auto", request.memory or Limits().memory_bytes)


def limits_of(target: Location, request: Request) -> Limits:
    """Return the default limits, with what the target's store accepts and what the request asks for."""
    accepted, default = target.writable_store().limits, Limits()
    return Limits(
        memory_bytes=request.memory or default.memory_bytes,
        concurrency=request.concurrency or default.concurrency,
        min_part_bytes=accepted.min_part_bytes,
        max_part_bytes=min(accepted.max_part_bytes, accepted.max_put_bytes),
        max_part_count=accepted.max_part_count,
        max_object_bytes=accepted.max_object_bytes,
        min_copy_source_bytes=accepted.min_copy_source_bytes,
        read_count=2 if request.reads_twice else 1,
        integrity=Integrity(request.integrity or default.integrity),
    )


def copy_bases(target: Location, catalog: Catalog, request: Request) -> tuple[int, ...]:
    """Find out what the target's store can copy by itself; see :class:`reshard.planning.plan.Plan`."""
    store = target.writable_store()
    if request.copy == "never" or not store.copies_from(store):
        return ()
    places = (open_source(url) for url in (catalog.url, *catalog.others))
    bases = (base for base, place in enumerate(places) if store.copies_from(place.store))
    return (REPLICAS, *bases)


def _staging_mode(target: Location, catalog: Catalog, request: Request) -> StagingMode | None:
    """Decide where tensors may be staged; UsageError if that is the source or the target, inside one, or around one."""
    mode, url = request.staging or "auto", request.staging_url
    if mode == "never":
        return None
    if not url and not target.key:  # a whole bucket has nothing beside it
        if mode == "always":
            needs = f"{option('staging', 'always')} needs {option('staging_url')}"
            raise UsageError(f"{needs}: nothing can be beside {target.url}")
        return None
    place = open_target(url) if url else target.parent.child(f"{target.key.rpartition('/')[2]}.staging")
    hint = f"Choose another place with {option('staging_url')}."
    here, there = f"{place.identity}/", f"{target.identity}/"
    if here.startswith(there) or there.startswith(here):
        raise UsageError(f"staging at {place.url} is not apart from {target.url}", hint=hint)
    # What is staged is removed afterwards, with all that is below its place.
    inside = [url for url, identity in _source_objects(catalog) if identity.startswith(here)]
    raise_all(UsageError, f"staging at {place.url} is where the source's objects are", inside, hint)
    is_near = target.writable_store().copies_from(place.store)
    return StagingMode(place.url, is_near, mode == "always", limits_of(place, request))


def _source_objects(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Yield URL and identity of every object that is read."""
    places = [open_source(url) for url in (catalog.url, *catalog.others)]
    for item in catalog.objects:
        place = places[item.base].child(item.key)
        yield place.url, place.identity


def _check_apart(source: Location, target: Location) -> None:
    """Refuse a target inside its source: what is written would become part of what is read."""
    if f"{target.identity}/".startswith(f"{source.identity}/"):
        message = f"{option('dst')} {target.url} is inside {option('src')} {source.url}"
        raise UsageError(message, hint="Choose a destination outside the source.")


@shared_connections()
def check_sources_kept(conversion: Conversion) -> None:
    """Refuse a conversion whose outputs would replace its own source."""
    sources = {identity for _, identity in _source_objects(conversion.catalog)}
    target = open_target(conversion.target_url)
    places = [target.child(key) for key in (*conversion.keys, conversion.manifest_key)]
    hit = sorted(place.url for place in places if place.identity in sources)
    raise_all(PlanError, "outputs would replace objects of the source", hit, "Choose another destination.")
