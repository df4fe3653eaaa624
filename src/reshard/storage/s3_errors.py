"""Translates botocore's errors into messages for people: what failed, where, and what to do about it.

The messages are made from the error's code. botocore's own text is used only where it is the service's
reason: some of its other messages quote whole URLs.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from ..errors import Denied, NotFound, ReshardError, SourceChanged, StorageError, Transient, Unsupported, UsageError

DOING: Mapping[str, str] = {
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
"""What requests do, in words, by boto3's operations."""


@dataclass(frozen=True, slots=True)
class RequestLabel:
    """A request as messages name it.

    Examples
    --------
    >>> print(RequestLabel("read", "s3://models/a.bin", "AWS S3"))
    Cannot read s3://models/a.bin (AWS S3)
    """

    doing: str
    url: str
    place: str

    def __str__(self) -> str:
        return f"Cannot {self.doing} {self.url} ({self.place})"


@dataclass(frozen=True, slots=True)
class _Row:
    error: type[ReshardError]
    reason: str
    hint: str = ""


_CLOCK = "Set the clock of this machine: signatures are valid for a few minutes only."
_KEYS = (
    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE); for obs:// OBS_ACCESS_KEY_ID and its secret; "
    "or ACCESS_KEY_ID and SECRET_ACCESS_KEY."
)
_REGION = "Set AWS_REGION (for obs:// OBS_REGION) and the endpoint to the bucket's region."
_VIRTUAL = "Set RESHARD_S3_ADDRESSING=virtual, and the endpoint without the bucket's name."
_SESSION = "Get new temporary credentials and run again."
_ARCHIVED = "Restore it from its storage class first."

_CODES: dict[str, _Row] = {
    "NoSuchBucket": _Row(
        NotFound, "there is no such bucket", "Check the bucket's name and that the endpoint serves it."
    ),
    "NoSuchKey": _Row(NotFound, "there is no such object"),
    "NoSuchUpload": _Row(NotFound, "the upload is not open any more: it was completed or aborted"),
    "AccessDenied": _Row(
        Denied,
        "access is denied",
        "The access key lacks this permission. Without permission to list, stores deny access to a missing object too.",
    ),
    "AllAccessDisabled": _Row(Denied, "all access to this bucket is disabled"),
    "AccountProblem": _Row(Denied, "there is a problem with the account"),
    "InvalidAccessKeyId": _Row(Denied, "the store does not know this access key", _KEYS),
    "SignatureDoesNotMatch": _Row(Denied, "the secret key does not belong to the access key", _KEYS),
    "AuthorizationHeaderMalformed": _Row(Denied, "the request is signed for another region", _REGION),
    "ExpiredToken": _Row(Denied, "the session token has expired", _SESSION),
    "InvalidToken": _Row(Denied, "the session token is invalid", _SESSION),
    "RequestTimeTooSkewed": _Row(Denied, "this machine's clock differs from the store's", _CLOCK),
    "InvalidObjectState": _Row(Denied, "the object is archived", _ARCHIVED),
    "ObjectNotInActiveTierError": _Row(Denied, "the object is archived", _ARCHIVED),
    "PermanentRedirect": _Row(StorageError, "the bucket is in another region or at another endpoint", _REGION),
    "IllegalLocationConstraintException": _Row(StorageError, "the bucket is in another region", _REGION),
    "SecondLevelDomainForbidden": _Row(Unsupported, "the store requires the bucket in the host name", _VIRTUAL),
    "PathStyleDomainForbidden": _Row(Unsupported, "the store requires the bucket in the host name", _VIRTUAL),
    "NotImplemented": _Row(Unsupported, "the store cannot do this"),
    "MethodNotAllowed": _Row(Unsupported, "the store does not allow this"),
    "InvalidBucketName": _Row(UsageError, "the bucket's name is invalid"),
    "KeyTooLongError": _Row(UsageError, "the key is longer than 1024 bytes"),
    "EntityTooSmall": _Row(StorageError, "a part other than the last is below the store's smallest part"),
    "EntityTooLarge": _Row(StorageError, "the object or part is larger than the store allows"),
    "InvalidPart": _Row(StorageError, "a part is missing, or was sent again since"),
    "InvalidPartOrder": _Row(StorageError, "parts are not in ascending order"),
    "InvalidRange": _Row(StorageError, "the object is shorter than that"),
    "QuotaExceeded": _Row(StorageError, "the bucket is full", "Free some space or raise the quota."),
    "PreconditionFailed": _Row(SourceChanged, "the object has changed", "Make a new plan."),
}

