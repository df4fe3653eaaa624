"""Several runs write one target, each some of its ranks: in any order, at once, again, and side by side with others."""

import itertools
import threading
from dataclasses import replace

import pytest
from support.beating import beating
from support.checkpoints import put_full, random_model, rank_key, stored
from support.conversions import planned, ranks_of
from support.faulty_store import FaultyStore
from support.recording_store import RecordingStore

import reshard
from reshard.api.shares import missing_ranks
from reshard.engine import destination
from reshard.engine.execute import Policy, execute
from reshard.engine.manifest import decode_manifest
from reshard.engine.run_record import RunRecord, encode_record
from reshard.engine.shares import unwritten_ranks
from reshard.errors import TargetExists, TargetInUse, Transient
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.storage import Location, MemoryStore
from reshard.tensor import Layout, Strategy

MODEL = random_model({"a": ("F32", (8, 6)), "b": ("F16", (4,))})
CUT = Layout((4,), ((0,), ()))
pytestmark = pytest.mark.usefixtures("_quick")
FOUR = Strategy(4, ({"a": CUT, "b": Layout((4,), ((0,),))},))
LIMITS = Limits(memory_bytes=4 << 20, concurrency=2)
SHARES = ((0,), (1, 2), (3,))


@pytest.fixture
def _quick(monkeypatch):
    """A run that is silent is dead soon."""
    monkeypatch.setattr("reshard.engine.claim.SILENCE_S", 0.2)
    monkeypatch.setattr("reshard.engine.claim._LOOK_S", 0.02)


@pytest.fixture
def source():
    place = Location(MemoryStore("shares-source"), "from")
    for info in list(place.objects()):
        place.store.delete(info.key)
    put_full(place, {"m.safetensors": MODEL})
    return place


@pytest.fixture
def target():
    place = Location(MemoryStore("shares-target"), "to")
    for info in list(place.store.list("")):
        place.store.delete(info.key)
    return place


def share(source, target, *ranks, **more):
    """Run the share of some ranks; all by default."""
    plan = planned(source, target, replace(ranks_of(FOUR), ranks=ranks or (0, 1, 2, 3)), LIMITS)
    return execute(plan, source, target, policy=Policy(**more))


def alone(source):
    """The objects that one run writes."""
    place = Location(MemoryStore("shares-alone"), "to")
    share(source, place, overwrite=True)
    return {key: body for key, body in stored(place).items() if key != MANIFEST_KEY}


def objects(place):
    return {key: body for key, body in stored(place).items() if not key.startswith("reshard-")}


@pytest.mark.parametrize("order", list(itertools.permutations(SHARES)), ids=str)
def test_in_any_order_they_end_as_one_checkpoint(source, target, order):
    for number, ranks in enumerate(order):
        assert (MANIFEST_KEY in stored(target)) is False
        made = share(source, target, *ranks)
        left = sorted({0, 1, 2, 3} - {rank for ranks in order[: number + 1] for rank in ranks})
        assert missing_ranks(made.conversion) == (tuple(left) or None)
    assert objects(target) == alone(source)
    whole = decode_manifest(stored(target)[MANIFEST_KEY], "whole")
    assert [receipt.key for receipt in whole.receipts] == [rank_key(rank) for rank in range(4)]
    assert not [key for key in stored(target) if "run" in key]
    report = reshard.verify(target.url, source=source.url)
    assert (report.is_ok, report.object_count) == (True, 4)


