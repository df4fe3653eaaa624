"""Carries out what was decided for a training job: the conversion, then its strategy files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..api.preflight import would_skip
from ..api.request import Request
from ..api.resolve import Resolved, resolve
from ..api.statements import convert_resolved, plan_resolved
from ..api.strategies import read_strategy, save_strategy_set
from ..engine.events import Listener, ignore
from ..engine.manifest import Manifest
from ..errors import TargetExists, add_problems, option
from ..formats.mindspore.strategy_merge import from_strategy
from ..planning.plan import Plan
from ..storage import shared_connections
from ..tensor import Strategy
from .training_job import TrainingJob, target_strategy


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a job has written; None stands for what was not due."""

    manifest: Manifest | None = None
    strategy: Strategy | None = None


ConvertTraining = Callable[[Request, Resolved | None, Listener], Manifest | None]
"""Carries out a request, whose headers may have been read already; None if there was nothing to write."""


def _convert(request: Request, resolved: Resolved | None, on_event: Listener) -> Manifest:
    return convert_resolved(resolved or resolve(request, on_event), request, on_event)


@shared_connections()
def plan_training_job(job: TrainingJob, *, on_event: Listener = ignore) -> Plan | None:
    """Plan the conversion that a job needs, or return None if it needs none; nothing is written.

    Raise what :func:`run_training_job` would raise before it writes.
    """
    _due_strategies(job, on_event)
    request = job.request
    if request is None:
        return None
    made = plan_resolved(job.resolved or resolve(request, on_event))
    would_skip(made, request)
    return made


@shared_connections()
def run_training_job(
    job: TrainingJob,
    *,
    on_event: Listener = ignore,
    convert: ConvertTraining = _convert,
    writes_strategies: bool = True,
) -> TrainingOutcome:
    """Carry out the conversion that a job needs, then write its strategy files.

    Whatever is refused is refused before anything is written, so that neither is replaced without the other. Strategy
    files that say the same are left as they are.

    Parameters
    ----------
    convert
        What carries out the request.
    writes_strategies
        Whether this process writes the strategy files: of several nodes one does. All look whether they may be written.

    Raises
    ------
    TargetExists
        Outputs exist, and the job's options do not say to replace them.
    ReshardError
        As the tree in :mod:`reshard.errors` says; nothing of the conversion stays in the target.
    """
    due = _due_strategies(job, on_event)
    request = job.request
    manifest = None if request is None else convert(request, job.resolved, on_event)
    if due is None or not writes_strategies:
        return TrainingOutcome(manifest)
    try:
        due.write()
    except BaseException as error:
        if manifest is not None:
            add_problems(error, [f"the ranks are complete; strategy files are missing in {due.url}: run the job again"])
        raise
    return TrainingOutcome(manifest, due.strategy)


@dataclass(frozen=True, slots=True)
class _DueStrategies:
    """The strategy files of all ranks, which may be there already."""

    url: str
    strategy: Strategy
    replaces: bool
    is_there: bool = False

    def write(self) -> None:
        if not self.is_there:
            save_strategy_set(self.strategy, self.url, overwrite=self.replaces)


def _due_strategies(job: TrainingJob, on_event: Listener) -> _DueStrategies | None:
    """Return what strategy files a job needs; None if none.

    Raise TargetExists if files that say something else are there, and are not to be replaced.
    """
    if job.strategy_url is None or job.strategy_options is None:
        return None
    request = Request.of(None, **job.strategy_options)
    strategy = target_strategy(job.resolved or resolve(request, on_event))
    is_there = False
    try:
        save_strategy_set(strategy, job.strategy_url, overwrite=request.replaces, is_dry=True)
    except TargetExists as error:
        # Compared as MindSpore writes them: a strategy from sizes leaves unsaid what its files say.
        if from_strategy(read_strategy(job.strategy_url)) != from_strategy(strategy):
            hint = f"Move them, or give {option('if_exists', 'replace')}."
            message = f"{job.strategy_url}: strategy files of another job are there"
            raise TargetExists(message, hint=hint) from error
        is_there = True
    return _DueStrategies(job.strategy_url, strategy, request.replaces, is_there)