_STATUS: dict[int, _Row] = {
    301: _CODES["PermanentRedirect"],
    307: _CODES["PermanentRedirect"],
    401: _CODES["AccessDenied"],
    403: _CODES["AccessDenied"],
    404: _Row(NotFound, "there is no such object or bucket"),
    405: _CODES["MethodNotAllowed"],
    412: _CODES["PreconditionFailed"],
    416: _CODES["InvalidRange"],
    501: _CODES["NotImplemented"],
}

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {
        "InternalError",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "TooManyRequests",
        "OperationAborted",  # with status 409: another request for the same object is under way
        "ConditionalRequestConflict",
        "BadDigest",  # the bytes were damaged or cut off on their way
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
    }
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"})

_UnreadAnswer = (ResponseParserError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
_BrokenAnswer = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError, ssl.SSLError)
ClientFailure = (ClientError, BotoCoreError, *_UnreadAnswer, *_BrokenAnswer)
"""What a client raises: for an answer that is no XML, or was cut off, also what a conversion in its parser raises. A
connection that breaks while it reads an answer's XML it does not translate."""

BodyFailure = (BotoCoreError, urllib3.exceptions.HTTPError, OSError)
"""What reading a body raises: botocore translates some errors of the connection, and none of TLS."""

_TRANSIENT_KINDS: dict[type[BotoCoreError], str] = {
    exceptions.ConnectTimeoutError: "no connection in time",
    exceptions.ReadTimeoutError: "the store stopped answering",
    exceptions.EndpointConnectionError: "no connection to the endpoint",
    exceptions.ProxyConnectionError: "no connection to the proxy",
    exceptions.IncompleteReadError: "the answer was cut off",
    exceptions.ResponseStreamingError: "the connection broke during the answer",
    exceptions.ConnectionClosedError: "the connection was closed before an answer came",
    exceptions.ConnectionError: "the connection broke",
}

_LONGEST_TEXT = 300
"""Characters of a service's own words that a message repeats."""

_KEYLESS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.UnauthorizedSSOTokenError,
)
_UNREFRESHED = (exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError)


def has_expired(error: Exception) -> bool:
    """Whether an error says that other credentials are needed, from wherever they come."""
    return isinstance(error, ClientError) and error.response.get("Error", {}).get("Code") in _EXPIRED_CODES


def is_refresh_failure(error: Exception) -> bool:
    """Whether whoever hands credentials out did not answer, or refused."""
    return isinstance(error, _UNREFRESHED)


def explain_broken_body(error: Exception, label: RequestLabel) -> Transient:
    """Translate an error that broke a body off: always one of the connection."""
    if isinstance(error, BotoCoreError):
        found = explain(error, label)
        return found if isinstance(found, Transient) else Transient(found.marked_message, hint=found.marked_hint)
    return _broken(error, label)


def _broken(error: Exception, label: RequestLabel) -> Transient:
    return Transient(f"{label}: the connection broke during the answer ({type(error).__name__}).")


_SAID: Mapping[str, frozenset[str]] = {
    "list_objects": frozenset({"Name", "IsTruncated", "Contents", "MaxKeys"}),
    "list_objects_v2": frozenset({"Name", "IsTruncated", "Contents", "KeyCount"}),
    "create_multipart_upload": frozenset({"UploadId"}),
    "complete_multipart_upload": frozenset({"Location", "Bucket", "Key", "ETag"}),
    "list_parts": frozenset({"UploadId", "IsTruncated", "Parts"}),
    "list_multipart_uploads": frozenset({"Bucket", "IsTruncated", "Uploads"}),
}
"""What answers say at least one of: botocore takes a body that was lost for one that says nothing."""


