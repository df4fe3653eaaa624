"""Checkpoints for tests: tensors as numpy arrays of bytes, cut by numpy, written as safetensors objects.

A tensor's array has the tensor's shape and one more axis for the bytes of an element; a tensor of
sub-byte elements is one row of bytes. Nothing here uses the package's own box arithmetic, so that
the two can be compared.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from reshard.formats.safetensors import parse_header, plan_header
from reshard.planning.catalog import Catalog, Contents, SourceObject, Stored
from reshard.planning.rank_source import rank_catalog
from reshard.planning.sources import full_catalog
from reshard.tensor import Box, ByteRange, DType, Layout, Strategy, TensorSpec, extent_of

Array = np.ndarray
Model = Mapping[str, tuple[DType, tuple[int, ...], Array]]
"""By name: dtype, shape, bytes."""


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


def rank_key(rank: int | str, prefix: str = "checkpoint_") -> str:
    return f"rank_{rank}/{prefix}{rank}.safetensors"


def encode(model: Model, metadata: Mapping[str, str] | None = None) -> bytes:
    """One safetensors object."""
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape, _) in model.items()]
    made = plan_header(specs, metadata or {})
    bodies = [np.ascontiguousarray(model[item.spec.name][2]).tobytes() for item in made.header.tensors]
    return made.data + b"".join(bodies)


def decode(body: bytes) -> tuple[dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, str]]:
    """Dtype, shape and bytes of every tensor of a safetensors object, and its metadata."""
    length = int.from_bytes(body[:8], "little")
    entries = json.loads(body[8 : 8 + length])
    metadata = entries.pop("__metadata__", {})
    found, reached = {}, 0
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        assert start == reached, f"{name} does not begin where the tensor before it ends"
        reached = stop
        found[name] = (entry["dtype"], tuple(entry["shape"]), body[8 + length + start : 8 + length + stop])
    assert reached == len(body) - 8 - length
    return found, metadata


def contents(model: Model) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A model as :func:`decode` tells it."""
    return {
        name: (dtype.value, tuple(shape), np.ascontiguousarray(array).tobytes())
        for name, (dtype, shape, array) in model.items()
    }


def catalog_of_objects(objects: Mapping[str, Model], url: str = "memory://source") -> Catalog:
    """The catalog of whole tensors in several objects."""
    return full_catalog(url, "test", [_opened(key, model) for key, model in objects.items()])


def catalog_of_ranks(held: Mapping[int, Model], strategy: Strategy, url: str = "memory://source") -> Catalog:
    """The catalog of rank shards."""
    opened = {rank: _opened(rank_key(rank), model) for rank, model in held.items()}
    return rank_catalog(url, opened, strategy)[0]


def _opened(key, model):
    body = encode(model)
    return SourceObject(key, len(body), f"etag of {key}"), held_by(body)


def held_by(body: bytes) -> Contents:
    """What a safetensors object holds."""
    header = parse_header(body, len(body))
    tensors = tuple(
        Stored(item.spec, ((Box.whole(extent_of(item.spec)[0]), item.range.start),)) for item in header.tensors
    )
    return Contents(tensors, header.metadata, index_bytes=header.data_start)


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
