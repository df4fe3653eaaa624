"""What a plan comes to with the pass before it, where some of its tensors are staged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ..plan import Plan
from ..steps.buffers import process_bytes
from ..steps.row_reads import group_ranges
from .cost import Cost
from .estimate import (
    Bill,
    Egress,
    Estimate,
    PassEstimate,
    Speeds,
    TimeEstimate,
    Work,
    estimate_money,
    estimate_time,
)
from .prices import PriceTable


@dataclass(frozen=True, slots=True)
class Payee:
    """A store that may ask money: the service's name, and its prices if any are known."""

    provider: str
    table: PriceTable | None


def cost_of_passes(plan: Plan) -> Cost:
    """A plan's figures and those of its first pass together; of the memory the larger.

    Without staging they are the plan's own.
    """
    if plan.staging is None:
        return plan.cost
    first, second = plan.staging.cost, plan.cost
    total = {each.name: getattr(first, each.name) + getattr(second, each.name) for each in fields(Cost)}
    return Cost(**total | {"peak_bytes": max(first.peak_bytes, second.peak_bytes)})


def estimate_plan(plan: Plan, speeds: Speeds, payees: Sequence[Payee], egress: Egress = "region") -> Estimate:
    """Tell what a plan comes to, its first pass included.

    Parameters
    ----------
    payees
        Source, target and, where some tensors are staged, the store that chunks go to. What is read of chunks
        is charged to that one; ``egress`` says where the machine stands as seen from there too.
    """
    cost, work = cost_of_passes(plan), _work(plan)
    growth = process_bytes(cost.peak_bytes, sum(map(_item_count, (plan, plan.staging))))
    time = estimate_time(work, speeds)
    if plan.staging is None:
        bills: tuple[Bill, ...] = _money(work, payees[0], payees[1], egress)
        return Estimate(work.requests, speeds, time, egress, bills, cost, growth)
    first = _first_work(plan.staging)
    staged = PassEstimate(first.cost, first.requests, estimate_time(first, speeds))
    bills = _bills(plan, first, work, payees, egress)
    requests = staged.requests.plus(work.requests)
    return Estimate(requests, speeds, _added(staged.time, time), egress, bills, cost, growth, staged)


def _item_count(plan: Plan | None) -> int:
    return len(plan.catalog.entries) + len(plan.catalog.objects) + len(plan.conversion.keys) if plan else 0


def _work(plan: Plan) -> Work:
    chunk_base = len(plan.catalog.others) if plan.staging else None  # chunks have been written just before
    return Work(
        plan.cost,
        plan.limits.concurrency,
        object_count=sum(item.base != chunk_base for item in plan.catalog.objects),
        serial_count=len(plan.conversion.documents) + 2 * len(plan.conversion.attachments) + 1,
        output_bytes=plan.cost.written_bytes + plan.cost.copied_bytes,
    )


def _first_work(first: Plan) -> Work:
    """The first pass's: before it the target is looked at too, and whether chunks are there; after all they go."""
    return replace(_work(first), output_bytes=0, list_count=3, delete_count=len(first.conversion.keys) + 1)


def _added(first: TimeEstimate, second: TimeEstimate) -> TimeEstimate:
    longer = max(first, second, key=lambda time: time.seconds)
    sums = {
        each.name: getattr(first, each.name) + getattr(second, each.name)
        for each in fields(TimeEstimate)
        if each.name != "limited_by"
    }
    return TimeEstimate(limited_by=longer.limited_by, **sums)


def _bills(plan: Plan, first: Work, second: Work, payees: Sequence[Payee], egress: Egress) -> tuple[Bill, ...]:
    source, target, staging = payees
    taken, made = _money(first, source, staging, egress)
    chunks = _chunk_reads(plan)
    rest = replace(
        second.cost,
        read_bytes=second.cost.read_bytes - chunks.cost.read_bytes,
        get_count=second.cost.get_count - chunks.cost.get_count,
    )
    again, outputs = _money(replace(second, cost=rest), source, target, egress)
    read, _ = _money(chunks, staging, staging, egress)
    return _both(taken, again), outputs, _both(replace(made, side="staging"), read)


def _chunk_reads(plan: Plan) -> Work:
    """What the second pass reads of chunks, and nothing else."""
    assert plan.staging is not None
    names = {entry.spec.name for entry in plan.staging.catalog.entries}
    nbytes = count = 0
    for group in plan.groups:
        for source, ranges in group_ranges(plan.draft, group.outputs):
            if plan.catalog.entries[source].spec.name in names:
                nbytes += sum(one.nbytes for one in ranges)
                count += sum(-(-one.nbytes // plan.limits.read_bytes) for one in ranges)
    # Neighbours are read together: they are told apart only by what each wants.
    reads = {"read_bytes": min(nbytes, plan.cost.read_bytes), "get_count": min(count, plan.cost.get_count)}
    return Work(Cost(**{each.name: 0 for each in fields(Cost)} | reads), plan.limits.concurrency)


def _money(work: Work, source: Payee, target: Payee, egress: Egress) -> tuple[Bill, Bill]:
    return estimate_money(work, (source.provider, target.provider), (source.table, target.table), egress)


def _both(bill: Bill, other: Bill) -> Bill:
    """The bill of one store for two things."""
    return replace(
        bill,
        requests=bill.requests + other.requests,
        egress=bill.egress + other.egress,
        egress_outside=bill.egress_outside + other.egress_outside,
    )
