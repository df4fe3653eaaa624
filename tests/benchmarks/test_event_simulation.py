"""The closed formula of an estimate against every request of every step, on virtual time."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.planning import plan_for

from reshard.planning.cost.cost import Cost
from reshard.planning.cost.duration import Account, Machines, Speeds, estimate_time
from reshard.planning.cost.estimate import machines_for
from reshard.planning.cost.requests import RequestCounts
from reshard.planning.limits import MIB, Limits
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.rank_target import RankTarget
from reshard.tensor import DType, Layout, Strategy, TensorSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import report
import simulate
from event_simulation import Losses, Simulation, StepWork, works_of
from plans import catalog_of

SPEEDS = {
    "line": Speeds(2e8),
    "both ways": Speeds(2e8, is_shared=False),
    "latency": Speeds(1e10, 0.5),
    "connections": Speeds(1e10, connection_bytes_s=2e7),
    "cpu": Speeds(1e11, 0.001, cpu_s_per_gib=8.0),
    "account": Speeds(1e10, accounts=(Account(3e8),)),
    "all alike": Speeds(3e9, is_shared=False, connection_bytes_s=9e7),
    "failures": Speeds(1e10, 0.2, error_rate=0.01),
}


def plan(layers, rank_count, memory_mib, process_count=1, copy_bases=()):
    """Of a small model whose matrices are cut by rows or by columns."""
    shapes = {"q": (2048, 2048), "k": (256, 2048), "up": (6144, 2048), "down": (2048, 6144), "norm": (2048,)}
    maps = {"down": ((), (0,)), "norm": ((),)}
    specs = [
        TensorSpec(f"{n}.{name}.weight", DType.BF16, shape) for n in range(layers) for name, shape in shapes.items()
    ]
    layouts = {spec.name: Layout((rank_count,), maps.get(spec.name.split(".")[1], ((0,), ()))) for spec in specs}
    target = RankTarget(Strategy(rank_count, (layouts,)), tuple(range(rank_count)), "rank_{rank}/c.safetensors")
    limits = Limits(memory_bytes=memory_mib * MIB, process_count=process_count)
    return plan_for(catalog_of(specs, 4), target, "s3://m/r", limits, copy_bases=copy_bases)


PLANS = {
    "4 ranks": lambda: plan(12, 4, 512),
    "8 ranks, 2 processes": lambda: plan(24, 8, 512, 2),
    "little memory": lambda: plan(6, 2, 128),
    "8 processes": lambda: plan(24, 4, 2048, 8),
    "copies": lambda: plan(16, 4, 512, copy_bases=(REPLICAS, 0)),
}


def both(made, works, speeds, machine_count):
    machines = machines_for(made, machine_count)
    found = estimate_time(made.cost, RequestCounts.of(made.cost), speeds, machines)
    return found.seconds - found.commit_s, Simulation(works, speeds, machines).run().seconds


@pytest.mark.parametrize("name", PLANS)
def test_the_formula_agrees(name):
    made = PLANS[name]()
    works = works_of(made)
    wrong = []
    for title, speeds in SPEEDS.items():
        # With as many machines as steps, it counts which of them is the longest.
        for machine_count, tolerance in ((1, 0.15), (3, 0.15), (16, 0.35)):
            formula_s, simulated_s = both(made, works, speeds, machine_count)
            if abs(formula_s / simulated_s - 1) > tolerance:
                wrong.append((title, machine_count, formula_s, simulated_s))
    assert not wrong


def test_steps_are_those_of_the_plan():
    made = PLANS["copies"]()
    works = works_of(made)
    assert len(works) == made.cost.step_count
    assert sum(map(sum, (work.reads for work in works))) == made.cost.read_bytes
    assert sum(len(work.reads) for work in works) == made.cost.get_count
    assert sum(nbytes * keys for work in works for nbytes, keys in work.parts) == made.cost.written_bytes
    assert sum(map(sum, (work.copies for work in works))) == made.cost.copied_bytes > 0
    assert sum(work.held_bytes for work in works) == made.cost.filled_bytes
    assert sum(bool(work.parts) for work in works) == made.cost.streamed_step_count
    steps = [step for index in range(len(made.groups)) for step in made.steps(index)]
    assert [work.held_bytes for work in works] == [step.nbytes for step in steps]


READING = StepWork(reads=(10**8,), parts=((10**8, 1),), copies=(), held_bytes=10**8)  # a second each, of 10**8 bytes/s
SLOW = Speeds(1e8, latency_s=0, is_shared=False, cpu_s_per_gib=0, handout_s=0)


def seconds(works, machines, losses=None, **speeds):
    return Simulation(works, replace(SLOW, **speeds), machines, losses).run()


def test_by_hand():
    assert seconds([READING], Machines(1, 1, 8, 10**8)).seconds == pytest.approx(2)
    assert seconds([READING] * 5, Machines(1, 1, 8, 10**8)).seconds == pytest.approx(10)  # no memory for a second one
    assert seconds([READING] * 5, Machines(1, 1, 8, 2 * 10**8)).seconds == pytest.approx(
        6
    )  # read while others are sent
    assert seconds([READING] * 5, Machines(1, 1, 1, 2 * 10**8)).seconds == pytest.approx(10)  # one request in flight
    assert seconds([READING] * 8, Machines(4, 1, 8, 10**8)).seconds == pytest.approx(4)
    assert seconds([READING] * 8, Machines(8, 1, 8, 10**8), handout_s=1).seconds == pytest.approx(
        10
    )  # the last begins at 8


def test_steps_of_a_lost_machine_are_done_again():
    machines, works = Machines(20, 1, 8, 10**8), [READING] * 2000
    assert seconds(works, machines).seconds == pytest.approx(200)
    lost = seconds(works, machines, Losses(0.05, notice_s=30))
    assert lost.lost_count == 3  # after 60 s, 60 / 0.95 s more, and 60 / 0.9 s more
    assert lost.redone_bytes == 3 * 2 * READING.moved_bytes  # of each a step under way, and one that waits for memory
    assert lost.seconds == pytest.approx(60 + 60 / 0.95 + 60 / 0.9 + 30 + 2, abs=3)  # of the third the others hear then
    assert seconds([READING] * 100, Machines(1, 1, 8, 10**8), Losses(0.5)).lost_count == 0  # the last is never lost


def test_results_are_those_of_the_model_today():
    found = json.loads((report.RESULTS / "simulate.json").read_text())
    for case in found["cases"]:
        # What was measured is that of the day: other results may have been measured since.
        measured = {name: case["speeds"][name] for name in ("cpu_s_per_gib", "handout_s")}
        speeds = replace(simulate.speeds_of(case["model"], case["service"]), **measured)
        assert case["speeds"] == json.loads(json.dumps(asdict(speeds)))
        cost, requests = Cost(**case["cost"]), RequestCounts(**case["requests"])
        for row in case["rows"]:
            told = estimate_time(cost, requests, speeds, Machines(**row["machines"]))
            assert asdict(told) == pytest.approx(row["formula"])
            assert told.seconds == pytest.approx(row["seconds"], rel=0.15)


def test_a_case_is_simulated_as_results_hold_it():
    made = PLANS["4 ranks"]()
    speeds = simulate.speeds_of("deepseek-v3", "Huawei OBS")
    alone, many = simulate.simulated(made, works_of(made), speeds, (1, 8))
    [case, *_] = json.loads((report.RESULTS / "simulate.json").read_text())["cases"]
    assert alone.keys() == many.keys() == case["rows"][0].keys()
    assert alone["seconds"] == pytest.approx(alone["formula"]["seconds"], rel=0.15)
    slow = replace(speeds, accounts=(Account(bytes_s=1e6),))
    assert simulate.enough_nodes(made, slow) == 1
    assert simulate.enough_nodes(made, speeds) > 1
