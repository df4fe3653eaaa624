"""Computes the boxes of values that a step asks for, from the boxes it has gathered."""

from __future__ import annotations

from collections.abc import Sequence

from ...planning.catalog import Entry
from ...planning.steps.steps import Tile
from ...tensor import DType
from .compute import Cast, Dequantise, Kernel, MergeLora
from .compute import Tile as Box


def compute(tile: Tile, entries: Sequence[Entry], inputs: Sequence[memoryview], result: memoryview) -> None:
    """Fill ``result`` from the gathered inputs, which may be overwritten."""
    held = [Box(box, entries[entry].spec.dtype, data) for (entry, box), data in zip(tile.inputs, inputs, strict=True)]
    out = Box(tile.box, tile.making.dtype, result)
    if tile.making.kernel == "merge_lora" and held[0].dtype is not out.dtype:
        # In place: every element of the weight is read before its result is written.
        _kernel(tile).run(held, held[0])
        Cast().run(held[:1], out)
        return
    _kernel(tile).run(held, out)


def _kernel(tile: Tile) -> Kernel:
    making = tile.making
    if making.kernel == "cast":
        return Cast()
    if making.kernel == "dequantise":
        return Dequantise(making.blocks)
    return MergeLora(making.scaling, making.rank, making.working or DType.F32, making.transposed)
