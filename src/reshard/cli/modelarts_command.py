"""``reshard modelarts``: the boot file of a training job, one process on each of its nodes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from .. import __version__
from ..errors import ReshardError
from ..jobs.hyper_parameters import SERVICE_OPTIONS, HyperParameters, read_hyper_parameters
from .flags import flag, with_flags
from .job_log import JobLog
from .printing import in_bytes, in_time
from .progress import LogLines
from .signals import INTERRUPTED, Stopped, signals

if TYPE_CHECKING:
    from ..api.request import Request
    from ..jobs.service_job import ServiceJob

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
        ended = _run(arguments, log)
        signals.work_is_done()
    except ReshardError as error:
        log.error(error.text(ctx.command.spell))  # type: ignore[attr-defined]
        code, ended = error.exit_code, f"failed: {error.message.splitlines()[0]}"
    except Stopped as stopped:
        for note in getattr(stopped, "__notes__", []):
            log.warning(note)
        code, ended = INTERRUPTED, "interrupted: shares that are finished stay, and nothing half-written"
    tell = log.error if code else log.info
    tell(f"{ended}; exit code {code} after {in_time(time.monotonic() - begun_s)}")
    if code:
        raise typer.Exit(code)


def _run(arguments: list[str], log: JobLog) -> str:
    """Run the job; return what came of it."""
    # A job's modules take a while to import, and help does not need them.
    from ..jobs.job_service import find_node
    from ..jobs.service_job import ignored_names, is_hyper_parameter, read_service_job
    from ..storage import shared_connections

    log.node = find_node(os.environ)
    log.info(f"reshard {__version__}")
    given = read_hyper_parameters(arguments, os.environ, is_hyper_parameter)
    _tell_parameters(given, ignored_names(given), log)
    listener = LogLines(log.info, _LINE_EVERY_S)
    with shared_connections():
        job = read_service_job(given, os.environ, listener)
        log.node = job.node
        for text in job.warnings:
            log.warning(text)
        for text in job.notes:
            log.info(text)
        ended = [_write_strategies(job, log)]
        for name, request in job.requests.items():
            if len(job.requests) > 1:
                log.info(f"job {name}")
            ended.append(_convert(request, job, log, listener))
    return "; ".join(filter(None, ended)) or "nothing to do"


def _tell_parameters(given: HyperParameters, ignored: Sequence[str], log: JobLog) -> None:
    """Tell what was given; secrets, and the values of what means nothing here, are not shown."""
    for name, texts in given.texts.items():
        if name in ignored:
            log.warning(f"{name} is no hyper-parameter of a conversion: it has no effect")
            continue
        value = "(not shown)" if _SECRET.search(name) else texts[-1]
        log.info(f"{name}={value}{' (environment)' if name in given.from_environment else ''}")
    for stray in given.strays:
        log.warning(f"{stray!r} belongs to no --name: it has no effect")


def _write_strategies(job: ServiceJob, log: JobLog) -> str:
    """Have the first node write the strategy files that a training YAML asks for; return what came of it."""
    from ..api.request import Request
    from ..jobs.training_job import write_strategies

    training = job.training
    if training is None or training.strategy_url is None or training.strategy_options is None or job.node.index:
        return ""
    write_strategies(training, overwrite=Request.of(None, **training.strategy_options).replaces)
    log.info(f"strategy files of {training.config.rank_count} ranks: {training.strategy_url}")
    return "" if job.requests else f"wrote {training.strategy_url}"


def _convert(request: Request, job: ServiceJob, log: JobLog, listener: LogLines) -> str:
    """Do this node's share of the conversion, and wait for those of the others; return what came of it."""
    from ..api.access import describe_access
    from ..jobs.job_service import wait_for_shares
    from ..jobs.node_share import NodeShare

    for url in (request.src, request.dst):
        log.info(f"{url}: {describe_access(url)}")
    resolved = job.training.resolved if job.training else None
    share = NodeShare.of(request, job.node, resolved, listener)
    log.info(share.described)
    ended = "wrote nothing"
    if not share.is_empty:
        manifest = share.write(listener)
        written = sum(receipt.nbytes for receipt in manifest.receipts)
        ended = f"{'found' if manifest.was_done else 'wrote'} {len(manifest.receipts)} objects, {in_bytes(written)}"
        log.info(f"{ended}, as an earlier run left them" if manifest.was_done else ended)
    if job.node.count > 1:
        wait_for_shares(share.missing, job.node, job.wait_s, log.info)
    return f"{request.dst} is complete; this node {ended}"
