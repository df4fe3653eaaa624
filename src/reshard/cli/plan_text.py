"""Plans, estimates and explanations, shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal

from ..errors import counted, option
from ..planning.cost.cost import Cost
from ..planning.cost.duration import Speeds
from ..planning.cost.estimate import Estimate, PassEstimate
from ..planning.cost.prices import total_money
from ..planning.explain import (
    Explanation,
    HeldBox,
    ObjectExplanation,
    PartExplanation,
    SourceBytes,
    StagedTensor,
    TensorExplanation,
    explanation_to_json,
)
from ..planning.limits import Integrity, Limits
from ..planning.plan import Plan
from ..planning.plan_json import plan_id_of, plan_to_json
from ..storage import upload_check
from ..tensor import ByteRange
from .flags import OutputForm
from .printing import Facts, in_bytes, in_time, note_facts, print_facts, print_json, print_rows, rank_order
from .spelling import spelled

_THOUSAND = 1000.0
_FEW = 3  # sources that are named; --output json has all
_CENT = 0.01  # of a currency: less is shown with more decimals


def show_plan(
    plan: Plan,
    form: OutputForm,
    saved_as: str | None,
    estimate: Estimate,
    explained: Sequence[Explanation] = (),
    target: str | None = None,
) -> None:
    """Print what a plan does and what it comes to, or only the explanations if there are some.

    ``target`` is how the user has named it.
    """
    if form is OutputForm.JSON:
        body = {**plan_to_json(plan), "notes": list(map(spelled, plan.notes)), "estimate": estimate.to_json()}
        print_json(body | ({"explained": [explanation_to_json(each) for each in explained]} if explained else {}))
        return
    if explained:
        for number, explanation in enumerate(explained):
            sys.stdout.write("\n" * bool(number))
            print_facts(explanation_facts(explanation))
            print_rows(*explanation_rows(explanation), 0)
        return
    print_facts([*plan_facts(plan, estimate, target), *([("saved", saved_as)] if saved_as else [])])
    outputs = sorted(plan.outputs, key=lambda each: rank_order(each.keys[0]))
    sizes_of = [(_with_equals(each.keys), len(each.specs), in_bytes(each.nbytes)) for each in outputs]
    print_rows(("output", "tensors", "size"), sizes_of, 20)


def plan_facts(plan: Plan, estimate: Estimate, target: str | None = None) -> Facts:
    """Return the lines about a plan as a whole."""
    cost, needed_bytes = estimate.cost, plan.cost.needed_bytes
    over_read = cost.read_bytes / needed_bytes if needed_bytes else 1.0
    distinct = f"{len(plan.outputs)} distinct, in {counted(len(plan.groups), 'group')}"
    reads = f"{in_bytes(cost.read_bytes)} in {counted(cost.get_count, 'request')} ({over_read:.3f} x needed)"
    copies = f"{in_bytes(cost.copied_bytes)} by the store itself, in {counted(cost.copy_count, 'request')}"
    sizes = cost.peak_bytes, plan.limits.memory_bytes, estimate.process_bytes
    memory = "{} of buffers at most, limit {}; the process grows by about {}".format(*map(in_bytes, sizes))
    return [
        ("plan", plan_id_of(plan)[:16]),
        ("source", f"{plan.catalog.url} ({plan.catalog.kind})"),
        ("tensors", f"{len(plan.catalog.entries)}, {in_bytes(plan.catalog.nbytes)}"),
        ("target", target or plan.conversion.target_url),
        ("outputs", f"{counted(len(plan.conversion.keys), 'object')}, {distinct}"),
        ("read", reads),
        ("write", f"{in_bytes(cost.written_bytes)} in {_writes(cost)}"),
        *([("copy", copies)] if cost.copied_bytes else []),
        *([("stage", _first_pass(plan.staging, estimate.staged))] if plan.staging and estimate.staged else []),
        *estimate_facts(plan.cost, estimate),
        ("memory", memory),
        ("integrity", _integrity(plan)),
        ("steps", f"{cost.step_count}, {_in_flight(plan.limits)}"),
        *note_facts(plan.notes),
    ]


def _writes(cost: Cost) -> str:
    """Say in how many requests bytes are sent."""
    parts = f"{counted(cost.part_count, 'part')} of {counted(cost.upload_count, 'object')}"
    whole = f"{counted(cost.put_count, 'object')}, {'each ' * (cost.put_count > 1)}in one request"
    return " and ".join([*([parts] if cost.upload_count else []), *([whole] if cost.put_count else [])]) or "no request"


def _in_flight(limits: Limits) -> str:
    requests = f"{counted(limits.concurrency, 'request')} in flight"
    return f"{limits.process_count} processes with {requests} each" if limits.process_count > 1 else requests


def _integrity(plan: Plan) -> str:
    """Say what shall prove that bytes arrive."""
    limits = plan.limits
    if limits.integrity is Integrity.OFF:
        return "off: lengths alone"
    read = "by reading twice" if limits.read_count > 1 else "by checksums that stores keep"
    return f"{limits.integrity}: sent bytes by {upload_check(plan.conversion.target_url)}, read bytes {read}"


def _first_pass(first: Plan, estimate: PassEstimate) -> str:
    cost, count = estimate.cost, estimate.requests.total
    read, written = in_bytes(cost.read_bytes + cost.copied_bytes), in_bytes(cost.written_bytes + cost.copied_bytes)
    takes = f"{counted(count, 'request')}, {in_time(estimate.time.seconds)}, {in_bytes(cost.peak_bytes)} of memory"
    return f"of this, first {counted(len(first.catalog.entries), 'tensor')}: {read} read and {written} written, {takes}"


def _with_equals(keys: Sequence[str], key: str = "") -> str:
    return (key or keys[0]) + f" (and {len(keys) - 1} equal)" * (len(keys) > 1)


def estimate_facts(cost: Cost, estimate: Estimate) -> Facts:
    """Return the lines that depend on prices and speeds, and the shares that they result from."""
    made = cost.copied_bytes + cost.written_bytes
    copied = cost.copied_bytes / made if made else 0.0
    whole = estimate.time.seconds
    passes = in_time(whole)
    if estimate.staged is not None:
        first = estimate.staged.time.seconds
        passes += f": {in_time(first)} + {in_time(whole - first)} in two passes"
    if estimate.machine_count > 1:
        passes += f" on {estimate.machine_count} machines"
    return [
        ("filled", f"{copied:.1%} copied by the store, {1 - copied:.1%} streamed through this machine"),
        ("requests", _requests(estimate)),
        ("time", f"about {passes} (limited by {estimate.time.limited_by}; {_assumed(estimate)})"),
        *(("money", line) for line in _money(estimate)),
    ]


def _requests(estimate: Estimate) -> str:
    count = estimate.requests
    kinds = [
        (count.get, f"{count.get} GET"),
        (count.head, f"{count.head} HEAD"),
        (count.put, f"{count.put} PUT"),
        (count.part, f"{counted(count.part, 'part')} sent"),
        (count.copy, f"{count.copy} copied"),
        (count.open, f"{counted(count.open, 'upload')} opened and completed"),
        (count.list, f"{count.list} LIST"),
        (count.delete, f"{count.delete} DELETE"),
    ]
    return f"{count.total}: {', '.join(text for number, text in kinds if number)}"


def _assumed(estimate: Estimate) -> str:
    defaults, speeds = Speeds(), estimate.speeds
    bandwidth, latency = _rate(speeds.bandwidth_bytes_s), f"{speeds.latency_s * 1e3:g} ms a request"
    assumed = [
        "bandwidth" * (speeds.bandwidth_bytes_s == defaults.bandwidth_bytes_s),
        "latency" * (speeds.latency_s == defaults.latency_s),
    ]
    names = " and ".join(name for name in assumed if name)
    allowed = (f", {_rate(each.bytes_s)} for an account of the store" for each in speeds.accounts if each.bytes_s)
    return f"{bandwidth}, {latency}" + "".join(allowed) + (f"; default {names}" if names else "")


def _rate(bytes_s: float) -> str:
    for unit in ("B", "KB", "MB"):
        if bytes_s < _THOUSAND:
            return f"{bytes_s:.3g} {unit}/s"
        bytes_s /= _THOUSAND
    return f"{bytes_s:.4g} GB/s"


def _money(estimate: Estimate) -> Iterator[str]:
    unknown = dict.fromkeys(bill.provider for bill in estimate.bills if not bill.is_known)
    for currency, total in total_money(estimate.bills).items():
        bills = [bill for bill in estimate.bills if bill.currency == currency]
        tables = dict.fromkeys(f"{bill.title}{f', prices of {bill.as_of}' * bool(bill.as_of)}" for bill in bills)
        if not total and not any(bill.egress_outside for bill in bills) and all(bill.as_of == "" for bill in bills):
            if len(total_money(estimate.bills)) == 1:
                yield f"nothing ({'; '.join(tables)})"
            continue
        requests, egress = sum(bill.requests for bill in bills), sum(bill.egress for bill in bills)
        if estimate.egress == "internet":
            outside = "this machine is assumed to be outside the source's region"
        else:
            more = sum(bill.requests + bill.egress_outside for bill in bills)
            outside = f"{_amount(more)} if this machine is outside the source's region"
        split = f"requests {_amount(requests)}, egress {_amount(egress)}"
        yield f"{currency} {_amount(total)}: {split} ({'; '.join(tables)}; {outside})"
    for provider in unknown:
        options = f"{option('prices')} or {option('price_table')}"
        yield spelled(f"unknown for {provider}: there is no price table; give {options}")


def in_money(currency: str, amount: float) -> str:
    """Format an amount of money for people."""
    return f"{currency} {_amount(amount)}"


def _amount(money: float) -> str:
    if not money:
        return "0"
    return f"{money:,.2f}" if money >= _CENT else f"{Decimal(f'{money:.2g}'):f}"


# Explanations.


def explanation_facts(explanation: Explanation) -> Facts:
    """Return the lines about an object or a tensor as a whole."""
    if isinstance(explanation, TensorExplanation):
        made_of = ", ".join(explanation.made_of[:_FEW]) + ", ..." * (len(explanation.made_of) > _FEW)
        return [
            ("tensor", f"{explanation.name}, {explanation.dtype} {list(explanation.shape)}"),
            ("made of", made_of),
            ("held by", counted(len(explanation.held), "distinct output")),
            ("filled", _shares(explanation.copied_bytes, explanation.streamed_bytes, 0)),
            *(("staged", _staged(staged)) for staged in explanation.staged),
        ]
    ways = explanation.copied_bytes, explanation.streamed_bytes, explanation.literal_bytes
    return [
        ("chunk" if explanation.is_chunk else "output", _with_equals(explanation.keys, explanation.key)),
        ("parts", f"{len(explanation.parts)}, {explanation.nbytes} bytes"),
        ("filled", _shares(*ways)),
        *(("staged", _staged(staged)) for staged in explanation.staged),
    ]


def _staged(staged: StagedTensor) -> str:
    chunks = f"{staged.taken_count} of {staged.chunk_count} chunks {list(staged.chunk_shape)}"
    made = f"of {_taken(staged.sources)}: {_shares(staged.copied_bytes, staged.streamed_bytes, 0)}"
    return f"{staged.name} {list(staged.shape)}, {chunks} at {staged.url}, which the first pass makes {made}"


def _shares(copied: int, streamed: int, literal: int) -> str:
    total = max(1, copied + streamed + literal)
    ways = [("copied", copied), ("streamed", streamed), ("header", literal)]
    return ", ".join(f"{name} {count / total:.1%} ({count} bytes)" for name, count in ways if count or name != "header")


def explanation_rows(explanation: Explanation) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return the table of an explanation: titles and rows."""
    if isinstance(explanation, ObjectExplanation):
        titles = ("part", "bytes", "size", "group/step", "filled", "from")
        return titles, [
            (
                part.number,
                _span(part.range),
                part.range.nbytes,
                f"{part.group}/{part.step}" if part.group >= 0 else "-",
                *_how(part),
            )
            for part in explanation.parts
        ]
    return ("output", "box", "bytes", "parts", "from"), [_held(held) for held in explanation.held]


