"""A proxy in front of a store: notes every request that passes, and holds each back for a set time.

Run as a process of its own, so that it shares no interpreter with what is measured: ``python proxy.py HOST PORT
--delay-ms 20`` prints its port, and for each line on standard input the requests since the last one, as JSON.
Bodies go from socket to socket through a pipe in the kernel (splice). A delayed request waits once, before it is
passed on; that it may wait for the server's leave to send its body costs nothing more.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PIPE_BYTES = 1 << 20
_MOVE = 1  # SPLICE_F_MOVE
_LONGEST_HEAD = 1 << 20
_NULL_BYTES = 8 << 20
_SUBRESOURCES = {"uploads": "create", "uploadId": "complete", "delete": "delete"}

Request = dict[str, Any]
"""kind, bucket, key, sent_bytes, received_bytes, status, begun_s; where they apply start, number, source."""


class Closed(Exception):
    """The other side has ended the connection."""


class Side:
    """One of the two connections: heads are read into memory, bodies pass in the kernel."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._held = b""

    def until(self, end: bytes) -> bytes:
        """Everything up to a mark, with it; nothing if the connection ended before it began."""
        while (place := self._held.find(end)) < 0:
            if len(self._held) > _LONGEST_HEAD:
                raise Closed("a head without end")
            got = self.socket.recv(65536)
            if not got:
                if self._held:
                    raise Closed("in the middle of a head")
                return b""
            self._held += got
        found, self._held = self._held[: place + len(end)], self._held[place + len(end) :]
        return found

    def pass_on(self, nbytes: int, to: Side, pipe: tuple[int, int]) -> None:
        """Move so many bytes to the other side."""
        first, self._held = self._held[:nbytes], self._held[nbytes:]
        to.socket.sendall(first)
        left = nbytes - len(first)
        while left:
            held = os.splice(self.socket.fileno(), pipe[1], min(left, _PIPE_BYTES), flags=_MOVE)
            if not held:
                raise Closed("in the middle of a body")
            left -= held
            while held:
                held -= os.splice(pipe[0], to.socket.fileno(), held, flags=_MOVE)

    def pass_chunks_on(self, to: Side, pipe: tuple[int, int]) -> int:
        """Move a body that comes in chunks; return its length."""
        total = 0
        while True:
            line = self.until(b"\r\n")
            size = int(line.split(b";")[0], 16)
            to.socket.sendall(line)
            if not size:
                while (trailer := self.until(b"\r\n")) != b"\r\n":
                    to.socket.sendall(trailer)
                to.socket.sendall(b"\r\n")
                return total
            self.pass_on(size + 2, to, pipe)
            total += size


