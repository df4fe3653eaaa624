"""Carries out a plan: claim, transfer, commit, manifest. What ends early is kept for the next run, or undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import ReshardError
from ..planning.plan import Plan
from ..planning.share_documents import record_key_of
from ..storage import Location
from .claim import Claim, Watch, claimed
from .destination import Destination, check_target
from .digest import ReadLedger
from .events import Listener, Noted, PhaseStarted, ignore
from .executors.choose import choose_executor, crew_for
from .executors.cluster import Cluster
from .executors.crew import AnyCrew
from .journal import Journal, Progressed, read_journal
from .locations import Locations, check_source
from .manifest import Manifest
from .read_checks import check_reads, kept_checksums
from .resume import Adopted, adopt, plan_of_earlier, remove_left
from .run_record import RunRecord
from .session import Run, UploadSession, upload_session
from .shares import join_shares
from .two_passes import staged
from .workers import working


@dataclass(frozen=True, slots=True)
class Policy:
    """How a run deals with what is there, and with its own end.

    Parameters
    ----------
    overwrite
        Whether outputs that exist are replaced.
    keeps
        Whether an error leaves what was sent, for the next run of the same conversion; else all is undone.
    restarts
        Whether to begin anew, whatever earlier runs have left.
    keeps_staging
        Whether staged chunks are kept for other conversions of this source.
    """

    overwrite: bool = False
    keeps: bool = False
    restarts: bool = False
    keeps_staging: bool = False


def execute(
    plan: Plan,
    source: Location,
    target: Location,
    *,
    others: Sequence[Location] = (),
    policy: Policy = Policy(),
    cluster: Cluster | None = None,
    listener: Listener = ignore,
) -> Manifest:
    """Make every output of a plan, then the manifest.

    The plan's keys count from ``source``, ``target`` and ``others``, which are those of the catalog. The listener gets
    the run's events in this thread. The bytes are moved by workers of the cluster, if one is given, and the
    run is led from here.

    Raise SourceChanged if an object is not the one that the plan was made from, TargetExists if outputs exist and must
    not be replaced, TargetInUse if another run writes there, and StorageError if a store fails or refuses. Whatever is
    raised, KeyboardInterrupt too, nothing of this run stays in the target, unless the policy keeps it.
    """
    locations = Locations((source, *others), target)
    if plan.staging:  # what would be refused in the second pass is refused before the first
        target.writable_store()
        check_target(plan, locations, Watch(listener), overwrite=policy.overwrite)
        listener(Noted(plan.staging_note))
    own = Policy(overwrite=True, keeps=policy.keeps, restarts=policy.restarts)
    keeps = policy.keeps_staging
    with crew_for(plan, locations, cluster) as crew:
        first_pass = partial(_execute, crew, policy=own, listener=listener)
        with staged(
            plan, locations, keep=keeps, keep_unfinished=policy.keeps, run=first_pass, listener=listener
        ) as ready:
            return _execute(crew, ready, locations, policy=policy, listener=listener)


def _execute(crew: AnyCrew, plan: Plan, locations: Locations, *, policy: Policy, listener: Listener) -> Manifest:
    """Carry out one pass."""
    target, watch = locations.target, Watch(listener)
    target.writable_store()
    check_target(plan, locations, watch, overwrite=policy.overwrite)  # before a claim is written
    record_place = target.child(record_key_of(plan.conversion.manifest_key))
    with claimed(record_place, RunRecord.of(plan.conversion), watch, listener) as claim:
        journal = Journal(record_place, claim.record.run_id)
        found = check_target(plan, locations, watch, overwrite=policy.overwrite, claim=claim)
        earlier = read_journal(record_place, claim.left[0]) if claim.left[0] else Progressed()
        is_same = claim.left[1] == claim.record.conversion_id
        # What was there before is what the first of several runs has found: the rest is theirs.
        before = earlier.before if is_same and earlier.beginning else dict(found.before)
        made, adopted = _taken_over(plan, earlier, claim, locations, before, policy)
        if adopted.nbytes:
            listener(Noted(f"{adopted.nbytes} bytes were sent by an earlier run, and are not sent again"))
        run = Run(claim, journal, adopted, policy.keeps)
        with upload_session(made, locations, before, run, listener) as session:
            manifest = _carry_out(crew, session, locations, found, listener)
        # No failure of what follows takes back what is complete: any later run of this conversion does it, too.
        try:
            session.finish()
        except ReshardError as error:
            listener(Noted(f"The record of this run could not be removed: {error.marked_message}"))
    join_shares(manifest, target)
    return manifest


def _taken_over(
    plan: Plan, earlier: Progressed, claim: Claim, locations: Locations, before: dict[str, str], policy: Policy
) -> tuple[Plan, Adopted]:
    """Take over what earlier runs have left if this is the same conversion; else remove what they have left open."""
    if claim.earlier is None:
        return plan, Adopted()
    is_same = claim.left[1] == claim.record.conversion_id
    again = plan_of_earlier(plan, earlier) if is_same and not policy.restarts else None
    place = locations.target.child(record_key_of(plan.conversion.manifest_key))
    if again is None:
        if not is_same:  # its visible objects are not ours to remove
            earlier.objects.clear()
        remove_left(locations.target, place, earlier)
        return plan, Adopted()
    with working(again.limits.concurrency, locations.target.store) as workers:
        return again, adopt(earlier, again, locations, before, workers)


def _carry_out(
    crew: AnyCrew,
    session: UploadSession,
    locations: Locations,
    found: Destination,
    listener: Listener,
) -> Manifest:
    """Transfer and commit what is not there yet."""
    plan, workers = session.plan, session.workers
    conversion = plan.conversion
    ledger = ReadLedger(kept_checksums(plan, check_source(plan, locations, workers)))
    executor = choose_executor(crew, locations, workers, session.meter, ledger)
    session.begin()
    session.probe()
    listener(PhaseStarted("transfer"))
    session.transfer(executor)
    if session.plan.cost.copied_bytes:  # some stores ignore the etag that a copy is pinned to
        check_source(plan, locations, workers)
    listener(PhaseStarted("commit"))
    session.check_claim()
    # Until the new one is written, no manifest vouches for a mix of old and new.
    workers.map(lambda item: session.remove(*item), list(found.obsolete.items()))
    session.put_small(executor)
    session.complete()
    session.replicate(executor)
    reads = check_reads(plan, locations, workers, ledger)
    for attachment in conversion.attachments:
        workers.call(partial(session.put_document, attachment.key, locations.read(plan, attachment)))
    for documents in (conversion.documents[:-1], conversion.documents[-1:]):  # the last makes a checkpoint of the rest
        workers.map(lambda document: session.put_document(document.key, document.data), documents)
    workers.map(lambda item: session.remove(*item), list(found.leftovers.items()))
    overflows = session.meter.overflows
    if note := overflows.note(conversion.change.on_overflow):
        listener(Noted(note))
    session.compare()
    manifest = Manifest(conversion, plan.limits, session.receipts(), reads, overflows=overflows.counts)
    workers.call(lambda: session.put_manifest(manifest))
    return manifest
