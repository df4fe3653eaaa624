"""Runs that end early, wherever that is, and runs that go on: nothing twice, nothing lost, nothing left."""

import contextlib
import os
from dataclasses import replace

import pytest
from support.checkpoints import put_full, put_ranks, random_model, shards, stored
from support.conversions import planned, ranks_of
from support.faulty_store import FaultyStore

from reshard.engine import claim as claim_module
from reshard.engine.events import Noted
from reshard.engine.execute import Policy, execute
from reshard.engine.outcome import find_outcome, finish_outcome
from reshard.engine.run_record import RunRecord, decode_record, encode_record
from reshard.engine.workers import working
from reshard.errors import StorageError, TargetExists, TargetInUse, Transient
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.planning.plan import without_copies
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.full_target import FullTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import Layout, Strategy

KEEP = Policy(keeps=True)
_STRIDE = 1 if os.environ.get("EVERY_REQUEST") else 5
"""A run is killed at every so many requests; EVERY_REQUEST=1 takes minutes."""
MODEL = random_model({"a": ("F32", (64, 40)), "b": ("F32", (48, 40)), "c": ("F16", (7,)), "d": ("F32", (40, 64))})
CUT = Layout((2,), ((0,), ()))
TWO = Strategy(2, ({"a": CUT, "b": CUT, "d": Layout((2,), ((), (0,)))},))
PAIRS = Strategy(4, ({name: Layout((2, 2), ((0,), ())) for name in "ab"},))
PART_BYTES = 512
LIMITS = Limits(concurrency=2, min_part_bytes=PART_BYTES, part_bytes=PART_BYTES, row_bytes=1, read_bytes=200)
ONE = FullTarget("m-{part}.safetensors", "m.safetensors", "i.json", "pt", 10**9)
SCENARIOS = {
    "full to ranks": (ranks_of(TWO), None, ()),
    "replicas copied": (ranks_of(PAIRS), None, (REPLICAS, 0)),
    "merge": (ONE, TWO, ()),
    "some ranks": (replace(ranks_of(PAIRS), ranks=(0, 1, 2)), None, ()),
}


