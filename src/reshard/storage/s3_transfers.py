"""The transfers of an S3Store: a part as a file, and a ranged read that survives cut connections."""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from ..errors import NotFound, ReshardError, StorageError, Transient, Unsupported
from ..tensor import ByteRange
from .protocol import Body
from .range_checks import SEND_INSTEAD, beyond_end, changed, check_etag
from .retry import Retries
from .s3_answers import bare_etag
from .s3_client import Connection
from .s3_errors import BodyFailure, ClientFailure, RequestLabel, explain, explain_broken_body, has_expired, status_of
from .stopping import ShouldStop, check, never

_BLOCK_BYTES = 1 << 20
"""Moved between two looks at ``should_stop``. For uploads also the least handed out at once: the HTTP library asks for
16 KiB, a system call each, but sends whatever it gets; blocks of 1 MiB save a sixth of the CPU time of sending."""

_MOST_READS = 5
_SLOW_BLOCK_BYTES = 64 << 10
"""What is read at once while a body is slow. Less than this in a minute is no line to wait for: the rest of the body is
asked for again, which meets another server perhaps. Above it, a slow line is a slow line."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class PartBody:
    """A seekable, read-only file over a buffer, because boto3 takes no memoryview; reading returns views of it.

    boto3 asks a file for its length, reads to the end, and seeks back before it sends it again. Unlike
    other files this one may return more than it was asked for.

    Examples
    --------
    >>> body = PartBody(b"hello")
    >>> len(body), bytes(body.read()), body.read().nbytes, body.seek(1), bytes(body.read(2))
    (5, b'hello', 0, 1, b'ello')
    """

    def __init__(self, body: Body, should_stop: ShouldStop = never) -> None:
        self._view = memoryview(body).cast("B")
        self._at = 0
        self._block_bytes = _BLOCK_BYTES
        self._should_stop = should_stop

    def __len__(self) -> int:
        return self._view.nbytes

    def read(self, size: int | None = None) -> memoryview:
        """Return the next bytes; raise Interrupted if the transfer is to be broken off."""
        check(self._should_stop)
        left = self._view.nbytes - self._at
        count = left if size is None or size < 0 else min(max(size, self._block_bytes), left)
        view = self._view[self._at : self._at + count]
        self._at += count
        return view

    def tell(self) -> int:
        """Position of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another byte, as files do."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._view.nbytes}[whence]
        if self._at and not start + offset:  # to send it again: a slow line has a timeout's time for each block
            self._block_bytes = _SLOW_BLOCK_BYTES
        self._at = max(0, start + offset)
        return self._at


