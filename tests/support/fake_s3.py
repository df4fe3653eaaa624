"""A tiny HTTP/1.1 server that answers GET and PUT like S3 does, or misbehaves by a script."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_XML = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>"
_HALVES = ("cut", "stall", "trickle", "garble")
_SLOW_BYTES = 64 << 10
_REASONS = {200: "OK", 206: "Partial Content"}


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class FakeS3:
    """One object, ``content``, under every key.

    ``script`` says how each GET or PUT is answered, in order; the last entry stays. Entries:
    ``ok``, ``cut`` (half the body, then the connection closes), ``stall`` (half the body, then
    silence), ``drop`` (closes without an answer), ``whole`` (200 with all of it), ``shift`` (206
    with another range), ``etag:X`` (as ``ok``, with another etag), ``swap`` (``ok``, then every
    later answer has another etag), ``error:STATUS:CODE``, ``trickle`` (half the body, then a byte now and
    then), ``slow`` (64 KiB every fifth of a second), ``garble`` (half the body, then bytes
    that are not of the TLS connection).

    While ``is_down`` is set, every connection is closed as soon as it says anything. ``context`` makes it
    speak TLS.
    """

    content: bytes
    script: Sequence[str] = ("ok",)
    etag: str = "e1"
    honours_if_match: bool = True
    stall_s: float = 5.0
    requests: list[Request] = field(default_factory=list)
    connection_count: int = 0
    port: int = 0
    context: ssl.SSLContext | None = None
    is_down: threading.Event = field(default_factory=threading.Event)
    expired: set[str] = field(default_factory=set)
    """Session tokens that are refused."""
    refused: list[float] = field(default_factory=list)
    """When requests were refused for being down."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"http{'s' * bool(self.context)}://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeS3]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.1)
            self.port = listener.getsockname()[1]
            accepting = threading.Thread(target=self._accept, args=(listener,), daemon=True)
            accepting.start()
            try:
                yield self
            finally:
                self._stop.set()
                accepting.join(5)

    def _accept(self, listener: socket.socket) -> None:
        threads = []
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                self.connection_count += 1
                threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join(5)

    def _serve(self, connection: socket.socket) -> None:
        buffer = bytearray()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            connection = stack.enter_context(connection)
            if self.context:
                connection.settimeout(5)
                connection = stack.enter_context(self.context.wrap_socket(connection, server_side=True))
            connection.settimeout(0.1)
            while (request := self._receive(connection, buffer)) is not None:
                if self.is_down.is_set():
                    self.refused.append(time.monotonic())
                    return
                how = self.script[min(len(self.requests), len(self.script) - 1)]
                if request.headers.get("x-amz-security-token") in self.expired:
                    how = "error:400:ExpiredToken"
                self.requests.append(request)
                if not self._answer(connection, request, how):
                    return

    def _receive(self, connection: socket.socket, buffer: bytearray) -> Request | None:
        if not self._fill(connection, buffer, lambda: b"\r\n\r\n" in buffer):
            return None
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        buffer[:] = rest
        length = int(headers.get("content-length", 0))
        if headers.get("expect") == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._fill(connection, buffer, lambda: len(buffer) >= length):
            return None
        body = bytes(buffer[:length])
        del buffer[:length]
        method, path, _ = first.split(" ")
        return Request(method, path, headers, body)

    def _fill(self, connection, buffer, is_enough) -> bool:
        while not is_enough():
            if self._stop.is_set():
                return False
            with contextlib.suppress(TimeoutError):
                block = connection.recv(1 << 16)
                if not block:
                    return False
                buffer += block
        return True

    def _answer(self, connection: socket.socket, request: Request, how: str) -> bool:
        kind, _, detail = how.partition(":")
        if kind == "drop":
            return False
        if kind == "error":
            status, _, code = detail.partition(":")
            reason = b"" if request.method == "HEAD" else _XML.format(code=code).encode()
            return self._send(connection, int(status), reason, {})
        etag = detail if kind == "etag" else self.etag
        if self.honours_if_match and request.headers.get("if-match", f'"{etag}"') != f'"{etag}"':
            return self._send(connection, 412, _XML.format(code="PreconditionFailed").encode(), {})
        if request.method != "GET":
            return self._send(connection, 200, b"", {"ETag": f'"{etag}"'}, kind)
        status, body, headers = self._ranged(request, kind)
        if kind == "swap":
            self.etag += "x"
        return self._send(connection, status, body, headers | {"ETag": f'"{etag}"'}, kind)

    def _ranged(self, request: Request, kind: str) -> tuple[int, bytes, dict[str, str]]:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if match is None or kind == "whole":
            return 200, self.content, {}
        start, stop = int(match[1]) + (kind == "shift"), int(match[2]) + 1
        if start >= len(self.content):
            return 416, _XML.format(code="InvalidRange").encode(), {}
        body = self.content[start:stop]
        return 206, body, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(self.content)}"}

    def _send(
        self, connection: socket.socket, status: int, body: bytes, headers: dict[str, str], kind: str = "ok"
    ) -> bool:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'X')}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection.settimeout(10)
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        blocks = [body[: len(body) // 2]] if kind in _HALVES else [body]
        if kind == "slow":
            blocks = [body[start : start + _SLOW_BYTES] for start in range(0, len(body), _SLOW_BYTES)]
        for block in blocks:
            connection.sendall(block)
            if kind == "slow":
                time.sleep(0.2)
        if kind == "garble":
            socket.socket.sendall(connection, b"\x17\x03\x03\x00\x20" + bytes(32))
        connection.settimeout(0.1)
        rest = (bytes([byte]) for byte in body[len(body) // 2 :])
        if kind in ("stall", "trickle"):
            deadline = time.monotonic() + self.stall_s
            while time.monotonic() < deadline and not self._stop.is_set():
                time.sleep(0.05)
                if kind == "trickle":
                    connection.sendall(next(rest))
        return kind not in _HALVES
