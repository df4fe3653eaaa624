"""Batches: order, memory, failures, stopping, and running the same file again."""

import threading
import time

import pytest
from support.checkpoints import put_full, random_model

import reshard
import reshard.jobs.batch as batch_module
from reshard.api.request import Request
from reshard.engine.workers import working
from reshard.errors import (
    Interrupted,
    OverBudget,
    PlanError,
    TargetExists,
    UsageError,
    as_field,
    write_options,
)
from reshard.jobs import Job, JobState, run_jobs
from reshard.jobs.batch import chosen_jobs
from reshard.jobs.dry_run import PlannedState, plan_jobs
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


@pytest.fixture
def memory_given(monkeypatch):
    """The memory that each job has, by its name; the jobs themselves do nothing."""
    given = {}

    def convert(_resolved, request, _listener):
        given[request.dst.rpartition("/")[2]] = request.memory
        raise PlanError("enough")

    monkeypatch.setattr(batch_module, "convert_resolved", convert)
    return given


def test_a_limit_is_shared_out(source, memory_given):
    jobs = [job("a", source), job("b", source, memory="64MiB"), job("c", source, memory="4GiB"), job("d", source)]
    done = run_jobs(jobs, at_once=4, memory_bytes=1 << 30)
    assert memory_given == {"a": 256 << 20, "b": 64 << 20, "c": 256 << 20, "d": 256 << 20}
    assert [[write_options(note, as_field) for note in status.notes] for status in done] == [
        [], [], ["memory: 4096MiB is cut to 256MiB: 4 jobs share 1024MiB"], [],
    ]  # fmt: skip


def test_without_a_limit_jobs_have_what_they_ask_for(source, memory_given):
    jobs = [job("a", source), job("b", source, memory="64MiB"), job("c", source, memory="4GiB"), job("d", source)]
    done = run_jobs(jobs, at_once=4)
    assert memory_given == {"a": 128 << 20, "b": 64 << 20, "c": 4 << 30, "d": 128 << 20}
    assert not any(status.notes for status in done)


def test_memory_is_shared_among_jobs_that_exist(source, memory_given):
    run_jobs([job("a", source), job("b", source)], at_once=8, memory_bytes=1 << 30)
    assert memory_given == {"a": 512 << 20, "b": 512 << 20}
    run_jobs([job("a", source)], at_once=8)
    assert memory_given["a"] == 512 << 20


def test_a_job_that_needs_more_memory_says_what_the_batch_needs(source):
    needed = run_jobs([job("a", source, memory="1KiB")])[0].error
    assert isinstance(needed, OverBudget)
    mebibytes = -(-needed.needed_bytes >> 20)
    assert needed.text(as_field).endswith(f"\nSet memory: {mebibytes}MiB in the job.")
    shared = run_jobs([job("a", source), job("b", source)], at_once=2, memory_bytes=2048)[0].error
    assert f"Raise the limit that 2 jobs share to {-(-2 * needed.needed_bytes >> 20)}MiB" in shared.hint
    alone = run_jobs([job("a", source)], at_once=2, memory_bytes=1024)[0].error
    assert alone.hint == f"Raise the limit to {mebibytes}MiB."


def test_what_a_conversion_notes_is_in_its_status(source):
    done = run_jobs([job("a", source, dtype="bf16"), job("b", "memory://batch-out/a", needs=["a"])])
    expected = reshard.plan(source, "memory://batch-out/other", dtype="bf16").notes
    assert expected
    assert done[0].notes == list(expected)
    assert run_jobs([job("a", source, dtype="bf16")])[0].notes == list(expected)  # skipped, and said again


def test_so_many_at_a_time_and_no_more(source, monkeypatch):
    running, most, lock = [0], [0], threading.Lock()
    three = threading.Barrier(3)

    def convert(*_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        three.wait(60)
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        raise PlanError("enough")

    monkeypatch.setattr(batch_module, "convert_resolved", convert)
    run_jobs([job(f"j{n}", source) for n in range(12)], at_once=3)
    assert most[0] == 3
    assert not three.broken


def test_what_stops_the_caller_stops_every_job(source, monkeypatch):
    """A job that runs is stopped by its listener, cleans up, and only then does the caller go on."""
    entered, cleaned = [], []

    def convert(_resolved, request, listener):
        from reshard.engine.events import PhaseStarted

        entered.append(request.dst)
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
        if len(entered) == 2 and not cleaned:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch_module, "convert_resolved", convert)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job(name, source) for name in "abc"], at_once=2, on_change=stop)
    assert sorted(cleaned) == ["memory://batch-out/a", "memory://batch-out/b"]
    assert seen[-1] == {"a": "stopped", "b": "stopped", "c": "stopped"}


