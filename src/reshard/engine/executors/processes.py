"""An executor of processes, each of which moves the bytes of steps with threads of its own."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import ReshardError, counted, option
from ...planning.plan import Plan
from ...storage import ToldOutage, current_policy, shared
from ..digest import ReadLedger
from ..events import Noted, Progress
from ..locations import Locations
from ..meter import Meter
from ..workers import POLL_S, Workers
from .crew import Crew, Member
from .executor import PartSink, Result, StepId
from .messages import Begin, Done, Down, Ended, Failed, FromChild, Steps, Wanting, Work
from .threads import ThreadExecutor


@dataclass(frozen=True, slots=True)
class ProcessExecutor:
    """Has a crew of processes move the bytes of a plan; each holds its share of what the plan allows.

    Steps are handed out one at a time, so that no process waits long for another at the end. The steps of a process
    that is killed are done by the others: a step gives its results all at once, when it is done, and then for good.
    """

    crew: Crew
    locations: Locations
    workers: Workers
    meter: Meter
    ledger: ReadLedger | None = None

    def run(self, plan: Plan, sink: PartSink[Result], steps: Iterable[StepId]) -> Iterator[Result]:
        """Run steps, many at once; see :class:`~.executor.Executor`."""
        if plan.limits.process_count == 1:  # as a run had planned that this one continues
            return ThreadExecutor(self.locations, self.workers, self.meter, self.ledger).run(plan, sink, steps)
        return _Leading(self, plan, sink).run(iter(steps))


@dataclass(slots=True, eq=False)
class _Child:
    """What the leader knows of a process: the steps that it has, how far it is, and whether it waits for a step."""

    member: Member
    given: set[StepId] = field(default_factory=set)
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0, 0, 0, waits_for_memory=False))
    outage: ToldOutage = field(default_factory=ToldOutage)
    wants: bool = False
    has_ended: bool = False


class _Leading:
    """One run of the executor."""

    def __init__(self, executor: ProcessExecutor, plan: Plan, sink: PartSink[Any]) -> None:
        self._crew = executor.crew
        self._workers = executor.workers
        self._meter = executor.meter
        self._ledger = executor.ledger
        kept = None if executor.ledger is None else executor.ledger.kept
        self._begin = pickle.dumps(Begin(current_policy(), pickle.dumps(Work(plan, sink, executor.locations, kept))))
        # Each process has the memory that the plan gives to one, however many there are.
        members = self._crew.members[: plan.limits.process_count]
        self._children = {member: self._introduce(member) for member in members}
        self._again: deque[StepId] = deque()
        self._are_out = False  # whether all steps have been handed out at least once

    def _introduce(self, member: Member) -> _Child:
        return _Child(member, outage=shared(("outage of a process", member.pid), ToldOutage))

    def run(self, steps: Iterator[StepId]) -> Iterator[Any]:
        is_done = False
        try:
            for child in list(self._children.values()):
                self._send(child, self._begin)
            while any(not child.has_ended for child in self._children.values()):
                self._workers.check()
                for member in self._crew.ready(self._children, POLL_S):
                    while member in self._children and member.connection.poll():
                        yield from self._hear(self._children[member])
                self._hand_out(steps)
                self._meter.report(waits_for_memory=self._waits_for_memory)
            is_done = True
        finally:
            if not is_done:
                self._crew.stop()
            for child in self._children.values():
                child.outage.now = None

    @property
    def _waits_for_memory(self) -> bool:
        return all(child.progress.waits_for_memory or child.has_ended for child in self._children.values())

    def _hear(self, child: _Child) -> Iterator[Any]:
        """Take one message; yield the results in it."""
        try:
            message: FromChild = pickle.loads(child.member.connection.recv_bytes())  # noqa: S301 - a child's own
        except (EOFError, OSError):
            self._lose(child)
            return
        match message:
            case Wanting():
                child.wants = True
            case Done(step_id):
                child.given.discard(step_id)
                self._meter.overflows.add_all(message.overflows)
                if self._ledger is not None:
                    self._ledger.add_all(message.ranges)
                yield from message.results
            case Progress():
                self._count(child, message)
            case Down(outage):
                child.outage.now = outage
            case Failed(error):
                raise error
            case Ended():
                child.has_ended = True

    def _hand_out(self, steps: Iterator[StepId]) -> None:
        """Give a step to each process that wants one, or tell all that there are no more once every one is done."""
        for child in [child for child in self._children.values() if child.wants]:
            step_id = self._again.popleft() if self._again else next(steps, None)
            if step_id is None:
                self._are_out = True
                break
            self._give(child, Steps((step_id,)))
        # As long as a step is under way, its process may be killed, and another must do it.
        if self._are_out and not self._again and not any(child.given for child in self._children.values()):
            for child in [child for child in self._children.values() if child.wants]:
                self._give(child, Steps())

    def _give(self, child: _Child, steps: Steps) -> None:
        child.wants = False
        child.given.update(steps.step_ids)
        self._send(child, pickle.dumps(steps))

    def _send(self, child: _Child, data: bytes) -> None:
        try:
            child.member.connection.send_bytes(data)
        except OSError:
            self._lose(child)

    def _count(self, child: _Child, now: Progress) -> None:
        before, child.progress = child.progress, now
        read, written = now.read_bytes - before.read_bytes, now.written_bytes - before.written_bytes
        self._meter.reads.add(done_bytes=read, in_flight=now.reading - before.reading)
        self._meter.writes.add(done_bytes=written, in_flight=now.writing - before.writing)

    def _lose(self, child: _Child) -> None:
        """Have the others do what a process that is gone has not done."""
        del self._children[child.member]
        status = self._crew.lose(child.member)
        child.outage.now = None
        self._meter.reads.add(in_flight=-child.progress.reading)
        self._meter.writes.add(in_flight=-child.progress.writing)
        self._again.extend(sorted(child.given))
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit code {status}"
        what = f"A process that moved bytes {how}"
        if not self._children:
            raise ReshardError(
                f"{what}, and no other is left",
                hint=f"Perhaps the machine has too little memory: lower {option('processes')} or {option('memory')}.",
            )
        self._meter.tell(Noted(f"{what}: {counted(len(child.given), 'step')} of its are done again by the others."))