def _span(span: ByteRange) -> str:
    return f"[{span.start}, {span.stop})"


def _how(part: PartExplanation) -> tuple[str, str]:
    computed = f", {', '.join(part.kernels)}" if part.kernels else ""
    if part.filled == "literal":
        return "header", "bytes known beforehand"
    if part.filled == "replica":
        return "copied", f"output {_taken(part.sources)}"
    if part.filled == "copied":
        return "copied", _taken(part.sources)
    header = f" + {part.literal_nbytes} bytes of header" if part.literal_nbytes else ""
    return f"streamed{computed}", f"{counted(len(part.sources), 'read')}{header}: {_taken(part.sources)}"


def _taken(sources: Sequence[SourceBytes]) -> str:
    kinds = ["left-out chunk " if one.is_left_out else "chunk " if one.is_staged else "" for one in sources[:_FEW]]
    named = [f"{kind}{one.object} {_span(one.range)}" for kind, one in zip(kinds, sources, strict=False)]
    return "; ".join(named) + (f"; and {len(sources) - _FEW} more" if len(sources) > _FEW else "")


def _held(held: HeldBox) -> tuple[object, ...]:
    box = ", ".join(f"{a}:{b}" for a, b in zip(held.box.start, held.box.stop, strict=True))
    spans = "; ".join(_span(span) for span in held.ranges[:_FEW]) + "; ..." * (len(held.ranges) > _FEW)
    parts = ", ".join(f"{part.number} {part.filled}" for part in held.parts[:_FEW])
    more = f" and {len(held.parts) - _FEW} more" if len(held.parts) > _FEW else ""
    return _with_equals(held.keys), f"[{box}]", spans, parts + more, _taken(held.sources)