def test_a_job_that_stops_by_itself_blocks_what_needs_it(source):
    def convert(each, _listener):
        if each.name == "a":
            raise Interrupted("stopped")

    jobs = [job("a", source), job("b", "memory://batch-out/a", needs=["a"]), job("c", source)]
    done = run_jobs(jobs, convert=convert)
    assert states(done) == {"a": "stopped", "b": "blocked", "c": "done"}
    assert states(run_jobs(jobs, convert=convert, fail_fast=True))["c"] == "blocked"


def test_a_job_is_stopped_where_it_has_no_events(source):
    """Reading headers may take minutes in which no event comes."""
    entered, ended = threading.Event(), []

    def convert(each, _listener):
        with working(1) as workers:
            entered.set()
            try:
                workers.submit(lambda: time.sleep(0.05))
                while True:
                    workers.check()
                    time.sleep(0.01)
            finally:
                ended.append(each.name)

    def stop(_statuses):
        if entered.is_set() and not ended:
            raise KeyboardInterrupt

    begun_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:
        run_jobs([job("a", source), job("b", source)], convert=convert, on_change=stop)
    assert (ended, time.monotonic() - begun_s < 10) == (["a"], True)
    assert caught.value.__notes__ == ["0 of 2 jobs are done and stay; nothing of the others was left behind"]


def test_a_job_that_does_not_stop_is_not_waited_for_without_end(source, monkeypatch):
    monkeypatch.setattr(batch_module, "_STOP_WAIT_S", 0.3)
    entered, release = threading.Event(), threading.Event()

    def convert(_each, _listener):
        entered.set()
        release.wait(60)

    seen = []

    def stop(statuses):
        seen[:] = statuses
        if entered.is_set() and not release.is_set() and statuses[0].state is JobState.RUNNING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run_jobs([job("a", source)], convert=convert, on_change=stop)
    assert seen[0].state is JobState.STOPPED
    release.set()
    assert "a: it did not stop in 0 s: what it has begun may be left" in caught.value.__notes__[0]


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
    assert [each.state for each in planned] == [
        PlannedState.SKIP,
        PlannedState.CONVERT,
        PlannedState.LATER,
        *[PlannedState.REFUSED] * 3,
    ]
    assert planned[1].estimate.cost.read_bytes > 0
    assert planned[2].reason == "is planned after new"
    assert len(list(MemoryStore("batch-out").list(""))) == before


def test_a_dry_run_plans_with_the_memory_of_the_run(source, memory_given):
    jobs = [job("a", source, memory="4GiB"), job("b", source)]
    planned = plan_jobs(jobs, at_once=2, memory_bytes=1 << 30)
    run_jobs(jobs, at_once=2, memory_bytes=1 << 30)
    assert [each.plan.limits.memory_bytes for each in planned] == list(memory_given.values())
    assert any("is cut to 512MiB" in note for note in planned[0].notes)
    refused = plan_jobs([job("a", source), job("b", source)], at_once=2, memory_bytes=2048)
    assert [each.state for each in refused] == [PlannedState.REFUSED] * 2
    assert "that 2 jobs share" in refused[0].error.hint


def test_a_dry_run_shows_the_notes_of_every_plan(source):
    run_jobs([job("done", source, dtype="bf16")])
    planned = plan_jobs([job("done", source, dtype="bf16"), job("new", source, dtype="fp16")])
    assert [each.state for each in planned] == [PlannedState.SKIP, PlannedState.CONVERT]
    for each in planned:
        assert each.notes == reshard.plan(source, each.job.request.dst, dtype=each.job.request.dtype).notes != ()


def test_a_dry_run_looks_at_destinations(source):
    run_jobs([job("a", source)])
    before = {info.key: info.etag for info in MemoryStore("batch-out").list("")}
    jobs = [
        job("refused", source, dst="memory://batch-out/a", dtype="bf16"),
        job("blocked", "memory://batch-out/a", needs=["refused"]),
        job("blocked-too", "memory://batch-out/blocked", needs=["blocked"]),
    ]
    planned = plan_jobs(jobs)
    assert [each.state.value for each in planned] == ["refused", "blocked", "blocked"]
    assert isinstance(planned[0].error, TargetExists)
    assert [each.reason for each in planned[1:]] == ["needs refused", "needs blocked"]
    assert states(run_jobs(jobs)) == {"refused": "failed", "blocked": "blocked", "blocked-too": "blocked"}
    assert plan_jobs([job("a", source, dtype="bf16", if_exists="replace")])[0].state is PlannedState.CONVERT
    assert {info.key: info.etag for info in MemoryStore("batch-out").list("")} == before


def test_a_dry_run_puts_off_only_what_a_needed_job_writes(source):
    jobs = [
        job("after", "memory://batch-out/first/", needs=["first"]),
        job("lost", "memory://batch/nothing", needs=["first"]),
        job("first", source),
    ]
    assert [each.state.value for each in plan_jobs(jobs)] == ["later", "refused", "convert"]
