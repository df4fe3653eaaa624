"""``reshard inspect``, ``plan``, ``convert`` and ``verify``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..api.assumptions import ASSUMPTIONS
from ..api.request import OPTIONS, PLANNING_OPTIONS, SOURCE_OPTIONS
from ..errors import UsageError, VerifyError, counted, option
from .flags import Output, OutputForm, Picture, Quiet, flag, request_flags, with_flags
from .progress import progress
from .signals import signals

Source = Annotated[str | None, typer.Argument(metavar="SRC", help=OPTIONS["src"].help, show_default=False)]
Html = Annotated[
    str | None,
    typer.Option(metavar="URL.html", show_default=False, help="Write a page to explore in a browser; replaces one."),
]
Target = Annotated[str | None, typer.Argument(metavar="DST", help=OPTIONS["dst"].help, show_default=False)]


def page_saver(url: str | None) -> Callable[[str], None] | None:
    """Return what writes a page, over an earlier one; None without a URL.

    Raise UsageError unless it ends in ``.html``: what is there is replaced, and must not be data.
    """
    if url is None:
        return None
    if not url.endswith(".html"):
        raise UsageError(f"{option('html', url)}: expected a name that ends in .html")
    from ..api.statements import save

    return lambda page: save(url, page.encode(), overwrite=True)


@with_flags(request_flags(SOURCE_OPTIONS))
def inspect(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or path of one object or of a prefix.")],
    tensors: Annotated[
        int,
        typer.Option(metavar="N", min=0, show_default=False, help="Tensors to list in text; 0 for all.  [default: 20]"),
    ] = 20,
    html: Html = None,
    output: Output = OutputForm.TEXT,
    **options: Any,
) -> None:
    """Show what a checkpoint holds, reading headers only."""
    # What a command works with takes longest to import: each imports its own.
    from ..api.contents import inspect as inspect_checkpoint
    from .results import show_catalog

    save_page = page_saver(html)
    catalog = inspect_checkpoint(url, **options)
    if save_page:
        from .pages.catalog_page import catalog_page

        save_page(catalog_page(catalog))
    show_catalog(catalog, output, tensors)


@with_flags([*request_flags(PLANNING_OPTIONS), *(flag(name, field) for name, field in ASSUMPTIONS.items())])
def plan(
    src: Source = None,
    dst: Target = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the saved plan if it exists.")] = False,
    out: Annotated[str | None, typer.Option(metavar="URL", help="Save the plan here, for convert --plan.")] = None,
    plan: Annotated[str | None, typer.Option(metavar="URL", help="Show a saved plan instead.")] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Show how an output or a tensor is made, part by part. Repeatable."),
    ] = None,
    picture: Picture = None,
    html: Html = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Show what a conversion would read, write, take and cost."""
    from ..api import statements
    from ..api.estimates import estimate
    from ..planning.explain import explain as explain_name
    from ..planning.plan_json import encode_plan
    from .plan_text import show_plan

    save_page = page_saver(html)
    assumed = {name: options.pop(name) for name in ASSUMPTIONS}
    if plan is not None:
        statements.check_plan_alone({"src": src, "dst": dst, **options})
        made = statements.load_plan(plan)
    elif src is None or dst is None:
        raise UsageError(f"plan needs {option('src')} and {option('dst')}, or {option('plan')}")
    else:
        with progress(quiet=quiet) as listener:
            made = statements.plan(src, dst, on_event=listener, **options)
    estimated = estimate(made, **assumed)
    explained = [explain_name(made, name) for name in explain or ()]
    if out is not None:
        statements.save(out, encode_plan(made), overwrite=overwrite)
    if save_page:
        from .pages.plan_page import plan_page

        save_page(plan_page(made, estimated))
    if picture:
        from ..planning.ownership import plan_grid
        from .pictures import show_pictures

        show_pictures([plan_grid(made, name) for name in picture])
        return
    show_plan(made, output, saved_as=out, estimate=estimated, explained=explained, target=dst)


@with_flags(request_flags(OPTIONS))
def convert(
    src: Source = None,
    dst: Target = None,
    plan: Annotated[str | None, typer.Option(metavar="URL", help="Carry out a saved plan instead.")] = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Convert a checkpoint; with a plan, SRC and DST only check it, and one URL alone is DST."""
    if plan is not None and dst is None:
        src, dst = None, src
    from ..api.statements import convert as convert_checkpoint
    from .results import show_manifest, show_pace

    begun_s = time.monotonic()
    with progress(quiet=quiet) as listener:
        manifest = convert_checkpoint(src, dst, plan=plan, on_event=listener, **options)
        signals.work_is_done()
    took_s = time.monotonic() - begun_s
    show_manifest(manifest, output, dst)
    if not quiet:
        show_pace(manifest, took_s)


@with_flags(request_flags(["give_up_after"]))
def verify(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or path of a manifest, or of the target.")],
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Read a source in this store too, not in the target's alone. Repeatable."),
    ] = None,
    subset: Annotated[str | None, typer.Option(metavar="n/t", help="Every t-th step only, from the n-th.")] = None,
    html: Html = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Read sources and outputs again, in bounded memory, and compare them bit for bit."""
    from ..api.statements import verify as verify_target
    from .results import show_report

    save_page = page_saver(html)
    with progress(quiet=quiet) as listener:
        report = verify_target(url, source=source or (), subset=subset, on_event=listener, **options)
    if save_page:
        from .pages.report_page import report_page

        save_page(report_page(report, url))
    show_report(report, output)
    if report.problems:
        hint = f"Convert again with {option('overwrite')}."
        raise VerifyError(f"{url}: {counted(len(report.problems), 'difference')} from the source", hint=hint)
    if report.missing_ranks:
        count = len(report.missing_ranks)
        hint = "Convert them to the same target; a share alone is verified by its manifest."
        missing = f"{counted(count, 'rank')} {'is' if count == 1 else 'are'} missing"
        raise VerifyError(f"{url}: {missing}", hint=hint)
