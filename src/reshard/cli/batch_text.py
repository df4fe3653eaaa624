"""Batches, shown: their plans, their progress, and what became of every job."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ReshardError, as_field, counted, write_options
from ..planning.cost.prices import total_money
from .flags import OutputForm
from .plan_text import in_money
from .printing import Facts, in_bytes, in_time, plain, print_facts, print_json, print_rows, write, write_error
from .signals import Stopped

if TYPE_CHECKING:  # what is shown is imported already by whoever made it
    from ..jobs.batch import JobStatus, OnChange
    from ..jobs.dry_run import PlannedJob
    from ..jobs.job_file import Job

_TITLES = ("job", "state", "written", "rate", "time", "why")
_LOG_EVERY_S = 30.0


def show_schema() -> None:
    """Print the JSON schema of job files."""
    from ..jobs.editor_schema import job_schema

    print_json(job_schema())


def show_checked(jobs: Sequence[Job], form: OutputForm) -> None:
    """Print the jobs of a file without mistakes."""
    if form is OutputForm.JSON:
        print_json({"jobs": [_job_json(job) for job in jobs]})
        return
    print_facts([("jobs", f"{len(jobs)}, no mistakes")])
    print_rows(("job", "source", "target", "needs"), [_places(job) for job in jobs], 0)


def show_planned(planned: Sequence[PlannedJob], form: OutputForm) -> None:
    """Print what the jobs of a batch would do, and raise the exit code of the first that is refused."""
    if form is OutputForm.JSON:
        print_json({"jobs": [_planned_json(each) for each in planned], "totals": _totals(planned)})
    else:
        titles = ("job", "would", "read", "write", "copied", "requests", "time", "money", "why")
        print_rows(titles, [_planned_row(each) for each in planned], 0)
        sys.stdout.write("\n")
        print_facts([*_total_facts(_totals(planned)), *_note_facts(planned)])
        _write_errors([(each.job, each.error) for each in planned])
    _exit_with([each.error for each in planned if each.error], any(each.state.is_wrong for each in planned))


def _total_facts(totals: Mapping[str, Any]) -> Facts:
    written, copied = in_bytes(totals["written_bytes"]), in_bytes(totals["copied_bytes"])
    return [
        ("jobs", ", ".join(f"{count} {state}" for state, count in totals["jobs"].items())),
        ("read", in_bytes(totals["read_bytes"])),
        ("write", f"{written}, and {copied} copied by stores"),
        ("requests", str(totals["requests"])),
        ("time", f"about {in_time(totals['seconds'])}, one job after the other"),
        ("money", _in_money(totals["money"])),
    ]


@contextmanager
def watching(form: OutputForm, *, quiet: bool) -> Iterator[OnChange]:
    """Watch a batch: a table that is drawn again on a terminal, lines in a log, or nothing.

    If it is stopped, what became of every job is printed on the way out.
    """
    last: list[Sequence[JobStatus]] = [()]
    try:
        with _drawing(quiet=quiet) as draw:

            def watch(statuses: Sequence[JobStatus]) -> None:
                last[0] = statuses
                draw(statuses)

            yield watch
    except Stopped:
        _print_batch(last[0], form)
        raise


@contextmanager
def _drawing(*, quiet: bool) -> Iterator[OnChange]:
    if quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield _Log()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Table

    def table(statuses: Sequence[JobStatus]) -> Table:
        drawn = Table(*_TITLES, box=None, pad_edge=False)
        for row in _visible(statuses):
            drawn.add_row(*(escape(plain(cell, is_line=True)) for cell in row))
        return drawn

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda statuses: live.update(table(statuses), refresh=True)


def show_batch(statuses: Sequence[JobStatus], form: OutputForm) -> None:
    """Print what became of every job; exit with the code of the first failure unless all outcomes are there."""
    _print_batch(statuses, form)
    _exit_with([status.error for status in statuses if status.error], not all(s.state.is_right for s in statuses))


def _print_batch(statuses: Sequence[JobStatus], form: OutputForm) -> None:
    if form is OutputForm.JSON:
        done = sum(status.state.is_right for status in statuses)
        print_json({"is_ok": done == len(statuses), "jobs": [_status_json(status) for status in statuses]})
        return
    print_rows(_TITLES, [_row(status) for status in statuses], 0)
    if notes := _note_facts(statuses):
        sys.stdout.write("\n")
        print_facts(notes)
    _write_errors([(status.job, status.error) for status in statuses if status.state == "failed"])


def _note_facts(jobs: Sequence[JobStatus] | Sequence[PlannedJob]) -> Facts:
    return [("note", f"{each.job.name}: {_spelled(note)}") for each in jobs for note in each.notes]


def _write_errors(errors: Sequence[tuple[Job, BaseException | None]]) -> None:
    for job, error in errors:
        if isinstance(error, ReshardError):
            write_error(error, as_field, job.name)


def _spelled(text: str) -> str:
    """Spell the options that a text about a job marks as the job's file has them."""
    return write_options(text, as_field)


