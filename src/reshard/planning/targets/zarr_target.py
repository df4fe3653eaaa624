"""A zarr store of whole tensors: one array each, cut into chunks that are objects of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import ClassVar

from ...errors import PlanError, option, raise_all
from ...formats.frame import Extent, Frame
from ...formats.zarr import DOCUMENT, MAX_NODE_LENGTH, ZarrArray, encode_array, encode_group, node_of
from ...tensor import Box, Shape, TensorSpec, extent_of
from ..catalog import SourceSharding
from ..limits import MIB
from ..outputs.output import Document, Output, SourceMetadata, TargetTensor, local_spec, sample
from .target import Target

MAX_CHUNK_COUNT = 1 << 20
"""Most chunks of one store."""

_ZEROS = bytes(MIB)
_MOST_TRIED = 4096
_REQUEST_SHARE = 64  # one more request is worth this part of a chunk's bytes


@dataclass(frozen=True)
class ChunkOutput(Output):
    """One chunk: the bytes of a box, and zeros up to the chunk length of the array."""

    padding_bytes: int = 0

    @cached_property
    def frame(self) -> Frame:
        """The box's elements from byte 0, then the padding."""
        shape, itemsize = extent_of(self.specs[0])
        return _chunk_frame(math.prod(shape), itemsize, self.padding_bytes)


@lru_cache(1 << 10)  # most chunks are of a few lengths
def _chunk_frame(element_count: int, itemsize: int, padding_bytes: int) -> Frame:
    elements = Extent(0, 0, element_count, itemsize, 0)
    stop = elements.stop + padding_bytes
    zeros = ((at, _ZEROS[: min(MIB, stop - at)]) for at in range(elements.stop, stop, MIB))
    return Frame(tuple(zeros), (elements,), stop)


