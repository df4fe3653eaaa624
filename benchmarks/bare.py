"""The barest client: requests that a conversion made, by http.client and threads, unsigned, with nothing imported else.

What is read goes into one buffer a thread and is forgotten; what is sent comes from one buffer. It is for
:mod:`null_server`, which asks for no signature. ``python benchmarks/bare.py REQUESTS.json TARGET_BUCKET THREADS``.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import ssl
import sys
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20


class Client:
    """A connection and a buffer for each thread."""

    def __init__(self, endpoint: str, longest: int) -> None:
        self._address = urllib.parse.urlsplit(endpoint)
        self._longest = longest
        self._mine = threading.local()
        bundle = os.environ.get("AWS_CA_BUNDLE")
        self._context = ssl.create_default_context(cafile=bundle) if self._address.scheme == "https" else None

    def get(self, address: str, start: int, nbytes: int) -> None:
        """Receive a range."""
        answer = self._ask("GET", address, None, {"Range": f"bytes={start}-{start + nbytes - 1}"})
        if not hasattr(self._mine, "buffer"):
            self._mine.buffer = memoryview(mmap.mmap(-1, self._longest))
        place = 0
        while place < nbytes and (got := answer.readinto(self._mine.buffer[place : min(nbytes, place + _BLOCK_BYTES)])):
            place += got
        if place < nbytes:
            raise OSError(f"{address}: {place} of {nbytes} bytes")

    def send(self, method: str, address: str, body: memoryview | bytes) -> bytes:
        """Send a body, and return the answer."""
        return self._ask(method, address, body, {"Content-Length": str(len(body))}).read()

    def _ask(
        self, method: str, address: str, body: memoryview | bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        if not hasattr(self._mine, "connection"):
            host, context = self._address.netloc, self._context
            self._mine.connection = (
                http.client.HTTPSConnection(host, context=context) if context else http.client.HTTPConnection(host)
            )
        self._mine.connection.request(method, address, body, headers)
        answer: http.client.HTTPResponse = self._mine.connection.getresponse()
        if answer.status not in (200, 206):
            raise OSError(f"{method} {address}: {answer.status}")
        return answer


def main() -> None:
    """Make all requests, and complete the uploads."""
    path, target, threads = sys.argv[1:]
    requests: list[dict[str, Any]] = [r for r in json.loads(Path(path).read_text()) if r["kind"] in _KINDS]
    lengths = [r["received_bytes"] if r["kind"] == "get" else r["sent_bytes"] for r in requests]
    client = Client(os.environ["AWS_ENDPOINT_URL"], max(lengths))
    body = memoryview(mmap.mmap(-1, max(lengths)))
    uploads: dict[str, str] = {}
    for key in {r["key"] for r in requests if r["kind"] == "part"}:
        told = client.send("POST", f"/{target}/{key}?uploads", b"").decode()
        uploads[key] = told.partition("<UploadId>")[2].partition("<")[0]

    def make(request: dict[str, Any], nbytes: int) -> None:
        if request["kind"] == "get":
            client.get(f"/{request['bucket']}/{request['key']}", request.get("start", 0), nbytes)
        elif request["kind"] == "put":
            client.send("PUT", f"/{target}/{request['key']}", body[:nbytes])
        else:
            where = f"partNumber={request['number']}&uploadId={uploads[request['key']]}"
            client.send("PUT", f"/{target}/{request['key']}?{where}", body[:nbytes])

    with ThreadPoolExecutor(int(threads)) as pool:
        for _ in pool.map(make, requests, lengths):
            pass
    for key, upload in uploads.items():
        client.send("POST", f"/{target}/{key}?uploadId={upload}", b"")


_KINDS = ("get", "put", "part")

if __name__ == "__main__":
    main()
