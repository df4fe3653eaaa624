"""What every executor does, wherever it runs the steps: in threads, in processes, or on other machines.

A subclass says how an executor is made. Sources and targets are local folders, and sinks can be pickled and keep
their notes in files, so that nothing here depends on the process that a step runs in.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.checkpoints import put_full, put_ranks, random_model, shards, stored
from support.conversions import planned, ranks_of

from reshard.engine.events import Event, Listener, Progress, ignore
from reshard.engine.execute import execute
from reshard.engine.executors.executor import Executor
from reshard.engine.locations import Locations
from reshard.engine.writer import CopyRefusal, PartReceipt, PartWriter
from reshard.errors import NotFound, SourceChanged
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.planning.plan import Plan, make_plan, without_copies
from reshard.planning.steps.copies import REPLICAS
from reshard.storage import LocalStore, Location, Upload
from reshard.storage.checksums import crc_of
from reshard.tensor import Layout, Strategy

LIMITS = Limits(
    concurrency=3,
    min_part_bytes=300,
    part_bytes=300,
    copy_bytes=1000,
    min_copy_source_bytes=300,
    row_bytes=1,
    read_bytes=200,
)
MODEL = random_model({f"{i}.w": ("F32", (24, 20)) for i in range(4)} | {"norm": ("F32", (12,)), "step": ("I64", ())})
ROWS, COLUMNS, NORM = Layout((2, 2), ((0,), ())), Layout((2, 2), ((), (0,))), Layout((2, 2), ((),))
# Stages of long outputs and of short ones; two replicas of each.
STAGES = Strategy(4, ({f"{i}.w": COLUMNS for i in range(4)}, {"norm": NORM}))
RANKS = Strategy(4, ({f"{i}.w": ROWS for i in range(4)} | {"norm": NORM},))


@dataclass(frozen=True)
class Work:
    """A plan, where its bytes come from and go to, and what a single conversion of it makes."""

    plan: Plan
    locations: Locations
    expected: dict[str, bytes]

    @property
    def step_ids(self) -> list[tuple[int, int]]:
        return [(group, n) for group in range(len(self.plan.groups)) for n in self.plan.group_steps(group).numbers]

    def uploads(self, *, put_small: bool = True) -> dict[str, Upload | None]:
        """Open uploads of all objects, but for those that are PUT."""
        store, found = self.locations.target.store, {}
        assert isinstance(store, LocalStore)
        for group in self.plan.groups:
            is_put = put_small and self.plan.draft.is_small(group)
            for key in (key for output in group.outputs for key in self.plan.outputs[output].keys):
                found[key] = None if is_put else store.create_upload(self.locations.target.child(key).key)
        return found

    def parts(self) -> Counter[tuple[str, int]]:
        """Every part that the steps have, by key and number."""
        return Counter(
            (key, part.number)
            for group, number in self.step_ids
            for step in [self.plan.step(group, number)]
            for part in (*step.parts, *step.copies)
            for key in self.plan.outputs[part.output].keys
        )

    def check(self, receipts: list[PartReceipt], uploads: dict[str, Upload | None]) -> None:
        """Complete all uploads with these receipts, and compare the objects with what they must be."""
        assert Counter((receipt.key, receipt.number) for receipt in receipts) == self.parts()
        store = self.locations.target.store
        assert isinstance(store, LocalStore)
        for key, upload in uploads.items():
            mine = sorted((r for r in receipts if r.key == key), key=lambda receipt: receipt.number)
            if upload is None:
                [receipt] = mine
                assert receipt.etag == store.head(self.locations.target.child(key).key).etag
            else:
                store.complete_upload(upload, [(receipt.number, receipt.etag) for receipt in mine])
            start = 0
            for receipt in mine:
                part = self.expected[key][start : start + receipt.nbytes]
                assert receipt.crc32c in (None, crc_of(part))
                start += receipt.nbytes
        assert stored(self.locations.target) == {key: self.expected[key] for key in uploads}


@dataclass(frozen=True)
class Watcher:
    """A sink that takes its time, and tells of each part the bytes that sinks hold meanwhile."""

    plan: Plan
    folder: Path
    pause_s: float = 0.002

    def keys(self, output):
        return self.plan.outputs[output].keys

    def stream(self, key, part, data, scratch):
        assert len(scratch) == self.plan.limits.read_bytes
        scratch[:] = bytes(len(scratch))
        note = self.folder / f"{key.replace('/', '-')}.{part.number}.{len(data)}.held"
        note.touch()
        time.sleep(self.pause_s)
        held = [int(path.name.split(".")[-2]) for path in self.folder.glob("*.held")]
        note.rename(note.with_suffix(".done"))
        return key, part.number, crc_of(data), sum(held), len(held)

    def copy(self, key, part):
        return key, part.number, None, 0, 0

    @property
    def done_count(self) -> int:
        return len(list(self.folder.glob("*.done")))


class Refusing(Watcher):
    """A sink for a store that copies nothing."""

    def copy(self, key, part):
        return CopyRefusal(key, part.number, part.range.nbytes, "cannot copy")


class ExecutorContract:
    """Of :class:`reshard.engine.executors.executor.Executor`."""

    def executor(
        self, plan: Plan, locations: Locations, listener: Listener = ignore
    ) -> AbstractContextManager[Executor]:
        """Make an executor for the length of a block; what it runs then stops."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Iterator[Path]:
        (tmp_path / "notes").mkdir()
        return tmp_path

    def work(self, folder: Path, *, copies: bool = False, limits: Limits = LIMITS) -> Work:
        source = Location(LocalStore(folder / "from"), "model")
        if copies:
            put_ranks(source, shards(MODEL, RANKS))
        else:
            put_full(source, {"m.safetensors": MODEL})
        target, once = Location(LocalStore(folder / "to"), "made"), Location(LocalStore(folder / "once"), "made")
        strategy, bases = (RANKS, (REPLICAS, 0)) if copies else (None, ())
        plan = planned(source, target, ranks_of(RANKS if copies else STAGES), limits, strategy, bases)
        execute(without_copies(plan), source, once)
        expected = {name: body for name, body in stored(once).items() if name != MANIFEST_KEY}
        return Work(plan, Locations([source], target), expected)

    # Right, once.

    def test_every_part_is_written_once(self, folder: Path) -> None:
        """Parts of uploads, objects that are PUT, and every replica."""
        work = self.work(folder)
        uploads = work.uploads()
        assert {upload is None for upload in uploads.values()} == {True, False}
        assert max(work.parts().values()) == 1
        with self.executor(work.plan, work.locations) as executor:
            writer = PartWriter(work.plan, uploads, work.locations)
            receipts = list(executor.run(work.plan, writer, work.step_ids))
        assert all(receipt.crc32c is not None for receipt in receipts)
        work.check(receipts, uploads)

    def test_parts_are_copied(self, folder: Path) -> None:
        work = self.work(folder, copies=True)
        assert work.plan.draft.has_copies(range(len(work.plan.outputs)))
        uploads = work.uploads()
        with self.executor(work.plan, work.locations) as executor:
            writer = PartWriter(work.plan, uploads, work.locations)
            receipts = list(executor.run(work.plan, writer, work.step_ids))
        assert {receipt.crc32c is None for receipt in receipts} == {True, False}
        work.check(receipts, uploads)

    @pytest.mark.parametrize("copies", [False, True])
    def test_steps_in_any_order(self, folder: Path, copies: bool) -> None:
        work = self.work(folder, copies=copies)
        uploads, ids = work.uploads(), work.step_ids
        random.Random(7).shuffle(ids)
        with self.executor(work.plan, work.locations) as executor:
            receipts = list(executor.run(work.plan, PartWriter(work.plan, uploads, work.locations), ids))
        work.check(receipts, uploads)

    def test_steps_one_by_one_and_by_several_executors(self, folder: Path) -> None:
        work = self.work(folder)
        uploads, receipts = work.uploads(), list[PartReceipt]()
        for ids in (work.step_ids[::2], work.step_ids[1::2]):
            with self.executor(work.plan, work.locations) as executor:
                for step_id in reversed(ids):
                    writer = PartWriter(work.plan, uploads, work.locations)
                    some = list(executor.run(work.plan, writer, [step_id]))
                    step = work.plan.step(*step_id)
                    keys = [key for part in step.parts for key in work.plan.outputs[part.output].keys]
                    assert sorted(receipt.key for receipt in some) == sorted(keys)
                    receipts += some
        work.check(receipts, uploads)

    def test_no_steps(self, folder: Path) -> None:
        work = self.work(folder)
        with self.executor(work.plan, work.locations) as executor:
            assert list(executor.run(work.plan, PartWriter(work.plan, {}, work.locations), [])) == []
        assert not stored(work.locations.target)

    def test_keys_that_the_sink_leaves_out_are_not_written(self, folder: Path) -> None:
        """Of each output one replica; steps of which no part is wanted give nothing."""
        work = self.work(folder)
        some = {output.keys[-1] for output in work.plan.outputs[1:]}
        uploads = {key: upload for key, upload in work.uploads().items() if key in some}
        with self.executor(work.plan, work.locations) as executor:
            writer = PartWriter(work.plan, uploads, work.locations)
            receipts = list(executor.run(work.plan, writer, work.step_ids))
        assert {receipt.key for receipt in receipts} == some
        assert {*stored(work.locations.target)} == {key for key, upload in uploads.items() if upload is None}

    def test_results_are_the_sinks(self, folder: Path) -> None:
        """Any sink, any result; the bytes that it sees are those of the part."""
        work = self.work(folder)
        with self.executor(work.plan, work.locations) as executor:
            results = list(executor.run(work.plan, Watcher(work.plan, folder / "notes"), work.step_ids))
        assert Counter((key, number) for key, number, *_ in results) == work.parts()
        crcs = {(key, number): crc for key, number, crc, *_ in results}
        for group, number in work.step_ids:
            for part in work.plan.step(group, number).parts:
                for key in work.plan.outputs[part.output].keys:
                    assert crcs[key, part.number] == crc_of(work.expected[key][part.range.start : part.range.stop])

    def test_another_plan_after_the_first(self, folder: Path) -> None:
        """As when the store turns out not to copy: other limits, other steps, the same objects."""
        work = self.work(folder, copies=True)
        streamed = replace(work, plan=without_copies(work.plan))
        with self.executor(work.plan, work.locations) as executor:
            for each in (work, streamed):
                uploads = each.uploads()
                writer = PartWriter(each.plan, uploads, each.locations)
                each.check(list(executor.run(each.plan, writer, each.step_ids)), uploads)

    # Memory.

    @pytest.mark.parametrize("part_bytes", [300, 2000])
    def test_parts_in_flight_fit_the_memory_of_the_plan(self, folder: Path, part_bytes: int) -> None:
        roomy = self.work(folder, limits=replace(LIMITS, part_bytes=part_bytes))
        largest = max(roomy.plan.step(group, number).nbytes for group, number in roomy.step_ids)
        processes = roomy.plan.limits.process_count
        least = processes * (roomy.plan.buffers.fixed_bytes + 2 * largest)
        plan = make_plan(roomy.plan.conversion, replace(roomy.plan.limits, memory_bytes=least))
        work = replace(roomy, plan=plan)
        with self.executor(plan, work.locations) as executor:
            results = list(executor.run(plan, Watcher(plan, folder / "notes"), work.step_ids))
        held = [nbytes for *_, nbytes, _ in results]
        assert max(held) <= plan.cost.peak_bytes - processes * plan.buffers.fixed_bytes
        assert plan.cost.peak_bytes <= least
        assert max(count for *_, count in results) > 1, "several at once"
        assert Counter((key, number) for key, number, *_ in results) == work.parts()

    # Failures.

    def test_a_source_that_changed(self, folder: Path) -> None:
        work = self.work(folder)
        put_full(work.locations.sources[0], {"m.safetensors": MODEL})
        with (
            pytest.raises(SourceChanged, match=r"m\.safetensors"),
            self.executor(work.plan, work.locations) as executor,
        ):
            list(executor.run(work.plan, Watcher(work.plan, folder / "notes"), work.step_ids))

    def test_an_upload_that_is_gone(self, folder: Path) -> None:
        work = self.work(folder)
        uploads = work.uploads()
        upload = next(upload for upload in uploads.values() if upload)
        work.locations.target.store.abort_upload(upload)
        writer = PartWriter(work.plan, uploads, work.locations)
        with pytest.raises(NotFound, match="rank_0"), self.executor(work.plan, work.locations) as executor:
            list(executor.run(work.plan, writer, work.step_ids))

    def test_a_failure_stops_the_rest(self, folder: Path) -> None:
        work = self.work(folder)
        put_full(work.locations.sources[0], {"m.safetensors": MODEL})
        sink = Watcher(work.plan, folder / "notes", pause_s=0.05)
        with pytest.raises(SourceChanged), self.executor(work.plan, work.locations) as executor:
            list(executor.run(work.plan, sink, work.step_ids))
        done = sink.done_count
        assert done < sum(work.parts().values())
        time.sleep(0.2)
        assert sink.done_count == done, "nothing runs any more"

    def test_leaving_in_the_middle_stops_the_rest(self, folder: Path) -> None:
        work = self.work(folder)
        sink = Watcher(work.plan, folder / "notes", pause_s=0.05)

        def leave() -> None:
            with self.executor(work.plan, work.locations) as executor:
                for _ in executor.run(work.plan, sink, work.step_ids):
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            leave()
        done = sink.done_count
        assert 0 < done < sum(work.parts().values())
        time.sleep(0.2)
        assert sink.done_count == done, "nothing runs any more"

    def test_a_refused_copy_is_a_result(self, folder: Path) -> None:
        """What the sink makes of a part is not for the executor to judge: the other parts are written."""
        work = self.work(folder, copies=True)
        with self.executor(work.plan, work.locations) as executor:
            results = list(executor.run(work.plan, Refusing(work.plan, folder / "notes"), work.step_ids))
        refused = [result for result in results if isinstance(result, CopyRefusal)]
        copied = sum(len(work.plan.step(*step_id).copies) for step_id in work.step_ids)
        assert len(refused) == 2 * copied, "every copy, for both replicas"
        assert len(results) == sum(work.parts().values())

    # Events.

    def test_progress_ends_at_what_was_planned(self, folder: Path) -> None:
        events: list[Event] = []
        work = self.work(folder)
        with self.executor(work.plan, work.locations, events.append) as executor:
            results = executor.run(work.plan, Watcher(work.plan, folder / "notes"), work.step_ids)
            assert sum(1 for _ in results) == sum(work.parts().values())
        told = [event for event in events if isinstance(event, Progress)]
        assert all(0 <= event.writing <= work.plan.limits.request_count for event in told)
        assert all(0 <= event.reading <= work.plan.limits.request_count for event in told)
        last, cost = told[-1], work.plan.cost
        assert (last.reading, last.writing) == (0, 0)
        assert (last.read_bytes, last.written_bytes) == (cost.read_bytes, cost.written_bytes)
        assert (last.total_read_bytes, last.total_written_bytes) == (cost.read_bytes, cost.written_bytes)
