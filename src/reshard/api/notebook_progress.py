"""A progress bar for notebooks, which statements draw where nobody listens to them."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..engine.events import Answered, Event, Listener, Noted, PhaseStarted, Waiting, ignore
from ..figures import in_bytes, in_time
from ..notebook import in_html


def listening(on_event: Listener | None) -> Listener:
    """Return who listens to a statement: whom the caller names, else a bar in a notebook, else nobody."""
    return on_event or (NotebookProgress() if _in_notebook() else ignore)


def _in_notebook() -> bool:
    """Whether a kernel runs this, which shows HTML; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class NotebookProgress:
    """A line of HTML below the cell: phase, bar and figures. It needs IPython alone, no widgets."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._phase = "headers"
        self._begun_s = time.monotonic()
        self._moved = self._total = 0
        self._notes: list[str] = []

    def __call__(self, event: Event) -> None:
        """Draw an event."""
        more = ""
        if isinstance(event, PhaseStarted):
            self._phase = event.name
            if event.name in ("transfer", "verify"):  # which count from zero; what comes after leaves the figures
                self._begun_s, self._moved, self._total = time.monotonic(), 0, 0
        elif isinstance(event, Noted):
            self._notes.append(event.text)
        elif isinstance(event, Waiting):
            more = f"waiting for the store, {in_time(round(event.seconds))}"
        elif not isinstance(event, Answered):
            self._moved = event.read_bytes + event.written_bytes
            self._total = event.total_read_bytes + event.total_written_bytes
        self._draw(more or self._figures())

    def _figures(self) -> str:
        elapsed_s = time.monotonic() - self._begun_s
        if not self._moved or not elapsed_s:
            return ""
        rate = self._moved / elapsed_s
        left = (self._total - self._moved) / rate
        state = f"{in_time(left)} left" if self._moved < self._total else f"in {in_time(elapsed_s)}"
        return f"{in_bytes(self._moved)} of {in_bytes(self._total)}, {in_bytes(rate)}/s, {state}"

    def _draw(self, figures: str) -> None:
        from IPython.display import HTML, display

        bar = f"<progress value={self._moved} max={self._total}></progress> " if self._total else ""
        notes = "".join(f"<br>note: {in_html(note)}" for note in self._notes)
        html = HTML(f"<div>{in_html(self._phase)} {bar}{in_html(figures)}{notes}</div>")
        if self._handle is None:
            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)
