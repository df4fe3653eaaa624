"""``zarr.json`` documents of any writer, parsed: groups, and arrays whose chunks are plain bytes.

Features of zarr that this package cannot read are refused with a hint how to rewrite the store.
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
from .zarr import ATTRIBUTE, DATA_TYPES, VERSION, ChunkKeys, FillValue, ZarrArray

_MAX_COUNT = 2**63  # of a tensor's bits or a chunk's bytes
_MAX_PATH_LENGTH = 1024  # of a whole key
_PLAIN = "Rewrite it without compression, filters and shards: zarr-python's create_array(..., compressors=None)."
_ARRAY_KEYS = frozenset(
    ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
)
_OTHER_KEYS = frozenset(("attributes", "dimension_names", "storage_transformers"))
EXTENSION_TYPES = {
    "bfloat16": DType.BF16,
    "float8_e4m3fn": DType.F8_E4M3,
    "float8_e4m3fnuz": DType.F8_E4M3FNUZ,
    "float8_e5m2": DType.F8_E5M2,
    "float8_e5m2fnuz": DType.F8_E5M2FNUZ,
    "float8_e8m0fnu": DType.F8_E8M0,
}
"""Names of ml_dtypes' types, beside zarr's own, in tensorstore and the zarr-extensions registry."""

_TYPES = {name: dtype for dtype, name in DATA_TYPES.items()} | EXTENSION_TYPES
_DTYPES = {dtype.value: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class ZarrGroup:
    """The document of a root group.

    ``metadata`` and ``texts`` are all that the checkpoint holds besides tensors, if this package wrote it; ``nodes``
    are the documents of all nodes below by their paths, None if the group does not include them.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, object]] | None = None


def parse_node(data: bytes, where: str) -> dict[str, object]:
    """Parse a ``zarr.json``; raise FormatError unless it is a group or an array of version 3."""
    return _checked_node(parse_json_object(data, where), where)


def is_group(node: Mapping[str, object]) -> bool:
    """Return whether a node is a group; else it is an array."""
    return node["node_type"] == "group"


def parse_group(node: Mapping[str, object], where: str) -> ZarrGroup:
    """Parse a root group; raise FormatError for an array and for invalid attributes or consolidated metadata."""
    if not is_group(node):
        hint = "Name the prefix of the group that holds the array."
        raise FormatError("a single array", where=where, expected="a group of arrays", found="an array", hint=hint)
    own = _own_attribute(node, where)
    if own and own.get("version") != VERSION:
        found = shown(own.get("version"))
        raise FormatError(f"attribute {ATTRIBUTE}: unknown version", where=where, expected=str(VERSION), found=found)
    metadata, texts = (_strings(own.get(key, {}), key, where) for key in ("metadata", "texts"))
    return ZarrGroup(metadata, texts, _consolidated(node.get("consolidated_metadata"), where))


def parse_array(node: Mapping[str, object], path: str, where: str) -> ZarrArray:
    """Parse an array's document; FormatError if a field is missing or wrong, or if chunks are not plain bytes.

    ``path`` is relative to the group; it is the tensor's name unless the attributes record another.
    """
    if problem := relative_key_problem(path) or (len(path) > _MAX_PATH_LENGTH and "a long path"):
        raise FormatError(f"path {shown(path)}", where=where, expected="plain names separated by /", found=problem)
    _check_keys(node, where)
    shape = _extents(node["shape"], "shape", where, least=0)
    grid, settings = _named(node["chunk_grid"], "chunk_grid", where)
    if grid != "regular":
        raise FormatError("chunk_grid", where=where, expected="regular", found=shown(grid))
    chunk_shape = _extents(settings.get("chunk_shape"), "chunk_shape", where, least=1)
    if len(shape) != len(chunk_shape):
        found = f"{len(shape)} and {len(chunk_shape)}"
        raise FormatError("shape and chunk_shape", where=where, expected="equal numbers of axes", found=found)
    type_name, settings = _named(node["data_type"], "data_type", where)
    if type_name not in _TYPES or settings:
        expected, hint = f"one of {', '.join(_TYPES)}", "Store such types as unsigned integers of their width."
        raise FormatError("data_type", where=where, expected=expected, found=shown(node["data_type"]), hint=hint)
    stored = _TYPES[type_name]
    own = _own_attribute(node, where)
    spec = _spec(own, path, TensorSpec(path, stored, shape), where)
    bits = math.prod(extent or 1 for extent in spec.shape) * spec.dtype.bits
    if max(bits, math.prod(chunk_shape) * extent_of(spec)[1]) >= _MAX_COUNT:
        found = shown(f"{list(spec.shape)} in chunks of {list(chunk_shape)}")
        raise FormatError("shape", where=where, expected="less than 2**63 bits", found=found)
    _check_codecs(node["codecs"], stored, where)
    keys = _chunk_keys(node["chunk_key_encoding"], where)
    fill = None if own else FillValue(stored, node["fill_value"])
    return ZarrArray(path, spec, chunk_shape, keys, own.get("origin") == "outside", fill)


