"""The block of memory for parts: never handed out twice, all or none, and waiting ends when it can."""

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.engine.executors.arena import Arena, ThreadBuffers


def never_wait():
    raise AssertionError("waited")


class Stopped(Exception):
    pass


def stop():
    raise Stopped


def span(lease):
    return lease.start, lease.stop


def test_stretches_lie_one_after_the_other():
    arena = Arena(100)
    leases = arena.take([10, 20, 70], never_wait)
    assert [span(lease) for lease in leases] == [(0, 10), (10, 30), (30, 100)]
    assert [len(lease.view) for lease in leases] == [10, 20, 70]
    assert arena.free_bytes == 0


def test_what_is_given_back_is_handed_out_again():
    arena = Arena(30)
    first, second, third = arena.take([10, 10, 10], never_wait)
    second.view[:] = b"x" * 10
    arena.give(second)
    [again] = arena.take([10], never_wait)
    assert (span(again), bytes(again.view)) == (span(second), b"x" * 10)
    for lease in (third, first, again):
        arena.give(lease)
    [whole] = arena.take([30], never_wait)
    assert span(whole) == (0, 30)


def test_views_are_of_one_block():
    arena = Arena(10)
    [lease] = arena.take([10], never_wait)
    lease.view[:] = b"0123456789"
    arena.give(lease)
    left, right = arena.take([4, 6], never_wait)
    assert (bytes(left.view), bytes(right.view)) == (b"0123", b"456789")


def test_all_or_none():
    """The first of two would fit, the second not: nothing is taken."""
    arena = Arena(30)
    [held] = arena.take([15], never_wait)
    with pytest.raises(Stopped):
        arena.take([10, 10], stop, wait_s=0.001)
    assert arena.free_bytes == 15
    arena.give(held)
    assert arena.free_bytes == 30


def test_free_bytes_in_pieces_may_be_of_no_use_until_more_come_back():
    arena = Arena(30)
    first, second, third = arena.take([10, 10, 10], never_wait)
    arena.give(first)
    arena.give(third)
    with pytest.raises(Stopped):
        arena.take([20], stop, wait_s=0.001)
    arena.give(second)
    assert [span(lease) for lease in arena.take([20], never_wait)] == [(0, 20)]


def test_several_stretches_may_lie_in_several_pieces():
    arena = Arena(30)
    first, _, third = arena.take([10, 10, 10], never_wait)
    arena.give(first)
    arena.give(third)
    assert [span(lease) for lease in arena.take([10, 10], never_wait)] == [(0, 10), (20, 30)]


def test_more_than_there_ever_is():
    with pytest.raises(ValueError, match="31 bytes do not fit an arena of 30"):
        Arena(30).take([16, 15], never_wait)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 5]])
def test_nothing_is_always_there(sizes):
    arena = Arena(5)
    leases = arena.take(sizes, never_wait)
    assert [len(lease.view) for lease in leases] == sizes
    for lease in leases:
        arena.give(lease)
    assert arena.free_bytes == 5


def test_an_empty_arena():
    arena = Arena(0)
    [lease] = arena.take([0], never_wait)
    arena.give(lease)
    assert arena.free_bytes == 0


def test_waiting_ends_when_enough_comes_back():
    arena = Arena(10)
    first, second = arena.take([5, 5], never_wait)
    waited = threading.Event()
    taken = []
    taker = threading.Thread(target=lambda: taken.extend(arena.take([10], waited.set, wait_s=0.001)))
    taker.start()
    assert waited.wait(10)
    arena.give(first)
    arena.give(second)
    taker.join(10)
    assert [span(lease) for lease in taken] == [(0, 10)]


def test_waiting_is_woken_not_polled():
    """A giver need not wait for the taker's next look."""
    arena = Arena(10)
    [held] = arena.take([10], never_wait)
    taken = []
    taker = threading.Thread(target=lambda: taken.extend(arena.take([10], lambda: None, wait_s=3600)))
    taker.start()
    arena.give(held)
    taker.join(10)
    assert not taker.is_alive()
    assert len(taken) == 1


def test_a_stop_ends_the_waiting():
    arena = Arena(10)
    arena.take([10], never_wait)
    stopping = threading.Event()
    outcome = []

    def take():
        try:
            arena.take([1], lambda: stop() if stopping.is_set() else None, wait_s=0.001)
        except Stopped:
            outcome.append("stopped")

    taker = threading.Thread(target=take)
    taker.start()
    stopping.set()
    taker.join(10)
    assert outcome == ["stopped"]
    assert arena.free_bytes == 0


def test_threads_never_hold_the_same_bytes():
    arena, wrong = Arena(1000), []

    def use(mark):
        for size in range(1, 300):
            leases = arena.take([size, 300 - size], lambda: None, wait_s=0.01)
            for lease in leases:
                lease.view[:] = bytes([mark]) * len(lease.view)
            if any(bytes(lease.view) != bytes([mark]) * len(lease.view) for lease in leases):
                wrong.append(mark)
            for lease in leases:
                arena.give(lease)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert arena.free_bytes == 1000


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=40))
def test_leases_are_apart_and_account_for_all(moves):
    arena, held = Arena(100), []
    for is_take, number in moves:
        if is_take:
            try:
                held += arena.take([number, number // 2], stop, wait_s=0)
            except Stopped:  # too little is left, or it lies in pieces
                wanted = number + number // 2
                assert arena.free_bytes < wanted or any(len(lease.view) for lease in held)
        elif held:
            arena.give(held.pop(number % len(held)))
        spans = sorted(span(lease) for lease in held if len(lease.view))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert arena.free_bytes + sum(stop - start for start, stop in spans) == 100


def test_every_thread_has_a_buffer_of_its_own():
    buffers, views = ThreadBuffers(10), []

    def use(mark):
        buffers.mine()[:] = bytes([mark]) * 10
        views.append((mark, buffers.mine()))

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(mark for mark, _ in views) == [0, 1, 2, 3]
    assert all(bytes(view) == bytes([mark]) * 10 for mark, view in views)
