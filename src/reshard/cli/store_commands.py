"""``reshard ls`` and ``reshard doctor``: what a store holds, and what it can do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import StorageError, counted
from .flags import Output, OutputForm, request_flags, with_flags
from .printing import in_bytes, print_facts, print_json, print_rows
from .spelling import spelled


@with_flags(request_flags(["give_up_after"]))
def ls(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or path of a prefix or an object.")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="List every object, at any depth.")] = False,
    output: Output = OutputForm.TEXT,
    **options: Any,
) -> None:
    """List what lies below a URL, with sizes."""
    from ..api.listing import list_below

    found = list_below(url, is_deep=recursive, **options)
    if output is OutputForm.JSON:
        print_json({"format": "reshard-ls/1", "url": url, "entries": [asdict(each) for each in found]})
        return
    print_facts(
        [
            ("url", url),
            ("objects", f"{sum(e.object_count for e in found)}, {in_bytes(sum(e.nbytes for e in found))}"),
        ]
    )
    rows = [
        (e.name, counted(e.object_count, "object") if e.name.endswith("/") else "", in_bytes(e.nbytes)) for e in found
    ]
    print_rows(("name", "", "size"), rows, 0)


@with_flags(request_flags(["give_up_after"]))
def doctor(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or path of a prefix where objects may be written.")],
    output: Output = OutputForm.TEXT,
    **options: Any,
) -> None:
    """Try what a store can do, and say what reshard will use."""
    from ..api.doctor import examine

    found = examine(url, **options)
    if output is OutputForm.JSON:
        body = {"format": "reshard-doctor/1", "version": __version__, "url": found.url, "access": found.access}
        print_json({**body, "is_ok": found.is_ok, "checks": [asdict(check) for check in found.checks]})
    else:
        print_facts([("reshard", __version__), ("url", found.url), ("access", found.access)])
        print_rows(("ability", "", "so"), [(c.name, c.outcome, spelled(c.meaning)) for c in found.checks], 0)
    if not found.is_ok:
        wrong = [f"{check.name}: {check.meaning}" for check in found.checks if check.is_wrong]
        raise StorageError(f"{url}: conversions cannot work here", problems=wrong)