class Passing:
    """Takes connections, each on a thread of its own."""

    def __init__(self, upstream: tuple[str, int], delay_s: float) -> None:
        self._upstream = upstream
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._seen: list[Request] = []
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self) -> list[Request]:
        """Requests since the last call, oldest first."""
        with self._lock:
            found, self._seen = self._seen, []
        return sorted(found, key=lambda request: float(request["begun_s"]))

    def _accept(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        pipe = os.pipe()
        for end in pipe:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            with connection, socket.create_connection(self._upstream) as upstream:
                client, server = Side(connection), Side(upstream)
                while self._exchange(client, server, pipe):
                    pass
        except (OSError, Closed):
            return  # whoever is left sees the connection end, and tries again
        finally:
            for end in pipe:
                os.close(end)

    def _exchange(self, client: Side, server: Side, pipe: tuple[int, int]) -> bool:
        """One request and its answer; whether the connection may be used again."""
        head = client.until(b"\r\n\r\n")
        if not head:
            return False
        begun_s = time.monotonic()
        if self._delay_s:
            time.sleep(self._delay_s)
        method, target, fields = parse_head(head)
        server.socket.sendall(head)
        answer = b""
        if fields.get("expect", "").lower() == "100-continue":
            answer = server.until(b"\r\n\r\n")
            if status_of(answer) == 100:
                client.socket.sendall(answer)
                answer = b""
        sent = 0 if answer else pass_body(client, server, fields, pipe)
        answer = answer or server.until(b"\r\n\r\n")
        while status_of(answer) == 100:
            client.socket.sendall(answer)
            answer = server.until(b"\r\n\r\n")
        client.socket.sendall(answer)
        status, answered = status_of(answer), parse_head(answer)[2]
        empty = method == "HEAD" or status in (204, 304)
        received = 0 if empty else pass_body(server, client, answered, pipe)
        request = describe(method, target, fields)
        request |= {"sent_bytes": sent, "received_bytes": received, "status": status, "begun_s": begun_s}
        with self._lock:
            self._seen.append(request)
        return "close" not in (fields.get("connection", "").lower(), answered.get("connection", "").lower())


def pass_body(side: Side, to: Side, fields: Mapping[str, str], pipe: tuple[int, int]) -> int:
    """Move the body that a head announces; return its length."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        return side.pass_chunks_on(to, pipe)
    nbytes = int(fields.get("content-length", "0"))
    side.pass_on(nbytes, to, pipe)
    return nbytes


def parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """First word, second word, and fields by lower-case name."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    fields = (line.partition(":") for line in lines if line)
    return words[0], words[1], {name.strip().lower(): value.strip() for name, _, value in fields}


def status_of(head: bytes) -> int:
    """The answer's number."""
    if not head:
        raise Closed("before the answer")
    return int(head.split(b" ", 2)[1])


def describe(method: str, target: str, fields: Mapping[str, str]) -> Request:
    """What a request asks of a store."""
    path, _, query = target.partition("?")
    asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
    request: Request = {"kind": kind_of(method, key, asked, fields), "bucket": bucket, "key": key}
    if "partNumber" in asked:
        request["number"] = int(asked["partNumber"])
    if fields.get("range", "").startswith("bytes="):
        request["start"] = int(fields["range"].removeprefix("bytes=").partition("-")[0])
    if source := fields.get("x-amz-copy-source"):
        request["source"] = urllib.parse.unquote(source)
    return request


def kind_of(method: str, key: str, asked: Mapping[str, str], fields: Mapping[str, str]) -> str:
    """``get put part copy create complete head list delete abort`` and ``bucket`` for what is about one."""
    if method == "POST":
        return next((kind for name, kind in _SUBRESOURCES.items() if name in asked), "post")
    if not key:
        return "list" if method == "GET" else "bucket"
    if method == "PUT":
        if "x-amz-copy-source" in fields:
            return "copy"
        return "part" if "partNumber" in asked else "put"
    if method == "DELETE":
        return "abort" if "uploadId" in asked else "delete"
    return "head" if method == "HEAD" else "get"


class Proxy:
    """A proxy that runs: where it is, and what has passed it since it was last asked."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.endpoint = f"http://127.0.0.1:{port}"

    def take(self) -> list[Request]:
        """Requests since the last call, oldest first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("take\n")
        self._process.stdin.flush()
        found: list[Request] = json.loads(self._process.stdout.readline())
        return found


@contextlib.contextmanager
def proxy(endpoint: str, delay_ms: float = 0.0) -> Iterator[Proxy]:
    """Run a proxy in front of an endpoint for the length of a block."""
    address = endpoint.removeprefix("http://").split(":")
    command = [sys.executable, str(Path(__file__).resolve()), *address, "--delay-ms", str(delay_ms)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield Proxy(process, int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def ceilings(nbytes: int = 1 << 30) -> dict[str, float]:
    """Bytes a second that one client reads of a server that makes up its bytes: directly, and through a proxy."""
    found = {}
    command = [sys.executable, str(Path(__file__).resolve()), "127.0.0.1", "0", "--null"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as null:
        assert null.stdout is not None
        endpoint = f"http://127.0.0.1:{int(null.stdout.readline())}"
        with proxy(endpoint) as front:
            for name, where in (("direct", endpoint), ("through", front.endpoint)):
                begun_s = time.monotonic()
                threads = [threading.Thread(target=_read_all, args=(where, nbytes // 8)) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                found[name] = nbytes / (time.monotonic() - begun_s)
        null.terminate()
    return found


def _read_all(endpoint: str, nbytes: int) -> None:
    buffer = memoryview(bytearray(1 << 20))
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"))
    for _ in range(max(1, nbytes // _NULL_BYTES)):
        connection.request("GET", "/null/null")
        with connection.getresponse() as answer:
            while answer.readinto(buffer):
                pass
    connection.close()


def serve_null() -> None:
    """Answer every request with zeros."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listening.getsockname()[1], flush=True)
    body = bytes(_NULL_BYTES)

    def answer(connection: socket.socket) -> None:
        side = Side(connection)
        while side.until(b"\r\n\r\n"):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            connection.sendall(body)

    while True:
        threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()


def main() -> None:
    """Pass requests on until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--null", action="store_true", help="be a server of zeros instead")
    asked = parser.parse_args()
    if asked.null:
        serve_null()
    passing = Passing((asked.host, asked.port), asked.delay_ms / 1000)
    print(passing.port, flush=True)
    for _ in sys.stdin:
        print(json.dumps(passing.take()), flush=True)


if __name__ == "__main__":
    main()