def test_all_at_once_they_end_as_one_checkpoint(source, target):
    for _ in range(5):
        threads = [threading.Thread(target=share, args=(source, target, *ranks)) for ranks in SHARES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert objects(target) == alone(source)
        assert reshard.verify(target.url, source=source.url).is_ok
        for info in list(target.objects()):
            target.store.delete(info.key)


def test_a_record_that_goes_while_it_is_read_is_no_trouble(source, target, monkeypatch):
    """Another share may end between the listing of the target and the reading of what it lists."""
    share(source, target, 0, 1)
    record = target.child("reshard-run-ranks_0-1.json")
    found, asked = destination._found, []

    def found_before(*arguments):
        asked.append(arguments)
        if len(asked) > 1:
            return found(*arguments)
        target.store.put(record.key, b"{}")
        infos = found(*arguments)
        target.store.delete(record.key)
        return infos

    monkeypatch.setattr(destination, "_found", found_before)
    share(source, target, 2, 3)
    assert len(asked) > 1
    assert reshard.verify(target.url, source=source.url).is_ok


def test_the_joined_manifest_is_that_of_one_run(source, target):
    for ranks in SHARES:
        share(source, target, *ranks)
    joined = decode_manifest(stored(target)[MANIFEST_KEY], "joined")
    assert joined.conversion == planned(source, target, ranks_of(FOUR), LIMITS).conversion


def test_what_is_missing_is_reported(source, target):
    share(source, target, 1, 2)
    report = reshard.verify(target.url, source=source.url)
    assert (report.is_ok, report.missing_ranks, report.problems) == (False, (0, 3), ())
    assert report.checked_bytes == report.total_bytes > 0
    assert "several runs write this target: ranks 0, 3 are missing" in reshard.inspect(target.url).notes
    share(source, target, 0)
    share(source, target, 3)
    assert not any("missing" in note for note in reshard.inspect(target.url).notes)


def test_names_and_one_manifest_tell_what_is_missing(source, target):
    for ranks in ((0,), (2,), (3,)):
        share(source, target, *ranks)
    store = RecordingStore(target.store)
    assert unwritten_ranks(Location(store, target.key)) == (1,)
    assert dict(store.figures.requests) == {"list": 1, "head": 1, "get": 1}
    assert unwritten_ranks(source) == ()


def test_another_conversion_is_refused(source, target):
    share(source, target, 0, 1)
    before = stored(target)
    plan = planned(source, target, replace(ranks_of(FOUR), ranks=(2, 3), remove_redundancy=True), LIMITS)
    with pytest.raises(TargetExists, match="manifests of another conversion"):
        execute(plan, source, target)
    assert stored(target) == before


def test_ranks_of_two_shares_are_refused(source, target):
    share(source, target, 0, 1)
    with pytest.raises(TargetExists, match=r"outputs exist already|write some of these ranks"):
        share(source, target, 1, 2)
    assert sorted(objects(target)) == [rank_key(0), rank_key(1)]


def test_objects_that_no_share_wrote_are_refused(source, target):
    target.store.put(f"to/{rank_key(3)}", b"whose?")
    with pytest.raises(TargetExists, match="another checkpoint's objects"):
        share(source, target, 0)
    share(source, target, 0, overwrite=True)
    share(source, target, 1, 2, 3, overwrite=True)
    assert objects(target) == alone(source)


def test_shares_replace_a_whole_of_another_conversion(source, target):
    plan = planned(source, target, replace(ranks_of(FOUR), name="rank_{rank}/old_{rank}.safetensors"), LIMITS)
    execute(plan, source, target)
    for ranks in SHARES:
        share(source, target, *ranks, overwrite=True)
    assert objects(target) == alone(source)
    assert reshard.verify(target.url, source=source.url).is_ok


def test_a_whole_run_replaces_shares(source, target):
    share(source, target, 0, 1)
    share(source, target, overwrite=True)
    assert objects(target) == alone(source)
    assert sorted(set(stored(target)) - set(objects(target))) == [MANIFEST_KEY]


def test_a_share_that_is_repeated_joins_again(source, target):
    for ranks in SHARES:
        share(source, target, *ranks)
    whole = stored(target)[MANIFEST_KEY]
    target.store.delete(f"to/{rank_key(1)}")
    share(source, target, 1, 2, overwrite=True)
    assert objects(target) == alone(source)
    assert reshard.verify(target.url, source=source.url).is_ok
    assert len(stored(target)[MANIFEST_KEY]) == len(whole)


def test_a_killed_share_is_repeated(source, target):
    """Nothing was cleaned up: what is visible is its own by its record, and other shares mind neither."""
    share(source, target, 3)
    faulty, is_dead = FaultyStore(target.store), []

    def dying(verb, key, action, before_fault=lambda: None):
        is_dead.extend(["dead"] * (verb == "put" and "rank_2" in key))
        if is_dead:
            raise Transient("the process is gone")
        return action()

    faulty._do = dying
    with pytest.raises(Transient):
        share(source, Location(faulty, "to"), 1, 2)
    assert "reshard-run-ranks_1-2.json" in stored(target)
    assert len(objects(target)) == 2
    share(source, target, 0)
    share(source, target, 1, 2)
    assert objects(target) == alone(source)
    assert not [key for key in stored(target) if "run" in key]
    assert reshard.verify(target.url, source=source.url).is_ok


def test_shares_that_replace_an_older_conversion_keep_each_other_s_manifests(source, target):
    """One share finishes while another one, which saw the same old manifests, is still at work."""
    old = planned(source, target, replace(ranks_of(FOUR), remove_redundancy=True), LIMITS)
    for ranks in SHARES:
        plan = replace(old, conversion=replace(old.conversion))
        execute(planned(source, target, replace(plan.conversion.target, ranks=ranks), LIMITS), source, target)
    done = []

    class Slow(FaultyStore):
        def put(self, key, body, checksum=None, replaces=None):
            if "rank_3/" in key and not done:
                done.append(share(source, target, 0, overwrite=True))
            return super().put(key, body)

    share(source, Location(Slow(target.store), "to"), 3, overwrite=True)
    share(source, target, 1, 2, overwrite=True)
    assert reshard.verify(target.url, source=source.url).is_ok
    assert objects(target) == alone(source)


def test_a_live_run_of_another_conversion_is_not_disturbed(source, target):
    record = RunRecord.of(planned(source, target, replace(ranks_of(FOUR), remove_redundancy=True), LIMITS).conversion)
    with (
        beating(target.child("reshard-run.json"), record),
        pytest.raises(TargetInUse, match="is writing there"),
    ):
        share(source, target, 0)
    target.store.put("to/reshard-run.json", encode_record(record.ended()))
    share(source, target, 0)


def test_a_dead_share_blocks_no_other_split(source, target):
    conversion = planned(source, target, replace(ranks_of(FOUR), ranks=(0, 1)), LIMITS).conversion
    with (
        beating(target.child("reshard-run-ranks_0-1.json"), RunRecord.of(conversion)),
        pytest.raises(TargetInUse, match="writing some of these ranks"),
    ):
        share(source, target, 0)
    target.store.put("to/reshard-run-ranks_0-1.json", encode_record(RunRecord.of(conversion).ended()))
    for rank in range(4):
        share(source, target, rank)
    assert reshard.verify(target.url, source=source.url).is_ok


def test_a_neighbour_s_broken_manifest_does_not_fail_a_run(source, target):
    share(source, target, 1, 2)
    key = "to/reshard-manifest-ranks_1-2.json"
    body = stored(target)["reshard-manifest-ranks_1-2.json"]
    share(source, target, 0)
    target.store.put(key, body[: len(body) // 2])
    share(source, target, 3)
    assert MANIFEST_KEY not in stored(target)
