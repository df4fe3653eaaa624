"""``reshard family check``: what a family's file does with a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..api.request import OPTIONS
from ..errors import PlanError, option
from .flags import Output, OutputForm, request_flags, with_flags
from .printing import print_facts, print_json, print_rows

if TYPE_CHECKING:
    from ..models.family_coverage import FamilyCoverage

_SIDES = {"to_ms": "Hugging Face", "to_hf": "MindSpore"}
_SHOWN_PROBLEMS = 20


@with_flags(request_flags(["naming", "option"]))
def check(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="File that ends in .yaml, or name of a family.")],
    config: Annotated[str, typer.Argument(metavar="CONFIG", help=OPTIONS["config"].help)],
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="Checkpoint of the model; without it, what the rows expect.",
            show_default=False,
        ),
    ] = None,
    output: Output = OutputForm.TEXT,
    **options: Any,
) -> None:
    """Say which names of a model a family's file covers, what goes there and back, and what its rules leave open."""
    from ..api.families import check_family
    from ..api.option_field import read_pairs

    given = read_pairs(options["option"]) if options["option"] else None
    found = check_family(family, config, url, naming=options["naming"], options=given)
    if output is OutputForm.JSON:
        print_json(asdict(found))
    else:
        _show(found)
    problems = [*found.problems, *(f"{each} (there and back)" for each in found.changed)]
    if problems:
        hint = f"Rows are explained in docs/families/adding.md; {option('output', 'json')} lists all."
        raise PlanError(f"{family} does not cover the model", problems=problems[:_SHOWN_PROBLEMS], hint=hint)


def _show(found: FamilyCoverage) -> None:
    options = ", ".join(f"{name} {str(value).lower()}" for name, value in found.options.items())
    back = "not tried: see the errors" if found.problems else f"{len(found.changed)} differences"
    if not found.problems and not found.changed:
        back = "every tensor that is not dropped returns with its name, shape and dtype"
    print_facts(
        [
            ("names", f"those of {_SIDES[found.direction]}, naming {found.naming}"),
            ("options", options or "none"),
            ("covered", f"{found.covered_count} of {found.tensor_count} tensors"),
            ("back", back),
            *(("dropped", f"{name}: {why}") for name, why in found.dropped),
            *(("open", f"line {line}: {text}" if line else text) for line, text in found.open),
        ]
    )
    rows = [(row.line, row.tensor_count, row.hf, row.ms, row.why_none) for row in found.rows]
    print_rows(("line", "tensors", "Hugging Face", "MindSpore", ""), rows, 0)
