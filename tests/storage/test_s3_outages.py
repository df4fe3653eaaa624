"""Stores that go away for a while, connections that break or trickle, credentials that expire."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from botocore.exceptions import CredentialRetrievalError
from storage.contract import body
from support.fake_s3 import FakeS3

from reshard.errors import Denied, Interrupted, Transient
from reshard.storage import RetryPolicy, Upload, shared_connections
from reshard.storage.availability import Availability
from reshard.storage.open import open_location
from reshard.storage.s3_settings import S3Settings, s3_settings
from reshard.storage.s3_store import S3Store
from reshard.tensor import ByteRange

DATA = body(3 << 20)
SPAN = ByteRange(7, len(DATA) - 7)
WHOLE = DATA[7:-7]
PATIENT = RetryPolicy(give_up_after_s=20, first_delay_s=0.05, longest_delay_s=0.4)


@pytest.fixture
def keys(clean_environ: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    clean_environ.setenv("AWS_ACCESS_KEY_ID", "AK")
    clean_environ.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    return clean_environ


@pytest.fixture
def certificate(tmp_path: Path, keys: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS, under an authority that clients accept."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    keys.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def settings_for(fake: FakeS3) -> S3Settings:
    return replace(s3_settings("b", {}, fake.endpoint), read_timeout_s=5)


@contextmanager
def served(
    *script: str, policy: RetryPolicy = PATIENT, block_s: float = 60, **how: Any
) -> Iterator[tuple[S3Store, FakeS3]]:
    with FakeS3(DATA, script or ("ok",), **how).running() as fake:
        yield S3Store(replace(settings_for(fake), block_timeout_s=block_s), policy=policy), fake


def test_an_outage_of_seconds_is_waited_out(keys: pytest.MonkeyPatch) -> None:
    with served() as (store, fake):
        store.head("k")
        peer = S3Store(settings_for(fake), policy=PATIENT, availability=store._availability)
        found: list[object] = []

        def work(number: int) -> None:
            for _ in range(6):
                data = store.read("k", SPAN) if number % 2 else peer.upload_part(Upload("k", "u"), 1, 0, DATA)
                found.append(data == WHOLE or getattr(data, "etag", "") == "e1")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        fake.is_down.set()
        for thread in threads:
            thread.start()
        time.sleep(3)
        outage = store._availability.outage()
        fake.is_down.clear()
        for thread in threads:
            thread.join(20)
    assert outage
    assert 2 < outage.seconds < 4
    assert found == [True] * 36
    # Six were on their way; from then on one probe at a time, half of 0.4 s apart on average.
    assert 6 <= len(fake.refused) < 60


def test_an_outage_longer_than_allowed_ends_in_words(keys: pytest.MonkeyPatch) -> None:
    with served(policy=replace(PATIENT, give_up_after_s=1)) as (store, fake):
        store.head("k")
        fake.is_down.set()
        with pytest.raises(Transient, match=r"s3://b/k .*gave up after [0-9]+ tries in [12] s") as caught:
            store.read("k", SPAN)
    assert "give_up_after" in caught.value.hint


def test_stopping_ends_the_wait_for_a_store_that_is_down(keys: pytest.MonkeyPatch) -> None:
    with served(policy=RetryPolicy(first_delay_s=30, longest_delay_s=30)) as (store, fake):
        store.head("k")
        fake.is_down.set()
        ended: list[float] = []
        stop = threading.Event()
        store.should_stop = stop.is_set

        def work() -> None:
            with pytest.raises(Interrupted):
                store.read("k", SPAN)
            ended.append(time.monotonic())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        stopped = time.monotonic()
        stop.set()
        for thread in threads:
            thread.join(5)
    assert len(ended) == 4
    assert max(ended) - stopped < 1


def test_stopping_breaks_off_a_body_that_is_silent(keys: pytest.MonkeyPatch) -> None:
    with served("stall", stall_s=20) as (store, _):
        stop = threading.Event()
        store.should_stop = stop.is_set
        threading.Timer(0.3, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            store.read("k", SPAN)
        assert time.monotonic() - began < 2, "the socket itself would wait for 5 s"


@pytest.mark.parametrize("how", ["plain", "tls"])
def test_a_body_that_trickles_is_asked_for_again(
    how: str, certificate: ssl.SSLContext, keys: pytest.MonkeyPatch
) -> None:
    with served("trickle", "ok", stall_s=20, block_s=0.5, context=certificate if how == "tls" else None) as (
        store,
        fake,
    ):
        began = time.monotonic()
        assert store.read("k", SPAN) == WHOLE
        assert time.monotonic() - began < 5
        first, second = (request.headers["range"] for request in fake.requests)
        assert first != second, "what has come stays"


def test_a_body_that_always_trickles_ends_in_words(keys: pytest.MonkeyPatch) -> None:
    policy = replace(PATIENT, give_up_after_s=0.5)
    with (
        served("trickle", stall_s=20, block_s=0.3, policy=policy) as (store, _),
        pytest.raises(Transient, match=r"the answer trickles, less than .* KiB in 0 s"),
    ):
        store.read("k", ByteRange(0, 200))


def test_a_slow_line_is_not_a_trickle(keys: pytest.MonkeyPatch) -> None:
    with served("slow", block_s=1.5) as (store, fake):
        assert store.read("k", ByteRange(0, 1 << 20)) == DATA[: 1 << 20]
        assert len(fake.requests) == 1


@pytest.mark.parametrize("fault", ["garble", "cut", "drop", "stall"])
def test_an_error_inside_tls_is_one_of_the_connection(fault: str, certificate: ssl.SSLContext) -> None:
    with served(fault, "ok", context=certificate, stall_s=0.3) as (store, fake):
        assert store.read("k", SPAN) == WHOLE
        assert len(fake.requests) == 2


def test_an_error_inside_tls_that_stays_ends_in_words(certificate: ssl.SSLContext) -> None:
    policy = RetryPolicy(give_up_after_s=0)
    with (
        served("garble", context=certificate, policy=policy) as (store, _),
        pytest.raises(Transient, match=r"s3://b/k .*: the connection broke during the answer \(SSLError\)"),
    ):
        store.read("k", SPAN)


def test_a_listing_that_is_cut_off_is_asked_for_again(keys: pytest.MonkeyPatch) -> None:
    listing = b"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    with FakeS3(listing, ("cut", "ok")).running() as fake:
        store = S3Store(settings_for(fake), policy=PATIENT)
        assert list(store.list("")) == []
        assert len(fake.requests) == 2


CREDENTIALS = "[default]\naws_access_key_id = AK{0}\naws_secret_access_key = SK\naws_session_token = T{0}\n"


@pytest.fixture
def credentials(clean_environ: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file with a session token, the only source of credentials."""
    path = tmp_path / "credentials"
    path.write_text(CREDENTIALS.format(1))
    clean_environ.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    return path


