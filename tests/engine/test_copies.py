"""Parts that the store makes by itself: the same bytes, once each, and nothing left whatever fails."""

import gc
import itertools
from collections import Counter
from dataclasses import replace

import pytest
from support.checkpoints import contents, decode, put_full, put_ranks, random_model, rank_key, shard, shards, stored
from support.conversions import planned, ranks_of
from support.faulty_store import Fault, FaultyStore
from support.recording_store import RecordingStore

from reshard.engine.events import Noted, PhaseStarted, Progress
from reshard.engine.execute import Policy, execute
from reshard.engine.executors.arena import Arena
from reshard.engine.manifest import decode_manifest
from reshard.engine.run_record import MAX_RECORD_BYTES
from reshard.engine.verification import Subset, verify_manifest
from reshard.errors import Denied, OverBudget, SourceChanged, StorageError, Transient, Unsupported
from reshard.planning.limits import Limits
from reshard.planning.plan import make_plan, without_copies
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.full_target import FullTarget
from reshard.storage import LocalStore, Location, MemoryStore, StoreLimits
from reshard.storage.checksums import crc_of
from reshard.tensor import Layout, Strategy

LEAST = 300
LIMITS = Limits(
    concurrency=3,
    min_part_bytes=LEAST,
    part_bytes=LEAST,
    copy_bytes=1000,
    min_copy_source_bytes=LEAST,
    row_bytes=1,
    read_bytes=200,
)
MODEL = random_model({f"{i}.w": ("F32", (24, 20)) for i in range(4)} | {"norm": ("F32", (12,)), "step": ("I64", ())})
ROWS, WHOLE = Layout((2, 2), ((0,), ())), Layout((2, 2), ((), ()))
ONE = Strategy(4, ({f"{i}.w": ROWS for i in range(4)} | {"norm": Layout((2, 2), ((),))},))
"""Two replicas of two ranks."""
TWO = Strategy(
    4,
    (
        {f"{i}.w": ROWS for i in range(2)} | {"norm": Layout((2, 2), ((),))},
        {f"{i}.w": ROWS for i in range(2, 4)},
    ),
)
"""The same in two stages."""
COLUMNS = Strategy(4, ({f"{i}.w": Layout((2, 2), ((), (0,))) for i in range(4)},))
"""Nothing that stands together, but replicas."""
SINGLE = FullTarget("m-{part}-{parts}.safetensors", "m.safetensors", "index.json", "pt", 10**9)


class IgnoringPins(MemoryStore):
    """As some services: a copy takes whatever is there."""

    def copy_part(self, upload, number, offset, source, key, span, etag=None):
        return super().copy_part(upload, number, offset, source, key, span)


def new_place(key="to", kind=MemoryStore):
    return Location(kind(limits=StoreLimits(min_part_bytes=LEAST, min_copy_source_bytes=LEAST)), key)


@pytest.fixture
def source():
    place = new_place("from")
    put_ranks(place, shards(MODEL, TWO))
    return place


@pytest.fixture
def target():
    return new_place()


def plan_of(source, wished=None, strategy=TWO, copy_bases=(REPLICAS, 0)):
    return planned(source, new_place(), wished or ranks_of(ONE), LIMITS, strategy, copy_bases)


def objects_at(location):
    return {name: body for name, body in stored(location).items() if not name.startswith("reshard-manifest")}


def streamed(plan, source):
    """What a store that copies nothing would hold."""
    place = new_place()
    execute(without_copies(plan), source, place)
    return objects_at(place)


def is_untouched(location):
    return not list(location.store.list("")) and not list(location.store.open_uploads(""))


def expected_shards(strategy):
    return {rank_key(rank): contents(shard(MODEL, strategy, rank)) for rank in range(strategy.rank_count)}


SCENARIOS = {
    "stages and replicas": (ranks_of(ONE), TWO),
    "to one object": (SINGLE, TWO),
    "from one object": (ranks_of(TWO), None),
    "replicas alone": (ranks_of(COLUMNS), None),
    "some ranks": (replace(ranks_of(ONE), ranks=(0, 2, 3)), TWO),
}


