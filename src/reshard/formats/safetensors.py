"""safetensors headers: where each tensor lies in an object, and a header laid out before any byte moves.

An object is 8 bytes of length, a JSON header of that length, and the tensors' bytes::

    {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}

Source: the format section of safetensors' README, and ``tensor.rs`` of safetensors 0.8.0. What the
library takes is taken here, in any order of tensors, but for the following, which it lets pass:

- repeated tensor names (it keeps the last), and whitespace before the ``{`` (its README forbids both);
- entries written as arrays, and entries with keys beside dtype, shape and data_offsets: what an unknown
  key says about the bytes would be lost on the way;
- more axes than array libraries have, and empty tensors whose other axes overflow.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..errors import FormatError
from ..tensor import ByteRange, DType, Shape, TensorSpec
from .strict_json import json_kind, parse_json_object, shown

LENGTH_BYTES = 8
"""Bytes before the JSON: its length, unsigned, little-endian."""

MAX_HEADER_BYTES = 100_000_000
"""Longest JSON that readers take. Source: safetensors ``tensor.rs``, ``MAX_HEADER_SIZE``."""

MAX_AXIS_COUNT = 64
"""Most axes of a tensor. Source: numpy 2 ``NPY_MAXDIMS``, PyTorch ``kVLRangeMaxDims``; older numpy has 32."""

METADATA_KEY = "__metadata__"
"""The one key of a header that is no tensor's name."""

_MAX_COUNT = 2**63  # of a tensor's bits or an object's bytes: 64-bit arithmetic must hold in every reader
_ALIGNMENT_BYTES = 8
_KEPT_FINDINGS = 10_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_DTYPES = {dtype.value: dtype for dtype in DType}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and the bytes of the object that hold it, counted from the object's first byte."""

    spec: TensorSpec
    range: ByteRange


@dataclass(frozen=True)
class Header:
    """What one safetensors object holds.

    Not slotted, so that ``by_name`` is built once.

    Parameters
    ----------
    tensors
        In the order of their bytes, without gap from ``data_start`` to the object's end.
    metadata
        Free text of the writer.
    data_start
        First byte after the JSON.
    """

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]
    data_start: int

    @property
    def nbytes(self) -> int:
        """Length of the whole object in bytes."""
        return self.tensors[-1].range.stop if self.tensors else self.data_start

    @cached_property
    def by_name(self) -> Mapping[str, StoredTensor]:
        """The tensors by their names."""
        return {tensor.spec.name: tensor for tensor in self.tensors}


@dataclass(frozen=True, slots=True)
class EncodedHeader:
    """A header and the bytes that stand for it at the start of an object."""

    data: bytes
    header: Header


def header_range(first_bytes: bytes, object_nbytes: int) -> ByteRange:
    """Locate the JSON of a header from the first 8 bytes of an object.

    Parameters
    ----------
    first_bytes
        The object's start; more than 8 bytes do no harm.
    object_nbytes
        Length of the whole object.

    Raises
    ------
    FormatError
        The object is too short to hold a header, or the header's length is absurd.

    Examples
    --------
    >>> header_range((16).to_bytes(8, "little"), object_nbytes=100)
    ByteRange(start=8, stop=24)
    """
    if min(len(first_bytes), object_nbytes) < LENGTH_BYTES:
        found = f"{min(len(first_bytes), object_nbytes)} bytes"
        raise FormatError(
            "too short for safetensors", where="byte 0", expected=f"at least {LENGTH_BYTES} bytes", found=found
        )
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    longest = min(MAX_HEADER_BYTES, object_nbytes - LENGTH_BYTES)
    if not 2 <= length <= longest:
        expected = f"2 to {MAX_HEADER_BYTES} bytes, within an object of {object_nbytes}"
        raise FormatError("wrong header length", where="byte 0", expected=expected, found=f"{length} bytes")
    return ByteRange(LENGTH_BYTES, LENGTH_BYTES + length)


