"""S3, Huawei OBS and every other service that speaks their protocol, through boto3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import NotFound, ReshardError, StorageError, Transient, Unsupported, UsageError
from ..tensor import ByteRange
from .availability import Availability
from .connections import current_policy, report_outages, shared
from .protocol import (
    Body,
    Checksum,
    ObjectInfo,
    PartInfo,
    Proof,
    ReadStore,
    Store,
    StoreLimits,
    Upload,
    unwrapped,
)
from .range_checks import SEND_INSTEAD, cannot_copy, check_buffer, check_copied_span
from .retry import Retries, RetryPolicy, retrying
from .s3_answers import age_of, bare_etag, decoded_crc, listed_objects, listed_parts, told
from .s3_checksums import (
    CheckedBody,
    LearnedCheck,
    UploadCheck,
    check_whole,
    explain_question,
    find_check,
    joined_parts,
    kept_checksum,
)
from .s3_client import Connection, credentials_source, find_settings
from .s3_errors import DOING, ClientFailure, RequestLabel, check_said, explain, has_expired, is_refresh_failure
from .s3_settings import S3Settings
from .s3_transfers import PartBody, RangedRead, check_new, explain_copy, read_small
from .stopping import ShouldStop, check, never

_SMALL_BYTES = 64 << 10
"""Below this a body is sent as bytes: for a file boto3 waits for the server's leave to send."""

_WITH_BYTES = frozenset({"put_object", "upload_part"})

_LISTINGS = {1: ("list_objects", "Marker"), 2: ("list_objects_v2", "ContinuationToken")}


def open_store(url: str) -> S3Store:
    """Open the bucket that an ``s3://`` or ``obs://`` URL names, as environment and AWS's configuration files say."""
    scheme, _, bucket = url.partition("://")

    def connect() -> tuple[S3Settings, Connection]:
        settings = find_settings(scheme, bucket)
        return settings, Connection(settings)

    settings, connection = shared(url, connect)
    # Buckets of one service are down together.
    availability = shared(("availability", settings.service), Availability)
    return S3Store(settings, policy=current_policy(), connection=connection, availability=availability)