def scenario(name):
    wished, strategy = SCENARIOS[name]
    place = new_place("from")
    if strategy:
        put_ranks(place, shards(MODEL, strategy))
    else:
        put_full(place, {"m.safetensors": MODEL})
    return plan_of(place, wished, strategy), place


# The right bytes, once.


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_bytes_as_when_they_are_streamed(name, target):
    plan, source = scenario(name)
    assert plan.cost.copied_bytes
    manifest = execute(plan, source, target)
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert not list(target.store.open_uploads(""))


def test_shards_are_right(source, target):
    execute(plan_of(source), source, target)
    assert {name: decode(body)[0] for name, body in objects_at(target).items()} == expected_shards(ONE)


@pytest.mark.parametrize("name", SCENARIOS)
def test_requests_and_bytes_are_those_of_the_plan(name, target):
    plan, source = scenario(name)
    counted_source, counted_target = (Location(RecordingStore(place.store), place.key) for place in (source, target))
    execute(plan, counted_source, counted_target)
    read, written, cost = counted_source.store.figures, counted_target.store.figures, plan.cost
    manifest_bytes = target.store.head(target.child(plan.conversion.manifest_key).key).nbytes
    assert (read.read_bytes, read.requests["get"]) == (cost.read_bytes, cost.get_count)
    assert read.requests["head"] == 2 * len(plan.catalog.objects)  # before, and again after copies
    assert 0 < written.written_bytes - cost.written_bytes - manifest_bytes <= 2 * MAX_RECORD_BYTES
    assert written.copied_bytes == cost.copied_bytes
    requests = Counter(written.requests)
    # The target is looked at before and after the claim, and before the manifest; and shares look for each other.
    is_one = len(plan.conversion.keys) == 1
    assert requests.pop("list") == 3 - is_one + (name == "some ranks")
    assert requests.pop("head") == 7 + is_one  # the claim is looked at before each change that becomes visible
    assert requests == +Counter(
        put=cost.put_count + 4,  # the run's record, twice its journal, and the manifest
        create=cost.upload_count,
        part=cost.part_count,
        copy=cost.copy_count,
        complete=cost.upload_count,
        delete=3,
    )


