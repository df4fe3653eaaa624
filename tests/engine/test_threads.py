"""The executor of threads."""

import gc
from contextlib import contextmanager

from engine.executor_contract import ExecutorContract, Watcher

from reshard.engine.events import ignore
from reshard.engine.executors.arena import Arena
from reshard.engine.executors.threads import ThreadExecutor
from reshard.engine.meter import Meter
from reshard.engine.workers import working


class TestThreadExecutor(ExecutorContract):
    @contextmanager
    def executor(self, plan, locations, listener=ignore):
        with working(plan.limits.concurrency, *locations.stores) as workers:
            yield ThreadExecutor(locations, workers, Meter(plan.cost, listener))

    def test_memory_is_free_after_a_run(self, folder):
        """A second plan has an arena of its own."""
        work, before = self.work(folder), arena_count()
        with self.executor(work.plan, work.locations) as executor:
            results = executor.run(work.plan, Watcher(work.plan, folder / "notes"), work.step_ids)
            next(results)
            assert arena_count() == before + 1
            assert len(list(results)) > 1
            del results
            assert arena_count() == before

    def test_steps_are_taken_as_they_are_started(self, folder):
        """A step that the memory has no room for yet is not asked for."""
        work, taken = self.work(folder), []

        def ids():
            for step_id in work.step_ids:
                taken.append(step_id)
                yield step_id

        with self.executor(work.plan, work.locations) as executor:
            results = executor.run(work.plan, Watcher(work.plan, folder / "notes", pause_s=0.1), ids())
            next(results)
            assert len(taken) < len(work.step_ids)
            assert list(results)
        assert taken == work.step_ids


def arena_count():
    gc.collect()
    return sum(isinstance(each, Arena) for each in gc.get_objects())
