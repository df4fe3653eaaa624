"""Live progress on stderr, drawn from the engine's events: one line that fits the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from ..engine.events import Answered, Event, Listener, Noted, PhaseStarted, Progress, Waiting, ignore
from .pace import Figures, Pace
from .printing import in_bytes, in_time, plain, write
from .spelling import spelled
from .terminal import styled

_LINE_EVERY_S = 10.0
_WAITING_EVERY_S = 30.0
_DRAW_EVERY_S = 0.1
_BAR = 12
_WIPE = "\r\x1b[2K"
_COUNTED_FROM_ZERO = ("transfer", "verify")
"""Phases whose figures restart at zero: a rate over all that went before would be too low."""


@contextmanager
def progress(*, quiet: bool) -> Iterator[Listener]:
    """Listen to a run: a live line on a terminal, a line now and then in a log, or nothing."""
    if quiet:
        yield ignore
    elif not sys.stderr.isatty():
        yield LogLines(lambda line: write(line, sys.stderr))
    else:
        live = _LiveLine(sys.stderr)
        try:
            yield live
        finally:
            live.wipe()


class _LiveLine:
    """One line, drawn again and again, as long as the terminal is wide."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase, self._waiting, self._is_drawn = "headers", "", False
        self._pace = Pace(time.monotonic())
        self._drawn_s = -_DRAW_EVERY_S
        self._draw(["reading headers"])

    def __call__(self, event: Event) -> None:
        now_s = time.monotonic()
        match event:
            case PhaseStarted(name):
                self._phase = name
                if name in _COUNTED_FROM_ZERO:
                    self._pace = Pace(now_s)
                self._draw(["reading headers" if name == "headers" else name])
            case Noted(text):
                self.wipe()
                self._stream.write(f"{styled('note:', 'note', self._stream)} {plain(spelled(text))}\n")
            case Waiting():
                self._waiting = _waiting(event)
                self._draw([f"{self._phase}  {self._waiting}"])
            case Answered():
                self._waiting = ""
            case Progress():
                figures = self._pace.figures(event, now_s)
                if now_s - self._drawn_s >= _DRAW_EVERY_S:
                    self._drawn_s = now_s
                    texts = [f"{self._phase}  {self._waiting}"] if self._waiting else self._texts(event, figures)
                    self._draw(texts)

    def wipe(self) -> None:
        """Leave a clean line for what follows."""
        if self._is_drawn:
            self._stream.write(_WIPE)
            self._stream.flush()
        self._is_drawn = False

    def _texts(self, event: Progress, figures: Figures) -> list[str]:
        """Return what the line says, the most important first."""
        full, empty = ("━", "─") if (self._stream.encoding or "utf-8").lower().startswith("utf") else ("#", "-")
        filled = round(_BAR * figures.share)
        moved = f"{in_bytes(event.written_bytes)} of {in_bytes(event.total_written_bytes)}"
        some = [
            f"{self._phase} {full * filled}{empty * (_BAR - filled)} {figures.share:4.0%}",
            f"{in_bytes(figures.rate)}/s",
            _left(figures),
            moved,
            f"limited by {figures.limited_by}",
            f"{in_bytes(figures.average)}/s on average",
        ]
        return [*some, *_shares(event), *_machines(event, figures)]

    def _draw(self, texts: list[str]) -> None:
        """Draw as many of the texts, the first ones first, as fit into one line."""
        room = _columns(self._stream) - 1  # a full last column makes some terminals begin a new line
        line = texts[0][:room]
        for text in texts[1:]:
            if text and len(line) + 2 + len(text) <= room:
                line += f"  {text}"
        self._stream.write(f"{_WIPE}{line}")
        self._stream.flush()
        self._is_drawn = True


class LogLines:
    """Plain lines, rarely."""

    def __init__(self, show: Callable[[str], object], every_s: float = _LINE_EVERY_S) -> None:
        self._show, self._every_s = show, every_s
        self._last_s = time.monotonic()
        self._pace = Pace(self._last_s)
        self._wait: _LoggedWait | None = None

    def __call__(self, event: Event) -> None:
        """Write a line for an event, or none."""
        now_s = time.monotonic()
        if isinstance(event, PhaseStarted):
            if event.name in _COUNTED_FROM_ZERO:
                self._pace = Pace(now_s)
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
        else:
            figures = self._pace.figures(event, now_s)
            if now_s - self._last_s > self._every_s and not self._wait:
                self._last_s = now_s
                self._show(f"  {_line(event, figures)}")


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


def _line(event: Progress, figures: Figures) -> str:
    """Say all in one line of a log."""
    read = f"read {in_bytes(event.read_bytes)} of {in_bytes(event.total_read_bytes)}"
    written = f"written {in_bytes(event.written_bytes)} of {in_bytes(event.total_written_bytes)}"
    rates = f"{in_bytes(figures.rate)}/s, {in_bytes(figures.average)}/s on average"
    texts = [f"{figures.share:.0%}", written, read, *_shares(event), rates, f"limited by {figures.limited_by}"]
    return ", ".join([*texts, *_machines(event, figures), _left(figures) or "time left unknown"])


def _left(figures: Figures) -> str:
    return "" if figures.left_s is None else f"{in_time(figures.left_s)} left"


def _shares(event: Progress) -> list[str]:
    shares = [("resumed", event.resumed_bytes), ("copied by the store", event.copied_bytes)]
    return [f"{in_bytes(nbytes)} {how}" for how, nbytes in shares if nbytes]


def _machines(event: Progress, figures: Figures) -> list[str]:
    """Say what each machine has done of all that was moved, the slowest first: it is what one looks for."""
    if not event.machine_bytes:
        return []
    total = sum(event.machine_bytes.values()) or 1
    rates = {host: figures.average * nbytes / total for host, nbytes in event.machine_bytes.items()}
    slowest = sorted(rates, key=rates.__getitem__)
    named = ", ".join(f"{plain(host, is_line=True)} {in_bytes(rates[host])}/s" for host in slowest[:4])
    more = ", ..." if len(rates) > 4 else ""
    return [f"{len(rates)} machines: {named}{more}"]


def _columns(stream: TextIO) -> int:
    """Return how wide a terminal is now: people make windows narrower."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return int(os.environ.get("COLUMNS") or 80)