@dataclass(frozen=True, slots=True)
class ZarrTarget(Target):
    """Whole tensors as zarr arrays below one group, without compression, cut by rows into chunks of a wished size.

    ``chunk_shapes`` are those of single tensors by name, in elements as they are addressed, cut on any axes. Only the
    first axis on which chunks are longer than 1 may hang over the end: the padding of any other would be between
    elements.
    """

    object_names: ClassVar[re.Pattern[str]] = re.compile(r"(.+/)?zarr\.json")

    chunk_bytes: int
    chunk_shapes: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def has_companions(self) -> bool:
        """A group is a whole model: families' rules need its config later."""
        return True

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Make one output of every chunk.

        Raise PlanError for chunk shapes that do not fit, names that no store could keep, and too many chunks.
        """
        self.check_bounds(tensors)
        return tuple(
            output for index, tensor in enumerate(tensors) for output in _chunks(self._array(tensor), index, tensor)
        )

    def documents(
        self, outputs: Sequence[Output], tensors: Sequence[TargetTensor], source_metadata: SourceMetadata
    ) -> tuple[Document, ...]:
        """Return every array's document; the group's, which holds all of them, comes last."""
        arrays = [self._array(tensor) for tensor in tensors]
        metadata = source_metadata.metadata_for([tensor.spec.name for tensor in tensors])
        group = Document(DOCUMENT, encode_group(arrays, metadata, source_metadata.texts))
        return (*(Document(f"{array.path}/{DOCUMENT}", encode_array(array)) for array in arrays), group)

    def notes(self, tensors: Sequence[TargetTensor]) -> tuple[str, ...]:
        """Note tensors that have another name in zarr."""
        odd = [tensor.spec.name for tensor in tensors if node_of(tensor.spec.name) != tensor.spec.name]
        note = f"{len(odd)} names are written with % in zarr; attributes keep the original names: {sample(odd)}"
        return (note,) if odd else ()

    def check_bounds(self, tensors: Sequence[TargetTensor]) -> int:
        """Refuse what cannot be written; cheap, and before any chunk is made."""
        names = {tensor.spec.name for tensor in tensors}
        problems = [f"{name}: there is no such tensor" for name in self.chunk_shapes if name not in names]
        for tensor in tensors:
            chunk_shape = self.chunk_shapes.get(tensor.spec.name)
            if chunk_shape is not None and (problem := _shape_problem(tensor.spec, chunk_shape)):
                problems.append(f"{tensor.spec.name} in chunks of {list(chunk_shape)}: {problem}")
        raise_all(PlanError, "chunk shapes that do not fit their tensors", problems)
        long = [sample([name[:80]]) for name in names if len(node_of(name)) > MAX_NODE_LENGTH]
        hint = f"Shorten them with {option('rename')}."
        raise_all(PlanError, f"names of more than {MAX_NODE_LENGTH} characters in zarr", sorted(long), hint)
        if self.chunk_bytes < 1:
            raise PlanError(f"chunks of {self.chunk_bytes} bytes: expected at least 1")
        # A division first: the search for the best number of rows is only for few chunks.
        for counts in (map(self._least_count, tensors), (self._array(tensor).chunk_count for tensor in tensors)):
            if (count := sum(counts)) > MAX_CHUNK_COUNT:
                message = f"{count} chunks: at most {MAX_CHUNK_COUNT} objects can be written"
                raise PlanError(message, hint=f"Make the chunks larger with {option('part_size')}.")
        return len(tensors)

    def _least_count(self, tensor: TargetTensor) -> int:
        """Return a lower bound of the chunks of a tensor that is cut by rows."""
        spec, (extent, itemsize) = tensor.spec, extent_of(tensor.spec)
        if spec.name in self.chunk_shapes or spec.dtype.is_sub_byte or 0 in extent:
            return 0
        return -(-math.prod(extent) * itemsize // max(self.chunk_bytes, itemsize))

    def _array(self, tensor: TargetTensor) -> ZarrArray:
        spec, (extent, itemsize) = tensor.spec, extent_of(tensor.spec)
        chunk_shape = self.chunk_shapes.get(spec.name)
        if chunk_shape is None:
            # Elements of less than a byte are kept together.
            whole = tuple(max(1, n) for n in extent)
            chunk_shape = whole if spec.dtype.is_sub_byte else chunk_shape_for(extent, itemsize, self.chunk_bytes)
        return ZarrArray(node_of(spec.name), spec, chunk_shape, is_outside=tensor.sharding is SourceSharding.UNLISTED)


def _chunks(array: ZarrArray, index: int, tensor: TargetTensor) -> Iterator[ChunkOutput]:
    extent, itemsize = extent_of(tensor.spec)
    chunk_nbytes, tensors, metadata = array.chunk_nbytes, (index,), dict[str, str]()
    known: dict[Shape, tuple[tuple[TensorSpec], int]] = {}  # nearly all chunks have one shape
    for key, box in array.chunks():
        held = Box(box.start, tuple(map(min, box.stop, extent)))
        shape = held.shape
        if shape not in known:
            known[shape] = (local_spec(tensor.spec, held),), chunk_nbytes - math.prod(shape) * itemsize
        specs, padding_bytes = known[shape]
        yield ChunkOutput((key,), tensors, (held,), specs, metadata, padding_bytes=padding_bytes)


def _shape_problem(spec: TensorSpec, chunk_shape: Shape) -> str:
    """Return why an array cannot be cut into such chunks; empty if it can."""
    extent, _ = extent_of(spec)
    if spec.dtype.is_sub_byte and chunk_shape != extent:
        return f"elements of {spec.dtype.bits} bits are kept together"
    if len(extent) != len(chunk_shape):
        return f"the tensor has {len(extent)} axes"
    if not all(1 <= size <= max(1, n) for n, size in zip(extent, chunk_shape, strict=True)):
        return f"expected 1 up to {list(extent)}"
    first = next((axis for axis, size in enumerate(chunk_shape) if size > 1), len(chunk_shape))
    uneven = [axis for axis in range(first + 1, len(extent)) if extent[axis] % chunk_shape[axis]]
    return f"axes {uneven} of {list(extent)} are not divided evenly" if uneven and 0 not in extent else ""


def chunk_shape_for(extent: Shape, itemsize: int, chunk_bytes: int) -> Shape:
    """Cut an array by rows, into chunks of about a wished size.

    Rows are cut on the first axis of which several rows fit a chunk; on the axes before it chunks have
    extent 1. Chunks may be somewhat smaller to divide the rows evenly, or nearly so.

    Examples
    --------
    >>> chunk_shape_for((151_936, 8192), 2, 64 << 20), chunk_shape_for((8, 14_336, 4096), 2, 64 << 20)
    ((3999, 8192), (1, 7168, 4096))
    >>> chunk_shape_for((11, 30 << 20), 1, 64 << 20), chunk_shape_for((), 8, 64 << 20), chunk_shape_for((0, 3), 2, 1)
    ((1, 31457280), (), (1, 1))
    """
    if 0 in extent:
        return (1,) * len(extent)
    for axis, count in enumerate(extent):
        row_bytes = math.prod(extent[axis + 1 :]) * itemsize
        if row_bytes <= chunk_bytes or axis == len(extent) - 1:
            rows = _rows_for(count, row_bytes, max(1, chunk_bytes // row_bytes), chunk_bytes)
            return (*(1,) * axis, rows, *extent[axis + 1 :])
    return ()


@lru_cache(1 << 16)  # outputs, documents and checks all ask, and for many tensors of the same shape
def _rows_for(count: int, row_bytes: int, most: int, chunk_bytes: int) -> int:
    """Return the number of rows in a chunk that costs least in padding and requests together."""
    fewest = -(-count // most)

    def cost(chunk_count: int) -> int:
        rows = -(-count // chunk_count)
        chunk_count = -(-count // rows)
        return (chunk_count * rows - count) * row_bytes + chunk_count * chunk_bytes // _REQUEST_SHARE

    best = min(range(fewest, min(4 * fewest, fewest + _MOST_TRIED, count) + 1), key=cost)
    return -(-count // best)
