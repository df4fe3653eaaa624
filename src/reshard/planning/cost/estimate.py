"""Time and money of a plan: seconds at a bandwidth and a latency, and bills by price tables.

Two passes are two times, added up: the second begins when the first is complete.
It is an estimate: a store that throttles, and values that are computed (casts, merges) are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

from ..plan import Plan
from ..steps.buffers import process_bytes
from .cost import Cost
from .duration import Machines, Speeds, TimeEstimate, estimate_time
from .prices import Bill, Charge, Egress, Payee, bill, total_money
from .requests import ProofRequests, RequestCounts, summed

_NO_PROOFS = ProofRequests()
_LARGEST = ("peak_bytes", "largest_step_bytes")  # of two passes, where all else adds up


@dataclass(frozen=True, slots=True)
class PassEstimate:
    """Cost and time of the first of two passes."""

    cost: Cost
    requests: RequestCounts
    time: TimeEstimate


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time and money of a plan. It is no part of the plan: prices and speeds do not change what is done.

    Where some tensors are staged it is of both passes, whose memory is that of the larger; ``staged`` is the first by
    itself. ``process_bytes`` are about what the process grows by, from where its libraries are loaded. The time is that
    of ``machine_count`` machines like this one, which share the steps.
    """

    requests: RequestCounts
    speeds: Speeds
    time: TimeEstimate
    egress: Egress
    bills: tuple[Bill, ...]
    cost: Cost
    process_bytes: int
    machine_count: int = 1
    staged: PassEstimate | None = None

    def to_json(self) -> dict[str, object]:
        """Express it in JSON's types."""
        return {**asdict(self), "bills": [asdict(bill) for bill in self.bills], "total": dict(total_money(self.bills))}


def estimate_plan(
    plan: Plan,
    speeds: Speeds,
    payees: Sequence[Payee],
    egress: Egress = "region",
    proofs: ProofRequests = _NO_PROOFS,
    machine_count: int = 1,
) -> Estimate:
    """Estimate time and money of a plan, its first pass included.

    ``payees`` are source, target and, where some tensors are staged, the store that chunks go to. Reads of chunks are
    charged to that one; ``egress`` is where the machine is as seen from there too. The steps are shared by
    ``machine_count`` machines, each with the plan's processes, requests in flight and memory.
    """
    one_pass = partial(_pass, speeds=speeds, proofs=proofs, machine_count=machine_count)
    cost, (requests, time) = plan.cost, one_pass(plan)
    charges = {"source": reading(cost, requests), "target": writing(requests, cost.written_bytes + cost.copied_bytes)}
    staged = None
    if plan.staging is not None:
        # Before it the target is looked at too, and whether chunks are there; after all they are removed.
        delete_count = len(plan.staging.conversion.keys) + 1
        staged = PassEstimate(
            plan.staging.cost, *one_pass(plan.staging, is_first=True, list_count=5, delete_count=delete_count)
        )
        chunks, taken = _chunk_reads(plan), reading(staged.cost, staged.requests)
        charges["source"] = summed(summed(taken, charges["source"]), chunks, sign=-1)
        charges["staging"] = summed(writing(staged.requests, 0), chunks)
        largest = {name: max(getattr(staged.cost, name), getattr(cost, name)) for name in _LARGEST}
        cost = replace(summed(staged.cost, cost), **largest)
        requests, time = summed(staged.requests, requests), _in_turn(staged.time, time)
    bills = [bill(side, payee, charges[side], egress) for side, payee in zip(charges, payees, strict=True)]
    growth = process_bytes(cost.peak_bytes, _item_count(plan) + (_item_count(plan.staging) if plan.staging else 0))
    return Estimate(requests, speeds, time, egress, tuple(bills), cost, growth, machine_count, staged)


def _in_turn(first: TimeEstimate, second: TimeEstimate) -> TimeEstimate:
    """Return the time of two passes, the second of which begins when the first is complete."""
    longer = max(first, second, key=lambda time: time.seconds)
    names = [each.name for each in fields(TimeEstimate) if each.name != "limited_by"]
    return TimeEstimate(limited_by=longer.limited_by, **{n: getattr(first, n) + getattr(second, n) for n in names})


def _item_count(plan: Plan) -> int:
    return len(plan.catalog.entries) + len(plan.catalog.objects) + len(plan.conversion.keys)


def _pass(
    plan: Plan,
    speeds: Speeds,
    proofs: ProofRequests,
    machine_count: int,
    *,
    is_first: bool = False,
    list_count: int = 3,
    delete_count: int = 0,
) -> tuple[RequestCounts, TimeEstimate]:
    chunk_base = len(plan.catalog.others) if plan.staging else None  # chunks have been written just before
    object_count = sum(item.base != chunk_base for item in plan.catalog.objects)
    # After copying, the source is looked at again. The earlier manifest is that of the last pass, and for a share that
    # of the whole as well.
    head_count = object_count * (2 if plan.cost.copied_bytes else 1)
    is_share = plan.conversion.whole is not plan.conversion
    head_count += 11 if is_first else 8 + is_share  # claims are looked at again and again
    if len(plan.conversion.keys) == 1:  # which is looked at by itself, instead of in a listing
        head_count, list_count = head_count + 1, list_count - 1
    list_count += is_share  # the manifests of other shares
    requests = RequestCounts.of(plan.cost, head_count, list_count, delete_count)
    requests = summed(requests, proofs.of(plan.cost, object_count))
    if is_first:  # chunks are claimed for both passes
        requests = replace(requests, put=requests.put + 1, delete=requests.delete + 1)
    # The run's record, indices, companions and the manifest are written one after the other.
    serial_count = len(plan.conversion.documents) + 2 * len(plan.conversion.attachments) + 2
    return requests, estimate_time(plan.cost, requests, speeds, machines_for(plan, machine_count), serial_count)


def machines_for(plan: Plan, count: int) -> Machines:
    """Return so many machines, each with the processes, the requests in flight and the memory of a plan."""
    limits = plan.limits
    parts_bytes = plan.cost.peak_bytes // limits.process_count - plan.buffers.fixed_bytes
    return Machines(count, limits.process_count, limits.concurrency, parts_bytes)


def _chunk_reads(plan: Plan) -> Charge:
    """Count what the second pass reads of chunks, and nothing else."""
    assert plan.staging is not None
    names = {entry.spec.name for entry in plan.staging.catalog.entries}
    nbytes = count = 0
    for group in plan.groups:
        for source, ranges in plan.reader.scores.ranges(group.outputs):
            if plan.catalog.entries[source].spec.name in names:
                nbytes += sum(one.nbytes for one in ranges)
                count += sum(-(-one.nbytes // plan.limits.read_bytes) for one in ranges)
    # Neighbours are read together, and counted here apart: never charge more than the pass reads.
    return Charge(get=min(count, plan.cost.get_count), sent_bytes=min(nbytes, plan.cost.read_bytes))


def reading(cost: Cost, requests: RequestCounts) -> Charge:
    """Return what the source's store charges for."""
    return Charge(get=requests.get + requests.head, sent_bytes=cost.read_bytes)


def writing(requests: RequestCounts, kept_bytes: int) -> Charge:
    """Return what the target's store charges for: bytes sent to it cost nothing, copied ones are requests only."""
    put = requests.put + requests.part + requests.open + requests.complete
    return Charge(put=put, copy=requests.copy, list=requests.list, kept_bytes=kept_bytes)
