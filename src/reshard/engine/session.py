"""Filled parts on their way into the store, and their commit: all outputs appear, or none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ..errors import Denied, Interrupted, NotFound, ReshardError, StorageError, Unsupported
from ..planning.outputs.streamed import whole_copies
from ..planning.plan import Plan
from ..planning.steps.steps import CopiedPart, Step, StreamedPart
from ..storage import Location, ObjectInfo, PartCopier, Store, Upload
from ..tensor import ByteRange
from .digest import combined_crc32c, crc32c
from .manifest import Receipt
from .workers import Task, Workers

_TIDY_S = 30.0
_NO_COPIES = "Give --copy never."
_ABORT = "abort"
_STAYS_OPEN = "an upload that stays open is invisible; in a bucket a lifecycle rule removes it (docs/storage.md)"


class CopyRefused(Unsupported):
    """The store that is written to does not copy what it seemed to be able to; no user meets it."""


class _Object:
    """One object being written: its upload, and what is known of its parts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_asked = False
        self.upload: Upload | None = None
        self.etags: dict[int, str] = {}


class Uploads:
    """A sink that writes parts to the target.

    Outputs of several parts are multipart uploads that stay invisible until :meth:`complete`;
    small outputs are single PUTs, which is why their steps must run last. Equal outputs that the store
    copies by itself are made of the first of them once that is complete.

    Parameters
    ----------
    sources
        Where the catalog's keys count from: its URL, then the others.
    before
        Keys that were there, and their etags: after a failure such an object is removed only if
        it is no longer what it was.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Location],
        target: Location,
        store: Store,
        before: Mapping[str, str] | None = None,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._target = target
        self._store = store
        self._outputs = plan.outputs
        self._before = dict(before or {})
        self._nbytes = {key: output.nbytes for output in plan.outputs for key in output.keys}
        self._objects = {key: _Object() for output in self._outputs for key in output.keys}
        self._crcs: dict[int, dict[int, tuple[int, int]]] = {i: {} for i in range(len(self._outputs))}
        self._put: dict[str, ObjectInfo] = {}
        self._document_crcs: dict[str, int] = {}
        self._touched: set[str] = set()
        self._is_undone = threading.Event()
        draft = plan.draft
        self._replicated = {i for group in plan.groups for i in group.outputs if draft.is_replicated(group, i)}

    def tasks(self, step: Step, part: StreamedPart, data: memoryview) -> Iterable[Task]:
        """Send a part to every replica of its output that is not copied from the first."""
        is_small = self._plan.draft.is_small(self._plan.groups[step.group])
        send = self._put_whole if is_small else self._send_part
        for position, key in enumerate(self._written_keys(part.output)):
            yield partial(self._sent, send, part, key, data, is_first=not position)

    def copies(self, _step: Step, part: CopiedPart) -> Iterable[Task]:
        """Have the store make a part, unless it has."""
        for key in self._written_keys(part.output):
            if part.number not in self._objects[key].etags:
                yield partial(self._copy_part, part, key)

    def _written_keys(self, output: int) -> Sequence[str]:
        keys = self._outputs[output].keys
        return keys[:1] if output in self._replicated else keys

    def put_document(self, key: str, data: bytes) -> None:
        """Write a small object of known bytes."""
        self._document_crcs[key] = crc32c(data)
        self._replace(key, len(data), lambda: self._store.put(self._target.child(key).key, data))

    def remove(self, key: str) -> None:
        """Remove an object that was there before, for good."""
        self._store.delete(self._target.child(key).key)
        self._before.pop(key, None)

    def complete(self, workers: Workers) -> None:
        """Make every multipart upload visible.

        Raises
        ------
        StorageError
            An object has not the length that was planned.
        """
        open_keys = [key for key, item in self._objects.items() if item.upload and key not in self._put]
        workers.map(self._complete, open_keys)

    def replicas(self) -> Sequence[tuple[str, Task, int]]:
        """Say how the store copies complete outputs to their other keys: the key, a task for a part, its bytes."""
        return [
            (key, partial(self._copy_whole, self._outputs[output].keys[0], key, number, span), span.nbytes)
            for output in sorted(self._replicated)
            for key in self._outputs[output].keys[1:]
            for number, span in enumerate(whole_copies(self._outputs[output].nbytes, self._plan.limits), start=1)
        ]

    def stream_replicas(self, refused: Collection[str]) -> Sequence[int]:
        """From now on send parts to these keys, which could not be copied; returns the groups to send again."""
        self._outputs = tuple(  # what else is in these groups is complete
            replace(output, keys=tuple(key for key in output.keys if key in refused)) for output in self._outputs
        )
        self._replicated = set()
        for key in refused:  # copied parts are numbered otherwise; an upload is completed of those it is told of
            self._objects[key].etags.clear()
        return [i for i, group in enumerate(self._plan.groups) if any(self._outputs[o].keys for o in group.outputs)]

    def receipts(self) -> tuple[Receipt, ...]:
        """What was written, once all is complete."""
        found: list[Receipt] = []
        for index, output in enumerate(self._plan.outputs):
            crc = self._crc_of(index)
            found += [Receipt(key, self._put[key].nbytes, self._put[key].etag, crc) for key in output.keys]
        beside = [each.key for each in self._plan.conversion.attachments] + [
            each.key for each in self._plan.conversion.documents
        ]
        found += [Receipt(k, self._put[k].nbytes, self._put[k].etag, self._document_crcs[k]) for k in beside]
        return tuple(found)

    def _crc_of(self, output: int) -> int | None:
        crcs = sorted(self._crcs[output].items())
        if sum(nbytes for _, (_, nbytes) in crcs) != self._outputs[output].nbytes:
            return None  # some of it was copied
        return combined_crc32c(value for _, value in crcs)

    def undo(self) -> Sequence[str]:
        """Remove all that this run has written; returns what could not be removed, in words.

        Requests that are still running clean up after themselves when they end.
        """
        self._is_undone.set()
        problems: list[str] = []
        with self._tidying(problems) as tidy:
            for key in sorted(self._touched):
                tidy(f"delete {self._target.child(key).url}", partial(self._take_back, key))
            for key, item in self._objects.items():
                if item.upload and key not in self._put:
                    what = f"{_ABORT} the upload of {self._target.child(key).url}"
                    tidy(what, partial(self._store.abort_upload, item.upload))
                elif item.is_asked and not item.upload:  # it may be open, if only the answer was lost
                    tidy(f"{_ABORT} uploads of {self._target.child(key).url}", partial(self._abort_all, key))
        advice = [_STAYS_OPEN] if any(problem.startswith(f"could not {_ABORT}") for problem in problems) else []
        return [*sorted(problems), *advice]

    @contextmanager
    def _tidying(self, problems: list[str]) -> Iterator[Callable[[str, Task], None]]:
        """Run what is handed over on threads of its own; neither errors nor signals break it off."""
        left: set[str] = set()

        def tidy(what: str, action: Task) -> None:
            left.add(what)
            workers.submit(lambda: _try(what, action, left, problems))

        workers = Workers(self._plan.limits.concurrency)
        yield tidy
        workers.settle_quietly(_TIDY_S)
        workers.close()
        problems += [f"could not {what}: the store did not answer in {_TIDY_S:.0f} s" for what in list(left)]

    def _take_back(self, key: str) -> None:
        place = self._target.child(key)
        try:
            info = self._store.head(place.key)
        except NotFound:
            return
        if info.etag != self._before.get(key):
            self._store.delete(place.key)

    def _abort_all(self, key: str) -> None:
        full_key = self._target.child(key).key
        for upload in self._store.open_uploads(full_key):
            if upload.key == full_key:
                self._store.abort_upload(upload)

    def _sent(
        self,
        send: Callable[[StreamedPart, str, memoryview], None],
        part: StreamedPart,
        key: str,
        data: memoryview,
        *,
        is_first: bool,
    ) -> None:
        if is_first:  # replicas have the same bytes
            self._crcs[part.output][part.number] = (crc32c(data), len(data))
        send(part, key, data)

    def _send_part(self, part: StreamedPart, key: str, data: memoryview) -> None:
        item, upload = self._objects[key], self._upload_of(key)
        item.etags[part.number] = self._store.upload_part(upload, part.number, part.range.start, data)

    def _copy_part(self, part: CopiedPart, key: str) -> None:
        found = self._plan.catalog.objects[part.object]
        place = self._sources[found.base].child(found.key)
        self._copy(key, part.number, part.range.start, place, part.source_range, found.etag)

    def _copy_whole(self, first_key: str, key: str, number: int, span: ByteRange) -> None:
        self._copy(key, number, span.start, self._target.child(first_key), span, self._put[first_key].etag)

    def _copy(self, key: str, number: int, offset: int, place: Location, span: ByteRange, etag: str) -> None:
        if not isinstance(self._store, PartCopier):
            raise CopyRefused(f"{self._target.url}: this store copies nothing by itself", hint=_NO_COPIES)
        upload = self._upload_of(key)
        try:
            made = self._store.copy_part(upload, number, offset, place.store, place.key, span, etag)
        except Unsupported as error:
            raise CopyRefused(error.message, hint=_NO_COPIES, problems=error.problems) from error
        self._objects[key].etags[number] = made

    def _upload_of(self, key: str) -> Upload:
        item = self._objects[key]
        with item.lock:
            if item.upload is None:
                item.upload = self._open(key, item)
                if self._is_undone.is_set():  # it came too late for undo to see it
                    self._store.abort_upload(item.upload)
                    raise Interrupted("stopped")
            return item.upload

    def _open(self, key: str, item: _Object) -> Upload:
        item.is_asked = True
        try:
            return self._store.create_upload(self._target.child(key).key)
        except (Denied, NotFound, Unsupported):
            item.is_asked = False  # a refusal opens nothing; other errors may be about the answer only
            raise

    def _put_whole(self, _part: StreamedPart, key: str, data: memoryview) -> None:
        self._replace(key, len(data), lambda: self._store.put(self._target.child(key).key, data))

    def _complete(self, key: str) -> None:
        item = self._objects[key]
        upload = item.upload
        assert upload is not None
        parts = sorted(item.etags.items())
        self._replace(key, self._nbytes[key], lambda: self._store.complete_upload(upload, parts))

    def _replace(self, key: str, nbytes: int, request: Callable[[], ObjectInfo]) -> None:
        """Make an object visible; it may be so even if the request seems to fail."""
        self._touched.add(key)
        info = request()
        if self._is_undone.is_set():  # it came too late for undo to see it
            self._take_back(key)
            raise Interrupted("stopped")
        if info.nbytes != nbytes:
            raise StorageError(
                f"{self._target.child(key).url}: expected {nbytes} bytes in the store, found {info.nbytes}",
                hint="The store lost or changed bytes; convert again.",
            )
        self._put[key] = info


def _try(what: str, action: Task, left: set[str], problems: list[str]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest must be tidied too
        problems.append(f"could not {what}: {error.message if isinstance(error, ReshardError) else error}")
    left.discard(what)
