"""Indexes of which object holds which tensor: Hugging Face's and MindSpore's ``param_name_map.json``."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import FormatError
from .findings import Findings
from .strict_json import json_kind, parse_json_object, shown

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# A drive letter or a URL scheme: on some stores such a "name" points elsewhere, whatever prefix stands before it.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")


@dataclass(frozen=True, slots=True)
class WeightIndex:
    """The object of every tensor of one checkpoint.

    Objects' names are relative to the prefix that holds the index, and never lead out of it. Writers put
    ``total_size`` (bytes) into the metadata.
    """

    weight_map: Mapping[str, str]
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def objects(self) -> tuple[str, ...]:
        """Every object that the index names, once, in order."""
        return tuple(sorted(set(self.weight_map.values())))


def parse_weight_index(data: bytes, where: str) -> WeightIndex:
    """Parse a Hugging Face index such as ``model.safetensors.index.json``.

    Keys beside ``weight_map`` and ``metadata`` are ignored, as transformers does. Raise FormatError for anything but
    strict JSON, without a ``weight_map``, and for object names that lead out of the prefix (all are listed).

    Examples
    --------
    >>> parse_weight_index(b'{"metadata": {"total_size": 4}, "weight_map": {"w": "a.safetensors"}}', "index")
    WeightIndex(weight_map={'w': 'a.safetensors'}, metadata={'total_size': 4})
    """
    document = parse_json_object(data, where)
    if "weight_map" not in document:
        found = f"keys {shown(list(document))}"
        raise FormatError("no weight_map", where=where, expected='an object under "weight_map"', found=found)
    return _from_document(document, where)


def parse_param_name_map(data: bytes, where: str) -> WeightIndex:
    """Parse MindSpore's ``param_name_map.json``, in either of its forms; see :func:`parse_weight_index`.

    Source: MindSpore 2.7 ``unified_safetensors`` writes ``{"metadata": ..., "weight_map": {name: file}}``;
    MindFormers' converters write ``{name: file}``; MindSpore reads both.

    Examples
    --------
    >>> flat = parse_param_name_map(b'{"w": "part0.safetensors"}', "param_name_map.json")
    >>> flat == parse_param_name_map(b'{"weight_map": {"w": "part0.safetensors"}}', "param_name_map.json")
    True
    """
    document = parse_json_object(data, where)
    # A flat map may hold a parameter of that very name; its value is then a string.
    if "weight_map" in document and not isinstance(document["weight_map"], str):
        return _from_document(document, where)
    return WeightIndex(_checked_map(document, where))


def encode_weight_index(weight_map: Mapping[str, str], total_size_bytes: int) -> bytes:
    """Write a Hugging Face index: two spaces, sorted keys, a newline at the end.

    ``total_size_bytes`` counts all tensors, without headers. Raise FormatError for object names that lead out of the
    prefix (all are listed).

    Source: transformers ``save_pretrained``.
    """
    return _encode(weight_map, total_size_bytes, indent=2) + b"\n"


def encode_param_name_map(weight_map: Mapping[str, str], total_size_bytes: int) -> bytes:
    """Write MindSpore's ``param_name_map.json`` in its nested form: four spaces, no newline at the end.

    Arguments and errors are those of :func:`encode_weight_index`. Names are sorted; MindSpore leaves them
    in the order of its parts.

    Source: MindSpore 2.7 ``unified_safetensors``.
    """
    return _encode(weight_map, total_size_bytes, indent=4)


def relative_key_problem(name: str) -> str:
    """Return why a name from an index must not be joined to a prefix, such as "a '..' step"; empty if it may be."""
    if not name:
        return "an empty name"
    if _CONTROL.search(name):
        return "a control character"
    if "\\" in name:
        return "a backslash"
    if name.startswith("/"):
        return "an absolute path"
    if _SCHEME.match(name):
        return "a drive letter or URL scheme"
    steps = name.split("/")
    return next((f"a {step!r} step" for step in steps if step in {"", ".", ".."}), "")


def _from_document(document: dict[str, object], where: str) -> WeightIndex:
    weight_map, metadata = document["weight_map"], document.get("metadata")
    if not isinstance(weight_map, dict):
        found = json_kind(weight_map)
        raise FormatError("wrong weight_map", where=where, expected="an object of object names", found=found)
    if metadata is not None and not isinstance(metadata, dict):
        raise FormatError("wrong metadata", where=where, expected="an object", found=json_kind(metadata))
    return WeightIndex(_checked_map(weight_map, where), metadata or {})


def _checked_map(weight_map: Mapping[str, object], where: str) -> dict[str, str]:
    findings = Findings()
    names: dict[str, str] = {}
    for tensor, name in weight_map.items():
        if isinstance(name, str):
            names[tensor] = name
        else:
            findings.add(f"tensor {shown(tensor)}", "an object name", json_kind(name))
    for name, tensor_count in Counter(names.values()).items():  # few objects, many tensors
        if trouble := relative_key_problem(name):
            findings.add(f"object {shown(name)} of {tensor_count} tensors", "a plain key", trouble)
    expected = "plain keys relative to the index, such as rank_0/part0.safetensors"
    findings.raise_any("unusable object names", where=where, expected=expected)
    return names


def _encode(weight_map: Mapping[str, str], total_size_bytes: int, *, indent: int) -> bytes:
    checked = _checked_map(weight_map, "weight_map")
    document = {"metadata": {"total_size": total_size_bytes}, "weight_map": checked}
    return json.dumps(document, indent=indent, sort_keys=True).encode("utf-8")
