"""Carries out a plan: transfer, commit, manifest. On any failure nothing of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..errors import ReshardError
from ..planning.plan import Plan
from ..storage import Location
from .destination import check_target
from .events import Listener, Noted, PhaseStarted, ignore
from .executors.threads import ThreadExecutor
from .locations import Locations, check_source
from .manifest import Manifest, encode_manifest
from .session import upload_session
from .shares import join_shares
from .two_passes import staged


def execute(
    plan: Plan,
    source: Location,
    target: Location,
    *,
    others: Sequence[Location] = (),
    overwrite: bool = False,
    keep_staging: bool = False,
    listener: Listener = ignore,
) -> Manifest:
    """Make every output of a plan, then the manifest.

    The plan's keys count from ``source``, ``target`` and ``others``, which are those of the catalog. Staged chunks may
    be kept for other conversions of this source. The listener gets the run's events in this thread.

    Raise SourceChanged if an object is not the one that the plan was made from, TargetExists if outputs exist and must
    not be replaced, and StorageError if a store fails or refuses. Whatever is raised, KeyboardInterrupt too, nothing of
    this run stays in the target.
    """
    locations = Locations((source, *others), target)
    if plan.staging:  # what would be refused in the second pass is refused before the first
        target.writable_store()
        check_target(plan, locations, overwrite=overwrite)
        listener(Noted(plan.staging_note))
    first_pass = partial(_execute, overwrite=True, listener=listener)
    with staged(plan, locations, keep=keep_staging, run=first_pass, listener=listener) as ready:
        return _execute(ready, locations, overwrite=overwrite, listener=listener)


def _execute(plan: Plan, locations: Locations, *, overwrite: bool, listener: Listener) -> Manifest:
    """Carry out one pass."""
    conversion = plan.conversion
    locations.target.writable_store()
    found = check_target(plan, locations, overwrite=overwrite)
    with upload_session(plan, locations, found.before, listener) as session:
        workers, executor = session.workers, ThreadExecutor(locations, session.workers, session.meter)
        check_source(plan, locations, workers)
        session.begin()
        session.probe()
        listener(PhaseStarted("transfer"))
        session.transfer(executor)
        if session.plan.cost.copied_bytes:  # some stores ignore the etag that a copy is pinned to
            check_source(plan, locations, workers)
        listener(PhaseStarted("commit"))
        # Until the new one is written, no manifest vouches for a mix of old and new.
        workers.map(session.remove, found.obsolete)
        session.put_small(executor)
        session.complete()
        session.replicate(executor)
        for attachment in conversion.attachments:
            session.put_document(attachment.key, locations.read(plan, attachment))
        # The last document makes a checkpoint of the other objects.
        workers.map(lambda document: session.put_document(document.key, document.data), conversion.documents[:-1])
        for document in conversion.documents[-1:]:
            session.put_document(document.key, document.data)
        workers.map(session.remove, found.leftovers)
        overflows = session.meter.overflows
        if note := overflows.note(conversion.change.on_overflow):
            listener(Noted(note))
        manifest = Manifest(conversion, plan.limits, session.receipts(), overflows=overflows.counts)
        session.put_document(conversion.manifest_key, encode_manifest(manifest))
    # No failure of what follows takes back what is complete: any later run of this conversion does it, too.
    try:
        session.remove_record()
    except ReshardError as error:
        listener(Noted(f"The record of this run could not be removed: {error.marked_message}"))
    join_shares(manifest, locations.target)
    return manifest