class DyingStore(FaultyStore):
    """A store that answers so many requests that change it, and no request at all after that: its user was killed."""

    def __init__(self, store, left, *, after=False):
        super().__init__(store)
        self.left = left
        self._after = after
        self.sent_bytes = 0

    def _do(self, verb, key, action, before_fault=lambda: None):
        changes = verb not in ("head", "list", "read", "read_into", "list_parts", "open_uploads")
        if self.left < 0:
            raise Transient("killed")
        if changes:
            self.left -= 1
            if self.left < 0:
                if self._after:
                    action()
                raise Transient("killed")
        return super()._do(verb, key, action, before_fault)

    def upload_part(self, upload, number, offset, body, checksum=None):
        self.sent_bytes += len(body)
        return super().upload_part(upload, number, offset, body, checksum)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Every part is written down at once, and a silent run is dead soon."""
    monkeypatch.setattr("reshard.engine.journal._EVERY_S", -1.0)
    monkeypatch.setattr(claim_module, "SILENCE_S", 0.2)
    monkeypatch.setattr(claim_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(RunRecord, "has_ended", property(lambda record: True))


def new_place(name):
    limits = StoreLimits(min_part_bytes=PART_BYTES, min_copy_source_bytes=PART_BYTES)
    MemoryStore(name, limits=limits).clear()
    return Location(MemoryStore(name, limits=limits), "to")


def case(name):
    wished, strategy, bases = SCENARIOS[name]
    MemoryStore("resume-source").clear()
    source = Location(MemoryStore("resume-source"), "from")
    if strategy:
        put_ranks(source, shards(MODEL, strategy))
    else:
        put_full(source, {"m.safetensors": MODEL})
    target = new_place("resume-target")
    limits = replace(LIMITS, min_copy_source_bytes=PART_BYTES)
    return planned(source, target, wished, limits, strategy, bases), source, target


def objects(place):
    return {key: body for key, body in stored(place).items() if "manifest" not in key}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_request_the_next_run_finishes(name, after):
    plan, source, target = case(name)
    whole = DyingStore(target.store, 10**9)
    execute(plan, source, Location(whole, "to"), policy=KEEP)
    expected, all_bytes, request_count = objects(target), whole.sent_bytes, 10**9 - whole.left
    assert request_count > 20
    step_bytes = max(
        sum(p.range.nbytes for p in plan.step(g, n).parts)
        for g in range(len(plan.groups))
        for n in plan.group_steps(g).numbers
    )
    for left in range(0, request_count, _STRIDE):
        target = new_place("resume-target")
        dying = DyingStore(target.store, left, after=after)
        with contextlib.suppress(Transient):  # the last requests remove journal and record: the outcome is there
            execute(plan, source, Location(dying, "to"), policy=KEEP)
        again = DyingStore(target.store, 10**9)
        with working(1, again) as workers:
            manifest, missing = find_outcome(plan.conversion, Location(again, "to"), workers) or (None, 0)
        if manifest is not None:
            assert missing == 0
            finish_outcome(manifest, target)
        else:
            execute(plan, source, Location(again, "to"), policy=KEEP)
        assert objects(target) == expected, left
        assert not any("run" in key for key in stored(target)), left
        assert not list(target.store.open_uploads("")), left
        in_flight = (plan.limits.concurrency + 1) * step_bytes * 2
        assert dying.sent_bytes + again.sent_bytes <= all_bytes + in_flight, left


def test_killed_twice():
    plan, source, target = case("full to ranks")
    execute(plan, source, target, policy=KEEP)
    expected = objects(target)
    for first in range(4, 30, 5):
        for second in range(4, 20, 3):
            target = new_place("resume-target")
            for left in (first, second):
                with pytest.raises(Transient):
                    execute(plan, source, Location(DyingStore(target.store, left), "to"), policy=KEEP)
            execute(plan, source, target, policy=KEEP)
            assert objects(target) == expected
            assert not list(target.store.open_uploads(""))


def killed(plan, source, target, left=20):
    dying = DyingStore(target.store, left)
    with pytest.raises(Transient):
        execute(plan, source, Location(dying, "to"), policy=KEEP)
    return dying.sent_bytes


def test_with_other_memory_the_parts_stay_those_of_the_first_run():
    plan, source, target = case("full to ranks")
    sent = killed(plan, source, target)
    other = planned(
        source, target, SCENARIOS["full to ranks"][0], replace(LIMITS, memory_bytes=64 << 20, concurrency=3)
    )
    again, events = DyingStore(target.store, 10**9), []
    execute(other, source, Location(again, "to"), policy=KEEP, listener=events.append)
    assert plan.cost.written_bytes <= again.sent_bytes + sent <= plan.cost.written_bytes + 6 * PART_BYTES
    assert any("were sent by an earlier run" in event.text for event in events if isinstance(event, Noted))


def test_less_memory_than_the_parts_need_begins_anew():
    plan, source, target = case("full to ranks")
    killed(plan, source, target)
    small = replace(plan, limits=replace(plan.limits, memory_bytes=plan.cost.peak_bytes - 1))
    execute(small, source, target, policy=KEEP)
    assert not list(target.store.open_uploads(""))
    assert sorted(key for key in stored(target) if "run" in key) == []


def test_restarting_begins_anew():
    plan, source, target = case("full to ranks")
    killed(plan, source, target)
    again = DyingStore(target.store, 10**9)
    execute(plan, source, Location(again, "to"), policy=replace(KEEP, restarts=True))
    assert again.sent_bytes == plan.cost.written_bytes
    assert not list(target.store.open_uploads(""))


def test_what_another_conversion_left_open_is_removed():
    plan, source, target = case("full to ranks")
    killed(plan, source, target)
    other = planned(source, target, ranks_of(PAIRS), LIMITS)
    execute(other, source, target, policy=KEEP)
    assert not list(target.store.open_uploads(""))
    assert not [key for key in stored(target) if "run" in key]


def test_undoing_takes_back_what_an_earlier_run_left():
    plan, source, target = case("full to ranks")
    killed(plan, source, target)
    with pytest.raises(Transient):
        execute(plan, source, Location(_failing_once(target.store), "to"), policy=Policy())
    assert not list(target.store.open_uploads(""))
    assert stored(target) == {}


def _failing_once(store):
    from support.faulty_store import Fault

    return FaultyStore(store, Fault("complete_upload", 2))


def test_what_is_kept_is_said():
    plan, source, target = case("full to ranks")
    with pytest.raises(Transient) as caught:
        execute(plan, source, Location(_failing_once(target.store), "to"), policy=KEEP)
    assert "run the same command again" in str(caught.value)
    record = decode_record(stored(target)["reshard-run.json"], "r")
    assert record.beat == -1


# Two runs.


def test_a_run_that_lives_has_the_target_for_itself(monkeypatch):
    plan, source, target = case("full to ranks")
    monkeypatch.setattr(RunRecord, "has_ended", property(lambda record: record.beat < 0))
    record = RunRecord.of(plan.conversion)
    beats = [0]

    class Beating(FaultyStore):
        def head(self, key):
            if key.endswith("reshard-run.json"):
                beats[0] += 1
                self.inner.put(key, encode_record(replace(record, beat=beats[0])))
            return super().head(key)

    target.store.put("to/reshard-run.json", encode_record(record))
    with pytest.raises(TargetInUse, match="is writing there"):
        execute(plan, source, Location(Beating(target.store), "to"), policy=KEEP)
    assert sorted(stored(target)) == ["reshard-run.json"]


def test_a_run_that_is_silent_is_taken_over(monkeypatch):
    plan, source, target = case("full to ranks")
    monkeypatch.setattr(RunRecord, "has_ended", property(lambda record: False))
    target.store.put("to/reshard-run.json", encode_record(RunRecord.of(plan.conversion)))
    events = []
    execute(plan, source, target, policy=KEEP, listener=events.append)
    texts = [event.text for event in events if isinstance(event, Noted)]
    assert any("waiting to see whether it is alive" in text for text in texts)
    assert any("goes on with what a run on" in text for text in texts)


@pytest.mark.parametrize("verb", ["create_upload", "upload_part", "complete_upload"])
def test_a_run_that_was_held_notices_that_another_has_taken_over(verb):
    """It stops without touching what the other run has written, at the latest before its manifest."""
    plan, source, target = case("full to ranks")
    begun, finished = [], []

    class Held(FaultyStore):
        def _do(self, what, key, action, before_fault=lambda: None):
            if what == verb and not begun:
                begun.append(what)
                with contextlib.suppress(StorageError):  # both may send the same part: the store keeps one of them
                    finished.append(execute(plan, source, target, policy=KEEP))
            return super()._do(what, key, action, before_fault)

    with pytest.raises((TargetInUse, TargetExists, StorageError)):
        execute(plan, source, Location(Held(target.store), "to"), policy=KEEP)
    for manifest in finished:
        assert MANIFEST_KEY in stored(target)
        with working(1, target.store) as workers:
            assert find_outcome(plan.conversion, target, workers) == (manifest, 0)
    again = execute(plan, source, target, policy=replace(KEEP, overwrite=True))
    with working(1, target.store) as workers:
        assert find_outcome(plan.conversion, target, workers) == (again, 0)


def test_outputs_that_another_program_changes_are_noticed():
    plan, source, target = case("full to ranks")

    class Meddled(FaultyStore):
        def list(self, prefix):
            if any(verb == "complete_upload" for verb, _ in self.log):
                self.inner.put("to/rank_0/checkpoint_0.safetensors", b"mine")
            return super().list(prefix)

    with pytest.raises(TargetExists, match="outputs were changed while this run wrote them"):
        execute(plan, source, Location(Meddled(target.store), "to"), policy=KEEP)
    assert MANIFEST_KEY not in stored(target)


def test_a_plan_without_copies_goes_on_as_one():
    plan, source, target = case("replicas copied")
    streamed = without_copies(plan)
    killed(streamed, source, target, 9)
    execute(streamed, source, target, policy=KEEP)
    assert not list(target.store.open_uploads(""))
    assert StoreLimits().can_copy
