"""Verification: whatever is wrong with an output is found and named."""

from dataclasses import replace

import pytest
from support.checkpoints import put_full, random_model, rank_key, shards, stored
from support.checkpoints import put_ranks as put_shards
from support.conversions import convert, ranks_of
from support.recording_store import RecordingStore

from reshard.engine.events import PhaseStarted, Progress
from reshard.engine.verification import Subset, verify_manifest
from reshard.errors import SourceChanged, UsageError
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.planning.plan_json import conversion_id
from reshard.planning.targets.full_target import FullTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import Layout, Strategy

LIMITS = Limits(concurrency=3, min_part_bytes=300, part_bytes=300, row_bytes=1, read_bytes=70)
MODEL = random_model({"embed": ("F32", (24, 4)), "norm": ("F32", (3,)), "head": ("BF16", (6, 2))})
STAGES = Strategy(
    2,
    (
        {"embed": Layout((2,), ((), (0,))), "norm": Layout((2,), ((),))},
        {"head": Layout((2,), ((0,), ()))},
    ),
)
FULL = FullTarget("m-{part}.safetensors", "m.safetensors", "m.index.json", "pt", 100)


class Done:
    """A finished conversion that can be spoilt."""

    def __init__(self, wished=None, strategy=None):
        self.source = Location(MemoryStore(), "from")
        self.target = Location(MemoryStore(limits=StoreLimits(min_part_bytes=300)), "to")
        if strategy:
            put_shards(self.source, shards(MODEL, strategy))
        else:
            put_full(self.source, {"model.safetensors": MODEL})
        self.plan, self.manifest = convert(self.source, self.target, wished or ranks_of(STAGES), LIMITS, strategy)
        self.outputs = {name: body for name, body in stored(self.target).items() if name != MANIFEST_KEY}

    def verify(self, subset="1/1", **options):
        return verify_manifest(self.manifest, self.source, self.target, subset=Subset.parse(subset), **options)

    def put(self, name, body):
        self.target.store.put(self.target.child(name).key, body)

    def tensor_at(self, name, byte):
        """Which tensor a byte of an output belongs to; none in the header."""
        output = next((output for output in self.plan.outputs if name in output.keys), None)
        found = [e.slot for e in output.frame.extents if e.start <= byte < e.stop] if output else []
        return output.specs[found[0]].name if found else None


@pytest.mark.parametrize(("wished", "strategy"), [(None, None), (FULL, STAGES)], ids=["ranks", "full"])
def test_what_was_converted_is_right(wished, strategy):
    done = Done(wished, strategy)
    report = done.verify()
    assert report.is_ok
    assert report.problems == ()
    assert report.conversion_id == conversion_id(done.plan.conversion)
    nbytes = sum(map(len, done.outputs.values()))
    assert (report.checked_bytes, report.total_bytes, report.object_count) == (nbytes, nbytes, len(done.outputs))


def test_any_flipped_byte_is_found_and_named():
    done = Done()
    flipped = 0
    for name, body in done.outputs.items():
        for byte in range(0, len(body), 3):
            done.put(name, body[:byte] + bytes([body[byte] ^ 0x80]) + body[byte + 1 :])
            report = done.verify()
            assert not report.is_ok
            [problem] = report.problems
            tensor = done.tensor_at(name, byte)
            place = f"in tensor {tensor}, its byte" if tensor else "in the header"
            assert f"{done.target.child(name).url}: byte {byte} differs ({place}" in problem
            flipped += 1
        done.put(name, body)
    assert flipped > 300
    assert done.verify().is_ok


def test_the_first_and_the_last_byte_of_every_tensor():
    done = Done()
    for output in done.plan.outputs:
        name = output.keys[0]
        body = done.outputs[name]
        for extent in output.frame.extents:
            for byte in (extent.start, extent.stop - 1):
                done.put(name, body[:byte] + bytes([body[byte] ^ 1]) + body[byte + 1 :])
                [problem] = done.verify().problems
                assert f"in tensor {output.specs[extent.slot].name}, its byte {byte - extent.start})" in problem
        done.put(name, body)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_output(length):
    done = Done()
    name = rank_key(1)
    done.put(name, done.outputs[name][:length])
    [problem] = done.verify().problems
    assert problem == (
        f"{done.target.child(name).url}: expected {len(done.outputs[name])} bytes, "
        f"found {len(done.outputs[name][:length])}"
    )


def test_a_longer_output():
    done = Done()
    name = rank_key(2)
    done.put(name, done.outputs[name] + b"x")
    [problem] = done.verify().problems
    assert "expected" in problem


def test_a_deleted_output():
    done = Done()
    done.target.store.delete(done.target.child(rank_key(3)).key)
    [problem] = done.verify().problems
    assert problem == (
        f"{done.target.child(rank_key(3)).url}: expected {len(done.outputs[rank_key(3)])} bytes, the object is gone"
    )


def test_swapped_outputs():
    """Both are as long as they should be and sound in themselves."""
    done = Done()
    done.put(rank_key(0), done.outputs[rank_key(1)])
    done.put(rank_key(1), done.outputs[rank_key(0)])
    problems = done.verify().problems
    assert {name for name in (rank_key(0), rank_key(1)) if any(name in problem for problem in problems)} == {
        rank_key(0),
        rank_key(1),
    }
    assert all("in tensor embed" in problem for problem in problems)


