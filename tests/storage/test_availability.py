"""What requests share about a store: one asks while it is down, and all go on when it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from reshard.errors import Interrupted, Transient
from reshard.storage import Outage, report_outages, shared_connections
from reshard.storage.availability import Availability, Try
from reshard.storage.connections import current_policy, shared
from reshard.storage.retry import Retries, RetryPolicy, retrying

QUICK = RetryPolicy(give_up_after_s=5, first_delay_s=0.02, longest_delay_s=0.1)


class Service:
    """Counts who is asking at once, and answers or does not."""

    def __init__(self) -> None:
        self.is_down = threading.Event()
        self.lock = threading.Lock()
        self.asking = self.most_asking_while_down = self.refusals = 0

    def ask(self) -> None:
        with self.lock:
            self.asking += 1
        time.sleep(0.02)
        with self.lock:
            asking, self.asking = self.asking, self.asking - 1
            if self.is_down.is_set():
                self.refusals += 1
                if self.refusals > 12:  # the first refusals are those that were in flight when it went down
                    self.most_asking_while_down = max(self.most_asking_while_down, asking)
                raise Transient("down")


def test_one_request_at_a_time_asks_a_store_that_is_down() -> None:
    service, availability, done = Service(), Availability(), []

    def work() -> None:
        for _ in range(40):
            retrying(service.ask, Retries(QUICK, availability))
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    service.is_down.set()
    time.sleep(1)
    outage = availability.outage()
    service.is_down.clear()
    for thread in threads:
        thread.join(10)
    assert outage
    assert outage.reason == "down"
    assert 0.8 < outage.seconds < 3
    assert done == [1] * 8
    assert service.most_asking_while_down == 1
    assert service.refusals < 8 + 60
    assert availability.outage() is None


def test_a_request_that_always_fails_keeps_no_other_waiting() -> None:
    availability, ended = Availability(), []

    def poisoned() -> None:
        raise Transient("this object alone")

    def work() -> None:
        with pytest.raises(Transient):
            retrying(poisoned, Retries(RetryPolicy(1, 1, 0.02, 0.05), availability))
        ended.append("poisoned")

    def other() -> None:
        for _ in range(5):
            retrying(lambda: None, Retries(QUICK, availability))
        ended.append("other")

    threads = [threading.Thread(target=each) for each in (work, other)]
    threads[0].start()
    time.sleep(0.3)
    threads[1].start()
    for thread in threads:
        thread.join(5)
    assert ended == ["other", "poisoned"]


def test_a_try_that_is_broken_off_lets_the_next_one_probe() -> None:
    availability = Availability()
    down(availability)
    first = availability.admit(Try(), lambda: None)

    def stop() -> None:
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        availability.admit(Try(), stop)
    availability.broke_off(first)
    availability.answered(availability.admit(Try(), lambda: None))
    assert availability.outage() is None


def test_silence_is_waiting_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.storage.availability._SILENT_S", 0.1)
    availability = Availability()
    assert availability.outage() is None
    asked = availability.admit(Try(), lambda: None)
    assert availability.outage() is None
    time.sleep(0.15)
    outage = availability.outage()
    assert outage
    assert outage.seconds > 0.1
    availability.sent()
    assert availability.outage() is None
    time.sleep(0.15)
    availability.answered(asked)
    assert availability.outage() is None


def test_the_block_is_told_in_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.storage.connections._TELL_EVERY_S", 0.0)
    told: list[Outage | None] = []
    with shared_connections(on_outage=told.append):
        report_outages()
        store = shared("store", Availability)
        down(store)
        in_a_thread(report_outages)
        assert told == []
        with shared_connections():
            report_outages()
        assert [outage and outage.reason for outage in told] == ["x"]
        store.answered(store.admit(Try(), lambda: None))
        report_outages()
        assert told[1:] == [None], "whichever block told of the wait, the one that goes on tells of its end"


def test_a_wait_that_ends_with_the_block_is_told() -> None:
    told: list[Outage | None] = []
    with shared_connections(on_outage=told.append):
        down(shared("store", Availability))
        report_outages()
    assert [bool(outage) for outage in told] == [True, False]


def test_the_policy_is_that_of_the_block() -> None:
    policy = RetryPolicy.patient_for(7)
    assert current_policy() == RetryPolicy()
    with shared_connections(policy):
        with shared_connections():
            assert current_policy() is policy
        with shared_connections(QUICK):
            assert current_policy() is QUICK
        assert current_policy() is policy


def down(availability: Availability) -> None:
    for _ in range(3):
        availability.failed(availability.admit(Try(), lambda: None), "x", 0.0)


def in_a_thread(action: Callable[[], None]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()
