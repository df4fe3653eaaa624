"""Live progress on stderr, drawn from the engine's events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..engine.events import Answered, Event, Listener, Noted, PhaseStarted, Waiting, ignore
from ..engine.events import Progress as Moved
from .printing import in_bytes, in_time, plain, write
from .spelling import spelled

_LINE_EVERY_S = 10.0
_WAITING_EVERY_S = 30.0
_COUNTED_FROM_ZERO = ("transfer", "verify")
"""Phases whose figures restart at zero: a rate over all that went before would be too low."""


@contextmanager
def progress(*, quiet: bool) -> Iterator[Listener]:
    """Listen to a run: a live line on a terminal, a line now and then in a log, or nothing."""
    if quiet or not sys.stderr.isatty():
        yield ignore if quiet else LogLines(lambda line: write(line, sys.stderr))
        return
    # rich takes a while to import, and only a terminal needs it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[figures]}", table_column=Column(overflow="fold")),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield _Bar(bar)


class _Bar:
    """A live line."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("headers", total=None, figures="")
        self._begun_s = time.monotonic()
        self._waiting = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            if event.name in _COUNTED_FROM_ZERO:
                self._begun_s = time.monotonic()
            self._bar.update(self._task, description=event.name)
            return
        if isinstance(event, Noted):
            self._bar.console.print(plain(f"note: {spelled(event.text)}"), highlight=False, markup=False)
            return
        if isinstance(event, Waiting | Answered):
            self._waiting = _waiting(event) if isinstance(event, Waiting) else ""
            self._bar.update(self._task, figures=self._waiting)
            return
        self._bar.update(
            self._task,
            total=max(1, event.total_read_bytes + event.total_written_bytes),
            completed=event.read_bytes + event.written_bytes,
            figures=self._waiting or _figures(event, time.monotonic() - self._begun_s),
        )


class LogLines:
    """Plain lines, rarely."""

    def __init__(self, show: Callable[[str], object], every_s: float = _LINE_EVERY_S) -> None:
        self._show, self._every_s = show, every_s
        self._begun_s = self._last_s = time.monotonic()
        self._wait: _LoggedWait | None = None

    def __call__(self, event: Event) -> None:
        """Write a line for an event, or none."""
        now_s = time.monotonic()
        if isinstance(event, PhaseStarted):
            if event.name in _COUNTED_FROM_ZERO:
                self._begun_s = now_s
            self._show(event.name)
        elif isinstance(event, Noted):
            self._show(f"note: {spelled(event.text)}")
        elif isinstance(event, Waiting):
            self._wait = self._wait or _LoggedWait(now_s - event.seconds)
            if self._wait.is_due(now_s):
                self._show(f"  {_waiting(event)}{f': {spelled(event.reason)}' if event.reason else ''}")
        elif isinstance(event, Answered):
            if self._wait and self._wait.is_shown:
                self._show(f"  the store answers again, after {in_time(now_s - self._wait.since_s)}")
            self._wait = None
        elif now_s - self._last_s > self._every_s and not self._wait:
            self._last_s = now_s
            self._show(f"  {_figures(event, now_s - self._begun_s)}")


class _LoggedWait:
    """A wait for a store: a line once it has lasted a little, and then one every half minute."""

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.is_shown = False
        self._next_s = since_s + _LINE_EVERY_S

    def is_due(self, now_s: float) -> bool:
        """Return whether a line is due now."""
        if now_s < self._next_s:
            return False
        self._next_s, self.is_shown = now_s + _WAITING_EVERY_S, True
        return True


def _waiting(event: Waiting) -> str:
    return f"waiting for the store, {in_time(round(event.seconds))}"


def _figures(event: Moved, elapsed_s: float) -> str:
    moved = event.read_bytes + event.written_bytes
    left = event.total_read_bytes + event.total_written_bytes - moved
    rate = moved / elapsed_s if elapsed_s > 0 else 0.0
    eta = f"{left / rate:.0f} s left" if rate else "-"
    return (
        f"read {in_bytes(event.read_bytes)} of {in_bytes(event.total_read_bytes)}, "
        f"written {in_bytes(event.written_bytes)} of {in_bytes(event.total_written_bytes)}, "
        f"{in_bytes(rate)}/s, limited by {event.limited_by}, {eta}"
    )
