"""Trying again: raising Transient decides what is worth it, this module decides how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from ..errors import Interrupted, ReshardError, Transient, option
from .availability import Availability, Try
from .stopping import ShouldStop, check, never

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to try, and how long to wait between tries.

    A request is given up when it has failed for ``give_up_after_s`` without any progress, or for ``first_answer_s`` at
    a store that has never answered: its address may be wrong.

    The wait before try ``n + 1`` is drawn evenly from 0 to ``first_delay_s * 2**(n - 1)``, never above
    ``longest_delay_s``: an overloaded store recovers only if the tries of many workers are spread over the
    whole interval. The one request that probes a store that is down waits for ``longest_probe_delay_s`` at most.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter).

    Examples
    --------
    >>> [RetryPolicy(first_delay_s=1, longest_delay_s=5).longest_wait_s(failures) for failures in (1, 2, 3, 4)]
    [1.0, 2.0, 4.0, 5]
    """

    give_up_after_s: float = 900.0
    first_answer_s: float = 60.0
    first_delay_s: float = 0.25
    longest_delay_s: float = 20.0
    longest_probe_delay_s: float = 5.0

    @classmethod
    def patient_for(cls, give_up_after_s: float | None) -> RetryPolicy:
        """Return the policy of a run whose user said when to give up, or did not.

        Examples
        --------
        >>> RetryPolicy.patient_for(None).first_answer_s, RetryPolicy.patient_for(600).first_answer_s
        (60.0, 600)
        """
        return cls() if give_up_after_s is None else cls(give_up_after_s, first_answer_s=give_up_after_s)

    def longest_wait_s(self, failures: int) -> float:
        """Upper bound of the wait after so many failures in a row."""
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 32))

    def limit_s(self, *, has_answered: bool) -> float:
        """How long a request may fail at a store that has answered before, or has not."""
        return self.give_up_after_s if has_answered else min(self.first_answer_s, self.give_up_after_s)


class Retries:
    """The tries of one request: a context manager for each, which swallows a Transient if there is a next try.

    ``on_wait`` is called often during waits.

    Examples
    --------
    >>> retries, answers = Retries(RetryPolicy(first_delay_s=0)), iter([Transient("slow down"), None])
    >>> while retries.has_next:
    ...     with retries:
    ...         if error := next(answers):
    ...             raise error
    ...         print("done")
    done
    """

    def __init__(
        self,
        policy: RetryPolicy,
        availability: Availability | None = None,
        should_stop: ShouldStop = never,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy = policy
        self._availability = availability or Availability()
        self._should_stop = should_stop
        self._on_wait = on_wait
        self._failures = 0
        self._failing_since_s = 0.0
        self._next = self._try = Try()
        self.has_next = True

    def progressed(self) -> None:
        """Forget the failures so far: bytes have arrived since."""
        self._failures = 0
        self._availability.progressed()

    def __enter__(self) -> None:
        """Wait until the next try may begin.

        Raises
        ------
        Interrupted
            ``should_stop`` answered yes.
        """
        check(self._should_stop)
        self._try = self._availability.admit(self._next, self._wait)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """End a try; raise Transient if there is no next: the message says how many there were."""
        if isinstance(error, Transient):
            self._failed(error)
            return True
        self.has_next = False
        is_answer = error is None or (isinstance(error, ReshardError) and not isinstance(error, Interrupted))
        (self._availability.answered if is_answer else self._availability.broke_off)(self._try)
        return False

    def _failed(self, error: Transient) -> None:
        now_s = time.monotonic()
        if not self._failures:
            self._failing_since_s = now_s
        self._failures += 1
        # A request that begins during an outage has no more time than those that have waited all along.
        down_since_s = self._availability.down_since_s
        since_s = self._failing_since_s if down_since_s is None else min(self._failing_since_s, down_since_s)
        limit_s = self._policy.limit_s(has_answered=self._availability.has_answered)
        left_s = limit_s - (now_s - since_s)
        probe_wait_s = min(self._policy.longest_wait_s(self._availability.round), self._policy.longest_probe_delay_s)
        self._availability.failed(self._try, error.marked_message, max(0.0, min(left_s, probe_wait_s)))
        if left_s <= 0:
            self.has_next = False
            raise self._given_up(error, now_s - since_s) from error
        delay_s = random.uniform(0, min(left_s, self._policy.longest_wait_s(self._failures)))  # noqa: S311
        self._next = Try(now_s + delay_s)

    def _given_up(self, error: Transient, seconds: float) -> Transient:
        tries = "1 try" if self._failures == 1 else f"{self._failures} tries"
        message = f"{error.marked_message} (gave up after {tries} in {seconds:.0f} s)"
        more = f"To wait longer for a store that is down, give {option('give_up_after', '1h')}."
        hint = " ".join(part for part in (error.marked_hint, more) if part)
        return Transient(message, hint=hint, problems=error.marked_problems)

    def _wait(self) -> None:
        check(self._should_stop)
        self._on_wait()


def retrying(action: Callable[[], T], retries: Retries) -> T:
    """Return what ``action`` returns, calling it again after each Transient until the time has run out.

    ``action`` must not try another request of the same store: that one would wait for the outcome of this one.

    Examples
    --------
    >>> answers = iter([Transient("slow down"), "done"])
    >>> def action():
    ...     answer = next(answers)
    ...     if isinstance(answer, Transient):
    ...         raise answer
    ...     return answer
    >>> retrying(action, Retries(RetryPolicy(first_delay_s=0)))
    'done'
    """
    while True:
        with retries:
            return action()
