"""A front for a plain S3 server on loopback that counts requests, and calls back at a chosen one."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_BLOCK_BYTES = 256 << 10
_HEAD_END = b"\r\n\r\n"
_JOURNAL = re.compile(rb"PUT \S*reshard-run[^/ ]*\.[0-9a-f]{16}\.\d+\.json")
_NOTED_S = 2.0
"""How long it may take on a busy machine until a part that has been answered is noted in the journal."""


class KillingFront:
    """Passes every request on; before the ``at``-th one that changes something it calls ``kill``.

    ``count`` has the requests that change something (PUT, POST, DELETE), ``sent_bytes`` the bodies of PUTs.
    ``in_flight_bytes`` is what no journal could tell of at the kill: bodies of PUTs that had not been answered, or
    after the last journal that had been written. Each PUT is held up for ``pause_s``.
    """

    def __init__(self, backend_port: int) -> None:
        self._backend_port = backend_port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.port: int = self._socket.getsockname()[1]
        self.count, self.sent_bytes, self.at = 0, 0, 0
        self.kill: Callable[[], object] = lambda: None
        self.in_flight_bytes = 0
        self.pause_s = 0.0
        self._open: dict[socket.socket, tuple[float, int, bool]] = {}  # when begun, length, whether a journal
        self._answered: list[tuple[float, int]] = []  # when, length
        self._journalled_s = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def begin(self, at: int = 0, kill: Callable[[], object] = lambda: None) -> None:
        """Count from zero, and kill at a request; never if ``at`` is 0."""
        with self._lock:
            self.count, self.sent_bytes, self.at, self.kill = 0, 0, at, kill
            self.in_flight_bytes, self._journalled_s = 0, 0.0
            self._open.clear()
            self._answered.clear()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._backend_port)) as server:
            threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
            with contextlib.suppress(OSError):
                self._requests(client, server)

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        buffer = b""
        while True:
            while _HEAD_END not in buffer:
                block = client.recv(_BLOCK_BYTES)
                if not block:
                    return
                buffer += block
            head, _, buffer = buffer.partition(_HEAD_END)
            length = _length(head)
            self._note(head, length, client)
            time.sleep(self.pause_s if head.startswith(b"PUT") else 0.0)
            server.sendall(head + _HEAD_END)
            left = length
            while left:
                if not buffer:
                    buffer = client.recv(_BLOCK_BYTES)
                    if not buffer:
                        return
                server.sendall(buffer[:left])
                taken = min(left, len(buffer))
                buffer, left = buffer[taken:], left - taken

    def _note(self, head: bytes, length: int, client: socket.socket) -> None:
        verb = head.split(b" ", 1)[0]
        if verb not in (b"PUT", b"POST", b"DELETE"):
            return
        with self._lock:
            self.count += 1
            if verb == b"PUT":
                self.sent_bytes += length
                self._open[client] = time.monotonic(), length, _JOURNAL.match(head) is not None
            if self.count == self.at:
                self.in_flight_bytes = sum(nbytes for _, nbytes, _ in self._open.values())
                noted_s = self._journalled_s - _NOTED_S
                self.in_flight_bytes += sum(nbytes for when_s, nbytes in self._answered if when_s > noted_s)
                self.kill()

    def _pump(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := server.recv(_BLOCK_BYTES):
                if not block.startswith(b"HTTP/1.1 100"):
                    self._end(client)
                client.sendall(block)
            client.shutdown(socket.SHUT_WR)

    def _end(self, client: socket.socket) -> None:
        with self._lock:
            begun_s, length, is_journal = self._open.pop(client, (0.0, 0, False))
            if is_journal:
                self._journalled_s = max(self._journalled_s, begun_s)
            elif length:
                self._answered.append((time.monotonic(), length))


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


@contextlib.contextmanager
def killing_front(backend_port: int) -> Iterator[Any]:
    """Provide a front for the length of a block."""
    front = KillingFront(backend_port)
    try:
        yield front
    finally:
        front.close()
