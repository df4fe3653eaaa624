"""S3, Huawei OBS and every other service that speaks their protocol, through boto3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ..errors import NotFound, ReshardError, StorageError, Transient, Unsupported, UsageError
from ..tensor import ByteRange
from .open import shared
from .protocol import Body, ObjectInfo, PartInfo, ReadStore, Store, StoreLimits, Upload, unwrapped
from .range_checks import SEND_INSTEAD, cannot_copy, check_buffer, check_copied_span
from .retry import RetryPolicy, retrying
from .s3_client import credentials_source, find_settings, make_client
from .s3_errors import RequestLabel, explain
from .s3_settings import S3Settings
from .s3_transfers import PartBody, RangedRead, bare_etag, explain_copy
from .stopping import ShouldStop, check, never

_SMALL_BYTES = 64 << 10
"""Below this a body is sent as bytes: for a file boto3 waits for the server's leave to send."""

_DOING = {
    "head_object": "find",
    "get_object": "read",
    "list_objects": "list",
    "list_objects_v2": "list",
    "put_object": "write",
    "delete_object": "delete",
    "create_multipart_upload": "start writing",
    "upload_part": "write a part of",
    "list_parts": "list the parts of",
    "complete_multipart_upload": "complete",
    "abort_multipart_upload": "abort the upload of",
    "list_multipart_uploads": "list unfinished uploads of",
}

_LISTINGS = {1: ("list_objects", "Marker"), 2: ("list_objects_v2", "ContinuationToken")}


def open_store(url: str) -> S3Store:
    """Open the bucket that an ``s3://`` or ``obs://`` URL names, as environment and AWS's configuration files say."""
    scheme, _, bucket = url.partition("://")

    def connect() -> tuple[S3Settings, Any]:
        settings = find_settings(scheme, bucket)
        return settings, make_client(settings)

    settings, client = shared(url, connect)
    return S3Store(settings, client=client)


