"""Two passes through zarr make the same bytes as one, leave nothing behind, and can be begun at the second."""

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.numpy import save
from support.checkpoints import stored
from support.planning import plan_for, without_staging
from support.recording_store import recording

import reshard
from reshard.errors import Denied, FormatError, TargetExists, Unsupported, UsageError
from reshard.planning.plan import StagingMode, make_plan
from reshard.planning.plan_json import decode_plan, encode_plan, plan_to_json
from reshard.planning.staging import staged_plan
from reshard.storage import Location, MemoryStore, open_location
from reshard.tensor import ByteRange

WIDE = (2048, 2048)
LAYOUT = b"""
axes: {mp: 64}
rules:
  - {match: "*.inner", split: [null, mp]}
  - {match: "*.middle", split: [null, mp, null]}
  - {match: "*.outer", optional: true, split: [mp]}
  - {match: "*", split: []}
"""


@pytest.fixture
def lab():
    store = MemoryStore("staging")
    store.clear()
    numbers = np.random.default_rng(0)
    tensors = {
        "a.inner": numbers.integers(0, 1 << 16, WIDE, np.uint16),
        "b.middle": numbers.integers(0, 1 << 8, (3, 128, 96), np.uint8),
        "c.outer": numbers.integers(0, 1 << 16, (64, 500), np.uint16),
        "d": np.arange(7, dtype=np.float32),
    }
    store.put("src/model.safetensors", save(tensors))
    store.put("l.yaml", LAYOUT)
    yield store
    store.clear()


