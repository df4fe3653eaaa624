from __future__ import annotations

import time

import pytest

from reshard.errors import Denied, Interrupted, Transient
from reshard.storage.retry import Retries, RetryPolicy, retrying
from reshard.storage.stopping import pause


def test_gives_up_with_the_last_reason() -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        raise Transient(f"try {len(calls)}", hint="wait")

    with pytest.raises(Transient, match=r"try 3 \(gave up after 3 tries in 0 s\)\nwait"):
        retrying(action, RetryPolicy(tries=3, first_delay_s=0))
    assert len(calls) == 3


def test_other_errors_pass_at_once() -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        raise Denied("no")

    with pytest.raises(Denied):
        retrying(action, RetryPolicy())
    assert len(calls) == 1


def test_waits_grow_to_a_limit() -> None:
    policy = RetryPolicy(first_delay_s=0.5, longest_delay_s=3)
    assert [policy.longest_wait_s(failures) for failures in (1, 2, 3, 4, 1000)] == [0.5, 1, 2, 3, 3]


def test_progress_starts_the_count_again() -> None:
    retries = Retries(RetryPolicy(tries=2, first_delay_s=0))
    for _ in range(5):
        retries.failed(Transient("x"))
        retries.progressed()
    retries.failed(Transient("x"))
    with pytest.raises(Transient, match="after 2 tries"):
        retries.failed(Transient("x"))


def test_pause_is_cut_short() -> None:
    began = time.monotonic()
    with pytest.raises(Interrupted):
        pause(60, lambda: time.monotonic() - began > 0.1)
    assert time.monotonic() - began < 2
