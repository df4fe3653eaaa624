"""``reshard plan``: decide, show, save; or show a saved plan."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import api
from ..errors import UsageError
from ..planning.plan import Plan
from ..planning.plan_json import encode_plan
from .options import CONVERSION, Output, OutputForm, Quiet, Standing, with_options
from .output import show_plan
from .progress import progress

_BANDWIDTH = Annotated[
    str | None, typer.Option(metavar="RATE", show_default="1GB/s", help="Of the line, for the estimated time.")
]
_LATENCY = Annotated[
    str | None, typer.Option(metavar="TIME", show_default="20ms", help="Of a request, for the estimated time.")
]
_EGRESS = Annotated[
    Standing | None, typer.Option(show_default="region", help="Where this machine stands, seen from the source.")
]
_PRICES = Annotated[str | None, typer.Option(metavar="FILE", help="Tables of prices that go before the built-in ones.")]
_TABLE = Annotated[
    str | None, typer.Option(metavar="NAME", show_default="each store's", help="Table of prices to take for both.")
]
_EXPLAIN = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Tell how an output or a tensor is made, part by part. Repeatable."),
]


@with_options(CONVERSION)
def plan(
    src: Annotated[str | None, typer.Argument(help="URL or path of the source checkpoint.")] = None,
    dst: Annotated[str | None, typer.Argument(help="URL or path of the target.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE if it exists; for outputs, convert decides.")
    ] = False,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Save the plan, for convert --plan.")] = None,
    plan: Annotated[str | None, typer.Option(metavar="FILE", help="Show a saved plan instead.")] = None,
    explain: _EXPLAIN = None,
    bandwidth: _BANDWIDTH = None,
    latency: _LATENCY = None,
    egress: _EGRESS = None,
    prices: _PRICES = None,
    price_table: _TABLE = None,
    output: Output = OutputForm.TEXT,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Show what a conversion would read, write, take and cost; nothing is written."""
    made = _made(src, dst, plan, options, quiet=quiet)
    assumed = {"bandwidth": bandwidth, "latency": latency, "egress": egress, "prices": prices}
    estimate = api.estimate(made, price_table=price_table, **assumed)
    explained = [api.explain(made, name) for name in explain or ()]
    if out is not None:
        api.save(out, encode_plan(made), overwrite=overwrite)
    show_plan(made, output, saved_as=out, estimate=estimate, explained=explained)


def _made(src: str | None, dst: str | None, saved: str | None, options: dict[str, Any], *, quiet: bool) -> Plan:
    if saved is not None:
        if src is not None or any(value not in (None, False) for value in options.values()):
            raise UsageError(
                "a plan is given, and arguments that it has decided already",
                hint="Leave out SRC, DST and all that says how to convert.",
            )
        return api.load_plan(saved)
    if src is None or dst is None:
        raise UsageError("plan needs SRC and DST, or a plan")
    with progress(quiet=quiet) as listener:
        return api.plan(src, dst, on_event=listener, **options)
