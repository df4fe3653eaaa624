"""Makes source checkpoints straight in the store, part by part: random bytes that are numbers of their dtype."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from workloads import Tensor, Workload, source_objects

from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.formats.safetensors import plan_header
from reshard.formats.weight_index import encode_weight_index
from reshard.tensor import DType, TensorSpec

BUCKET = "source"
PART_BYTES = 16 << 20
_POOL_BYTES = (16 << 20) + 8 * 4093  # no multiple of a part's or a row's length: bytes out of place are seen
_NOT_A_NUMBER = 0x7F  # of F8_E4M3, with either sign


def put_source(client: Any, workload: Workload, tensors: Sequence[Tensor]) -> int:
    """Put a workload's source and the strategies of both sides into the bucket; return the source's bytes."""
    objects = source_objects(workload, tensors)
    for key, held in objects.items():
        put_object(client, f"{workload.name}/{key}", held)
    if workload.source is None and len(objects) > 1:
        nbytes = sum(tensor.spec.nbytes for tensor in tensors)
        index = encode_weight_index({spec.name: key for key, held in objects.items() for spec, _ in held}, nbytes)
        client.put_object(Bucket=BUCKET, Key=f"{workload.name}/model.safetensors.index.json", Body=index)
    if workload.config is not None:
        config = json.dumps(workload.config(tensors)).encode()
        client.put_object(Bucket=BUCKET, Key=f"{workload.name}/config.json", Body=config)
    for grid in {grid for grid in (workload.source, workload.target) if grid is not None}:
        strategy = encode_protobuf(from_strategy(grid.strategy(tensors)))
        client.put_object(Bucket=BUCKET, Key=f"strategy/{workload.name}/{grid.name}.ckpt", Body=strategy)
    return sum(spec.nbytes for held in objects.values() for spec, _ in held)


def put_object(client: Any, key: str, held: Sequence[tuple[TensorSpec, str]]) -> None:
    """Write one safetensors object, four parts at once."""
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    where = {"Bucket": BUCKET, "Key": key, "UploadId": upload}

    def send(part: tuple[int, bytes]) -> Mapping[str, Any]:
        number, body = part
        return {"PartNumber": number, "ETag": client.upload_part(**where, PartNumber=number, Body=body)["ETag"]}

    etags: list[Mapping[str, Any]] = []
    with ThreadPoolExecutor(4) as pool:
        waiting = []
        for part in enumerate(parts_of(pieces_of(held)), start=1):
            waiting.append(pool.submit(send, part))
            if len(waiting) == 4:  # no more parts in memory than are on their way
                etags.append(waiting.pop(0).result())
        etags += [future.result() for future in waiting]
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": etags})


def pieces_of(held: Sequence[tuple[TensorSpec, str]]) -> Iterator[bytes | memoryview]:
    """The bytes of an object: header, then every tensor in the order that safetensors writes."""
    header = plan_header([spec for spec, _ in held], {"format": "pt"})
    seeds = {spec.name: seed for spec, seed in held}
    yield header.data
    for stored in header.header.tensors:
        yield from noise(stored.spec.dtype, stored.spec.nbytes, seeds[stored.spec.name])


def noise(dtype: DType, nbytes: int, seed: str) -> Iterator[memoryview]:
    """Numbers of a dtype; another seed begins elsewhere in the same pool."""
    pool = memoryview(pool_of(dtype))
    place = zlib.crc32(seed.encode()) % (_POOL_BYTES // 8) * 8
    while nbytes:
        piece = pool[place : place + nbytes]
        yield piece
        nbytes -= len(piece)
        place = 0


@lru_cache(1)
def _bits() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, _POOL_BYTES, np.uint8)


@lru_cache
def pool_of(dtype: DType) -> bytes:
    """Random bytes that are finite numbers: about as large as weights are, or as scales."""
    if dtype is DType.F8_E4M3:
        bits = _bits()
        return np.where(bits & 0x7F == _NOT_A_NUMBER, bits - 1, bits).tobytes()
    numbers = np.random.default_rng(2).standard_normal(_POOL_BYTES // dtype.itemsize, np.float32) * np.float32(0.02)
    if dtype is DType.BF16:
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return numbers.astype({DType.F32: np.float32, DType.F16: np.float16}[dtype]).tobytes()


def parts_of(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same bytes in parts of one size."""
    part = bytearray()
    for piece in pieces:
        left = memoryview(piece)
        while left:
            taken = left[: PART_BYTES - len(part)]
            part += taken
            left = left[len(taken) :]
            if len(part) == PART_BYTES:
                yield bytes(part)
                part.clear()
    if part:
        yield bytes(part)
