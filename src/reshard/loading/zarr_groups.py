"""zarr stores as groups of zarr-python, over the object stores of this package; the one module that imports zarr.

Importing it registers what zarr-python has not: bfloat16 and the types of 8 bits, as those of ml_dtypes, and a codec
for plain bytes that reads the rows of a chunk that are asked for instead of the whole chunk.

Source: zarr-python 3.1.6, ``zarr.abc.store``, ``zarr.abc.codec`` and ``zarr.dtype``; names of data types as in
zarr-extensions and tensorstore.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import zarr
from zarr import Group as Group
from zarr.abc.codec import ArrayBytesCodecPartialDecodeMixin
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.codecs import BytesCodec
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import DataTypeValidationError, ZDType, data_type_registry
from zarr.errors import ContainsArrayError
from zarr.registry import register_codec

from ..engine.kernels.numpy_dtypes import NUMPY
from ..errors import CatalogError, FormatError, StorageError, Unsupported
from ..formats.zarr import ATTRIBUTE, DOCUMENT, FillValue
from ..formats.zarr_read import EXTENSION_TYPES, is_group, parse_node
from ..storage import Location, ObjectInfo, open_source
from ..tensor import ByteRange, DType

_MAX_DOCUMENT_BYTES = 64 << 20
_RANGES = "reshard.ranges"
_NAMES = {dtype.value: name for name, dtype in EXTENSION_TYPES.items()}
_READ_ONLY = "open_zarr opens a store for reading only; write one with convert and form='zarr'"


def open_group(location: Location) -> Group:
    """Open the zarr store below a location; CatalogError if there is none of version 3."""
    objects = dict(location.named_objects())
    if DOCUMENT not in objects:
        raise CatalogError(
            f"{location.url}: expected a zarr store of version 3, found {len(objects)} objects and no {DOCUMENT}",
            hint="Write one with convert and form='zarr', or name the prefix that holds zarr.json.",
        )
    try:
        return zarr.open_group(PinnedStore(location, objects), mode="r", zarr_format=3)
    except ContainsArrayError as error:
        hint = "Name the prefix of the group that holds the array."
        raise CatalogError(f"{location.url}: expected a group of arrays, found a single array", hint=hint) from error


class PinnedStore(Store):
    """The objects below a location as they were when it was opened, for zarr-python to read.

    Each read is pinned to the etag of its object: SourceChanged once that is another. Arrays that this package wrote
    have the dtypes of their tensors, and are complete: a chunk that is missing is a CatalogError. What is missing of
    other writers' arrays is a fill value, as everywhere in zarr. It can be pickled, and opens the same objects.
    """

    def __init__(self, location: Location, objects: Mapping[str, ObjectInfo], complete: Iterable[str] = ()) -> None:
        super().__init__(read_only=True)
        self._location = location
        self._objects = objects
        self._complete = set(complete)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._location.url, self._objects, frozenset(self._complete))

    def __eq__(self, value: object) -> bool:
        return (
            isinstance(value, PinnedStore)
            and self._location.identity == value._location.identity
            and self._objects == value._objects
        )

    def __str__(self) -> str:
        return self._location.url

    def __repr__(self) -> str:
        return f"PinnedStore({self._location.url!r})"

    async def get(self, key: str, prototype: Any, byte_range: ByteRequest | None = None) -> Any:
        """Read an object, or a range of it; None if there is no such object."""
        if (info := self._objects.get(key)) is None:
            self._check_complete(key)
            return None
        is_document = key.rpartition("/")[2] == DOCUMENT
        if is_document and info.nbytes > _MAX_DOCUMENT_BYTES:
            where, limit = f"{self._location.url}/{key}", f"at most {_MAX_DOCUMENT_BYTES} bytes"
            raise FormatError("too long for a document", where=where, expected=limit, found=str(info.nbytes))
        span = ByteRange(0, info.nbytes) if is_document else _span(byte_range, info.nbytes)
        data = await asyncio.to_thread(self._read, info, span)
        if is_document:
            data = self._document(key, data.tobytes())
            span = _span(byte_range, data.nbytes)
            data = data[span.start : span.stop]
        return prototype.buffer.from_array_like(data)

    async def get_partial_values(
        self, prototype: Any, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Any]:
        """Read several ranges at once."""
        return await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether the object was there when the store was opened."""
        return key in self._objects

    async def getsize(self, key: str) -> int:
        """Return the bytes of an object; FileNotFoundError if there is none."""
        if key not in self._objects:
            raise FileNotFoundError(key)
        return self._objects[key].nbytes

    async def list(self) -> AsyncIterator[str]:
        """Yield the names of all objects."""
        for key in self._objects:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of objects that start with a prefix."""
        for key in self._objects:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of objects and prefixes directly below a prefix."""
        for name in self._folders.get(prefix.strip("/"), ()):
            yield name

    supports_listing = True
    supports_writes = False
    supports_deletes = False

    async def set(self, key: str, value: Any) -> None:
        """Refuse to write."""
        raise Unsupported(f"{self._location.url}/{key}: {_READ_ONLY}")

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        raise Unsupported(f"{self._location.url}/{key}: {_READ_ONLY}")

    @cached_property
    def _folders(self) -> Mapping[str, Mapping[str, None]]:
        found: dict[str, dict[str, None]] = {}
        for key in self._objects:
            below = key
            while below:
                above, _, name = below.rpartition("/")
                if name in (children := found.setdefault(above, {})):
                    break
                children[name] = None
                below = above
        return found

    def _read(self, info: ObjectInfo, span: ByteRange) -> Any:
        data = np.empty(span.nbytes, np.uint8)
        self._location.store.read_into(info.key, span, data.data, info.etag)
        return data

    def _document(self, key: str, data: bytes) -> Any:
        """Return a document with the names of what this module registers in it."""
        where = f"{self._location.url}/{key}"
        node, path = parse_node(data, where), key.removesuffix(DOCUMENT).rstrip("/")
        if not is_group(node):
            node = self._array(path, node)
        elif isinstance(held := node.get("consolidated_metadata"), dict) and isinstance(held.get("metadata"), dict):
            nodes = {f"{path}/{name}".lstrip("/"): (name, each) for name, each in held["metadata"].items()}
            shown = {name: self._array(full, each) for full, (name, each) in nodes.items()}
            node["consolidated_metadata"] = held | {"metadata": shown}
        return np.frombuffer(json.dumps(node).encode(), np.uint8)

    def _array(self, path: str, node: Any) -> Any:
        """Return an array's document as zarr-python shall read it; any other as it is."""
        if not isinstance(node, dict) or node.get("node_type") != "array":
            return node
        attributes, codecs, shown = node.get("attributes"), node.get("codecs"), dict(node)
        own = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
        if isinstance(own, dict):
            self._complete.add(path)
            if (name := _NAMES.get(str(own.get("dtype")))) and type(fill := node.get("fill_value")) is int:
                bits = EXTENSION_TYPES[name].bits
                shown |= {"data_type": name, "fill_value": f"0x{fill:0{bits // 4}x}"}
        if isinstance(codecs, list) and len(codecs) == 1 and isinstance(codecs[0], dict):
            shown["codecs"] = [codecs[0] | {"name": _RANGES}] if codecs[0].get("name") == "bytes" else codecs
        return shown

    def _check_complete(self, key: str) -> None:
        path = key.rpartition("/c/")[0] or key.removesuffix("/c")
        if path != key and path in self._complete:
            hint = "reshard writes every chunk: this one was removed since. Convert the checkpoint again."
            raise CatalogError(f"{self._location.url}/{key}: a chunk is missing", hint=hint)


