"""Arithmetic on dense boxes: casts, block scales and low-rank updates.

An element's value depends on that element's inputs alone: not on the box it is computed in, nor on threads, nor on the
machine. So every way of cutting a tensor gives the same bytes, and a part can be computed again anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...errors import PlanError
from ...models.lora import adapter_boxes
from ...planning.catalog import Entry
from ...planning.outputs.output import Computation
from ...planning.steps.steps import Tile
from ...tensor import Box, DType, Shape
from .lora_product import merge_block
from .numpy_dtypes import FLOATING
from .overflow import Overflows, can_overflow, in_whole, infinite, refusal, saturate

_Array = npt.NDArray[Any]
# Elements converted at a time: few enough for the processor's cache, enough for numpy to release the GIL.
_BLOCK = 1 << 16
_BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
_FLOATS = frozenset(FLOATING) - {DType.F8_E8M0}
_QUANTISED = {dtype for dtype in _FLOATS if dtype.itemsize == 1}
_SCALES = {DType.F64, DType.F32, DType.BF16, DType.F16, DType.F8_E8M0}
_PACKED = {DType.I8, DType.U8}
_FP4 = np.dtype(ml_dtypes.float4_e2m1fn)
_INTEGERS: dict[DType, Any] = {DType.I32: np.int32, DType.I64: np.int64}
_MERGED = {DType.F32, DType.BF16, DType.F16}


@dataclass(frozen=True, slots=True)
class DenseBox:
    """A box of a tensor, in elements of the whole, with exactly its bytes: dense and row-major."""

    box: Box
    dtype: DType
    data: memoryview

    def __post_init__(self) -> None:
        expected = self.dtype.nbytes(self.box.element_count)
        if self.data.nbytes != expected:
            raise ValueError(f"{self.box} of {self.dtype}: expected {expected} bytes, found {self.data.nbytes}")


class Kernel(Protocol):
    """Computes a box of a tensor from boxes of its inputs."""

    def run(self, inputs: Sequence[DenseBox], out: DenseBox) -> None:
        """Fill ``out`` from exactly the boxes that it needs, in the kernel's own order."""
        ...


def compute(
    tile: Tile, entries: Sequence[Entry], inputs: Sequence[memoryview], result: memoryview, overflows: Overflows
) -> None:
    """Fill ``result`` with the values of a step's tile from its gathered inputs, which may be overwritten.

    Finite values that the result's dtype cannot hold are counted, and become what the computation says; raise PlanError
    if that is to refuse them.
    """
    held = [
        DenseBox(box, entries[entry].spec.dtype, data) for (entry, box), data in zip(tile.inputs, inputs, strict=True)
    ]
    out, how = DenseBox(tile.box, tile.computation.dtype, result), tile.computation
    is_merge = how.kernel == "merge_lora"
    before = infinite(held[0].data, held[0].dtype) if is_merge else None  # merging overwrites it
    _run(how, held, out)
    if how.kernel == "cast" and not can_overflow(held[0].dtype, out.dtype):
        return
    found = infinite(result, out.dtype)
    if len(found):
        known = infinite(held[0].data, held[0].dtype) if before is None else before
        found = np.setdiff1d(found, known, assume_unique=True)
    if not len(found):
        return
    spec = entries[tile.source].spec
    if how.on_overflow == "refuse":
        raise refusal(spec.name, out.dtype, len(found))
    if how.on_overflow == "saturate":
        saturate(result, out.dtype, found)
    overflows.add(spec.name, out.dtype, in_whole(found, tile.box, spec.shape).tolist())


def _run(how: Computation, held: Sequence[DenseBox], out: DenseBox) -> None:
    if how.kernel == "cast":
        Cast().run(held, out)
    elif how.kernel == "dequantise":
        Dequantise(how.blocks, how.packed).run(held, out)
    else:
        merge = MergeLora(how.scaling, how.rank, how.working or DType.F32, how.transposed)
        if held[0].dtype is out.dtype:
            merge.run(held, out)
        else:  # merged in place first: the kernel reads each element of the weight before it writes its result
            merge.run(held, held[0])
            Cast().run(held[:1], out)


