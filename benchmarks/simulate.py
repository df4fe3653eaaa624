"""How long many machines would take, and what would limit them: simulated, as there is only this one.

The largest models of ``plans.py`` are planned as ever, every byte through the machines, and every request of every step
is followed on virtual time (``event_simulation.py``), for stores that allow an account what OBS and AWS do, or all that
it asks for. Beside each time is what the closed formula of ``reshard plan --nodes`` says.
``python benchmarks/simulate.py`` writes ``results/simulate.json``; it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import plans
import report
from event_simulation import Losses, Simulation, StepWork, works_of

from reshard.engine.executors.messages import Done, Steps, Wanting
from reshard.engine.writer import PartReceipt
from reshard.planning.conversion import Conversion
from reshard.planning.cost.duration import Account, Machines, Speeds, TimeEstimate, estimate_time
from reshard.planning.cost.estimate import machines_for
from reshard.planning.cost.requests import RequestCounts
from reshard.planning.limits import Limits
from reshard.planning.plan import Plan, make_plan
from reshard.planning.targets.rank_target import RankTarget
from reshard.storage.providers import PROVIDERS

CPU_LIKE = {"llama-3.1-405b": "mp4pp2_to_mp2", "deepseek-v3": "fp8_to_bf16"}
"""The workload of ``results/bench.json`` that takes the client's CPU as a model does: moved, or computed as well."""
NODES = (1, 8, 64, 512)
SERVICES = ("Huawei OBS", "AWS S3", UNLIMITED := "no limit")
"""Whose allowance an account has."""
LIMITS = Limits(memory_bytes=4 << 30, process_count=8)
LINE = Speeds(
    bandwidth_bytes_s=25e9 / 8, is_shared=False, latency_s=0.02, connection_bytes_s=90e6, core_count=8, error_rate=1e-4
)
"""Of machines with 25 Gbit/s in each direction, in the region of a store that carries 90 MB/s over one connection."""
LOSSES = Losses(share_a_minute=0.01)
_WORTH = 0.9  # doubling the machines helps if less than this is left of the time
_MOST_NODES = 4096


def plan_of(model: str) -> Plan:
    """The plan of a model as Hugging Face publishes it, to rank shards; nothing is copied."""
    catalog, strategy, change = plans.chosen(model, None)
    target = RankTarget(strategy, tuple(range(strategy.rank_count)), "rank_{rank}/checkpoint_{rank}.safetensors")
    return make_plan(Conversion(catalog, target, "s3://models/ranks", change=change), LIMITS)


def speeds_of(model: str, service: str) -> Speeds:
    """The speeds of machines and of a service, the client's CPU as it was measured."""
    measured = json.loads((report.RESULTS / "bench.json").read_text())["workloads"]
    [ways] = [each["ways"] for each in measured if each["name"] == CPU_LIKE[model]]
    allowed = [provider.allowance for provider in PROVIDERS if provider.name == service]
    accounts = tuple(Account(each.bytes_s, each.gets_s, each.puts_s) for each in allowed)
    assert len(accounts) == (service != UNLIMITED)
    return replace(LINE, accounts=accounts, cpu_s_per_gib=ways["reshard"]["medians"]["cpu_s_per_gib"])


def requests_of(plan: Plan) -> RequestCounts:
    """The requests of a plan; of HEADs, those that look at each object of the source."""
    return RequestCounts.of(plan.cost, head_count=len(plan.catalog.objects))


def formula(plan: Plan, speeds: Speeds, machines: Machines) -> TimeEstimate:
    """What an estimate says."""
    return estimate_time(plan.cost, requests_of(plan), speeds, machines)


def enough_nodes(plan: Plan, speeds: Speeds) -> int:
    """The least number of machines, a power of two, of which twice as many would not save a tenth of the time."""
    count = 1
    while count < _MOST_NODES:
        now, then = (formula(plan, speeds, machines_for(plan, each)).seconds for each in (count, 2 * count))
        if then > _WORTH * now:
            break
        count *= 2
    return count


def simulated(plan: Plan, works: Sequence[StepWork], speeds: Speeds, nodes: Sequence[int]) -> Iterator[report.Result]:
    """Yield what becomes of each number of machines."""
    for count in nodes:
        machines = machines_for(plan, count)
        told = formula(plan, speeds, machines)
        kept, lossy = (Simulation(works, speeds, machines, losses).run() for losses in (None, LOSSES))
        yield {
            "nodes": count,
            "machines": asdict(machines),
            "seconds": kept.seconds + told.commit_s,
            "formula": asdict(told),
            "with_losses": asdict(lossy) | {"seconds": lossy.seconds + told.commit_s},
        }


def measured_handout_s(rounds: int = 2000, repeats: int = 5) -> float:
    """The CPU seconds of the messages about one step of eight parts, both ends together."""
    ours, theirs = multiprocessing.Pipe()
    receipts = tuple(
        PartReceipt(f"rank_{n}/checkpoint_{n}.safetensors", 7, "a" * 32, 16 << 20, 1 << 31, "crc32c") for n in range(8)
    )
    found = []
    for _ in range(repeats):
        begun_s = time.process_time()
        for _ in range(rounds):
            for sender, receiver, message in (
                (theirs, ours, Wanting()),
                (ours, theirs, Steps(((3, 17),))),
                (theirs, ours, Done((3, 17), receipts, {}, {})),
            ):
                sender.send_bytes(pickle.dumps(message))
                pickle.loads(receiver.recv_bytes())  # noqa: S301 - sent just now
        found.append((time.process_time() - begun_s) / rounds)
    return statistics.median(found)


def print_row(row: report.Result) -> None:
    """Print one line."""
    told, lossy = row["formula"], row["with_losses"]
    print(f"  {row['nodes']:>4} nodes: {row['seconds']:8.1f} s, limited by {told['limited_by']}; ", end="")
    print(
        f"formula {told['seconds']:.1f} s; with losses {lossy['seconds']:.1f} s, {lossy['lost_count']} lost, ", end=""
    )
    print(f"{lossy['redone_bytes'] / 1e9:.1f} GB again", flush=True)


def main() -> None:
    """Simulate the models that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(CPU_LIKE)}")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--out", type=Path, help="where the figures go; simulate.json, if no models are named")
    asked = parser.parse_args()
    handout_s = measured_handout_s()
    cases = []
    for model in asked.models or CPU_LIKE:
        plan = plan_of(model)
        works = works_of(plan)
        for service in SERVICES:
            speeds = replace(speeds_of(model, service), handout_s=handout_s)
            print(f"{model}, {service}: {len(works)} steps, {plan.cost.request_count} requests")
            case: report.Result = {"model": model, "service": service, "speeds": asdict(speeds), "rows": []}
            for row in simulated(plan, works, speeds, asked.nodes):
                print_row(row)
                case["rows"].append(row)
            case |= {
                "enough_nodes": enough_nodes(plan, speeds),
                "cost": asdict(plan.cost),
                "requests": asdict(requests_of(plan)),
            }
            print(f"  more than {case['enough_nodes']} nodes hardly help")
            cases.append(case)
    out = asked.out or (None if asked.models else report.RESULTS / "simulate.json")
    if out:
        told = {
            "date": report.now(), "machine": report.machine(),
            "versions": {"python": platform.python_version(), "reshard": version("reshard")},
            "limits": asdict(LIMITS), "losses": asdict(LOSSES),
        }  # fmt: skip
        report.write_json(told | {"cases": cases}, out)


if __name__ == "__main__":
    main()
