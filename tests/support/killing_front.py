"""A front for a plain S3 server on loopback that counts requests, and calls back at a chosen one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

_BLOCK_BYTES = 256 << 10
_HEAD_END = b"\r\n\r\n"


class KillingFront:
    """Passes every request on; before the ``at``-th one that changes something it calls ``kill``.

    ``count`` has the requests that change something (PUT, POST, DELETE), ``sent_bytes`` the bodies of PUTs.
    """

    def __init__(self, backend_port: int) -> None:
        self._backend_port = backend_port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.port: int = self._socket.getsockname()[1]
        self.count, self.sent_bytes, self.at = 0, 0, 0
        self.kill: Callable[[], object] = lambda: None
        threading.Thread(target=self._accept, daemon=True).start()

    def begin(self, at: int = 0, kill: Callable[[], object] = lambda: None) -> None:
        """Count from zero, and kill at a request; never if ``at`` is 0."""
        with self._lock:
            self.count, self.sent_bytes, self.at, self.kill = 0, 0, at, kill

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._backend_port)) as server:
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
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
            self._note(head.split(b" ", 1)[0], length)
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

    def _note(self, verb: bytes, length: int) -> None:
        if verb not in (b"PUT", b"POST", b"DELETE"):
            return
        with self._lock:
            self.count += 1
            self.sent_bytes += length if verb == b"PUT" else 0
            if self.count == self.at:
                self.kill()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _pump(server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := server.recv(_BLOCK_BYTES):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def killing_front(backend_port: int) -> Iterator[Any]:
    """Provide a front for the length of a block."""
    front = KillingFront(backend_port)
    try:
        yield front
    finally:
        front.close()
