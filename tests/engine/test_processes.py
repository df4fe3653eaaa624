"""The executor of processes: forked, and started anew."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from engine.executor_contract import LIMITS, ExecutorContract, Watcher

from reshard.engine import verification
from reshard.engine.digest import ReadLedger
from reshard.engine.events import Noted, ignore
from reshard.engine.execute import execute
from reshard.engine.executors import local_crew as crews
from reshard.engine.executors.choose import choose_executor, core_count, crew_for
from reshard.engine.executors.local_crew import started
from reshard.engine.executors.processes import ProcessExecutor
from reshard.engine.executors.threads import ThreadExecutor
from reshard.engine.locations import Locations
from reshard.engine.meter import Meter
from reshard.engine.verification import verify_manifest
from reshard.engine.workers import working
from reshard.engine.writer import PartWriter
from reshard.errors import FormatError, OverBudget, ReshardError, StorageError
from reshard.planning.plan import make_plan
from reshard.storage import WATCH_THREAD, KeptChecksum, LocalStore, Location, MemoryStore
from reshard.storage.checksums import crc_of

CAN_FORK = crews._can_fork


@pytest.fixture(autouse=True)
def _forks(monkeypatch):
    """Whatever threads of its own the program has that runs the tests."""
    monkeypatch.setattr(crews, "_can_fork", lambda: True)


def for_two(work):
    """The same work for two processes, each with the memory that one had."""
    limits = replace(LIMITS, process_count=2, memory_bytes=2 * LIMITS.memory_bytes)
    limits = replace(limits, part_bytes=work.plan.limits.part_bytes)
    return replace(work, plan=make_plan(work.plan.conversion, limits, work.plan.copy_bases))


@contextmanager
def executing(plan, locations, listener=ignore, ledger=None):
    with started(2) as crew, working(plan.limits.concurrency, *locations.stores) as workers:
        yield ProcessExecutor(crew, locations, workers, Meter(plan.cost, listener), ledger)


class TestForkedProcesses(ExecutorContract):
    def work(self, folder, **kwargs):
        return for_two(super().work(folder, **kwargs))

    def executor(self, plan, locations, listener=ignore):
        return executing(plan, locations, listener)


@pytest.mark.parametrize(
    "name",
    ["test_every_part_is_written_once", "test_a_source_that_changed", "test_leaving_in_the_middle_stops_the_rest"],
)
def test_new_interpreters_do_the_same(tmp_path, monkeypatch, name):
    monkeypatch.setattr(crews, "_can_fork", lambda: False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # they import sinks of this module
    (tmp_path / "notes").mkdir()
    getattr(TestForkedProcesses(), name)(tmp_path)


@pytest.fixture
def work(tmp_path):
    (tmp_path / "notes").mkdir()
    return for_two(ExecutorContract().work(tmp_path))


@dataclass(frozen=True)
class Telling(Watcher):
    """A sink whose results say which process has made them, and that may wait for a file to be there."""

    gate: str = ""

    def stream(self, key, part, data, scratch):
        while self.gate and not (self.folder / self.gate).exists():
            time.sleep(0.01)
        time.sleep(0.01)
        return key, part.number, crc_of(data), os.getpid()


@dataclass(frozen=True)
class Deadly(Telling):
    """A sink that kills the process which takes a certain part, the first time or always."""

    always: bool = False

    def stream(self, key, part, data, scratch):
        victim = self.folder / "victim"
        if self.always or (part.number == 2 and not victim.exists()):
            victim.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().stream(key, part, data, scratch)


def test_both_processes_work_and_this_one_does_not(work, tmp_path):
    with executing(work.plan, work.locations) as executor:
        results = list(executor.run(work.plan, Telling(work.plan, tmp_path / "notes"), work.step_ids))
        members = {member.pid for member in executor.crew.members}
    assert {pid for *_, pid in results} == members
    assert not any(psutil.pid_exists(pid) for pid in members)


def test_the_steps_of_a_killed_process_are_done_by_the_other(work, tmp_path):
    events = []
    with executing(work.plan, work.locations, events.append) as executor:
        results = list(executor.run(work.plan, Deadly(work.plan, tmp_path / "notes"), work.step_ids))
    assert Counter((key, number) for key, number, *_ in results) == work.parts()
    [note] = [event.text for event in events if isinstance(event, Noted)]
    assert "was ended by signal 9" in note


def test_a_receipt_is_given_once_although_a_process_is_killed(work, tmp_path):
    uploads = work.uploads()
    with executing(work.plan, work.locations) as executor:
        receipts = []
        for receipt in executor.run(work.plan, PartWriter(work.plan, uploads, work.locations), work.step_ids):
            receipts.append(receipt)
            if len(receipts) == 1:
                os.kill(executor.crew.members[0].pid, signal.SIGKILL)
    work.check(receipts, uploads)


def test_no_process_is_left(work, tmp_path):
    sink = Deadly(work.plan, tmp_path / "notes", always=True)
    with (
        pytest.raises(ReshardError, match="ended by signal 9, and no other is left"),
        executing(work.plan, work.locations) as executor,
    ):
        list(executor.run(work.plan, sink, work.step_ids))


def test_a_process_that_dies_between_two_runs(work, tmp_path):
    with executing(work.plan, work.locations) as executor:
        for victim in (0, None):
            results = list(executor.run(work.plan, Telling(work.plan, tmp_path / "notes"), work.step_ids))
            assert len(results) == sum(work.parts().values())
            if victim is not None:
                os.kill(executor.crew.members[victim].pid, signal.SIGKILL)
                psutil.wait_procs([psutil.Process(executor.crew.members[victim].pid)], timeout=5)


def test_processes_end_with_their_leader(work, tmp_path):
    """Killed, so that it can tell them nothing, and although each has inherited what the one before it had."""
    script = """
