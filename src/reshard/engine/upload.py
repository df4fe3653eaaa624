"""Filled parts on their way into the store, and their commit: all outputs appear, or none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence

from ..errors import ReshardError, StorageError
from ..planning.plan import Plan
from ..planning.steps import FilledPart, Step
from ..storage import Location, ObjectInfo, Store, Upload
from .digest import combined_crc32c, crc32c
from .manifest import Receipt
from .workers import Task, Workers

__all__ = ["Uploads"]


class _Object:
    """One object being written: its upload, and what is known of its parts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.upload: Upload | None = None
        self.etags: dict[int, str] = {}


class Uploads:
    """A sink that writes parts to the target.

    Outputs of several parts are multipart uploads that stay invisible until :meth:`complete`;
    small outputs are single PUTs, which is why their steps must run last.

    Parameters
    ----------
    replaced
        Keys that were there before: after a failure such an object is removed only if this run
        did replace it.
    """

    def __init__(self, plan: Plan, target: Location, store: Store, replaced: Collection[str] = ()) -> None:
        self._plan = plan
        self._target = target
        self._store = store
        self._outputs = plan.outputs
        self._replaced = replaced
        self._nbytes = {key: output.nbytes for output in plan.outputs for key in output.keys}
        self._objects = {key: _Object() for output in self._outputs for key in output.keys}
        self._crcs: dict[int, dict[int, tuple[int, int]]] = {i: {} for i in range(len(self._outputs))}
        self._put: dict[str, ObjectInfo] = {}
        self._visible: set[str] = set()

    def tasks(self, step: Step, part: FilledPart, data: memoryview) -> Iterable[Task]:
        """Send a part to every replica of its output."""
        is_small = self._plan.groups[step.group].is_small
        send = self._put_whole if is_small else self._send_part
        keys = self._outputs[part.output].keys
        for position, key in enumerate(keys):
            yield lambda key=key, first=not position: self._sent(send, part, key, data, is_first=first)  # type: ignore[misc]

    def put_document(self, key: str, data: bytes) -> None:
        """Write a small object of known bytes."""
        self._show(key)
        self._checked(key, self._store.put(self._target.child(key).key, data), len(data))

    def complete(self, workers: Workers) -> None:
        """Make every multipart upload visible.

        Raises
        ------
        StorageError
            An object has not the length that was planned.
        """
        workers.map(self._complete, [key for key, item in self._objects.items() if item.upload])

    def receipts(self) -> tuple[Receipt, ...]:
        """What was written, once all is complete."""
        found = []
        for index, output in enumerate(self._outputs):
            crc = combined_crc32c(value for _, value in sorted(self._crcs[index].items()))
            found += [Receipt(key, self._put[key].nbytes, self._put[key].etag, crc) for key in output.keys]
        for document in self._plan.documents:
            info = self._put[document.key]
            found.append(Receipt(document.key, info.nbytes, info.etag, crc32c(document.data)))
        return tuple(found)

    def undo(self) -> Sequence[str]:
        """Remove all that this run has written; returns what could not be removed, in words."""
        problems = []
        for key in sorted(self._visible):
            problems += _tried(f"delete {self._target.child(key).url}", self._delete, key)
        for key, item in self._objects.items():
            if item.upload and key not in self._put:
                problems += _tried(f"abort the upload of {self._target.child(key).url}", self._abort, item.upload)
        return problems

    def _delete(self, key: str) -> None:
        self._store.delete(self._target.child(key).key)

    def _abort(self, upload: Upload) -> None:
        self._store.abort_upload(upload)

    def _sent(
        self,
        send: Callable[[FilledPart, str, memoryview], None],
        part: FilledPart,
        key: str,
        data: memoryview,
        *,
        is_first: bool,
    ) -> None:
        if is_first:  # replicas have the same bytes
            self._crcs[part.output][part.number] = (crc32c(data), len(data))
        send(part, key, data)

    def _send_part(self, part: FilledPart, key: str, data: memoryview) -> None:
        item = self._objects[key]
        with item.lock:
            if item.upload is None:
                item.upload = self._store.create_upload(self._target.child(key).key)
        item.etags[part.number] = self._store.upload_part(item.upload, part.number, part.range.start, data)

    def _put_whole(self, _part: FilledPart, key: str, data: memoryview) -> None:
        self._show(key)
        self._checked(key, self._store.put(self._target.child(key).key, data), len(data))

    def _complete(self, key: str) -> None:
        item = self._objects[key]
        assert item.upload is not None
        self._show(key)
        info = self._store.complete_upload(item.upload, sorted(item.etags.items()))
        self._checked(key, info, self._nbytes[key])

    def _checked(self, key: str, info: ObjectInfo, nbytes: int) -> None:
        self._visible.add(key)
        if info.nbytes != nbytes:
            raise StorageError(
                f"{self._target.child(key).url}: expected {nbytes} bytes in the store, found {info.nbytes}",
                hint="The store lost or changed bytes; convert again.",
            )
        self._put[key] = info

    def _show(self, key: str) -> None:
        """Note that a new object may be visible from now on, even if the request seems to fail."""
        if key not in self._replaced:
            self._visible.add(key)


def _tried(what: str, action: Callable[..., None], *arguments: object) -> list[str]:
    try:
        action(*arguments)
    except (ReshardError, OSError) as error:
        return [f"could not {what}: {error}"]
    return []
