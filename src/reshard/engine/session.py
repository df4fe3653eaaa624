"""The uploads of one run, kept where the run is led: opened, recorded, and completed or undone together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ..errors import (
    Damaged,
    Denied,
    Interrupted,
    NotFound,
    OverBudget,
    ReshardError,
    SourceChanged,
    StorageError,
    TargetExists,
    Unsupported,
    add_problems,
    raise_all,
)
from ..planning.limits import Integrity
from ..planning.outputs.streamed import whole_copies
from ..planning.plan import Plan, without_copies
from ..planning.plan_json import plan_id_of
from ..planning.steps.steps import CopiedPart
from ..storage import Body, Checksum, ObjectInfo, Upload, read_object
from ..storage.checksums import crc_of, joined_crc
from ..tensor import ByteRange
from .claim import FRESH_S, Claim, put_document_over, put_over
from .events import Listener, Noted
from .executors.executor import Executor, StepId
from .journal import Beginning, Journal, Progressed, has_journal, read_journal
from .locations import Locations, check_source
from .manifest import Manifest, ObjectReceipt, decode_manifest, encode_manifest
from .meter import Meter
from .resume import Adopted, drop_strangers, remove_left
from .workers import Task, Workers, working
from .writer import CopyRefusal, PartReceipt, PartWriter, check_length, check_proof, checked_body, weakest

_TIDY_S = 30.0
_JOURNAL_URGENCY = 2
_ABORT = "abort"
_STAYS_OPEN = "an upload that stays open is invisible; in a bucket a lifecycle rule removes it (docs/storage.md)"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a plan, as its session needs it: its claim and its journal, and what runs before it have left.

    With ``keeps`` an error leaves what was sent, for the next run of the same conversion; else it is undone.
    """

    claim: Claim
    journal: Journal
    adopted: Adopted
    keeps: bool


@contextmanager
def upload_session(
    plan: Plan, locations: Locations, before: Mapping[str, str], run: Run, listener: Listener
) -> Iterator[UploadSession]:
    """Provide a session for the length of a block; an error in the block undoes or keeps what the session wrote."""
    session = UploadSession(plan, locations, before, run, listener)
    try:
        with working(plan.limits.concurrency, *locations.stores) as workers:
            session.workers = workers
            yield session
    except BaseException as error:  # outside of `working`: no transfer runs any more, and stores take requests again
        # What was sent is of no use if it is damaged, or if its source is not there any more.
        is_wrong = isinstance(error, Damaged | SourceChanged)
        add_problems(error, session.leave(keeps=run.keeps and not is_wrong))
        if run.claim.is_lost and isinstance(error, StorageError):  # what another run has removed or changed
            run.claim.check()
        raise


