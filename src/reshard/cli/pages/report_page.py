"""The report of a verification as a page: the verdict, and findings that are alike folded into one."""

from __future__ import annotations

from ...engine.verification import Report
from ...tensor.numbered_names import split_numbers
from ..printing import in_bytes
from ..results import report_facts
from .document import bar_html, facts_html, html, make_page, section

_SHOWN = 1000  # findings of one kind


def report_page(report: Report, url: str) -> str:
    """Return the page of a report on the target at a URL."""
    mark = "good" if report.is_ok else "bad"
    verdict = f'<p class="verdict {mark}">{"✓" if report.is_ok else "✗"} {html(report.verdict)}</p>'
    checked, total = report.checked_bytes, report.total_bytes
    facts = facts_html(report_facts(report))
    shares = [("compared and equal", float(checked), f"{in_bytes(checked)} of {in_bytes(total)}")]
    sections = [
        f'<section id="verdict">{verdict}{bar_html("Bytes of the target", shares, total)}{facts}</section>',
        section("Findings", _findings(report), "findings"),
    ]
    return make_page(f"Verification: {url}", sections, {}, "report.js")


def _findings(report: Report) -> str:
    if not report.problems:
        return "<p>None.</p>" if not report.missing_ranks else "<p>What is there agrees; ranks are missing.</p>"
    alike: dict[tuple[str, ...], list[str]] = {}
    for problem in report.problems:
        alike.setdefault(split_numbers(problem)[0], []).append(problem)
    return "\n".join(map(_kind, alike.values()))


def _kind(problems: list[str]) -> str:
    """Return findings that differ in numbers alone: one as it is, more as a list to open under the first."""
    first, *rest = problems
    if not rest:
        return f'<p class="name">{html(first)}</p>'
    shown = "".join(f'<li class="name">{html(problem)}</li>' for problem in rest[:_SHOWN])
    left = f"<p>... and {len(rest) - _SHOWN} more</p>" if len(rest) > _SHOWN else ""
    summary = f'<span class="name">{html(first)}</span> and {len(rest)} alike'
    return f"<details><summary>{summary}</summary><ul>{shown}</ul>{left}</details>"
