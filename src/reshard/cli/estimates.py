"""Estimates and explanations of plans, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from ..planning.cost.cost import Cost
from ..planning.cost.estimate import Bill, Estimate, Speeds, total_money
from ..planning.explain import (
    Explanation,
    HeldBox,
    ObjectExplanation,
    PartExplanation,
    SourceBytes,
    StagedTensor,
    TensorExplanation,
)
from ..tensor import ByteRange

Facts = list[tuple[str, str]]

_MINUTE, _HOUR = 60, 3600
_THOUSAND = 1000.0
_FEW = 3  # sources that are named; --output json has all
_CENT = 0.01  # of a currency: less is told with more decimals


def in_time(seconds: float) -> str:
    """A length of time for people.

    Examples
    --------
    >>> in_time(0.04), in_time(12.3), in_time(200), in_time(7500)
    ('0.04 s', '12 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def estimate_facts(cost: Cost, estimate: Estimate) -> Facts:
    """Lines of a plan that depend on prices and speeds, and the shares that they come of."""
    made = cost.copied_bytes + cost.written_bytes
    copied = cost.copied_bytes / made if made else 0.0
    return [
        ("filled", f"{copied:.1%} copied by the store, {1 - copied:.1%} streamed through this machine"),
        ("requests", _requests(estimate)),
        ("time", f"about {_seconds(estimate)} (limited by {estimate.time.limited_by}; {_assumed(estimate)})"),
        *(("money", line) for line in _money(estimate)),
    ]


def _seconds(estimate: Estimate) -> str:
    whole = estimate.time.seconds
    if estimate.staged is None:
        return in_time(whole)
    first = estimate.staged.time.seconds
    return f"{in_time(whole)}: {in_time(first)} + {in_time(whole - first)} in two passes"


def _requests(estimate: Estimate) -> str:
    count = estimate.requests
    writes = f"{count.put} PUT, {count.part} parts sent, {count.copy} copied, {count.open} uploads opened and completed"
    return f"{count.total}: {count.get} GET, {count.head} HEAD, {writes}, {count.list} LIST" + (
        f", {count.delete} DELETE" if count.delete else ""
    )


def _assumed(estimate: Estimate) -> str:
    defaults, speeds = Speeds(), estimate.speeds
    bandwidth, latency = _rate(speeds.bandwidth_bytes_s), f"{speeds.latency_s * 1e3:g} ms a request"
    assumed = [
        "bandwidth" * (speeds.bandwidth_bytes_s == defaults.bandwidth_bytes_s),
        "latency" * (speeds.latency_s == defaults.latency_s),
    ]
    told = " and ".join(name for name in assumed if name)
    return f"{bandwidth}, {latency}" + (f"; default {told}" if told else "")


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
        yield f"{currency} {_amount(total)}: {_split(bills)} ({'; '.join(tables)}; {_outside(estimate, bills)})"
    for provider in unknown:
        yield f"unknown for {provider}: no prices are known; give --prices or --price-table"


def _split(bills: Sequence[Bill]) -> str:
    requests, egress = sum(bill.requests for bill in bills), sum(bill.egress for bill in bills)
    return f"requests {_amount(requests)}, egress {_amount(egress)}"


def _outside(estimate: Estimate, bills: Sequence[Bill]) -> str:
    if estimate.egress == "internet":
        return "this machine taken to be outside the source's region"
    outside = sum(bill.requests + bill.egress_outside for bill in bills)
    return f"{_amount(outside)} if this machine is outside the source's region"


def _amount(money: float) -> str:
    if not money:
        return "0"
    return f"{money:,.2f}" if money >= _CENT else f"{Decimal(f'{money:.2g}'):f}"


def explanation_facts(explanation: Explanation) -> Facts:
    """What is said of an object or a tensor as a whole."""
    if isinstance(explanation, TensorExplanation):
        made_of = ", ".join(explanation.made_of[:_FEW]) + ", ..." * (len(explanation.made_of) > _FEW)
        return [
            ("tensor", f"{explanation.name}, {explanation.dtype} {list(explanation.shape)}"),
            ("made of", made_of),
            ("held by", f"{len(explanation.held)} distinct outputs"),
            ("filled", _shares(explanation.copied_bytes, explanation.streamed_bytes, 0)),
            *(("staged", _staged(staged)) for staged in explanation.staged),
        ]
    equal = f" (and {len(explanation.keys) - 1} equal)" if len(explanation.keys) > 1 else ""
    ways = explanation.copied_bytes, explanation.streamed_bytes, explanation.literal_bytes
    return [
        ("chunk" if explanation.is_chunk else "output", f"{explanation.key}{equal}"),
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
    """The table of an explanation: titles and rows."""
    if isinstance(explanation, ObjectExplanation):
        rows: list[tuple[object, ...]] = [
            (part.number, *_span(part.range), _where(part), *_how(part)) for part in explanation.parts
        ]
        return ("part", "bytes", "size", "group/step", "filled", "from"), rows
    return ("output", "box", "bytes", "parts", "from"), [_held(held) for held in explanation.held]


def _part(part: PartExplanation) -> tuple[object, ...]:
    return part.number, *_span(part.range), _where(part), *_how(part)


def _span(span: ByteRange) -> tuple[str, int]:
    return f"[{span.start}, {span.stop})", span.nbytes


def _where(part: PartExplanation) -> str:
    return f"{part.group}/{part.step}" if part.group >= 0 else "-"


def _how(part: PartExplanation) -> tuple[str, str]:
    computed = f", {', '.join(part.kernels)}" if part.kernels else ""
    if part.filled == "literal":
        return "header", "bytes known beforehand"
    if part.filled == "replica":
        return "copied", f"output {_taken(part.sources)}"
    if part.filled == "copied":
        return "copied", _taken(part.sources)
    header = f" + {part.literal_nbytes} bytes of header" if part.literal_nbytes else ""
    return f"streamed{computed}", f"{len(part.sources)} reads{header}: {_taken(part.sources)}"


def _taken(sources: Sequence[SourceBytes]) -> str:
    named = [f"{_kind(one)}{one.object} [{one.range.start}, {one.range.stop})" for one in sources[:_FEW]]
    return "; ".join(named) + (f"; and {len(sources) - _FEW} more" if len(sources) > _FEW else "")


def _kind(one: SourceBytes) -> str:
    return "left-out chunk " if one.is_left_out else "chunk " if one.is_staged else ""


def _held(held: HeldBox) -> tuple[object, ...]:
    equal = f" (and {len(held.keys) - 1} equal)" if len(held.keys) > 1 else ""
    box = ", ".join(f"{a}:{b}" for a, b in zip(held.box.start, held.box.stop, strict=True))
    spans = "; ".join(_span(span)[0] for span in held.ranges[:_FEW]) + "; ..." * (len(held.ranges) > _FEW)
    parts = ", ".join(f"{part.number} {part.filled}" for part in held.parts[:_FEW])
    more = f" and {len(held.parts) - _FEW} more" if len(held.parts) > _FEW else ""
    return f"{held.keys[0]}{equal}", f"[{box}]", spans, parts + more, _taken(held.sources)
