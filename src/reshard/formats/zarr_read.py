"""``zarr.json`` documents of any writer, read: groups, and arrays whose chunks are plain bytes.

Every finding is a FormatError; what zarr allows and this package cannot read is told with the way out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import FormatError
from ..tensor import DType, Shape, TensorSpec, extent_of
from .safetensors import MAX_AXIS_COUNT
from .strict_json import json_kind, parse_json_object, shown
from .weight_index import relative_key_problem
from .zarr import ATTRIBUTE, DATA_TYPES, VERSION, ChunkKeys, ZarrArray
from .zarr_fill import Fill

_MAX_COUNT = 2**63  # of a tensor's bits or a chunk's bytes
_MAX_PATH_LENGTH = 1024  # what keys may have altogether
_PLAIN = "Write it anew without compression, filters and shards: zarr-python's create_array(..., compressors=None)."
_ARRAY_KEYS = frozenset(
    ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
)
_OTHER_KEYS = frozenset(("attributes", "dimension_names", "storage_transformers"))
# Beside zarr's own types: names that tensorstore and the zarr-extensions registry give to ml_dtypes' types.
_TYPES = {called: dtype for dtype, called in DATA_TYPES.items()} | {
    "bfloat16": DType.BF16,
    "float8_e4m3fn": DType.F8_E4M3,
    "float8_e4m3fnuz": DType.F8_E4M3FNUZ,
    "float8_e5m2": DType.F8_E5M2,
    "float8_e5m2fnuz": DType.F8_E5M2FNUZ,
    "float8_e8m0fnu": DType.F8_E8M0,
}
_DTYPES = {dtype.value: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class ZarrGroup:
    """What a root group's document says.

    Parameters
    ----------
    metadata, texts
        What the checkpoint holds besides tensors, if this package wrote it.
    nodes
        Documents of all nodes below by their paths; None where the group does not have them.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, object]] | None = None


def parse_node(data: bytes, where: str) -> dict[str, object]:
    """Read a ``zarr.json`` as far as groups and arrays are alike.

    Raises
    ------
    FormatError
        Not JSON, not of version 3, or neither a group nor an array.
    """
    return _checked_node(parse_json_object(data, where), where)


def is_group(node: Mapping[str, object]) -> bool:
    """Whether a node is a group; else it is an array."""
    return node["node_type"] == "group"


def parse_group(node: Mapping[str, object], where: str) -> ZarrGroup:
    """Read a root group.

    Raises
    ------
    FormatError
        It is an array, or says something of itself that cannot be read.
    """
    if not is_group(node):
        hint = "Name the prefix of the group that the array is in."
        raise FormatError("a single array", where=where, expected="a group of arrays", found="an array", hint=hint)
    told = _told(node, where)
    if told and told.get("version") != VERSION:
        found = shown(told.get("version"))
        raise FormatError(f"attribute {ATTRIBUTE}: unknown version", where=where, expected=str(VERSION), found=found)
    metadata, texts = (_strings(told.get(key, {}), key, where) for key in ("metadata", "texts"))
    return ZarrGroup(metadata, texts, _consolidated(node.get("consolidated_metadata"), where))


def parse_array(node: Mapping[str, object], path: str, where: str) -> ZarrArray:
    """Read an array's document.

    Parameters
    ----------
    path
        Of the array, counted from the group; it is the tensor's name unless the attributes tell another.

    Raises
    ------
    FormatError
        A field is missing or wrong, or the chunks are not plain bytes.
    """
    if problem := relative_key_problem(path) or (len(path) > _MAX_PATH_LENGTH and "a long path"):
        raise FormatError(f"path {shown(path)}", where=where, expected="plain names with / between", found=problem)
    _check_keys(node, where)
    shape = _extents(node["shape"], "shape", where, least=0)
    chunk_shape = _extents(_of_regular_grid(node["chunk_grid"], where), "chunk_shape", where, least=1)
    if len(shape) != len(chunk_shape):
        found = f"{len(shape)} and {len(chunk_shape)}"
        raise FormatError("shape and chunk_shape", where=where, expected="one number of axes", found=found)
    stored = _data_type(node["data_type"], where)
    told = _told(node, where)
    spec = _spec(told, path, TensorSpec(path, stored, shape), where)
    _check_size(spec, chunk_shape, where)
    _check_codecs(node["codecs"], stored, where)
    keys = _chunk_keys(node["chunk_key_encoding"], where)
    fill = None if told else Fill(stored, node["fill_value"])
    return ZarrArray(path, spec, chunk_shape, keys, told.get("origin") == "outside", fill)