def parse_header(prefix: bytes, object_nbytes: int) -> Header:
    """Parse the header of a safetensors object and prove that it accounts for every byte.

    Parameters
    ----------
    prefix
        The object's first bytes, at least up to the end of the JSON.
    object_nbytes
        Length of the whole object.

    Raises
    ------
    FormatError
        The header is malformed, or its tensors do not tile the rest of the object; ``problems`` lists
        everything that is wrong with its entries (the first 10 000, should there be more).

    Examples
    --------
    >>> encoded = plan_header([TensorSpec("w", DType.F32, (2, 2))], {"format": "pt"})
    >>> parse_header(encoded.data, object_nbytes=len(encoded.data) + 16) == encoded.header
    True
    """
    json_range = header_range(prefix, object_nbytes)
    if len(prefix) < json_range.stop:
        expected = f"the first {json_range.stop} bytes of the object"
        raise FormatError("header cut short", where="header", expected=expected, found=f"{len(prefix)} bytes")
    if prefix[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        found = shown(prefix[LENGTH_BYTES : LENGTH_BYTES + 4])
        raise FormatError("not a header", where=f"header, byte {LENGTH_BYTES}", expected="'{'", found=found)
    entries = parse_json_object(prefix[json_range.start : json_range.stop], "header", first_byte=json_range.start)
    findings = _Findings()
    metadata = _parse_metadata(entries.pop(METADATA_KEY, None), findings)
    tensors = _parse_entries(entries, json_range.stop, object_nbytes, findings)
    expected = f"entries that fill bytes [{json_range.stop}, {object_nbytes}) of the object exactly"
    findings.raise_any("broken header", where="header", expected=expected)
    return Header(tensors, metadata, json_range.stop)


def plan_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> EncodedHeader:
    """Lay out the header of an object that does not exist yet.

    Tensors are ordered as the safetensors library orders them (dtype, largest first; then name) and
    listed in the order of their bytes, which MindSpore's reader insists on. Metadata keys are sorted,
    so equal arguments give equal bytes; no metadata gives no ``__metadata__``.

    Source: safetensors 0.8.0 ``tensor.rs``, ``prepare``.

    Parameters
    ----------
    specs
        The tensors, in any order.
    metadata
        Free text to store with them.

    Returns
    -------
    EncodedHeader
        The tensors' bytes start 8-byte aligned, right after ``data``.

    Raises
    ------
    FormatError
        Names that repeat or cannot be stored, tensors no reader takes, or too many of them.

    Examples
    --------
    >>> encoded = plan_header([TensorSpec("b", DType.U8, (3,)), TensorSpec("a", DType.I64, ())], {})
    >>> [(tensor.spec.name, tensor.range.nbytes) for tensor in encoded.header.tensors], len(encoded.data) % 8
    ([('a', 8), ('b', 3)], 0)
    """
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.order, spec.name))
    _check_plan(ordered, metadata)
    offsets = _offsets(ordered)
    in_order = dict(sorted(metadata.items()))
    data = _encode(ordered, offsets, in_order)
    start = len(data)
    tensors = tuple(
        StoredTensor(spec, ByteRange(start + first, start + stop))
        for spec, (first, stop) in zip(ordered, offsets, strict=True)
    )
    return EncodedHeader(data, Header(tensors, in_order, start))


