"""zarr v3 without compression: one array a tensor, one object a chunk, JSON documents beside.

::

    zarr.json                      the group: what the checkpoint says of itself, and all arrays' documents once more
    model.norm.weight/zarr.json    one array: shape, data type, chunks
    model.norm.weight/c/0          a chunk: a box of the tensor, row-major, little-endian, as long as any other

Types that zarr has no word for (bfloat16, those of 8 bits and less) are unsigned integers of their width, and the
array's attributes tell the true one.

Source: Zarr core specification version 3.0; ``consolidated_metadata`` as zarr-python 3.1.6 writes it inline.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ..tensor import Box, DType, Shape, TensorSpec, extent_of
from .zarr_fill import Fill

DOCUMENT = "zarr.json"
ATTRIBUTE = "reshard"
"""The attribute of groups and arrays that holds what zarr has no field for."""
VERSION = 1
MAX_NODE_LENGTH = 255
"""Longest name of a node, in characters: no file system takes a longer one."""

DATA_TYPES = {
    DType.BOOL: "bool",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.I16: "int16",
    DType.U16: "uint16",
    DType.F16: "float16",
    DType.I32: "int32",
    DType.U32: "uint32",
    DType.F32: "float32",
    DType.C64: "complex64",
    DType.F64: "float64",
    DType.I64: "int64",
    DType.U64: "uint64",
}
"""Types that every zarr reader has; arrays of others are written as unsigned integers."""

_UNSIGNED = {1: "uint8", 2: "uint16"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._\-]")
# What other objects of a store are called, and what zarr keeps for itself.
_RESERVED = re.compile(r"\.|__|.*\.json\Z")


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """How an array's chunks are called; the default encoding begins with ``c``, the older one with the first index.

    Examples
    --------
    >>> ChunkKeys().name((1, 0)), ChunkKeys().name(()), ChunkKeys(".", has_start=False).name((1, 0))
    ('c/1/0', 'c', '1.0')
    """

    separator: str = "/"
    has_start: bool = True

    def name(self, index: Shape) -> str:
        """The name of one chunk, counted from its array."""
        steps = ["c"] * self.has_start + [str(i) for i in index]
        return self.separator.join(steps) if steps else "0"


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """One tensor as an array.

    Parameters
    ----------
    path
        Of the array, counted from the group.
    spec
        The tensor.
    chunk_shape
        In elements as they are addressed (:func:`extent_of`); every extent is at least 1.
    keys
        How the chunks are called.
    is_outside
        Whether the tensor was in no layout of the strategy that it came from.
    fill
        What chunks hold that are not stored; None if this package wrote the array: it stores every chunk.

    Examples
    --------
    >>> array = ZarrArray("w", TensorSpec("w", DType.BF16, (5, 4)), (2, 4))
    >>> array.counts, array.chunk_nbytes, list(array.chunks())[2]
    ((3, 1), 16, ('w/c/2/0', Box(start=(4, 0), stop=(6, 4))))
    """

    path: str
    spec: TensorSpec
    chunk_shape: Shape
    keys: ChunkKeys = ChunkKeys()
    is_outside: bool = False
    fill: Fill | None = None

    @property
    def extent(self) -> Shape:
        """The shape that the array has in zarr."""
        return extent_of(self.spec)[0]

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of every chunk, also of those that hang over the array's end."""
        return math.prod(self.chunk_shape) * extent_of(self.spec)[1]

    @property
    def counts(self) -> Shape:
        """Chunks along each axis."""
        return tuple(-(-n // size) for n, size in zip(self.extent, self.chunk_shape, strict=True))

    @property
    def chunk_count(self) -> int:
        """Chunks altogether; none of an array without elements."""
        return math.prod(self.counts)

    def chunks(self) -> Iterator[tuple[str, Box]]:
        """Every chunk: its key, counted from the group, and its box, which may hang over the array's end."""
        for index in product(*map(range, self.counts)):
            start = tuple(i * size for i, size in zip(index, self.chunk_shape, strict=True))
            yield f"{self.path}/{self.keys.name(index)}", Box((0,) * len(start), self.chunk_shape).shifted(start)


def node_of(name: str) -> str:
    """The node that a tensor becomes: its own name, where zarr and stores take that.

    Other characters are written as their UTF-8 bytes, ``%`` and two digits each, so no two names become one.

    Examples
    --------
    >>> node_of("model.layers.0.mlp.up_proj.weight"), node_of("a/b c"), node_of(".."), node_of("__x"), node_of("")
    ('model.layers.0.mlp.up_proj.weight', 'a%2Fb%20c', '%2E.', '%5F_x', '%')
    """
    if not name:
        return "%"
    node = _UNSAFE.sub(lambda found: _escaped(found[0]), name)
    return _escaped(node[0]) + node[1:] if _RESERVED.match(node) and node[0] != "%" else node


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def array_document(array: ZarrArray) -> dict[str, object]:
    """An array's ``zarr.json``, in JSON's types."""
    spec = array.spec
    told: dict[str, object] = {"name": spec.name, "dtype": spec.dtype.value}
    if spec.dtype.is_sub_byte:
        told["shape"] = list(spec.shape)
    if array.is_outside:
        told["origin"] = "outside"
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.extent),
        "data_type": DATA_TYPES.get(spec.dtype) or _UNSIGNED[extent_of(spec)[1]],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _fill_value(spec.dtype),
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {ATTRIBUTE: told},
    }


def _fill_value(dtype: DType) -> object:
    if dtype is DType.BOOL:
        return False
    if dtype is DType.C64:
        return [0.0, 0.0]
    return 0.0 if dtype in (DType.F16, DType.F32, DType.F64) else 0


def encode_array(array: ZarrArray) -> bytes:
    """Write an array's ``zarr.json``."""
    return _encode(array_document(array))


def encode_group(arrays: Iterable[ZarrArray], metadata: Mapping[str, str], texts: Mapping[str, str]) -> bytes:
    """Write the group's ``zarr.json``, with all arrays' in it, so that one request opens a checkpoint.

    Parameters
    ----------
    arrays
        In the order that readers shall see.
    metadata, texts
        What the checkpoint holds besides tensors.
    """
    told = {"version": VERSION, "metadata": dict(metadata), "texts": dict(texts)}
    documents = {array.path: array_document(array) for array in arrays}
    return _encode(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {ATTRIBUTE: told},
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": documents},
        }
    )


def _encode(document: Mapping[str, object] | Sequence[object]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