class UploadSession:
    """Leads the uploads of a run; an executor moves the bytes of their parts.

    Objects of several parts are multipart uploads, all opened before the first part is sent and
    invisible until :meth:`complete`. Small objects are PUT whole, so their steps come last. Of equal outputs
    that the store can copy only the first is sent; the others are copied from it once it is complete.

    Keys in ``before`` existed, with these etags, and may be replaced: undoing removes such an object only if its etag
    has changed. The attribute ``plan`` is the given one, or that without copies if the store makes none.
    """

    workers: Workers

    def __init__(
        self, plan: Plan, locations: Locations, before: Mapping[str, str], run: Run, listener: Listener
    ) -> None:
        self.plan = plan
        self.meter = Meter(plan.cost, listener)
        self._locations = locations
        self._store = locations.target.writable_store()
        self._before = dict(before)
        self._run = run
        self._listener = listener
        self._nbytes = {key: output.nbytes for output in plan.outputs for key in output.keys}
        self._uploads: dict[str, Upload] = {}
        self._asked: set[str] = set()  # keys whose upload may be open although no answer says so
        self._parts: dict[str, dict[int, PartReceipt]] = {key: {} for key in self._nbytes}
        self._probed: StepId | None = None
        self._touched: set[str] = set()  # keys that may be visible although no answer says so
        self._objects: dict[str, ObjectReceipt] = {}
        self._is_undone = threading.Event()
        self._uploads.update(run.adopted.uploads)
        self._objects.update(run.adopted.objects)
        self._touched.update(run.adopted.objects)
        for key, parts in run.adopted.parts.items():
            self._parts[key].update(parts)
        self.meter.resume(run.adopted.nbytes)

    # Parts.

    def begin(self) -> None:
        """Write down what this run begins with: its plan, and what it has taken over."""
        plan = self.plan
        begun = Beginning(plan_id_of(plan), plan.limits, plan.copy_bases)
        uploads = {key: upload.upload_id for key, upload in self._uploads.items()}
        parts = {key: dict(held) for key, held in self._parts.items() if held}
        progressed = Progressed(begun, dict(self._before), uploads, parts, dict(self._objects))
        self.workers.call(lambda: self._run.journal.begin(progressed))

    def probe(self) -> None:
        """Have the store copy one part before anything else is sent: mostly this shows whether it copies.

        Raise OverBudget if it does not, and the memory is too small to stream what it should have copied.
        """
        found = _first_copy(self.plan)
        if found is None or any(self._parts.values()) or self._objects:  # an earlier run has found that it copies
            return
        step_id, part = found
        keys = self.plan.draft.written_keys(self.plan.groups[step_id[0]], part.output)
        self._open(keys)
        writer = self._writer(self.plan, self._uploads)
        for key in keys:
            with self.meter.writes.request(part.range.nbytes):
                result = writer.copy(key, part)
            if isinstance(result, CopyRefusal):
                self._note(result, "all is streamed instead, from the beginning")
                self.plan = self._without_copies(result)
                self.meter.begin(self.plan.cost)
                self._parts.update((key, {}) for key in keys)
                self.begin()
                return
            self.meter.copied(part.range.nbytes)
            self._parts[key][part.number] = result
        self._probed = step_id

    def transfer(self, executor: Executor) -> None:
        """Open all uploads and send all their parts."""
        plan, sent, opened = self.plan, list[str](), list[str]()
        for group in plan.groups:
            keys = [key for output in group.outputs for key in plan.outputs[output].keys]
            # One part would do for a small group, but an upload that the probe opened is completed, not left.
            if not plan.draft.is_small(group) or not self._uploads.keys().isdisjoint(keys):
                opened += [key for key in keys if key not in self._objects]
                written = (key for output in group.outputs for key in plan.draft.written_keys(group, output))
                sent += [key for key in written if key not in self._objects]
        self._open(opened)
        self.workers.call(self._run.journal.write)
        refusals = self._send(executor, plan, {key: self._uploads[key] for key in sent}, skip=self._probed)
        self._stream(executor, refusals)

    def put_small(self, executor: Executor) -> None:
        """PUT the objects that need no upload; they are visible at once."""
        due = [key for key in self._nbytes if key not in self._uploads and key not in self._objects]
        self._send(executor, self.plan, dict.fromkeys(due))

    def complete(self) -> None:
        """Make all uploads visible that have their parts; StorageError if an object is not of the planned length."""
        ready = [key for key in self._uploads if key not in self._objects and self._is_whole(key)]
        self.workers.map(self._complete, ready)

    def _is_whole(self, key: str) -> bool:
        return sum(receipt.nbytes for receipt in self._parts[key].values()) == self._nbytes[key]

    def replicate(self, executor: Executor) -> None:
        """Have the store copy complete outputs to their other keys; what it refuses is sent instead."""
        refused = self._copy_replicas()
        if refused:
            text = f"{len(refused)} equal outputs could not be copied by the store: they are streamed instead"
            self._listener(Noted(text))
            self._stream(executor, self._send_again(executor, self.plan, refused))
            check_source(self.plan, self._locations, self.workers)
        self.complete()

    def _writer(self, plan: Plan, uploads: Mapping[str, Upload | None]) -> PartWriter:
        held = {(key, number): receipt for key in uploads for number, receipt in self._parts[key].items()}
        return PartWriter(plan, uploads, self._locations, self.put, held)

    def _send(
        self, executor: Executor, plan: Plan, uploads: Mapping[str, Upload | None], skip: StepId | None = None
    ) -> Sequence[CopyRefusal]:
        """Have the steps of some keys run and record the receipts; return a refusal of each key that has any."""
        if not uploads:
            return ()
        refusals: dict[str, CopyRefusal] = {}
        for result in executor.run(plan, self._writer(plan, uploads), self._steps(plan, uploads, skip)):
            if isinstance(result, CopyRefusal):
                refusals.setdefault(result.key, result)
                self.meter.writes.add(expected_bytes=result.nbytes)  # the executor counts it as done
                self.meter.copied(-result.nbytes)
            elif uploads[result.key] is None:
                self._record(ObjectReceipt(result.key, result.nbytes, result.etag, result.crc32c, result.proof))
            elif self._parts[result.key].get(result.number) != result:
                self._parts[result.key][result.number] = result
                self._run.journal.part(result)
            if self._run.claim.is_lost:  # seen by its beat: what is sent from now on is of no use
                self.check_claim()
            if self._run.journal.is_due:
                self.workers.submit(self._run.journal.write, urgency=_JOURNAL_URGENCY)
        return list(refusals.values())

    def _record(self, receipt: ObjectReceipt) -> None:
        self._objects[receipt.key] = receipt
        self._run.journal.object(receipt)

    def _steps(self, plan: Plan, uploads: Mapping[str, Upload | None], skip: StepId | None) -> Iterator[StepId]:
        for index, group in enumerate(plan.groups):
            keys = [key for output in group.outputs for key in plan.outputs[output].keys if key in uploads]
            if keys:
                put = [key for key in keys if uploads[key] is None]
                if put:  # other processes do not look by themselves
                    self._run.claim.check(within_s=FRESH_S)
                    self._touched.update(put)
                held = any(self._parts[key] for key in keys)
                for number in plan.group_steps(index).numbers:
                    if (index, number) == skip or (held and self._is_sent(plan, (index, number), keys)):
                        continue
                    yield index, number

    def _is_sent(self, plan: Plan, step_id: StepId, keys: Collection[str]) -> bool:
        """Whether an earlier run has sent all parts of a step."""
        step = plan.step(*step_id)
        numbers = [*((each.output, each.number) for each in step.copies), *((p.output, p.number) for p in step.parts)]
        wanted = [(key, number) for output, number in numbers for key in plan.outputs[output].keys if key in keys]
        if not all(number in self._parts[key] for key, number in wanted):
            return False
        self.meter.reads.add(done_bytes=sum(read.range.nbytes for read in step.reads))
        return True

    def _send_again(self, executor: Executor, plan: Plan, keys: Collection[str]) -> Sequence[CopyRefusal]:
        """Send objects from their first part on."""
        for key in keys:
            # The plan may number parts differently. Parts that were sent before stay in the upload, which is
            # harmless: the object is joined from the parts that completing it names, and the rest is dropped.
            self.meter.writes.add(expected_bytes=sum(receipt.nbytes for receipt in self._parts[key].values()))
            self._parts[key].clear()
            self._run.journal.anew(key)
        return self._send(executor, plan, {key: self._uploads[key] for key in keys})

    def _stream(self, executor: Executor, refusals: Sequence[CopyRefusal]) -> None:
        """Send the objects again of which the store would not copy some parts, and no others."""
        if refusals:
            self._note(refusals[0], f"streaming {len(refusals)} of {len(self._nbytes)} outputs instead")
            self._send_again(executor, self._without_copies(refusals[0]), [each.key for each in refusals])

    def _note(self, refusal: CopyRefusal, consequence: str) -> None:
        for text in (f"{refusal.message}: {consequence}", *refusal.problems):
            self._listener(Noted(text))

    def _without_copies(self, refusal: CopyRefusal) -> Plan:
        try:
            return without_copies(self.plan)
        except OverBudget as error:
            add_problems(error, (refusal.message, *refusal.problems))
            raise

    def _copy_replicas(self) -> Collection[str]:
        """Copy equal outputs; return the keys of which the store refused a part: all, if it refused the first."""
        plan, refused = self.plan, set[str]()
        writer = self._writer(plan, self._uploads)

        def copy(first: str, key: str, number: int, span: ByteRange) -> None:
            if key in refused or number in self._parts[key]:
                return
            place, etag = self._locations.target.child(first), self._objects[first].etag
            with self.meter.writes.request(0):
                result = writer.copy_range(key, number, span.start, place, span, etag)
            if isinstance(result, CopyRefusal):
                refused.add(key)
            else:
                self._parts[key][number] = result
                self._run.journal.part(result)
                self.meter.writes.add(done_bytes=span.nbytes)
                self.meter.copied(span.nbytes)

        replicated = [i for group in plan.groups for i in group.outputs if plan.draft.is_replicated(group, i)]
        copies = [
            (output.keys[0], key, number, span)
            for output in map(plan.outputs.__getitem__, replicated)
            for key in output.keys[1:]
            if key not in self._objects
            for number, span in enumerate(whole_copies(output.nbytes, plan.limits), start=1)
        ]
        for each in copies[:1]:
            copy(*each)
        if refused:
            refused.update(key for _, key, _, _ in copies)
        for each in copies[1:]:
            self.workers.submit(partial(copy, *each))
        self.workers.wait(self.meter.report)
        self.meter.report()
        return refused

    # Objects.

    def put_document(self, key: str, data: bytes) -> None:
        """Write a small object of known bytes."""
        if key in self._objects:
            return
        place, integrity = self._locations.target.child(key), self.plan.limits.integrity
        info = self.put(key, *checked_body(data, integrity))
        check_proof(place, info.proof, integrity)
        self._record(ObjectReceipt(key, info.nbytes, info.etag, crc_of(data), info.proof))

    def put(self, key: str, data: Body, checksum: Checksum | None) -> ObjectInfo:
        """PUT an object whole, over the one that was there before and no other, as far as the store looks."""
        place, replaces = self._locations.target.child(key), self._before.get(key, "")
        try:
            return self._make_visible(key, len(data), lambda: put_over(place, data, checksum, replaces))
        except SourceChanged:  # an earlier run of this conversion has left it; or another run has taken over
            info = place.head_or_none()
            found = info.etag if info else ""
            self.check_claim()
            return self._make_visible(key, len(data), lambda: put_over(place, data, checksum, found))

    def put_manifest(self, manifest: Manifest) -> None:
        """Write the manifest; TargetExists if another run was faster, and wrote another one."""
        key, data = manifest.conversion.manifest_key, encode_manifest(manifest)
        place, integrity = self._locations.target.child(key), self.plan.limits.integrity
        try:
            if key not in self._objects and place.head_or_none() is not None:
                raise SourceChanged(f"{place.url} is there already")
            info = self._make_visible(key, len(data), lambda: put_document_over(place, data, integrity, ""))
        except SourceChanged as error:
            there = decode_manifest(read_object(place), place.url)
            if (there.conversion, there.receipts) == (manifest.conversion, manifest.receipts):
                return  # this run was taken for dead, or takes over from one that was: both have made the same
            raise TargetExists(
                f"{place.url}: another run has finished there", hint="Convert to another destination."
            ) from error
        check_proof(place, info.proof, integrity)
        self._record(ObjectReceipt(key, info.nbytes, info.etag, crc_of(data), info.proof))

    def remove(self, key: str, etag: str) -> None:
        """Remove an object that existed before, for good, unless another run has replaced it since."""
        info = self._locations.target.child(key).head_or_none()
        self._run.claim.check(within_s=FRESH_S)
        if info is not None and info.etag == etag:
            self._store.delete(self._locations.target.child(key).key)
            self._before.pop(key, None)

    def check_claim(self) -> None:
        """Raise TargetInUse unless this run still holds the target."""
        self._run.claim.check()

    def compare(self) -> None:
        """Raise TargetExists unless every object is there as this run wrote it."""
        self.check_claim()
        target = self._locations.target
        if len(self._objects) == 1:
            found = {key: target.child(key).head_or_none() for key in self._objects}
        else:
            found = dict(target.named_objects())
        infos = [(receipt, found.get(key)) for key, receipt in self._objects.items()]
        problems = [
            target.child(receipt.key).url
            for receipt, info in infos
            if info is None or (info.nbytes, info.etag) != (receipt.nbytes, receipt.etag)
        ]
        hint = "Another program writes there. Convert to another destination."
        raise_all(TargetExists, "outputs were changed while this run wrote them", sorted(problems), hint)

    def finish(self) -> None:
        """Remove journal and record: all that they are about is complete, or gone."""
        claim = self._run.claim
        other = None if claim.is_held() else claim.other()
        if other is not None and other.run_id != claim.record.run_id:  # what is there may be that run's
            if other.conversion_id != claim.record.conversion_id:
                self._run.journal.remove(only_own=True)
            return
        is_first = claim.earlier is None
        if not is_first:  # a run that was taken for dead may have gone on for a while
            drop_strangers(self._locations.target, self._nbytes, ())
        self._run.journal.remove(only_own=is_first)
        self._run.claim.release(is_finished=True)

    def receipts(self) -> tuple[ObjectReceipt, ...]:
        """Return a receipt of every object of the conversion, once all are complete."""
        conversion, found = self.plan.conversion, list[ObjectReceipt]()
        for output in self.plan.outputs:
            written = [self._objects[key] for key in output.keys]
            # Equal outputs have one checksum, known if the bytes of any were sent.
            crc = next((each.crc32c for each in written if each.crc32c is not None), None)
            found += [ObjectReceipt(each.key, each.nbytes, each.etag, crc, each.proof) for each in written]
        beside = [*(each.key for each in conversion.attachments), *(each.key for each in conversion.documents)]
        return (*found, *(self._objects[key] for key in beside))

    def _complete(self, key: str) -> None:
        upload, receipts = self._uploads[key], [receipt for _, receipt in sorted(self._parts[key].items())]
        parts = [(receipt.number, receipt.etag) for receipt in receipts]
        crcs = {each.number: (each.crc32c, each.nbytes) for each in receipts if each.crc32c is not None}
        checked = crcs if self.plan.limits.integrity is not Integrity.OFF else None
        try:
            info = self._make_visible(
                key, self._nbytes[key], lambda: self._store.complete_upload(upload, parts, checked)
            )
        except NotFound:
            info = self._completed_meanwhile(key)
        crc = joined_crc(crcs[each.number] for each in receipts) if len(crcs) == len(receipts) else None
        self._record(ObjectReceipt(key, info.nbytes, info.etag, crc, weakest(receipts)))

    def _completed_meanwhile(self, key: str) -> ObjectInfo:
        """Return an object whose upload an earlier run has completed that was not dead, only slow; else raise again."""
        found = self._locations.target.child(key).head_or_none()
        is_new = found is not None and found.etag != self._before.get(key) and found.nbytes == self._nbytes[key]
        if found is None or not is_new or key not in self._run.adopted.uploads:
            raise
        return found

    def _make_visible(self, key: str, nbytes: int, request: Callable[[], ObjectInfo]) -> ObjectInfo:
        """Send a request after which an object is visible, perhaps even if it seems to fail.

        Right before, this run looks whether it still has its claim: it may have been stopped for minutes.
        """
        self._run.claim.check(within_s=FRESH_S)
        self._touched.add(key)
        info = request()
        if self._is_undone.is_set():  # undo may have looked before the object was there
            self._take_back(key)
            raise Interrupted("stopped")
        check_length(self._locations.target.child(key), nbytes, info)
        return info

    # Uploads.

    def _open(self, keys: Sequence[str]) -> None:
        for key in keys:
            if key not in self._uploads:
                self.workers.submit(partial(self._open_one, key))
        self.workers.wait(self.meter.report)

    def _open_one(self, key: str) -> None:
        self._asked.add(key)
        try:
            is_checked = self.plan.limits.integrity is not Integrity.OFF
            upload = self._store.create_upload(self._locations.target.child(key).key, is_checked=is_checked)
        except (Denied, NotFound, Unsupported):
            self._asked.discard(key)  # a refusal opens nothing; other errors may have lost the answer only
            raise
        self._uploads[key] = upload
        self._run.journal.upload(key, upload.upload_id)
        if self._is_undone.is_set():  # undo may have looked before the upload was there
            self._store.abort_upload(upload)
            raise Interrupted("stopped")

    def leave(self, *, keeps: bool) -> Sequence[str]:
        """Undo what this run has written, or keep it for the next one; return what to know about that, in words."""
        claim = self._run.claim
        if not claim.is_held() and not self._is_alone():  # whatever is visible may be another run's
            return self._give_way()
        has_sent = any(self._parts.values()) or bool(self._objects)
        if not keeps or not has_sent:
            return self._undo()
        try:
            self._run.journal.write()
            claim.release(is_finished=False)
        except ReshardError as error:
            return [f"could not write down what was sent: {error.marked_message}"]
        sent = sum(part.nbytes for parts in self._parts.values() for part in parts.values())
        sent += sum(receipt.nbytes for key, receipt in self._objects.items() if not self._parts.get(key))
        where = self._locations.target.url
        return [
            f"{sent} bytes that were sent are kept: run the same command again to go on, "
            f"or `reshard abort {where}` to remove them"
        ]

    def _is_alone(self) -> bool:
        """Whether the run that took this one for dead has ended itself, and left what this one has made visible."""
        claim, other = self._run.claim, self._run.claim.other()
        if other is not None:
            return other.run_id == claim.record.run_id and not other.is_pushed_out
        manifest = self._locations.target.child(self.plan.conversion.manifest_key)
        if not self._objects or manifest.head_or_none() is not None:
            return False
        claim.put_back()
        return True

    def _give_way(self) -> Sequence[str]:
        """Remove uploads and journal of this run, unless the run that has its target goes on with them."""
        claim = self._run.claim
        try:
            other = claim.other()
            known = set[str]()
            if other is not None and other.run_id == claim.record.run_id:  # pushed out, with all that came before it
                for run_id, _ in claim.record.runs:
                    uploads = read_journal(claim.place, run_id).uploads
                    remove_left(self._locations.target, claim.place, Progressed(uploads=uploads), journals=run_id)
                claim.release(is_finished=True)
            elif other is not None and not has_journal(claim.place, other.run_id):
                if self._objects or other.conversion_id == claim.record.conversion_id:
                    return ()  # it may be about to take all this over; it removes what it does not know
            elif other is not None:
                known.update(read_journal(claim.place, other.run_id).uploads.values())
            for upload in list(self._uploads.values()):
                if upload.upload_id not in known:
                    self._store.abort_upload(upload)
            self._run.journal.remove(only_own=True)
        except ReshardError as error:
            return [f"could not remove what this run has sent: {error.marked_message}"]
        return ()

    def _undo(self) -> Sequence[str]:
        """Remove all that this run has written; return what could not be removed, in words.

        Requests that are still running clean up after themselves when they end.
        """
        self._is_undone.set()
        place = self._locations.target.child
        actions: dict[str, Task] = {
            f"delete {place(key).url}": partial(self._take_back, key) for key in sorted(self._touched)
        }
        for key, upload in list(self._uploads.items()):  # a late answer may add to them
            if key not in self._objects:
                actions[f"{_ABORT} the upload of {place(key).url}"] = partial(self._store.abort_upload, upload)
        for key in self._asked - self._uploads.keys():
            actions[f"{_ABORT} uploads of {place(key).url}"] = partial(self._abort_all, key)
        problems: list[str] = []
        left = set(actions)

        def tidy(what: str) -> None:
            try:
                actions[what]()
            except Exception as error:  # noqa: BLE001 - whatever it is, the rest must be tidied too
                problems.append(
                    f"could not {what}: {error.marked_message if isinstance(error, ReshardError) else error}"
                )
            left.discard(what)

        workers = Workers(self.plan.limits.concurrency)  # those of the run have stopped
        for what in actions:
            workers.submit(partial(tidy, what))
        workers.drain_quietly(_TIDY_S)
        workers.close()
        problems += [f"could not {what}: the store did not answer in {_TIDY_S:.0f} s" for what in list(left)]
        if not problems:  # else the record tells the next run of this conversion that what is left is its own
            actions["remove the record of the run"] = self.finish
            tidy("remove the record of the run")
        advice = [_STAYS_OPEN] if any(problem.startswith(f"could not {_ABORT}") for problem in problems) else []
        return [*sorted(problems), *advice]

    def _take_back(self, key: str) -> None:
        place = self._locations.target.child(key)
        try:
            info = self._store.head(place.key)
        except NotFound:
            return
        written = self._objects.get(key)
        # Where no answer says what this run wrote, its claim tells that nobody else has.
        if info.etag == written.etag if written else info.etag != self._before.get(key):
            self._store.delete(place.key)

    def _abort_all(self, key: str) -> None:
        full_key = self._locations.target.child(key).key
        for upload in self._store.open_uploads(full_key):
            if upload.key == full_key:
                self._store.abort_upload(upload)


def _first_copy(plan: Plan) -> tuple[StepId, CopiedPart] | None:
    """Return a part that the store copies, and its step."""
    for index, group in enumerate(plan.groups):
        if plan.draft.has_copies(group.outputs):
            for step in plan.steps(index):  # copies come first
                for part in step.copies:
                    return (index, step.number), part
    return None
