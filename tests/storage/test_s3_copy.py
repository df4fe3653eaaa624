"""Part copies by S3Store when the network or the store misbehaves, and which buckets are copied from."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import unquote

import pytest
from storage.contract import ODD_NAMES
from support.fake_s3 import FakeS3, Request
from support.recording_store import recording

from reshard.errors import Denied, Interrupted, NotFound, SourceChanged, StorageError, Transient, Unsupported
from reshard.storage import MemoryStore, RetryPolicy, Upload
from reshard.storage.providers import provider_of
from reshard.storage.s3_settings import Keys, S3Settings
from reshard.storage.s3_store import S3Store
from reshard.tensor import ByteRange

QUICK = RetryPolicy(give_up_after_s=0.3, first_delay_s=0.01, longest_delay_s=0.05)
SPAN = ByteRange(100, 5 << 20)
UPLOAD = Upload("to", "u")


class CopyingS3(FakeS3):
    """Answers ``ok`` with a copied part, ``xml:STATUS:TEXT`` with any body, ``empty`` as stores that do not copy."""

    def _answer(self, connection: socket.socket, request: Request, how: str) -> bool:
        kind, _, detail = how.partition(":")
        status, _, text = detail.partition(":")
        if kind == "ok":
            status, text = "200", f'<CopyPartResult><ETag>"{self.etag}"</ETag></CopyPartResult>'
        if kind in ("ok", "xml"):
            return self._send(connection, int(status), text.encode(), {"Content-Type": "application/xml"})
        return super()._answer(connection, request, "ok" if kind == "empty" else how)


def settings(endpoint: str, bucket: str = "b") -> S3Settings:
    keys = Keys("AKNAME", "SKSECRET")
    provider = provider_of(endpoint, {})
    return S3Settings(f"s3://{bucket}", bucket, provider, endpoint, "us-east-1", keys, read_timeout_s=0.5)


@contextmanager
def copying(*script: str, policy: RetryPolicy = QUICK) -> Iterator[tuple[S3Store, S3Store, FakeS3]]:
    """A store, another that it copies from, and the server of both."""
    with CopyingS3(b"", script or ("ok",)).running() as fake:
        target, source = (S3Store(settings(fake.endpoint, bucket), policy=policy) for bucket in ("b", "from"))
        yield target, source, fake


def error(code: str, message: str, status: int = 400) -> str:
    return f"xml:{status}:<Error><Code>{code}</Code><Message>{message}</Message></Error>"


def test_request_says_what_and_where() -> None:
    with copying() as (store, source, fake):
        assert store.copy_part(UPLOAD, 3, 0, recording(source), "a b", SPAN, "e7") == "e1"
        request = fake.requests[0]
        assert (request.method, request.path) == ("PUT", "/b/to?uploadId=u&partNumber=3")
        assert request.headers["x-amz-copy-source"] == "from/a%20b"
        assert request.headers["x-amz-copy-source-range"] == f"bytes=100-{(5 << 20) - 1}"
        assert request.headers["x-amz-copy-source-if-match"] == '"e7"'
        assert request.body == b""


def test_odd_keys_arrive_as_they_are() -> None:
    names = [*ODD_NAMES, "a?versionId=null", "/starts/with/slash", "a//b", "..", "\t"]
    with copying() as (store, source, fake):
        for name in names:
            store.copy_part(UPLOAD, 1, 0, source, name, SPAN)
        told = [request.headers["x-amz-copy-source"] for request in fake.requests]
        assert [unquote(text) for text in told] == [f"from/{name}" for name in names]
        assert not set("".join(told)) & set("+?&# ")
        assert "".join(told).isascii()
        assert "x-amz-copy-source-if-match" not in fake.requests[0].headers


@pytest.mark.parametrize(
    "fault",
    [
        "drop",
        "error:500:InternalError",
        "error:503:SlowDown",
        "error:502:",
        error("InternalError", "We encountered an internal error.", 200),
        error("SlowDown", "Please reduce your request rate.", 200),
        "xml:200:<CopyPartResu",
    ],
)
def test_passing_faults_are_tried_again(fault: str) -> None:
    with copying(fault, fault, "ok") as (store, source, fake):
        assert store.copy_part(UPLOAD, 1, 0, source, "k", SPAN, "e1") == "e1"
        assert len(fake.requests) == 3
        assert len({request.headers["x-amz-copy-source-range"] for request in fake.requests}) == 1


def test_time_runs_out() -> None:
    with copying("error:503:SlowDown") as (store, source, fake):
        with pytest.raises(Transient, match=r"s3://from/k to s3://b/to .* SlowDown.*gave up after [0-9]+ tries"):
            store.copy_part(UPLOAD, 1, 0, source, "k", SPAN)
        assert len(fake.requests) > 3


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("error:501:NotImplemented", Unsupported, r"cannot do this \[NotImplemented\]"),
        ("error:501:", Unsupported, "cannot do this"),
        ("error:405:MethodNotAllowed", Unsupported, "does not allow this"),
        ("empty", Unsupported, "does not confirm a copy"),
        ("xml:200:<CopyPartResult></CopyPartResult>", Unsupported, "does not confirm a copy"),
        (
            error("InvalidRequest", "The specified copy source is not supported as a byte-range copy source"),
            Unsupported,
            "copies no range of this object",
        ),
        (error("InvalidRequest", "Something else"), StorageError, "Something else"),
        (error("NotImplemented", "A header you provided", 200), Unsupported, "cannot do this"),
        (error("AccessDenied", "no", 200), Denied, "access is denied"),
        ("error:403:AccessDenied", Denied, "access is denied"),
        ("error:403:ObjectNotInActiveTierError", Denied, "archived"),
        ("error:404:NoSuchKey", NotFound, "no such object"),
        ("error:404:NoSuchUpload", NotFound, "upload is not open"),
        ("error:412:PreconditionFailed", SourceChanged, "s3://from/k has changed: its etag was e1"),
        (error("PreconditionFailed", "no", 200), SourceChanged, "s3://from/k has changed"),
        ("error:416:InvalidRange", StorageError, r"s3://from/k is shorter: bytes \[100, 5242880\)"),
        (error("InvalidRange", "no"), StorageError, "s3://from/k is shorter"),
        (
            error("InvalidArgument", "Range specified is not valid for source object of size: 7"),
            StorageError,
            "s3://from/k is shorter",
        ),
        (error("InvalidArgument", "Bad part"), StorageError, "Bad part"),
    ],
)
def test_refusals_are_not_tried_again(fault: str, kind: type, text: str) -> None:
    with copying(fault) as (store, source, fake):
        with pytest.raises(kind, match=text) as caught:
            store.copy_part(UPLOAD, 1, 0, source, "k", SPAN, "e1")
        assert type(caught.value) is kind
        assert "s3://from/k" in str(caught.value)
        assert len(fake.requests) == 1


def test_stop_breaks_off_the_wait_between_tries() -> None:
    patient = RetryPolicy(first_delay_s=60, longest_delay_s=60)
    with copying("error:503:SlowDown", policy=patient) as (store, source, fake):
        stop = threading.Event()
        store.should_stop = stop.is_set
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            store.copy_part(UPLOAD, 1, 0, source, "k", SPAN)
        assert time.monotonic() - began < 3
        assert len(fake.requests) == 1


def test_stop_is_asked_before_each_try() -> None:
    with copying("error:503:SlowDown") as (store, source, fake):
        store.should_stop = lambda: True
        with pytest.raises(Interrupted):
            store.copy_part(UPLOAD, 1, 0, source, "k", SPAN)
        assert fake.requests == []


HERE = settings("https://store.example", "b")


@pytest.mark.parametrize(
    ("there", "copies"),
    [
        (HERE, True),
        (replace(HERE, url="obs://c", bucket="c"), True),
        (replace(HERE, bucket="c", endpoint="https://STORE.example:443"), True),
        (replace(HERE, bucket="c", read_timeout_s=9, connection_count=1), True),
        (replace(HERE, endpoint="https://other.example"), False),
        (replace(HERE, endpoint="https://store.example:9000"), False),
        (replace(HERE, region="eu-west-1"), False),
        (replace(HERE, keys=Keys("AKNAME", "OTHER")), False),
        (replace(HERE, keys=None), False),
        (replace(HERE, provider=replace(HERE.provider, addressing="virtual")), False),
    ],
)
def test_copies_within_one_service_only(there: S3Settings, copies: bool) -> None:
    store, source = S3Store(HERE), S3Store(there)
    assert store.copies_from(source) is store.copies_from(recording(source)) is copies
    if not copies:
        with pytest.raises(Unsupported, match="cannot copy bytes from"):
            store.copy_part(UPLOAD, 1, 0, source, "k", SPAN)


def test_copies_from_no_other_kind_of_store() -> None:
    assert not S3Store(HERE).copies_from(MemoryStore())
    assert not MemoryStore().copies_from(S3Store(HERE))


def test_copies_nothing_if_the_service_cannot() -> None:
    limits = replace(HERE.provider.limits, can_copy=False)
    store = S3Store(replace(HERE, provider=replace(HERE.provider, limits=limits)))
    assert not store.copies_from(store)


def test_small_parts_and_sources_on_obs() -> None:
    limits = provider_of("https://obs.cn-north-4.myhuaweicloud.com", {}).limits
    assert (limits.min_part_bytes, limits.min_copy_source_bytes, limits.can_copy) == (100 << 10, 1, True)
    assert provider_of(None, {}).limits.min_copy_source_bytes == (5 << 20) + 1
