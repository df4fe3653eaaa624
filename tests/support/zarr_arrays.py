"""zarr stores as they lie in a store, put together by numpy from nothing but their documents."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping

import numpy as np

_SIZES = {"bool": 1, "complex64": 8, "float16": 2, "float32": 4, "float64": 8}


def decode_zarr(objects: Mapping[str, bytes]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a store that this package wrote, and nothing left over."""
    left = dict(objects)
    root = json.loads(left.pop("zarr.json"))
    assert (root["zarr_format"], root["node_type"]) == (3, "group")
    found = {}
    for path, document in root["consolidated_metadata"]["metadata"].items():
        assert json.loads(left.pop(f"{path}/zarr.json")) == document
        told = document["attributes"]["reshard"]
        body = _array(path, document, left)
        found[told["name"]] = (told["dtype"], tuple(told.get("shape", document["shape"])), body)
    assert not left, "objects of no array"
    return found


def _array(path, document, left):
    shape, chunk = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
    size = _SIZES.get(document["data_type"]) or int(document["data_type"].lstrip("uint")) // 8
    assert [codec["name"] for codec in document["codecs"]] == ["bytes"]
    made = np.zeros((*shape, size), np.uint8)
    for index in itertools.product(*(range(-(-n // c)) for n, c in zip(shape, chunk, strict=True))):
        body = np.frombuffer(left.pop("/".join([path, "c", *map(str, index)])), np.uint8).reshape(*chunk, size)
        held = tuple(slice(i * c, min(n, (i + 1) * c)) for i, n, c in zip(index, shape, chunk, strict=True))
        inside = tuple(slice(0, part.stop - part.start) for part in held)
        made[held] = body[inside]
        padding = body.copy()
        padding[inside] = 0
        assert not padding.any(), "padding that is not zero"
    assert made.size == math.prod(shape) * size
    return made.tobytes()
