"""Carries a plan out: transfer, commit, manifest; on any failure nothing of it stays."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ..errors import NotFound, ReshardError, SourceChanged, TargetExists, Unsupported, raise_all
from ..planning.catalog import SourceObject
from ..planning.plan import MANIFEST_KEY, Plan
from ..planning.steps import Step
from ..storage import Location, ObjectInfo, Store
from .events import Listener, PhaseStarted, ignore
from .manifest import Manifest, encode_manifest
from .transfer import Transfer
from .upload import Uploads
from .workers import Workers, working

__all__ = ["check_source", "check_target", "execute", "head_or_none", "writable"]


def execute(
    plan: Plan,
    source: Location,
    target: Location,
    *,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> Manifest:
    """Make every output of a plan, then the manifest.

    Parameters
    ----------
    source, target
        Where the plan's keys count from.
    overwrite
        Whether outputs that exist may be replaced.
    listener
        Told how the run goes, from this thread.

    Raises
    ------
    SourceChanged
        An object is not what the plan was made from.
    TargetExists
        Outputs exist and must not be replaced.
    StorageError
        A store failed or refused; nothing of this run stays in the target.
    KeyboardInterrupt
        The user stopped it; nothing of this run stays in the target.
    """
    store = writable(target)
    replaced = check_target(plan, target, overwrite=overwrite)
    uploads = Uploads(plan, target, store, replaced)
    with _undone_on_failure(uploads), working(plan.limits.concurrency, source.store, store) as workers:
        check_source(plan, source, workers)
        transfer = Transfer(plan, source, workers, listener)
        listener(PhaseStarted("transfer"))
        transfer.run(_steps(plan, small=False), uploads)
        listener(PhaseStarted("commit"))
        if plan.manifest_key in replaced:
            # Until the new one is written, no manifest vouches for a mix of old and new.
            store.delete(target.child(plan.manifest_key).key)
        transfer.run(_steps(plan, small=True), uploads)
        uploads.complete(workers)
        for document in plan.documents:
            uploads.put_document(document.key, document.data)
        manifest = Manifest(plan, uploads.receipts())
        uploads.put_document(plan.manifest_key, encode_manifest(manifest))
    return manifest


def writable(target: Location) -> Store:
    """The store of a target.

    Raises
    ------
    Unsupported
        It can only be read.
    """
    if not isinstance(target.store, Store):
        raise Unsupported(f"{target.url}: this store can only be read", hint="Write to s3://, obs:// or a local path.")
    return target.store


def check_source(plan: Plan, source: Location, workers: Workers) -> None:
    """Raise SourceChanged unless every object is the one that the plan was made from."""
    problems: list[str] = []

    def check(item: SourceObject) -> None:
        place = source.child(item.key)
        info = head_or_none(place)
        if info is None:
            problems.append(f"{place.url}: gone")
        elif (info.nbytes, info.etag) != (item.nbytes, item.etag):
            problems.append(
                f"{place.url}: expected {item.nbytes} bytes with etag {item.etag}, found {info.nbytes} with {info.etag}"
            )

    workers.map(check, plan.catalog.objects)
    hint = "Make the plan anew."
    raise_all(SourceChanged, "the source is not what the plan was made from", sorted(problems), hint=hint)


def check_target(plan: Plan, target: Location, *, overwrite: bool) -> Collection[str]:
    """Raise TargetExists when outputs exist and must not be replaced; return those that will be."""
    wanted = {*plan.keys, plan.manifest_key}
    if plan.manifest_key == MANIFEST_KEY:
        found = [name for name, _ in target.named_objects()]
    else:  # one object and its manifest: what else lies there is not ours to list
        found = [key for key in wanted if head_or_none(target.child(key))]
    existing = sorted(wanted.intersection(found))
    if overwrite:
        return frozenset(existing)
    raise_all(
        TargetExists,
        f"{target.url}: {len(existing)} of {len(wanted)} outputs exist already",
        existing,
        hint="Give --overwrite to replace them, or another destination.",
    )
    raise_all(
        TargetExists,
        f"{target.url}: another checkpoint's objects are there; readers could not tell them from the new ones",
        [name for name in found if name.endswith(".safetensors")],
        hint="Choose an empty destination, or give --overwrite to write among them all the same.",
    )
    return frozenset()


def head_or_none(location: Location) -> ObjectInfo | None:
    """Describe an object, or return None when there is none."""
    try:
        return location.store.head(location.key)
    except NotFound:
        return None


def _steps(plan: Plan, *, small: bool) -> Iterator[Step]:
    for index, group in enumerate(plan.groups):
        if group.is_small == small:
            yield from plan.steps(index)


@contextmanager
def _undone_on_failure(uploads: Uploads) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        left = uploads.undo()
        if left and isinstance(error, ReshardError):
            error.problems = (*error.problems, *left)
        elif left:
            error.add_note("\n".join(left))
        raise