import os, pickle, sys
from engine.test_processes import executing
plan, locations, sink, ids = pickle.load(sys.stdin.buffer)
with executing(plan, locations) as executor:
    print(*(member.pid for member in executor.crew.members), flush=True)
    list(executor.run(plan, sink, ids))
"""
    sink = Telling(work.plan, tmp_path / "notes", gate="never")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    sent = pickle.dumps((work.plan, work.locations, sink, work.step_ids))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as leader:
        try:
            leader.stdin.write(sent)
            leader.stdin.close()
            members = [psutil.Process(int(pid)) for pid in leader.stdout.readline().split()]
            assert len(members) == 2
        finally:
            leader.kill()
    _, alive = psutil.wait_procs(members, timeout=10)
    assert not alive


def test_errors_arrive_as_they_were_raised(work):
    source = work.locations.sources[0]
    source.store.delete(source.child("m.safetensors").key)
    writer = PartWriter(work.plan, work.uploads(), work.locations)
    with pytest.raises(StorageError) as here, working(2) as workers:
        list(
            ThreadExecutor(work.locations, workers, Meter(work.plan.cost, ignore)).run(
                work.plan, writer, work.step_ids[:1]
            )
        )
    with pytest.raises(type(here.value)) as there, executing(work.plan, work.locations) as executor:
        list(executor.run(work.plan, writer, work.step_ids[:1]))
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize(
    "error",
    [
        FormatError("bad", where="a", expected="x", found="y", hint="h", problems=["p"]),
        OverBudget("too much", needed_bytes=17, hint="h"),
    ],
)
def test_errors_travel(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_other_errors_bring_their_traceback(work, tmp_path):
    sink = Broken(work.plan, tmp_path / "notes")
    with (
        pytest.raises(RuntimeError, match=r"in stream\n(.|\n)*ZeroDivisionError"),
        executing(work.plan, work.locations) as executor,
    ):
        list(executor.run(work.plan, sink, work.step_ids))


class Broken(Watcher):
    def stream(self, key, part, data, scratch):
        raise ZeroDivisionError


def test_checksums_of_what_was_read_come_together(work):
    [source] = work.locations.sources
    data = source.store.read(source.child("m.safetensors").key, whole_of(source.child("m.safetensors")))
    ledger = ReadLedger({0: KeptChecksum("crc32c", crc_of(data))})
    with executing(work.plan, work.locations, ledger=ledger) as executor:
        list(executor.run(work.plan, PartWriter(work.plan, work.uploads(), work.locations), work.step_ids))
    assert ledger.settle(0, len(data), lambda span: data[span.start : span.stop]) is True


def whole_of(place):
    from reshard.tensor import ByteRange

    return ByteRange(0, place.store.head(place.key).nbytes)


# Which executor.


def test_two_processes_are_started_where_they_find_the_stores(work):
    with crew_for(work.plan, work.locations) as crew:
        assert len(crew.members) == 2
        assert isinstance(choose_executor(crew, work.locations, None, None), ProcessExecutor)
    memory = Location(MemoryStore(), "to")
    with crew_for(work.plan, Locations(work.locations.sources, memory)) as crew:
        assert not crew.members
        assert isinstance(choose_executor(crew, work.locations, None, None), ThreadExecutor)


def test_a_plan_for_one_process_runs_here(work, tmp_path):
    one = replace(work, plan=make_plan(work.plan.conversion, replace(work.plan.limits, process_count=1)))
    with executing(one.plan, one.locations) as executor:
        results = list(executor.run(one.plan, Telling(one.plan, tmp_path / "notes"), one.step_ids))
    assert {pid for *_, pid in results} == {os.getpid()}


def test_threads_forbid_forks(monkeypatch):
    others = [threading.Thread(name=name) for name in (WATCH_THREAD, "another")]
    for count, allowed in ((0, True), (1, True), (2, False)):
        running = [threading.main_thread(), *others[:count]]
        monkeypatch.setattr(threading, "enumerate", lambda running=running: running)
        monkeypatch.setattr(threading, "current_thread", threading.main_thread)
        assert CAN_FORK() == allowed
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    monkeypatch.setattr(threading, "current_thread", lambda: others[1])
    assert not CAN_FORK()


def test_cores_are_counted_within_the_quota_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr("reshard.engine.executors.choose._QUOTAS", (quota,))
    assert core_count() == 64
    for text, count in (("max 100000", 64), ("250000 100000", 3), ("50000 100000", 1)):
        quota.write_text(text)
        assert core_count() == count
    old = tmp_path / "cpu.cfs_quota_us"
    monkeypatch.setattr("reshard.engine.executors.choose._QUOTAS", (old,))
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    for text, count in (("-1", 64), ("400000", 4)):
        old.write_text(text)
        assert core_count() == count


# Whole runs.


def test_a_run_and_its_verification(work, tmp_path):
    source, target = work.locations.sources[0], Location(LocalStore(tmp_path / "whole"), "made")
    manifest = execute(work.plan, source, target)
    assert manifest.limits.process_count == 2
    for key, data in work.expected.items():
        assert (tmp_path / "whole" / "made" / key).read_bytes() == data
    assert verify_manifest(manifest, source, target).is_ok
    damaged = tmp_path / "whole" / "made" / next(iter(work.expected))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    report = verify_manifest(manifest, source, target)
    assert len(report.problems) == 1


def test_verified_on_a_smaller_machine_a_process_has_no_more_memory(work, tmp_path, monkeypatch):
    source, target = work.locations.sources[0], Location(LocalStore(tmp_path / "whole"), "made")
    manifest, planned = execute(work.plan, source, target), []

    def plan(conversion, limits):
        planned.append((limits.process_count, limits.memory_bytes))
        return make_plan(conversion, limits)

    monkeypatch.setattr(verification, "core_count", lambda: 1)
    monkeypatch.setattr(verification, "make_plan", plan)
    assert verify_manifest(manifest, source, target).is_ok
    assert planned == [(1, LIMITS.memory_bytes)]


@pytest.mark.parametrize(
    ("count", "memory_bytes"), [(4, 2 * LIMITS.memory_bytes), (1, LIMITS.memory_bytes)], ids=["more", "fewer"]
)
def test_a_failed_run_is_continued_with_another_number(work, tmp_path, count, memory_bytes):
    """What the plan of the first was made for is kept, and so is the memory of each process."""
    from reshard.engine.execute import Policy

    source, target = work.locations.sources[0], Location(LocalStore(tmp_path / "whole"), "made")
    parts = []

    def stop(event):
        parts.append(event)
        if getattr(event, "written_bytes", 0) > 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(work.plan, source, target, policy=Policy(keeps=True), listener=stop)
    other = make_plan(work.plan.conversion, replace(work.plan.limits, process_count=count, memory_bytes=memory_bytes))
    manifest = execute(other, source, target, policy=Policy(keeps=True))
    assert manifest.limits.process_count == 2
    for key, data in work.expected.items():
        assert (tmp_path / "whole" / "made" / key).read_bytes() == data
    assert Path(tmp_path / "whole" / "made").exists()
