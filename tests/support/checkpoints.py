"""Checkpoints for tests: tensors as numpy arrays of bytes, cut by numpy, written as safetensors or ``.ckpt`` objects.

A tensor's array has the tensor's shape and one more axis for the bytes of an element; a tensor of
sub-byte elements is one row of bytes. Nothing here uses the package's own box arithmetic, so that
the two can be compared.
"""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from reshard.formats.container_format import ContainerFormat, ContainerHeader, HeaderTensor
from reshard.formats.containers import Container, read_header
from reshard.formats.frame import Frame
from reshard.formats.mindspore.ckpt import plan_ckpt
from reshard.formats.safetensors import plan_header
from reshard.planning.catalog import Catalog, ObjectHeader, SourceObject
from reshard.planning.sources.full_source import full_catalog
from reshard.planning.sources.rank_source import rank_catalog
from reshard.planning.sources.source_headers import SourceHeaders
from reshard.tensor import Box, ByteRange, DType, Layout, Strategy, TensorSpec, extent_of, row_major_boxes

Array = np.ndarray
Model = Mapping[str, tuple[DType, tuple[int, ...], Array]]
"""By name: dtype, shape, bytes."""

CKPT_TYPES = {
    "BOOL": "Bool", "I8": "Int8", "U8": "UInt8", "I16": "Int16", "U16": "UInt16", "I32": "Int32", "U32": "UInt32",
    "I64": "Int64", "U64": "UInt64", "F16": "Float16", "BF16": "BFloat16", "F32": "Float32", "F64": "Float64",
}  # fmt: skip
"""What ``.ckpt`` calls each dtype that it can hold."""