def planned(dst, **options):
    options = {"memory": "8MiB", "concurrency": 1, "copy": "never"} | options
    return reshard.plan(
        "memory://staging/src", f"memory://staging/{dst}", dst_layout="memory://staging/l.yaml", **options
    )


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Outputs of some KiB have several parts."""
    monkeypatch.setattr("reshard.storage.memory_store.MemoryStore.limits", small_limits())


def small_limits():
    from reshard.storage import StoreLimits

    return property(lambda _store: StoreLimits(min_part_bytes=200_000, min_copy_source_bytes=1))


def outputs(place):
    """What is at a place, but the manifest."""
    found = stored(Location(MemoryStore("staging"), place))
    return {name: body for name, body in found.items() if not name.endswith("manifest.json")}


def staged_objects():
    return stored(Location(MemoryStore("staging"), "two.staging"))


@pytest.mark.parametrize("copy", ["never", "auto"])
def test_the_same_bytes_in_two_passes(lab, copy):
    streamed, staged = planned("one", staging="never"), planned("two", staging="always", copy=copy)
    assert streamed.staging is None
    assert {entry.spec.name for entry in staged.staging.catalog.entries} == {"a.inner", "b.middle"}
    assert any("staged" in note for note in staged.notes)
    for each in (streamed, staged):
        reshard.convert(plan=each)
    assert outputs("one") == outputs("two")
    assert len(outputs("one")) == 64
    assert not staged_objects(), "nothing staged is left"
    report = reshard.verify("memory://staging/two")
    assert report.is_ok
    assert report.checked_bytes == report.total_bytes


def test_it_is_chosen_where_it_is_cheaper(lab):
    """Requests count for little here, as they do where tensors are large."""
    mode = StagingMode("memory://staging/two.staging", is_near=False)

    def made(memory_bytes):
        plan = planned("two", staging="never")
        limits = replace(plan.limits, memory_bytes=memory_bytes, max_gap_bytes=5000, read_bytes=1 << 20)
        return plan_for(plan.catalog, plan.conversion.target, plan.conversion.target_url, limits)

    roomy, tight = made(512 << 20), made(3 << 20)
    assert staged_plan(roomy, mode) is roomy
    assert tight.cost.read_bytes > 3 * roomy.cost.read_bytes
    staged = staged_plan(tight, mode)
    assert staged.cost.read_bytes + staged.staging.cost.read_bytes < tight.cost.read_bytes / 2
    assert max(staged.cost.peak_bytes, staged.staging.cost.peak_bytes) <= 3 << 20
    reshard.convert(plan=staged)
    reshard.convert(plan=planned("one", staging="never"))
    assert outputs("one") == outputs("two")


def test_tensors_that_are_copied_whole_are_left_alone(lab):
    """Cut across their rows, but in runs as long as parts; the first of them is glued to what is streamed."""
    numbers = np.random.default_rng(1)
    slabs = {f"e{i}.middle": numbers.integers(0, 256, (2, 64, 210_000), np.uint8) for i in range(2)}
    inner = numbers.integers(0, 1 << 16, WIDE, np.uint16)
    lab.put("src/model.safetensors", save({"a.inner": inner, **slabs}))
    wished = planned("slabs", staging="never", copy="auto")
    limits = replace(wished.limits, memory_bytes=3 << 20, max_gap_bytes=5000, read_bytes=1 << 20)
    tight = make_plan(wished.conversion, limits, wished.copy_bases)
    assert tight.cost.copied_bytes >= 64 * 2 * 210_000
    plan = staged_plan(tight, StagingMode("memory://staging/two.staging", is_near=False))
    assert plan.staging is not None
    assert [entry.spec.name for entry in plan.staging.catalog.entries] == ["a.inner"]
    reshard.convert(plan=plan)
    assert reshard.verify("memory://staging/slabs").is_ok


def test_a_saved_plan_keeps_its_first_pass(lab):
    plan = planned("two", staging="always")
    again = decode_plan(encode_plan(plan), "plan")
    assert again == plan
    reshard.convert(plan=again)
    reshard.convert(plan=planned("one", staging="never"))
    assert outputs("one") == outputs("two")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("mode", "url"), "memory://elsewhere"),
        (("target",), {"kind": "tree", "container": "safetensors"}),
        (("target", "chunk_shapes"), {}),
        (("limits", "row_bytes"), 1),
        (("note",), "other"),
    ],
)
def test_an_altered_first_pass_is_refused(lab, path, value):
    body = plan_to_json(planned("two", staging="always"))
    holder = body["staging"]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(FormatError):
        decode_plan(json.dumps(body).encode(), "plan")


def test_what_is_kept_is_used_again(lab, monkeypatch):
    plan = planned("two", staging="always")
    reshard.convert(plan=plan, keep_staging=True)
    assert len(staged_objects()) > len(plan.staging.outputs)
    before = {info.key: info.etag for info in open_location("memory://staging/two.staging").objects()}
    reshard.convert(plan=plan, overwrite=True, keep_staging=True)
    after = {info.key: info.etag for info in open_location("memory://staging/two.staging").objects()}
    assert before == after, "nothing is written anew"
    # A chunk that is another's: all is written anew.
    chunk = plan.staging.outputs[0]
    lab.put(open_location(plan.staging.conversion.target_url).child(chunk.keys[0]).key, bytes(chunk.nbytes))
    reshard.convert(plan=plan, overwrite=True)
    reshard.convert(plan=planned("one", staging="never"))
    assert outputs("one") == outputs("two")
    assert not staged_objects()


def test_other_objects_are_neither_replaced_nor_removed(lab):
    plan = planned("two", staging="always")
    place = open_location(plan.staging.conversion.target_url)
    before = {"two.staging/zarr.json": b"{}", place.child("w/c/0").key: b"another's"}
    for key, body in before.items():
        lab.put(key, body)
    with pytest.raises(TargetExists, match="no staging has written") as refusal:
        reshard.convert(plan=plan)
    assert refusal.value.problems == ("w/c/0",)
    assert {key: lab.read(key, ByteRange(0, len(body))) for key, body in before.items()} == before
    assert not outputs("two")


def test_nothing_is_staged_for_a_target_that_is_refused(lab):
    plan = planned("two", staging="always")
    reshard.convert(plan=plan, keep_staging=True)
    before = staged_objects()
    with pytest.raises(TargetExists):
        reshard.convert(plan=plan, if_exists="fail")
    assert staged_objects() == before


def test_a_finished_conversion_is_no_failure_if_chunks_stay(lab, monkeypatch):
    plan, events, delete = planned("two", staging="always"), [], MemoryStore.delete

    def refused(store, key):
        if ".staging" in key and key.endswith("/c/0/0"):
            raise Denied("not allowed")
        delete(store, key)

    monkeypatch.setattr(MemoryStore, "delete", refused)
    reshard.convert(plan=plan, on_event=events.append)
    assert any(isinstance(event, reshard.Noted) and "not allowed" in event.text for event in events)
    assert reshard.verify("memory://staging/two").is_ok


def test_what_a_killed_run_left_is_replaced(lab):
    plan = planned("two", staging="always")
    lab.put(open_location(plan.staging.conversion.target_url).child(plan.staging.outputs[3].keys[0]).key, b"half")
    reshard.convert(plan=plan)
    assert reshard.verify("memory://staging/two").is_ok
    assert not staged_objects()


def test_nothing_is_left_by_a_second_pass_that_fails(lab, monkeypatch):
    plan = planned("two", staging="always")
    put = MemoryStore.put

    def failing(store, key, body, checksum=None, replaces=None):
        if key.startswith("two/"):
            raise RuntimeError("made up")
        return put(store, key, body, checksum, replaces)

    monkeypatch.setattr(MemoryStore, "put", failing)
    monkeypatch.setattr(MemoryStore, "create_upload", lambda store, key, *, is_checked: failing(store, key, b""))
    with pytest.raises(RuntimeError, match="made up"):
        reshard.convert(plan=plan, on_failure="undo")
    assert not outputs("two")
    assert not staged_objects()


def test_chunks_are_kept_for_the_next_run_if_the_second_pass_fails(lab, monkeypatch):
    plan = planned("two", staging="always")
    put = MemoryStore.put

    def failing(store, key, body, checksum=None, replaces=None):
        if key.startswith("two/rank"):
            raise RuntimeError("made up")
        return put(store, key, body, checksum, replaces)

    with monkeypatch.context() as context:
        context.setattr(MemoryStore, "put", failing)
        context.setattr(MemoryStore, "create_upload", lambda store, key: failing(store, key, b""))
        with pytest.raises(RuntimeError, match="made up"):
            reshard.convert(plan=plan)
    kept = staged_objects()
    assert kept
    for name in ("reshard-run.0123456789abcdef.000002.json", "reshard-run.json"):  # killed while it removed these
        lab.put(open_location(plan.staging.conversion.target_url).child(name).key, b"{}")
    reshard.convert(plan=plan)
    assert reshard.verify("memory://staging/two").is_ok
    assert not staged_objects()


def test_without_staging_it_is_the_plan_of_one_pass(lab):
    streamed, staged = planned("two", staging="never"), planned("two", staging="always")
    back = without_staging(staged)
    assert (back.catalog, back.groups, back.cost) == (streamed.catalog, streamed.groups, streamed.cost)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"staging": "sometimes"}, "expected auto, never or always"),
        ({"staging": "never", "staging_url": "memory://staging/x"}, "staging='never' is given"),
        ({"staging_url": "memory://staging/two/x"}, "not apart"),
        ({"staging_url": "memory://staging/src"}, "the source's objects"),
        ({"staging_url": "memory://staging"}, "not apart"),
    ],
)
def test_places_that_are_refused(lab, options, told):
    with pytest.raises(UsageError, match=told):
        planned("two", **options)


def test_another_place(lab):
    plan = planned("two", staging="always", staging_url="memory://elsewhere/chunks")
    assert plan.catalog.others[-1] == plan.staging.conversion.target_url
    assert plan.staging.conversion.target_url.startswith("memory://elsewhere/chunks/reshard-staging-")
    reshard.convert(plan=plan)
    assert reshard.verify("memory://staging/two").is_ok


# What it comes to, and how its outputs are made.


def test_what_was_estimated_is_what_both_passes_ask(lab, monkeypatch):
    from reshard.api import statements

    plan, opened = planned("two", staging="always", copy="auto"), []

    def counting(before):
        def opening(url):
            place = before(url)
            opened.append(recording(place.store))
            return Location(opened[-1], place.key)

        return opening

    for name in ("open_source", "open_target"):
        monkeypatch.setattr(statements, name, counting(getattr(statements, name)))
    monkeypatch.setattr("reshard.engine.session.FRESH_S", 1e9)  # else a slow machine looks at claims more often
    reshard.convert(plan=plan)
    asked = sum((store.figures.requests for store in opened), Counter())
    estimated = asdict(reshard.estimate(plan).requests)
    kinds = {"open": "create", "complete": "complete"}
    assert {kind: asked[kinds.get(kind, kind)] for kind in estimated} == estimated


def test_an_estimate_is_of_both_passes(lab):
    plan = planned("two", staging="always")
    found, first = reshard.estimate(plan), reshard.estimate(plan.staging)
    assert found.cost.read_bytes == plan.cost.read_bytes + plan.staging.cost.read_bytes
    assert found.cost.written_bytes == plan.cost.written_bytes + plan.staging.cost.written_bytes
    assert found.cost.peak_bytes == max(plan.cost.peak_bytes, plan.staging.cost.peak_bytes)
    assert found.time.seconds > found.staged.time.seconds > first.time.seconds, "chunks are removed too"
    assert found.requests.get == plan.cost.get_count + found.staged.requests.get
    assert found.staged.cost == plan.staging.cost
    body = json.loads(json.dumps(found.to_json()))
    assert body["staged"]["cost"]["read_bytes"] == plan.staging.cost.read_bytes
    assert reshard.estimate(planned("one", staging="never")).staged is None


def test_each_store_is_paid_for_its_part(lab):
    """Chunks are written to and read from a third store; their bytes leave that one."""
    plan = planned("two", staging="always")
    found = reshard.estimate(plan, price_table="aws-us-east-1", egress="internet")
    source, target, staging = found.bills
    assert [bill.side for bill in found.bills] == ["source", "target", "staging"]
    gib, chunks = 1 << 30, plan.staging.catalog.nbytes
    assert source.egress + staging.egress == pytest.approx(found.cost.read_bytes / gib * 0.09)
    assert staging.egress >= chunks / gib * 0.09
    assert source.egress >= plan.staging.cost.read_bytes / gib * 0.09
    assert staging.storage_month == 0
    assert target.storage_month > 0
    counts = found.requests
    paid = (counts.get + counts.head) * 0.0004 + (counts.put + counts.part + 2 * counts.open + counts.list) * 0.005
    assert sum(bill.requests for bill in found.bills) == pytest.approx(paid / 1000)


def test_an_output_is_told_to_be_made_of_chunks(lab):
    plan = planned("two", staging="always")
    found = reshard.explain(plan, "rank_3/checkpoint_3.safetensors")
    base, chunks = len(plan.catalog.others), {output.keys[0] for output in plan.staging.outputs}
    taken = [one for part in found.parts for one in part.sources]
    assert {one.is_staged for one in taken} == {True, False}
    assert all(one.is_staged == (one.base == base) == (one.object in chunks) for one in taken)
    assert [staged.name for staged in found.staged] == ["a.inner", "b.middle"]
    wide = found.staged[0]
    assert (wide.shape, wide.url) == (WIDE, plan.staging.conversion.target_url)
    assert wide.chunk_shape == plan.staging.conversion.target.chunk_shapes["a.inner"]
    assert 0 < wide.taken_count <= wide.chunk_count
    assert wide.taken_count == len({one.object for one in taken if one.object.startswith("a.inner/")})
    assert [one.object for one in wide.sources] == ["model.safetensors"]
    nbytes = wide.taken_count * wide.chunk_shape[0] * wide.chunk_shape[1] * 2
    assert wide.copied_bytes + wide.streamed_bytes == pytest.approx(nbytes, rel=0.1)


def test_a_tensor_is_told_to_be_made_of_chunks(lab):
    plan = planned("two", staging="always")
    [staged] = reshard.explain(plan, "b.middle").staged
    assert staged.taken_count == staged.chunk_count
    assert staged.streamed_bytes == sum(one.nbytes for one in staged.sources) == 3 * 128 * 96
    assert not reshard.explain(plan, "c.outer").staged


def test_a_chunk_is_told_how_it_is_made(lab):
    plan = planned("two", staging="always")
    key = plan.staging.outputs[0].keys[0]
    chunk = reshard.explain(plan, key)
    assert chunk.is_chunk
    assert {one.object for part in chunk.parts for one in part.sources} == {"model.safetensors"}
    with pytest.raises(UsageError, match="no object and no tensor"):
        reshard.explain(planned("one", staging="never"), key)


# A store that turns out not to copy.


def test_chunks_kept_by_a_run_that_could_not_copy_are_used_again(lab, monkeypatch):
    def refused(*_):
        raise Unsupported("made up")

    plan, events = planned("two", staging="always", copy="auto"), []
    assert plan.staging.cost.copied_bytes, "or there is nothing to refuse"
    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "copy_part", refused)
        reshard.convert(plan=plan, keep_staging=True, on_event=events.append)
    assert any("streamed instead" in event.text for event in events if isinstance(event, reshard.Noted))
    before = {info.key: info.etag for info in open_location("memory://staging/two.staging").objects()}
    reshard.convert(plan=plan, overwrite=True, keep_staging=True)
    after = {info.key: info.etag for info in open_location("memory://staging/two.staging").objects()}
    assert before == after, "nothing is written anew"
    reshard.convert(plan=planned("one", staging="never"))
    assert outputs("one") == outputs("two")


def test_chunks_that_cannot_be_removed_after_a_failure_are_told(lab, monkeypatch):
    plan = planned("two", staging="always")
    put, delete = MemoryStore.put, MemoryStore.delete

    def failing(store, key, body, checksum=None, replaces=None):
        if key.startswith("two/"):
            raise Denied("made up")
        return put(store, key, body, checksum, replaces)

    def refused(store, key):
        if key.endswith("/c/0/0"):
            raise Denied("not allowed")
        delete(store, key)

    monkeypatch.setattr(MemoryStore, "put", failing)
    monkeypatch.setattr(MemoryStore, "create_upload", lambda store, key, *, is_checked: failing(store, key, b""))
    monkeypatch.setattr(MemoryStore, "delete", refused)
    with pytest.raises(Denied, match="made up") as failure:
        reshard.convert(plan=plan, on_failure="undo")
    assert any("a.inner/c/0/0" in problem and "not allowed" in problem for problem in failure.value.problems)
