"""``.metadata`` of distributed checkpoints: of ``torch.distributed.checkpoint``, Megatron Core and HyperParallel.

It is a pickle of which tensors there are, how each is cut, and where every piece is. See :mod:`.pickle_values` for why
reading it executes nothing.

Source: ``metadata.py`` and ``filesystem.py`` of ``torch.distributed.checkpoint`` in torch 2.4 and 2.13; the
``torch_dist`` strategy of Megatron Core 0.12 to 0.19; ``metadata.py`` and ``storage.py`` of HyperParallel in 2026.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import FormatError
from ..tensor import Box, DType, Shape, TensorSpec, row_major_boxes
from .findings import Findings
from .pickle_values import PickledGlobal, PickledObject, parse_pickle
from .safetensors import MAX_AXIS_COUNT
from .strict_json import shown
from .torch_dtypes import TORCH_DTYPES

_TORCH, _HYPER = "torch.distributed.checkpoint", "hyper_parallel.core"
_CLASSES = (
    "Metadata",
    "MetadataIndex",
    "ChunkStorageMetadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "BytesStorageMetadata",
)
_GLOBALS = frozenset(
    {
        *(f"{package}.metadata.{name}" for name in _CLASSES for package in (_TORCH, f"{_HYPER}.checkpoint")),
        *(f"{_HYPER}.distributed_checkpoint.metadata.{name}" for name in _CLASSES),
        *(f"{_HYPER}.{module}.storage.StorageInfo" for module in ("checkpoint", "distributed_checkpoint")),
        *(f"{_TORCH}.metadata.{name}" for name in ("StorageMeta", "_MEM_FORMAT_ENCODING")),
        f"{_TORCH}.filesystem._StorageInfo",
        *(f"{_TORCH}.planner.{name}" for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
        "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan",
        "torch.Size",
        "torch.serialization._get_layout",
        *(f"torch.{name}" for name in TORCH_DTYPES),
        *(f"{module}.{path}" for module in ("pathlib", "pathlib._local") for path in ("PosixPath", "WindowsPath")),
        "collections.OrderedDict",
    }
)
_MAX_COUNT = 2**63
_LEAST_PIECE_BYTES = 16  # of a pickle: values that are referred to again and again may promise any number


@dataclass(frozen=True, slots=True)
class DcpPiece:
    """One piece of a tensor: its box, and where it is.

    It is the tensor ``key`` of the object ``path`` if ``nbytes`` is -1, else an item of the object: ``nbytes`` bytes
    from ``start``. ``transforms`` names what was done to an item's bytes: it cannot be read.
    """

    box: Box
    path: str
    start: int
    nbytes: int
    key: str
    transforms: str = ""


@dataclass(frozen=True, slots=True)
class DcpTensor:
    """A whole tensor and its pieces that have a place, in the order of the document."""

    spec: TensorSpec
    pieces: tuple[DcpPiece, ...]


@dataclass(frozen=True, slots=True)
class DcpMetadata:
    """What one document, or those of all ranks, say.

    Parameters
    ----------
    tensors, values
        By flat name; values are what is no tensor, and are never read.
    paths
        The keys that each flat name was joined of, where the writer flattened a nested state.
    flattened
        Original shapes of tensors whose pieces are ranges of flattened blocks (Megatron Core before 0.15).
    inferred
        Tensors whose sizes the documents of the ranks disagree on: that of all pieces together was taken.
    """

    tensors: Mapping[str, DcpTensor]
    values: frozenset[str] = frozenset()
    paths: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    flattened: Mapping[str, Shape] = field(default_factory=dict)
    inferred: tuple[str, ...] = ()


def flattened_block(stored: Shape, original: Shape) -> Shape | None:
    """Return the shape of the blocks that a tensor was cut into, each of which was flattened into a last axis.

    None if such blocks of ``original`` are not what is stored.

    Examples
    --------
    >>> flattened_block((2, 1, 15), (6, 5)), flattened_block((2, 1, 15), (6, 6)), flattened_block((1, 7), (7,))
    ((3, 5), None, (7,))

    Source: ``flattened_range`` in ``dist_checkpointing/strategies/torch.py`` of Megatron Core 0.12.
    """
    grid = stored[:-1]
    if len(stored) != len(original) + 1:
        return None
    if any(not count or size % count for count, size in zip(grid, original, strict=True)):
        return None
    block = tuple(size // count for count, size in zip(grid, original, strict=True))
    return block if stored[-1] == math.prod(block) else None


def boxes_of_range(piece: Box, block: Shape) -> Iterator[tuple[Box, int]]:
    """Yield the boxes that a range of one flattened block has, in order, each with the elements of the range before it.

    Examples
    --------
    >>> list(boxes_of_range(Box((1, 0, 3), (2, 1, 10)), (3, 5)))
    [(Box(start=(3, 3), stop=(4, 5)), 0), (Box(start=(4, 0), stop=(5, 5)), 2)]
    """
    origin = tuple(index * size for index, size in zip(piece.start, block, strict=False))
    before = 0
    for box in row_major_boxes(block, piece.start[-1], piece.stop[-1]):
        yield box.shifted(origin), before
        before += box.element_count


def parse_dcp_metadata(data: bytes, where: str) -> DcpMetadata:
    """Parse one document.

    Raise FormatError for a pickle that uses more than checkpoints do, and one that lists every contradiction.
    """
    root = parse_pickle(data, where, _GLOBALS)
    findings = Findings()
    state = _of(root, "Metadata")
    if state is _NOTHING:
        raise FormatError("no checkpoint's metadata", where=where, expected="Metadata", found=_kind(root))
    places = _places(state.get("storage_data"), findings)
    tensors: dict[str, DcpTensor] = {}
    values: set[str] = set()
    spare = len(data) // _LEAST_PIECE_BYTES
    for name, item in _members(state, "state_dict_metadata", findings):
        if _kind(item) == "BytesStorageMetadata":
            values.add(name)
            continue
        fields = _of(item, "TensorStorageMetadata")
        chunks = fields.get("chunks")
        spec = _spec(name, fields, findings)
        if not isinstance(chunks, list) or spec is None:
            findings.add(_place(name), "a tensor with properties, size and chunks", _kind(item))
            continue
        spare -= len(chunks)
        if spare < 0:
            findings.add(_place(name), f"pieces that {len(data)} bytes can describe", "more")
            break
        tensors[name] = DcpTensor(spec, tuple(_pieces(spec, chunks, places, findings)))
    paths = dict(_paths(state.get("planner_data")))
    flattened = dict(_flattened(state.get("mcore_data")))
    findings.raise_any("metadata that contradicts itself", where=where, expected="tensors, their pieces and places")
    return DcpMetadata(tensors, frozenset(values), paths, flattened)


def join_metadata(documents: Mapping[str, DcpMetadata]) -> DcpMetadata:
    """Join the documents that every rank wrote of its own pieces, in the order of the ranks.

    Equal pieces of several ranks are copies. Raise FormatError for tensors of which two documents have different sizes
    or dtypes, unless each took its own piece for all others' length: then the pieces follow each other.
    """
    findings = Findings()
    several: dict[str, list[DcpTensor]] = {}
    for document in documents.values():
        for name, tensor in document.tensors.items():
            several.setdefault(name, []).append(tensor)
    joined: dict[str, DcpTensor] = {}
    inferred: list[str] = []
    for name, tensors in several.items():
        specs = list(dict.fromkeys(tensor.spec for tensor in tensors))
        joined[name] = DcpTensor(specs[0], tuple(piece for tensor in tensors for piece in tensor.pieces))
        if len(specs) > 1:
            uneven = _uneven(tensors) if len(tensors) == len(documents) else None
            if uneven is None:
                shown_specs = " and ".join(f"{spec.dtype} {list(spec.shape)}" for spec in specs[:3])
                findings.add(_place(name), "one dtype and size", shown_specs)
                continue
            joined[name] = uneven
            inferred.append(name)
    findings.raise_any("documents of different checkpoints", where=next(iter(documents)), expected="equal tensors")
    every = documents.values()
    return DcpMetadata(
        joined,
        frozenset().union(*(each.values for each in every)),
        {name: path for each in every for name, path in each.paths.items()},
        {name: shape for each in every for name, shape in each.flattened.items()},
        tuple(inferred),
    )


def _uneven(tensors: Sequence[DcpTensor]) -> DcpTensor | None:
    """Join pieces of which each rank's document says: all are as long as mine along the axis that is cut.

    HyperParallel multiplies the length of its own piece; where an axis does not divide, sizes and offsets differ.
    """
    spec, count = tensors[0].spec, len(tensors)
    if any(len(t.pieces) != 1 or t.spec.dtype != spec.dtype or len(t.spec.shape) != len(spec.shape) for t in tensors):
        return None
    axes = [axis for axis in range(len(spec.shape)) if len({tensor.spec.shape[axis] for tensor in tensors}) > 1]
    if len(axes) != 1:
        return None
    [axis], reached = axes, 0
    pieces: list[DcpPiece] = []
    for rank, tensor in enumerate(tensors):
        [piece], length = tensor.pieces, tensor.pieces[0].box.shape[axis]
        start, stop = list(Box.whole(tensor.spec.shape).start), list(tensor.spec.shape)
        start[axis], stop[axis] = rank * length, (rank + 1) * length
        if tensor.spec.shape[axis] != count * length or piece.box != Box(tuple(start), tuple(stop)):
            return None
        start[axis], stop[axis] = reached, reached + length
        pieces.append(replace(piece, box=Box(tuple(start), tuple(stop))))
        reached += length
    shape = (*spec.shape[:axis], reached, *spec.shape[axis + 1 :])
    return DcpTensor(replace(spec, shape=shape), tuple(pieces))


def _place(name: str) -> str:
    return f"tensor {shown(name)}"


def _kind(value: object) -> str:
    """Return the class that a value stands for, without its module."""
    return value.path.rpartition(".")[2] if isinstance(value, PickledObject) else type(value).__name__


_NOTHING = PickledObject("", ())


def _of(value: object, *kinds: str) -> PickledObject:
    """Return an object of one of some classes; one without attributes if it is none."""
    return value if isinstance(value, PickledObject) and _kind(value) in kinds else _NOTHING


def _members(state: PickledObject, key: str, findings: Findings) -> Iterator[tuple[str, object]]:
    members = state.get(key)
    if not isinstance(members, dict):
        findings.add(key, "a dictionary", type(members).__name__)
        return
    for name, value in members.items():
        if isinstance(name, str):
            yield name, value
        else:
            findings.add(key, "names as keys", type(name).__name__)


def _shape(value: object) -> Shape | None:
    """Return a tuple of extents; None for anything else."""
    if not isinstance(value, tuple) or len(value) > MAX_AXIS_COUNT:
        return None
    return value if all(type(extent) is int and 0 <= extent < _MAX_COUNT for extent in value) else None


def _spec(name: str, fields: PickledObject, findings: Findings) -> TensorSpec | None:
    properties = _of(fields.get("properties"), "TensorProperties")
    dtype, layout = (*properties.values, None, None)[:2]  # torch sets a tuple
    if properties.names:
        dtype, layout = properties.get("dtype"), properties.get("layout")
    if isinstance(layout, PickledObject) and layout.args != ("torch.strided",):
        findings.add(_place(name), "torch.strided", shown(layout.args))
    text = dtype.path if isinstance(dtype, PickledGlobal) else dtype
    found = TORCH_DTYPES.get(text.removeprefix("torch.").lower()) if isinstance(text, str) else None
    shape = _shape(fields.get("size"))
    if found is None:
        findings.add(_place(name), f"a dtype of {', '.join(DType)}", shown(text))
    elif shape is None or math.prod(extent or 1 for extent in shape) * found.bits > _MAX_COUNT:
        findings.add(_place(name), f"a size of at most {MAX_AXIS_COUNT} axes and 2**63 bits", shown(shape))
    else:
        return TensorSpec(name, found, shape)
    return None


def _places(value: object, findings: Findings) -> dict[tuple[str, Shape | None], DcpPiece]:
    """Return where each piece is, by its tensor and its first element; the boxes are not known yet."""
    places: dict[tuple[str, Shape | None], DcpPiece] = {}
    for index, info in value.items() if isinstance(value, dict) else ():
        of, at = _of(index, "MetadataIndex"), _of(info, "_StorageInfo", "StorageInfo")
        name = of.get("fqn")
        if at is _NOTHING or not isinstance(name, str):
            findings.add("storage_data", "a MetadataIndex and a _StorageInfo", f"{_kind(index)}, {_kind(info)}")
            continue
        path, start, nbytes = at.get("relative_path"), at.get("offset"), at.get("length")
        key = at.get("tensor_key")
        if not isinstance(path, str) or type(start) is not int or type(nbytes) is not int or start < 0 or nbytes < -1:
            found = shown([path, start, nbytes])
            findings.add(_place(name), "a relative_path, an offset and a length", found)
            continue
        transforms = at.get("transform_descriptors")
        text = shown(transforms) if transforms else ""
        first = _shape(of.get("offset"))
        piece = DcpPiece(Box((), ()), path, start, nbytes, key if isinstance(key, str) else name, text)
        if places.setdefault((name, first), piece) is not piece:
            findings.add(_place(name), "one place a piece", f"two of that at {list(first or ())}")
    return places


def _pieces(
    spec: TensorSpec, chunks: list[object], places: Mapping[tuple[str, Shape | None], DcpPiece], findings: Findings
) -> Iterator[DcpPiece]:
    for chunk in chunks:
        fields = _of(chunk, "ChunkStorageMetadata")
        start, shape = _shape(fields.get("offsets")), _shape(fields.get("sizes"))
        if start is None or shape is None or not len(start) == len(shape) == len(spec.shape):
            expected = f"offsets and sizes of {len(spec.shape)} axes"
            findings.add(_place(spec.name), expected, shown([start, shape]))
            continue
        box = Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))
        if any(a > n for a, n in zip(box.stop, spec.shape, strict=True)):
            findings.add(_place(spec.name), f"pieces within {list(spec.shape)}", box.text)
        elif (place := places.get((spec.name, start))) is not None and not box.is_empty:
            yield DcpPiece(box, place.path, place.start, place.nbytes, place.key, place.transforms)


def _paths(value: object) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    for name, path in value.items() if isinstance(value, dict) else ():
        if isinstance(name, str) and isinstance(path, tuple) and _is_path(path):
            yield name, tuple(key for key in path if isinstance(key, str | int))


def _is_path(path: tuple[object, ...]) -> bool:
    return len(path) <= MAX_AXIS_COUNT and all(isinstance(key, str | int) for key in path)


def _flattened(value: object) -> Iterator[tuple[str, Shape]]:
    for name, data in value.items() if isinstance(value, dict) else ():
        shape = _shape(data.get("nd_reformulated_orig_global_shape")) if isinstance(data, dict) else None
        if isinstance(name, str) and shape is not None:
            yield name, shape