def _checked_node(node: Mapping[str, object], where: str) -> dict[str, object]:
    if type(node.get("zarr_format")) is not int or node["zarr_format"] != 3:
        hint = "Stores of version 2 can be written anew as version 3."
        raise FormatError("zarr_format", where=where, expected="3", found=shown(node.get("zarr_format")), hint=hint)
    if node.get("node_type") not in ("group", "array"):
        raise FormatError("node_type", where=where, expected="group or array", found=shown(node.get("node_type")))
    return dict(node)


def _consolidated(value: object, where: str) -> dict[str, Mapping[str, object]] | None:
    """Documents of the nodes below, as zarr-python puts them into the root's."""
    if value is None:
        return None
    body = _object(value, "consolidated_metadata", where)
    if body.get("kind") != "inline":
        raise FormatError("consolidated_metadata", where=where, expected="kind inline", found=shown(body.get("kind")))
    nodes = _object(body.get("metadata"), "consolidated_metadata: metadata", where)
    return {
        path: _checked_node(_object(node, f"node {shown(path)}", where), f"{where}: {shown(path)}")
        for path, node in nodes.items()
    }


def _told(node: Mapping[str, object], where: str) -> Mapping[str, object]:
    """What this package once wrote into a node's attributes."""
    attributes = _object(node.get("attributes", {}), "attributes", where)
    return _object(attributes.get(ATTRIBUTE, {}), f"attribute {ATTRIBUTE}", where)


def _strings(value: object, what: str, where: str) -> dict[str, str]:
    found = _object(value, f"attribute {ATTRIBUTE}: {what}", where)
    for each in found.values():
        if not isinstance(each, str):
            raise FormatError(f"attribute {ATTRIBUTE}: {what}", where=where, expected="strings", found=json_kind(each))
    return {key: str(each) for key, each in found.items()}


