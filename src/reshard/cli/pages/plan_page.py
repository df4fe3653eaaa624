"""A plan as a page: which rank owns what, how every box is filled, memory, time, requests, money, notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ...folding import folded
from ...planning.cost.estimate import Estimate
from ...planning.plan import Plan
from ..plan_text import plan_facts
from ..printing import in_bytes, in_time
from ..spelling import spelled
from .document import FIND_HTML, bar_html, facts_html, list_html, make_page, section
from .plan_data import PlanData

_TIMES = {
    "line_s": "bytes on the line", "account_s": "the account's limit", "requests_s": "answers of the stores",
    "client_s": "the processor", "memory_s": "waiting for memory", "leader_s": "handing out steps",
    "tail_s": "the last step", "commit_s": "commit",
}  # fmt: skip
_REQUESTS = {"get": "GET", "head": "HEAD", "put": "PUT", "part": "parts sent", "copy": "parts copied",
             "open": "uploads opened", "complete": "uploads completed", "list": "LIST", "delete": "DELETE"}  # fmt: skip

_MAP = f"""
<p id="told" aria-live="polite"></p>
<p class="tools">{FIND_HTML}
<label>Ranks <select id="stage"></select></label></p>
<div id="map" class="scroll" role="region" aria-label="Which rank holds which piece of every tensor" tabindex="0"></div>
<button id="more" type="button" hidden>Show more</button>
"""

_TENSOR = """
<p class="tools"><label>Of those alike <select id="member"></select></label></p>
<div id="facts"></div>
<div id="grid"></div>
<div id="box" aria-live="polite"></div>
"""


def plan_page(plan: Plan, estimate: Estimate) -> str:
    """Return the page of a plan and of what it comes to."""
    conversion = plan.conversion
    none_dropped = "Nothing is left out by name; rules that drop tensors say so in the notes."
    facts = [each for each in plan_facts(plan, estimate) if each[0] != "note"]
    sections = [
        section("At a glance", _bars(plan, estimate)),
        section("Ranks and tensors", _MAP, "ranks"),
        section("One tensor", _TENSOR, "tensor"),
        section("Notes", list_html([spelled(note) for note in plan.notes], "None.")),
        section("Left out of the source", list_html(folded(plan.catalog.dropped), none_dropped)),
        section("The plan in words", facts_html(facts)),
    ]
    title = f"Plan: {conversion.catalog.url} to {conversion.target_url}"
    return make_page(title, sections, PlanData(plan).to_json(), "plan.js")


def _bars(plan: Plan, estimate: Estimate) -> str:
    cost, time = estimate.cost, estimate.time
    ways = [
        ("copied by the store", float(cost.copied_bytes), in_bytes(cost.copied_bytes)),
        ("streamed through this machine", float(cost.written_bytes), in_bytes(cost.written_bytes)),
    ]
    peak, limit = cost.peak_bytes, plan.limits.memory_bytes
    memory = [("buffers at most", float(peak), f"{in_bytes(peak)} of {in_bytes(limit)}")]
    seconds = [(text, value, in_time(value)) for name, text in _TIMES.items() for value in [getattr(time, name)]]
    requests = asdict(estimate.requests)
    counts = [(text, float(requests[name]), str(requests[name])) for name, text in _REQUESTS.items()]
    about = (
        f"Time: about {in_time(time.seconds)}, limited by {time.limited_by}; what takes how long, much of it at once"
    )
    return "\n".join(
        [
            bar_html("How the target is written", ways),
            bar_html("Memory of buffers, and the limit", memory, limit),
            bar_html(about, seconds),
            bar_html(f"Requests: {estimate.requests.total}", counts),
            _money(estimate),
        ]
    )


def _money(estimate: Estimate) -> str:
    bills: Sequence[tuple[str, float, str]] = [
        (f"{bill.side}: {what}", amount, f"{bill.currency} {amount:.2g}")
        for bill in estimate.bills
        if bill.is_known
        for what, amount in (("requests", bill.requests), ("egress", bill.egress))
    ]
    paid = sum(amount for _, amount, _ in bills)
    return bar_html("Money, at list prices" if paid else "Money: nothing at the prices that are known", bills)
