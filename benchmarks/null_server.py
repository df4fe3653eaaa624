"""The barest S3 server: objects are files that go out by sendfile, and what comes in is counted and dropped.

Beside it nearly all CPU of a transfer is the client's. It keeps bodies of its bucket ``source``, and small ones; of all
others it keeps lengths only, and tells the kernel to drop their bytes unseen. It checks no signature, and a checksum
only of small bodies: that is how a client finds out what it checks.
``python benchmarks/null_server.py FOLDER [--tls CERTIFICATE KEY]`` prints its port. ``--delay-ms`` holds every request
back, and ``--rate`` bounds the bytes a second of each connection, in both directions, as a far store does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sources import BUCKET

from reshard.api.option_field import parse_size
from reshard.storage.checksums import crc_of

SMALL_BYTES = 64 << 10
_STEP_BYTES = 256 << 10
_BLOCK_BYTES = 1 << 20
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass
class Body:
    """What is known of an object or a part: its length and etag, and the file that has its bytes if they are kept."""

    nbytes: int
    etag: str
    path: Path | None = None


@dataclass
class Held:
    """All that the server has, by bucket and key, or by upload."""

    folder: Path
    objects: dict[str, Body] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[int, Body]]] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def new(self, nbytes: int, path: Path | None = None) -> Body:
        """Make a body with an etag of its own."""
        return Body(nbytes, f"{next(self.numbers):032x}", path)


@dataclass(frozen=True)
class Distance:
    """How far away the store seems: seconds before an answer, and bytes a second of a connection (0: any)."""

    delay_s: float = 0.0
    rate: int = 0


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: NullServer

    def parse_request(self) -> bool:
        """Read the address too."""
        if not super().parse_request():
            return False
        address = urllib.parse.urlsplit(self.path)
        self.key = urllib.parse.unquote(address.path).strip("/")
        self.query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        self.held = self.server.held
        time.sleep(self.server.distance.delay_s)
        return True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Tell an object's length and etag."""
        if (body := self.held.objects.get(self.key)) is None:
            return self._answer(404)
        return self._answer(200, length=body.nbytes, ETag=f'"{body.etag}"')

    def do_GET(self) -> None:
        """Send a range of an object, or list objects or uploads."""
        if "/" not in self.key or "uploadId" in self.query:
            return self._list()
        body = self.held.objects.get(self.key)
        if body is None or body.path is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        start, stop = 0, body.nbytes
        status = 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(stop, int(last) + 1), 206
        told = {"ETag": f'"{body.etag}"', "Content-Range": f"bytes {start}-{stop - 1}/{body.nbytes}"}
        self._answer(status, length=stop - start, **told)
        if start == stop:
            return None
        with body.path.open("rb") as file:
            if not isinstance(self.connection, ssl.SSLSocket):
                for first, nbytes in self._steps(start, stop):
                    self.connection.sendfile(file, first, nbytes)
                return None
            file.seek(start)
            while start < stop:
                data = file.read(min(_BLOCK_BYTES, stop - start))
                self.connection.sendall(data)
                start += len(data)
        return None

    def do_PUT(self) -> None:
        """Take an object or a part, or make a bucket."""
        nbytes = int(self.headers.get("Content-Length") or 0)
        if "x-amz-copy-source" in self.headers:
            return self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
        checksum = self.headers.get("x-amz-checksum-crc32c")
        body, crc = self._take(nbytes)
        if checksum and crc and checksum != crc:
            return self._answer(400, b"<Error><Code>BadDigest</Code></Error>")
        if (upload := self.query.get("uploadId")) is not None:
            self.held.uploads[upload][1][int(self.query["partNumber"])] = body
        else:
            self.held.objects[self.key] = body
        told = {"x-amz-checksum-crc32c": checksum} if checksum else {}
        return self._answer(200, ETag=f'"{body.etag}"', **told)

    def do_POST(self) -> None:
        """Open or complete an upload."""
        document = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "uploads" in self.query:
            upload = f"upload{next(self.held.numbers)}"
            self.held.uploads[upload] = (self.key, {})
            kind = self.headers.get("x-amz-checksum-type")
            told = {"x-amz-checksum-algorithm": "CRC32C", "x-amz-checksum-type": kind} if kind else {}
            return self._answer(200, _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"), **told)
        del document  # it names the parts that were sent; each was sent once
        key, parts = self.held.uploads.pop(self.query["uploadId"])
        body = self.held.new(sum(part.nbytes for part in parts.values()))
        if all(part.path is not None for part in parts.values()):
            body.path = self.held.folder / body.etag
            with body.path.open("wb") as file:
                for _, part in sorted(parts.items()):
                    with part.path.open("rb") as source:  # type: ignore[union-attr]
                        shutil.copyfileobj(source, file, _BLOCK_BYTES)
                    part.path.unlink()  # type: ignore[union-attr]
        self.held.objects[key] = body
        return self._answer(200, _xml("CompleteMultipartUploadResult", f'<ETag>"{body.etag}"</ETag>'))

    def do_DELETE(self) -> None:
        """Remove an object or an upload."""
        if "uploadId" in self.query:
            self.held.uploads.pop(self.query["uploadId"], None)
        elif (body := self.held.objects.pop(self.key, None)) is not None and body.path is not None:
            body.path.unlink()
        self._answer(204)

    def _take(self, nbytes: int) -> tuple[Body, str]:
        """Receive a body: keep it, or have the kernel drop it; return its checksum if it is small."""
        keeps = nbytes <= SMALL_BYTES or self.key.startswith(f"{BUCKET}/")
        if keeps:
            data = self.rfile.read(nbytes)
            body = self.held.new(nbytes)
            body.path = self.held.folder / body.etag
            body.path.write_bytes(data)
            crc = crc_of(data) if nbytes <= SMALL_BYTES else None
            return body, b64encode(crc.to_bytes(4, "big")).decode() if crc is not None else ""
        here = len(self.rfile.read(min(nbytes, len(self.rfile.peek()))))  # type: ignore[attr-defined]
        flags = 0 if isinstance(self.connection, ssl.SSLSocket) else socket.MSG_TRUNC
        for _, left in self._steps(here, nbytes):
            while left:
                left -= self.connection.recv_into(self.server.sinks.mine(), min(left, _BLOCK_BYTES), flags)
        return self.held.new(nbytes), ""

    def _steps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Divide a body into stretches, given as first byte and length, that keep to the rate of a connection."""
        if not (rate := self.server.distance.rate):
            yield start, stop - start
            return
        begun_s = time.monotonic()
        for first in range(start, stop, _STEP_BYTES):
            end = min(stop, first + _STEP_BYTES)
            yield first, end - first
            time.sleep(max(0.0, begun_s + (end - start) / rate - time.monotonic()))

    def _list(self) -> None:
        if "uploadId" in self.query:
            found = self.held.uploads.get(self.query["uploadId"], ("", {}))[1]
            rows = "".join(
                f'<Part><PartNumber>{n}</PartNumber><ETag>"{part.etag}"</ETag><Size>{part.nbytes}</Size></Part>'
                for n, part in sorted(found.items())
            )
            return self._answer(200, _xml("ListPartsResult", rows + "<IsTruncated>false</IsTruncated>"))
        start = f"{self.key}/{self.query.get('prefix', '')}"
        skip = len(self.key) + 1
        if "uploads" in self.query:
            open_ones = [(u, key) for u, (key, _) in self.held.uploads.items() if key.startswith(start)]
            rows = "".join(
                f"<Upload><Key>{key[skip:]}</Key><UploadId>{upload}</UploadId></Upload>" for upload, key in open_ones
            )
            return self._answer(200, _xml("ListMultipartUploadsResult", rows + "<IsTruncated>false</IsTruncated>"))
        rows = "".join(
            f'<Contents><Key>{key[skip:]}</Key><Size>{body.nbytes}</Size><ETag>"{body.etag}"</ETag></Contents>'
            for key, body in sorted(self.held.objects.items())
            if key.startswith(start)
        )
        return self._answer(200, _xml("ListBucketResult", rows + "<IsTruncated>false</IsTruncated>"))

    def _answer(self, status: int, content: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if content and self.command != "HEAD":
            self.wfile.write(content)


class Sinks(threading.local):
    """A block of memory for each connection, for what nobody looks at."""

    def __init__(self) -> None:
        self._block = bytearray(_BLOCK_BYTES)

    def mine(self) -> bytearray:
        """Return that of this thread."""
        return self._block


NEAR = Distance()


class NullServer(ThreadingHTTPServer):
    """The server; plain, or behind TLS with a certificate and its key."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, tls: tuple[str, str] | None = None, distance: Distance = NEAR) -> None:
        self.held = Held(folder)
        self.distance = distance
        self.sinks = Sinks()
        self._context = None
        if tls is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(*tls)
        super().__init__(("127.0.0.1", 0), Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Deal with one connection, in its thread."""
        with contextlib.suppress(OSError):  # the client is gone
            if self._context is not None:
                request = self._context.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)

    def handle_error(self, *_: Any) -> None:
        """A client that breaks off is none."""
        if not isinstance(sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1], OSError):
            super().handle_error(*_)


def _xml(name: str, content: str) -> bytes:
    return f'<?xml version="1.0"?><{name} xmlns="{_NAMESPACE}">{content}</{name}>'.encode()


def main() -> None:
    """Serve until standard input ends, as it does with whoever started this."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--rate", type=parse_size, default=0)
    asked = parser.parse_args()
    server = NullServer(asked.folder, asked.tls, Distance(asked.delay_ms / 1000, asked.rate))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
