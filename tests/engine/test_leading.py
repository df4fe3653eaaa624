"""What the leader of a crew does when members are slow, die, or join late; its members only pretend to work."""

from __future__ import annotations

import pickle
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from engine.executor_contract import ExecutorContract

from reshard.engine.events import Noted
from reshard.engine.executors.messages import Begin, Done, Ended, Steps, Wanting
from reshard.engine.executors.processes import ProcessExecutor
from reshard.engine.meter import Meter
from reshard.engine.workers import working
from reshard.errors import ReshardError


@dataclass(eq=False)
class Pretender:
    """A member that does each step at once, but for those from ``holds_from`` on; it dies as it takes ``dies_at``."""

    name: str
    holds_from: int = 1000
    dies_at: int = 1000
    taken: list[Any] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)
    told: deque[bytes] = field(default_factory=deque)
    is_gone: bool = False

    def send(self, data: bytes) -> None:
        if self.is_gone:
            raise OSError
        match pickle.loads(data):
            case Begin():
                self.tell(Wanting())
            case Steps(step_ids=()):
                self.tell(Ended())
            case Steps(step_ids=(step_id,)):
                self.taken.append(step_id)
                self.is_gone = len(self.taken) > self.dies_at
                if len(self.taken) > self.holds_from:
                    self.held.append(step_id)
                elif not self.is_gone:
                    self.finish(step_id)

    def finish(self, step_id: Any) -> None:
        self.tell(Done(step_id, ((step_id, self.name),), {}, {}))
        self.tell(Wanting())

    def tell(self, message: Any) -> None:
        self.told.append(pickle.dumps(message))

    def receive(self) -> bytes | None:
        if self.told:
            return self.told.popleft()
        if self.is_gone:
            raise EOFError
        return None


@dataclass(eq=False)
class Stage:
    """A crew of pretenders; for each that dies one of the ``spare`` ones joins."""

    members: list[Pretender]
    spare: list[Pretender] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    looks: int = 0
    release_at: int = 1000
    is_here = False
    second_try_s: float | None = 0.0

    @property
    def grows(self) -> bool:
        return bool(self.spare)

    def ready(self, members, wait_s):
        assert self.looks < 500, "nothing goes on"
        self.looks += 1
        for member in members if self.looks >= self.release_at else ():
            while member.held:
                member.finish(member.held.pop())
        if self.spare and len(members) < 2:
            self.members.append(self.spare.pop())
        return [member for member in members if member.told or member.is_gone]

    def lose(self, member):
        self.members.remove(member)
        return f"{member.name} is gone"

    def break_off(self, members):
        for member in list(members):
            self.stopped.append(member.name)
            self.members.remove(member)


@pytest.fixture
def lead(tmp_path):
    """Have a crew do steps of uploads, perhaps that of a PUT first; return who has done each, and what was noted."""
    work = ExecutorContract().work(tmp_path)
    plan = replace(work.plan, limits=replace(work.plan.limits, process_count=2))
    is_small = work.plan.draft.is_small
    noted = []

    def run(crew, *, put_first=False):
        put = [each for each in work.step_ids if is_small(work.plan.groups[each[0]])]
        ids = [*put, *(each for each in work.step_ids if each not in put)][0 if put_first else len(put) :]
        assert len(put) == 1
        assert len(ids) > 3
        with working(1, *work.locations.stores) as workers:
            meter = Meter(work.plan.cost, noted.append)
            results = list(ProcessExecutor(crew, work.locations, workers, meter).run(plan, None, ids))
        assert sorted(step_id for step_id, _ in results) == sorted(ids), "each once"
        return dict(results), [event.text for event in noted if isinstance(event, Noted)]

    return run


def test_an_idle_member_tries_a_slow_step_and_the_slow_member_is_stopped(lead):
    slow = Pretender("slow", holds_from=1)
    crew = Stage([slow, Pretender("quick")])
    done, noted = lead(crew)
    [_, step_id] = slow.taken
    assert done[step_id] == "quick"
    assert crew.stopped == ["slow"]
    assert [text for text in noted if "1 slow worker stopped" in text]


def test_both_finish_and_the_first_counts(lead):
    """Nobody has to be stopped then."""

    class Late(Pretender):
        def send(self, data):
            before = len(self.taken)
            super().send(data)
            if before < len(self.taken) and self.taken[-1] in slow.held:  # the other's step: both tell at once
                slow.finish(slow.held.pop())

    slow, quick = Pretender("slow", holds_from=1), Late("quick")
    crew = Stage([slow, quick])
    done, _ = lead(crew)
    step_id = slow.taken[1]
    assert step_id in quick.taken
    assert done[step_id] == "slow"
    assert not crew.stopped


@pytest.mark.parametrize(("is_put", "second_try_s"), [(True, 0.0), (False, None), (False, 3600.0)])
def test_a_slow_step_is_waited_for(lead, is_put, second_try_s):
    """Objects that are PUT whole, where a crew tries nothing twice, and until a step has taken long."""
    slow, quick = Pretender("slow", holds_from=0), Pretender("quick")
    crew = Stage([slow, quick], second_try_s=second_try_s, release_at=100)
    done, _ = lead(crew, put_first=is_put)
    assert done[slow.taken[0]] == "slow"
    assert slow.taken[0] not in quick.taken
    assert not crew.stopped


def test_a_member_that_joins_does_what_a_dead_one_has_left(lead):
    first, second = Pretender("first", dies_at=1), Pretender("second")
    done, noted = lead(Stage([first], [second]))
    assert done[first.taken[0]] == "first"
    assert done[first.taken[1]] == "second"
    assert any("first is gone: 1 step of its are done again" in text for text in noted)


def test_a_second_try_goes_on_when_the_first_dies(lead):
    """A member that held the same step as another leaves nothing to be done again."""

    class Heir(Pretender):
        def send(self, data):
            if doomed.held and pickle.loads(data).step_ids == tuple(doomed.held):
                self.holds_from, doomed.is_gone = 0, True
            super().send(data)
            self.holds_from = 1000

    doomed, heir = Pretender("doomed", holds_from=0), Heir("heir")
    done, _ = lead(Stage([doomed, heir], release_at=100))
    assert set(done.values()) == {"heir"}
    assert len(heir.taken) == len(done), "nothing was handed out a third time"
    assert doomed.taken[0] in heir.taken


def test_no_member_is_left(lead):
    with pytest.raises(ReshardError, match="second is gone, and no other is left"):
        lead(Stage([Pretender("first", dies_at=1)], [Pretender("second", dies_at=0)]))
