"""Distributed checkpoints as torch writes them, without torch: classes of its names, pickled, and zip archives."""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

from reshard.tensor import Box

from .checkpoints import Array, Model

_CHECKPOINT = "torch.distributed.checkpoint"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "I64": "int64", "U8": "uint8"}
_STORAGES = {"F32": "Float", "BF16": "BFloat16", "F16": "Half", "F64": "Double", "I64": "Long", "U8": "Byte"}


class _Record:
    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


class _Named:
    """What is pickled as a bare name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> str:
        return self.name


class _Size(tuple[int, ...]):
    def __reduce__(self):
        return _Size, (tuple(self),)


@contextmanager
def torch_names() -> Iterator[ModuleType]:
    """Put modules with torch's names where ``pickle`` looks for them."""
    modules = {
        name: ModuleType(name)
        for name in ("torch", f"{_CHECKPOINT}.metadata", f"{_CHECKPOINT}.filesystem", "torch._utils")
    }
    kinds = ModuleType("kinds")
    for module, names in {
        f"{_CHECKPOINT}.metadata": ("Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorStorageMetadata",
                                    "TensorProperties", "BytesStorageMetadata"),
        f"{_CHECKPOINT}.filesystem": ("_StorageInfo",),
    }.items():  # fmt: skip
        for name in names:
            kind = type(name, (_Record,), {"__module__": module})
            setattr(modules[module], name, kind)
            setattr(kinds, name, kind)
    for name in _DTYPES.values():
        named = _Named(name)
        named.__module__ = "torch"
        setattr(modules["torch"], name, named)
        setattr(kinds, name, named)
    _Size.__module__, _Size.__qualname__ = "torch", "Size"
    modules["torch"].Size = _Size
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield kinds
    finally:
        _Size.__module__, _Size.__qualname__ = __name__, "_Size"
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def archive(dtype: str, array: Array) -> bytes:
    """A tensor as ``torch.save`` writes it; the last axis of the array are an element's bytes."""
    shape = array.shape[:-1]
    count = array.size // array.shape[-1]
    strides, step = [], 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= extent
    storage = f"ctorch\n{_STORAGES[dtype]}Storage\n".encode()
    reference = b"(X\x07\0\0\0storage" + storage + b"X\x01\0\0\x000X\x03\0\0\0cpu" + _number(count) + b"tQ"
    numbers = b"".join(b"(" + b"".join(map(_number, each)) + b"t" for each in (shape, strides))
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + _number(0) + numbers
    pickled = b"\x80\x02" + rebuilt + b"\x89ccollections\nOrderedDict\n)RtR."
    return _zip({"data.pkl": pickled, "byteorder": b"little", "data/0": array.tobytes(), "version": b"3\n"})


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _zip(records: Mapping[str, bytes]) -> bytes:
    body, directory = b"", b""
    for name, data in records.items():
        path = f"archive/{name}".encode()
        extra = -(len(body) + 30 + len(path) + 4) % 64
        padding = struct.pack("<HH", 0x4246, extra) + b"Z" * extra
        start = len(body)
        body += (
            struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(path), len(padding)) + path + padding
        )
        body += data + struct.pack("<4s3I", b"PK\7\x08", 0, len(data), len(data))
        head = (b"PK\1\2", 0, 0, 0x808, 0, 0, 0, 0, len(data), len(data), len(path), 0, 0, 0, 0, 0, start)
        directory += struct.pack("<4s6H3I5H2I", *head) + path
    count = len(records)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def write_dcp(
    model: Model, boxes: Mapping[str, Iterable[tuple[Box, int]]], values: Iterable[str] = ()
) -> dict[str, bytes]:
    """Objects of a checkpoint: of each tensor the given boxes, each with the rank that holds it."""
    items: dict[str, bytes] = {}
    with torch_names() as kinds:
        tensors: dict[str, object] = {name: kinds.BytesStorageMetadata() for name in values}
        places: dict[object, object] = {}
        for name, (dtype, shape, array) in model.items():
            chunks = []
            properties = kinds.TensorProperties(dtype=getattr(kinds, _DTYPES[dtype]))
            for box, rank in boxes[name]:
                inside = tuple(slice(*ends) for ends in zip(box.start, box.stop, strict=True))
                body, path = archive(dtype, array[inside]), f"__{rank}_0.distcp"
                start = len(items.setdefault(path, b""))
                items[path] += body
                offset = _Size(box.start)
                chunks.append(kinds.ChunkStorageMetadata(offsets=offset, sizes=_Size(box.shape)))
                index = kinds.MetadataIndex(fqn=name, offset=offset, index=len(chunks) - 1)
                places[index] = kinds._StorageInfo(relative_path=path, offset=start, length=len(body))
            size = _Size(shape)
            tensors[name] = kinds.TensorStorageMetadata(properties=properties, size=size, chunks=chunks)
        planned = {name: tuple(name.split(".")) for name in tensors}
        metadata = kinds.Metadata(
            state_dict_metadata=tensors, planner_data=planned, storage_data=places, version="1.0.0"
        )
        return {**items, ".metadata": pickle.dumps(metadata, 4)}
