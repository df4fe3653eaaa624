"""Carrying plans out: the right bytes, the planned requests, and all or nothing whatever fails."""

import gc
import itertools
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from support.checkpoints import (
    contents,
    decode,
    encode,
    put_full,
    put_ranks,
    random_model,
    rank_key,
    shard,
    shards,
    stored,
)
from support.conversions import convert, planned, ranks_of
from support.faulty_store import Fault, FaultyStore
from support.recording_store import RecordingReadStore, RecordingStore

from reshard.engine import session as upload_module
from reshard.engine import workers as workers_module
from reshard.engine.events import PhaseStarted, Progress
from reshard.engine.execute import Policy, execute
from reshard.engine.manifest import decode_manifest
from reshard.engine.run_record import MAX_RECORD_BYTES
from reshard.engine.verification import verify_manifest
from reshard.errors import Interrupted, SourceChanged, StorageError, TargetExists, Transient, Unsupported
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.planning.targets.full_target import FullTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import Layout, Strategy

PART_BYTES = 300
LIMITS = Limits(concurrency=3, min_part_bytes=PART_BYTES, part_bytes=PART_BYTES, row_bytes=1, read_bytes=200)
MODEL = random_model(
    {"embed": ("F32", (24, 12)), "norm": ("F32", (12,)), "head": ("BF16", (12, 6)), "step": ("I64", ())}
)
ROWS, COLUMNS, NORM = Layout((2,), ((0,), ())), Layout((2,), ((), (0,))), Layout((2,), ((),))
# The first stage is long enough for several parts, the second is a single PUT a rank.
STAGES = Strategy(2, ({"embed": COLUMNS, "norm": NORM}, {"head": ROWS, "step": Layout((2,), ())}))
SIX = Strategy(
    6, ({"embed": Layout((2, 3), ((1,), (0,))), "norm": Layout((6,), ((),)), "head": Layout((6,), ((), (0,)))},)
)
FULL = FullTarget(
    "model-{part}-of-{parts}.safetensors", "model.safetensors", "model.safetensors.index.json", "pt", 1200
)
SINGLE = replace(FULL, object_bytes=10**9)


def new_place(key="to"):
    return Location(MemoryStore(limits=StoreLimits(min_part_bytes=PART_BYTES)), key)


@pytest.fixture
def source():
    place = new_place("from")
    put_full(place, {"a.safetensors": {"embed": MODEL["embed"]}, "b.safetensors": {**MODEL, "embed": MODEL["embed"]}})
    place.store.delete("from/b.safetensors")
    put_full(place, {"a.safetensors": {"embed": MODEL["embed"]}, "b.safetensors": without_embed()})
    return place


def without_embed():
    return {name: value for name, value in MODEL.items() if name != "embed"}


@pytest.fixture
def target():
    return new_place()


def tensors_of(location):
    return {name: decode(body)[0] for name, body in stored(location).items() if name.endswith(".safetensors")}


def expected_shards(strategy):
    return {rank_key(rank): contents(shard(MODEL, strategy, rank)) for rank in range(strategy.rank_count)}


def is_untouched(location):
    return not list(location.store.list("")) and not list(location.store.open_uploads(""))


# The right bytes.


@pytest.mark.parametrize("strategy", [STAGES, SIX], ids=["stages", "six ranks"])
def test_full_to_ranks(source, target, strategy):
    convert(source, target, ranks_of(strategy), LIMITS)
    assert tensors_of(target) == expected_shards(strategy)
    assert set(stored(target)) == {*expected_shards(strategy), MANIFEST_KEY}


@pytest.mark.parametrize("full", [FULL, SINGLE], ids=["several objects", "one object"])
def test_ranks_to_full(target, full):
    source = new_place("from")
    put_ranks(source, shards(MODEL, STAGES))
    convert(source, target, full, LIMITS, STAGES)
    found = tensors_of(target)
    assert {name: tensor for tensors in found.values() for name, tensor in tensors.items()} == contents(MODEL)
    assert len(found) == (2 if full is FULL else 1)


def test_ranks_to_other_ranks(target):
    source = new_place("from")
    put_ranks(source, shards(MODEL, STAGES))
    convert(source, target, ranks_of(SIX), LIMITS, STAGES)
    assert tensors_of(target) == expected_shards(SIX)


