"""A proxy before an S3 server, plain or ending TLS: it does to requests what networks, proxies and stores do."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import parse_qs, urlsplit

from .s3_servers import S3Server

Kind = Literal[
    "get", "head", "list", "put", "part", "copy", "create", "complete", "abort", "delete", "list_parts", "list_uploads"
]
"""Requests by what they do; ``get``, ``head``, ``put`` and ``delete`` are those of objects."""

_XML = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>made up</Message></Error>"
_GARBAGE = b"\x17\x03\x03\x00\x20" + bytes(32)
_LINGER = struct.pack("ii", 1, 0)
_SILENT_S = 20.0
_TRICKLE_S = 0.05


def kind_of(verb: str, path: str, headers: Mapping[str, str]) -> Kind:
    """Tell what a request does."""
    split = urlsplit(path)
    query = parse_qs(split.query, keep_blank_values=True)
    is_bucket = split.path.strip("/").count("/") == 0
    if verb == "POST":
        return "create" if "uploads" in query else "complete"
    if verb == "PUT":
        return ("copy" if "x-amz-copy-source" in headers else "part") if "partNumber" in query else "put"
    if verb == "DELETE":
        return "abort" if "uploadId" in query else "delete"
    if verb == "HEAD":
        return "head"
    if "uploads" in query:
        return "list_uploads"
    return "list_parts" if "uploadId" in query else "list" if is_bucket else "get"


class Rule(Protocol):
    """Decides what happens to a request; called from many threads, for each request once."""

    def fault(self, kind: Kind, nbytes: int) -> Fault | None:
        """Return what goes wrong with a request of a kind, whose body has so many bytes; None for nothing."""


@dataclass
class Counting:
    """Nothing goes wrong; requests are counted."""

    seen: Counter[Kind] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, kind: Kind, nbytes: int) -> Fault | None:
        with self._lock:
            self.seen[kind] += 1
        return None


@dataclass
class Chosen:
    """One fault, at the n-th request of each of some kinds; ``hit`` are those that it has struck."""

    what: Fault
    at: Mapping[Kind, int]
    hit: set[Kind] = field(default_factory=set)
    seen: Counter[Kind] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, kind: Kind, nbytes: int) -> Fault | None:
        with self._lock:
            self.seen[kind] += 1
            if self.seen[kind] != self.at.get(kind):
                return None
            self.hit.add(kind)
            return self.what


@dataclass
class Damages:
    """Every so many bodies of one kind are damaged, ``count`` so far: sent ones, or those of answers to GETs."""

    kind: Kind
    damage: Literal["flip", "drop"]
    every: int
    seen: int = 0
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, kind: Kind, nbytes: int) -> Fault | None:
        if kind != self.kind or (kind != "get" and not nbytes):
            return None
        with self._lock:
            self.seen += 1
            if self.seen % self.every:
                return None
            self.count += 1
            # Each time another bit: what is damaged twice in one way no second read can show.
            return damaged_answer(self.damage, self.count) if kind == "get" else damaged_body(self.damage, self.count)


@contextlib.contextmanager
def faulty(server: S3Server, rule: Rule, folder: Path | None = None) -> Iterator[S3Server]:
    """The server behind the proxy; over TLS, under an authority of its own, if there is a folder for it."""

    class Handler(Exchange):
        pass

    Handler.rule, Handler.backend, Handler.is_over = rule, urlsplit(server.endpoint).netloc, threading.Event()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    proxy.block_on_close = False
    ca_file = None
    if folder is not None:
        ca_file = str(folder / "proxy-ca.pem")
        proxy.socket = _tls_context(ca_file).wrap_socket(
            proxy.socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    scheme = "https" if folder is not None else "http"
    try:
        endpoint = f"{scheme}://127.0.0.1:{proxy.server_port}"
        yield replace(server, name=f"{server.name}-faulty", endpoint=endpoint, ca_file=ca_file)
    finally:
        Handler.is_over.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join(5)


def _tls_context(ca_file: str) -> ssl.SSLContext:
    import trustme

    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(ca_file)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@dataclass(frozen=True)
class Answer:
    """What the server has answered; HEAD tells a length without a body."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    length: int

    def with_body(self, body: bytes) -> Answer:
        return replace(self, body=body, length=len(body))


class _GoneError(Exception):
    """The connection has been closed, and nothing more is said."""