def tokens(fake: FakeS3) -> list[str]:
    return [request.headers["x-amz-security-token"] for request in fake.requests]


@pytest.mark.parametrize("verb", ["read", "write", "find"])
def test_credentials_that_expired_are_read_again(verb: str, credentials: Path) -> None:
    with served() as (store, fake):
        store.read("k", SPAN)
        fake.expired.add("T1")
        credentials.write_text(CREDENTIALS.format(2))
        if verb == "read":
            assert store.read("k", SPAN) == WHOLE
        elif verb == "write":
            store.upload_part(Upload("k", "u"), 1, 0, DATA)
            assert fake.requests[-1].body == DATA
        else:
            assert store.head("k").etag == "e1"
        assert tokens(fake)[0] == "T1"
        assert tokens(fake)[-1] == "T2"


def test_credentials_that_stay_expired_are_an_error(credentials: Path) -> None:
    with served(expired={"T1"}) as (store, fake):
        with pytest.raises(Denied, match="the session token has expired"):
            store.read("k", SPAN)
        assert tokens(fake) == ["T1", "T1"], "once more, with what the file says now"


def test_credentials_that_cannot_be_refreshed_for_a_while(keys: pytest.MonkeyPatch) -> None:
    with served() as (store, _):
        error = CredentialRetrievalError(provider="p", error_msg="down")
        with pytest.raises(Denied, match="cannot be fetched"), failing_client(store, error, times=1):
            store.head("k")
        store.head("k")
        with failing_client(store, error, times=3):
            store.head("k")


@contextmanager
def failing_client(store: S3Store, error: Exception, times: int) -> Iterator[None]:
    inner, left = store._connection.client, [error] * times

    class Client:
        def __getattr__(self, name: str) -> Any:
            if left:
                raise left.pop()
            return getattr(inner, name)

    store._connection.client = Client()
    yield
    store._connection.client = inner


def test_buckets_of_one_service_are_down_together(keys: pytest.MonkeyPatch) -> None:
    keys.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with shared_connections(RetryPolicy.patient_for(3)):
        one, two = (open_location(f"s3://{name}/k").store for name in ("one", "two"))
        keys.setenv("AWS_ENDPOINT_URL", "http://127.0.0.2:9")
        other = open_location("s3://three/k").store
    assert all(isinstance(store, S3Store) for store in (one, two, other))
    assert isinstance(one._availability, Availability)
    assert one._availability is two._availability
    assert one._availability is not other._availability
    assert one._policy.give_up_after_s == 3
