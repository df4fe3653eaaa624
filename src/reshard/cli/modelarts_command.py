"""``reshard modelarts``: the boot file of a training job, one process on each of its nodes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from .. import __version__
from ..errors import ReshardError, counted
from ..jobs.hyper_parameters import SERVICE_OPTIONS, HyperParameters, read_hyper_parameters
from .flags import flag, with_flags
from .job_log import JobLog
from .printing import in_bytes, in_time
from .progress import LogLines
from .signals import INTERRUPTED, Stopped, signals
from .spelling import spelled_error

if TYPE_CHECKING:  # what is shown is imported already by whoever made it
    from ..jobs.service_run import ServiceEvent, ServiceOutcome, ShareWritten

_LINE_EVERY_S = 30.0
_SECRET = re.compile(r"(?:^|[._])(?:key|token|secret|password)$", re.IGNORECASE)
"""Names of hyper-parameters such as ``callbacks.CheckpointMonitor.enc_key``."""


@with_flags(flag(name, field, is_original=True) for name, field in SERVICE_OPTIONS.items())
def modelarts(ctx: typer.Context, **service: Any) -> None:
    """Do one node's share of a conversion, as the boot file of a ModelArts job.

    The hyper-parameters say what to convert: every key of a training YAML and every option of `reshard convert`, as
    --name=value, --name value, or an environment variable of the same name. Like --auto_trans_ckpt=True,
    --parallel_config.model_parallel=4, --src=obs://bucket/model, --dtype=bf16. Unknown ones are named in the log.
    """
    log, begun_s = JobLog(), time.monotonic()
    arguments = [*ctx.args, *(f"--{name}={value}" for name, value in service.items() if value is not None)]
    code = 0
    try:
        code, ended = _run(arguments, log)
        signals.work_is_done()
    except ReshardError as error:
        log.error(error.text(ctx.command.spell))  # type: ignore[attr-defined]
        code, ended = error.exit_code, f"failed: {error.marked_message.splitlines()[0]}"
    except Stopped as stopped:
        for note in getattr(stopped, "__notes__", []):
            log.warning(note)
        code, ended = INTERRUPTED, "interrupted: shares that are finished stay, and nothing half-written"
    show = log.error if code else log.info
    show(f"{ended}; exit code {code} after {in_time(time.monotonic() - begun_s)}")
    if code:
        raise typer.Exit(code)


def _run(arguments: list[str], log: JobLog) -> tuple[int, str]:
    """Run the job; return the exit code, and what came of it."""
    # A job's modules take a while to import, and help does not need them.
    from ..jobs.nodes import find_node
    from ..jobs.service_job import ignored_names, is_hyper_parameter, read_service_job
    from ..jobs.service_run import run_service_job
    from ..storage import shared_connections

    log.node = find_node(os.environ)
    log.info(f"reshard {__version__}")
    given = read_hyper_parameters(arguments, os.environ, is_hyper_parameter)
    _show_parameters(given, ignored_names(given), log)
    lines = LogLines(log.info, _LINE_EVERY_S)
    with shared_connections():
        job = read_service_job(given, os.environ, lines)
        log.node = job.node
        for text in job.warnings:
            log.warning(text)
        for text in job.notes:
            log.info(text)
        outcome = run_service_job(job, _listener(log, lines))
    return _shown_outcome(outcome, log)


def _listener(log: JobLog, lines: LogLines) -> Callable[[ServiceEvent], None]:
    """Return what writes a line for each event of a job."""
    from ..jobs.service_run import JobStarted, NodesJoined, SharesMissing, ShareStarted, ShareWritten, StrategiesWritten

    def write(event: ServiceEvent) -> None:
        match event:
            case JobStarted():
                log.info(f"job {event.name}")
            case ShareStarted():
                for url, access in event.access:
                    log.info(f"{url}: {access}")
                log.info(event.share)
            case ShareWritten():
                log.info(f"{_written(event)}, as an earlier run left them" if event.was_done else _written(event))
                for note in event.notes:
                    log.info(f"note: {note}")
            case SharesMissing() | NodesJoined():
                log.info(event.text)
            case StrategiesWritten():
                log.info(f"strategy files of {counted(event.rank_count, 'rank')}: {event.url}")
            case _:
                lines(event)

    return write


def _shown_outcome(outcome: ServiceOutcome, log: JobLog) -> tuple[int, str]:
    """Show which jobs of a batch went wrong; return the exit code, and what came of all in one line."""
    code = 0
    for status in outcome.wrong:
        text = spelled_error(status.error) if isinstance(status.error, ReshardError) else status.reason
        log.error(f"job {status.job.name} {status.state}: {text}")
        if status.error is not None:
            code = code or getattr(status.error, "exit_code", 1)
    ended = [f"{url} is complete; this node {_written(share)}" for url, share in outcome.complete]
    if outcome.strategy_url is not None and not ended:
        ended.append(f"wrote {outcome.strategy_url}")
    if outcome.wrong:
        names = ", ".join(status.job.name for status in outcome.wrong)
        return code or 1, "; ".join([f"failed: {names}", *ended])
    return 0, "; ".join(ended) or "nothing to do"


def _written(share: ShareWritten | None) -> str:
    if share is None:
        return "wrote nothing"
    return f"{'found' if share.was_done else 'wrote'} {counted(share.object_count, 'object')}, {in_bytes(share.nbytes)}"


def _show_parameters(given: HyperParameters, ignored: Sequence[str], log: JobLog) -> None:
    """Show what was given; secrets, and the values of what means nothing here, are not shown."""
    for name, texts in given.texts.items():
        if name in ignored:
            log.warning(f"{name} is no hyper-parameter of a conversion: it has no effect")
            continue
        value = "(not shown)" if _SECRET.search(name) else texts[-1]
        log.info(f"{name}={value}{' (environment)' if name in given.from_environment else ''}")
    for stray in given.strays:
        log.warning(f"{stray!r} belongs to no --name: it has no effect")
