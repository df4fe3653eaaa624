"""The roofline: requests that a conversion made, made again with nothing in between.

The requests are those that a proxy saw: every GET and every part and object that was sent, in the order in which they
began, as many at once as the conversion has in flight. What is read goes into one buffer a thread and is
forgotten, what is sent comes from one buffer. Listings, HEADs and deletions are left out.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from reshard.storage import Store, Upload, open_location
from reshard.storage.s3_client import find_settings, make_client
from reshard.tensor import ByteRange

Request = Mapping[str, Any]
_BLOCK_BYTES = 1 << 20


class Transport(Protocol):
    """How bytes get to a store and back."""

    def get(self, request: Request, into: memoryview) -> None:
        """Fill a buffer with a range."""
        ...

    def send(self, request: Request, body: memoryview, upload: str | None) -> str:
        """Send a part of an upload, or an object; return its etag."""
        ...


def chosen(requests: Iterable[Request], target: str) -> list[Request]:
    """What of the requests seen moves bytes: the target in a bucket of another name.

    Raises
    ------
    ValueError
        The store copied something, which no client can do in its place.
    """
    if any(request["kind"] == "copy" for request in requests):
        raise ValueError("a roofline is for conversions that copy nothing within the store")
    moving = [r for r in requests if r["kind"] in ("get", "put", "part") and r["status"] in (200, 206)]
    return [{**r, "bucket": target} if r["kind"] != "get" else r for r in moving if nbytes_of(r)]


def nbytes_of(request: Request) -> int:
    """Bytes of content."""
    return int(request["received_bytes"] if request["kind"] == "get" else request["sent_bytes"])


class Boto:
    """reshard's own client, set as reshard sets it."""

    def __init__(self, requests: Sequence[Request]) -> None:
        buckets = {request["bucket"] for request in requests}
        self._stores = {bucket: open_location(f"s3://{bucket}").store for bucket in buckets}

    def get(self, request: Request, into: memoryview) -> None:
        """Fill a buffer with a range."""
        start = request.get("start", 0)
        self._stores[request["bucket"]].read_into(request["key"], ByteRange(start, start + len(into)), into)

    def send(self, request: Request, body: memoryview, upload: str | None) -> str:
        """Send a part of an upload, or an object."""
        store = self._stores[request["bucket"]]
        assert isinstance(store, Store)
        if upload is None:
            return store.put(request["key"], body).etag
        return store.upload_part(Upload(request["key"], upload), request["number"], 0, body).etag


class Bare:
    """http.client and presigned URLs: the least that a client in Python can do."""

    def __init__(self, requests: Sequence[Request]) -> None:
        buckets = {request["bucket"] for request in requests}
        self._signers = {bucket: make_client(find_settings("s3", bucket)) for bucket in buckets}
        self._mine = threading.local()

    def get(self, request: Request, into: memoryview) -> None:
        """Fill a buffer with a range."""
        start = request.get("start", 0)
        url = self._url("get_object", request)
        with self._answer("GET", url, {"Range": f"bytes={start}-{start + len(into) - 1}"}) as answer:
            place = 0
            while place < len(into) and (got := answer.readinto(into[place : place + _BLOCK_BYTES])):
                place += got
            if place < len(into) or answer.status != 206:
                raise OSError(f"{url}: {answer.status}, {place} of {len(into)} bytes")

    def send(self, request: Request, body: memoryview, upload: str | None) -> str:
        """Send a part of an upload, or an object."""
        more = {} if upload is None else {"UploadId": upload, "PartNumber": request["number"]}
        url = self._url("put_object" if upload is None else "upload_part", request, **more)
        with self._answer("PUT", url, {"Content-Length": str(len(body))}, body) as answer:
            answer.read()
            if answer.status != 200:
                raise OSError(f"{url}: {answer.status}")
            return str(answer.headers["ETag"]).strip('"')

    def _url(self, operation: str, request: Request, **more: Any) -> str:
        where = {"Bucket": request["bucket"], "Key": request["key"], **more}
        return str(self._signers[request["bucket"]].generate_presigned_url(operation, where))

    @contextlib.contextmanager
    def _answer(
        self, method: str, url: str, headers: Mapping[str, str], body: memoryview | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urllib.parse.urlsplit(url)
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        self._mine.connection.request(method, f"{parts.path}?{parts.query}", body, headers)
        yield self._mine.connection.getresponse()


TRANSPORTS: Mapping[str, Callable[[Sequence[Request]], Transport]] = {"roofline": Boto, "roofline_http": Bare}


def replay(requests: Sequence[Request], concurrency: int, transport: Transport) -> None:
    """Make all the requests."""
    sent = [request for request in requests if request["kind"] != "get"]
    clients = {bucket: make_client(find_settings("s3", bucket)) for bucket in {r["bucket"] for r in sent}}
    objects = {(r["bucket"], r["key"]) for r in sent if r["kind"] == "part"}
    uploads = {(b, k): clients[b].create_multipart_upload(Bucket=b, Key=k)["UploadId"] for b, k in sorted(objects)}
    etags: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    body = memoryview(os.urandom(max(map(nbytes_of, sent), default=0)))
    longest, mine = max((nbytes_of(r) for r in requests if r["kind"] == "get"), default=0), threading.local()

    def make(request: Request) -> None:
        nbytes, place = nbytes_of(request), (request["bucket"], request["key"])
        if request["kind"] == "get":
            if not hasattr(mine, "buffer"):
                mine.buffer = memoryview(bytearray(longest))
            transport.get(request, mine.buffer[:nbytes])
        elif request["kind"] == "put":
            transport.send(request, body[:nbytes], None)
        else:
            etag = transport.send(request, body[:nbytes], uploads[place])
            etags[place].append({"PartNumber": request["number"], "ETag": etag})

    with ThreadPoolExecutor(concurrency) as pool:
        for _ in pool.map(make, requests):
            pass
        for place, found in etags.items():
            parts = {"Parts": sorted(found, key=lambda part: int(part["PartNumber"]))}
            where = {"Bucket": place[0], "Key": place[1], "UploadId": uploads[place]}
            clients[place[0]].complete_multipart_upload(**where, MultipartUpload=parts)
