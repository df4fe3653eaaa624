"""Every request of every step of a plan, on virtual time: what the closed formula of an estimate is compared with.

Steps are handed out one at a time, in the plan's order, to processes that ask (``engine/executors/processes.py``). A
process starts a step when fewer reads are queued than it may have in flight and its parts fit its memory; parts are
sent before anything else is read (``engine/executors/threads.py``). When a machine is lost, nothing of the steps that
it had counts, and others do them again.

What is shared (a machine's line, a process's processor, a store's account) carries one request after the other at its
whole speed, in the order in which they arrive, instead of all at once at a fraction of it. Nothing stands still that
has work, so throughput is the same; only the order in which requests end differs from a fair division. A request ends
when the slowest of what carries it is through with it, and never before its connection could be. Memory does not
fragment.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from reshard.planning.cost.duration import RETRY_WAIT_S, Machines, Speeds
from reshard.planning.plan import Plan
from reshard.planning.steps.draft import Group
from reshard.planning.steps.group_steps import GroupSteps


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step asks for: bytes of its reads, of its parts with the keys that each goes to, and of its copies.

    ``held_bytes`` is the length of its buffers.
    """

    reads: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    copies: tuple[int, ...]
    held_bytes: int

    @property
    def moved_bytes(self) -> int:
        """Bytes that it reads and sends."""
        return sum(self.reads) + sum(nbytes * key_count for nbytes, key_count in self.parts)


def works_of(plan: Plan) -> list[StepWork]:
    """The steps of a plan, in the order in which they are handed out."""
    return [
        work for index, group in enumerate(plan.groups) for work in _group_works(plan, group, plan.group_steps(index))
    ]


def _group_works(plan: Plan, group: Group, steps: GroupSteps) -> Iterator[StepWork]:
    key_counts = {output: len(plan.draft.written_keys(group, output)) for output in group.outputs}
    for copied in steps.copied_parts():
        yield StepWork((), (), (copied.range.nbytes,) * key_counts[copied.output], 0)
    for number in steps.streaming:
        size = steps.size(number)
        reads = tuple(block.range.nbytes for block in size.blocks)
        parts = tuple((nbytes, key_counts[output]) for output, nbytes in steps.part_sizes(number))
        yield StepWork(reads, parts, (), size.nbytes)


@dataclass(frozen=True, slots=True)
class Losses:
    """Machines that are lost: a sixtieth of this share of those that are left, a second; fractions add up.

    The others hear of it after ``notice_s``. The last machine is never lost.
    """

    share_a_minute: float
    notice_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """When the last step was done, how many machines were lost, and bytes that were moved for nothing."""

    seconds: float
    lost_count: int
    redone_bytes: int


@dataclass(slots=True, eq=False)
class _Doing:
    """A step under way in a process."""

    number: int
    work: StepWork
    reads_left: int
    results_left: int
    keys_left: list[int]


@dataclass(slots=True, eq=False)
class _Process:
    """What a process has in flight and queued; the first sends go first."""

    node: int
    free_slots: int
    free_bytes: int
    sends: deque[tuple[_Doing, int]] = field(default_factory=deque)
    reads: deque[tuple[_Doing, int]] = field(default_factory=deque)
    copies: deque[tuple[_Doing, int]] = field(default_factory=deque)
    given: dict[int, StepWork] = field(default_factory=dict)
    next_step: int | None = None
    processor_free_s: float = 0.0
    is_lost: bool = False


