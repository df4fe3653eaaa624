"""``reshard cat``: one tensor, shown or saved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..api.request import SOURCE_OPTIONS
from .flags import Output, OutputForm, request_flags, with_flags
from .printing import in_bytes, print_facts, print_json, write

if TYPE_CHECKING:
    from ..api.tensor_content import TensorContent

_MOST_VALUES = 1000


@with_flags(request_flags((*SOURCE_OPTIONS, "memory", "verify")))
def cat(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or path of one object or of a prefix.")],
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Its name, or a piece of it like NAME[0:4, :].")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="URL.npy", help="Save the values here, as numpy does.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the saved values if they exist.")] = False,
    output: Output = OutputForm.TEXT,
    **options: Any,
) -> None:
    """Show one tensor, reading headers and its bytes only."""
    from ..api.statements import save
    from ..api.tensor_content import read_tensor

    found = read_tensor(url, tensor, **options)
    if out is not None:
        save(out, found.encode_npy(), overwrite=overwrite)
    if output is OutputForm.JSON:
        print_json({**_facts(found), "values": found.nested_values(_MOST_VALUES), "saved": out})
        return
    shown = {name: value for name, value in _facts(found).items() if value is not None}
    size = in_bytes(found.values.nbytes)
    print_facts([(name, f"{value}, {size}" if name == "shape" else str(value)) for name, value in shown.items()])
    if out is not None:
        print_facts([("saved", out)])
    else:
        write(found.text())


def _facts(found: TensorContent) -> dict[str, Any]:
    numbers = {"min": found.minimum, "max": found.maximum, "mean": found.mean}
    return {
        "tensor": found.name,
        "dtype": found.dtype.value,
        "shape": list(found.shape),
        # JSON has no infinite numbers
        **{name: value if value is None or math.isfinite(value) else str(value) for name, value in numbers.items()},
        "nan": found.nan_count,
    }
