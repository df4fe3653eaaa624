"""Tensors put into memory stores, and all that a conversion left there read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from uuid import uuid4

import numpy as np

from reshard.storage import MemoryStore, open_location
from reshard.tensor import DType

from .checkpoints import decode, decode_ckpt, encode, encode_ckpt, stored
from .model_cases import NUMPY

Arrays = Mapping[str, np.ndarray]

_DTYPES = {np.dtype(kind): dtype for dtype, kind in NUMPY.items()}


def new_place() -> str:
    """URL of an empty store of its own."""
    return f"memory://{uuid4().hex}"


def put(url: str, data: bytes) -> str:
    """One object."""
    place = open_location(url)
    assert isinstance(place.store, MemoryStore)
    place.store.put(place.key, data)
    return url


def put_model(url: str, tensors: Arrays, config: Mapping[str, object] | None = None) -> str:
    """A whole checkpoint as one object, with its config.json beside it unless it is named."""
    name = url if url.endswith((".safetensors", ".ckpt")) else f"{url}/model.safetensors"
    model = {key: (_DTYPES[array.dtype], array.shape, as_bytes(array)) for key, array in tensors.items()}
    put(name, (encode_ckpt if name.endswith(".ckpt") else encode)(model))
    if config is not None:
        put(f"{name.rpartition('/')[0]}/config.json", json.dumps(config).encode())
    return url


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The same with one more axis, for the bytes of an element."""
    flat = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    return flat.reshape(*array.shape, array.dtype.itemsize)


def objects_at(url: str) -> dict[str, bytes]:
    """Every object with tensors, by its key; the object itself if one is named."""
    if url.endswith((".safetensors", ".ckpt")):
        above, _, name = url.rpartition("/")
        return {name: stored(open_location(above))[name]}
    return {key: data for key, data in stored(open_location(url)).items() if key.endswith((".safetensors", ".ckpt"))}


def arrays_at(url: str, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Every tensor of a whole checkpoint, each of which is in one object."""
    made: dict[str, np.ndarray] = {}
    for key, data in objects_at(url).items():
        if keys is None or key in keys:
            found = (decode_ckpt if key.endswith(".ckpt") else decode)(data)[0]
            assert made.keys().isdisjoint(found)
            made |= {name: _array(*value) for name, value in found.items()}
    return made


def _array(dtype: str, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    return np.frombuffer(data, NUMPY[DType(dtype)]).reshape(shape)