@dataclass(slots=True)
class RangedRead:
    """Fills a buffer with one range of one object.

    boto3 repeats a request, but not a body that breaks off. Here the bytes that have arrived stay, and only
    the rest is requested again.
    Without an ``etag``, the one of the first answer is insisted on.
    """

    connection: Connection
    bucket: str
    key: str
    span: ByteRange
    target: memoryview
    etag: str | None
    label: RequestLabel
    retries: Retries
    should_stop: ShouldStop
    is_whole: bool = field(default=False, init=False)
    """Whether the range was found to be all of the object."""
    _reached: int = field(default=0, init=False)

    def run(self) -> None:
        """Read until the buffer is full.

        Raises
        ------
        SourceChanged
            The object is another one, now or since the first request.
        Unsupported
            The store does not serve ranges.
        Transient
            The time has run out; it begins anew with every try that brought bytes.
        """
        while self._reached < self.span.nbytes:
            with self.retries:
                self._try()

    def _try(self) -> None:
        check(self.should_stop)
        first, last = self.span.start + self._reached, self.span.stop - 1
        answer = self._get(f"bytes={first}-{last}")
        body = answer["Body"]
        with body as raw:
            found = bare_etag(answer)
            check_etag(self.label.url, self.etag, found)  # some stores ignore If-Match
            self.etag = self.etag or found or None
            self._check_range(answer, first)
            self._receive(body, raw)

    def _get(self, span: str, *, is_renewed: bool = False) -> Any:
        pinned = {"IfMatch": f'"{self.etag}"'} if self.etag else {}
        client = self.connection.client
        try:
            place = {"Bucket": self.bucket, "Key": self.key}
            return self.connection.send_bytes(client, "get_object", **place, Range=span, **pinned)
        except ClientFailure as error:
            check(self.should_stop)
            if has_expired(error) and not is_renewed and self.connection.renew(client):
                return self._get(span, is_renewed=True)
            raise self._explained(error) from error

    def _check_range(self, answer: Mapping[str, Any], first: int) -> None:
        """Check that these are the bytes asked for."""
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
        if match is None:
            whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200 and first == 0
            if whole and answer.get("ContentLength") == self.span.nbytes:
                self.is_whole = True
                return
            raise Unsupported(f"{self.label}: the store answered a byte range with the whole object.")
        start, last = int(match[1]), int(match[2])
        self.is_whole = match[3] == str(self.span.stop) and not self.span.start
        if start != first or last >= self.span.stop:
            raise Unsupported(f"{self.label}: asked for bytes from {first} on, the store sent {match[0]}.")
        if last < self.span.stop - 1:
            raise beyond_end(self.label.url, self.span, last + 1)

    def _receive(self, body: Any, raw: Any) -> None:
        block_bytes = _SLOW_BLOCK_BYTES
        # Until a block is there reading does not return, however slowly its bytes come.
        with self.connection.watch.body(raw, self.should_stop) as watched:
            while self._reached < self.span.nbytes:
                check(self.should_stop)
                begun_s = watched.begin_block()
                try:
                    count = body.readinto(self.target[self._reached : self._reached + block_bytes])
                except BodyFailure as error:
                    check(self.should_stop)
                    if not watched.is_too_slow:
                        raise explain_broken_body(error, self.label) from error
                    count = 0
                self._reached += count
                if count >= _SLOW_BLOCK_BYTES:
                    self.retries.progressed()
                if watched.is_too_slow:
                    slow = f"less than {block_bytes >> 10} KiB in {watched.limit_s:.0f} s"
                    raise Transient(f"{self.label}: the answer trickles, {slow}.")
                if not count:
                    check(self.should_stop)
                    raise Transient(f"{self.label}: the answer was cut off after {self._reached} bytes.")
                is_fast = time.monotonic() - begun_s < watched.limit_s / 60
                block_bytes = min(4 * block_bytes, _BLOCK_BYTES) if is_fast else _SLOW_BLOCK_BYTES

    def _explained(self, error: Exception) -> Exception:
        status = status_of(error) if isinstance(error, ClientError) else 0
        if status == 412 and self.etag:
            return changed(self.label.url, self.etag)
        if status == 416:
            return beyond_end(self.label.url, self.span)
        return explain(error, self.label)


def read_small(span: ByteRange, reading: Callable[[memoryview], RangedRead]) -> bytes:
    """Read a small range; a whole object is read again until its etag is the MD5 of its bytes, or they came twice.

    Raise StorageError if every read brings other bytes.
    """
    buffer, seen = bytearray(span.nbytes), set[str]()
    for _ in range(_MOST_READS):
        done = reading(memoryview(buffer))
        done.run()
        if not done.is_whole:
            return bytes(buffer)
        found = hashlib.md5(buffer, usedforsecurity=False).hexdigest()
        if found == done.etag or found in seen:
            return bytes(buffer)
        seen.add(found)
    raise StorageError(
        f"{done.label}: {_MOST_READS} reads brought {_MOST_READS} different contents.",
        hint="Something between here and the store changes bytes: a proxy, a network card, memory.",
    )


def check_new(label: RequestLabel, before: str | None, after: str | None, part_count: int, gone: NotFound) -> None:
    """Raise unless an etag shows an object of so many parts that is not the one ``before``; None is unknown."""
    if after is not None and not after.endswith(f"-{part_count}"):
        raise gone
    if after is None or before is None or after == before:
        raise StorageError(
            f"{label}: the store's answer was lost and the upload is no longer open, so it is unknown whether the "
            "object there is the old or the new one.",
            hint="Do not use this object before it has been written again.",
        ) from gone


def explain_copy(
    error: Exception, label: RequestLabel, source_url: str, span: ByteRange, etag: str | None
) -> ReshardError:
    """Translate the error of a request to copy a range."""
    if isinstance(error, ClientError):
        answer = error.response.get("Error", {})
        code, message = str(answer.get("Code", "")), str(answer.get("Message", "")).lower()
        if etag and (code == "PreconditionFailed" or status_of(error) == 412):
            return changed(source_url, etag)
        if code == "InvalidRange" or status_of(error) == 416 or (code == "InvalidArgument" and "range" in message):
            return beyond_end(source_url, span)
        if code == "InvalidRequest" and "copy source" in message:  # too short, on AWS
            return Unsupported(f"{label}: the store copies no range of this object [{code}].", hint=SEND_INSTEAD)
    return explain(error, label)