def _reopened(url: str, objects: Mapping[str, ObjectInfo], complete: Iterable[str]) -> PinnedStore:
    return PinnedStore(open_source(url), objects, complete)


def _span(request: ByteRequest | None, nbytes: int) -> ByteRange:
    if request is None:
        return ByteRange(0, nbytes)
    if isinstance(request, RangeByteRequest):
        return ByteRange(min(request.start, nbytes), min(request.end, nbytes))
    if isinstance(request, OffsetByteRequest):
        return ByteRange(min(request.offset, nbytes), nbytes)
    return ByteRange(max(0, nbytes - request.suffix), nbytes)


class RangesCodec(BytesCodec, ArrayBytesCodecPartialDecodeMixin):
    """zarr's codec ``bytes``, which reads what lies between the first and the last row that it needs of a chunk."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the codec from a document that :class:`PinnedStore` shows."""
        return super().from_dict(data | {"name": "bytes"})

    async def _decode_partial_single(self, byte_getter: Any, selection: Any, chunk_spec: Any) -> Any:
        bounds = _leading_bounds(selection, chunk_spec.shape)
        rest = chunk_spec.shape[len(bounds) :]
        shape = (*(stop - start for start, stop in bounds), *rest)
        byte_range = None
        if shape != chunk_spec.shape:  # a whole chunk is read without a range, so that its length is compared
            row_bytes = math.prod(rest) * chunk_spec.dtype.to_native_dtype().itemsize
            first = 0
            for (start, _), size in zip(bounds, chunk_spec.shape, strict=False):
                first = first * size + start
            nbytes = math.prod(shape[: len(bounds)]) * row_bytes
            byte_range = RangeByteRequest(first * row_bytes, first * row_bytes + nbytes)
        data = await byte_getter.get(chunk_spec.prototype, byte_range)
        if data is None:
            return None
        if byte_range and len(data) != nbytes:
            raise StorageError(f"{byte_getter}: expected bytes up to {byte_range.end}, found {len(data)} of {nbytes}")
        decoded = await self._decode_single(data, replace(chunk_spec, shape=shape))
        return decoded[_shifted(selection, bounds, chunk_spec.shape)]