class Exchange(BaseHTTPRequestHandler):
    """One connection."""

    rule: Rule
    backend: str
    is_over: threading.Event
    protocol_version = "HTTP/1.1"
    timeout = 30

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.backend, timeout=30)

    def finish(self) -> None:
        self.upstream.close()
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, _GoneError):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        fault = self.rule.fault(kind_of(self.command, self.path, self.headers), self.sent_bytes)
        (fault or _nothing)(self)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    @property
    def sent_bytes(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def received(self, nbytes: int | None = None) -> bytes:
        """Read the body of the request."""
        return self.rfile.read(self.sent_bytes if nbytes is None else nbytes)

    def forwarded(self, body: bytes) -> Answer:
        """Have the server do it."""
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("content-length", "expect", "connection"):
                self.upstream.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            self.upstream.putheader("Content-Length", str(len(body)))
        self.upstream.endheaders(body)
        answer = self.upstream.getresponse()
        data = answer.read()
        length = int(answer.headers.get("Content-Length", 0)) if self.command == "HEAD" else len(data)
        return Answer(answer.status, answer.reason, answer.headers.items(), data, length)

    def begin(self, answer: Answer) -> None:
        """Send all of an answer but its body."""
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length))
        self.end_headers()

    def answer(self, answer: Answer) -> None:
        self.begin(answer)
        self.wfile.write(answer.body)

    def refuse(self, status: int, body: str, headers: Mapping[str, str] = {}) -> None:
        """Answer without asking the server; HEAD has no body."""
        self.received()
        data = b"" if self.command == "HEAD" else body.encode()
        self.answer(Answer(status, "Made up", list(headers.items()), data, len(data)))

    def close(self) -> None:
        """End the connection as a server does that has no more to say."""
        self.close_connection = True
        raise _GoneError

    def reset(self) -> None:
        """End the connection as a machine does that knows nothing of it."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self.rfile.close()
        self.connection.close()
        raise _GoneError

    def be_silent(self) -> None:
        self.is_over.wait(_SILENT_S)
        self.reset()


Fault = Callable[[Exchange], None]


def _nothing(x: Exchange) -> None:
    x.answer(x.forwarded(x.received()))


# Bytes.


def changed(data: bytes, damage: str, number: int = 1) -> bytes:
    """Flip a bit, or lose the last byte together with its place in Content-Length."""
    if not data or damage == "drop":
        return data[:-1]
    at, bit = (len(data) // 2 + 4099 * number) % len(data), 1 << number % 8
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def damaged_body(damage: str, number: int = 1) -> Fault:
    return lambda x: x.answer(x.forwarded(changed(x.received(), damage, number)))


def damaged_answer(damage: str, number: int = 1) -> Fault:
    def fault(x: Exchange) -> None:
        answer = x.forwarded(x.received())
        x.answer(answer.with_body(changed(answer.body, damage, number)) if answer.status in (200, 206) else answer)

    return fault


# Answers.


def status(number: int, code: str = "", **headers: str) -> Fault:
    """An error of the store, or without a code one of something before it, which speaks no XML."""
    body = _XML.format(code) if code else "<html><body>Made up</body></html>"
    return lambda x: x.refuse(number, body, headers)


def inner_error(code: str, *, is_done: bool) -> Fault:
    """200, and inside an error; with ``is_done`` the request has been carried out nevertheless."""

    def fault(x: Exchange) -> None:
        if is_done:
            x.forwarded(x.received())
            data = _XML.format(code).encode()
            x.answer(Answer(200, "OK", [], data, len(data)))
        else:
            x.refuse(200, _XML.format(code))

    return fault


def redirected(x: Exchange) -> None:
    """To the same address: as a store does while the name of a new bucket spreads."""
    x.refuse(307, _XML.format("TemporaryRedirect"), {"Location": f"http://{x.backend}{x.path}"})


def lying_etag(x: Exchange) -> None:
    answer = x.forwarded(x.received())
    headers = [(name, '"' + "0" * 32 + '"' if name.lower() == "etag" else value) for name, value in answer.headers]
    told = re.sub(rb"<ETag>.*?</ETag>", b"<ETag>&quot;" + b"0" * 32 + b"&quot;</ETag>", answer.body)
    is_document = x.command != "HEAD" and answer.body.startswith(b"<?xml")
    x.answer(replace(answer.with_body(told) if is_document else answer, headers=headers))


def stale_listing(x: Exchange) -> None:
    """As if the newest object were not there yet."""
    answer = x.forwarded(x.received())
    last = rb"<Contents>(?:(?!<Contents>).)*</Contents>(?!.*<Contents>)"
    x.answer(answer.with_body(re.sub(last, b"", answer.body, flags=re.DOTALL)))


def wrong_length(more: int) -> Fault:
    """Content-Length is not that of the body; what is said to follow never comes."""

    def fault(x: Exchange) -> None:
        answer = x.forwarded(x.received())
        x.begin(replace(answer, length=max(0, answer.length + more)))
        x.wfile.write(answer.body)
        if x.command != "HEAD":
            x.close()

    return fault


# Connections.


def reset_before(x: Exchange) -> None:
    x.reset()


def reset_sending(x: Exchange) -> None:
    x.received(x.sent_bytes // 2)
    x.reset()


def lost_answer(x: Exchange) -> None:
    """It is done, and nobody hears of it: the request comes again."""
    x.forwarded(x.received())
    x.reset()


def closed_before(x: Exchange) -> None:
    x.received()
    x.close()


def _half_of(x: Exchange) -> Answer:
    answer = x.forwarded(x.received())
    x.begin(answer)
    x.wfile.write(answer.body[: len(answer.body) // 2])
    return answer


def reset_inside(x: Exchange) -> None:
    _half_of(x)
    x.reset()


def cut_off(x: Exchange) -> None:
    _half_of(x)
    x.close()


def trickling(x: Exchange) -> None:
    answer = _half_of(x)
    for byte in answer.body[len(answer.body) // 2 :]:
        if x.is_over.wait(_TRICKLE_S):
            break
        x.wfile.write(bytes([byte]))
    x.reset()


def silent(x: Exchange) -> None:
    x.received()
    x.be_silent()


def silent_when_done(x: Exchange) -> None:
    x.forwarded(x.received())
    x.be_silent()


def delivered_twice(x: Exchange) -> None:
    """As after a lost answer, by something between that sends again by itself."""
    body = x.received()
    x.forwarded(body)
    x.answer(x.forwarded(body))


def garbled(x: Exchange) -> None:
    """Half an answer; where there is TLS then bytes that belong to nothing, which break it."""
    _half_of(x)
    if isinstance(x.connection, ssl.SSLSocket):
        socket.socket.sendall(x.connection, _GARBAGE)
        time.sleep(0.02)
    x.close()


def garbage(x: Exchange) -> None:
    """Something that is no answer at all."""
    x.received()
    x.wfile.write(bytes(range(256)) + b"\r\n\r\n")
    x.close()
