"""The requests of S3 that carry the bytes of objects, over connections of our own.

boto3 models each request and answer, and copies the bytes of a read on their way. Here botocore says where a bucket is,
signs requests and reads answers, and nothing of it touches the bytes. Where it would do more than that, use a proxy or
follow a redirect to another region, boto3 sends the request.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import botocore.exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, HeadersDict
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.parsers import create_parser
from botocore.utils import percent_encode

from .http_pool import Answer, HttpPool, Server
from .protocol import Body
from .request_log import logged
from .s3_settings import S3Settings
from .s3_transfers import PartBody

_OPERATIONS = {
    "get_object": ("GET", "GetObject"),
    "put_object": ("PUT", "PutObject"),
    "upload_part": ("PUT", "UploadPart"),
}
_HEADERS = {
    "ContentMD5": "Content-MD5",
    "ChecksumCRC32C": "x-amz-checksum-crc32c",
    "IfMatch": "If-Match",
    "IfNoneMatch": "If-None-Match",
    "Range": "Range",
}
_QUERY = {"PartNumber": "partNumber", "UploadId": "uploadId"}
_KNOWN = {"Bucket", "Key", "Body", *_HEADERS, *_QUERY}
_SILENCE = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What the end of the time for one system call is raised as."""

_REDIRECTS = frozenset({301, 302, 307, 308})
_OTHER_REGION = "AuthorizationHeaderMalformed"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a bucket is: its server, and what stands before a key in the target of a request."""

    url: str
    prefix: str
    pool: HttpPool


class DirectClient:
    """Sends the operations that carry bytes, with the arguments, answers and errors of the boto3 client it stands for.

    ``Body`` of a GET's answer is a context manager that provides itself.
    """

    def __init__(self, client: Any, settings: S3Settings) -> None:
        self._client = client
        self._settings = settings
        self._credentials = client._request_signer._credentials  # noqa: SLF001 - refreshed, and found nowhere else
        self._parser = create_parser("rest-xml")
        self._place = self._find_place()

    def send(self, operation: str, **arguments: Any) -> Any:
        """Send a request; raise what boto3 raises."""
        place = self._place
        if place is not None and arguments.keys() <= _KNOWN:
            answer = self._request(place, operation, arguments)
            if answer.status not in _REDIRECTS:
                return self._understood(answer, operation)
            answer.close()
            self._place = None  # boto3 follows to another region, and remembers
        if isinstance(body := arguments.get("Body"), PartBody):
            body.seek(0)
        return getattr(self._client, operation)(**arguments)

    def _request(self, place: _Place, operation: str, arguments: Mapping[str, Any]) -> Answer:
        method, body = _OPERATIONS[operation][0], arguments.get("Body")
        query = "&".join(
            f"{_QUERY[name]}={percent_encode(str(value), safe='-._~')}"
            for name, value in arguments.items()
            if name in _QUERY
        )
        target = place.prefix + percent_encode(arguments["Key"], safe="/~") + f"?{query}" * bool(query)
        headers = {_HEADERS[name]: value for name, value in arguments.items() if name in _HEADERS}
        signed = self._signed(method, place.url + target, headers)
        if body is not None:  # not signed, as boto3 does not: a proxy that sends a body on may say its length anew
            signed["Content-Length"] = str(len(body))
        try:
            with logged(method, place.url + target, signed) as exchange:
                answer = place.pool.request(method, target, signed, _blocks(body))
                if exchange is not None:
                    exchange.answered(answer.status, dict(answer.headers.items()))
                return answer
        except (OSError, http.client.HTTPException) as error:
            raise _translated(error, place.url) from error

    def _signed(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        config = self._client.meta.config
        request = AWSRequest(method, url, headers={"User-Agent": config.user_agent, **headers})
        request.context["client_config"] = config  # which says that bodies are not hashed
        credentials = self._credentials.get_frozen_credentials()
        S3SigV4Auth(credentials, "s3", self._client.meta.region_name).add_auth(request)
        return dict(request.headers.items())

    def _understood(self, answer: Answer, operation: str) -> Any:
        """Read an answer, but for a body of bytes; raise ClientError if it is a refusal."""
        is_refusal, name = answer.status >= 300, _OPERATIONS[operation][1]
        if operation == "get_object" and not is_refusal:
            return self._parsed(answer, name, b"") | {"Body": DirectBody(answer)}
        try:
            with answer:
                parsed = self._parsed(answer, name, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise botocore.exceptions.ResponseStreamingError(error=error) from error
        if not is_refusal:
            return parsed
        if parsed.get("Error", {}).get("Code") == _OTHER_REGION:
            self._place = None
        raise ClientError(parsed, name)

    def _parsed(self, answer: Answer, name: str, body: bytes) -> dict[str, Any]:
        headers = HeadersDict(dict(answer.headers.items()))
        found = {"headers": headers, "status_code": answer.status, "body": body, "context": {}}
        shape = self._client.meta.service_model.operation_model(name).output_shape
        parsed: dict[str, Any] = self._parser.parse(found, shape)
        return parsed

    def _find_place(self) -> _Place | None:
        """Ask botocore where the bucket is; None if requests go there in a way that is boto3's alone."""
        settings, config = self._settings, self._client.meta.config
        if self._credentials is None or config.client_cert:
            return None
        try:
            url = self._client.generate_presigned_url("get_object", Params={"Bucket": settings.bucket, "Key": "k"})
        except BotoCoreError:  # boto3 will say so in its own words
            return None
        parts = urlsplit(url)
        session = self._client._endpoint.http_session  # noqa: SLF001 - what it was made with, whatever that came from
        if session._proxy_config.proxy_url_for(url) or parts.hostname is None or not parts.path.endswith("/k"):  # noqa: SLF001
            return None
        tls = _tls_context(session._verify) if parts.scheme == "https" else None  # noqa: SLF001
        port = parts.port or (443 if tls else 80)
        server = Server(parts.hostname, port, tls, settings.connect_timeout_s, settings.read_timeout_s)
        pool = HttpPool(server, settings.connection_count)
        return _Place(f"{parts.scheme}://{parts.netloc}", parts.path.removesuffix("k"), pool)