def _leading_bounds(selection: Any, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the first index and one past the last of the leading axes, up to the first that has several.

    The elements between are contiguous. Nothing, for a selection that is not one index for each axis.
    """
    found: list[tuple[int, int]] = []
    if not isinstance(selection, tuple) or len(selection) != len(shape):
        return found
    for each, size in zip(selection, shape, strict=True):
        indices = range(size)[each] if isinstance(each, slice) else np.atleast_1d(np.asarray(each))
        if not isinstance(indices, range) and indices.dtype == np.bool_:
            return found
        if not len(indices):
            return found
        low, high = (indices[0], indices[-1]) if isinstance(indices, range) else (indices.min(), indices.max())
        found.append((int(min(low, high)), int(max(low, high)) + 1))
        if low != high:
            break
    return found


def _shifted(selection: Any, bounds: list[tuple[int, int]], shape: tuple[int, ...]) -> Any:
    """Count a selection from the first element that was read."""
    if not bounds:
        return selection
    moved = []
    for each, (start, _), size in zip(selection, bounds, shape, strict=False):
        if isinstance(each, slice):
            first, last, step = each.indices(size)
            moved.append(slice(first - start, last - start, step))
        else:
            moved.append(each - start)
    return (*moved, *selection[len(bounds) :])


@dataclass(frozen=True, kw_only=True, slots=True)
class _MlDtype(ZDType[Any, Any], HasItemSize):
    """A data type of ml_dtypes; the classes made below name which."""

    kept: ClassVar[DType]

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        if dtype == NUMPY[cls.kept]:
            return cls()
        raise DataTypeValidationError(f"expected {NUMPY[cls.kept]}, found {dtype}")

    def to_native_dtype(self) -> Any:
        return NUMPY[self.kept]

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:
        raise DataTypeValidationError(f"{cls._zarr_v3_name} is a type of version 3, found {data!r}")

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"expected {cls._zarr_v3_name}, found {data!r}")

    def to_json(self, zarr_format: Any) -> Any:
        if zarr_format != 3:
            raise DataTypeValidationError(f"zarr of version {zarr_format} has no {self._zarr_v3_name}")
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> Any:
        return isinstance(data, int | float | np.number | NUMPY[self.kept].type)

    def cast_scalar(self, data: object) -> Any:
        return self.to_native_dtype().type(data)

    def default_scalar(self) -> Any:
        return self.from_json_scalar(1.0 if self.kept is DType.F8_E8M0 else 0.0, zarr_format=3)  # it has no zero

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        return np.frombuffer(FillValue(self.kept, data).element(), self.to_native_dtype())[0]

    def to_json_scalar(self, data: object, *, zarr_format: Any) -> Any:
        bits = np.asarray(self.cast_scalar(data)).tobytes()[::-1].hex()
        number = float(self.cast_scalar(data))
        return number if math.isfinite(number) else f"0x{bits}"

    @property
    def item_size(self) -> int:
        return self.to_native_dtype().itemsize  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, slots=True)
class _WideMlDtype(_MlDtype, HasEndianness):
    """One of several bytes; ml_dtypes has none that are big-endian."""

    def __post_init__(self) -> None:
        if self.endianness == "big":
            raise Unsupported(f"big-endian {self._zarr_v3_name} cannot be read")


def _register() -> None:
    register_codec(_RANGES, RangesCodec)
    for name, dtype in EXTENSION_TYPES.items():
        if name in data_type_registry.contents:
            continue  # zarr-python's own, or another package's
        base = _WideMlDtype if dtype.bits > 8 else _MlDtype
        members = {"kept": dtype, "_zarr_v3_name": name, "dtype_cls": type(NUMPY[dtype]), "__slots__": ()}
        made = type(dtype.value, (base,), members | {"__module__": __name__})
        globals()[dtype.value] = made  # where pickle looks for it
        data_type_registry.register(name, made)


_register()
