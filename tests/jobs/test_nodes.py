"""A node's place among the nodes of a job, its share, and the wait for the others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from reshard.errors import Transient, UsageError
from reshard.jobs.nodes import (
    Node,
    check_destination,
    find_node,
    npu_warnings,
    staged_warnings,
    wait_for_shares,
)

TWO = "job-worker-0.job,job-worker-1.job"


@pytest.mark.parametrize(
    ("environ", "npus", "node"),
    [
        ({}, None, Node(0, 1, 8)),
        ({"MA_NUM_HOSTS": "1", "VC_TASK_INDEX": "0"}, "16", Node(0, 1, 16)),
        ({"MA_NUM_HOSTS": "4", "VC_TASK_INDEX": "3"}, None, Node(3, 4, 8)),
        ({"VC_WORKER_NUM": "2", "VC_TASK_INDEX": "1"}, 4, Node(1, 2, 4)),
        ({"VC_WORKER_HOSTS": TWO, "VC_TASK_INDEX": "1"}, None, Node(1, 2, 8)),
        (
            {"MA_NUM_HOSTS": "2", "VC_WORKER_NUM": "2", "VC_WORKER_HOSTS": TWO, "VC_TASK_INDEX": "0"},
            None,
            Node(0, 2, 8),
        ),
        ({"VC_TASK_INDEX": "0"}, None, Node(0, 1, 8)),
    ],
)
def test_place_of_a_node(environ: dict[str, str], npus: str | None, node: Node) -> None:
    assert find_node(environ, npus) == node


@pytest.mark.parametrize(
    ("environ", "npus", "message"),
    [
        ({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "2"}, None, "VC_TASK_INDEX: expected a number below 2.*found 2"),
        ({"VC_TASK_INDEX": "1"}, None, "VC_TASK_INDEX: expected a number below 1"),
        ({"MA_NUM_HOSTS": "2"}, None, "2 nodes, but VC_TASK_INDEX does not say"),
        ({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "-1"}, None, "VC_TASK_INDEX: expected a whole number of at least 0"),
        ({"MA_NUM_HOSTS": "two"}, None, "MA_NUM_HOSTS: expected a whole number of at least 1, found 'two'"),
        (
            {"MA_NUM_HOSTS": "2", "VC_WORKER_NUM": "4"},
            None,
            "not clear how many nodes.*MA_NUM_HOSTS has 2, VC_WORKER_NUM",
        ),
        ({"MA_NUM_HOSTS": "3", "VC_WORKER_HOSTS": TWO}, None, "VC_WORKER_HOSTS has 2"),
        ({}, "0", "npu_num_per_node.*at least 1, found '0'"),
        ({}, "eight", "npu_num_per_node.*found 'eight'"),
        ({}, "8.0", "npu_num_per_node"),
    ],
)
def test_a_place_that_is_unclear(environ: dict[str, str], npus: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_node(environ, npus)


@pytest.mark.parametrize("rank_count", [1, 5, 8, 9, 16])
@pytest.mark.parametrize(("count", "npus"), [(1, 8), (2, 8), (4, 4), (4, 8), (16, 1)])
def test_shares_are_all_ranks_once(count: int, npus: int, rank_count: int) -> None:
    shares = [Node(index, count, npus).share(rank_count) for index in range(count)]
    assert [rank for share in shares for rank in share] == list(range(rank_count))
    if count > 1:
        owners = [Node(0, count, npus).owner(rank) for rank in range(rank_count)]
        assert owners == [index for index, share in enumerate(shares) for _ in share]


def test_fewer_npus_than_ranks() -> None:
    with pytest.raises(UsageError, match="2 nodes of 8 NPUs are for 16 ranks, but the target has 64") as caught:
        Node(0, 2, 8).share(64)
    assert "npu_num_per_node='32'" in caught.value.hint
    assert Node(0, 1, 8).share(64) == range(64)


def test_npus_that_the_node_really_has() -> None:
    (warning,) = npu_warnings({"MA_NUM_GPUS": "16"}, Node(0, 2, 8))
    assert "16 NPUs (MA_NUM_GPUS), but each node writes 8 ranks" in warning
    for environ, node in (
        ({"MA_NUM_GPUS": "8"}, Node(0, 2, 8)),
        ({"MA_NUM_GPUS": "0"}, Node(0, 2, 8)),  # a node without NPUs may convert for those that have
        ({"MA_NUM_GPUS": "16"}, Node(0, 1, 8)),
        ({}, Node(0, 2, 8)),
    ):
        assert npu_warnings(environ, node) == []


STAGED = "/home/ma-user/modelarts/inputs/data_url_0"


def test_staged_copies() -> None:
    (warning,) = staged_warnings({"data_url": STAGED, "load_checkpoint": "obs://b/k", "src": None, "dst": "/mnt/sfs/x"})
    assert warning.startswith(f"data_url={STAGED} is a copy inside the container")
    with pytest.raises(UsageError, match="inside each node's own container: 2 nodes"):
        check_destination("/home/ma-user/modelarts/outputs/train_url_0/", Node(0, 2))
    check_destination("/home/ma-user/modelarts/outputs/train_url_0/", Node(0, 1))
    with pytest.raises(UsageError, match="cannot write one checkpoint there"):
        check_destination("./output/transformed_checkpoint", Node(0, 2))
    check_destination("obs://b/out", Node(0, 2))
    check_destination("/mnt/shared/out", Node(0, 2))


class Time:
    """A clock that sleeping moves on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 10
        self.now_s += seconds


def wait(answers: Sequence[object], limit_s: float = 7200.0) -> tuple[list[str], Time]:
    """Wait with these answers, the last one for ever."""
    time, told, left = Time(), list[str](), list(answers)

    def missing():
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    wait_for_shares(missing, Node(0, 4, 4), limit_s, told.append, clock=time.clock, sleep=time.sleep)
    return told, time


def test_what_is_there_is_not_waited_for() -> None:
    told, time = wait([None])
    assert (told, time.now_s) == ([], 100.0)


def test_the_wait_is_told_twice_a_minute() -> None:
    told, time = wait([(), *[(4, 5, 12)] * 20, None])
    assert time.now_s - 100 == pytest.approx(21 * 5)
    assert len(told) == 4
    assert told[0] == "waiting for the other nodes, 0 of 7200 s: its manifest is not there yet"
    assert told[1].endswith("30 of 7200 s: ranks 4-5, 12 of nodes 1, 3 are missing")


def test_a_node_that_never_comes() -> None:
    with pytest.raises(
        Transient, match="after 60 s the destination is not complete: ranks 8-11 of node 2 are missing"
    ) as caught:
        wait([(8, 9, 10, 11)], 60.0)
    assert caught.value.exit_code == 5
    assert "wait" in caught.value.hint


def test_no_time_to_wait() -> None:
    with pytest.raises(Transient, match="after 0 s"):
        wait([(8,)], 0.0)
    assert wait([None], 0.0)[0] == []


def test_a_store_that_is_busy_is_asked_again() -> None:
    told, _ = wait([Transient("Cannot list: the store answered 503."), None])
    assert "the store answered 503" in told[0]
