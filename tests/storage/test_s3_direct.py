"""Connections of our own for objects' bytes: what boto3 would send, and where boto3 sends it itself."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from storage.contract import body
from support.fake_s3 import FakeS3, Request
from support.settings import clear_settings
from support.tls_front import tls_front

from reshard.errors import Denied, StorageError, UsageError
from reshard.storage import Checksum, RetryPolicy, Upload, open_location
from reshard.storage.checksums import crc_of
from reshard.storage.http_pool import HttpPool, Server
from reshard.storage.providers import provider_of
from reshard.storage.s3_settings import Keys, S3Settings, s3_settings
from reshard.storage.s3_store import S3Store
from reshard.tensor import ByteRange

DATA = body(300_000)
ODD = "models/ö ü+&=?#%2F~_(1)/a.b"
QUICK = RetryPolicy(give_up_after_s=0.5, first_delay_s=0.01, longest_delay_s=0.05)
ADDED_BY_BOTO3 = {"expect", "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "user-agent", "x-amz-date"}


def store_at(endpoint: str, **changes: object) -> S3Store:
    settings = S3Settings("s3://b", "b", provider_of(endpoint, {}), endpoint, "us-east-1", Keys("AK", "SK", "TOKEN"))
    return S3Store(replace(settings, **changes), policy=QUICK)


def sent_by(transfers: str) -> list[Request]:
    with FakeS3(DATA).running() as fake:
        store = store_at(fake.endpoint, transfers=transfers)
        store._checks._found = None
        store.read(ODD, ByteRange(5, 1000), "e1")
        store.upload_part(Upload(ODD, "id+/= ü"), 7, 0, DATA[:100_000])
        store.put(ODD, DATA[:50])
        return [request for request in fake.requests if request.method != "HEAD"]


def about(request: Request) -> tuple[object, ...]:
    address = urlsplit(request.path)
    headers = {name: value for name, value in request.headers.items() if name not in {*ADDED_BY_BOTO3, "host"}}
    signed = set(headers.pop("authorization").partition("SignedHeaders=")[2].partition(",")[0].split(";"))
    return request.method, address.path, parse_qs(address.query), headers, signed, request.body


def test_requests_are_those_of_boto3() -> None:
    """Addresses of odd keys, queries, headers, bodies."""
    direct, boto3 = sent_by("direct"), sent_by("boto3")
    assert [request.method for request in direct] == ["GET", "PUT", "PUT"]
    assert list(map(about, direct)) == list(map(about, boto3))


def test_requests_are_signed() -> None:
    """As anyone who has the secret key can check, without a client."""
    for request in sent_by("direct"):
        scheme, _, rest = request.headers["authorization"].partition(" ")
        parts = dict(part.split("=", 1) for part in rest.split(", "))
        date, region, service, kind = parts["Credential"].split("/")[1:]
        address = urlsplit(request.path)
        query = "&".join(sorted(address.query.split("&"))) if address.query else ""
        names = parts["SignedHeaders"].split(";")
        assert {"host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"} <= set(names)
        signed = "".join(f"{name}:{request.headers[name]}\n" for name in names)
        canonical = [request.method, address.path, query, signed, ";".join(names), "UNSIGNED-PAYLOAD"]
        hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        scope = "/".join((date, region, service, kind))
        text = "\n".join([scheme, request.headers["x-amz-date"], scope, hashed])
        key = b"AWS4SK"
        for word in (date, region, service, kind):
            key = hmac.digest(key, word.encode(), "sha256")
        assert hmac.digest(key, text.encode(), "sha256").hex() == parts["Signature"]


@pytest.mark.parametrize("transfers", ["direct", "boto3"])
def test_each_path_is_chosen_by_a_variable(monkeypatch: pytest.MonkeyPatch, transfers: str) -> None:
    with FakeS3(DATA).running() as fake:
        clear_settings(monkeypatch)
        for name, value in {
            "AWS_ENDPOINT_URL": fake.endpoint,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "s",
            "RESHARD_S3_TRANSFERS": transfers,
        }.items():
            monkeypatch.setenv(name, value)
        place = open_location("s3://b/k")
        assert place.store.read(place.key, ByteRange(0, 9)) == DATA[:9]
        assert ("amz-sdk-request" in fake.requests[0].headers) == (transfers == "boto3")


def test_no_other_path_can_be_chosen() -> None:
    with pytest.raises(UsageError, match="RESHARD_S3_TRANSFERS must be direct or boto3, not 'curl'"):
        s3_settings("b", {"RESHARD_S3_TRANSFERS": "curl"})


def test_boto3_goes_through_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeS3(DATA).running() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        monkeypatch.setenv("NO_PROXY", "")
        store = store_at("http://store.example")
        assert store.read("k", ByteRange(0, 9)) == DATA[:9]
        [request] = proxy.requests
        assert request.path.startswith("http://store.example/")
        assert "amz-sdk-request" in request.headers


@pytest.mark.parametrize("status", [301, 307])
def test_boto3_follows_redirects_and_goes_on(status: int) -> None:
    """Whether it finds the place is its own matter; here there is none."""
    with FakeS3(DATA, (f"error:{status}:TemporaryRedirect", "ok")).running() as fake:
        store = store_at(fake.endpoint)
        upload = Upload("k", "id")
        for _ in range(2):
            assert store.upload_part(upload, 1, 0, DATA).nbytes == len(DATA)
        by_boto3 = ["amz-sdk-request" in request.headers for request in fake.requests]
        assert by_boto3 == [False, True, True]
        assert fake.requests[-1].body == DATA


def test_a_refusal_before_the_end_of_a_body() -> None:
    """A server that needs to see no more answers, and closes the connection while the body is being sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                text = b"<Error><Code>AccessDenied</Code></Error>"
                head = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text)
                connection.sendall(head + text)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while connection.recv(1 << 20):
                        pass

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        store = store_at(f"http://127.0.0.1:{port}")
        with pytest.raises(Denied, match="access is denied"):
            store.upload_part(Upload("k", "id"), 1, 0, bytes(20 << 20))
        thread.join(5)