def _checked_node(node: Mapping[str, object], where: str) -> dict[str, object]:
    if type(node.get("zarr_format")) is not int or node["zarr_format"] != 3:
        hint = "Rewrite stores of version 2 as version 3."
        raise FormatError("zarr_format", where=where, expected="3", found=shown(node.get("zarr_format")), hint=hint)
    if node.get("node_type") not in ("group", "array"):
        raise FormatError("node_type", where=where, expected="group or array", found=shown(node.get("node_type")))
    return dict(node)


def _consolidated(value: object, where: str) -> dict[str, Mapping[str, object]] | None:
    """Parse the documents of the nodes below, which zarr-python includes in the root's."""
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


def _own_attribute(node: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Return the attribute that this package wrote, empty for other writers."""
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
            raise FormatError(f"unknown field {shown(key)}", where=where, expected="only fields of zarr v3")
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
    """Return name and configuration of an extension point, which may be written as its name alone."""
    if isinstance(value, str):
        return value, {}
    body = _object(value, what, where)
    name = body.get("name")
    if not isinstance(name, str):
        raise FormatError(f"{what}: name", where=where, expected="a string", found=json_kind(name))
    return name, _object(body.get("configuration", {}), f"{what}: configuration", where)


def _spec(own: Mapping[str, object], path: str, stored: TensorSpec, where: str) -> TensorSpec:
    """Return the tensor that an array represents: itself, unless its attributes record another."""
    name, dtype_name = own.get("name", path), own.get("dtype", stored.dtype.value)
    if not isinstance(name, str) or not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        found = shown([name, dtype_name])
        raise FormatError(f"attribute {ATTRIBUTE}", where=where, expected="a name and a known dtype", found=found)
    dtype = _DTYPES[dtype_name]
    shape = _extents(own["shape"], "shape in the attributes", where, least=0) if "shape" in own else stored.shape
    if dtype is stored.dtype:
        return TensorSpec(name, dtype, stored.shape)
    spec = TensorSpec(name, dtype, shape)
    # Only what zarr has no name for is written as unsigned integers, and it must fill them exactly.
    is_written_so = dtype not in DATA_TYPES and stored.dtype in (DType.U8, DType.U16)
    fills_bytes = math.prod(shape) * dtype.bits % 8 == 0
    if not is_written_so or not fills_bytes or extent_of(spec) != (stored.shape, stored.dtype.itemsize):
        found = f"{dtype_name} {list(shape)} in the attributes"
        expected = f"a tensor that {stored.dtype.value} {list(stored.shape)} can hold"
        raise FormatError("dtype", where=where, expected=expected, found=found)
    return spec


def _check_codecs(value: object, stored: DType, where: str) -> None:
    """Refuse chunks that are not just the elements' bytes."""
    if not isinstance(value, list):
        raise FormatError("codecs", where=where, expected="an array", found=json_kind(value))
    codecs = [_named(each, "codec", where) for each in value]
    if [name for name, _ in codecs] != ["bytes"]:
        found = ", ".join(shown(name) for name, _ in codecs[:8]) or "none"
        raise FormatError("codecs", where=where, expected="only bytes", found=found, hint=_PLAIN)
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