class S3Store(Store):
    """One bucket; without a ``connection`` made for its settings it makes its own.

    ``availability`` is shared by the stores of one service.
    """

    def __init__(
        self,
        settings: S3Settings,
        *,
        policy: RetryPolicy | None = None,
        should_stop: ShouldStop = never,
        connection: Connection | None = None,
        availability: Availability | None = None,
    ) -> None:
        self.should_stop = should_stop
        self._settings = settings
        self._bucket = settings.bucket
        self._policy = policy or RetryPolicy()
        self._connection = connection or Connection(settings)
        self._availability = availability or Availability()
        self._checks = LearnedCheck(settings.provider.upload_check)

    def __repr__(self) -> str:
        return f"S3Store({self._settings!r})"

    @property
    def settings(self) -> S3Settings:
        """How this bucket is reached."""
        return self._settings

    @property
    def url(self) -> str:
        return self._settings.url

    @property
    def identity(self) -> str:
        """Endpoint and bucket: equal for ``s3://bucket`` and ``obs://bucket`` of one service."""
        return self._settings.identity

    @property
    def provider(self) -> str:
        """Name of the service, as :mod:`reshard.storage.providers` has it."""
        return self._settings.provider.name

    @property
    def access(self) -> str:
        """Where this bucket is and what opens it, for logs; see :func:`credentials_source`."""
        unchecked = "" if self._settings.checks_certificate else ", certificate not checked (S3_VERIFY_SSL)"
        return f"{self._settings.place}, credentials from {credentials_source(self._settings)}{unchecked}"

    @property
    def limits(self) -> StoreLimits:
        return self._settings.provider.limits

    @property
    def may_keep_checksums(self) -> bool:
        return bool(self._settings.provider.head_arguments)

    def head(self, key: str) -> ObjectInfo:
        client, asked = self._connection.client, self._settings.provider.head_arguments
        try:
            answer = self._call("head_object", key, **asked)
        except ReshardError as error:
            reason = self._better_reason(key, error)
            if self._connection.client is client:
                raise reason from error
            answer = self._call("head_object", key, **asked)  # only a GET says that credentials have expired
        nbytes = told(answer, "ContentLength", int, self._label("head_object", key))
        return ObjectInfo(key, nbytes, bare_etag(answer), kept_checksum(answer), age_s=age_of(answer))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        operation, position = _LISTINGS[self._settings.provider.list_version]

        def after(answer: Any) -> dict[str, Any]:
            found = answer.get("Contents")
            return {position: answer.get("NextContinuationToken") or (found[-1].get("Key") if found else None)}

        pages = self._pages(operation, None, after, Prefix=prefix)
        found = (each for page in pages for each in page.get("Contents", ()))
        return iter(listed_objects(found, prefix, self._label(operation, None)))

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        check_buffer(span, target)
        self._reading(key, span, target, etag).run()

    def _reading(self, key: str, span: ByteRange, target: memoryview, etag: str | None) -> RangedRead:
        label, stop = self._label("get_object", key), self.should_stop
        return RangedRead(self._connection, self._bucket, key, span, target, etag, label, self._retries(), stop)

    def read(self, key: str, span: ByteRange, etag: str | None = None) -> bytes:
        """Return the bytes of a small range; a whole object is read until they are proven."""
        return read_small(span, lambda target: self._reading(key, span, target, etag))

    def put(self, key: str, body: Body, checksum: Checksum | None = None, replaces: str | None = None) -> ObjectInfo:
        condition = self._settings.provider.condition(replaces)
        kind = {"ContentType": "text/html; charset=utf-8"} if key.endswith(".html") else {}  # browsers save others
        answer, proof = self._send_body("put_object", key, body, checksum, **kind, **condition)
        etag = bare_etag(answer)
        if etag and proof:
            return ObjectInfo(key, memoryview(body).nbytes, etag, proof=proof)
        return replace(self.head(key), proof=proof)  # a body may have lost its end on the way

    def delete(self, key: str) -> None:
        """Remove an object, in a request of its own: deletes of many need a Content-MD5 on some stores."""
        self._ignoring_absence("delete_object", key)

    def create_upload(self, key: str, *, is_checked: bool = False) -> Upload:
        if not self._settings.provider.unequal_parts:
            raise Unsupported(
                f"{self._label('create_multipart_upload', key)}: it requires upload parts of equal length.",
                hint="Write to another store and copy the finished objects from there.",
            )
        how = self._upload_check(key).of_upload() if is_checked else {}
        answer = self._call("create_multipart_upload", key, **how)
        return Upload(key, told(answer, "UploadId", str, self._label("create_multipart_upload", key)))

    def upload_part(
        self,
        upload: Upload,
        number: int,
        offset: int,  # noqa: ARG002
        body: Body,
        checksum: Checksum | None = None,
    ) -> PartInfo:
        place = {"UploadId": upload.upload_id, "PartNumber": number}
        answer, proof = self._send_body("upload_part", upload.key, body, checksum, **place)
        etag = bare_etag(answer)
        if not etag:
            raise StorageError(f"{self._label('upload_part', upload.key)}: the store returned no etag for it.")
        crc = checksum.crc32c if checksum and proof == "crc32c" else None
        return PartInfo(number, etag, memoryview(body).nbytes, crc, proof)

    def _send_body(
        self, operation: str, key: str, body: Body, checksum: Checksum | None, **place: Any
    ) -> tuple[Any, Proof]:
        """Send a body until the store has received what was sent; return its answer, and what that proves."""
        checked = CheckedBody.of(self._upload_check(key) if checksum else UploadCheck(""), checksum, body)
        file, label = self._body(body), self._label(operation, key)

        def send() -> tuple[Any, Proof]:
            answer = self._once(operation, key, Body=file, **place, **checked.arguments)
            try:
                return answer, checked.confirm(answer, label)
            except Transient:  # stored as it came: the condition that let it in would keep the right body out
                if not place.keys().isdisjoint(("IfMatch", "IfNoneMatch")):
                    place.clear()
                    place["IfMatch"] = f'"{bare_etag(answer)}"'
                raise

        return retrying(send, self._retries())

    def _upload_check(self, key: str) -> UploadCheck:
        """Return what the service checks; one of which nothing is known is asked, with an upload of ``key``."""

        def send(operation: str, **arguments: Any) -> Any:
            explained = partial(explain_question, label=self._label(operation, key))
            return self._send(operation, explained, Key=key, **arguments)

        def abort(**upload: Any) -> None:  # also after an outage in the middle of the question
            retrying(lambda: send("abort_multipart_upload", **upload), self._retries())

        return self._checks.get(lambda: retrying(lambda: find_check(send, abort), self._retries()))

    def copies_from(self, source: ReadStore) -> bool:
        """Whether ``source`` is a bucket of the same service, reached in the same way and with the same credentials."""
        peer = unwrapped(source)
        return self.limits.can_copy and isinstance(peer, S3Store) and self._settings.reaches(peer.settings)

    def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,  # noqa: ARG002
        source: ReadStore,
        key: str,
        span: ByteRange,
        etag: str | None = None,
    ) -> PartInfo:
        """Let the service copy bytes of one of its objects into a part."""
        peer = unwrapped(source)
        if not (isinstance(peer, S3Store) and self.copies_from(peer)):
            raise cannot_copy(self, source)
        check_copied_span(span)
        source_url = f"{peer.url}/{key}"
        label = RequestLabel("copy", f"bytes of {source_url} to {self.url}/{upload.key}", self._settings.place)

        def explained(error: Exception) -> ReshardError:
            return explain_copy(error, label, source_url, span, etag)

        def request() -> PartInfo:  # may be repeated: a part made again replaces the one before
            answer = self._send(
                "upload_part_copy",
                explained,
                Key=upload.key,
                UploadId=upload.upload_id,
                PartNumber=number,
                CopySource={"Bucket": peer.settings.bucket, "Key": key},
                CopySourceRange=f"bytes={span.start}-{span.stop - 1}",
                **({"CopySourceIfMatch": f'"{etag}"'} if etag else {}),
            )
            result = answer.get("CopyPartResult") or {}
            copied = bare_etag(result)
            if not copied:  # services that do not know the operation take the request for an empty part
                raise Unsupported(f"{label}: the store does not confirm a copy.", hint=SEND_INSTEAD)
            return PartInfo(number, copied, span.nbytes, decoded_crc(result.get("ChecksumCRC32C")), "copy")

        return retrying(request, self._retries())

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        pages = self._pages(
            "list_parts",
            upload.key,
            lambda answer: {"PartNumberMarker": answer.get("NextPartNumberMarker")},
            UploadId=upload.upload_id,
        )
        label = self._label("list_parts", upload.key)
        return listed_parts((each for page in pages for each in page.get("Parts", ())), label)

    def complete_upload(
        self, upload: Upload, parts: Sequence[tuple[int, str]], crcs: Mapping[int, tuple[int, int]] | None = None
    ) -> ObjectInfo:
        """Join the parts; the object becomes visible.

        Raises
        ------
        StorageError
            Also when the answer was lost and nothing proves that the object there is the new one.
        """
        label = self._label("complete_multipart_upload", upload.key)
        if not parts:
            raise UsageError(f"{label}: it has no parts.")
        checks = self._upload_check(upload.key) if crcs else UploadCheck("")
        joined, expected = joined_parts(checks, parts, crcs or {})
        before = self._etag_seen(upload.key)  # of an old object, if any: ours is not visible yet
        try:
            self._call("complete_multipart_upload", upload.key, UploadId=upload.upload_id, **joined)
        except NotFound as gone:  # perhaps an answer was lost, here or on the way, not the request
            check_new(label, before, self._etag_seen(upload.key), len(parts), gone)
        info = self.head(upload.key)  # the answer to Complete has no length, and on Ceph no etag either
        check_whole(label, expected, info.checksum)
        return info

    def abort_upload(self, upload: Upload) -> None:
        self._ignoring_absence("abort_multipart_upload", upload.key, UploadId=upload.upload_id)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        names = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        label = self._label("list_multipart_uploads", None)

        def after(answer: Any) -> dict[str, Any]:
            return {name: answer.get(of_next) for name, of_next in names.items()}

        for page in self._pages("list_multipart_uploads", None, after, Prefix=prefix):
            for found in page.get("Uploads", ()):
                if (key := told(found, "Key", str, label)).startswith(prefix):
                    yield Upload(key, told(found, "UploadId", str, label))

    def _etag_seen(self, key: str) -> str | None:
        """Ask for an object's etag: empty if there is no object, None if the store does not answer."""
        try:
            return bare_etag(self._call("head_object", key)) or None
        except NotFound:
            return ""
        except StorageError:
            return None

    def _pages(
        self, operation: str, key: str | None, after: Callable[[Any], dict[str, Any]], **arguments: Any
    ) -> Iterator[Any]:
        """Yield the pages of a listing; ``after`` returns the position of the next page."""
        position: dict[str, Any] = {}
        while True:
            answer = self._call(operation, key, **arguments, **position)
            yield answer
            if not answer.get("IsTruncated"):
                return
            before, position = position, {name: value for name, value in after(answer).items() if value}
            if not position or position == before:  # it would keep us here for ever
                raise StorageError(f"{self.url}: the store has more to list, but does not say where to continue.")

    def _call(self, operation: str, key: str | None, **arguments: Any) -> Any:
        return retrying(lambda: self._once(operation, key, **arguments), self._retries())

    def _retries(self) -> Retries:
        return Retries(self._policy, self._availability, self.should_stop, report_outages)

    def _once(self, operation: str, key: str | None, **arguments: Any) -> Any:
        if key is not None:
            arguments["Key"] = key
        return self._send(operation, lambda error: explain(error, self._label(operation, key)), **arguments)

    def _send(self, operation: str, explained: Callable[[Exception], ReshardError], **arguments: Any) -> Any:
        """Send one request, and once more if its credentials have expired and there are others."""
        for may_renew in (True, False):
            check(self.should_stop)
            if isinstance(body := arguments.get("Body"), PartBody):
                body.seek(0)
            client = self._connection.client
            try:
                if operation in _WITH_BYTES:
                    answer = self._connection.send_bytes(client, operation, Bucket=self._bucket, **arguments)
                else:
                    answer = getattr(client, operation)(Bucket=self._bucket, **arguments)
                check_said(operation, answer, lambda: self._label(operation, arguments.get("Key")))
                return answer
            except ClientFailure as error:
                check(self.should_stop)  # an Interrupted raised in a body comes back as an error of the HTTP library
                if may_renew and has_expired(error) and self._connection.renew(client):
                    continue
                found = explained(error)
                if is_refresh_failure(error) and self._availability.has_answered:  # it has worked before
                    found = Transient(found.marked_message, hint=found.marked_hint)
                raise found from error
        raise AssertionError

    def _ignoring_absence(self, operation: str, key: str, **arguments: Any) -> None:
        try:
            self._call(operation, key, **arguments)
        except NotFound as error:
            if "NoSuchBucket" in error.marked_message:
                raise

    def _better_reason(self, key: str, error: ReshardError) -> ReshardError:
        """Ask again with a GET: the answer to a failed HEAD has no body, so no reason either."""
        if isinstance(error, Transient):
            return error
        try:
            self._call("get_object", key, Range="bytes=0-0")["Body"].close()
        except NotFound as reason:
            return reason
        except ReshardError as reason:
            return reason if type(reason) is not StorageError else error
        return error

    def _body(self, body: Body) -> Any:
        return bytes(body) if memoryview(body).nbytes < _SMALL_BYTES else PartBody(body, self._is_over)

    def _is_over(self) -> bool:
        """Answer for a body, which asks before each of its blocks: the store has taken those before."""
        self._availability.sent()
        return self.should_stop()

    def _label(self, operation: str, key: str | None) -> RequestLabel:
        url = f"{self.url}/{key}" if key is not None else self.url
        return RequestLabel(DOING[operation], url, self._settings.place)
