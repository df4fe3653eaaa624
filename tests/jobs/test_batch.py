"""Batches: order, memory, failures, stopping, and running the same file again."""

import threading
import time

import pytest
from support.checkpoints import put_full, random_model

import reshard.jobs.batch as batch_module
from reshard.api.request import Request
from reshard.errors import Interrupted, PlanError, UsageError
from reshard.jobs import Job, JobState, run_jobs
from reshard.jobs.batch import chosen_jobs
from reshard.jobs.dry_run import Prospect, plan_jobs
from reshard.storage import Location, MemoryStore

MODEL = random_model({"model.a": ("F32", (8, 6)), "b": ("F16", (4,))})


@pytest.fixture
def source():
    for name in ("batch", "batch-out"):
        MemoryStore(name).clear()
    put_full(Location(MemoryStore("batch"), "m"), {"model.safetensors": MODEL})
    return "memory://batch/m"


def job(name, src, dst=None, needs=(), **options):
    return Job(name, Request.of(src=src, dst=dst or f"memory://batch-out/{name}", **options), tuple(needs))


def states(statuses):
    return {status.job.name: status.state.value for status in statuses}


def test_jobs_run_after_those_that_they_need(source):
    order = []

    def watch(statuses):
        order.extend(s.job.name for s in statuses if s.state is JobState.RUNNING and s.job.name not in order)

    jobs = [
        job("last", "memory://batch-out/middle", needs=["middle"], form="mindspore"),
        job("middle", "memory://batch-out/first", needs=["first"], form="zarr", dst="memory://batch-out/middle"),
        job("first", source, dtype="bf16"),
    ]
    done = run_jobs(jobs, at_once=3, on_change=watch)
    assert states(done) == {"last": "done", "middle": "done", "first": "done"}
    assert order == ["first", "middle", "last"]
    assert all(status.written_bytes > 0 and status.seconds > 0 for status in done)


def test_the_same_batch_again_does_nothing(source):
    jobs = [job("a", source), job("b", source, dtype="bf16")]
    run_jobs(jobs)
    before = {info.key: info.etag for info in MemoryStore("batch-out").list("")}
    done = run_jobs(jobs, at_once=2)
    assert states(done) == {"a": "skipped", "b": "skipped"}
    assert {info.key: info.etag for info in MemoryStore("batch-out").list("")} == before


def test_a_failure_blocks_what_needs_it_and_nothing_else(source):
    jobs = [
        job("bad", "memory://batch/nothing"),
        job("needs-bad", "memory://batch-out/bad", needs=["bad"]),
        job("needs-that", "memory://batch-out/needs-bad", needs=["needs-bad"]),
        job("good", source),
    ]
    done = run_jobs(jobs)
    assert states(done) == {"bad": "failed", "needs-bad": "blocked", "needs-that": "blocked", "good": "done"}
    assert done[0].error.exit_code == 3
    assert "no checkpoint there" in done[0].reason
    assert (done[1].reason, done[2].reason) == ("needs bad", "needs needs-bad")


def test_fail_fast_starts_nothing_more(source):
    jobs = [job("bad", "memory://batch/nothing"), job("good", source), job("other", source)]
    done = run_jobs(jobs, fail_fast=True)
    assert states(done) == {"bad": "failed", "good": "blocked", "other": "blocked"}
    assert done[1].reason == "another job has failed"


def test_errors_that_are_no_errors_of_ours_fail_their_job_alone(source, monkeypatch):
    def convert(request, _listener):
        raise ZeroDivisionError(request.dst)

    monkeypatch.setattr(
        batch_module, "convert_resolved", lambda _resolved, request, listener: convert(request, listener)
    )
    done = run_jobs([job("a", source)])
    assert (done[0].state, done[0].reason) == (JobState.FAILED, "memory://batch-out/a")


def test_memory_is_shared_out(source, monkeypatch):
    given = {}

    def convert(_resolved, request, _listener):
        given[request.dst.rpartition("/")[2]] = request.memory
        raise PlanError("enough")

    monkeypatch.setattr(batch_module, "convert_resolved", convert)
    jobs = [job("a", source), job("b", source, memory="64MiB"), job("c", source, memory="4GiB"), job("d", source)]
    run_jobs(jobs, at_once=4, memory_bytes=1 << 30)
    assert given == {"a": 256 << 20, "b": 64 << 20, "c": 256 << 20, "d": 256 << 20}
    run_jobs(jobs[:1])
    assert given["a"] == 512 << 20


def test_so_many_at_a_time_and_no_more(source, monkeypatch):
    running, most, lock = [0], [0], threading.Lock()

    def convert(*_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        raise PlanError("enough")

    monkeypatch.setattr(batch_module, "convert_resolved", convert)
    run_jobs([job(f"j{n}", source) for n in range(12)], at_once=3)
    assert most[0] == 3


def test_what_stops_the_caller_stops_every_job(source, monkeypatch):
    """A job that runs is stopped by its listener, cleans up, and only then does the caller go on."""
    cleaned = []

    def convert(_resolved, request, listener):
        from reshard.engine.events import PhaseStarted

        try:
            while True:
                listener(PhaseStarted("transfer"))
                time.sleep(0.01)
        except Interrupted:
            time.sleep(0.05)
            cleaned.append(request.dst)
            raise

    seen = []

    def stop(statuses):
        seen.append(states(statuses))
        if list(seen[-1].values()).count("running") == 2 and not cleaned:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch_module, "convert_resolved", convert)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(name, source) for name in "abc"], at_once=2, on_change=stop)
    assert sorted(cleaned) == ["memory://batch-out/a", "memory://batch-out/b"]
    assert seen[-1] == {"a": "stopped", "b": "stopped", "c": "stopped"}


def test_only_some_jobs(source):
    jobs = [job("cut/a", source), job("cut/b", source, needs=["cut/a", "merge"]), job("merge", source)]
    chosen = chosen_jobs(jobs, ["cut/*"])
    assert [(each.name, each.needs) for each in chosen] == [("cut/a", ()), ("cut/b", ("cut/a",))]
    assert chosen_jobs(jobs, []) == tuple(jobs)
    assert {each.request.if_exists for each in chosen_jobs(jobs, [], if_exists="fail")} == {"fail"}
    with pytest.raises(UsageError, match="matches no job"):
        chosen_jobs(jobs, ["cut/*", "x*"])


def test_a_dry_run_writes_nothing_and_adds_up(source):
    run_jobs([job("done", source)])
    before = len(list(MemoryStore("batch-out").list("")))
    jobs = [
        job("done", source),
        job("new", source, dtype="bf16"),
        job("later", "memory://batch-out/new", needs=["new"]),
        job("small", source, memory="1KiB", dst="memory://batch-out/small"),
        job("bad", "memory://batch/nothing"),
        job("other", source, dst="memory://batch-out/done", dtype="fp16"),
    ]
    planned = plan_jobs(jobs)
    assert [each.prospect for each in planned] == [
        Prospect.SKIP, Prospect.CONVERT, Prospect.LATER, Prospect.REFUSED, Prospect.REFUSED, Prospect.CONVERT,
    ]  # fmt: skip
    assert planned[1].estimate.cost.read_bytes > 0
    assert planned[2].reason == "is planned after new"
    assert len(list(MemoryStore("batch-out").list(""))) == before
