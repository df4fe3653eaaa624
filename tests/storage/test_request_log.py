"""Each request is logged with the id of its answer, and no secret is."""

from __future__ import annotations

import pytest

from reshard.storage import open_location, read_object
from reshard.storage.request_log import VARIABLE, Exchange, log_as_told
from reshard.storage.s3_settings import TRANSFERS_VARIABLE


@pytest.fixture(params=["direct", "boto3"])
def bucket(request, moto_url, clean_environ):
    for name, value in (moto_url.environ | {TRANSFERS_VARIABLE: request.param}).items():
        clean_environ.setenv(name, value)
    yield f"s3://{moto_url.make_bucket(f'log-{request.param}')}"
    clean_environ.delenv(VARIABLE, raising=False)
    log_as_told()


def told(url, capsys, clean_environ, level):
    if level:
        clean_environ.setenv(VARIABLE, level)
    place = open_location(f"{url}/doc-{level}.json")
    place.writable_store().put(place.key, b"{}")
    assert read_object(place) == b"{}"
    return capsys.readouterr().err


def test_nothing_unless_asked(bucket, capsys, clean_environ):
    assert told(bucket, capsys, clean_environ, "") == ""


def test_a_line_for_each_request(bucket, capsys, clean_environ):
    lines = told(bucket, capsys, clean_environ, "1").splitlines()
    assert [line.split()[0] for line in lines if "HEAD" not in line][-2:] == ["PUT", "GET"]
    assert all(line.endswith(" ms") for line in lines)
    assert "doc-1.json bytes=0-1 -> 206" in lines[-1]


def test_the_ids_of_an_answer_are_told(caplog):
    with caplog.at_level("INFO", "reshard.requests"):
        Exchange("GET", "http://h/b?X-Amz-Signature=abc", {}).answered(
            503, {"X-Obs-Request-Id": "R1", "x-obs-id-2": "R2"}
        )
    (line,) = caplog.messages
    assert line.startswith("GET http://h/b?X-Amz-Signature=*** -> 503 x-obs-request-id=R1 x-obs-id-2=R2, ")


def test_headers_without_secrets(bucket, moto_url, capsys, clean_environ):
    clean_environ.setenv("AWS_SESSION_TOKEN", "SECRETTOKEN")
    err = told(bucket, capsys, clean_environ, "2")
    assert "  > Range: bytes=0-1" in err or "  > range: bytes=0-1" in err
    assert "***" in err
    for secret in (
        "SECRETTOKEN",
        "Signature=",
        *(moto_url.environ[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")),
    ):
        assert secret not in err
