"""What the leader of a run and the processes that move its bytes tell each other, over a pipe or by Ray.

The leader sends :class:`Begin`, then :class:`Steps` whenever it is asked for some, and at last none; ``STOP`` ends the
process. A process sends :class:`Wanting`, :class:`Done` for each step, :class:`Ended` once all its steps are done, or
:class:`Failed`; and in between how far it is (:class:`~reshard.engine.events.Progress`) and whether a store is down
(:class:`Down`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...planning.plan import Plan
from ...storage import KeptChecksum, Outage, RetryPolicy
from ..digest import ReadRanges
from ..events import Progress
from ..kernels.overflow import Found
from ..locations import Locations
from .executor import PartSink, StepId

STOP = b""
"""The message that ends a process; requests in flight are broken off."""


@dataclass(frozen=True, slots=True)
class Work:
    """What steps need: a plan, a sink, and places that are opened anew.

    ``kept`` are the checksums of objects of the source that are compared, by position; None if nothing is collected.
    """

    plan: Plan
    sink: PartSink[Any]
    locations: Locations
    kept: Mapping[int, KeptChecksum] | None


@dataclass(frozen=True, slots=True)
class Begin:
    """How long to wait for stores, and the pickled :class:`Work`, whose places are to be opened with that patience."""

    policy: RetryPolicy
    work: bytes


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps to do; none if there are no more."""

    step_ids: tuple[StepId, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanting:
    """The process can begin another step."""


@dataclass(frozen=True, slots=True)
class Done:
    """A step is done, with all its results; ``ranges`` were read since the process told last, of any step."""

    step_id: StepId
    results: tuple[Any, ...]
    overflows: Found
    ranges: ReadRanges


@dataclass(frozen=True, slots=True)
class Down:
    """A store does not answer, or all answer again if the outage is None."""

    outage: Outage | None


@dataclass(frozen=True, slots=True)
class Ended:
    """All steps of this process are done."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A step failed, and the process has broken off what else it was doing."""

    error: Exception


FromChild = Wanting | Done | Down | Ended | Failed | Progress
