"""Two, three and four runs of one destination, in all orders of their phases, with stops between.

Every run is a thread, and one at a time moves: up to the next request that begins a phase, before which it stops until
its next turn. A run that is stopped for long is silent, as a process is that SIGSTOP has hit, so that others may
take it for dead; or it beats, so that they may not.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from support.checkpoints import put_full, random_model, stored
from support.conversions import planned, ranks_of
from support.faulty_store import FaultyStore

import reshard
from reshard.engine import claim as claim_module
from reshard.engine.execute import Policy, execute
from reshard.engine.manifest import decode_manifest
from reshard.engine.outcome import find_outcome, finish_outcome
from reshard.engine.workers import working
from reshard.errors import TargetExists, TargetInUse
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.planning.plan import Plan
from reshard.planning.plan_json import conversion_ids
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import Layout, Strategy

MODEL = random_model({"a": ("F32", (16, 8)), "b": ("F32", (12, 8)), "c": ("F16", (7,))})
CUT = Strategy(2, ({"a": Layout((2,), ((0,), ())), "b": Layout((2,), ((0,), ()))},))
PART_BYTES = 128
LIMITS = Limits(concurrency=1, min_part_bytes=PART_BYTES, part_bytes=PART_BYTES, row_bytes=1, read_bytes=200)
ONE = ranks_of(CUT)
OTHER = replace(ONE, name="rank_{rank}/other_{rank}.safetensors")
HALVES = [replace(ONE, ranks=(rank,)) for rank in (0, 1)]
FOUR_HOURS_S = 4 * 3600.0


@dataclass(frozen=True)
class Case:
    """Targets of the runs, whether each replaces what is there, and whether all of them may end well."""

    targets: tuple[object, ...]
    overwrites: tuple[bool, ...] = (False,) * 4
    looks: bool = True
    """Whether the store keeps to conditions of a write; runs then stop between a look at their claim and the write."""


CASES = {
    "the same conversion": Case((ONE,) * 4),
    "other conversions": Case((ONE, OTHER, ONE, OTHER)),
    "one replaces": Case((ONE, OTHER, ONE, OTHER), (False, True, False, True)),
    "a share and the whole": Case((HALVES[0], ONE, HALVES[1], ONE)),
    "overlapping shares": Case((HALVES[0], replace(ONE, ranks=(0, 1)), HALVES[1], HALVES[0])),
    "the same, no conditions": Case((ONE,) * 4, looks=False),
    "others, no conditions": Case((ONE, OTHER, ONE, OTHER), looks=False),
    "one replaces, no conditions": Case((ONE, OTHER, ONE, OTHER), (False, True, False, True), looks=False),
}


class Turns:
    """Lets one of several runs move at a time."""

    def __init__(self, count: int) -> None:
        self._condition = threading.Condition()
        self._mover: int | None = None
        self.alive = set(range(count))

    def wait(self, run: int) -> None:
        """Give the turn back, and wait for the next one."""
        with self._condition:
            if self._mover == run:
                self._mover = None
                self._condition.notify_all()
            assert self._condition.wait_for(lambda: self._mover == run, 60)

    def end(self, run: int) -> None:
        with self._condition:
            self.alive.discard(run)
            self._mover = None
            self._condition.notify_all()

    def give(self, run: int) -> None:
        """Let a run move until it stops at its next phase, or ends."""
        with self._condition:
            self._mover = run
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: self._mover is None, 60)


class Stopping(FaultyStore):
    """A store that stops a run where its next phase begins."""

    def __init__(self, store: MemoryStore, stop: Callable[[], None], *, looks: bool) -> None:
        super().__init__(store)
        self._stop = stop
        self._phase = -1
        self._looks = looks

    def put(self, key, body, checksum=None, replaces=None):
        return super().put(key, body, checksum, replaces if self._looks else None)

    def _do(self, verb, key, action, before_fault=lambda: None):
        phase = self._phase_of(verb, key)
        if phase > self._phase and threading.current_thread().name != "reshard-claim":
            self._phase = phase
            self._stop()
        return super()._do(verb, key, action, before_fault)

    def _phase_of(self, verb: str, key: str) -> int:
        """Claim, send, complete, write the manifest; without conditions, runs stop before the look ahead of each."""
        name = key.rpartition("/")[2]
        is_record = name.startswith("reshard-run") and name.count(".") == 1
        if not self._looks:
            return self._phase + 1 if verb == "head" and is_record else -1
        if is_record:
            return 0 if verb == "put" else -1
        if name.startswith("reshard-run"):
            return 1 if verb == "put" else -1
        if name.startswith("reshard-manifest"):
            return 3 if verb == "put" else -1
        return {"create_upload": 1, "put": 2, "complete_upload": 2}.get(verb, -1)


@dataclass
class Outcome:
    """How the runs of one order have ended: the order as it came out, who could move at each turn, and their errors."""

    order: list[int]
    alive: list[set[int]]
    errors: dict[int, BaseException]
    finished: list[int]


class Lab:
    """Runs of one case, in any order."""

    def __init__(self, case: Case, count: int) -> None:
        self.case = case
        self.again = 0
        self.source = Location(MemoryStore("contention-source"), "from")
        self.target = Location(
            MemoryStore(
                "contention-target", limits=StoreLimits(min_part_bytes=PART_BYTES, min_copy_source_bytes=PART_BYTES)
            ),
            "to",
        )
        put_full(self.source, {"m.safetensors": MODEL})
        self.target.store.clear()
        self.plans = [planned(self.source, self.target, each, LIMITS) for each in case.targets[:count]]

    def run(self, order: Sequence[int]) -> Outcome:
        """Let the runs move in this order; then each to its end, the first one first."""
        self.target.store.clear()
        count = len(self.plans)
        turns, outcome = Turns(count), Outcome([], [], {}, [])
        threads = [threading.Thread(target=self._one, args=(number, turns, outcome)) for number in range(count)]
        for thread in threads:
            thread.start()
        wanted = iter(order)
        while turns.alive:
            following = next(wanted, min(turns.alive))
            if following not in turns.alive:
                continue
            outcome.alive.append(set(turns.alive))
            outcome.order.append(following)
            turns.give(following)
        for thread in threads:
            thread.join()
        return outcome

    def _one(self, number: int, turns: Turns, outcome: Outcome) -> None:
        turns.wait(number)
        store = Stopping(self.target.store, lambda: turns.wait(number), looks=self.case.looks)
        try:
            self._command(self.plans[number], Location(store, "to"), overwrite=self.case.overwrites[number])
            outcome.finished.append(number)
        except BaseException as error:  # noqa: BLE001 - judged by the test
            outcome.errors[number] = error
        finally:
            turns.end(number)

    def _command(self, plan: Plan, target: Location, *, overwrite: bool) -> None:
        """Do what a command does: leave the outcome of an earlier run if it is whole."""
        if not overwrite:
            with working(1, target.store) as workers:
                found = find_outcome(plan.conversion, target, workers)
            if found is not None and not found[1]:
                finish_outcome(found[0], target)
                return
            overwrite = found is not None
        execute(plan, self.source, target, policy=Policy(overwrite=overwrite, keeps=True))

    def _again(self) -> int:
        """Give the same commands again, one after the other, until one ends well; at last with ``--overwrite``.

        That may be needed only where a store does not keep to conditions: a run whose claim another one has written
        over, and then removed, leaves objects that nothing says whose they are.
        """
        refused = []
        for forced in (False,) if self.case.looks else (False, True):
            for number, plan in enumerate(self.plans):
                try:
                    self._command(plan, self.target, overwrite=forced or self.case.overwrites[number])
                except TargetExists as error:
                    refused.append(error)
                else:
                    return number
        raise AssertionError(refused)

    def check(self, outcome: Outcome) -> None:
        """One has won, the others say so, and what is there is whole: nothing beside it.

        Runs that were stopped in their commit until they were taken for dead may leave objects that nobody else
        replaces unasked; then one of the same commands finishes them.
        """
        said = f"{outcome.order}: {outcome.finished}, {outcome.errors}"
        for error in outcome.errors.values():
            assert isinstance(error, TargetInUse | TargetExists), said
        if not outcome.finished:
            self.again += 1
            outcome.finished.append(self._again())
        objects = stored(self.target)
        assert not [key for key in objects if "run" in key], f"{said} {sorted(objects)}"
        assert not list(self.target.store.open_uploads("")), said
        # Each that nothing has replaced, or has begun to replace, stands.
        standing = [] if any(self.case.overwrites[number] for number in outcome.errors) else outcome.finished
        if any(self.case.overwrites):
            standing = standing[-1:]
        ids = {conversion_ids(self.plans[number].conversion) for number in standing}
        if not standing and MANIFEST_KEY not in objects:
            return
        report = reshard.verify(self.target.url, source=self.source.url)
        assert not report.problems, f"{said} {report.problems}"
        manifests = [decode_manifest(body, key) for key, body in objects.items() if "manifest" in key]
        there = {each for made in manifests for each in conversion_ids(made.conversion)}
        for own_id, whole_id in ids:
            assert own_id in there or (whole_id in there and MANIFEST_KEY in objects), said


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("reshard.engine.journal._EVERY_S", -1.0)
    monkeypatch.setattr("reshard.engine.session.FRESH_S", 0.0)
    monkeypatch.setattr(claim_module, "_LOOK_S", 0.002)


@pytest.fixture(params=["silent", "beating"])
def pulse(request, monkeypatch):
    """Runs that are stopped are silent, and so dead to others; or they beat."""
    is_silent = request.param == "silent"
    monkeypatch.setattr(claim_module, "BEAT_S", FOUR_HOURS_S if is_silent else 0.004)
    monkeypatch.setattr(claim_module, "SILENCE_S", 0.01 if is_silent else 0.5)


def all_orders(lab: Lab):
    """Yield the outcome of every order of the phases of some runs, each once."""
    due: list[list[int]] = [[]]
    while due:
        begun = due.pop()
        outcome = lab.run(begun)
        yield outcome
        for turn in range(len(begun), len(outcome.order)):
            others = sorted(outcome.alive[turn] - {outcome.order[turn]})
            due += [[*outcome.order[:turn], other] for other in others]


@pytest.mark.parametrize("name", CASES)
def test_two_runs_in_some_orders(name, pulse):
    lab, chosen = Lab(CASES[name], 2), random.Random(7)
    for _ in range(12):
        lab.check(lab.run([chosen.randrange(2) for _ in range(12)]))


@pytest.mark.matrix
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.looks])
def test_two_runs_in_all_orders(name, pulse):
    lab, count, won = Lab(CASES[name], 2), 0, set()
    for outcome in all_orders(lab):
        lab.check(outcome)
        count += 1
        won.update(outcome.finished)
    assert won == {0, 1}
    assert count > 8
    print(f"contention: {name}: {count} orders")


@pytest.mark.matrix
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_more_runs_in_many_orders(name, pulse, count):
    lab, chosen = Lab(CASES[name], count), random.Random(count)
    for _ in range(40):
        lab.check(lab.run([chosen.randrange(count) for _ in range(12 * count)]))
