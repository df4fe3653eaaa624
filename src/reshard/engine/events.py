"""Events that a run sends to its listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase of a run begins: ``headers``, ``transfer``, ``commit`` or ``verify``.

    Each ``transfer`` counts its :class:`Progress` from zero: a run with staging has two.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a transfer, sent a few times a second: bytes done and planned, and requests in flight.

    Bytes that the store copies count as written, and so do those that an earlier run has sent: ``copied_bytes`` and
    ``resumed_bytes`` of the written ones. A transfer waits for memory while the next step waits until earlier parts
    have been sent. ``machine_bytes`` are read and written ones by machine, where there are several.
    """

    read_bytes: int
    written_bytes: int
    total_read_bytes: int
    total_written_bytes: int
    reading: int
    writing: int
    waits_for_memory: bool
    copied_bytes: int = 0
    resumed_bytes: int = 0
    machine_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def limited_by(self) -> str:
        """Current bottleneck: ``memory``, ``reads`` or ``writes``."""
        if self.waits_for_memory:
            return "memory" if self.writing < self.reading else "writes"
        return "writes" if self.writing > self.reading else "reads"


@dataclass(frozen=True, slots=True)
class Noted:
    """Something a person should know although the run goes well."""

    text: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A store does not answer: for so many seconds by now, sent about once a second; ``reason`` is its last failure."""

    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """The store that a run was waiting for answers again."""


Event = PhaseStarted | Progress | Noted | Waiting | Answered
Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing."""