class Simulation:
    """One run."""

    def __init__(
        self,
        works: Sequence[StepWork],
        speeds: Speeds,
        machines: Machines,
        losses: Losses | None = None,
    ) -> None:
        self._works, self._speeds, self._machines, self._losses = works, speeds, machines, losses
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._now_s = 0.0
        self._steps = iter(range(len(works)))
        self._again: deque[int] = deque()
        self._left_count = len(works)
        self._idle: deque[_Process] = deque()
        self._leader_free_s = 0.0
        self._processes = [
            _Process(node, machines.concurrency, machines.parts_bytes)
            for _ in range(machines.process_count)
            for node in range(machines.count)
        ]
        self._lines = [[0.0] * machines.count for _ in range(1 if speeds.is_shared else 2)]
        self._accounts = [[0.0, 0.0, 0.0] for _ in speeds.accounts]
        self._processor_s = speeds.cpu_s(machines.process_count)
        self._random = random.Random(0)  # noqa: S311
        self._nodes_left = list(range(machines.count))
        self._lost_share = 0.0
        self._redone_bytes = 0

    def run(self) -> Outcome:
        """Follow every request to its end."""
        for process in self._processes:
            self._ask(process)
        if self._losses:
            self._after(1.0, self._lose_some)
        while self._left_count:
            self._now_s, _, happen = heapq.heappop(self._events)
            happen()
        return Outcome(self._now_s, self._machines.count - len(self._nodes_left), self._redone_bytes)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_s + seconds, next(self._numbers), happen))

    # The leader.

    def _ask(self, process: _Process) -> None:
        self._leader_free_s = max(self._leader_free_s, self._now_s) + self._speeds.handout_s
        self._after(self._leader_free_s - self._now_s, lambda: self._hand_out(process))

    def _hand_out(self, process: _Process) -> None:
        if process.is_lost:
            return
        number = self._again.popleft() if self._again else next(self._steps, None)
        if number is None:
            self._idle.append(process)
            return
        process.given[number] = self._works[number]
        process.next_step = number
        self._dispatch(process)

    def _lose_some(self) -> None:
        assert self._losses
        self._lost_share += self._losses.share_a_minute / 60 * len(self._nodes_left)
        while self._lost_share >= 1 and len(self._nodes_left) > 1:
            self._lost_share -= 1
            # They are all alike; one from the middle.
            node = self._nodes_left.pop(len(self._nodes_left) // 2)
            lost = [process for process in self._processes if process.node == node]
            for process in lost:
                process.is_lost = True
            self._after(self._losses.notice_s, lambda lost=lost: self._notice(lost))  # type: ignore[misc]
        self._after(1.0, self._lose_some)

    def _notice(self, lost: Sequence[_Process]) -> None:
        for process in lost:
            self._again.extend(sorted(process.given))
            self._redone_bytes += sum(work.moved_bytes for work in process.given.values())
        waiting, self._idle = self._idle, deque()
        for process in waiting:
            self._ask(process)

    # A process.

    def _dispatch(self, process: _Process) -> None:
        """Start whatever a process can start now."""
        while True:
            while process.free_slots and (queue := process.sends or process.reads or process.copies):
                doing, index = queue.popleft()
                self._start_request(process, doing, index, queue)
            number = process.next_step
            if number is None or not self._start_step(process, number):
                return

    def _start_step(self, process: _Process, number: int) -> bool:
        """Queue the requests of a step, unless it must wait."""
        work = self._works[number]
        if work.parts:
            if len(process.reads) >= self._machines.concurrency or work.held_bytes > process.free_bytes:
                return False
            process.free_bytes -= work.held_bytes
        result_count = len(work.copies) + sum(key_count for _, key_count in work.parts)
        doing = _Doing(number, work, len(work.reads), result_count, [key_count for _, key_count in work.parts])
        process.copies.extend((doing, index) for index in range(len(work.copies)))
        process.reads.extend((doing, index) for index in range(len(work.reads)))
        process.next_step = None
        self._ask(process)
        if not work.reads:
            self._queue_sends(process, doing)
        return True

    def _queue_sends(self, process: _Process, doing: _Doing) -> None:
        work = doing.work
        process.free_bytes += work.held_bytes - sum(nbytes for nbytes, _ in work.parts)  # tiles are computed
        for index, (nbytes, key_count) in enumerate(work.parts):
            process.sends.extend([(doing, index)] * key_count)
            if not key_count:
                process.free_bytes += nbytes
        if not doing.results_left:
            self._finish(process, doing)

    def _start_request(self, process: _Process, doing: _Doing, index: int, queue: object) -> None:
        process.free_slots -= 1
        work = doing.work
        if queue is process.copies:
            seconds = work.copies[index] / self._speeds.copy_bytes_s
            self._try(lambda: seconds, lambda: self._sent(process, doing, None))
        elif queue is process.reads:
            nbytes = work.reads[index]
            self._try(lambda: self._carry(process, nbytes, is_read=True), lambda: self._has_read(process, doing))
        else:
            nbytes = work.parts[index][0]
            self._try(lambda: self._carry(process, nbytes, is_read=False), lambda: self._sent(process, doing, index))

    def _try(self, carry: Callable[[], float], end: Callable[[], None]) -> None:
        """Make a request, and again if it fails, before it has carried a byte."""
        rate = self._speeds.error_rate
        if rate and self._random.random() < rate:
            self._after(self._speeds.latency_s + RETRY_WAIT_S, lambda: self._try(carry, end))
        else:
            self._after(self._speeds.latency_s + carry(), end)

    def _has_read(self, process: _Process, doing: _Doing) -> None:
        if process.is_lost:
            return
        process.free_slots += 1
        doing.reads_left -= 1
        if not doing.reads_left:
            self._queue_sends(process, doing)
        self._dispatch(process)

    def _sent(self, process: _Process, doing: _Doing, part: int | None) -> None:
        if process.is_lost:
            return
        process.free_slots += 1
        if part is not None:
            doing.keys_left[part] -= 1
            if not doing.keys_left[part]:
                process.free_bytes += doing.work.parts[part][0]
        doing.results_left -= 1
        if not doing.results_left:
            self._finish(process, doing)
        self._dispatch(process)

    def _finish(self, process: _Process, doing: _Doing) -> None:
        del process.given[doing.number]
        self._left_count -= 1

    # What carries requests.

    def _carry(self, process: _Process, nbytes: int, *, is_read: bool) -> float:
        """Return how long bytes take that arrive after the latency, with everything before them."""
        speeds = self._speeds
        begin_s = self._now_s + speeds.latency_s
        end_s = begin_s + nbytes / speeds.connection_bytes_s if speeds.connection_bytes_s else begin_s
        line = self._lines[0 if is_read else -1]
        line[process.node] = max(line[process.node], begin_s) + nbytes / speeds.bandwidth_bytes_s
        process.processor_free_s = max(process.processor_free_s, begin_s) + nbytes * self._processor_s
        end_s = max(end_s, line[process.node], process.processor_free_s)
        for account, free in zip(speeds.accounts, self._accounts, strict=True):
            if account.has_source if is_read else account.has_target:
                rates = account.bytes_s, account.gets_s if is_read else None, None if is_read else account.puts_s
                for position, (rate, amount) in enumerate(zip(rates, (nbytes, 1, 1), strict=True)):
                    if rate:
                        free[position] = max(free[position], begin_s) + amount / rate
                        end_s = max(end_s, free[position])
        return end_s - begin_s
