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
    out = Box(tile.box, tile.computation.dtype, result)
    if tile.computation.kernel == "merge_lora" and held[0].dtype is not out.dtype:
        # In place: every element of the weight is read before its result is written.
        _kernel(tile).run(held, held[0])
        Cast().run(held[:1], out)
        return
    _kernel(tile).run(held, out)


def _kernel(tile: Tile) -> Kernel:
    computation = tile.computation
    if computation.kernel == "cast":
        return Cast()
    if computation.kernel == "dequantise":
        return Dequantise(computation.blocks)
    return MergeLora(computation.scaling, computation.rank, computation.working or DType.F32, computation.transposed)
