"""Clocks that are wrong by a day decide nothing: a run that lives is not taken over, and one that is dead is."""

from dataclasses import replace

import pytest
from support.beating import beating
from support.checkpoints import put_full, random_model, stored
from support.conversions import planned, ranks_of
from support.faulty_store import FaultyStore

from reshard.engine import claim as claim_module
from reshard.engine.execute import Policy, execute
from reshard.engine.run_record import RunRecord, encode_record
from reshard.errors import TargetInUse
from reshard.planning.limits import Limits
from reshard.storage import LocalStore, Location, MemoryStore, local_store
from reshard.tensor import Layout, Strategy

DAY_S = 86_400.0
MODEL = random_model({"a": ("F32", (16, 8))})
CUT = Strategy(2, ({"a": Layout((2,), ((0,), ()))},))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(claim_module, "SILENCE_S", 0.4)
    monkeypatch.setattr(claim_module, "_LOOK_S", 0.005)


class Aged(FaultyStore):
    """A store that tells wrong ages, as behind a gateway whose clock is wrong."""

    def __init__(self, store, age_s):
        super().__init__(store)
        self._age_s = age_s

    def head(self, key):
        return replace(super().head(key), age_s=self._age_s)


@pytest.fixture(params=["ahead", "behind"])
def skew_s(request):
    return DAY_S if request.param == "ahead" else -DAY_S


@pytest.fixture(params=["gateway", "machine"])
def target(request, skew_s, tmp_path, monkeypatch):
    """A target of which a wrong clock tells ages: that of the store, or that of this machine."""
    if request.param == "gateway":
        MemoryStore("clocks-target").clear()
        return Location(Aged(MemoryStore("clocks-target"), skew_s), "to")

    class Clock:
        """The module ``time`` as the store sees it."""

        @staticmethod
        def time():
            return local_store_time() + skew_s

    local_store_time = local_store.time.time
    monkeypatch.setattr(local_store, "time", Clock)
    return Location(LocalStore(tmp_path), "to")


@pytest.fixture
def plan(target):
    source = Location(MemoryStore("clocks-source"), "from")
    put_full(source, {"m.safetensors": MODEL})
    return source, planned(source, target, ranks_of(CUT), Limits(concurrency=1))


def of_another_machine(plan):
    return replace(RunRecord.of(plan.conversion), process="")


def test_a_run_that_lives_is_not_taken_over(plan, target):
    source, plan = plan
    with (
        beating(target.child("reshard-run.json"), of_another_machine(plan)),
        pytest.raises(TargetInUse, match="is writing there"),
    ):
        execute(plan, source, target, policy=Policy(keeps=True))
    assert [*stored(target)] == ["reshard-run.json"]


def test_a_run_that_is_silent_is_taken_over(plan, target):
    source, plan = plan
    target.writable_store().put("to/reshard-run.json", encode_record(of_another_machine(plan)))
    execute(plan, source, target, policy=Policy(keeps=True))
    assert "reshard-run.json" not in stored(target)


def test_a_share_that_is_silent_does_not_block_the_whole(plan, target):
    """Its record is another one, and of another conversion."""
    source, plan = plan
    share = planned(source, target, replace(ranks_of(CUT), ranks=(0,), remove_redundancy=True), Limits(concurrency=1))
    place = target.child("reshard-run-ranks_0.json")
    with beating(place, of_another_machine(share)), pytest.raises(TargetInUse):
        execute(plan, source, target, policy=Policy(keeps=True))
    execute(plan, source, target, policy=Policy(keeps=True))
    assert "reshard-manifest.json" in stored(target)