class DirectBody:
    """The body of an answer to a GET."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def readinto(self, target: memoryview) -> int:
        """Fill a buffer; return how many bytes there were."""
        try:
            return self._answer.readinto(target)
        except _SILENCE as error:
            raise botocore.exceptions.ReadTimeoutError(endpoint_url="", error=error) from error
        except http.client.HTTPException as error:
            raise botocore.exceptions.ResponseStreamingError(error=error) from error

    def shutdown(self) -> None:
        """Break it off, from another thread."""
        self._answer.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()


def _blocks(body: Any) -> Iterator[Body]:
    """Yield a body block by block; a file is asked for each, so that it can break the transfer off."""
    if isinstance(body, PartBody):
        while block := body.read(0):
            yield block
    elif body:
        yield body


def _tls_context(ca_bundle: str | bool) -> ssl.SSLContext:
    context: ssl.SSLContext = create_urllib3_context()
    if not ca_bundle:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(get_cert_path(ca_bundle))
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    return context


def _translated(error: Exception, url: str) -> BotoCoreError:
    """Return botocore's error for one of a connection."""
    kinds = botocore.exceptions
    about: dict[str, Any] = {"endpoint_url": url, "error": error}
    match error:
        case _ if isinstance(error, _SILENCE):
            return kinds.ReadTimeoutError(**about)
        case ssl.SSLError():
            return kinds.SSLError(**about)
        case TimeoutError():
            return kinds.ConnectTimeoutError(**about)
        case BrokenPipeError() | ConnectionResetError() | ConnectionAbortedError() | http.client.HTTPException():
            return kinds.ConnectionClosedError(**about)
        case _:
            return kinds.EndpointConnectionError(**about)
