"""``reshard run``: a job file, one job or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..api.request import OPTIONS
from ..errors import UsageError, option
from .flags import Output, OutputForm, Quiet, request_flags, with_flags
from .printing import print_json
from .signals import signals


@with_flags(request_flags(["memory", "if_exists"]))
def run(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB.yaml", help="URL or path of a job file; - for standard input.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="URL.yaml", help="Do what this training configuration of MindSpore Transformers needs."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set an option, like jobs.a.dtype=bf16. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Run only the jobs whose names match. Repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what every job would do and take; nothing is written.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only look for mistakes in the file; no store is asked.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of job files, for editors.")] = False,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, show_default=False, help="Jobs that run at the same time.  [default: 1]")
    ] = 1,
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--keep-going",
            show_default=False,
            help="Start no further job once one has failed, or go on with those that do not need it.  "
            "[default: keep going]",
        ),
    ] = False,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Run the jobs of a file; the exit code is 0 only if the outcome of all is there."""
    from ..jobs.job_file import read_job_file
    from . import batch_text

    if schema:
        batch_text.show_schema()
        return
    if config is not None and job is None:
        _run_training(config, settings or (), options, dry_run or check, output, quiet)
        return
    if job is None or config is not None:
        raise UsageError(f"run needs either {option('job')} or {option('config')}", hint="- is standard input.")
    found = read_job_file(job, settings=settings or ())
    if check:
        batch_text.show_checked(found, output)
        return
    from ..jobs.batch import chosen_jobs, run_jobs

    chosen = chosen_jobs(found, only or (), if_exists=options["if_exists"])
    if dry_run:
        from ..jobs.dry_run import plan_jobs

        batch_text.show_planned(plan_jobs(chosen), output)
        return
    memory = options["memory"]
    limit = None if memory is None else OPTIONS["memory"].parse("memory", memory)
    with batch_text.watching(quiet=quiet) as on_change:
        statuses = run_jobs(chosen, at_once=jobs, memory_bytes=limit, fail_fast=fail_fast, on_change=on_change)
    signals.work_is_done()
    batch_text.show_batch(statuses, output)


def _run_training(
    config: str, settings: Sequence[str], given: dict[str, Any], is_dry: bool, output: OutputForm, quiet: bool
) -> None:
    """Decide what a training configuration needs, show it, and do it unless the run is dry."""
    from ..jobs.training_config import read_training_config
    from ..jobs.training_job import decide, run_training_job
    from .progress import progress
    from .results import show_manifest
    from .training_text import show_training_job, show_training_keys, training_outcome_json

    overrides = dict(_setting(each) for each in settings)
    found = read_training_config(config, overrides)
    with progress(quiet=quiet) as listener:
        try:
            job = decide(found, on_event=listener, **given)
        except UsageError:
            if is_dry and output is OutputForm.TEXT:  # whatever is wrong with it, the keys are known
                show_training_keys(found)
            raise
        if is_dry:
            show_training_job(job, output)
            return
        outcome = run_training_job(job, on_event=listener)
        signals.work_is_done()
    if output is OutputForm.JSON:
        print_json(training_outcome_json(job, outcome))
        return
    show_training_job(job, output)
    if outcome.manifest is not None:
        show_manifest(outcome.manifest, output)


def _setting(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not path or not equals:
        raise UsageError(f"{option('set', text)}: expected PATH=VALUE, like parallel_config.model_parallel=4")
    return path, value
