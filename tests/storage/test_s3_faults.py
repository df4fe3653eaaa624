"""What S3Store does when the network or the store misbehaves."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import pytest
from storage.contract import body
from support.fake_s3 import FakeS3

from reshard.errors import Denied, Interrupted, NotFound, SourceChanged, StorageError, Transient, Unsupported
from reshard.storage import RetryPolicy, Upload
from reshard.storage.providers import provider_of
from reshard.storage.s3_settings import Keys, S3Settings
from reshard.storage.s3_store import S3Store
from reshard.tensor import ByteRange

DATA = body(5 << 20)
SPAN = ByteRange(100, len(DATA) - 100)
QUICK = RetryPolicy(give_up_after_s=1, first_delay_s=0.01, longest_delay_s=0.05)


TRANSFERS: Literal["direct", "boto3"] = "direct"


@pytest.fixture(autouse=True, params=["direct", "boto3"])
def _each_path_of_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TRANSFERS", request.param)


@contextmanager
def misbehaving(*script: str, policy: RetryPolicy = QUICK, **how: object) -> Iterator[tuple[S3Store, FakeS3]]:
    with FakeS3(DATA, script or ("ok",), **how).running() as fake:
        settings = S3Settings(
            "s3://b",
            "b",
            provider_of(fake.endpoint, {}),
            fake.endpoint,
            "us-east-1",
            Keys("AKNAME", "SKSECRET"),
            read_timeout_s=0.5,
            transfers=TRANSFERS,
        )
        yield S3Store(settings, policy=policy), fake


def ranges(fake: FakeS3) -> Sequence[str]:
    return [request.headers["range"].removeprefix("bytes=") for request in fake.requests]


def test_reads_share_a_connection() -> None:
    with misbehaving() as (store, fake):
        for start in range(5):
            assert store.read("k", ByteRange(start, start + 9)) == DATA[start : start + 9]
        assert fake.connection_count == 1


def test_cut_body_goes_on_where_it_broke_off() -> None:
    with misbehaving("cut", "cut", "ok") as (store, fake):
        assert store.read("k", SPAN) == DATA[SPAN.start : SPAN.stop]
        half, quarter = SPAN.nbytes // 2, -(-SPAN.nbytes // 2) // 2
        assert ranges(fake) == [f"{SPAN.start + done}-{SPAN.stop - 1}" for done in (0, half, half + quarter)]
        assert ["if-match" in request.headers for request in fake.requests] == [False, True, True]
        assert fake.requests[1].headers["if-match"] == '"e1"'


def test_stalled_body_goes_on() -> None:
    with misbehaving("stall", "ok") as (store, fake):
        began = time.monotonic()
        assert store.read("k", SPAN) == DATA[SPAN.start : SPAN.stop]
        assert len(fake.requests) == 2
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "fault",
    [
        "drop",
        "error:503:SlowDown",
        "error:500:InternalError",
        "error:400:RequestTimeout",
        "error:502:",
        "error:409:OperationAborted",
        "error:400:BadDigest",
    ],
)
def test_passing_faults_are_tried_again(fault: str) -> None:
    with misbehaving(fault, fault, "ok") as (store, fake):
        assert store.read("k", SPAN) == DATA[SPAN.start : SPAN.stop]
        assert len(fake.requests) == 3


@pytest.mark.parametrize("fault", ["drop", "error:503:SlowDown"])
def test_parts_are_sent_again_from_their_start(fault: str) -> None:
    data = bytearray(body(3 << 20))
    with misbehaving(fault, fault, "ok") as (store, fake):
        assert store.upload_part(Upload("k", "u"), 1, 0, memoryview(data)[5:]).etag == "e1"
        assert len(fake.requests) == 3
        assert fake.requests[-1].body == data[5:]
        assert fake.requests[-1].headers["content-length"] == str(len(data) - 5)
        assert "transfer-encoding" not in fake.requests[-1].headers


def test_time_runs_out() -> None:
    with misbehaving("error:503:SlowDown") as (store, fake):
        with pytest.raises(Transient, match=r"s3://b/k .* SlowDown.*gave up after [0-9]+ tries"):
            store.read("k", SPAN)
        assert len(fake.requests) > 3


def test_tries_that_bring_bytes_do_not_count() -> None:
    # Of every cut answer half arrives, more than a megabyte, so only the last cut and the two after it count.
    with misbehaving("cut", "cut", "error:503:x", "error:503:x", "ok") as (store, fake):
        assert store.read("k", SPAN) == DATA[SPAN.start : SPAN.stop]
        assert len(fake.requests) == 5


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("error:403:AccessDenied", Denied),
        ("error:404:NoSuchKey", NotFound),
        ("error:412:PreconditionFailed", SourceChanged),
        ("error:416:InvalidRange", StorageError),
        ("error:400:Whatever", StorageError),
    ],
)
def test_refusals_are_not_tried_again(fault: str, error: type) -> None:
    with misbehaving(fault) as (store, fake):
        with pytest.raises(error) as caught:
            store.read("k", SPAN, "e1")
        assert len(fake.requests) == 1
        assert "s3://b/k" in str(caught.value)
        assert not isinstance(caught.value, Transient)


@pytest.mark.parametrize("honours", [True, False])
def test_object_replaced_between_tries_is_seen(honours: bool) -> None:
    with misbehaving("cut", "etag:e2", honours_if_match=honours) as (store, fake):
        with pytest.raises(SourceChanged, match="etag was e1"):
            store.read("k", SPAN)
        assert len(fake.requests) == 2


def test_ignored_if_match_is_seen() -> None:
    with misbehaving("etag:e2", honours_if_match=False) as (store, _), pytest.raises(SourceChanged, match="e2 now"):
        store.read("k", SPAN, "e1")


def test_store_without_ranges_is_refused_at_once() -> None:
    with misbehaving("whole") as (store, fake):
        with pytest.raises(Unsupported, match="whole object"):
            store.read("k", SPAN)
        assert len(fake.requests) == 1
        assert store.read("k", ByteRange(0, len(DATA))) == DATA  # all of it was wanted


def test_wrong_range_is_refused() -> None:
    with misbehaving("shift") as (store, _), pytest.raises(Unsupported, match="asked for bytes from 100 on"):
        store.read("k", SPAN)


def test_short_object_is_told() -> None:
    with misbehaving() as (store, _), pytest.raises(StorageError, match=f"is {len(DATA)} bytes long"):
        store.read("k", ByteRange(10, len(DATA) + 1))


def test_nobody_at_the_endpoint() -> None:
    with misbehaving() as (store, _):
        pass
    with pytest.raises(Transient, match="no connection to the endpoint"):
        store.head("k")


def test_stop_breaks_off_a_read() -> None:
    with misbehaving("stall", stall_s=0.2) as (store, _):
        stop = threading.Event()
        store.should_stop = stop.is_set
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            store.read("k", SPAN)
        assert time.monotonic() - began < 3


def test_stop_breaks_off_the_wait_between_tries() -> None:
    patient = RetryPolicy(first_delay_s=60, longest_delay_s=60)
    with misbehaving("error:503:SlowDown", policy=patient) as (store, _):
        stop = threading.Event()
        store.should_stop = stop.is_set
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            store.head("k")
        assert time.monotonic() - began < 3


def test_stop_breaks_off_a_part() -> None:
    with misbehaving() as (store, fake):
        answers = iter([False] * 3)
        store.should_stop = lambda: next(answers, True)
        with pytest.raises(Interrupted):
            store.upload_part(Upload("k", "u"), 1, 0, body(3 << 20))
        assert fake.requests == []


def test_secrets_stay_secret() -> None:
    with misbehaving("error:403:SignatureDoesNotMatch") as (store, _):
        with pytest.raises(Denied) as caught:
            store.put("k", b"x")
        for text in (str(caught.value), repr(store), repr(store.settings)):
            assert "SKSECRET" not in text
            assert "AKNAME" not in text


def test_user_agent_names_us() -> None:
    with misbehaving() as (store, fake):
        store.read("k", ByteRange(0, 1))
        assert "reshard/" in fake.requests[0].headers["user-agent"]


def test_uploads_carry_neither_checksums_nor_hashes() -> None:
    with misbehaving() as (store, fake):
        store.upload_part(Upload("k", "u"), 1, 0, body(200_000))
        headers = fake.requests[0].headers
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert not [name for name in headers if "checksum" in name or "trailer" in name]
