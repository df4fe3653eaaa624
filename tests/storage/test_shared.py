"""Places in one bucket share connections where a block says so, and nothing else."""

import pytest
from support.settings import clear_settings

from reshard.storage import open_source, open_target, s3_client, shared_connections


@pytest.fixture
def made(monkeypatch):
    """Every client that is made, by its bucket."""
    clear_settings(monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    buckets, make = [], s3_client.make_client

    def counted(settings):
        buckets.append(settings.bucket)
        return make(settings)

    monkeypatch.setattr(s3_client, "make_client", counted)
    return buckets


def test_one_client_for_each_bucket(made):
    with shared_connections():
        open_source("s3://one/a"), open_target("s3://one/b"), open_source("s3://two/a")
        with shared_connections():
            open_source("s3://one/c")
    assert made == ["one", "two"]
    open_source("s3://one/a"), open_source("s3://one/a")
    assert made == ["one", "two", "one", "one"], "the next block reads keys and endpoints anew"


def test_each_place_is_stopped_by_itself(made):
    with shared_connections():
        first, second = open_source("s3://one/a").store, open_source("s3://one/a").store
    first.should_stop = lambda: True
    assert first.should_stop()
    assert not second.should_stop()


def test_what_is_decorated_shares_for_one_call(made):
    @shared_connections()
    def both():
        return open_source("s3://one/a"), open_target("s3://one/b")

    both()
    assert made == ["one"]
    both()
    assert made == ["one", "one"]