class S3Store(Store):
    """One bucket; without a ``client`` made for its settings it makes its own."""

    def __init__(
        self,
        settings: S3Settings,
        *,
        policy: RetryPolicy | None = None,
        should_stop: ShouldStop = never,
        client: Any = None,
    ) -> None:
        self.should_stop = should_stop
        self._settings = settings
        self._bucket = settings.bucket
        self._policy = policy or RetryPolicy()
        self._client = client or make_client(settings)

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

    def head(self, key: str) -> ObjectInfo:
        try:
            answer = self._call("head_object", key)
        except ReshardError as error:
            raise self._better_reason(key, error) from error
        return ObjectInfo(key, int(answer["ContentLength"]), bare_etag(answer), _age_s(answer))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        operation, position = _LISTINGS[self._settings.provider.list_version]

        def after(answer: Any) -> dict[str, Any]:
            found = answer.get("Contents")
            return {position: answer.get("NextContinuationToken") or (found[-1]["Key"] if found else None)}

        pages = self._pages(operation, None, after, Prefix=prefix)
        found = [each for page in pages for each in page.get("Contents", ())]
        # Stores that keep keys as trees list a/b before a.txt; hence all pages first, and the sort.
        infos = (ObjectInfo(each["Key"], int(each["Size"]), bare_etag(each)) for each in found)
        return iter(sorted(infos, key=lambda info: info.key))

    def read_into(self, key: str, span: ByteRange, target: memoryview, etag: str | None = None) -> None:
        check_buffer(span, target)
        label = self._label("get_object", key)
        RangedRead(self._client, self._bucket, key, span, target, etag, label, self._policy, self.should_stop).run()

    def put(self, key: str, body: Body) -> ObjectInfo:
        answer = self._call("put_object", key, Body=self._body(body))
        etag = bare_etag(answer)
        return ObjectInfo(key, memoryview(body).nbytes, etag) if etag else self.head(key)

    def delete(self, key: str) -> None:
        """Remove an object, in a request of its own: deletes of many need a Content-MD5 on some stores."""
        self._ignoring_absence("delete_object", key)

    def create_upload(self, key: str) -> Upload:
        if not self._settings.provider.unequal_parts:
            raise Unsupported(
                f"{self._label('create_multipart_upload', key)}: it requires upload parts of equal length.",
                hint="Write to another store and copy the finished objects from there.",
            )
        return Upload(key, str(self._call("create_multipart_upload", key)["UploadId"]))

    def upload_part(self, upload: Upload, number: int, offset: int, body: Body) -> str:  # noqa: ARG002
        answer = self._call(
            "upload_part", upload.key, UploadId=upload.upload_id, PartNumber=number, Body=self._body(body)
        )
        etag = bare_etag(answer)
        if not etag:
            raise StorageError(f"{self._label('upload_part', upload.key)}: the store returned no etag for it.")
        return etag

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
    ) -> str:
        """Let the service copy bytes of one of its objects into a part."""
        peer = unwrapped(source)
        if not (isinstance(peer, S3Store) and self.copies_from(peer)):
            raise cannot_copy(self, source)
        check_copied_span(span)
        source_url = f"{peer.url}/{key}"
        label = RequestLabel("copy", f"bytes of {source_url} to {self.url}/{upload.key}", self._settings.place)

        def request() -> str:  # may be repeated: a part made again replaces the one before
            check(self.should_stop)
            try:
                answer = self._client.upload_part_copy(
                    Bucket=self._bucket,
                    Key=upload.key,
                    UploadId=upload.upload_id,
                    PartNumber=number,
                    CopySource={"Bucket": peer.settings.bucket, "Key": key},
                    CopySourceRange=f"bytes={span.start}-{span.stop - 1}",
                    **({"CopySourceIfMatch": f'"{etag}"'} if etag else {}),
                )
            except (ClientError, BotoCoreError) as error:
                check(self.should_stop)
                raise explain_copy(error, label, source_url, span, etag) from error
            copied = bare_etag(answer.get("CopyPartResult") or {})
            if not copied:  # services that do not know the operation take the request for an empty part
                raise Unsupported(f"{label}: the store does not confirm a copy.", hint=SEND_INSTEAD)
            return copied

        return retrying(request, self._policy, self.should_stop)

    def list_parts(self, upload: Upload) -> Iterable[PartInfo]:
        pages = self._pages(
            "list_parts",
            upload.key,
            lambda answer: {"PartNumberMarker": answer.get("NextPartNumberMarker")},
            UploadId=upload.upload_id,
        )
        parts = {
            PartInfo(int(each["PartNumber"]), bare_etag(each), int(each["Size"]))
            for page in pages
            for each in page.get("Parts", ())
        }
        # SeaweedFS lists every part that was sent under a number, in no order.
        counts = Counter(part.number for part in parts)
        return sorted((part for part in parts if counts[part.number] == 1), key=lambda part: part.number)

    def complete_upload(self, upload: Upload, parts: Sequence[tuple[int, str]]) -> ObjectInfo:
        """Join the parts; the object becomes visible.

        Raises
        ------
        StorageError
            Also when the answer was lost and nothing proves that the object there is the new one.
        """
        if not parts:
            raise UsageError(f"{self._label('complete_multipart_upload', upload.key)}: it has no parts.")
        joined = {"Parts": [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in parts]}
        before = self._etag_seen(upload.key)  # of an old object, if any: ours is not visible yet
        tries = 0

        def complete() -> None:
            nonlocal tries
            tries += 1
            try:
                self._once("complete_multipart_upload", upload.key, UploadId=upload.upload_id, MultipartUpload=joined)
            except NotFound as error:
                if tries == 1:
                    raise
                # Perhaps the answer to an earlier try was lost, not the try itself.
                self._expect_new(upload.key, before, len(parts), error)

        retrying(complete, self._policy, self.should_stop)
        # The answer to Complete has no length, and on some stores (Ceph) no etag either.
        return self.head(upload.key)

    def abort_upload(self, upload: Upload) -> None:
        self._ignoring_absence("abort_multipart_upload", upload.key, UploadId=upload.upload_id)

    def open_uploads(self, prefix: str) -> Iterable[Upload]:
        names = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}

        def after(answer: Any) -> dict[str, Any]:
            return {name: answer.get(of_next) for name, of_next in names.items()}

        for page in self._pages("list_multipart_uploads", None, after, Prefix=prefix):
            for found in page.get("Uploads", ()):
                if found["Key"].startswith(prefix):
                    yield Upload(found["Key"], found["UploadId"])

    def _etag_seen(self, key: str) -> str | None:
        """Ask for an object's etag: empty if there is no object, None if the store does not answer."""
        try:
            return bare_etag(self._call("head_object", key)) or None
        except NotFound:
            return ""
        except StorageError:
            return None

    def _expect_new(self, key: str, before: str | None, part_count: int, gone: NotFound) -> None:
        """Raise unless the object has so many parts and is not the one that was there ``before``."""
        after = self._etag_seen(key)
        if after is not None and not after.endswith(f"-{part_count}"):
            raise gone
        if after is None or before is None or after == before:
            raise StorageError(
                f"{self._label('complete_multipart_upload', key)}: the store's answer was lost and the upload is no "
                "longer open, so it is unknown whether the object there is the old or the new one.",
                hint="Do not use this object before it has been written again.",
            ) from gone

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
        return retrying(lambda: self._once(operation, key, **arguments), self._policy, self.should_stop)

    def _once(self, operation: str, key: str | None, **arguments: Any) -> Any:
        check(self.should_stop)
        if key is not None:
            arguments["Key"] = key
        if isinstance(body := arguments.get("Body"), PartBody):
            body.seek(0)
        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **arguments)
        except (ClientError, BotoCoreError) as error:
            check(self.should_stop)  # an Interrupted raised in a body comes back as an error of the HTTP library
            raise explain(error, self._label(operation, key)) from error

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
            self._once("get_object", key, Range="bytes=0-0")["Body"].close()
        except NotFound as reason:
            return reason
        except ReshardError as reason:
            return reason if type(reason) is not StorageError else error
        return error

    def _body(self, body: Body) -> Any:
        return bytes(body) if memoryview(body).nbytes < _SMALL_BYTES else PartBody(body, self.should_stop)

    def _label(self, operation: str, key: str | None) -> RequestLabel:
        url = f"{self.url}/{key}" if key is not None else self.url
        return RequestLabel(_DOING[operation], url, self._settings.place)


def _age_s(answer: Mapping[str, Any]) -> float | None:
    """Return the seconds between when an object was written and when the store answered, both by its clock."""
    try:
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())
    except (LookupError, TypeError, ValueError):
        return None
