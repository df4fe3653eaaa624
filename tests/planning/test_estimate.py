"""Seconds and money, from a plan's figures."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import UsageError
from reshard.planning.cost.cost import Cost
from reshard.planning.cost.duration import Account, Machines, Speeds, estimate_time
from reshard.planning.cost.estimate import Estimate, reading, writing
from reshard.planning.cost.prices import Payee, bill, built_in_prices, total_money
from reshard.planning.cost.requests import RequestCounts

GIB = 1 << 30
COST = Cost(
    needed_bytes=100 * GIB, read_bytes=100 * GIB, written_bytes=100 * GIB, copied_bytes=0, get_count=12800,
    put_count=0, part_count=6400, copy_count=0, upload_count=8, step_count=800, streamed_step_count=800,
    filled_bytes=100 * GIB, largest_step_bytes=GIB // 8, peak_bytes=GIB,
)  # fmt: skip
IDLE = replace(
    COST, read_bytes=0, written_bytes=0, get_count=0, part_count=0, upload_count=0, streamed_step_count=0,
    filled_bytes=0, largest_step_bytes=0,
)  # fmt: skip
AWS, OBS, FREE = (built_in_prices()[name] for name in ("aws-us-east-1", "obs-cn-north-4", "free"))


def time(cost=COST, concurrency=8, machine_count=1, process_count=1, parts_bytes=GIB, **speeds):
    machines = Machines(machine_count, process_count, concurrency, parts_bytes)
    return estimate_time(cost, RequestCounts.of(cost), Speeds(**speeds), machines)


def money(cost, providers, tables, egress="region", object_count=0, kept_bytes=0):
    (source, target), requests = map(Payee, providers, tables), RequestCounts.of(cost, object_count)
    return (
        bill("source", source, reading(cost, requests), egress),
        bill("target", target, writing(requests, kept_bytes), egress),
    )


def test_the_narrowest_place_is_named():
    assert time().limited_by == "bandwidth"
    assert time(latency_s=0.5).limited_by == "latency"
    assert time(bandwidth_bytes_s=1e11).limited_by == "cpu"
    assert time(connection_bytes_s=1e6).limited_by == "connections"
    copying = replace(IDLE, copied_bytes=100 * GIB, copy_count=200)
    assert time(copying).limited_by == "copies"
    assert time(replace(IDLE, upload_count=1000)).limited_by == "latency"


def test_a_copy_is_told_by_its_speed_and_concurrency():
    copying = replace(IDLE, copied_bytes=8 * 10**9, copy_count=16)
    assert time(copying, latency_s=0, copy_bytes_s=1e8).seconds == pytest.approx(10)
    assert time(copying, concurrency=80, latency_s=0, copy_bytes_s=1e8).seconds == pytest.approx(5)  # one alone


def test_machines_help_until_the_account_or_the_steps_limit():
    one, many, most = (time(machine_count=count, latency_s=0.001) for count in (1, 8, 1600))
    assert many.seconds == pytest.approx(one.seconds / 8, rel=0.05)
    assert (one.limited_by, many.limited_by, most.limited_by) == ("bandwidth", "bandwidth", "steps")
    allowed = time(machine_count=8, latency_s=0.001, accounts=(Account(bytes_s=2e9),))
    assert (allowed.limited_by, allowed.seconds) == ("account", pytest.approx(200 * GIB / 2e9, rel=0.05))
    reading = time(machine_count=8, latency_s=0.001, accounts=(Account(bytes_s=1e9, has_target=False),))
    assert (reading.limited_by, reading.seconds) == ("account", pytest.approx(100 * GIB / 1e9, rel=0.05))
    asking = time(machine_count=8, latency_s=0.001, accounts=(Account(gets_s=100, puts_s=10_000),))
    assert (asking.limited_by, asking.seconds) == ("account", pytest.approx(128, rel=0.05))


def test_little_memory_leaves_steps_waiting_for_each_other():
    assert time(parts_bytes=GIB // 8, latency_s=0.05).limited_by == "memory"
    assert time(parts_bytes=GIB // 8, latency_s=0.05).seconds > time(latency_s=0.05).seconds


def test_processes_share_the_cores_of_a_machine():
    fast = {"bandwidth_bytes_s": 1e11, "process_count": 8}
    assert time(**fast).client_s == pytest.approx(200 / 8)
    assert time(**fast, core_count=4).client_s == pytest.approx(200 / 4)
    assert time(**fast, core_count=16).client_s == time(**fast).client_s


def test_one_leader_hands_out_all_steps():
    found = time(machine_count=100, handout_s=0.1)
    assert (found.limited_by, found.leader_s) == ("leader", pytest.approx(80))
    assert found.seconds > 80


def test_failed_requests_are_made_again():
    assert time(latency_s=0.2, error_rate=0.5).requests_s > 2 * time(latency_s=0.2).requests_s


def test_both_ways_may_have_a_bandwidth_each():
    assert time(is_shared=False).line_s == pytest.approx(time().line_s / 2)


@given(
    st.floats(1e6, 1e11), st.floats(0, 10), st.integers(1, 100), st.integers(0, 10**13), st.integers(0, 10**6)
)  # fmt: skip
def test_no_bound_is_broken(bandwidth, latency, concurrency, nbytes, count):
    cost = replace(COST, read_bytes=nbytes, get_count=count)
    found = time(cost, concurrency, bandwidth_bytes_s=bandwidth, latency_s=latency)
    above = found.seconds * (1 + 1e-9)
    assert above >= (nbytes + cost.written_bytes) / bandwidth
    assert above >= count * latency / concurrency
    longest = max(found.line_s, found.requests_s, found.client_s, found.memory_s)
    assert found.seconds == pytest.approx(longest + found.tail_s + found.commit_s)
    assert time(cost, concurrency + 1, bandwidth_bytes_s=bandwidth, latency_s=latency).seconds <= above
    assert time(cost, concurrency, bandwidth_bytes_s=2 * bandwidth, latency_s=latency).seconds <= above
    assert time(cost, concurrency, 2, bandwidth_bytes_s=bandwidth, latency_s=latency).seconds <= above


@pytest.mark.parametrize(
    "wrong",
    [{"bandwidth_bytes_s": 0}, {"latency_s": -1}, {"copy_bytes_s": float("nan")}, {"connection_bytes_s": 0},
     {"core_count": 0}, {"error_rate": 1}, {"latency_s": float("inf")}],
)  # fmt: skip
def test_speeds_that_make_no_sense(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Speeds(**wrong)


def test_money_by_hand():
    counted = {"object_count": 100, "kept_bytes": 100 * GIB}
    source, target = money(COST, ("AWS S3", "AWS S3"), (AWS, AWS), **counted)
    assert source.requests == pytest.approx((12800 + 100) / 1000 * 0.0004)
    assert (source.egress, source.egress_outside) == (0, pytest.approx(9))
    assert target.requests == pytest.approx((6400 + 4 + 16 + 3) / 1000 * 0.005)
    assert (target.egress, target.egress_outside) == (0, 0)
    assert (source.storage_month, target.storage_month) == (0, pytest.approx(2.3))
    [source, _] = money(COST, ("AWS S3", "AWS S3"), (AWS, AWS), "internet", **counted)
    assert source.egress == source.egress_outside == pytest.approx(9)


def test_copies_are_requests_and_no_egress():
    copied = replace(IDLE, copied_bytes=GIB, copy_count=2000)
    source, target = money(copied, ("Huawei OBS", "Huawei OBS"), (OBS, OBS), "internet")
    assert source.total == 0
    assert target.requests == pytest.approx((2000 + 3 + 3) / 1000 * 0.001)
    assert (
        RequestCounts.of(copied).total == 2000 + 8
    )  # record, journal and manifest, three listings, and record and journal removed


def test_currencies_are_not_added():
    bills = money(COST, ("AWS S3", "Huawei OBS"), (AWS, OBS))
    assert list(total_money(bills)) == ["USD", "CNY"]
    unknown = money(COST, ("gs://", "local"), (None, FREE))
    assert [bill.is_known for bill in unknown] == [False, True]
    assert total_money(unknown) == {"USD": 0}


def test_an_estimate_is_json():
    requests = RequestCounts.of(COST)
    bills = money(COST, ("AWS S3", "gs://"), (AWS, None))
    found = Estimate(requests, Speeds(), time(), "region", bills, COST, 1).to_json()
    assert json.loads(json.dumps(found))["bills"][0]["currency"] == "USD"
