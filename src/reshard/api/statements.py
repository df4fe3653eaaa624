"""The library's statements on conversions: plan, convert, verify, and plans that are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from typing import Any

from ..engine.events import Listener, Noted, ignore
from ..engine.execute import Policy, execute
from ..engine.manifest import Manifest, decode_manifest
from ..engine.outcome import find_outcome, finish_outcome
from ..engine.shares import read_shares
from ..engine.two_passes import remove_left_chunks
from ..engine.verification import Report, Subset, join_reports, verify_manifest
from ..engine.workers import working
from ..engine.writer import check_length, checked_body
from ..errors import NotFound, ReshardError, TargetExists, UsageError, option, raise_all
from ..formats.strict_json import shown
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.limits import Integrity, Limits
from ..planning.plan import Plan
from ..planning.plan_json import decode_plan
from ..planning.staging import staged_plan
from ..storage import (
    Location,
    connects_when_opened,
    open_location,
    open_source,
    open_target,
    open_target_object,
    read_object,
    shared_connections,
)
from .connecting import connecting
from .notebook_progress import listening
from .process_choice import plan_for_processes
from .request import OBJECT_SUFFIXES, PLAN_OPTIONS, PLANNING_OPTIONS, RUN_OPTIONS, Request
from .resolve import Resolved, check_sources_kept, cluster_of, resolve


def plan(src: str, dst: str, *, on_event: Listener | None = None, **options: Any) -> Plan:
    """Decide how to convert, from headers alone; nothing is written.

    Parameters
    ----------
    src, dst
        URLs. With a target strategy or layout ``dst`` gets ``rank_R/<prefix>R.safetensors``;
        without, a full checkpoint: one object if ``dst`` ends in ``.safetensors`` or ``.ckpt``,
        ``rank_0/<prefix>0.safetensors`` if a prefix is given (MindSpore's form for one device),
        else Hugging Face's form with an index where needed, or the form that ``form`` names; a prefix
        that ends in ``.zarr`` becomes a zarr store.
    on_event
        Is called with the events of reading headers; as for :func:`convert`.
    options
        See :class:`reshard.api.Request`.

    Raises
    ------
    UsageError, SourceError, PlanError, StorageError
        As the tree in :mod:`reshard.errors` says; an OverBudget has the memory that is needed.
    """
    request = Request.of(PLANNING_OPTIONS, **(options | {"src": src, "dst": dst}))
    listener = listening(on_event)
    with connecting(request, listener):
        return plan_resolved(resolve(request, listener))


@shared_connections()
def plan_resolved(resolved: Resolved) -> Plan:
    """Make the plan of a resolved request, or refuse."""
    conversion, staging = resolved.conversion, resolved.staging
    found = resolved.cluster.machines(conversion.urls) if resolved.cluster else ()
    cores = [machine.core_count for machine in found]
    made = plan_for_processes(conversion, resolved.limits, resolved.copy_bases, resolved.process_count, cores)
    if staging is not None and staging.limits is not None and cores:  # both passes have all machines
        count, memory_bytes = made.limits.process_count, made.limits.memory_bytes
        limits = replace(staging.limits, process_count=count, memory_bytes=memory_bytes)
        staging = replace(staging, limits=limits)
    if staging is not None:
        made = staged_plan(made, staging)
    check_sources_kept(made.conversion)
    return made


def convert(
    src: str | None = None,
    dst: str | None = None,
    *,
    plan: Plan | str | PathLike[str] | None = None,
    on_event: Listener | None = None,
    **options: Any,
) -> Manifest:
    """Convert a checkpoint, streaming; returns the manifest, which is also written beside the outputs.

    Parameters
    ----------
    src, dst
        As for :func:`plan`. Beside a plan they decide nothing: the plan must have the same.
    plan
        A plan, or the URL of a saved one.
    on_event
        Is called with the events of the run, a few times a second. If None, a notebook shows a progress bar.
    options
        See :class:`reshard.api.Request`; with a plan only ``if_exists``, ``overwrite``, ``keep_staging`` and
        ``give_up_after``.

    Raises
    ------
    ReshardError
        As the tree in :mod:`reshard.errors` says. Whatever is raised, KeyboardInterrupt too,
        nothing of this run stays in the target.

    Notes
    -----
    A conversion that is finished already is left as it is, unless ``if_exists`` says otherwise: the manifest that is
    returned then has ``was_done`` set.
    """
    if plan is None and (src is None or dst is None):
        raise UsageError(f"convert needs {option('src')} and {option('dst')}, or {option('plan')}")
    listener = listening(on_event)
    if plan is None:
        request = Request.of(None, **options, src=src, dst=dst)
        with connecting(request, listener):
            return convert_resolved(resolve(request, listener), request, listener)
    check_plan_alone(options)
    request = Request.of(None, **options)
    with connecting(request, listener):
        made = plan if isinstance(plan, Plan) else load_plan(fspath(plan))
        check_places(made, src, dst)
        listener(Noted(f"the plan writes to {made.conversion.target_url}"))
        return run(made, request, listener)


def check_places(plan: Plan, src: str | None, dst: str | None) -> None:
    """Refuse a plan for another source or target than the caller names: a stranger may have written it."""
    conversion, catalog, problems = plan.conversion, plan.catalog, list[str]()
    if dst is not None:
        target, keys = open_location(conversion.target_url), [key for each in conversion.outputs for key in each.keys]
        written = [target, *(target.child(key) for key in keys if len(keys) == 1)]
        if open_location(dst).identity not in {place.identity for place in written}:
            problems.append(f"it writes to {conversion.target_url}, not to {dst}")
    if src is not None:
        source, given = open_location(catalog.url), open_location(src).identity
        read = [source.identity, *(source.child(item.key).identity for item in catalog.objects if not item.base)]
        if not any(each == given or each.startswith(f"{given}/") for each in read):
            problems.append(f"it reads {catalog.url}, not {src}")
    raise_all(UsageError, f"{option('plan')} is for other places", problems, "Make a new plan.")


def check_plan_alone(options: Mapping[str, object]) -> None:
    """Refuse options beside a plan, which has decided them already."""
    given = [name for name, value in options.items() if value and name in PLAN_OPTIONS]
    if given:
        message = f"{option('plan')} cannot be combined with {', '.join(map(option, given))}"
        *others, last = map(option, RUN_OPTIONS)
        hint = f"Beside a plan only {', '.join(others)} and {last} have a meaning."
        raise UsageError(message, hint=hint)


def convert_resolved(resolved: Resolved, request: Request, on_event: Listener = ignore) -> Manifest:
    """Carry out a resolved request, unless its outcome is there already and may stay."""
    with connecting(request, on_event):
        staging_url = resolved.staging.url if resolved.staging else None
        done, request = earlier_outcome(resolved.conversion, request, staging_url, on_event)
        return done or _run(plan_resolved(resolved), request, on_event)


def run(plan: Plan, request: Request, on_event: Listener = ignore) -> Manifest:
    """Carry out a plan as the options of a request that concern runs say, unless its outcome is there already."""
    with connecting(request, on_event):
        staging_url = plan.staging_mode.url if plan.staging_mode else None
        done, request = earlier_outcome(plan.conversion, request, staging_url, on_event)
        return done or _run(plan, request, on_event)


def earlier_outcome(
    conversion: Conversion, request: Request, staging_url: str | None, on_event: Listener = ignore
) -> tuple[Manifest | None, Request]:
    """Return the manifest of an earlier run whose outcome stays, and the request that holds for a run if there is none.

    What that run has left unfinished after its manifest is done here: chunks that it had staged are removed. Raise
    TargetExists if objects were changed since that run.
    """
    manifest, missing = find_finished(conversion, request) or (None, 0)
    if manifest is None:
        return None, request
    if missing:
        on_event(Noted(f"{missing} of {len(manifest.receipts)} outputs of an earlier run are missing: it is repeated"))
        return None, replace(request, overwrite=True)
    finish_outcome(manifest, open_target(conversion.target_url))
    if staging_url is not None:
        remove_left_chunks(open_target(staging_url), conversion)
    return manifest, request


def find_finished(conversion: Conversion, request: Request) -> tuple[Manifest, int] | None:
    """Return the manifest of an earlier run that may stay, and how many of its objects are missing; read only."""
    if request.replaces or request.if_exists == "fail":
        return None
    target = open_target(conversion.target_url)
    with working(request.concurrency or Limits().concurrency, target.store) as workers:
        return find_outcome(conversion, target, workers)


def _run(plan: Plan, request: Request, on_event: Listener) -> Manifest:
    check_sources_kept(plan.conversion)
    return execute(
        plan,
        open_source(plan.catalog.url),
        open_target(plan.conversion.target_url),
        others=[open_source(url) for url in plan.catalog.others],
        policy=Policy(request.replaces, request.on_failure != "undo", request.restart, request.keep_staging),
        cluster=cluster_of(request),
        listener=on_event,
    )


def verify(
    url: str,
    *,
    source: str | Sequence[str] = (),
    subset: str | None = None,
    give_up_after: str | float | None = None,
    on_event: Listener | None = None,
) -> Report:
    """Compare a finished conversion with its source, bit for bit, in bounded memory; report every difference.

    Parameters
    ----------
    url
        Of the manifest, or of the target that holds it. Where only some shares of a target are finished, these are
        compared, and the report names the ranks that are missing.
    source
        URLs of the source, or of places in its stores, if it is in another store than the target: anyone can write a
        manifest, so what it names elsewhere is not read unless the caller names it too. Local sources of local targets
        are read.
    subset
        ``n/t``: only every t-th step, from the n-th.
    give_up_after
        As in :class:`reshard.api.Request`.
    on_event
        Is called with the events of the comparison, a few times a second; as for :func:`convert`.

    Raises
    ------
    NotFound
        No manifest is there, not even that of a share: the conversion was not finished.
    SourceChanged
        The source is no longer the one that was converted.
    UsageError
        The manifest names a source elsewhere.
    """
    chosen = Subset.parse(subset) if subset else Subset()
    listener = listening(on_event)
    with connecting(Request.of(give_up_after=give_up_after), listener):
        return _verify(url, [source] if isinstance(source, str) else source, chosen, listener)


def _verify(url: str, sources: Sequence[str], chosen: Subset, on_event: Listener) -> Report:
    place = open_location(_manifest_url(url))
    trusted = [place, *map(open_source, sources)]
    verified = partial(_verified, place=place, trusted=trusted, subset=chosen, on_event=on_event)
    try:
        return verified(decode_manifest(read_object(place), place.url))
    except NotFound as error:
        shares = None if url.endswith(".json") else read_shares(open_target(url))
        if shares is None:
            raise NotFound(
                f"{place.url}: no manifest there ({error.marked_message.rstrip('.')})",
                hint="Pass a manifest, or the target of a finished conversion; the manifest is written last.",
            ) from error
    return join_reports(list(map(verified, shares.manifests)), shares.missing_ranks)


def _manifest_url(url: str) -> str:
    if url.endswith(".json"):
        return url
    return f"{url}.manifest.json" if url.endswith(OBJECT_SUFFIXES) else f"{url.rstrip('/')}/{MANIFEST_KEY}"


def _verified(
    manifest: Manifest, place: Location, trusted: Sequence[Location], subset: Subset, on_event: Listener
) -> Report:
    """Verify the objects of a manifest that was read at a place, wherever the run believed to write them."""
    target, catalog = place, manifest.conversion.catalog
    for _ in manifest.conversion.manifest_key.split("/"):
        target = target.parent
    sources = [_trusted_source(url, place, trusted) for url in (catalog.url, *catalog.others)]
    return verify_manifest(manifest, sources[0], target, others=sources[1:], subset=subset, listener=on_event)


def _trusted_source(url: str, manifest: Location, trusted: Sequence[Location]) -> Location:
    """Open a source that a manifest names; UsageError unless it is in a store that the caller named."""
    source, is_named = None, any(url.startswith(f"{place.store.url}/") for place in trusted)
    if is_named or not connects_when_opened(url):
        with suppress(ReshardError):  # whatever is wrong with a URL of a stranger, it is not the caller's
            source = open_source(url)
    if source is None or not any(source.shares_store(place) for place in trusted):
        raise UsageError(
            f"{manifest.url} names the source {shown(url)}, outside {manifest.store.url}: "
            f"give {option('source', url)} if it is to be read"
        )
    return source


def load_plan(url: str) -> Plan:
    """Read a plan that was saved with ``reshard plan --out``."""
    place = open_location(url)
    return decode_plan(read_object(place), place.url)


def save(url: str, data: bytes, *, overwrite: bool = False) -> None:
    """Write one small object, or a local file: a plan or a strategy.

    Raise TargetExists if it exists and ``overwrite`` is not set: it may be the input of something.
    """
    base, name = open_target_object(url)
    place = base.child(name)
    if not overwrite and place.head_or_none():
        raise TargetExists(f"{place.url} exists already", hint=f"Give {option('overwrite')}, or another name.")
    check_length(place, len(data), base.writable_store().put(place.key, *checked_body(data, Integrity.AUTO)))
