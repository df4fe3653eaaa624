"""``reshard run``: a job file, one job or a batch, or a training configuration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ..api.option_field import OptionField, read_texts, read_truth
from ..api.request import OPTIONS
from ..errors import ReshardError, UsageError, option
from .flags import Output, OutputForm, Quiet, flag, request_flags, with_flags
from .printing import print_json
from .signals import signals

_FILE_OPTIONS: Mapping[str, OptionField] = {
    "config": OptionField("Do what this training configuration of MindSpore Transformers needs.", "URL.yaml"),
    "set": OptionField("Set an option, like jobs.a.dtype=bf16.", "PATH=VALUE", read=read_texts),
    "dry_run": OptionField("Show what every job would do and take; nothing is written.", read=read_truth),
    "check": OptionField("Only look for mistakes in the file; no store is asked.", read=read_truth),
    "schema": OptionField("Print the JSON schema of job files, for editors.", read=read_truth),
}
_BATCH_OPTIONS: Mapping[str, OptionField] = {
    "only": OptionField("Run only the jobs whose names match.", "GLOB", read=read_texts),
    "jobs": OptionField("Jobs that run at the same time.", "N", default="1", least=1),
    "fail_fast": OptionField(
        "Start no further job once one has failed, or go on with those that do not need it.",
        default="keep going",
        read=read_truth,
        flags=("--fail-fast/--keep-going",),
    ),
}
"""Options that mean something for job files alone."""
_FLAGS = [flag(name, field) for name, field in {**_FILE_OPTIONS, **_BATCH_OPTIONS}.items()]


@with_flags([*_FLAGS, *request_flags(["memory", "if_exists"])])
def run(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB.yaml", help="URL or path of a job file; - for standard input.")
    ] = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Run the jobs of a file; the exit code is 0 only if the outcome of all is there."""
    config = options["config"]
    if options["schema"]:
        from .batch_text import show_schema

        show_schema()
    elif config is not None and job is None:
        given = [name for name in _BATCH_OPTIONS if options[name]]
        if given:
            what = "belongs" if len(given) == 1 else "belong"
            raise UsageError(f"{', '.join(map(option, given))} {what} to job files, and {option('config')} is one job")
        _run_training(config, options, output, quiet)
    elif job is None or config is not None:
        raise UsageError(f"run needs either {option('job')} or {option('config')}", hint="- is standard input.")
    else:
        _run_jobs(job, options, output, quiet)


def _run_jobs(url: str, options: Mapping[str, Any], output: OutputForm, quiet: bool) -> None:
    """Read a job file, and check, plan or run its jobs."""
    from ..jobs.batch import chosen_jobs, run_jobs
    from ..jobs.job_file import read_job_file
    from . import batch_text

    found = read_job_file(url, settings=options["set"] or ())
    if options["check"]:
        batch_text.show_checked(found, output)
        return
    chosen = chosen_jobs(found, options["only"] or (), if_exists=options["if_exists"])
    memory = options["memory"]
    limit = None if memory is None else OPTIONS["memory"].parse("memory", memory)
    at_once = options["jobs"] or 1
    if options["dry_run"]:
        from ..jobs.dry_run import plan_jobs

        batch_text.show_planned(plan_jobs(chosen, at_once=at_once, memory_bytes=limit), output)
        return
    with batch_text.watching(output, quiet=quiet) as on_change:
        statuses = run_jobs(
            chosen, at_once=at_once, memory_bytes=limit, fail_fast=options["fail_fast"], on_change=on_change
        )
        signals.work_is_done()
    batch_text.show_batch(statuses, output)


def _run_training(config: str, options: Mapping[str, Any], output: OutputForm, quiet: bool) -> None:
    """Decide what a training configuration needs, show it, and do it unless the run is dry."""
    from ..jobs.training_config import read_training_config
    from ..jobs.training_job import decide
    from ..jobs.training_run import plan_training_job, run_training_job
    from . import training_text
    from .progress import progress

    found = read_training_config(config, dict(map(_setting, options["set"] or ())))
    if options["check"]:
        training_text.show_checked_training(found, output)
        return
    plan, outcome = None, None
    given = {name: options[name] for name in ("memory", "if_exists")}
    begun_s = time.monotonic()
    with progress(quiet=quiet) as listener:
        try:
            job = decide(found, on_event=listener, **given)
            if options["dry_run"]:
                plan = plan_training_job(job, on_event=listener)
        except ReshardError:
            if options["dry_run"] and output is OutputForm.TEXT:  # whatever is wrong with it, the keys are known
                training_text.show_training_keys(found)
            raise
        if not options["dry_run"]:
            outcome = run_training_job(job, on_event=listener)
            signals.work_is_done()
    took_s = time.monotonic() - begun_s
    if output is OutputForm.JSON:
        print_json(training_text.training_run_json(job, plan, outcome))
        return
    training_text.show_training_job(job, output, plan)
    if outcome is not None and outcome.manifest is not None:
        from .results import show_manifest, show_pace

        show_manifest(outcome.manifest, output)
        if not quiet:
            show_pace(outcome.manifest, took_s)


def _setting(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not path or not equals:
        raise UsageError(f"{option('set', text)}: expected PATH=VALUE, like parallel_config.model_parallel=4")
    return path, value
