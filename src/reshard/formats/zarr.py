"""zarr v3 without compression: one array a tensor, one object a chunk, JSON documents beside; names and writing.

::

    zarr.json                      the group: the checkpoint's metadata, and all arrays' documents once more
    model.norm.weight/zarr.json    one array: shape, data type, chunks
    model.norm.weight/c/0          a chunk: a box of the tensor, row-major, little-endian, all of one length

Types that zarr has no name for (bfloat16, those of 8 bits and less) are unsigned integers of their width, and the
array's attributes record the true type. Documents of any writer are parsed by ``zarr_read``.

Source: Zarr core specification version 3.0; ``consolidated_metadata`` as zarr-python 3.1.6 writes it inline.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from operator import add
from typing import NamedTuple

from ..errors import FormatError
from ..tensor import Box, DType, Shape, TensorSpec, extent_of
from .strict_json import shown

DOCUMENT = "zarr.json"
ATTRIBUTE = "reshard"
"""The attribute of groups and arrays for everything that zarr has no field for."""
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
_FILL_VALUES = {DType.BOOL: False, DType.C64: [0.0, 0.0], DType.F16: 0.0, DType.F32: 0.0, DType.F64: 0.0}
_UNSAFE = re.compile(r"[^A-Za-z0-9._\-]")
# Names of other objects of a store, and those that zarr reserves.
_RESERVED = re.compile(r"\.|__|.*\.json\Z")


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """How an array's chunks are named; the default encoding begins with ``c``, the older one with the first index.

    Examples
    --------
    >>> ChunkKeys().name((1, 0)), ChunkKeys().name(()), ChunkKeys(".", has_start=False).name((1, 0))
    ('c/1/0', 'c', '1.0')
    """

    separator: str = "/"
    has_start: bool = True

    def name(self, index: Shape) -> str:
        """Return the name of one chunk, relative to its array."""
        steps = ["c"] * self.has_start + [str(i) for i in index]
        return self.separator.join(steps) if steps else "0"


class _Float(NamedTuple):
    """A float type: bits of the fraction, bias of the exponent, and patterns; None if it has no such value."""

    fraction: int
    bias: int
    largest: int
    nan: int
    infinity: int | None = None


_FLOATS = {
    DType.F64: _Float(52, 1023, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0000),
    DType.F32: _Float(23, 127, 0x7F7F_FFFF, 0x7FC0_0000, 0x7F80_0000),
    DType.F16: _Float(10, 15, 0x7BFF, 0x7E00, 0x7C00),
    DType.BF16: _Float(7, 127, 0x7F7F, 0x7FC0, 0x7F80),
    DType.F8_E5M2: _Float(2, 15, 0x7B, 0x7E, 0x7C),
    DType.F8_E4M3: _Float(3, 7, 0x7E, 0x7F),
    DType.F8_E5M2FNUZ: _Float(2, 16, 0x7F, 0x80),
    DType.F8_E4M3FNUZ: _Float(3, 8, 0x7F, 0x80),
    DType.F8_E8M0: _Float(0, 127, 0xFE, 0xFF),
}
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class FillValue:
    """The value of an array's elements in chunks that are not stored.

    ``value`` is the ``fill_value`` of the array's document, in JSON's types, parsed only when it is needed.

    Examples
    --------
    >>> FillValue(DType.BF16, 1.0).element().hex(), FillValue(DType.F32, "NaN").element().hex()
    ('803f', '0000c07f')

    Source: Zarr core specification version 3.0, "Fill value list"; ``bfloat16`` and ``float8_*`` as in zarr-extensions.
    """

    dtype: DType
    value: object

    def element(self) -> bytes:
        """Return one element, little-endian; raise FormatError if the type has no such value.

        Numbers are rounded to the nearest that the type has, ties to even.
        """
        if self.dtype is DType.BOOL and isinstance(self.value, bool):
            return bytes([self.value])
        if self.dtype is DType.C64 and isinstance(self.value, list) and len(self.value) == 2:
            return b"".join(self._float(DType.F32, part) for part in self.value)
        if self.dtype in _FLOATS:
            return self._float(self.dtype, self.value)
        if self.dtype.value[0] in "IU" and type(self.value) is int:
            try:
                return self.value.to_bytes(self.dtype.bits // 8, "little", signed=self.dtype.value.startswith("I"))
            except OverflowError:
                pass
        raise self._invalid()

    def _float(self, dtype: DType, value: object) -> bytes:
        size = dtype.bits // 8
        if isinstance(value, str) and re.fullmatch(f"0x[0-9a-fA-F]{{{2 * size}}}", value):
            return int(value, 16).to_bytes(size, "little")
        number = _SPELLED.get(value) if isinstance(value, str) else value
        try:
            is_number = type(number) in (int, float)
            pattern = _pattern(_FLOATS[dtype], float(number), 8 * size) if is_number else None  # type: ignore[arg-type]
        except OverflowError:
            pattern = None
        if pattern is None:
            raise self._invalid()
        return pattern.to_bytes(size, "little")

    def _invalid(self) -> FormatError:
        return FormatError("fill_value", expected=f"a value of {self.dtype.value}", found=shown(self.value))


def _pattern(kind: _Float, value: float, bits: int) -> int | None:
    """Return the bits of a number, None if the type cannot hold it."""
    if math.isnan(value):
        return kind.nan
    is_negative, magnitude, pattern = math.copysign(1.0, value) < 0, abs(value), None
    if not kind.fraction and (is_negative or not magnitude):
        return None  # powers of two alone
    if math.isinf(magnitude):
        pattern = kind.infinity
    elif not magnitude:
        pattern = 0
    else:
        exponent = max(math.frexp(magnitude)[1] - 1, 1 - kind.bias)
        # The leading bit counts one up into the exponent, and so does a fraction that is rounded up beyond its end.
        count = round(math.ldexp(magnitude, kind.fraction - exponent))
        rounded = count + ((exponent + kind.bias - 1) << kind.fraction)
        pattern = rounded if rounded <= kind.largest else None
    if pattern is None or not is_negative or (not pattern and kind.nan >> (bits - 1)):
        return pattern  # the last: a type whose pattern for -0.0 is NaN
    return pattern | 1 << (bits - 1)


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """One tensor as an array, whose ``path`` is relative to the group.

    ``chunk_shape`` is in elements as they are addressed (:func:`extent_of`), each at least 1. ``is_outside`` tensors
    had no layout in the strategy that they came from. ``fill`` is the value of chunks that are not stored; None if
    this package wrote the array: it stores every chunk.

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
    fill: FillValue | None = None

    @property
    def extent(self) -> Shape:
        """The shape that the array has in zarr."""
        return extent_of(self.spec)[0]

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of every chunk, also of those that extend beyond the array."""
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
        """Yield every chunk: its key, relative to the group, and its box, which may extend beyond the array."""
        starts = [range(0, count * size, size) for count, size in zip(self.counts, self.chunk_shape, strict=True)]
        for index, start in zip(product(*map(range, self.counts)), product(*starts), strict=True):
            yield f"{self.path}/{self.keys.name(index)}", Box(start, tuple(map(add, start, self.chunk_shape)))


def node_of(name: str) -> str:
    """Return the node of a tensor: its own name, if zarr and stores accept it.

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
    """Return an array's ``zarr.json`` in JSON's types."""
    spec = array.spec
    own: dict[str, object] = {"name": spec.name, "dtype": spec.dtype.value}
    if spec.dtype.is_sub_byte:
        own["shape"] = list(spec.shape)
    if array.is_outside:
        own["origin"] = "outside"
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.extent),
        "data_type": DATA_TYPES.get(spec.dtype) or _UNSIGNED[extent_of(spec)[1]],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _FILL_VALUES.get(spec.dtype, 0),
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {ATTRIBUTE: own},
    }


def encode_array(array: ZarrArray) -> bytes:
    """Write an array's ``zarr.json``."""
    return _encode(array_document(array))


def encode_group(arrays: Iterable[ZarrArray], metadata: Mapping[str, str], texts: Mapping[str, str]) -> bytes:
    """Write the group's ``zarr.json``, with all arrays' in it, so that one request opens a checkpoint.

    ``metadata`` and ``texts`` are all that the checkpoint holds besides tensors.
    """
    own = {"version": VERSION, "metadata": dict(metadata), "texts": dict(texts)}
    documents = {array.path: array_document(array) for array in arrays}
    return _encode(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {ATTRIBUTE: own},
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": documents},
        }
    )


def _encode(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