def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    """Even without a try that fails: nothing is counted against the store."""
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", times=3) as (pool, accepted):
        for _ in range(3):
            with pool.request("GET", "/", {}) as answer:
                target = bytearray(5)
                assert answer.readinto(memoryview(target)) == 5
                assert target == b"hello"
            accepted.wait(5)
        assert accepted.n_waiting == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["length", "chunks", "end", "continue"],
)
@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_bodies_of_each_kind_in_pieces(answer: bytes, size: int) -> None:
    with answering(answer) as (pool, _), pool.request("GET", "/", {}) as found:
        data, buffer = b"", memoryview(bytearray(size))
        while count := found.readinto(buffer):
            data += buffer[:count]
        assert data == b"hello"


@contextlib.contextmanager
def answering(answer: bytes, times: int = 1) -> Iterator[tuple[HttpPool, threading.Barrier]]:
    """A server that gives one answer on each connection, and closes it."""
    closed = threading.Barrier(2)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(times):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)
                if times > 1:
                    closed.wait(5)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield HttpPool(Server("127.0.0.1", listener.getsockname()[1], None, 5.0, 5.0), 4), closed
        thread.join(5)


def test_internet_protocol_6() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port, heads = listener.getsockname()[1], []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heads.append(connection.recv(1 << 16))
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        part = store_at(f"http://[::1]:{port}").upload_part(Upload("k", "id"), 1, 0, b"x")
        thread.join(5)
    assert part.etag == "e"
    assert f"Host: [::1]:{port}".encode() in heads[0]


def test_a_checksum_goes_along_and_what_comes_back_is_compared() -> None:
    with FakeS3(DATA).running() as fake:
        store = store_at(fake.endpoint)
        checks = pytest.MonkeyPatch()
        try:
            checks.setattr(store, "_upload_check", lambda _: _crc_check())
            part = store.upload_part(Upload("k", "id"), 1, 0, DATA, Checksum(crc_of(DATA)))
        finally:
            checks.undo()
        assert part.proof == "crc32c"
        assert fake.requests[0].headers["x-amz-checksum-crc32c"]


def _crc_check() -> object:
    from reshard.storage.s3_checksums import UploadCheck

    return UploadCheck("crc32c")


def test_silence_is_named() -> None:
    with FakeS3(DATA, ("stall",), stall_s=2.0).running() as fake:
        store = store_at(fake.endpoint, read_timeout_s=0.3)
        with pytest.raises(StorageError, match="the store stopped answering"):
            store.read_into("k", ByteRange(0, len(DATA)), memoryview(bytearray(len(DATA))))


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.timeout(20)
def test_a_server_that_never_answers_is_given_up(is_tls: bool, tmp_path: Path) -> None:
    """Inside TLS too, where the kernel's own timeout of a socket only makes OpenSSL try again."""
    with contextlib.ExitStack() as opened:
        silent = opened.enter_context(socket.create_server(("127.0.0.1", 0)))  # the kernel takes connections
        port, context = silent.getsockname()[1], None
        if is_tls:
            port, ca_file = opened.enter_context(tls_front(port, tmp_path))
            context = ssl.create_default_context(cafile=ca_file)
        pool = HttpPool(Server("127.0.0.1", port, context, connect_timeout_s=5.0, silence_s=0.3), most_idle=1)
        with pytest.raises(OSError, match=r"timed out|without response"):
            pool.request("PUT", "/b/k", {"Content-Length": "3"}, [b"abc"])
