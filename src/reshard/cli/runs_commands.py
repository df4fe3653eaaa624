"""``reshard runs`` and ``reshard abort``: what runs that have ended early have left."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import counted
from .flags import Output, OutputForm, patient
from .printing import in_bytes, print_facts, print_json, print_rows

_TITLES = ("target", "state", "sent", "open uploads", "objects", "since", "host")


@patient
def runs(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or path of a prefix.")],
    output: Output = OutputForm.TEXT,
) -> None:
    """List the runs below a prefix that have not finished, and open uploads that belong to none."""
    from ..api.runs import list_runs, orphaned_uploads

    found, orphans = list_runs(url), orphaned_uploads(url)
    if output is OutputForm.JSON:
        print_json({"runs": [asdict(each) for each in found], "orphaned_uploads": list(orphans)})
        return
    print_facts([("runs", str(len(found))), ("orphaned", f"{counted(len(orphans), 'open upload')} of no run")])
    rows = [
        (
            each.target_url,
            "at work" if each.is_alive else "ended",
            in_bytes(each.sent_bytes),
            each.upload_count,
            each.object_count,
            each.record.started,
            each.record.host,
        )
        for each in found
    ]
    print_rows(_TITLES, rows, 0)
    print_rows(("orphaned upload of",), [(key,) for key in orphans], 0)


@patient
def abort(
    dst: Annotated[str, typer.Argument(metavar="DST", help="URL or path of the target.")],
    output: Output = OutputForm.TEXT,
) -> None:
    """Remove what runs that have ended early have left at a target; finished conversions stay."""
    from ..api.runs import abort_run

    removed = abort_run(dst)
    if output is OutputForm.JSON:
        print_json({"removed": [asdict(each) for each in removed]})
        return
    sent = sum(each.sent_bytes for each in removed)
    uploads = sum(each.upload_count for each in removed)
    what = f"{in_bytes(sent)} in {counted(uploads, 'open upload')}, of {counted(len(removed), 'run')}"
    print_facts([("removed", what)])