def test_metadata_of_outputs(target):
    source = new_place("from")
    source.store.put("from/m.safetensors", encode(MODEL, {"author": "me", "format": "pt"}))
    convert(source, target, ranks_of(STAGES), LIMITS)
    assert decode(stored(target)[rank_key(0)])[1] == {"author": "me", "format": "ms"}


def test_the_same_plan_gives_the_same_bytes(source):
    first, second = new_place(), new_place()
    convert(source, first, ranks_of(SIX), LIMITS)
    convert(source, second, ranks_of(SIX), replace(LIMITS, concurrency=1))
    outputs = [
        {name: body for name, body in stored(place).items() if name != MANIFEST_KEY} for place in (first, second)
    ]
    assert outputs[0] == outputs[1]


def test_a_source_without_tensors(target):
    source = new_place("from")
    put_full(source, {"m.safetensors": {}})
    convert(source, target, SINGLE, LIMITS)
    assert tensors_of(target) == {"model.safetensors": {}}


# The planned requests, no more.


def recorded(location):
    return Location(RecordingStore(location.store), location.key)


@pytest.mark.parametrize(
    ("wished", "strategy"),
    [(ranks_of(STAGES), None), (ranks_of(SIX), None), (FULL, STAGES), (SINGLE, STAGES), (ranks_of(SIX), STAGES)],
    ids=["full to stages", "full to six", "stages to several", "stages to one", "stages to six"],
)
def test_requests_and_bytes_are_those_of_the_plan(source, wished, strategy, monkeypatch):
    monkeypatch.setattr("reshard.engine.session.FRESH_S", 1e9)  # else a slow machine looks at the claim more often
    if strategy:
        source = new_place("from")
        put_ranks(source, shards(MODEL, strategy))
    plan = planned(source, new_place(), wished, LIMITS, strategy)
    counted_source, counted_target = recorded(source), recorded(new_place())
    execute(plan, counted_source, counted_target)
    read, written, cost = counted_source.store.figures, counted_target.store.figures, plan.cost
    manifest_bytes = counted_target.store.head(counted_target.child(MANIFEST_KEY).key).nbytes
    assert read.requests == Counter(get=cost.get_count, head=len(plan.catalog.objects))
    assert read.read_bytes == cost.read_bytes
    requests = Counter(written.requests)
    is_one = len(plan.conversion.keys) == 1
    assert requests.pop("list") == 3 - is_one
    assert requests == +Counter(
        put=cost.put_count + 3 + bool(cost.upload_count),  # the run's record, its journal, and the manifest
        create=cost.upload_count,
        part=cost.part_count,
        complete=cost.upload_count,
        delete=2 + bool(cost.upload_count),
        head=7 + is_one,  # of the record, and of the manifest right before it is written
    )
    assert 0 < written.written_bytes - cost.written_bytes - manifest_bytes <= 2 * MAX_RECORD_BYTES
    assert (
        cost.request_count
        == cost.get_count + requests["put"] - 3 - bool(cost.upload_count) + cost.part_count + 2 * cost.upload_count
    )


@pytest.mark.parametrize("count", [2, 3, 4, 6, 12])
def test_inner_splits_are_read_once_however_many_ranks(count):
    """Each row holds a piece of every rank: n ranks must not mean n times the bytes."""
    assert bytes_read(count, row_bytes=48) == 200 * 12 * 4


@pytest.mark.parametrize("count", [2, 3, 4, 6, 12])
def test_cuts_inside_a_row_read_little_more(count):
    """A row that two steps share is read by both, where its pieces are too short for requests of their own."""
    assert bytes_read(count, row_bytes=1) <= 200 * 12 * 4 * 1.03


def bytes_read(count, row_bytes):
    """Bytes that a store is really asked for to cut one tensor over so many ranks."""
    source = new_place("from")
    put_full(source, {"m.safetensors": random_model({"w": ("F32", (200, 12))})})
    strategy = Strategy(count, ({"w": Layout((count,), ((), (0,)))},))
    counted = recorded(source)
    plan = planned(source, new_place(), ranks_of(strategy), replace(LIMITS, row_bytes=row_bytes))
    execute(plan, counted, new_place())
    assert counted.store.figures.read_bytes == plan.cost.read_bytes
    return plan.cost.read_bytes