class _Findings:
    """Everything that is wrong with a header, counted; a hostile one can have millions, so not all are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[str] = []

    def add(self, place: str, expected: str, found: str) -> None:
        self.count += 1
        if self.count <= _KEPT_FINDINGS:
            self.kept.append(f"{place}: expected {expected}, found {found}")

    def raise_any(self, what: str, *, where: str, expected: str) -> None:
        if self.count:
            found = f"{self.count} problem{'s' * (self.count > 1)}"
            raise FormatError(what, where=where, expected=expected, found=found, problems=self.kept)


def _place(name: str, part: str = "") -> str:
    return f"tensor {shown(name)}: {part}" if part else f"tensor {shown(name)}"


def _parse_metadata(value: object, findings: _Findings) -> dict[str, str]:
    if value is None:  # absent; the library takes null for the same
        return {}
    if not isinstance(value, dict):
        findings.add(METADATA_KEY, "an object", json_kind(value))
        return {}
    for key, text in value.items():
        if not isinstance(text, str):
            findings.add(f"{METADATA_KEY} {shown(key)}", "a string", json_kind(text))
    return value


def _parse_entries(
    entries: Mapping[str, object], data_start: int, object_nbytes: int, findings: _Findings
) -> tuple[StoredTensor, ...]:
    ranges: list[tuple[int, int, str]] = []
    specs: dict[str, TensorSpec] = {}
    for name, entry in entries.items():
        offsets, spec = _parse_entry(name, entry, findings)
        if offsets:
            ranges.append((data_start + offsets[0], data_start + offsets[1], name))
        if spec:
            specs[name] = spec
    # By range alone, and stable: empty tensors at one address stay as the header lists them.
    ranges.sort(key=lambda item: item[:2])
    if len(ranges) == len(entries):  # an entry without a range would only show again as a hole
        _check_tiling(ranges, data_start, object_nbytes, findings)
    return tuple(StoredTensor(specs[name], ByteRange(a, b)) for a, b, name in ranges if name in specs)


def _parse_entry(name: str, entry: object, findings: _Findings) -> tuple[tuple[int, int] | None, TensorSpec | None]:
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        found = f"keys {shown(list(entry))}" if isinstance(entry, dict) else json_kind(entry)
        findings.add(_place(name), "an object of dtype, shape and data_offsets", found)
        return None, None
    offsets = _parse_offsets(name, entry["data_offsets"], findings)
    dtype = _parse_dtype(name, entry["dtype"], findings)
    shape = _parse_shape(name, entry["shape"], findings)
    if dtype is None or shape is None:
        return offsets, None
    spec = TensorSpec(name, dtype, shape)
    if _check_size(spec, findings) and offsets and offsets[1] - offsets[0] != spec.nbytes:
        expected = f"{spec.nbytes} bytes for {dtype} {shown(list(shape))}"
        findings.add(_place(name, "data_offsets"), expected, f"{offsets[1] - offsets[0]}")
    return offsets, spec


def _parse_offsets(name: str, value: object, findings: _Findings) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2:
        start, stop = value
        if type(start) is int and type(stop) is int and 0 <= start <= stop <= _MAX_COUNT:
            return start, stop
    findings.add(_place(name, "data_offsets"), "[start, stop] with 0 <= start <= stop <= 2**63", shown(value))
    return None


def _parse_dtype(name: str, value: object, findings: _Findings) -> DType | None:
    dtype = _DTYPES.get(value) if isinstance(value, str) else None
    if dtype is None:
        findings.add(_place(name, "dtype"), f"one of {', '.join(DType)}", shown(value))
    return dtype


def _parse_shape(name: str, value: object, findings: _Findings) -> Shape | None:
    # bool is an int to isinstance, not to JSON.
    if isinstance(value, list) and all(type(extent) is int and extent >= 0 for extent in value):
        return tuple(value)
    findings.add(_place(name, "shape"), "an array of integers >= 0", shown(value))
    return None


def _check_size(spec: TensorSpec, findings: _Findings) -> bool:
    """Whether readers can hold a tensor of this shape."""
    if len(spec.shape) > MAX_AXIS_COUNT:  # first: the product of a million axes takes forever
        findings.add(_place(spec.name, "shape"), f"at most {MAX_AXIS_COUNT} axes", str(len(spec.shape)))
        return False
    # Axes beside an empty one count too: readers multiply axis by axis and would overflow before the zero.
    if math.prod(extent or 1 for extent in spec.shape) * spec.dtype.bits > _MAX_COUNT:
        findings.add(_place(spec.name, "shape"), "at most 2**63 bits", f"{spec.dtype} {shown(list(spec.shape))}")
        return False
    element_count = math.prod(spec.shape)
    if element_count * spec.dtype.bits % 8:
        found = f"{element_count} of {spec.dtype.bits} bits ({spec.dtype})"
        findings.add(_place(spec.name, "shape"), "elements that fill whole bytes", found)
        return False
    return True


def _check_tiling(ranges: list[tuple[int, int, str]], data_start: int, object_nbytes: int, findings: _Findings) -> None:
    reached, last = data_start, None
    for start, stop, name in ranges:
        if start != reached:
            after = _place(last) if last is not None else "the header"
            found = f"{'a hole' if start > reached else 'an overlap'}: byte {start}"
            findings.add(_place(name), f"to start at byte {reached}, right after {after}", found)
        if stop >= reached:
            reached, last = stop, name
    if reached != object_nbytes:
        findings.add("end of the object", f"byte {reached}, where the tensors end", f"byte {object_nbytes}")


def _check_plan(ordered: list[TensorSpec], metadata: Mapping[str, str]) -> None:
    findings = _Findings()
    seen = {METADATA_KEY}
    for spec in ordered:
        if spec.name in seen:
            findings.add(_place(spec.name), "a name of its own", "one that is taken")
        seen.add(spec.name)
        if min(spec.shape, default=0) < 0:
            findings.add(_place(spec.name, "shape"), "extents >= 0", shown(list(spec.shape)))
        else:
            _check_size(spec, findings)
    for text in (*seen, *metadata, *metadata.values()):
        if _SURROGATE.search(text):
            findings.add(shown(text), "text that UTF-8 can hold", "half of a surrogate pair")
    findings.raise_any("unfit tensors", where="planned header", expected="distinct names and storable shapes")


def _offsets(ordered: list[TensorSpec]) -> list[tuple[int, int]]:
    stops = list(itertools.accumulate((spec.nbytes for spec in ordered), initial=0))
    return list(itertools.pairwise(stops))


def _encode(ordered: list[TensorSpec], offsets: list[tuple[int, int]], metadata: Mapping[str, str]) -> bytes:
    document: dict[str, object] = {METADATA_KEY: metadata} if metadata else {}
    for spec, where in zip(ordered, offsets, strict=True):
        document[spec.name] = {"dtype": spec.dtype.value, "shape": spec.shape, "data_offsets": where}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    padded = text + b" " * (-len(text) % _ALIGNMENT_BYTES)
    if len(padded) > MAX_HEADER_BYTES:
        raise FormatError(
            "header too long",
            where="planned header",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            found=f"{len(padded)} bytes for {len(ordered)} tensors",
            hint="Spread the tensors over more objects.",
        )
    return len(padded).to_bytes(LENGTH_BYTES, "little") + padded
