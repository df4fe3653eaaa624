"""``reshard verify``: outputs against sources, bit for bit."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import api
from ..errors import VerifyError
from .options import Output, OutputForm, Quiet
from .output import show_report
from .progress import progress


def verify(
    url: Annotated[str, typer.Argument(help="URL or path of a manifest, or of the target that holds one.")],
    subset: Annotated[str | None, typer.Option(metavar="n/t", help="Every t-th step only, from the n-th.")] = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
) -> None:
    """Read sources and outputs again, in bounded memory, and compare them bit for bit."""
    with progress(quiet=quiet) as listener:
        report = api.verify(url, subset=subset, on_event=listener)
    show_report(report, output)
    if not report.is_ok:
        raise VerifyError(
            f"{url}: {len(report.problems)} differences from the source", hint="Convert again with --overwrite."
        )