def _object(value: object, what: str, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise FormatError(what, where=where, expected="an object", found=json_kind(value))
    return value


def _check_keys(node: Mapping[str, object], where: str) -> None:
    missing = sorted(_ARRAY_KEYS - node.keys())
    if missing:
        raise FormatError("fields are missing", where=where, expected=", ".join(missing), found="none of them")
    for key in node.keys() - _ARRAY_KEYS - _OTHER_KEYS:
        value = node[key]
        if not isinstance(value, dict) or value.get("must_understand") is not False:
            raise FormatError(f"unknown field {shown(key)}", where=where, expected="fields of zarr v3 alone")
    if node.get("storage_transformers"):
        found = shown(node["storage_transformers"])
        raise FormatError("storage_transformers", where=where, expected="none", found=found, hint=_PLAIN)


def _extents(value: object, what: str, where: str, *, least: int) -> Shape:
    if not isinstance(value, list) or len(value) > MAX_AXIS_COUNT:
        raise FormatError(what, where=where, expected=f"an array of at most {MAX_AXIS_COUNT}", found=shown(value))
    if not all(type(n) is int and least <= n < _MAX_COUNT for n in value):
        raise FormatError(what, where=where, expected=f"integers from {least}", found=shown(value))
    return tuple(value)


def _named(value: object, what: str, where: str) -> tuple[str, Mapping[str, object]]:
    """Name and configuration of an extension point, which may be written as its name alone."""
    if isinstance(value, str):
        return value, {}
    body = _object(value, what, where)
    name = body.get("name")
    if not isinstance(name, str):
        raise FormatError(f"{what}: name", where=where, expected="a string", found=json_kind(name))
    return name, _object(body.get("configuration", {}), f"{what}: configuration", where)


def _of_regular_grid(value: object, where: str) -> object:
    name, settings = _named(value, "chunk_grid", where)
    if name != "regular":
        raise FormatError("chunk_grid", where=where, expected="regular", found=shown(name))
    return settings.get("chunk_shape")


def _data_type(value: object, where: str) -> DType:
    name, settings = _named(value, "data_type", where)
    if name not in _TYPES or settings:
        hint = "Store types of the kind as unsigned integers of their width."
        raise FormatError(
            "data_type", where=where, expected=f"one of {', '.join(_TYPES)}", found=shown(value), hint=hint
        )
    return _TYPES[name]


def _spec(told: Mapping[str, object], path: str, stored: TensorSpec, where: str) -> TensorSpec:
    """The tensor that an array stands for: itself, unless its attributes tell more."""
    name, called = told.get("name", path), told.get("dtype", stored.dtype.value)
    if not isinstance(name, str) or not isinstance(called, str) or called not in _DTYPES:
        found = shown([name, called])
        raise FormatError(f"attribute {ATTRIBUTE}", where=where, expected="a name and a known dtype", found=found)
    dtype = _DTYPES[called]
    shape = _extents(told["shape"], "shape in the attributes", where, least=0) if "shape" in told else stored.shape
    spec = TensorSpec(name, dtype, shape)
    if dtype is not stored.dtype and not _can_stand_for(stored, spec):
        found = f"{called} {list(shape)} in the attributes"
        expected = f"what {stored.dtype.value} {list(stored.shape)} can hold"
        raise FormatError("dtype", where=where, expected=expected, found=found)
    return spec if dtype is not stored.dtype else TensorSpec(name, dtype, stored.shape)


def _can_stand_for(stored: TensorSpec, spec: TensorSpec) -> bool:
    """Whether an array of unsigned integers holds a tensor of another type, as this package writes it."""
    bits = math.prod(spec.shape) * spec.dtype.bits
    if bits % 8 or spec.dtype in DATA_TYPES or stored.dtype not in (DType.U8, DType.U16):
        return False
    return extent_of(spec) == (stored.shape, stored.dtype.itemsize)


def _check_size(spec: TensorSpec, chunk_shape: Shape, where: str) -> None:
    """Refuse what 64-bit arithmetic could not hold."""
    bits = math.prod(extent or 1 for extent in spec.shape) * spec.dtype.bits
    if max(bits, math.prod(chunk_shape) * extent_of(spec)[1]) >= _MAX_COUNT:
        found = f"{list(spec.shape)} in chunks of {list(chunk_shape)}"
        raise FormatError("shape", where=where, expected="less than 2**63 bits", found=shown(found))


def _check_codecs(value: object, stored: DType, where: str) -> None:
    """Refuse chunks that are anything but the elements' bytes."""
    if not isinstance(value, list):
        raise FormatError("codecs", where=where, expected="an array", found=json_kind(value))
    codecs = [_named(each, "codec", where) for each in value]
    if [name for name, _ in codecs] != ["bytes"]:
        found = ", ".join(shown(name) for name, _ in codecs[:8]) or "none"
        raise FormatError("codecs", where=where, expected="bytes alone", found=found, hint=_PLAIN)
    endian = codecs[0][1].get("endian", "little" if stored.itemsize == 1 else None)
    if endian != "little" and stored.itemsize > 1:
        raise FormatError("codec bytes", where=where, expected="endian little", found=shown(endian), hint=_PLAIN)


def _chunk_keys(value: object, where: str) -> ChunkKeys:
    name, settings = _named(value, "chunk_key_encoding", where)
    has_start = name == "default"
    separator = settings.get("separator", "/" if has_start else ".")
    if name not in ("default", "v2") or separator not in ("/", "."):
        found = shown(value)
        raise FormatError("chunk_key_encoding", where=where, expected="default or v2, with / or .", found=found)
    return ChunkKeys(str(separator), has_start)