def test_everything_wrong_is_told():
    done = Done()
    done.target.store.delete(done.target.child(rank_key(0)).key)
    done.put(rank_key(1), b"")
    for rank in (2, 3):
        done.put(rank_key(rank), bytes(len(done.outputs[rank_key(rank)])))
    problems = done.verify().problems
    assert len(problems) == 4
    assert all(any(rank_key(rank) in problem for problem in problems) for rank in range(4))


def test_a_replica_is_compared_as_well():
    done = Done(ranks_of(Strategy(4, ({"embed": Layout((2, 2), ((0,), ()))},))))
    body = done.outputs[rank_key(2)]
    assert body == done.outputs[rank_key(0)]
    done.put(rank_key(2), body[:-1] + bytes([body[-1] ^ 1]))
    [problem] = done.verify().problems
    assert rank_key(2) in problem


@pytest.mark.parametrize("spoil", [lambda body: body.replace(b"weight_map", b"weight_mop"), lambda body: body[:-1]])
def test_a_spoilt_index(spoil):
    done = Done(FULL, STAGES)
    done.put("m.index.json", spoil(done.outputs["m.index.json"]))
    [problem] = done.verify().problems
    assert "m.index.json" in problem


def test_a_missing_index():
    done = Done(FULL, STAGES)
    done.target.store.delete("to/m.index.json")
    [problem] = done.verify().problems
    assert "m.index.json" in problem
    assert "gone" in problem


# Parts of the work.


@pytest.mark.parametrize("of", [1, 2, 3, 7, 50])
@pytest.mark.parametrize(("wished", "strategy"), [(None, None), (FULL, STAGES)], ids=["ranks", "full"])
def test_subsets_share_the_work_out(wished, strategy, of):
    done = Done(wished, strategy)
    reports = [done.verify(f"{number}/{of}") for number in range(1, of + 1)]
    assert all(report.is_ok for report in reports)
    documents = sum(len(document.data) for document in done.plan.conversion.documents)
    checked = [report.checked_bytes - documents for report in reports]  # those are few, and compared each time
    assert sum(checked) == reports[0].total_bytes - documents
    counted = Location(RecordingStore(done.source.store), "from")
    verify_manifest(done.manifest, counted, done.target, subset=Subset(1, of))
    assert counted.store.figures.read_bytes <= done.plan.cost.read_bytes
    if of == 50:
        assert counted.store.figures.read_bytes < done.plan.cost.read_bytes


def test_a_flipped_byte_is_in_one_subset():
    done = Done()
    name = rank_key(1)
    body = done.outputs[name]
    for byte in range(0, len(body), 37):
        done.put(name, body[:byte] + bytes([body[byte] ^ 1]) + body[byte + 1 :])
        assert sum(not done.verify(f"{number}/3").is_ok for number in (1, 2, 3)) == 1


def test_subsets_are_counted_from_the_first_step():
    done = Done()
    name = done.plan.outputs[done.plan.groups[0].outputs[0]].keys[0]
    done.put(name, b"x" + done.outputs[name][1:])
    assert [done.verify(f"{number}/2").is_ok for number in (1, 2)] == [False, True]


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/3/5", "1.0/3", " 1/3", "²/3"])
def test_what_is_no_subset(text):
    with pytest.raises(UsageError, match="expected n/t"):
        Subset.parse(text)


# The source.


def test_a_source_that_changed():
    done = Done()
    done.source.store.put("from/model.safetensors", stored(done.source)["model.safetensors"])
    with pytest.raises(SourceChanged, match="not what the plan was made from"):
        done.verify()


def test_a_source_that_is_gone():
    done = Done()
    done.source.store.clear()
    with pytest.raises(SourceChanged, match="not what the plan was made from") as caught:
        done.verify()
    assert "gone" in str(caught.value)


def test_nothing_is_written():
    done = Done()
    source, target = (Location(RecordingStore(place.store), place.key) for place in (done.source, done.target))
    assert verify_manifest(done.manifest, source, target).is_ok
    for place in (source, target):
        assert set(place.store.figures.requests) <= {"get", "head"}


def test_both_sides_are_read_once():
    done = Done()
    source, target = (Location(RecordingStore(place.store), place.key) for place in (done.source, done.target))
    verify_manifest(done.manifest, source, target)
    assert source.store.figures.read_bytes == done.plan.cost.read_bytes
    assert target.store.figures.read_bytes == sum(map(len, done.outputs.values()))


def test_progress_is_told():
    done, events = Done(), []
    done.verify(listener=events.append)
    assert events[0] == PhaseStarted("verify")
    last = events[-1]
    assert isinstance(last, Progress)
    assert (last.read_bytes, last.written_bytes) == (done.plan.cost.read_bytes, done.plan.cost.written_bytes)


def test_the_manifests_lengths_count():
    """An object that is shorter than the record says is told, even if it is what the plan says."""
    done = Done()
    [first, *rest] = done.manifest.receipts
    done.manifest = replace(done.manifest, receipts=(replace(first, nbytes=first.nbytes + 1), *rest))
    assert not done.verify().is_ok
