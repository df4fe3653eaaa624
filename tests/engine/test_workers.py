"""Threads that carry tasks: urgency, the first failure, stopping."""

import threading
import time

import pytest

from reshard.engine.workers import Workers, working
from reshard.errors import Interrupted, NotFound, Transient
from reshard.storage import MemoryStore


class Gate:
    """A task that waits until it is let through, and tells when it has begun."""

    def __init__(self):
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.open.wait(20)


def test_the_most_urgent_goes_first_then_the_oldest():
    with working(1) as workers:
        gate, order = Gate(), []
        workers.submit(gate)
        assert gate.begun.wait(20)
        for name, urgency in [("a", 0), ("b", 1), ("c", 0), ("d", 1), ("e", -1)]:
            workers.submit(lambda name=name: order.append(name), urgency=urgency)
        gate.open.set()
        workers.wait()
    assert order == ["b", "d", "a", "c", "e"]


def test_as_many_at_once_as_there_are_workers():
    with working(3) as workers:
        gates = [Gate() for _ in range(4)]
        for gate in gates:
            workers.submit(gate)
        assert all(gate.begun.wait(20) for gate in gates[:3])
        assert not gates[3].begun.is_set()
        for gate in gates:
            gate.open.set()
        workers.wait()
    assert gates[3].begun.is_set()


def test_tasks_may_queue_more_tasks():
    done = []

    def task(depth):
        done.append(depth)
        if depth < 50:
            workers.submit(lambda: task(depth + 1))

    with working(2) as workers:
        workers.submit(lambda: task(0))
        workers.wait()
    assert done == list(range(51))


def test_map_runs_every_item():
    seen = []
    with working(4) as workers:
        workers.map(seen.append, range(100))
        workers.map(seen.append, [])
    assert sorted(seen) == list(range(100))


def test_waiting_tells_now_and_then():
    told = []
    with working(1) as workers:
        gate = Gate()
        workers.submit(gate)
        workers.wait(lambda: (told.append(None), gate.open.set()))
    assert told


def test_the_first_failure_is_raised_and_what_is_queued_is_dropped():
    ran = []

    def fail():
        raise NotFound("made up")

    def run():
        with working(1) as workers:
            gate = Gate()
            workers.submit(gate)
            assert gate.begun.wait(20)
            workers.submit(fail)
            for number in range(20):
                workers.submit(lambda number=number: ran.append(number))
            gate.open.set()
            workers.wait()

    with pytest.raises(NotFound, match="made up"):
        run()
    assert ran == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), Transient("made up")])
def test_any_failure_is_carried_over(error):
    def fail():
        raise error

    with pytest.raises(type(error)), working(2) as workers:
        workers.map(lambda _: fail(), range(10))


def test_what_fails_because_of_the_stop_is_not_the_cause():
    """One task fails; others, told to stop, raise Interrupted: the cause is reported."""
    ready = threading.Barrier(3, timeout=20)

    def run():
        with working(3) as workers:

            def obey():
                ready.wait()
                assert workers._stopped.wait(20)
                raise Interrupted("told to")

            def fail():
                ready.wait()
                raise NotFound("the cause")

            for task in (obey, fail, obey):
                workers.submit(task)
            workers.wait()

    with pytest.raises(NotFound, match="the cause"):
        run()


def test_check_tells_at_once():
    workers = Workers(1)
    workers.check()
    workers.stop()
    assert workers.is_stopped
    with pytest.raises(Interrupted):
        workers.check()
    workers.close()


def test_what_fails_after_a_stop_from_outside_is_not_its_cause():
    begun = threading.Event()
    with working(1) as workers:

        def obey():
            begun.set()
            assert workers._stopped.wait(20)
            raise NotFound("a consequence")

        workers.submit(obey)
        assert begun.wait(20)
        workers.stop()
        assert workers.drain()
        with pytest.raises(Interrupted):
            workers.check()


def test_a_block_left_by_an_error_waits_for_running_tasks():
    begun, ended = threading.Event(), []

    def leave():
        with working(2) as workers:

            def run():
                begun.set()
                ended.append(workers._stopped.wait(20))

            workers.submit(run)
            assert begun.wait(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert ended == [True]


def test_stores_are_asked_to_break_off_and_are_released_afterwards():
    store, answers = MemoryStore(), []

    def leave():
        with working(1, store) as workers:
            answers.append(store.should_stop())
            workers.stop()
            answers.append(store.should_stop())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert answers == [False, True]
    assert not store.should_stop()


def test_threads_go_home():
    before = set(threading.enumerate())
    with working(3) as workers:
        mine = set(threading.enumerate()) - before
        workers.map(lambda _: None, range(3))
    assert len(mine) == 3
    for thread in mine:
        thread.join(20)
    assert not any(thread.is_alive() for thread in mine)


def test_threads_are_daemons():
    """A connection that hangs must not keep a stopped program alive."""
    with working(2) as workers:
        daemons = []
        workers.map(lambda _: daemons.append(threading.current_thread().daemon), range(4))
    assert daemons == [True] * 4


def test_threads_and_what_they_hold_are_gone_after_the_block():
    with working(3) as workers:
        workers.map(lambda _: None, range(9))
        threads = workers._threads
    assert not any(thread.is_alive() for thread in threads)


def test_settling_lasts_as_long_as_tasks_end():
    """What is given up is a store that does not answer, not one that has much to do."""
    workers, done = Workers(1), []
    for number in range(8):
        workers.submit(lambda number=number: (time.sleep(0.05), done.append(number)))
    workers.drain_quietly(0.2)
    assert done == list(range(8))
    gate = Gate()
    workers.submit(gate)
    began = time.monotonic()
    workers.drain_quietly(0.2)
    assert time.monotonic() - began < 5, "and a task that hangs is given up"
    gate.open.set()
    workers.close(20)