def array_shape(dtype: DType, shape: Sequence[int]) -> tuple[int, ...]:
    """Of the array that holds a tensor's bytes."""
    if dtype.bits < 8:
        return (math.prod(shape) * dtype.bits // 8, 1)
    return (*shape, dtype.bits // 8)


def random_model(tensors: Mapping[str, tuple[str, tuple[int, ...]]], seed: int = 0) -> Model:
    """Tensors of random bytes, from dtype and shape of each."""
    numbers = random.Random(seed)
    made = {}
    for name, (dtype, shape) in tensors.items():
        extent = array_shape(DType(dtype), shape)
        content = np.frombuffer(numbers.randbytes(math.prod(extent)), np.uint8).reshape(extent)
        made[name] = (DType(dtype), tuple(shape), content)
    return made


def owned(array: Array, layout: Layout, rank: int) -> Array:
    """What one rank of a stage holds of an array, cut by numpy axis after axis."""
    matrix = layout.device_matrix
    last = len(matrix) - 1
    at = [int(i) for i in np.unravel_index(rank, matrix)]
    for axis, entries in enumerate(layout.tensor_map):
        if axis == 0 and layout.row_split:
            index = 0
            for entry in entries:
                index = index * matrix[last - entry] + at[last - entry]
            first = layout.row_split.offsets[index]
            array = array[first : first + layout.row_split.counts[index]]
            continue
        for entry in entries:
            array = np.split(array, matrix[last - entry], axis)[at[last - entry]]
    pieces, place = _optimizer_place(layout, rank)
    return np.split(array, pieces, 0)[place % pieces] if pieces > 1 else array


def _optimizer_place(layout: Layout, rank: int) -> tuple[int, int]:
    """Pieces that the optimizer cuts a slice into, and the rank's place among those with its slice."""
    matrix = layout.device_matrix
    used = [len(matrix) - 1 - entry for axis in layout.tensor_map for entry in axis]
    coordinates = [tuple(int(i) for i in np.unravel_index(r, matrix)) for r in range(math.prod(matrix))]
    same = [r for r, c in enumerate(coordinates) if all(c[d] == coordinates[rank][d] for d in used)]
    size = layout.optimizer_shard_size
    return (len(same) if size == -1 else max(1, size)), same.index(rank)


def shard(model: Model, strategy: Strategy, rank: int) -> Model:
    """What one rank holds: its slices, and whole what the strategy does not name."""
    layouts = strategy.stages[rank // strategy.device_count]
    held = {}
    for name, (dtype, shape, array) in model.items():
        layout = layouts.get(name)
        if layout is None:
            if name not in strategy.names:
                held[name] = (dtype, shape, array)
            continue
        if dtype.bits < 8:
            held[name] = (dtype, shape, array)
            continue
        part = owned(array, layout, rank % strategy.device_count)
        held[name] = (dtype, part.shape[:-1], part)
    return held


def shards(model: Model, strategy: Strategy, dropped: Iterable[tuple[int, str]] = ()) -> dict[int, Model]:
    """What every rank holds, but for ``dropped`` (rank, name)."""
    gone = set(dropped)
    return {
        rank: {name: value for name, value in shard(model, strategy, rank).items() if (rank, name) not in gone}
        for rank in range(strategy.rank_count)
    }


def rank_key(rank: int | str, prefix: str = "checkpoint_", suffix: str = ".safetensors") -> str:
    return f"rank_{rank}/{prefix}{rank}{suffix}"


def encode(model: Model, metadata: Mapping[str, str] | None = None) -> bytes:
    """One safetensors object."""
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape, _) in model.items()]
    made = plan_header(specs, metadata or {})
    bodies = [np.ascontiguousarray(model[item.spec.name][2]).tobytes() for item in made.header.tensors]
    return made.data + b"".join(bodies)


def encode_ckpt(
    model: Model,
    texts: Mapping[str, str] | None = None,
    *,
    piece_elements: int = 10**9,
    types: Mapping[str, str] | None = None,
    has_crc: bool = False,
) -> bytes:
    """One ``.ckpt`` object, written by hand.

    Tensors of more than ``piece_elements`` elements are several values; ``types`` are names of types
    that are not the usual ones of their dtypes.
    """
    body = b""
    for name, (dtype, shape, array) in model.items():
        content, called = np.ascontiguousarray(array).tobytes(), (types or {}).get(name, CKPT_TYPES[dtype.value])
        piece = piece_elements * (dtype.bits // 8)
        for first in range(0, max(1, len(content)), piece):
            body += ckpt_value(name, shape, called, content[first : first + piece])
    for name, text in (texts or {}).items():
        body += ckpt_value(name, (0,), "str", text.encode("utf-32-le") or bytes(4))
    return body + crc_tail(body) if has_crc else body


def ckpt_value(name: str, shape: Sequence[int], called: str, content: bytes) -> bytes:
    """One value of a ``.ckpt`` object."""
    dims = b"".join(b"\x08" + _varint(extent) for extent in shape)
    return _field(1, _field(1, name.encode()) + _field(2, dims + _field(2, called.encode()) + _field(3, content)))


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


Listed = list[tuple[str, str, tuple[int, ...], list[tuple[int, int]]]]
"""Of each tensor in the order of the object: name, dtype, shape, and the bytes of the object that hold it."""


def list_safetensors(body: bytes) -> tuple[Listed, dict[str, str]]:
    """What a safetensors object says it holds, and its metadata; the tensors' bytes may be anything."""
    length = int.from_bytes(body[:8], "little")
    assert length % 8 == 0
    entries = json.loads(body[8 : 8 + length])
    metadata = entries.pop("__metadata__", {})
    found, reached = [], 8 + length
    for name, entry in entries.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        assert start == reached, f"{name} does not begin where the tensor before it ends"
        reached = stop
        found.append((name, entry["dtype"], tuple(entry["shape"]), [(start, stop)]))
    assert reached == len(body)
    return found, metadata


def list_ckpt(body: bytes) -> tuple[Listed, dict[str, str], dict[str, str]]:
    """What a ``.ckpt`` object says it holds, its texts, and the types of tensors that are packed int4."""
    names = {called: dtype for dtype, called in CKPT_TYPES.items()} | {"Int4": "I8"}
    found, texts, packed = [], {}, {}
    end = len(body) - 17 if body[-17:-10] == b"crc_num" else len(body)
    for number, start, stop in _payloads(body, 0, end):
        assert number == 1
        (_, *tag), (_, *inner) = _payloads(body, start, stop)
        name, fields = body[slice(*tag)].decode(), list(_payloads(body, *inner))
        shape = tuple(value for number, value, _ in fields if number == 1)
        [called] = [body[a:b].decode() for number, a, b in fields if number == 2]
        [content] = [(a, b) for number, a, b in fields if number == 3]
        if called == "str":
            texts[name] = body[slice(*content)].decode("utf-32-le").rstrip("\0")
        elif found and found[-1][0] == name:
            assert found[-1][1:3] == (names[called], shape)
            found[-1][3].append(content)
        else:
            assert name not in {each[0] for each in found}, f"{name} is there twice"
            found.append((name, names[called], shape, [content]))
            packed |= {name: called} if called == "Int4" else {}
    return found, texts, packed


def _payloads(body: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    while at < stop:
        number, start, end = _payload(body, at)
        yield number, start, end
        at = _read_varint(body, at + 1)[1] if end < 0 else end
    assert at == stop


def _payload(body: bytes, at: int) -> tuple[int, int, int]:
    """Number, start and stop of a field; of one that is a number, the number and -1."""
    value, start = _read_varint(body, at + 1)
    assert body[at] & 7 in (0, 2)
    return (body[at] >> 3, start, start + value) if body[at] & 7 else (body[at] >> 3, value, -1)


def _read_varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (body[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if body[at - 1] < 128:
            return value, at


def decode(body: bytes) -> tuple[dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, str]]:
    """Dtype, shape and bytes of every tensor of a safetensors object, and its metadata."""
    found, metadata = list_safetensors(body)
    return _with_bytes(found, body), metadata


def decode_ckpt(body: bytes) -> tuple[dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, str]]:
    """Dtype, shape and bytes of every tensor of a ``.ckpt`` object, and its texts."""
    found, texts, _ = list_ckpt(body)
    return _with_bytes(found, body), texts


def _with_bytes(found: Listed, body: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (dtype, shape, b"".join(body[a:b] for a, b in spans)) for name, dtype, shape, spans in found}


def contents(model: Model) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A model as :func:`decode` tells it."""
    return {
        name: (dtype.value, tuple(shape), np.ascontiguousarray(array).tobytes())
        for name, (dtype, shape, array) in model.items()
    }


def catalog_of_objects(objects: Mapping[str, Model], url: str = "memory://source") -> Catalog:
    """The catalog of whole tensors in several objects."""
    return full_catalog(SourceHeaders(url, "test", [header_of(key, encode(model)) for key, model in objects.items()]))


def catalog_of_ranks(held: Mapping[int, Model], strategy: Strategy, url: str = "memory://source") -> Catalog:
    """The catalog of rank shards."""
    headers = [header_of(rank_key(rank), encode(model)) for rank, model in held.items()]
    return rank_catalog(SourceHeaders(url, "test", headers), tuple(held), strategy)


def header_of(key: str, body: bytes) -> ObjectHeader:
    """The header of a safetensors object."""
    return ObjectHeader.of(SourceObject(key, len(body), f"etag of {key}"), header_in(body))


def header_of_ckpt(key: str, body: bytes) -> ObjectHeader:
    """The header of a ``.ckpt`` object."""
    _, texts, packed = list_ckpt(body)
    tensors = header_in(body, Container.CKPT).tensors
    return ObjectHeader(SourceObject(key, len(body), f"etag of {key}"), tensors, packed, texts)


def header_in(body: bytes, container: Container = Container.SAFETENSORS) -> ContainerHeader:
    """The header of an object."""
    return read_header(container, len(body), lambda span: body[span.start : span.stop])


def planned_header(frame: Frame, specs: Sequence[TensorSpec]) -> tuple[HeaderTensor, ...]:
    """The tensors that a frame lays out, as the header of the finished object has them."""
    boxes: list[list[tuple[Box, int]]] = [[] for _ in specs]
    for extent in frame.extents:
        start = extent.start
        stop = extent.first_element + extent.element_count
        for box in row_major_boxes(extent_of(specs[extent.slot])[0], extent.first_element, stop):
            boxes[extent.slot].append((box, start))
            start += box.element_count * extent.itemsize
    return tuple(HeaderTensor(spec, tuple(held)) for spec, held in zip(specs, boxes, strict=True))


def assembled(frame: Frame, contents: Sequence[bytes]) -> bytes:
    """The object of a frame, from the bytes of each of its tensors."""
    body = bytearray(frame.nbytes)
    for place, data in frame.literals:
        body[place : place + len(data)] = data
    for extent in frame.extents:
        first = extent.first_element * extent.itemsize
        body[extent.start : extent.stop] = contents[extent.slot][first : first + extent.stop - extent.start]
    return bytes(body)


def ckpt_in_pieces(piece_bytes: int) -> ContainerFormat:
    """The ``.ckpt`` format with smaller values, so that tensors of a few bytes are several."""
    return replace(Container.CKPT.definition, make_frame=partial(plan_ckpt, piece_bytes=piece_bytes))


def content_of(tensor: HeaderTensor, body: bytes) -> bytes:
    """A tensor's bytes in its object."""
    itemsize = extent_of(tensor.spec)[1]
    return b"".join(body[start : start + box.element_count * itemsize] for box, start in tensor.boxes)


def crc_tail(body: bytes) -> bytes:
    """The checksum that may end a ``.ckpt`` object."""
    return b"crc_num" + zlib.crc32(body).to_bytes(10, "big")


def put_full(location, objects: Mapping[str, Model]) -> None:
    """Write whole tensors, in several objects with an index when there are several."""
    for key, model in objects.items():
        location.store.put(location.child(key).key, encode(model))
    if len(objects) > 1:
        weight_map = {name: key for key, model in objects.items() for name in model}
        index = json.dumps({"weight_map": weight_map}).encode()
        location.store.put(location.child("model.safetensors.index.json").key, index)


def put_ranks(location, held: Mapping[int, Model]) -> None:
    """Write rank shards."""
    for rank, model in held.items():
        location.store.put(location.child(rank_key(rank)).key, encode(model))


def stored(location) -> dict[str, bytes]:
    """Every object below a place."""
    return {
        name: location.store.read(info.key, ByteRange(0, info.nbytes)) if info.nbytes else b""
        for name, info in location.named_objects()
    }
