"""Carries a plan out: transfer, commit, manifest; on any failure nothing of it stays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ..errors import (
    FormatError,
    OverBudget,
    SourceChanged,
    TargetExists,
    Unsupported,
    add_problems,
    raise_all,
)
from ..planning.catalog import SourceObject
from ..planning.conversion import MANIFEST_KEY
from ..planning.outputs.output import Attachment
from ..planning.plan import Plan, without_copies
from ..planning.staging import with_etags
from ..planning.steps.steps import Step
from ..planning.targets import is_checkpoint_object
from ..storage import Location, Store
from ..tensor import ByteRange
from .events import Listener, Noted, PhaseStarted, ignore
from .executors.threads import ThreadExecutor
from .manifest import Manifest, decode_manifest, encode_manifest
from .session import CopyRefused, Uploads
from .source_check import head_or_none, stored_since
from .sources.strategy_files import read_object
from .two_passes import staged
from .workers import Task, Workers, working


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

    Parameters
    ----------
    source, target, others
        Where the plan's keys count from; ``others`` as in the catalog.
    overwrite
        Whether outputs that exist may be replaced.
    keep_staging
        Whether to keep what is staged, for other conversions of this source.
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
    places = (source, *others)
    if plan.staging:  # what would be refused in the end is refused before anything is staged
        writable(target)
        _, leftovers = check_target(plan, target, overwrite=overwrite)
        _check_no_source(leftovers, plan, places, target)
    first_pass = partial(_run, overwrite=True, listener=listener)
    with staged(plan, places, keep=keep_staging, run=first_pass, listener=listener) as ready:
        return _run(ready, places, target, overwrite=overwrite, listener=listener)


def _run(plan: Plan, sources: Sequence[Location], target: Location, *, overwrite: bool, listener: Listener) -> Manifest:
    """Carry out one pass, without copies if the store cannot make them."""
    try:
        return _execute(plan, sources, target, overwrite=overwrite, listener=listener)
    except CopyRefused as error:  # nothing is visible yet, and what was begun has been undone
        message, problems = error.message, error.problems  # the error itself holds the frames, and so their memory
    listener(Noted(f"{message}: all is streamed instead, from the beginning"))
    for problem in problems:
        listener(Noted(problem))
    try:
        streamed = replace(without_copies(plan), staging=plan.staging)
        return _execute(streamed, sources, target, overwrite=overwrite, listener=listener)
    except BaseException as error:
        told = (message,) if isinstance(error, OverBudget) else ()
        add_problems(error, (*told, *problems))
        raise


def _execute(
    plan: Plan, sources: Sequence[Location], target: Location, *, overwrite: bool, listener: Listener
) -> Manifest:
    store = writable(target)
    before, leftovers = check_target(plan, target, overwrite=overwrite)
    _check_no_source(leftovers, plan, sources, target)
    uploads = Uploads(plan, sources, target, store, before)
    stores = {id(place.store): place.store for place in sources}.values()
    with _undone_on_failure(uploads), working(plan.limits.concurrency, *stores, store) as workers:
        check_source(plan, sources, workers)
        transfer = ThreadExecutor(plan, sources, workers, listener)
        listener(PhaseStarted("transfer"))
        _try_a_copy(plan, uploads, transfer)
        transfer.run(_steps(plan, small=False), uploads)
        if plan.cost.copied_bytes:
            check_source(plan, sources, workers)  # some stores do not mind the etag that a copy is pinned to
        listener(PhaseStarted("commit"))
        if plan.conversion.manifest_key in before:
            # Until the new one is written, no manifest vouches for a mix of old and new.
            uploads.remove(plan.conversion.manifest_key)
        transfer.run(_steps(plan, small=True), uploads)
        uploads.complete(workers)
        _replicate(plan, sources, uploads, transfer, workers, listener)
        for attachment in plan.conversion.attachments:
            uploads.put_document(attachment.key, read_attachment(plan, sources, attachment))
        # The last makes a checkpoint of the others.
        workers.map(lambda document: uploads.put_document(document.key, document.data), plan.conversion.documents[:-1])
        for document in plan.conversion.documents[-1:]:
            uploads.put_document(document.key, document.data)
        workers.map(uploads.remove, leftovers)
        manifest = Manifest(with_etags(plan, {}), uploads.receipts())
        uploads.put_document(plan.conversion.manifest_key, encode_manifest(manifest))
    return manifest


def _try_a_copy(plan: Plan, uploads: Uploads, transfer: ThreadExecutor) -> None:
    """Have the store copy one part before anything else: mostly that tells whether it can."""
    groups = (index for index, group in enumerate(plan.groups) if plan.draft.has_copies(group.outputs))
    for step in (step for index in groups for step in plan.steps(index)):
        for part in step.copies:
            for task in uploads.copies(step, part):
                return transfer.do(task, part.range.nbytes)
    return None


def _replicate(
    plan: Plan,
    sources: Sequence[Location],
    uploads: Uploads,
    transfer: ThreadExecutor,
    workers: Workers,
    listener: Listener,
) -> None:
    """Make equal outputs of the first of them; those that the store does not copy are streamed."""
    refused = _copy_replicas(uploads.replicas(), transfer)
    if refused:
        listener(Noted(f"{len(refused)} equal outputs could not be copied by the store: they are streamed instead"))
        groups = uploads.stream_replicas(refused)
        try:
            transfer.run((step for index in groups for step in plan.steps(index)), uploads)
        except CopyRefused as error:  # of the source, where it was copied before: too late to begin anew
            raise Unsupported(error.message, hint=error.hint, problems=error.problems) from error
        check_source(plan, sources, workers)
    uploads.complete(workers)


def _copy_replicas(copies: Sequence[tuple[str, Task, int]], transfer: ThreadExecutor) -> set[str]:
    """Have the store make equal outputs; returns the keys that it refused: all, if it refused the first part."""
    refused = set[str]()

    def tried(key: str, task: Task) -> None:
        try:
            if key not in refused:
                task()
        except CopyRefused:
            refused.add(key)

    try:
        for _, task, nbytes in copies[:1]:
            transfer.do(task, nbytes)
    except CopyRefused:
        return {key for key, _, _ in copies}
    transfer.do_all((partial(tried, key, task), nbytes) for key, task, nbytes in copies[1:])
    return refused


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


def check_source(plan: Plan, sources: Sequence[Location], workers: Workers, hint: str = "Make the plan anew.") -> None:
    """Raise SourceChanged unless every object is the one that the plan was made from."""
    problems: list[str] = []

    def check(item: SourceObject) -> None:
        place = sources[item.base].child(item.key)
        if item.fill:
            problems.extend(stored_since(place))
            return
        info = head_or_none(place)
        if info is None:
            problems.append(f"{place.url}: gone")
        elif (info.nbytes, info.etag) != (item.nbytes, item.etag):
            problems.append(
                f"{place.url}: expected {item.nbytes} bytes with etag {item.etag}, found {info.nbytes} with {info.etag}"
            )

    staged_base = len(plan.catalog.others) if plan.staging else None
    workers.map(check, [item for item in plan.catalog.objects if item.base != staged_base])
    raise_all(SourceChanged, "the source is not what the plan was made from", sorted(problems), hint=hint)


def read_attachment(plan: Plan, sources: Sequence[Location], attachment: Attachment) -> bytes:
    """Read a small object of the source whole."""
    item = plan.catalog.objects[attachment.index]
    place = sources[item.base].child(item.key)
    return place.store.read(place.key, ByteRange(0, item.nbytes), item.etag) if item.nbytes else b""


def check_target(plan: Plan, target: Location, *, overwrite: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """Look at what the target holds.

    Returns
    -------
    tuple
        The etags of objects that will be replaced, by key; and what an earlier conversion left
        that this one does not write: it is removed, so that no reader mixes old and new.

    Raises
    ------
    TargetExists
        Outputs exist and must not be replaced, or another checkpoint's objects are there.
    """
    wanted = {*plan.conversion.keys, plan.conversion.manifest_key}
    scope = plan.conversion.target.scope
    if plan.conversion.manifest_key == MANIFEST_KEY or scope is None:
        found = {name: info.etag for name, info in target.named_objects()}
    else:  # one object, or some ranks, with a manifest of their own: what else lies there is not ours to list
        found = {key: info.etag for key in wanted for info in [head_or_none(target.child(key))] if info}
    before = {key: etag for key, etag in found.items() if key in wanted}
    if before and not overwrite:
        raise TargetExists(
            f"{target.url}: {len(before)} of {len(wanted)} outputs exist already",
            problems=sorted(before),
            hint="Give --overwrite to replace them, or another destination.",
        )
    if scope is None:  # the target's objects are independent of whatever is beside them
        return before, ()
    others = [key for key in found if key.startswith(scope) and key not in wanted]
    leftovers = tuple(sorted(_written_before(plan, target, before).intersection(others)))
    raise_all(
        TargetExists,
        f"{target.url}: another checkpoint's objects are there; readers could not tell them from the new ones",
        [key for key in others if is_checkpoint_object(key) and key not in leftovers],
        hint="Choose an empty destination, or remove them.",
    )
    return before, leftovers


def _written_before(plan: Plan, target: Location, before: Collection[str]) -> frozenset[str]:
    """What the conversion wrote whose manifest is about to be replaced."""
    if plan.conversion.manifest_key not in before:
        return frozenset()
    place = target.child(plan.conversion.manifest_key)
    try:
        return frozenset(receipt.key for receipt in decode_manifest(read_object(place), place.url).receipts)
    except FormatError:
        return frozenset()


def _check_no_source(leftovers: Collection[str], plan: Plan, sources: Sequence[Location], target: Location) -> None:
    """Refuse to remove what an earlier conversion left where that is what this one reads."""
    taken = {sources[item.base].child(item.key).identity for item in plan.catalog.objects}
    raise_all(
        TargetExists,
        f"{target.url}: an earlier conversion's outputs would be removed, and they are the source of this one",
        [key for key in leftovers if target.child(key).identity in taken],
        hint="Choose another destination.",
    )


def _steps(plan: Plan, *, small: bool) -> Iterator[Step]:
    for index, group in enumerate(plan.groups):
        if plan.draft.is_small(group) == small:
            yield from plan.steps(index)


@contextmanager
def _undone_on_failure(uploads: Uploads) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        add_problems(error, uploads.undo())
        raise
