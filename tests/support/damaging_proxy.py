"""A proxy before an S3 server that ends TLS, and damages every k-th body of one kind on its way."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from .s3_servers import S3Server

Kind = Literal["get", "part", "put"]
"""Bodies of answers to GETs of objects, of upload parts, and of objects that are PUT whole."""

Damage = Literal["flip", "drop"]
"""One bit changes, or the last byte is lost together with its place in Content-Length."""

_LISTINGS = {"list-type", "prefix", "uploads", "uploadId", "location", "delimiter", "marker"}


@dataclass
class Damages:
    """What is damaged: ``count`` bodies so far of those ``seen``; the first of ``every`` so many are left alone."""

    kind: Kind
    damage: Damage
    every: int
    seen: int = 0
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, kind: Kind | None, body: bytes) -> bytes:
        if kind != self.kind or not body:
            return body
        with self._lock:
            self.seen += 1
            if self.seen % self.every:
                return body
            self.count += 1
            number = self.count
        if self.damage == "drop":
            return body[:-1]
        # Each time another one: what is damaged twice in one way no second read can show.
        at, bit = (len(body) // 2 + 4099 * number) % len(body), 1 << number % 8
        return body[:at] + bytes([body[at] ^ bit]) + body[at + 1 :]


@contextlib.contextmanager
def damaging(server: S3Server, damages: Damages, folder: Path | None = None) -> Iterator[S3Server]:
    """The server behind the proxy; over TLS, under an authority of its own, if there is a folder for it."""

    class Handler(_Handler):
        pass

    Handler.damages, Handler.backend = damages, urlsplit(server.endpoint).netloc
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    ca_file = None
    if folder is not None:
        import trustme

        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.cert_pem.write_to_path(folder / "proxy-ca.pem")
        authority.issue_cert("127.0.0.1").configure_cert(context)
        proxy.socket = context.wrap_socket(proxy.socket, server_side=True, do_handshake_on_connect=False)
        ca_file = str(folder / "proxy-ca.pem")
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    scheme = "https" if folder is not None else "http"
    try:
        endpoint = f"{scheme}://127.0.0.1:{proxy.server_port}"
        yield replace(server, name=f"{server.name}-damaged", endpoint=endpoint, ca_file=ca_file)
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    damages: Damages
    backend: str
    protocol_version = "HTTP/1.1"
    timeout = 30

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.backend, timeout=30)

    def finish(self) -> None:
        self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            super().handle()

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = self.damages.of(self._kind_sent(), body)
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("content-length", "expect", "connection"):
                self.upstream.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            self.upstream.putheader("Content-Length", str(len(body)))
        self.upstream.endheaders(body)
        answer = self.upstream.getresponse()
        data = answer.read()
        if self.command == "GET" and answer.status in (200, 206) and self._kind_sent() is None:
            data = self.damages.of(self._kind_received(), data)
        self.send_response_only(answer.status, answer.reason)
        length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def _kind_sent(self) -> Kind | None:
        if self.command != "PUT" or "x-amz-copy-source" in self.headers:
            return None
        return "part" if "partNumber" in parse_qs(urlsplit(self.path).query) else "put"

    def _kind_received(self) -> Kind | None:
        address = urlsplit(self.path)
        is_object = address.path.strip("/").count("/") >= 1 and not _LISTINGS & parse_qs(address.query).keys()
        return "get" if is_object else None

    def log_message(self, *_: object) -> None:
        pass
