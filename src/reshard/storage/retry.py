"""Trying again: raising Transient decides what is worth it, this module decides how often."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import Transient
from .stopping import ShouldStop, never, pause

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try, and how long to wait between tries.

    The wait before try ``n + 1`` is drawn evenly from 0 to ``first_delay_s * 2**(n - 1)``, never above
    ``longest_delay_s``: an overloaded store recovers only if the tries of many workers are spread over the
    whole interval.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter).

    Examples
    --------
    >>> [RetryPolicy(first_delay_s=1, longest_delay_s=5).longest_wait_s(failures) for failures in (1, 2, 3, 4)]
    [1.0, 2.0, 4.0, 5]
    """

    tries: int = 7
    first_delay_s: float = 0.25
    longest_delay_s: float = 20.0

    def longest_wait_s(self, failures: int) -> float:
        """Upper bound of the wait after so many failures in a row."""
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 32))


class Retries:
    """The failures in a row of one request, and the waits between them."""

    def __init__(self, policy: RetryPolicy, should_stop: ShouldStop = never) -> None:
        self._policy = policy
        self._should_stop = should_stop
        self._failures = 0
        self._began = time.monotonic()

    def progressed(self) -> None:
        """Forget the failures so far: bytes have arrived since."""
        self._failures = 0

    def failed(self, error: Transient) -> None:
        """Wait before the next try.

        Raises
        ------
        Transient
            There is no next try; the message says how many there were.
        Interrupted
            ``should_stop`` answered yes during the wait.
        """
        self._failures += 1
        if self._failures >= self._policy.tries:
            seconds = time.monotonic() - self._began
            message = f"{error.marked_message} (gave up after {self._failures} tries in {seconds:.0f} s)"
            raise Transient(message, hint=error.marked_hint, problems=error.marked_problems) from error
        pause(random.uniform(0, self._policy.longest_wait_s(self._failures)), self._should_stop)  # noqa: S311


def retrying(action: Callable[[], T], policy: RetryPolicy, should_stop: ShouldStop = never) -> T:
    """Return what ``action`` returns, calling it again after each Transient until the tries run out.

    Examples
    --------
    >>> answers = iter([Transient("slow down"), "done"])
    >>> def action():
    ...     answer = next(answers)
    ...     if isinstance(answer, Transient):
    ...         raise answer
    ...     return answer
    >>> retrying(action, RetryPolicy(first_delay_s=0))
    'done'
    """
    retries = Retries(policy, should_stop)
    while True:
        try:
            return action()
        except Transient as error:
            retries.failed(error)