def _exit_with(errors: Sequence[BaseException | None], has_failed: bool) -> None:
    if has_failed:
        codes = [getattr(error, "exit_code", 1) for error in errors]
        raise typer.Exit(codes[0] if codes else 1)


class _Log:
    """A line whenever a job's state changes, and now and then while jobs run."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._last_s = time.monotonic()

    def __call__(self, statuses: Sequence[JobStatus]) -> None:
        for status in statuses:
            name, state = status.job.name, status.state.value
            if self._seen.get(name, "waiting") != state:
                _, _, written, rate, took, why = _row(status)
                figures = f", {written} in {took}, {rate}" if status.state == "done" else ""
                why = "" if status.state == "running" else why
                write(f"{name}: {state}{figures}{f': {why}' if why else ''}", sys.stderr)
            self._seen[name] = state
        if time.monotonic() - self._last_s > _LOG_EVERY_S:
            self._last_s = time.monotonic()
            for status in statuses:
                if status.state == "running":
                    write(f"{status.job.name}: {_row(status)[5]}", sys.stderr)


def _visible(statuses: Sequence[JobStatus]) -> Iterator[tuple[str, ...]]:
    """Yield rows that fit a terminal: what runs, what failed, and counts of the rest."""
    height = 30
    if len(statuses) <= height:
        yield from map(_row, statuses)
        return
    shown = [status for status in statuses if status.state in ("running", "failed")][:height]
    yield from map(_row, shown)
    rest = [status.state.value for status in statuses if status not in shown]
    for state in dict.fromkeys(rest):
        yield counted(rest.count(state), "job"), state, "", "", "", ""


def _row(status: JobStatus) -> tuple[str, ...]:
    seconds, written = status.seconds, status.written_bytes
    is_moving = status.state == "running"
    moved = status.moved_bytes if is_moving else written if status.state == "done" else 0
    rate = f"{in_bytes(moved / seconds)}/s" if moved and seconds else ""
    why = _spelled(status.reason)
    if is_moving:
        share = f"{100 * status.moved_bytes // status.total_bytes}%" if status.total_bytes else ""
        wait = f"waiting for the store, {in_time(round(status.waiting_s))}" if status.waiting_s else ""
        why = wait or " ".join(part for part in (status.phase, share) if part)
    took = in_time(seconds) if seconds else ""
    return status.job.name, status.state.value, in_bytes(written) if written else "", rate, took, why


def _planned_row(each: PlannedJob) -> tuple[str, ...]:
    if each.plan is None or each.estimate is None:
        return each.job.name, each.state.value, "", "", "", "", "", "", _spelled(each.reason)
    cost, estimate = each.estimate.cost, each.estimate
    money = _in_money(total_money(estimate.bills))
    sizes = (in_bytes(n) for n in (cost.read_bytes, cost.written_bytes, cost.copied_bytes))
    counts = str(estimate.requests.total), in_time(estimate.time.seconds), money
    return (each.job.name, each.state.value, *sizes, *counts, "")


def _totals(planned: Sequence[PlannedJob]) -> dict[str, Any]:
    estimates = [each.estimate for each in planned if each.estimate]
    states = [each.state.value for each in planned]
    money: dict[str, float] = {}
    for estimate in estimates:
        for currency, amount in total_money(estimate.bills).items():
            money[currency] = money.get(currency, 0) + amount
    return {
        "jobs": {state: states.count(state) for state in dict.fromkeys(states)},
        "read_bytes": sum(e.cost.read_bytes for e in estimates),
        "written_bytes": sum(e.cost.written_bytes for e in estimates),
        "copied_bytes": sum(e.cost.copied_bytes for e in estimates),
        "requests": sum(e.requests.total for e in estimates),
        "seconds": sum(e.time.seconds for e in estimates),
        "money": money,
    }


def _in_money(amounts: Mapping[str, float]) -> str:
    return ", ".join(in_money(currency, amount) for currency, amount in amounts.items() if amount) or "nothing"


def _places(job: Job) -> tuple[str, ...]:
    return job.name, job.request.src, job.request.dst, ", ".join(job.needs)


def _job_json(job: Job) -> dict[str, Any]:
    return {"name": job.name, "src": job.request.src, "dst": job.request.dst, "needs": list(job.needs)}


def _planned_json(each: PlannedJob) -> dict[str, Any]:
    body = _job_json(each.job) | {"would": each.state.value, "why": _spelled(each.reason)}
    body["problems"] = list(map(_spelled, each.error.marked_problems)) if each.error else []
    body["notes"] = list(map(_spelled, each.notes))
    return body | {"estimate": each.estimate.to_json() if each.estimate else None}


def _status_json(status: JobStatus) -> dict[str, Any]:
    error = status.error if isinstance(status.error, ReshardError) else None
    return _job_json(status.job) | {
        "state": status.state.value,
        "written_bytes": status.written_bytes,
        "seconds": round(status.seconds, 3),
        "why": _spelled(status.reason),
        "problems": list(map(_spelled, error.marked_problems)) if error else [],
        "exit_code": getattr(status.error, "exit_code", 1) if status.error else 0,
        "notes": list(map(_spelled, status.notes)),
    }
