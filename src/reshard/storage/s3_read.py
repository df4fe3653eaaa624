"""One ranged read that survives cut connections: what has arrived stays, and the rest is asked for again.

boto3 tries a request again, but not a body that breaks off half way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ..errors import Transient, Unsupported
from ..tensor import ByteRange
from .reading import beyond_end, changed, expect_etag
from .retry import Retries, RetryPolicy
from .s3_errors import Asked, explain, status_of
from .stopping import ShouldStop, check

_BLOCK_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def bare_etag(answer: Mapping[str, Any]) -> str:
    """Take the etag from an answer, without quotes; nothing if the store sent none.

    Examples
    --------
    >>> bare_etag({"ETag": '"0123-4"'}), bare_etag({})
    ('0123-4', '')
    """
    return str(answer.get("ETag") or "").strip('"')


def quoted_etag(etag: str) -> str:
    """Bring an etag into the form of an ``If-Match`` header.

    Examples
    --------
    >>> quoted_etag("0123-4")
    '"0123-4"'
    """
    return f'"{etag}"'


@dataclass(slots=True)
class RangedRead:
    """Fills a buffer with one range of one object.

    Parameters
    ----------
    client, bucket, key
        Where to read.
    span, target
        Which bytes, and where they go.
    etag
        The object to insist on; if None, whichever the first answer comes from.
    """

    client: Any
    bucket: str
    key: str
    span: ByteRange
    target: memoryview
    etag: str | None
    asked: Asked
    policy: RetryPolicy
    should_stop: ShouldStop
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
            The tries ran out; tries that brought bytes do not count.
        """
        retries = Retries(self.policy, self.should_stop)
        while self._reached < self.span.nbytes:
            before = self._reached
            try:
                self._try()
            except Transient as error:
                if self._reached - before >= _BLOCK_BYTES:
                    retries.progressed()
                retries.failed(error)

    def _try(self) -> None:
        check(self.should_stop)
        try:
            answer = self._request()
            with closing(answer["Body"]) as body:
                self._accept(answer)
                self._receive(body)
        except (ClientError, BotoCoreError) as error:
            check(self.should_stop)
            raise self._explained(error) from error

    def _request(self) -> dict[str, Any]:
        pinned = {"IfMatch": quoted_etag(self.etag)} if self.etag else {}
        first, last = self.span.start + self._reached, self.span.stop - 1
        answer: dict[str, Any] = self.client.get_object(
            Bucket=self.bucket, Key=self.key, Range=f"bytes={first}-{last}", **pinned
        )
        return answer

    def _accept(self, answer: dict[str, Any]) -> None:
        """Check that these are the bytes asked for, of the object wanted; pin the first one seen."""
        found = bare_etag(answer)
        expect_etag(self.asked.url, self.etag, found)  # some stores ignore If-Match
        self.etag = self.etag or found or None
        self._check_range(answer)

    def _check_range(self, answer: dict[str, Any]) -> None:
        first = self.span.start + self._reached
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or "")
        if match is None:
            whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200 and first == 0
            if whole and answer.get("ContentLength") == self.span.nbytes:
                return  # all of it was wanted
            raise Unsupported(f"{self.asked}: the store answered a byte range with the whole object.")
        start, last = int(match[1]), int(match[2])
        if start != first or last >= self.span.stop:
            raise Unsupported(f"{self.asked}: asked for bytes from {first} on, the store sent {match[0]}.")
        if last < self.span.stop - 1:
            raise beyond_end(self.asked.url, self.span, last + 1)

    def _receive(self, body: Any) -> None:
        while self._reached < self.span.nbytes:
            check(self.should_stop)
            count = body.readinto(self.target[self._reached : self._reached + _BLOCK_BYTES])
            if not count:
                raise Transient(f"{self.asked}: the answer was cut off after {self._reached} bytes.")
            self._reached += count

    def _explained(self, error: ClientError | BotoCoreError) -> Exception:
        status = status_of(error) if isinstance(error, ClientError) else 0
        if status == 412 and self.etag:
            return changed(self.asked.url, self.etag)
        if status == 416:
            return beyond_end(self.asked.url, self.span)
        return explain(error, self.asked)
