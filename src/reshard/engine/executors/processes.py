"""An executor of processes, each of which moves the bytes of steps with threads of its own."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ...errors import ReshardError, counted, option
from ...planning.plan import Plan
from ...storage import ToldOutage, current_policy, shared
from ..digest import ReadLedger
from ..events import Noted, Progress
from ..locations import Locations
from ..meter import Meter
from ..workers import POLL_S, Workers
from .crew import AnyCrew, Member
from .executor import PartSink, Result, StepId
from .messages import Begin, Done, Down, Ended, Failed, FromChild, Steps, Wanting, Work
from .threads import ThreadExecutor

_MUCH_LONGER = 2.0
"""A step is slow if it takes so many times as long as most did."""


@dataclass(frozen=True, slots=True)
class ProcessExecutor:
    """Has a crew of processes move the bytes of a plan; each holds its share of what the plan allows.

    Steps are handed out one at a time, so that no process waits long for another at the end. The steps of a process
    that is killed are done by the others: a step gives its results all at once, when it is done, and then for good.
    """

    crew: AnyCrew
    locations: Locations
    workers: Workers
    meter: Meter
    ledger: ReadLedger | None = None

    def run(self, plan: Plan, sink: PartSink[Result], steps: Iterable[StepId]) -> Iterator[Result]:
        """Run steps, many at once; see :class:`~.executor.Executor`."""
        if plan.limits.process_count == 1 and self.crew.is_here:  # as a run had planned that this one continues
            return ThreadExecutor(self.locations, self.workers, self.meter, self.ledger).run(plan, sink, steps)
        return _Leading(self, plan, sink).run(iter(steps))


@dataclass(slots=True, eq=False)
class _Child:
    """What the leader knows of a process: the steps that it has, how far it is, and whether it waits for a step.

    ``late`` are steps that it has still under way although another has done them.
    """

    member: Member
    outage: ToldOutage
    given: set[StepId] = field(default_factory=set)
    late: set[StepId] = field(default_factory=set)
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0, 0, 0, waits_for_memory=False))
    wants: bool = False
    has_ended: bool = False


class _Leading:
    """One run of the executor."""

    def __init__(self, executor: ProcessExecutor, plan: Plan, sink: PartSink[Any]) -> None:
        self._plan = plan
        self._crew = executor.crew
        self._workers = executor.workers
        self._meter = executor.meter
        self._ledger = executor.ledger
        kept = None if executor.ledger is None else executor.ledger.kept
        self._begin = pickle.dumps(Begin(current_policy(), pickle.dumps(Work(plan, sink, executor.locations, kept))))
        self._children: dict[Member, _Child] = {}
        self._again: deque[StepId] = deque()
        self._are_out = False  # whether all steps have been handed out at least once
        self._is_ending = False  # whether all are done, and processes are told so
        self._begun_s: dict[StepId, float] = {}  # of each step that is under way
        self._took_s: list[float] = []

    def run(self, steps: Iterator[StepId]) -> Iterator[Any]:
        is_done = False
        try:
            while not (self._is_ending and all(child.has_ended for child in self._children.values())):
                self._workers.check()
                self._welcome()
                for member in self._crew.ready(self._children, POLL_S):
                    while member in self._children and (data := self._received(member)) is not None:
                        yield from self._hear(self._children[member], pickle.loads(data))  # noqa: S301 - a child's own
                self._hand_out(steps)
                self._meter.report(waits_for_memory=self._waits_for_memory)
            is_done = True
        finally:
            if not is_done:
                self._crew.break_off(self._crew.members)
            for child in self._children.values():
                child.outage.now = None

    @property
    def _waits_for_memory(self) -> bool:
        return all(child.progress.waits_for_memory or child.has_ended for child in self._children.values())

    def _welcome(self) -> None:
        """Introduce the run to processes that do not know it: each has the memory that the plan gives to one."""
        some = self._crew.members[: self._plan.limits.process_count]
        new = [member for member in some if member not in self._children and not self._is_ending]
        for member in new:
            self._children[member] = _Child(member, shared(("outage of a process", member.name), ToldOutage))
        for member in new:  # one that is gone is lost while there are others
            self._send(self._children[member], self._begin)

    def _received(self, member: Member) -> bytes | None:
        try:
            return member.receive()
        except EOFError:
            self._lose(self._children[member])
            return None

    def _hear(self, child: _Child, message: FromChild) -> Iterator[Any]:
        """Take one message; yield the results in it."""
        match message:
            case Wanting():
                child.wants = True
            case Done():
                if self._ledger is not None:
                    self._ledger.add_all(message.ranges)
                if self._is_first(child, message.step_id):
                    self._meter.overflows.add_all(message.overflows)
                    yield from message.results
            case Progress():
                self._count(child, message)
            case Down(outage):
                child.outage.now = outage
            case Failed(error):
                raise error
            case Ended():
                child.has_ended = True

    def _is_first(self, child: _Child, step_id: StepId) -> bool:
        """Note that a child has done a step; return whether none did before."""
        if step_id in child.late:
            child.late.discard(step_id)
            return False
        self._took_s.append(time.monotonic() - self._begun_s.pop(step_id))
        for other in self._holders(step_id):
            other.given.discard(step_id)
            if other is not child:
                other.late.add(step_id)
        return True

    def _holders(self, step_id: StepId) -> list[_Child]:
        return [child for child in self._children.values() if step_id in child.given]

    def _hand_out(self, steps: Iterator[StepId]) -> None:
        """Give a step to each process that wants one, or tell all that there are no more once every one is done."""
        for child in [child for child in self._children.values() if child.wants]:
            step_id = self._again.popleft() if self._again else next(steps, None)
            if step_id is None:
                self._are_out = True
                step_id = self._slow_step(child)
            if step_id is not None:
                self._begun_s.setdefault(step_id, time.monotonic())
                child.given.add(step_id)
                self._give(child, Steps((step_id,)))
        # As long as a step is under way, its process may be killed, and another must do it.
        if self._are_out and not self._again and not any(child.given for child in self._children.values()):
            self._is_ending = True
            self._stop_late()
            for child in [child for child in self._children.values() if child.wants]:
                self._give(child, Steps())

    def _slow_step(self, child: _Child) -> StepId | None:
        """Return the step that has been under way for long, and that an idle process shall try, too.

        Objects that are PUT whole are small, and visible at once: they are not sent twice.
        """
        if self._crew.second_try_s is None or not self._took_s:
            return None
        begun_before_s = time.monotonic() - max(self._crew.second_try_s, _MUCH_LONGER * median(self._took_s))
        slow = [
            (begun_s, step_id)
            for step_id, begun_s in self._begun_s.items()
            if begun_s < begun_before_s
            and not self._plan.draft.is_small(self._plan.groups[step_id[0]])
            and len(holders := self._holders(step_id)) == 1
            and child not in holders
        ]
        return min(slow)[1] if slow else None

    def _stop_late(self) -> None:
        """Stop processes that are still at steps which others have done: what they send must not arrive later on."""
        late = [child for child in self._children.values() if child.late]
        if late:
            self._crew.break_off([child.member for child in late])
            for child in late:
                self._forget(child)
            text = f"{counted(len(late), 'slow worker')} stopped: the steps under way there are done by others"
            self._meter.tell(Noted(text))

    def _give(self, child: _Child, steps: Steps) -> None:
        child.wants = False
        self._send(child, pickle.dumps(steps))

    def _send(self, child: _Child, data: bytes) -> None:
        try:
            child.member.send(data)
        except OSError:
            self._lose(child)

    def _count(self, child: _Child, now: Progress) -> None:
        before, child.progress = child.progress, now
        read, written = now.read_bytes - before.read_bytes, now.written_bytes - before.written_bytes
        self._meter.reads.add(done_bytes=read, in_flight=now.reading - before.reading)
        self._meter.writes.add(done_bytes=written, in_flight=now.writing - before.writing)
        self._meter.copied(now.copied_bytes - before.copied_bytes)
        self._meter.moved_at(child.member.host, read + written)

    def _lose(self, child: _Child) -> None:
        """Have the others do what a process that is gone has not done."""
        self._forget(child)
        what = self._crew.lose(child.member)
        left = sorted(step_id for step_id in child.given if not self._holders(step_id))
        for step_id in left:
            del self._begun_s[step_id]
        self._again.extend(left)
        if self._is_ending:
            return
        if not self._children and not self._crew.grows:
            raise ReshardError(
                f"{what}, and no other is left",
                hint=f"Perhaps the machine has too little memory: lower {option('processes')} or {option('memory')}.",
            )
        self._meter.tell(Noted(f"{what}: {counted(len(left), 'step')} of its are done again by the others."))

    def _forget(self, child: _Child) -> None:
        del self._children[child.member]
        child.outage.now = None
        self._meter.reads.add(in_flight=-child.progress.reading)
        self._meter.writes.add(in_flight=-child.progress.writing)
