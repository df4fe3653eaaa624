"""Connections to one HTTP server that move bytes between sockets and buffers, with no copy in between."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .protocol import Body

_HEADER_BYTES = 64 << 10
"""A longer answer that only reports something is cut off."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and how long to wait for it; ``tls`` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    connect_timeout_s: float
    silence_s: float


class HttpPool:
    """Idle connections to one server, the last used first: it is the least likely to have been closed there.

    Any thread may take and give back. Plain sockets block, so that a whole block moves in one system call, and the
    kernel ends a call after ``silence_s``. Inside TLS that would only be tried again, without end: there Python waits.
    """

    def __init__(self, server: Server, most_idle: int) -> None:
        self._server = server
        self._most_idle = most_idle
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    def request(self, method: str, target: str, headers: Mapping[str, str], body: Iterable[Body] = ()) -> Answer:
        """Send a request, with a body in blocks, and return the head of its answer.

        Raise OSError or http.client.HTTPException if the connection breaks.
        """
        connection = self._take()
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            sock = connection.sock  # the connection forgets it if the server is going to close it
            broken: OSError | None = None
            try:
                for block in body:
                    sock.sendall(block)
            except (BrokenPipeError, ConnectionResetError) as error:
                broken = error  # a server that refuses a request may not wait for the end of its body
            try:
                return Answer(self, connection, sock, connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                raise broken or error from None
        except BaseException:
            connection.close()
            raise

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        """Take back a connection whose answer has been read to its end."""
        with self._lock:
            if len(self._idle) < self._most_idle:
                self._idle.append(connection)
                return
        connection.close()

    def _take(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect()
            if not _is_readable(connection.sock):
                return connection
            connection.close()  # the server has closed it

    def _connect(self) -> http.client.HTTPConnection:
        server = self._server
        # http.client's own classes would connect with a timeout that stays, and wait by polling from then on.
        connection = http.client.HTTPConnection(server.host, server.port)
        connection.default_port = 443 if server.tls else 80
        found = socket.create_connection((server.host, server.port), server.connect_timeout_s)
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if server.tls is not None:
                found = server.tls.wrap_socket(found, server_hostname=server.host)
                found.settimeout(server.silence_s)
            else:
                _let_the_kernel_wait(found, server.silence_s)
        except BaseException:
            found.close()
            raise
        connection.sock = found
        return connection


class Answer:
    """The answer to one request; its connection can be used again once the body has been read to its end."""

    def __init__(
        self,
        pool: HttpPool,
        connection: http.client.HTTPConnection,
        sock: socket.socket,
        response: http.client.HTTPResponse,
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers  # type: ignore[assignment]
        self._pool = pool
        self._connection = connection
        self._socket = sock
        self._response = response
        self._left = response.length

    def readinto(self, target: memoryview) -> int:
        """Fill a buffer with the next bytes of the body; return how many, fewer only at its end."""
        if self._left is None:  # in chunks, or up to the end of the connection
            return self._response.readinto(target)
        wanted, done = min(len(target), self._left), 0
        buffered = self._response.fp
        if wanted and buffered is not None and (head := len(buffered.peek())):
            # The reader of the head may have read further. Reading no more than it holds leaves it empty for good.
            done = buffered.readinto(target[: min(head, wanted)])
        while done < wanted:
            count = self._receive(target[done:wanted])
            if not count:
                break
            done += count
        self._left -= done
        return done

    def _receive(self, target: memoryview) -> int:
        if isinstance(self._socket, ssl.SSLSocket):
            return self._socket.recv_into(target)
        return self._socket.recv_into(target, len(target), socket.MSG_WAITALL)

    def read(self) -> bytes:
        """Return a short body, whole."""
        data = self._response.read(_HEADER_BYTES)
        if self._left is not None:
            self._left -= len(data)
        return data

    def shutdown(self) -> None:
        """Break the answer off, from another thread: whoever reads it sees its end."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection back, or close it if some of the body has not been read."""
        is_done = self._left == 0 or (self._left is None and self._response.isclosed())
        keeps = is_done and not self._response.will_close
        self._response.close()
        if keeps:
            self._pool.give_back(self._connection)
        else:
            self._connection.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _let_the_kernel_wait(sock: socket.socket, longest_s: float) -> None:
    sock.settimeout(None)
    wait = struct.pack("ll", int(longest_s), int(longest_s % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, wait)


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


def _is_readable(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
