"""The library's statements on conversions: plan, convert, verify, and plans that are saved."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from ..engine.events import Listener, ignore
from ..engine.execute import execute
from ..engine.manifest import Manifest, decode_manifest
from ..engine.sources.strategy_files import read_object
from ..engine.verification import Report, Subset, verify_manifest
from ..errors import NotFound, TargetExists, UsageError, option
from ..planning.conversion import MANIFEST_KEY
from ..planning.plan import Plan, make_plan
from ..planning.plan_json import decode_plan
from ..planning.staging import staged_plan
from ..storage import open_location, open_source, open_target, open_target_object, shared_connections
from .request import OBJECT_SUFFIXES, PLAN_OPTIONS, Request
from .resolve import Resolved, check_sources_kept, resolve


def plan(src: str, dst: str, *, on_event: Listener = ignore, **options: Any) -> Plan:
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
        Is called with the events of reading headers.
    options
        See :class:`reshard.api.Request`.

    Raises
    ------
    UsageError, SourceError, PlanError, StorageError
        As the tree in :mod:`reshard.errors` says; an OverBudget has the memory that is needed.
    """
    request = Request.of(PLAN_OPTIONS, **(options | {"src": src, "dst": dst}))
    return plan_resolved(resolve(request, on_event))


@shared_connections()
def plan_resolved(resolved: Resolved) -> Plan:
    """Make the plan of a resolved request, or refuse."""
    made = make_plan(resolved.conversion, resolved.limits, resolved.copy_bases)
    if resolved.staging is not None:
        made = staged_plan(made, resolved.staging)
    check_sources_kept(made.conversion)
    return made


@shared_connections()
def convert(
    src: str | None = None,
    dst: str | None = None,
    *,
    plan: Plan | str | PathLike[str] | None = None,
    on_event: Listener = ignore,
    **options: Any,
) -> Manifest:
    """Convert a checkpoint, streaming; returns the manifest, which is also written beside the outputs.

    Parameters
    ----------
    src, dst
        As for :func:`plan`; not together with a plan.
    plan
        A plan, or the URL of a saved one.
    on_event
        Is called with the events of the run, a few times a second.
    options
        See :class:`reshard.api.Request`; with a plan only ``overwrite`` and ``keep_staging``.

    Raises
    ------
    ReshardError
        As the tree in :mod:`reshard.errors` says. Whatever is raised, KeyboardInterrupt too,
        nothing of this run stays in the target.
    """
    options |= {"src": src, "dst": dst}
    if plan is not None:
        check_plan_alone(options)
    elif src is None or dst is None:
        raise UsageError(f"convert needs {option('src')} and {option('dst')}, or {option('plan')}")
    request = Request.of(None, **options)
    if plan is None:
        plan = plan_resolved(resolve(request, on_event))
    made = plan if isinstance(plan, Plan) else load_plan(fspath(plan))
    return run(made, overwrite=request.overwrite, keep_staging=request.keep_staging, on_event=on_event)


def check_plan_alone(options: Mapping[str, object]) -> None:
    """Refuse options beside a plan, which has decided them already."""
    given = [name for name, value in options.items() if value and name in PLAN_OPTIONS]
    if given:
        message = f"{option('plan')} cannot be combined with {', '.join(map(option, given))}"
        hint = f"Beside a plan only {option('overwrite')} and {option('keep_staging')} have a meaning."
        raise UsageError(message, hint=hint)


@shared_connections()
def run(plan: Plan, *, overwrite: bool = False, keep_staging: bool = False, on_event: Listener = ignore) -> Manifest:
    """Carry out a plan."""
    check_sources_kept(plan.conversion)
    source, target = open_source(plan.catalog.url), open_target(plan.conversion.target_url)
    return execute(
        plan,
        source,
        target,
        others=[open_source(url) for url in plan.catalog.others],
        overwrite=overwrite,
        keep_staging=keep_staging,
        listener=on_event,
    )


@shared_connections()
def verify(url: str, *, subset: str | None = None, on_event: Listener = ignore) -> Report:
    """Compare a finished conversion with its source, bit for bit, in bounded memory; report every difference.

    Parameters
    ----------
    url
        Of the manifest, or of the target that holds it.
    subset
        ``n/t``: only every t-th step, from the n-th.
    on_event
        Is called with the events of the comparison, a few times a second.

    Raises
    ------
    NotFound
        No manifest is there: the conversion was not finished.
    SourceChanged
        The source is no longer the one that was converted.
    """
    if not url.endswith(".json"):
        url = f"{url}.manifest.json" if url.endswith(OBJECT_SUFFIXES) else f"{url.rstrip('/')}/{MANIFEST_KEY}"
    place = open_location(url)
    try:
        manifest = decode_manifest(read_object(place), place.url)
    except NotFound as error:
        raise NotFound(
            f"{place.url}: no manifest there ({error.marked_message.rstrip('.')})",
            hint="Pass a manifest, or the target of a finished conversion; the manifest is written last.",
        ) from error
    target = place
    for _ in manifest.conversion.manifest_key.split("/"):
        target = target.parent
    return verify_manifest(
        manifest,
        open_source(manifest.conversion.catalog.url),
        target,
        others=[open_source(url) for url in manifest.conversion.catalog.others],
        subset=Subset.parse(subset) if subset else Subset(),
        listener=on_event,
    )


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
    base.writable_store().put(place.key, data)
