"""What is found out about stores of different abilities, and that nothing is left behind."""

from __future__ import annotations

from unittest import mock

import pytest

from reshard.api.doctor import examine
from reshard.errors import Denied, Unsupported
from reshard.storage import MemoryStore, open_location


@pytest.fixture
def store():
    made = MemoryStore("doctor")
    made.clear()
    return made


def outcomes(found):
    return {check.name: check.outcome for check in found.checks}


def test_s3_has_all_but_what_it_does_not_check(moto_url, clean_environ):
    for name, value in moto_url.environ.items():
        clean_environ.setenv(name, value)
    url = f"s3://{moto_url.make_bucket('doctor')}/place"
    found = examine(url)
    assert found.is_ok
    assert "127.0.0.1" in found.access
    assert set(outcomes(found).values()) <= {"yes", "no"}
    assert outcomes(found)["copies of ranges"] == "yes"
    assert list(open_location(url).objects()) == []
    assert moto_url.environ["AWS_SECRET_ACCESS_KEY"] not in repr(found)


def test_a_store_that_does_not_look_at_conditions(store):
    put = MemoryStore.put

    def careless(self, key, body, checksum=None, replaces=None):
        return put(self, key, body, checksum)

    with mock.patch.object(MemoryStore, "put", careless):
        found = examine("memory://doctor")
    assert outcomes(found)["conditional writes"] == "no"
    assert found.is_ok


def test_a_store_that_copies_nothing(store):
    with mock.patch.object(MemoryStore, "copy_part", side_effect=Unsupported("it copies no ranges")):
        found = examine("memory://doctor")
    assert outcomes(found)["copies of ranges"] == "no"
    assert found.is_ok
    assert list(store.list("")) == []
    assert list(store.open_uploads("")) == []


def test_a_store_that_refuses_writes(store):
    with mock.patch.object(MemoryStore, "put", side_effect=Denied("access is denied", hint="Look at the policy.")):
        found = examine("memory://doctor")
    assert not found.is_ok
    (failed,) = (check for check in found.checks if check.is_wrong)
    assert failed.name == "write and read back"
    assert failed.meaning == "access is denied Look at the policy."


def test_a_store_that_damages_bytes(store):
    with mock.patch.object(MemoryStore, "read", return_value=b"9876543210"):
        assert not examine("memory://doctor").is_ok
    assert list(store.list("")) == []