def test_replicas_are_sent_once_and_are_equal(target):
    plan, source = scenario("replicas alone")
    faulty = FaultyStore(target.store)
    execute(plan, source, Location(faulty, "to"))
    verbs = {}
    for verb, key in faulty.log:
        verbs.setdefault(key.removeprefix("to/"), []).append(verb)
    for output in plan.outputs:
        first, other = output.keys
        assert set(verbs[first]) == {"create_upload", "upload_part", "complete_upload"}
        assert set(verbs[other]) == {"create_upload", "copy_part", "complete_upload"}
        assert verbs[other].count("copy_part") == -(-output.nbytes // 1000)
        assert objects_at(target)[first] == objects_at(target)[other]
    assert plan.cost.written_bytes == sum(output.nbytes for output in plan.outputs)
    order = [verb for verb, _ in faulty.log]
    assert order.index("copy_part") > order.index("complete_upload")


def test_checksums_are_of_what_passed_through_here(source, target):
    """Of an output that was sent whole, its replicas have the same; of one that was copied in part there is none."""
    plan = plan_of(source)
    manifest = execute(plan, source, target)
    assert {receipt.crc32c for receipt in manifest.receipts} == {None}
    assert decode_manifest(stored(target)[plan.conversion.manifest_key], "m") == manifest
    plan, source = scenario("replicas alone")
    place = new_place()
    manifest = execute(plan, source, place)
    assert {r.key: r.crc32c for r in manifest.receipts} == {k: crc_of(body) for k, body in objects_at(place).items()}
    assert decode_manifest(stored(place)[plan.conversion.manifest_key], "m") == manifest


def test_a_saved_plan_copies_too(source, target):
    from reshard.planning.plan_json import decode_plan, encode_plan

    plan = decode_plan(encode_plan(plan_of(source)), "plan")
    faulty = FaultyStore(target.store)
    execute(plan, source, Location(faulty, "to"))
    assert faulty.calls["copy_part"] == plan.cost.copy_count
    assert objects_at(target) == streamed(plan, source)


def test_overwriting_by_copies(source, target):
    target.store.put(f"to/{rank_key(0)}", b"old")
    target.store.put(f"to/{rank_key(2)}", b"old")
    plan = plan_of(source)
    execute(plan, source, target, policy=Policy(overwrite=True))
    assert objects_at(target) == streamed(plan, source)


@pytest.mark.parametrize("subset", ["1/3", "2/3", "3/3"])
def test_a_part_of_what_was_copied_is_compared(source, target, subset):
    plan = plan_of(source)
    manifest = execute(plan, source, target)
    report = verify_manifest(manifest, source, target, subset=Subset.parse(subset))
    assert report.is_ok
    assert 0 < report.checked_bytes < report.total_bytes


def test_every_byte_is_compared(source, target):
    manifest = execute(plan_of(source), source, target)
    report = verify_manifest(manifest, source, target)
    assert report.checked_bytes == report.total_bytes == sum(map(len, objects_at(target).values()))
    for name, body in objects_at(target).items():
        for byte in range(0, len(body), 101):
            target.store.put(f"to/{name}", body[:byte] + bytes([body[byte] ^ 1]) + body[byte + 1 :])
            [problem] = verify_manifest(manifest, source, target).problems
            assert f"{name}: byte {byte} differs" in problem
        target.store.put(f"to/{name}", body)


def test_reads_of_one_byte_are_no_reason_to_fail(source, target):
    """No plan has them, but a manifest may say so."""
    manifest = execute(plan_of(source), source, target)
    odd = replace(manifest, limits=replace(manifest.limits, read_bytes=1))
    report = verify_manifest(odd, source, target)
    assert report.is_ok


# What is told while it runs.


def check_progress(events, plan):
    told = [event for event in events if isinstance(event, Progress)]
    for before, after in itertools.pairwise(told):
        assert before.read_bytes <= after.read_bytes
        assert before.written_bytes <= after.written_bytes
    for event in told:
        assert event.read_bytes <= event.total_read_bytes
        assert event.written_bytes <= event.total_written_bytes
        assert 0 <= event.reading <= LIMITS.concurrency
        assert 0 <= event.writing <= LIMITS.concurrency
    last = told[-1]
    assert last.read_bytes == last.total_read_bytes
    assert last.written_bytes == last.total_written_bytes == plan.cost.written_bytes + plan.cost.copied_bytes
    assert (last.reading, last.writing) == (0, 0)


@pytest.mark.parametrize("name", SCENARIOS)
def test_progress_ends_at_what_was_planned(name, target):
    events = []
    plan, source = scenario(name)
    written = sum(len(document.data) for document in plan.conversion.documents)
    assert not written
    execute(plan, source, target, listener=events.append)
    assert [event.name for event in events if isinstance(event, PhaseStarted)] == ["transfer", "commit"]
    check_progress(events, plan)


# Stores that turn out not to copy.


def refusing(verb_calls, place):
    return Location(
        FaultyStore(place.store, *(Fault("copy_part", n, Unsupported("made up")) for n in verb_calls)), "to"
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_store_that_cannot_copy_after_all(name, target):
    """The very first copy is refused: everything is streamed."""
    plan, source = scenario(name)
    events = []
    place = refusing(range(1, 1000), target)
    manifest = execute(plan, source, place, listener=events.append)
    assert objects_at(target) == streamed(plan, source)
    assert not list(target.store.open_uploads(""))
    if plan.draft.copied_ranges != ((),) * len(plan.outputs):
        assert place.store.calls["copy_part"] == 1
        check_progress(events, without_copies(plan))
    assert manifest.conversion == plan.conversion
    assert verify_manifest(manifest, source, target).is_ok
    assert {r.key: r.crc32c for r in manifest.receipts} == {k: crc_of(body) for k, body in objects_at(target).items()}
    assert decode_manifest(stored(target)[plan.conversion.manifest_key], "m") == manifest


def test_only_replicas_are_refused(target):
    """They are streamed from the source, and the first of them is not sent again."""
    plan, source = scenario("replicas alone")
    events = []
    place = refusing([1], target)
    manifest = execute(plan, source, place, listener=events.append)
    assert place.store.calls["copy_part"] == 1
    assert place.store.calls["create_upload"] == place.store.calls["complete_upload"] == 4
    assert place.store.calls["upload_part"] == 2 * plan.cost.part_count
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert not list(target.store.open_uploads(""))
    check_progress(events, plan)


def test_only_copies_of_replicas_are_refused(source, target):
    """Parts of the source could be copied: so they are for the other keys."""
    plan = plan_of(source)
    copied = sum(len(step.copies) for index in range(len(plan.groups)) for step in plan.steps(index))
    place = refusing([copied + 1], target)
    manifest = execute(plan, source, place)
    assert place.store.calls["copy_part"] == 2 * copied + 1
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert not list(target.store.open_uploads(""))


def test_replicas_are_refused_beside_an_output_without_any(target):
    """Rank 1 alone has its columns here: what is complete already is not sent again."""
    source = new_place("from")
    put_full(source, {"m.safetensors": MODEL})
    plan = plan_of(source, replace(ranks_of(COLUMNS), ranks=(0, 1, 2)), None)
    assert sorted(len(output.keys) for output in plan.outputs) == [1, 2]
    assert len(plan.groups) == 1
    place = refusing([1], target)
    manifest = execute(plan, source, place)
    assert place.store.calls["complete_upload"] == 3
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert not list(target.store.open_uploads(""))


def parts_of(plan, key):
    """How many parts of an object are sent when nothing is copied."""
    plan = without_copies(plan)
    steps = (step for index in range(len(plan.groups)) for step in plan.steps(index))
    return sum(key in plan.outputs[part.output].keys for step in steps for part in step.parts)


def key_of_copy(store, call):
    """The output that a copy was for."""
    return [key for verb, key in store.log if verb == "copy_part"][call - 1].removeprefix("to/")


@pytest.mark.parametrize("call", [2, 3, 5])
def test_a_later_copy_is_refused(source, target, call):
    """As of an object that the service copies no range of: its output is streamed, and no other is touched."""
    events, plan, place = [], plan_of(source), refusing([call], target)
    manifest = execute(plan, source, place, listener=events.append)
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert not list(target.store.open_uploads(""))
    key = key_of_copy(place.store, call)
    assert place.store.calls["upload_part"] == plan.cost.part_count + parts_of(plan, key)
    assert place.store.calls["create_upload"] == place.store.calls["complete_upload"] == plan.cost.upload_count
    assert place.store.calls["copy_part"] == plan.cost.copy_count
    assert notes(events) == ["made up: streaming 1 of 4 outputs instead"]
    told = [event.name if isinstance(event, PhaseStarted) else "note" for event in events if not is_progress(event)]
    assert told == ["transfer", "note", "commit"], "nothing began anew"
    last = [event for event in events if is_progress(event)][-1]
    assert (last.read_bytes, last.written_bytes) == (last.total_read_bytes, last.total_written_bytes)


def test_every_copy_but_the_first_is_refused(source, target):
    plan, place = plan_of(source), refusing(range(2, 1000), target)
    manifest = execute(plan, source, place)
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert {r.key: r.crc32c for r in manifest.receipts} == {k: crc_of(body) for k, body in objects_at(target).items()}


@pytest.mark.parametrize("call", [2, 5])
def test_a_later_copy_is_refused_in_a_folder(tmp_path, call):
    """Parts are written in place there: what was copied before is overwritten."""
    source, target = Location(LocalStore(tmp_path), "from"), Location(LocalStore(tmp_path), "to")
    put_ranks(source, shards(MODEL, TWO))
    plan = planned(source, target, ranks_of(ONE), LIMITS, TWO, (REPLICAS, 0))
    execute(plan, source, refusing([call], target))
    assert {name: decode(body)[0] for name, body in objects_at(target).items()} == expected_shards(ONE)
    assert not list(target.store.open_uploads(""))


@pytest.mark.parametrize("rank", [0, 1, 2, 4, 5])
def test_one_object_of_the_source_cannot_be_copied(source, rank):
    """Outputs that take bytes of it are streamed; the others keep what was copied."""

    class Picky(MemoryStore):
        def copy_part(self, upload, number, offset, source, key, span, etag=None):
            if key == f"from/{rank_key(rank)}":
                raise Unsupported("made up", problems=["ask another"])
            return super().copy_part(upload, number, offset, source, key, span, etag)

    events, place, plan = [], new_place(kind=Picky), plan_of(source, strategy=TWO)
    copies = [part for index in range(len(plan.groups)) for step in plan.steps(index) for part in step.copies]
    hit = {
        key
        for part in copies
        if plan.catalog.objects[part.object].key == rank_key(rank)
        for key in plan.outputs[part.output].keys
    }
    manifest = execute(plan, source, place, listener=events.append)
    assert objects_at(place) == streamed(plan, source)
    assert verify_manifest(manifest, source, place).is_ok
    assert {receipt.key for receipt in manifest.receipts if receipt.crc32c is not None} >= hit
    if hit and plan.catalog.objects[copies[0].object].key != rank_key(rank):
        assert any("streaming" in text for text in notes(events))
        assert "ask another" in notes(events)
        assert {receipt.key for receipt in manifest.receipts if receipt.crc32c is None} == {*objects_at(place)} - hit


class CopyingFew(MemoryStore):
    """It copies four parts, and no more."""

    copied = 0

    def copy_part(self, *asked):
        self.copied += 1
        if self.copied > 4:
            raise Unsupported("made up")
        return super().copy_part(*asked)


def test_memory_is_free_again_before_the_rest_is_streamed(source):
    """What is streamed has a plan, and so an arena, of its own."""
    before, found = arena_count(), []

    def listen(event):
        if isinstance(event, Noted):
            found.append(arena_count())

    execute(plan_of(source), source, new_place(kind=CopyingFew), listener=listen)
    assert set(found) == {before}


def arena_count():
    gc.collect()
    return sum(isinstance(each, Arena) for each in gc.get_objects())


def test_a_store_without_the_operation(source):
    """A plan that was made for another store."""

    class Plain:
        """Everything but copies."""

        def __init__(self, store):
            self._store = store

        def __getattr__(self, name):
            return getattr(self._store, name)

        def copies_from(self, source):
            return False

        def copy_part(self, *_):
            raise Unsupported("copies nothing")

    place = new_place()
    plan = plan_of(source)
    faulty = FaultyStore(place.store)
    execute(plan, source, Location(Plain(faulty), "to"))
    assert objects_at(place) == streamed(plan, source)
    assert not faulty.calls["copy_part"]
    assert faulty.calls["upload_part"] == without_copies(plan).cost.part_count


def test_what_is_refused_for_other_reasons_is_not_tried_twice(source, target):
    plan = plan_of(source, copy_bases=())
    faulty = FaultyStore(target.store, Fault("upload_part", 2, Unsupported("made up")))
    with pytest.raises(Unsupported, match="made up"):
        execute(plan, source, Location(faulty, "to"))
    assert is_untouched(target)


@pytest.mark.parametrize(("verb", "call"), [("upload_part", 1), ("create_upload", 3)])
def test_what_is_refused_beside_copies_is_an_error(source, target, verb, call):
    """Only a copy that is refused can be made up for by streaming."""
    faulty = FaultyStore(target.store, Fault(verb, call, Unsupported("made up")))
    with pytest.raises(Unsupported, match="made up"):
        execute(plan_of(source), source, Location(faulty, "to"))
    assert faulty.calls["create_upload"] <= len(plan_of(source).conversion.keys), "not begun anew"
    assert is_untouched(target)


def test_a_read_that_is_refused_is_an_error(source, target):
    plan = plan_of(source)
    faulty = FaultyStore(source.store, Fault("read_into", 1, Unsupported("made up")))
    with pytest.raises(Unsupported, match="made up"):
        execute(plan, Location(faulty, "from"), target)
    assert faulty.calls["head"] == len(plan.catalog.objects)
    assert is_untouched(target)


def notes(events):
    return [event.text for event in events if isinstance(event, Noted)]


def test_streaming_everything_is_told_before_the_transfer(source, target):
    events = []
    execute(plan_of(source), source, refusing([1], target), listener=events.append)
    assert notes(events) == ["made up: all is streamed instead, from the beginning"]
    told = [event.name if isinstance(event, PhaseStarted) else "note" for event in events if not is_progress(event)]
    assert told == ["note", "transfer", "commit"]


def is_progress(event):
    return isinstance(event, Progress)


def test_the_upload_of_a_refused_copy_is_used(source, target):
    """Nothing is aborted and opened again: its parts are sent into it."""
    plan, place = plan_of(source), refusing([1], target)
    execute(plan, source, place)
    assert objects_at(target) == streamed(plan, source)
    assert not place.store.calls["abort_upload"]
    assert place.store.calls["create_upload"] == place.store.calls["complete_upload"] == 4


def test_what_could_not_be_undone_is_told_by_a_failure_too(source, target):
    faulty = FaultyStore(
        target.store,
        Fault("copy_part", 1, Unsupported("made up")),
        Fault("abort_upload", 1, Denied("not allowed")),
        Fault("upload_part", 2),
    )
    with pytest.raises(Transient) as failure:
        execute(plan_of(source), source, Location(faulty, "to"))
    [left] = target.store.open_uploads("")
    first, advice = failure.value.problems
    assert first == f"could not abort the upload of {target.store.url}/{left.key}: not allowed"
    assert "lifecycle rule" in advice


@pytest.mark.parametrize("call", [1, 3])
def test_a_plan_that_cannot_be_streamed_tells_what_was_refused(source, target, call):
    """The memory is enough to copy, and a little too small to stream."""
    conversion = plan_of(source).conversion
    with pytest.raises(OverBudget) as needed:
        make_plan(conversion, replace(LIMITS, memory_bytes=1))
    plan = make_plan(conversion, replace(LIMITS, memory_bytes=needed.value.needed_bytes - 1), (REPLICAS, 0))
    assert plan.cost.copied_bytes
    with pytest.raises(OverBudget, match="needs at least") as failure:
        execute(plan, source, refusing([call], target))
    assert failure.value.needed_bytes == needed.value.needed_bytes
    assert failure.value.problems == ("made up",)
    assert is_untouched(target)
    manifest = execute(plan, source, target)
    assert verify_manifest(manifest, source, target).is_ok, "with the memory that streaming takes"


@pytest.mark.parametrize("call", range(2, 11))
def test_a_later_replica_is_refused(target, call):
    """Those that were copied stay; only the one that was refused is streamed."""
    plan, source = scenario("replicas alone")
    assert plan.cost.copy_count == 2 * 5
    events = []
    place = refusing([call], target)
    manifest = execute(plan, source, place, listener=events.append)
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert {r.key: r.crc32c for r in manifest.receipts} == {k: crc_of(body) for k, body in objects_at(target).items()}
    assert notes(events) == ["1 equal outputs could not be copied by the store: they are streamed instead"]
    assert not list(target.store.open_uploads(""))
    assert place.store.calls["create_upload"] == place.store.calls["complete_upload"] == 4
    assert place.store.calls["upload_part"] == plan.cost.part_count * 3 // 2
    last = [event for event in events if is_progress(event)][-1]
    assert (last.read_bytes, last.written_bytes) == (last.total_read_bytes, last.total_written_bytes)


def test_copies_of_the_source_are_refused_in_the_commit(source, target):
    """Of a replica that could not be copied either: it is streamed."""
    events, plan = [], plan_of(source)
    copied = sum(len(step.copies) for index in range(len(plan.groups)) for step in plan.steps(index))
    manifest = execute(plan, source, refusing([copied + 1, copied + 2], target), listener=events.append)
    assert objects_at(target) == streamed(plan, source)
    assert verify_manifest(manifest, source, target).is_ok
    assert notes(events) == [
        "2 equal outputs could not be copied by the store: they are streamed instead",
        "made up: streaming 1 of 4 outputs instead",
    ]
    assert not list(target.store.open_uploads(""))


# A fault at any copy.


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "error",
    [Transient("made up"), RuntimeError("made up"), KeyboardInterrupt("made up")],
    ids=["transient", "bug", "^C"],
)
@pytest.mark.parametrize("name", ["stages and replicas", "replicas alone", "to one object"])
def test_a_fault_at_any_call_leaves_nothing(name, error, after):
    plan, source = scenario(name)
    clean = FaultyStore(new_place().store)
    execute(plan, source, Location(clean, "to"))
    assert clean.calls["copy_part"] == plan.cost.copy_count
    for verb in ("copy_part", "create_upload", "upload_part", "complete_upload", "put"):
        for call in range(1, clean.calls[verb] + 1):
            place = new_place()
            faulty = FaultyStore(place.store, Fault(verb, call, error, after))
            with pytest.raises(type(error), match="made up"):
                execute(plan, source, Location(faulty, "to"))
            assert is_untouched(place), f"{verb} {call}"


def test_a_failed_look_at_the_source_after_copies_leaves_nothing(source, target):
    plan = plan_of(source)
    count = len(plan.catalog.objects)
    for call in range(1, 2 * count + 1):
        faulty = FaultyStore(source.store, Fault("head", call))
        with pytest.raises(Transient):
            execute(plan, Location(faulty, "from"), target)
        assert is_untouched(target)


# Sources that change.


def replaced(source, key):
    """Another object of the same length and header."""
    body = stored(source)[key]
    source.store.put(f"from/{key}", body[:-1] + bytes([body[-1] ^ 1]))


@pytest.mark.parametrize("kind", [MemoryStore, IgnoringPins])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_source_that_is_replaced_between_copies(source, kind, call):
    """Only another look tells it where the store takes whatever is there."""
    plan, place = plan_of(source), new_place(kind=kind)
    faulty = FaultyStore(place.store, Fault("copy_part", call, lambda: replaced(source, rank_key(0))))
    with pytest.raises(SourceChanged, match=r"rank_0/checkpoint_0\.safetensors"):
        execute(plan, source, Location(faulty, "to"))
    assert is_untouched(place)


def test_a_source_that_is_replaced_before(source, target):
    plan = plan_of(source)
    replaced(source, rank_key(1))
    faulty = FaultyStore(target.store)
    with pytest.raises(SourceChanged, match="not what the plan was made from"):
        execute(plan, source, Location(faulty, "to"))
    assert not faulty.calls["copy_part"]
    assert is_untouched(target)


def test_a_first_output_that_is_replaced_before_its_replicas_are_made(target):
    """By whoever else writes there: copies are pinned to what this run made."""
    plan, source = scenario("replicas alone")
    first = plan.outputs[0].keys[0]
    faulty = FaultyStore(target.store, Fault("copy_part", 1, lambda: target.store.put(f"to/{first}", bytes(5000))))
    with pytest.raises(SourceChanged):
        execute(plan, source, Location(faulty, "to"))
    assert stored(target) == {first: bytes(5000)}  # what others have written is not ours to remove


def test_a_shorter_part_than_was_asked_for_is_no_success(source):
    """As services do that copy what there is of a range."""

    class Short(MemoryStore):
        def copy_part(self, upload, number, offset, source, key, span, etag=None):
            return super().copy_part(upload, number, offset, source, key, replace(span, stop=span.stop - 1), etag)

    place = new_place(kind=Short)
    with pytest.raises(StorageError, match=r"expected \d+ bytes in the store, found \d+"):
        execute(plan_of(source), source, place)
    assert is_untouched(place)