def test_long_outputs_are_uploaded_in_parts_and_short_ones_put(source, target):
    counted = Location(FaultyStore(target.store), target.key)
    convert(source, counted, ranks_of(STAGES), LIMITS)
    verbs = {}
    for verb, key in counted.store.log:
        verbs.setdefault(key.removeprefix("to/"), []).append(verb)
    for rank in (0, 1):
        assert verbs[rank_key(rank)][0] == "create_upload"
        assert verbs[rank_key(rank)][-1] == "complete_upload"
        assert set(verbs[rank_key(rank)][1:-1]) == {"upload_part"}
    for rank in (2, 3):
        assert verbs[rank_key(rank)] == ["put"]


def test_parts_come_first_then_what_is_visible_then_the_manifest(source, target):
    counted = Location(FaultyStore(target.store), target.key)
    convert(source, counted, replace(ranks_of(STAGES)), LIMITS)
    order = [verb for verb, _ in counted.store.log if verb in ("upload_part", "put", "complete_upload")]
    hidden = order.count("upload_part")
    assert order[:3] == ["put"] * 3  # the run's record, and its journal
    assert set(order[3 : hidden + 3]) == {"upload_part"}
    assert ("put", f"to/{MANIFEST_KEY}") in counted.store.log[-6:]
    assert counted.store.log[-1] == ("delete", "to/reshard-run.json")


def test_every_read_is_pinned(source, target):
    class Pinned(RecordingReadStore):
        def read_into(self, key, span, target, etag=None):
            assert etag == self.head(key).etag
            super().read_into(key, span, target, etag)

    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    execute(plan, Location(Pinned(source.store), source.key), target)
    assert tensors_of(target) == expected_shards(STAGES)


def test_replicas_get_the_same_parts(target):
    source = new_place("from")
    put_full(source, {"m.safetensors": MODEL})
    strategy = Strategy(4, ({"embed": Layout((2, 2), ((0,), ()))},))
    plan, manifest = convert(source, target, ranks_of(strategy), LIMITS)
    assert [output.keys for output in plan.outputs] == [(rank_key(0), rank_key(2)), (rank_key(1), rank_key(3))]
    assert tensors_of(target) == expected_shards(strategy)
    told = {receipt.key: receipt for receipt in manifest.receipts}
    assert told[rank_key(0)].crc32c == told[rank_key(2)].crc32c


# What is told while it runs.


def test_progress_only_grows_and_ends_at_what_was_planned(source, target):
    events = []
    plan, _ = convert(source, target, ranks_of(STAGES), replace(LIMITS, memory_bytes=9 << 20), listener=events.append)
    phases = [event.name for event in events if isinstance(event, PhaseStarted)]
    assert phases == ["transfer", "commit"]
    told = [event for event in events if isinstance(event, Progress)]
    assert told
    for before, after in itertools.pairwise(told):
        assert before.read_bytes <= after.read_bytes
        assert before.written_bytes <= after.written_bytes
    for event in told:
        assert (event.total_read_bytes, event.total_written_bytes) == (plan.cost.read_bytes, plan.cost.written_bytes)
        assert 0 <= event.reading <= LIMITS.concurrency
        assert 0 <= event.writing <= LIMITS.concurrency
        assert 0 <= event.written_bytes <= event.total_written_bytes
        assert event.limited_by in ("memory", "reads", "writes")
    last = told[-1]
    assert (last.read_bytes, last.written_bytes) == (plan.cost.read_bytes, plan.cost.written_bytes)
    assert (last.reading, last.writing) == (0, 0)


def test_listeners_are_called_from_the_calling_thread(source, target):
    threads = set()
    convert(source, target, ranks_of(STAGES), LIMITS, listener=lambda _: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


# Sources that change.


@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_source_that_is_replaced_while_it_is_read(source, target, call):
    """The new object is as long and has the same header: only its etag tells."""
    body = stored(source)["a.safetensors"]
    other = body[:-1] + bytes([body[-1] ^ 1])
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    faulty = FaultyStore(source.store, Fault("read_into", call, lambda: source.store.put("from/a.safetensors", other)))
    with pytest.raises(SourceChanged, match=r"a\.safetensors"):
        execute(plan, Location(faulty, source.key), target)
    assert is_untouched(target)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda store: store.put("from/a.safetensors", store.read("from/a.safetensors", *whole(store))), "etag"),
        (lambda store: store.put("from/a.safetensors", b"short"), "found 5 with"),
        (lambda store: store.delete("from/a.safetensors"), "gone"),
    ],
)
def test_a_source_that_is_not_what_was_planned(source, target, change, problem):
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    change(source.store)
    counted = recorded(source)
    with pytest.raises(SourceChanged, match="not what the plan was made from") as caught:
        execute(plan, counted, target)
    [found] = caught.value.problems
    assert "a.safetensors" in found
    assert problem in found
    assert counted.store.figures.read_bytes == 0
    assert is_untouched(target)