def can_cast(source: DType, target: DType) -> bool:
    """Whether a tensor can be cast: to its own type, or from one floating type, or one of I32 and I64, to another.

    Nothing is cast to F8_E8M0, which has neither sign nor zero and is read as a scale only.

    Examples
    --------
    >>> can_cast(DType.F32, DType.BF16), can_cast(DType.F8_E4M3, DType.F16), can_cast(DType.I8, DType.I8)
    (True, True, True)
    >>> can_cast(DType.I32, DType.F32), can_cast(DType.F32, DType.F8_E8M0), can_cast(DType.F4, DType.F32)
    (False, False, False)
    """
    return source == target or (source in FLOATING and target in _FLOATS) or {source, target} <= _INTEGERS.keys()


def cast(source: memoryview, source_dtype: DType, target: memoryview, target_dtype: DType) -> None:
    """Convert elements one by one, rounding to nearest and ties to even; ValueError if there is no such cast.

    - Values too large for the target become infinity, or NaN in F8_E4M3 and the FNUZ types, which have no infinity.
    - Results below the normal range are rounded, not flushed to zero. NaN stays NaN, without its payload where
      the target has no room for it.
    - F64 becomes BF16 and the 8-bit types by way of F32, so it is rounded twice; everything else is rounded once.
    - Whole numbers are refused with PlanError if they do not fit.

    Examples
    --------
    >>> target = bytearray(4)
    >>> cast(memoryview(np.array([1, 1e9], "f4")).cast("B"), DType.F32, memoryview(target), DType.F16)
    >>> np.frombuffer(target, np.float16)
    array([ 1., inf], dtype=float16)
    """
    if not can_cast(source_dtype, target_dtype):
        raise ValueError(f"no cast from {source_dtype} to {target_dtype}: both must be floating types, or I32 and I64")
    if source_dtype == target_dtype:
        target[:] = source
        return
    if source_dtype in _INTEGERS:
        read, write = (
            np.frombuffer(a, _INTEGERS[kind]) for a, kind in ((source, source_dtype), (target, target_dtype))
        )
    else:
        read, write = np.frombuffer(source, FLOATING[source_dtype]), np.frombuffer(target, FLOATING[target_dtype])
    if len(read) != len(write):
        raise ValueError(f"cast: expected a buffer of {len(read)} elements, found {len(write)}")
    if source_dtype in _INTEGERS:
        _cast_integers(read, write)
        return
    for start in range(0, len(read), _BLOCK):
        _convert(read[start : start + _BLOCK], write[start : start + _BLOCK])


def _cast_integers(read: _Array, write: _Array) -> None:
    limits = np.iinfo(write.dtype)
    if len(read) and not limits.min <= read.min() <= read.max() <= limits.max:
        raise PlanError(f"values from {read.min()} to {read.max()} do not fit {write.dtype}")
    write[:] = read


@dataclass(frozen=True, slots=True)
class Cast:
    """A tensor in another element type. Input: the same box."""

    def run(self, inputs: Sequence[DenseBox], out: DenseBox) -> None:
        """Cast the input."""
        (source,) = inputs
        _expect("source", source.box, out.box)
        cast(source.data, source.dtype, out.data, out.dtype)


