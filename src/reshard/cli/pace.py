"""Rates, time left and what limits a transfer, steady enough to read."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from ..engine.events import Progress

_NOW_S = 5.0
"""How far back the present rate looks."""

_FIRST_S = 2.0
"""Before a transfer has gone on for so long, nothing is said about its end."""

_RECENT_S = 20.0
"""How far back the time left looks at least: stores answer in bursts."""

_OF_ALL = 0.7
"""How much the average of the whole transfer counts for the time left, beside that of its last part."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A transfer at one moment: rates in bytes a second, and seconds left if that can be said."""

    share: float
    rate: float
    average: float
    left_s: float | None
    limited_by: str


class Pace:
    """Follows one transfer. What an earlier run has sent is no speed of this one's."""

    def __init__(self, begun_s: float) -> None:
        self._begun_s = begun_s
        self._samples: deque[tuple[float, int]] = deque([(begun_s, 0)])
        self._limits: deque[str] = deque(maxlen=25)

    def figures(self, event: Progress, now_s: float) -> Figures:
        """Take in how far a transfer is, and return what can be said of it."""
        done = event.read_bytes + event.written_bytes
        total = event.total_read_bytes + event.total_written_bytes
        moved, elapsed_s = done - event.resumed_bytes, now_s - self._begun_s
        self._limits.append(event.limited_by)
        average = moved / elapsed_s if elapsed_s > 0 else 0.0
        recent = self._rate_since(now_s - max(_RECENT_S, elapsed_s / 3), moved, now_s) or average
        rate = self._rate_since(now_s - _NOW_S, moved, now_s)
        self._keep(now_s, moved, elapsed_s)
        expected = _OF_ALL * average + (1 - _OF_ALL) * recent
        is_early = elapsed_s < _FIRST_S or not expected
        left_s = None if is_early else _coarse((total - done) / expected)
        share = done / total if total else 1.0
        return Figures(share, rate, average, left_s, Counter(self._limits).most_common(1)[0][0])

    def _rate_since(self, since_s: float, moved: int, now_s: float) -> float:
        time_s, before = next((each for each in self._samples if each[0] >= since_s), self._samples[-1])
        return (moved - before) / (now_s - time_s) if now_s > time_s else 0.0

    def _keep(self, now_s: float, moved: int, elapsed_s: float) -> None:
        """Keep a sample, a few hundred at most however long it takes."""
        if now_s - self._samples[-1][0] >= max(0.2, elapsed_s / 500):
            self._samples.append((now_s, moved))
        while self._samples[0][0] < now_s - max(2 * _RECENT_S, elapsed_s / 2):
            self._samples.popleft()


def _coarse(seconds: float) -> float:
    """Round a length of time to what can be known of it, so that it does not flicker."""
    step = 1 if seconds < 30 else 5 if seconds < 300 else 60
    return max(1.0, step * round(seconds / step))