def check_said(operation: str, answer: Mapping[str, Any], label: Callable[[], RequestLabel]) -> None:
    """Raise Transient unless an answer says something of what it is about."""
    if operation in _SAID and _SAID[operation].isdisjoint(answer):
        raise Transient(f"{label()}: the answer was cut off, or is not that of an S3 service.")


def status_of(error: ClientError) -> int:
    """Return the HTTP status of an error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def explain(error: Exception, label: RequestLabel) -> ReshardError:
    """Translate an error of botocore; errors that are worth another try become Transient."""
    if isinstance(error, ClientError):
        return _answered(error, label)
    if isinstance(error, _BrokenAnswer):
        return _broken(error, label)
    if isinstance(error, _UnreadAnswer):
        return Transient(f"{label}: the answer was cut off, or is not that of an S3 service.")
    if isinstance(error, exceptions.SSLError):
        return _tls(error, label)
    if isinstance(error, _KEYLESS):
        return Denied(f"{label}: no credentials were found, or they are incomplete.", hint=_KEYS)
    if isinstance(error, _UNREFRESHED):
        return Denied(f"{label}: the credentials cannot be fetched from where the AWS configuration says.", hint=_KEYS)
    if isinstance(error, exceptions.ParamValidationError):
        return UsageError(f"{label}: this is not the name of a bucket or an object.")
    for kind, reason in _TRANSIENT_KINDS.items():
        if isinstance(error, kind):
            return Transient(f"{label}: {reason}.", hint="Check the endpoint, the network and the proxy settings.")
    if isinstance(error, exceptions.HTTPClientError):  # anything else that broke while a request was sent
        inner = getattr(error, "kwargs", {}).get("error")
        return Transient(f"{label}: the request failed on its way ({type(inner).__name__}).")
    return StorageError(f"{label}: {type(error).__name__}.")


def _answered(error: ClientError, label: RequestLabel) -> ReshardError:
    answer: dict[str, Any] = error.response.get("Error", {})
    code, status = str(answer.get("Code", ""))[:_LONGEST_TEXT], status_of(error)
    row = _CODES.get(code)
    # The code goes before the status: an error inside an answer of 200 reaches us as a 500.
    if code in _TRANSIENT_CODES or (row is None and status in _TRANSIENT_STATUS):
        return Transient(f"{label}: the store answered {code or status}.", hint="It is busy or failing; try later.")
    row = row or _STATUS.get(status)
    if row is None:
        reason = str(answer.get("Message") or "no reason given")[:_LONGEST_TEXT]
        return StorageError(f"{label}: the store answered {status} {code}: {reason}.")
    kind = f" [{code}]" if code and not code.isdecimal() else ""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = answer.get("Region") or headers.get("x-amz-bucket-region")
    place = f"; the bucket is in {str(region)[:_LONGEST_TEXT]}" if region and status in (301, 307, 400) else ""
    return row.error(f"{label}: {row.reason}{kind}{place}.", hint=row.hint)


def _tls(error: exceptions.SSLError, label: RequestLabel) -> ReshardError:
    reason = str(getattr(error, "kwargs", {}).get("error", ""))
    if "WRONG_VERSION_NUMBER" in reason:
        return StorageError(
            f"{label}: the endpoint does not speak TLS.",
            hint="For an endpoint without TLS write http:// in front of it.",
        )
    if "ertificate" in reason or "CERTIFICATE" in reason:
        return StorageError(
            f"{label}: the certificate of the endpoint is not accepted.",
            hint="Set AWS_CA_BUNDLE to the certificate file of a private authority. A bucket whose name has dots needs "
            "RESHARD_S3_ADDRESSING=path.",
        )
    return Transient(f"{label}: the TLS connection broke.")