@dataclass(frozen=True, slots=True)
class Dequantise:
    """Floating weights of 8 or 4 bits times the scale of their block. Inputs: the same box, and the box of its blocks.

    Weight and scale are cast to F32, their product is rounded to F32, and again to the target if that is narrower.
    ``block`` has the elements that share a scale, on each axis; blocks at the ends may be smaller. It is 1 along an
    axis whose every index has its own scales (stacked experts, rows of FP4).

    With ``packed`` 2 the weights are FP4 (E2M1), two a byte, and their box counts bytes: the lower half of one is the
    first of two neighbours on the last axis.

    Examples
    --------
    >>> weights = DenseBox(Box((1,), (4,)), DType.F8_E4M3, memoryview(bytes.fromhex("383840")))
    >>> scales = DenseBox(Box((0,), (2,)), DType.F32, memoryview(np.array([0.5, 3], "f4")).cast("B"))
    >>> out = DenseBox(weights.box, DType.F32, memoryview(bytearray(12)))
    >>> Dequantise((2,)).run([weights, scales], out)
    >>> np.frombuffer(out.data, np.float32)
    array([0.5, 3. , 6. ], dtype=float32)

    Source: research/deepseek3/convert_weight.py (weight_dequant) of MindSpore Transformers 1.5; OCP Microscaling
    Formats 1.0 for E2M1 and E8M0.
    """

    block: Shape
    packed: int = 1

    def run(self, inputs: Sequence[DenseBox], out: DenseBox) -> None:
        """Multiply the weights by their scales."""
        weights, scales = inputs
        packs = (*(1,) * (len(self.block) - 1), self.packed)
        _expect("weights", weights.box, out.box.in_blocks(packs))
        _expect("scales", scales.box, out.box.in_blocks(self.block))
        _expect_dtype("weights", weights.dtype, _PACKED if self.packed == 2 else _QUANTISED)
        _expect_dtype("scales", scales.dtype, _SCALES)
        _expect_dtype("result", out.dtype, _FLOATS)
        coarse, codes, result = _array(scales), _array(weights), _array(out)
        wide, skipped = np.empty(_BLOCK, np.float32), out.box.start[-1] % self.packed
        for scale_rows, rows in _row_bands(out.box, self.block):
            for start, columns in _column_blocks(out.box, self.block):
                some = coarse[scale_rows][..., columns]
                factors = np.empty(some.shape, np.float32)
                _convert(some, factors)
                held = slice(start + skipped, start + skipped + len(columns))
                _scale_rows(codes[rows], held, factors, result[rows][..., start : start + len(columns)], wide)


@dataclass(frozen=True, slots=True)
class MergeLora:
    """A weight with its low-rank update: W + (B·A)·scaling. Inputs: W's box, and those of ``adapter_boxes``, A first.

    The inner sum runs in F32 from the first to the last element of the inner axis, each product
    added before it is rounded, as by a fused multiply-add. Each of these is then rounded once: the
    product to ``working``, the scaling to ``working``, their product to ``working``, the sum
    with W to F32, and the result to W's type. The result may overwrite W in memory.

    ``rank`` is the length of the inner axis, and the scaling usually alpha / rank. The working type is F32, or F16 to
    reproduce the original where A and B are both F16. A transposed W is stored ``[in, out]``.

    Examples
    --------
    >>> def tile(dtype, *rows):
    ...     numbers = np.array(rows, dtype)
    ...     return DenseBox(Box.whole(numbers.shape), DType.F32, memoryview(numbers).cast("B"))
    >>> out = tile("f4", [0, 0], [0, 0])
    >>> MergeLora(0.5, rank=1).run([tile("f4", [1, 1], [1, 1]), tile("f4", [2, 4]), tile("f4", [1], [10])], out)
    >>> np.frombuffer(out.data, np.float32)
    array([ 2.,  3., 11., 21.], dtype=float32)

    Source: mindformers/tools/transform_ckpt_lora.py of MindSpore Transformers 1.6, run on a CPU;
    transform_safetensors_lora.py of 2.1 always works in F32.
    """

    scaling: float
    rank: int
    working: DType = DType.F32
    transposed: bool = False

    def run(self, inputs: Sequence[DenseBox], out: DenseBox) -> None:
        """Add the update to the weight."""
        weight, a, b = inputs
        _expect("weight", weight.box, out.box)
        a_box, b_box = adapter_boxes(out.box, self.rank, transposed=self.transposed)
        _expect("A", a.box, a_box)
        _expect("B", b.box, b_box)
        for what, dense in (("weight", weight), ("A", a), ("B", b)):
            _expect_dtype(what, dense.dtype, _MERGED)
        _expect_dtype("result", out.dtype, {weight.dtype})
        _expect_dtype("working type", self.working, {DType.F32, DType.F16})
        left, right = (_array(a).T, _array(b).T) if self.transposed else (_array(b), _array(a))
        working = FLOATING[self.working]
        merge_block(_array(weight), left, right, working.type(self.scaling), _array(out))


