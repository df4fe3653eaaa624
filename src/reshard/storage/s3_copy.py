"""One part made of bytes that the service holds already: UploadPartCopy with a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ..errors import Unsupported
from ..tensor import ByteRange
from .reading import beyond_end, changed
from .s3_errors import Asked, explain, status_of
from .s3_read import bare_etag, quoted_etag
from .stopping import ShouldStop, check


@dataclass(frozen=True, slots=True)
class PartCopy:
    """Has one part copied; may be tried again as it is, because a part made again replaces the one before.

    Parameters
    ----------
    client
        Of the service that has both buckets.
    part
        ``Bucket``, ``Key``, ``UploadId`` and ``PartNumber`` of what is made.
    source, span
        ``Bucket`` and ``Key`` of the object, and which of its bytes.
    etag
        The object to insist on; None for whichever is there.
    origin
        URL of the object.
    """

    client: Any
    part: Mapping[str, Any]
    source: Mapping[str, str]
    span: ByteRange
    etag: str | None
    origin: str
    asked: Asked
    should_stop: ShouldStop

    def run(self) -> str:
        """Ask once; return the part's etag.

        Raises
        ------
        NotFound, SourceChanged, Denied, StorageError
            See :class:`reshard.storage.protocol.PartCopier`.
        Unsupported
            Also when the answer does not tell of a copied part: services that do not know the
            operation take the request for an empty part.
        Transient
            Worth another try.
        """
        check(self.should_stop)
        try:
            answer = self._request()
        except (ClientError, BotoCoreError) as error:
            check(self.should_stop)
            raise self._explained(error) from error
        etag = bare_etag(answer.get("CopyPartResult") or {})
        if not etag:
            raise Unsupported(f"{self.asked}: the store does not say that it copied anything.", hint=_HINT)
        return etag

    def _request(self) -> Mapping[str, Any]:
        pinned = {"CopySourceIfMatch": quoted_etag(self.etag)} if self.etag else {}
        answer: Mapping[str, Any] = self.client.upload_part_copy(
            CopySource=dict(self.source),
            CopySourceRange=f"bytes={self.span.start}-{self.span.stop - 1}",
            **self.part,
            **pinned,
        )
        return answer

    def _explained(self, error: ClientError | BotoCoreError) -> Exception:
        if isinstance(error, ClientError):
            told = error.response.get("Error", {})
            code, message = str(told.get("Code", "")), str(told.get("Message", "")).lower()
            if self.etag and (code == "PreconditionFailed" or status_of(error) == 412):
                return changed(self.origin, self.etag)
            if code == "InvalidRange" or status_of(error) == 416 or (code == "InvalidArgument" and "range" in message):
                return beyond_end(self.origin, self.span)
            if code == "InvalidRequest" and "copy source" in message:  # shorter than what ranges are copied of, on AWS
                return Unsupported(f"{self.asked}: the store copies no range of this object [{code}].", hint=_HINT)
        return explain(error, self.asked)


_HINT = "Read the bytes and send them."
