"""``reshard run``: a job file, one job or a batch."""

from __future__ import annotations

from typing import Annotated

import typer

from ..api.option_field import parse_size
from ..errors import UsageError, option
from .flags import Output, OutputForm, Quiet, with_flags
from .flags import request_flags as flags_of
from .signals import signals


@with_flags(flags_of(["if_exists"]))
def run(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB.yaml", help="URL or path of a job file; - for standard input.")
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
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", show_default=False, help="Limit for the buffers of all jobs together.  [default: 512MiB]"
        ),
    ] = None,
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
    if_exists: str | None = None,
) -> None:
    """Run the jobs of a file; the exit code is 0 only if the outcome of all is there."""
    from ..jobs.job_file import read_job_file
    from . import batch_text

    if schema:
        batch_text.show_schema()
        return
    if job is None:
        raise UsageError(f"run needs {option('job')}", hint="Name a job file, or - for standard input.")
    found = read_job_file(job, settings=settings or ())
    if check:
        batch_text.show_checked(found, output)
        return
    from ..jobs.batch import chosen_jobs, run_jobs

    chosen = chosen_jobs(found, only or (), if_exists=if_exists)
    if dry_run:
        from ..jobs.dry_run import plan_jobs

        batch_text.show_planned(plan_jobs(chosen), output)
        return
    limit = None if memory is None else parse_size(memory)
    with batch_text.watching(quiet=quiet) as on_change:
        statuses = run_jobs(chosen, at_once=jobs, memory_bytes=limit, fail_fast=fail_fast, on_change=on_change)
    signals.work_is_done()
    batch_text.show_batch(statuses, output)