def _convert(source: _Array, target: _Array) -> None:
    """Round at most a block of elements from ``source`` into ``target``."""
    narrow = target.dtype.itemsize == 1 or target.dtype == FLOATING[DType.BF16]
    if source.dtype == np.float64 and narrow:  # the documented double rounding, whatever ml_dtypes does inside
        with np.errstate(all="ignore"):
            source = source.astype(np.float32)
    size: int = source.dtype.itemsize
    if size == 1 or (size == 2 and target.dtype.itemsize == 1):
        bits = source.view(_BITS[size])
        # No index is out of bounds; with any mode but "clip" numpy would write through a buffer of its own.
        np.take(_table(source.dtype, target.dtype), bits, out=target.view(_BITS[target.dtype.itemsize]), mode="clip")
        return
    with np.errstate(all="ignore"):  # infinities and NaN are results here, not errors
        np.copyto(target, source, casting="unsafe")


@cache
def _table(source: np.dtype[Any], target: np.dtype[Any]) -> _Array:
    """Return the target's bit pattern for every one of a short type: faster than converting, and equal to it."""
    size: int = source.itemsize
    every = np.arange(1 << 8 * size).astype(_BITS[size]).view(source)
    with np.errstate(all="ignore"):
        return every.astype(np.float32).astype(target).view(_BITS[target.itemsize])


def _row_bands(box: Box, block: Shape) -> Iterator[tuple[tuple[int | slice, ...], tuple[int | slice, ...]]]:
    """Yield the place of a row of scales in its box, with the rows of weights that share it.

    Where each row has scales of its own, as many rows of both as a block holds.
    """
    if len(block) == 1:
        yield (), ()
        return
    *outer, size = block[:-1]
    first = box.in_blocks(block).start
    most = max(1, _BLOCK // box.shape[-1]) if size == 1 else 1
    for index in np.ndindex(box.shape[:-2]):
        place = tuple((a + i) // s - f for a, i, s, f in zip(box.start, index, outer, first, strict=False))
        low, high = box.start[-2], box.stop[-2]
        for band in range(low // size, -(-high // size), most):
            rows = slice(max(low, band * size) - low, min(high, (band + most) * size) - low)
            shared = band - first[-2]
            yield (*place, shared if size > 1 else slice(shared, shared + most)), (*index, rows)


def _column_blocks(box: Box, block: Shape) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Cut the columns into blocks; yield where each starts and the index of each column's scale."""
    low, high, size = box.start[-1], box.stop[-1], block[-1]
    for start in range(low, high, _BLOCK):
        columns = np.arange(start, min(start + _BLOCK, high), dtype=np.intp)
        yield start - low, columns // size - low // size


def _scale_rows(codes: _Array, columns: slice, factors: _Array, result: _Array, wide: _Array) -> None:
    """Multiply columns of rows of codes by a factor each, as many rows at a time as a block holds."""
    codes, result = np.atleast_2d(codes), np.atleast_2d(result)
    factors = np.broadcast_to(factors, result.shape)
    step = max(1, _BLOCK // result.shape[1])
    for start in range(0, len(codes), step):
        some = _unpacked(codes[start : start + step], columns)
        product = wide[: some.size].reshape(some.shape)
        _convert(some, product)
        with np.errstate(all="ignore"):
            np.multiply(product, factors[start : start + step], out=product)
        _convert(product, result[start : start + step])


def _unpacked(codes: _Array, columns: slice) -> _Array:
    """Return columns of rows of codes, those of FP4 as a byte each."""
    if codes.dtype != np.uint8:
        return codes[:, columns]
    first = columns.start // 2
    pairs = codes[:, first : -(-columns.stop // 2)]
    each = np.empty((*pairs.shape, 2), np.uint8)
    np.bitwise_and(pairs, 15, out=each[..., 0])
    np.right_shift(pairs, 4, out=each[..., 1])
    return each.reshape(len(pairs), -1)[:, columns.start - 2 * first : columns.stop - 2 * first].view(_FP4)


def _array(dense: DenseBox) -> _Array:
    kind = np.dtype(np.uint8) if dense.dtype in _PACKED else FLOATING[dense.dtype]
    return np.frombuffer(dense.data, kind).reshape(dense.box.shape)


def _expect(what: str, found: Box, expected: Box) -> None:
    if found != expected:
        raise ValueError(f"{what}: expected {expected}, found {found}")


def _expect_dtype(what: str, found: DType, expected: Set[DType]) -> None:
    if found not in expected:
        raise ValueError(f"{what}: expected one of {', '.join(sorted(expected))}, found {found}")
