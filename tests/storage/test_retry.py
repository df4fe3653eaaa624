from __future__ import annotations

import time

import pytest

from reshard.errors import Denied, Interrupted, NotFound, Transient
from reshard.storage.availability import Availability
from reshard.storage.retry import Retries, RetryPolicy, retrying

AT_ONCE = RetryPolicy(first_delay_s=0)


def answered_once() -> Availability:
    availability = Availability()
    retrying(lambda: None, Retries(AT_ONCE, availability))
    return availability


def test_gives_up_with_the_last_reason() -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        raise Transient(f"try {len(calls)}", hint="wait")

    policy = RetryPolicy(give_up_after_s=0.3, first_delay_s=0.02, longest_delay_s=0.05)
    began = time.monotonic()
    with pytest.raises(
        Transient, match=r"try [0-9]+ \(gave up after [0-9]+ tries in 0 s\)\nwait .*give_up_after"
    ) as caught:
        retrying(action, Retries(policy, answered_once()))
    assert f"try {len(calls)} (gave up after {len(calls)} tries" in str(caught.value)
    assert len(calls) > 3
    assert 0.3 <= time.monotonic() - began < 2


def test_one_try_where_there_is_no_time() -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        raise Transient("no")

    with pytest.raises(Transient, match="after 1 try in"):
        retrying(action, Retries(RetryPolicy(give_up_after_s=0), answered_once()))
    assert len(calls) == 1


def test_a_store_that_never_answered_has_less_time() -> None:
    def action() -> None:
        raise Transient("no connection")

    policy = RetryPolicy(give_up_after_s=600, first_answer_s=0.2, first_delay_s=0.01, longest_delay_s=0.05)
    began = time.monotonic()
    with pytest.raises(Transient, match="gave up"):
        retrying(action, Retries(policy))
    assert time.monotonic() - began < 2


def test_who_says_how_long_says_it_of_the_first_answer_too() -> None:
    assert RetryPolicy.patient_for(7200).limit_s(has_answered=False) == 7200
    assert RetryPolicy.patient_for(None).limit_s(has_answered=False) == 60
    assert RetryPolicy.patient_for(None).limit_s(has_answered=True) == 900


def test_a_request_that_begins_during_an_outage_has_what_is_left_of_the_time() -> None:
    availability = answered_once()

    def action() -> None:
        raise Transient("no")

    policy = RetryPolicy(give_up_after_s=0.3, first_delay_s=0.01, longest_delay_s=0.05)
    for _ in range(2):
        with pytest.raises(Transient):
            retrying(action, Retries(policy, availability))
    began = time.monotonic()
    with pytest.raises(Transient, match="after 1 try in"):
        retrying(action, Retries(policy, availability))
    assert time.monotonic() - began < 0.25


@pytest.mark.parametrize("error", [Denied, NotFound])
def test_other_errors_pass_at_once(error: type[Exception]) -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        raise error("no")

    availability = Availability()
    with pytest.raises(error):
        retrying(action, Retries(RetryPolicy(), availability))
    assert len(calls) == 1
    assert availability.has_answered, "a refusal is an answer"


def test_waits_grow_to_a_limit() -> None:
    policy = RetryPolicy(first_delay_s=0.5, longest_delay_s=3)
    assert [policy.longest_wait_s(failures) for failures in (1, 2, 3, 4, 1000)] == [0.5, 1, 2, 3, 3]


def test_progress_starts_the_time_again() -> None:
    retries = Retries(RetryPolicy(give_up_after_s=0.2, first_delay_s=0, longest_delay_s=0), answered_once())
    for _ in range(4):
        with retries:
            time.sleep(0.1)
            retries.progressed()
            raise Transient("x")
    assert retries.has_next

    def fail() -> None:
        time.sleep(0.3)
        raise Transient("x")

    with pytest.raises(Transient, match="gave up"):
        retrying(fail, retries)


def test_a_wait_is_cut_short() -> None:
    began = time.monotonic()

    def action() -> None:
        raise Transient("x")

    retries = Retries(RetryPolicy(first_delay_s=60, longest_delay_s=60), None, lambda: time.monotonic() - began > 0.1)
    with pytest.raises(Interrupted):
        retrying(action, retries)
    assert time.monotonic() - began < 2


def test_waiting_is_told() -> None:
    told: list[int] = []
    answers = iter([Transient("x"), None])

    def action() -> None:
        if error := next(answers):
            raise error

    retrying(action, Retries(RetryPolicy(first_delay_s=1), on_wait=lambda: told.append(1)))
    assert len(told) >= 1