def whole(store):
    from reshard.tensor import ByteRange

    return [ByteRange(0, store.head("from/a.safetensors").nbytes)]


def test_all_that_changed_is_told(source, target):
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    source.store.clear()
    with pytest.raises(SourceChanged) as caught:
        execute(plan, source, target)
    assert len(caught.value.problems) == 2


# A fault at every call of every verb.

SCENARIOS = {
    "full to stages": (ranks_of(STAGES), None),
    "stages to several": (FULL, STAGES),
    "stages to one": (SINGLE, STAGES),
}
VERBS = ("head", "list", "read", "read_into", "put", "create_upload", "upload_part", "complete_upload")


def clean_calls(plan, source, existing=None):
    """How often each verb is called when nothing fails."""
    faulty_source, faulty_target = FaultyStore(source.store), FaultyStore(new_place().store)
    for name, body in (existing or {}).items():
        faulty_target.inner.put(f"to/{name}", body)
    execute(
        plan, Location(faulty_source, "from"), Location(faulty_target, "to"), policy=Policy(overwrite=bool(existing))
    )
    return faulty_source.calls, faulty_target.calls


@pytest.mark.parametrize("error", [Transient("made up"), RuntimeError("made up")], ids=["transient", "bug"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fault_at_any_call_leaves_nothing(source, scenario, error):
    wished, strategy = SCENARIOS[scenario]
    if strategy:
        source = new_place("from")
        put_ranks(source, shards(MODEL, strategy))
    plan = planned(source, new_place(), wished, LIMITS, strategy)
    source_calls, target_calls = clean_calls(plan, source)
    runs = 0
    for side, calls in (("source", source_calls), ("target", target_calls)):
        assert set(calls) <= {*VERBS, "delete"}
        for verb, count in calls.items():
            # After the manifest, the run looks twice at its record and removes it.
            last = {"delete": 0, "head": count - 2 * (side == "target")}.get(verb, count)
            for call in range(1, last + 1):
                # A HEAD that finds nothing is an answer, and no fault comes after it.
                for after in (False,) if verb == "head" else (False, True):
                    fault = Fault(verb, call, error, after)
                    place = new_place()
                    stores = {"source": source.store, "target": place.store}
                    stores[side] = FaultyStore(stores[side], fault)
                    with pytest.raises(type(error), match="made up"):
                        execute(plan, Location(stores["source"], "from"), Location(stores["target"], "to"))
                    assert is_untouched(place), f"{side}: {fault}"
                    runs += 1
    assert runs > 40


def test_what_could_not_be_removed_is_told(source, target):
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    broken = FaultyStore(
        target.store,
        Fault("complete_upload", 2, StorageError("made up")),
        *(Fault("abort_upload", call, Transient("not now")) for call in range(1, 9)),
    )
    with pytest.raises(StorageError, match="made up") as caught:
        execute(plan, source, Location(broken, "to"))
    *problems, advice = caught.value.problems
    assert problems
    assert all("could not abort the upload of" in problem and "not now" in problem for problem in problems)
    assert "lifecycle rule" in advice


def test_what_could_not_be_removed_is_told_with_any_error(source, target):
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    faults = [Fault("abort_upload", call, Transient("not now")) for call in range(1, 9)]
    broken = FaultyStore(target.store, Fault("upload_part", 3, RuntimeError("made up")), *faults)
    with pytest.raises(RuntimeError, match="made up") as caught:
        execute(plan, source, Location(broken, "to"))
    assert any("could not abort the upload of" in note for note in caught.value.__notes__)


def test_an_object_of_another_length_than_was_sent_is_no_success(source, target):
    class Losing(MemoryStore):
        def complete_upload(self, upload, parts, crcs=None):
            info = super().complete_upload(upload, parts)
            return replace(info, nbytes=info.nbytes - 1)

    losing = Location(Losing(limits=target.store.limits), "to")
    plan = planned(source, losing, ranks_of(STAGES), LIMITS)
    with pytest.raises(StorageError, match=r"expected \d+ bytes in the store, found \d+"):
        execute(plan, source, losing)
    assert is_untouched(losing)


def test_a_store_that_can_only_be_read(source, target):
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    with pytest.raises(Unsupported, match="read-only"):
        execute(plan, source, Location(RecordingReadStore(target.store), "to"))


# Outputs that exist.


def test_outputs_that_exist_are_refused_before_anything_is_read(source, target):
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    target.store.put(f"to/{rank_key(1)}", b"old")
    target.store.put(f"to/{rank_key(3)}", b"old")
    counted = recorded(source)
    with pytest.raises(TargetExists, match="2 of 5 outputs exist already") as caught:
        execute(plan, counted, target)
    assert caught.value.problems == (rank_key(1), rank_key(3))
    assert "`overwrite`" in str(caught.value)
    assert counted.store.figures.request_count == 0
    assert set(stored(target).values()) == {b"old"}


def test_a_manifest_alone_is_refused(source, target):
    target.store.put(f"to/{MANIFEST_KEY}", b"old")
    with pytest.raises(TargetExists, match="1 of 5 outputs exist already"):
        convert(source, target, ranks_of(STAGES), LIMITS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_checkpoints_shards_are_refused(source, target, overwrite):
    """A reader that lists the prefix would take them for ranks of this one."""
    stale = rank_key(17)
    target.store.put(f"to/{stale}", b"old")
    with pytest.raises(TargetExists, match="another checkpoint's objects") as caught:
        convert(source, target, ranks_of(STAGES), LIMITS, overwrite=overwrite)
    assert caught.value.problems == (stale,)
    assert stored(target) == {stale: b"old"}


def test_other_objects_do_not_matter(source, target):
    target.store.put("to/README.md", b"mine")
    target.store.put("to/logs/model.txt", b"mine")
    target.store.put("two/model.safetensors", b"mine")
    convert(source, target, ranks_of(STAGES), LIMITS)
    assert stored(target)["README.md"] == b"mine"


def finished(source, strategy):
    """A target after a conversion."""
    place = new_place()
    convert(source, place, ranks_of(strategy), LIMITS)
    return place


def test_overwriting_replaces_everything(source):
    target = new_place()
    other = new_place("from")
    put_full(other, {"m.safetensors": random_model({name: (d.value, s) for name, (d, s, _) in MODEL.items()}, seed=5)})
    convert(other, target, ranks_of(STAGES), LIMITS)
    _, manifest = convert(source, target, ranks_of(STAGES), LIMITS, overwrite=True)
    assert tensors_of(target) == expected_shards(STAGES)
    assert decode_manifest(stored(target)[MANIFEST_KEY], "m") == manifest
    assert verify_manifest(manifest, source, target).is_ok


def test_overwriting_removes_what_the_last_conversion_wrote_besides(source):
    """Six ranks before, four now: the shards of ranks 4 and 5 must not stay."""
    target = finished(source, SIX)
    target.store.put("to/README.md", b"mine")
    convert(source, target, ranks_of(STAGES), LIMITS, overwrite=True)
    assert set(stored(target)) == {*(rank_key(rank) for rank in range(4)), MANIFEST_KEY, "README.md"}


def test_a_failure_before_the_commit_keeps_what_was_there(source):
    target = finished(source, STAGES)
    before = {info.key: info.etag for info in target.objects()}
    plan = planned(source, target, ranks_of(STAGES), LIMITS)
    for fault in (Fault("upload_part", 2), Fault("create_upload", 2), Fault("upload_part", 5, after=True)):
        with pytest.raises(Transient):
            execute(plan, source, Location(FaultyStore(target.store, fault), "to"), policy=Policy(overwrite=True))
        assert {info.key: info.etag for info in target.objects()} == before
        assert not list(target.store.open_uploads(""))


def test_a_failure_while_overwriting_never_leaves_a_mix_behind_a_manifest(source):
    """At every call: what is there is old; what is gone was replaced; a manifest vouches only for what it names."""
    old_model = random_model({name: (d.value, s) for name, (d, s, _) in MODEL.items()}, seed=5)
    other = new_place("from")
    put_full(other, {"m.safetensors": old_model})
    existing = stored(finished(other, STAGES))
    plan = planned(source, new_place(), ranks_of(STAGES), replace(LIMITS, concurrency=1))
    _, calls = clean_calls(plan, source, existing)
    assert calls.pop("delete") == 4  # the old manifest, and the run's record and journal once all is complete
    calls["delete"] = 1
    calls["head"] -= 2  # after the manifest, the run looks twice at its record
    kept = 0
    for verb, count in calls.items():
        for call in range(1, count + 1):
            for after in (False,) if verb == "head" else (False, True):
                place = new_place()
                for name, body in existing.items():
                    place.store.put(f"to/{name}", body)
                faulty = FaultyStore(place.store, Fault(verb, call, after=after))
                with pytest.raises(Transient, match="made up"):
                    execute(plan, source, Location(faulty, "to"), policy=Policy(overwrite=True))
                found, replaced = stored(place), made_visible(faulty, is_last_done=after)
                assert not list(place.store.open_uploads(""))
                assert all(existing[name] == body for name, body in found.items()), f"{verb} {call} {after}"
                replaced = {key for key in replaced if not key.startswith("reshard-")}
                assert set(existing) - set(found) - {MANIFEST_KEY} == replaced, f"{verb} {call} {after}"
                assert MANIFEST_KEY not in found or found == existing
                kept += found == existing
    assert kept > 10


def made_visible(faulty, *, is_last_done):
    """Names that a run put or completed before its one fault, and the faulty one if it was done."""
    names = {"put": [], "complete_upload": []}
    for verb, key in faulty.log:
        if verb in names:
            names[verb].append(key.removeprefix("to/"))
    [fault] = faulty.faults
    if fault.verb in names and not is_last_done:
        del names[fault.verb][fault.call - 1]
    return {*names["put"], *names["complete_upload"]}


# Stopping.


def interrupt_at(number):
    """A listener that is interrupted at its n-th event."""
    left = [number]

    def listen(_event):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return listen


def test_an_interrupt_at_any_event_leaves_nothing(source):
    events = []
    convert(source, new_place(), ranks_of(STAGES), LIMITS, listener=events.append)
    for number in range(1, 5):
        place = new_place()
        with pytest.raises(KeyboardInterrupt):
            convert(source, place, ranks_of(STAGES), LIMITS, listener=interrupt_at(number))
        assert is_untouched(place)


def test_an_interrupt_ends_a_hanging_upload_within_seconds(source):
    class Hanging(MemoryStore):
        hangs = threading.Event()

        def upload_part(self, upload, number, offset, body, checksum=None):
            self.hangs.set()
            while not self.should_stop():
                threading.Event().wait(0.01)
            raise Interrupted("told to")

    place = Location(Hanging(limits=StoreLimits(min_part_bytes=PART_BYTES)), "to")

    def listen(_event):
        if place.store.hangs.is_set():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        convert(source, place, ranks_of(STAGES), LIMITS, listener=listen)
    assert time.monotonic() - began < 5
    assert is_untouched(place)


@pytest.mark.parametrize("verb", ["put", "create_upload", "upload_part", "complete_upload"])
def test_requests_that_end_too_late_clean_up_after_themselves(source, monkeypatch, verb):
    """A call that hears nothing of Ctrl-C: the run ends without it, and what it made does not stay."""
    monkeypatch.setattr(workers_module, "_STOP_WAIT_S", 0.05)
    monkeypatch.setattr(upload_module, "_TIDY_S", 0.05)
    place, release = new_place(), threading.Event()
    before = set(threading.enumerate())

    def hang():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert release.wait(20)

    late = Location(FaultyStore(place.store, Fault(verb, 1, hang)), "to")
    plan = planned(source, place, ranks_of(STAGES), LIMITS)
    gc.disable()  # a signal that arrives while a callback of the collector runs is swallowed there
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(plan, source, late)
    finally:
        gc.enable()
        release.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert is_untouched(place)


def test_a_failure_ends_reads_that_hang(source, target):
    """Other requests are told to break off as soon as one has failed."""

    class Hanging(MemoryStore):
        is_planned = False

        def read_into(self, key, span, target, etag=None):
            if not self.is_planned:
                return super().read_into(key, span, target, etag)
            if threading.current_thread().name.endswith("-0"):
                raise StorageError("made up")
            while not self.should_stop():
                threading.Event().wait(0.01)
            raise Interrupted("told to")

    hanging = Hanging()
    for name, body in stored(source).items():
        hanging.put(f"from/{name}", body)
    place = Location(hanging, "from")
    plan = planned(place, target, ranks_of(STAGES), LIMITS)
    hanging.is_planned = True
    began = time.monotonic()
    with pytest.raises(StorageError, match="made up"):
        execute(plan, place, target)
    assert time.monotonic() - began < 5
    assert is_untouched(target)
