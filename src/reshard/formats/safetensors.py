"""safetensors objects: headers parsed strictly, and new objects laid out before any byte moves.

An object is 8 bytes of length, a JSON header of that length, and the tensors' bytes::

    {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}

Source: the format section of safetensors' README, and ``tensor.rs`` of safetensors 0.8.0. Everything the
library accepts is accepted here, tensors in any order, with these exceptions:

- repeated tensor names (the library keeps the last) and whitespace before the ``{`` (the README forbids both);
- entries that are arrays, or have keys beside dtype, shape and data_offsets: the meaning of an
  unknown key would be lost in a conversion;
- more axes than array libraries support, and empty tensors whose other axes overflow.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import FormatError
from ..tensor import Box, ByteRange, DType, TensorSpec, extent_of
from .container_format import ContainerHeader, HeaderScan, HeaderTensor
from .findings import Findings
from .frame import Frame, make_frame
from .strict_json import json_kind, parse_json_object, shown

LENGTH_BYTES = 8
"""Bytes before the JSON: its length, unsigned, little-endian."""

MAX_HEADER_BYTES = 100_000_000
"""Longest JSON that readers accept. Source: safetensors ``tensor.rs``, ``MAX_HEADER_SIZE``."""

MAX_AXIS_COUNT = 64
"""Most axes of a tensor. Source: numpy 2 ``NPY_MAXDIMS``, PyTorch ``kVLRangeMaxDims``; older numpy has 32."""

MAX_TENSOR_COUNT = 150_000
"""Most tensors of one object: more than the largest models have in hundreds of objects."""

METADATA_KEY = "__metadata__"
"""The one key of a header that is not a tensor's name."""

_MAX_COUNT = 2**63  # of a tensor's bits or an object's bytes: 64-bit arithmetic must hold in every reader
_ALIGNMENT_BYTES = 8
_BLOCK_COUNT = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
_DTYPES = {dtype.value: dtype for dtype in DType}
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class EncodedHeader:
    """The header of an object that does not exist yet.

    ``data`` are the bytes before the tensors' bytes, which start 8-byte aligned right after them; ``header`` is
    what :func:`parse_header` returns for the finished object.
    """

    data: bytes
    header: ContainerHeader

    @property
    def nbytes(self) -> int:
        """Length of the whole object in bytes."""
        return len(self.data) + sum(tensor.spec.nbytes for tensor in self.header.tensors)


def scan_safetensors(object_nbytes: int) -> HeaderScan:
    """Ask for the ranges of an object that hold its header, and return it as :func:`parse_header` does."""
    first = (yield ByteRange(0, min(LENGTH_BYTES, object_nbytes))) if object_nbytes else b""
    text = yield header_range(first, object_nbytes)
    return parse_header(first + text, object_nbytes)


def header_range(first_bytes: bytes, object_nbytes: int) -> ByteRange:
    """Locate the JSON of a header from the first 8 bytes of an object of ``object_nbytes`` bytes.

    Raise FormatError if the object is too short to hold a header, or the header's length is impossible.
    """
    if min(len(first_bytes), object_nbytes) < LENGTH_BYTES:
        found = f"{min(len(first_bytes), object_nbytes)} bytes"
        raise FormatError(
            "too short for safetensors", where="byte 0", expected=f"at least {LENGTH_BYTES} bytes", found=found
        )
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, object_nbytes - LENGTH_BYTES):
        expected = f"2 to {MAX_HEADER_BYTES} bytes, within an object of {object_nbytes}"
        raise FormatError("invalid header length", where="byte 0", expected=expected, found=f"{length} bytes")
    return ByteRange(LENGTH_BYTES, LENGTH_BYTES + length)


def parse_header(prefix: bytes, object_nbytes: int) -> ContainerHeader:
    """Parse the header of an object and prove that it accounts for every byte of it.

    ``prefix`` are the object's first bytes, at least up to the end of the JSON.

    Raises
    ------
    FormatError
        The header is malformed, or its tensors do not tile the rest of the object; ``problems`` lists
        everything that is wrong with its entries (the first 10 000 problems).

    Examples
    --------
    >>> encoded = plan_header([TensorSpec("w", DType.F32, (2, 2))], {"format": "pt"})
    >>> parse_header(encoded.data, object_nbytes=len(encoded.data) + 16) == encoded.header
    True
    """
    json_range = header_range(prefix, object_nbytes)
    if len(prefix) < json_range.stop:
        expected = f"the first {json_range.stop} bytes of the object"
        raise FormatError("truncated header", where="header", expected=expected, found=f"{len(prefix)} bytes")
    if prefix[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        found = shown(prefix[LENGTH_BYTES : LENGTH_BYTES + 4])
        raise FormatError("not a header", where=f"header, byte {LENGTH_BYTES}", expected="'{'", found=found)
    entries = parse_json_object(prefix[json_range.start : json_range.stop], "header", first_byte=json_range.start)
    if len(entries) > MAX_TENSOR_COUNT:
        raise FormatError(
            "too many tensors", where="header", expected=f"at most {MAX_TENSOR_COUNT}", found=f"{len(entries)}"
        )
    findings = Findings()
    metadata = _parse_metadata(entries.pop(METADATA_KEY, None), findings)
    placed = _parse_entries(entries, json_range.stop, object_nbytes, findings)
    expected = f"entries that fill bytes [{json_range.stop}, {object_nbytes}) of the object exactly"
    findings.raise_any("invalid header", where="header", expected=expected)
    return ContainerHeader(_stored(placed), metadata)


def plan_safetensors(specs: Sequence[TensorSpec], metadata: Mapping[str, str], texts: Mapping[str, str]) -> Frame:  # noqa: ARG001
    """Lay out an object as :func:`plan_header` does; the format has no place for text values."""
    header = _encode(*_in_order(specs, metadata))

    def pieces() -> Iterator[tuple[int, bytes, int, int, int]]:
        for slot, spec in enumerate(specs):
            shape, itemsize = extent_of(spec)
            yield slot, b"" if slot else header, 0, math.prod(shape), itemsize

    return make_frame(pieces(), b"" if specs else header)


def plan_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> EncodedHeader:
    """Lay out the header of an object that does not exist yet.

    Tensors are ordered as the safetensors library orders them (widest dtype first, then by name) and
    listed in the order of their bytes, on which MindSpore's reader insists. Metadata keys are sorted,
    so equal arguments give equal bytes; no metadata gives no ``__metadata__``.

    Source: safetensors 0.8.0 ``tensor.rs``, ``prepare``.

    Raises
    ------
    FormatError
        Names that repeat or cannot be stored, tensors that no reader accepts, or too many tensors.

    Examples
    --------
    >>> encoded = plan_header([TensorSpec("b", DType.U8, (3,)), TensorSpec("a", DType.I64, ())], {})
    >>> [(tensor.spec.name, tensor.boxes[0][1] - len(encoded.data)) for tensor in encoded.header.tensors]
    [('a', 0), ('b', 8)]
    """
    ordered, stops, in_order = _in_order(specs, metadata)
    data = _encode(ordered, stops, in_order)
    starts = (len(data) + first for first in stops)
    return EncodedHeader(data, ContainerHeader(_stored(zip(starts, ordered, strict=False)), in_order))


def _in_order(
    specs: Iterable[TensorSpec], metadata: Mapping[str, str]
) -> tuple[list[TensorSpec], list[int], dict[str, str]]:
    """Return tensors in the order of their bytes, the bytes where they begin and end, and metadata by key."""
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.order, spec.name))
    _check_plan(ordered, metadata)
    stops = list(itertools.accumulate((spec.nbytes for spec in ordered), initial=0))
    return ordered, stops, dict(sorted(metadata.items()))


def _stored(placed: Iterable[tuple[int, TensorSpec]]) -> tuple[HeaderTensor, ...]:
    return tuple(HeaderTensor(spec, ((Box.whole(extent_of(spec)[0]), start),)) for start, spec in placed)


def _place(name: str, part: str = "") -> str:
    return f"tensor {shown(name)}: {part}" if part else f"tensor {shown(name)}"


def _parse_metadata(value: object, findings: Findings) -> dict[str, str]:
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
    entries: Mapping[str, object], data_start: int, object_nbytes: int, findings: Findings
) -> list[tuple[int, TensorSpec]]:
    """Return the sound tensors, each with its first byte, in the order of their bytes."""
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
    if len(ranges) == len(entries):  # an entry without a range would only show again as a gap
        _check_tiling(ranges, data_start, object_nbytes, findings)
    return [(start, specs[name]) for start, _, name in ranges if name in specs]


def _parse_entry(name: str, entry: object, findings: Findings) -> tuple[tuple[int, int] | None, TensorSpec | None]:
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        found = f"keys {shown(list(entry))}" if isinstance(entry, dict) else json_kind(entry)
        findings.add(_place(name), "an object with dtype, shape and data_offsets", found)
        return None, None
    offsets = _parse_offsets(name, entry["data_offsets"], findings)
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        findings.add(_place(name, "dtype"), f"one of {', '.join(DType)}", shown(entry["dtype"]))
    shape = entry["shape"]
    # bool is an int to isinstance, not to JSON.
    if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
        findings.add(_place(name, "shape"), "an array of integers >= 0", shown(shape))
        return offsets, None
    if dtype is None:
        return offsets, None
    spec = TensorSpec(name, dtype, tuple(shape))
    if problem := _size_problem(spec):
        findings.add(_place(name, "shape"), *problem)
    elif offsets and offsets[1] - offsets[0] != spec.nbytes:
        expected = f"{spec.nbytes} bytes for {dtype} {shown(shape)}"
        findings.add(_place(name, "data_offsets"), expected, f"{offsets[1] - offsets[0]}")
    return offsets, spec


def _parse_offsets(name: str, value: object, findings: Findings) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2:
        start, stop = value
        if type(start) is int and type(stop) is int and 0 <= start <= stop <= _MAX_COUNT:
            return start, stop
    findings.add(_place(name, "data_offsets"), "[start, stop] with 0 <= start <= stop <= 2**63", shown(value))
    return None


def _size_problem(spec: TensorSpec) -> tuple[str, str] | None:
    """Return what readers expect of a shape and what it is, if they cannot hold such a tensor."""
    if len(spec.shape) > MAX_AXIS_COUNT:  # first: the product of a million axes takes forever
        return f"at most {MAX_AXIS_COUNT} axes", str(len(spec.shape))
    # Axes beside an empty one count too: readers multiply axis by axis and would overflow before the zero.
    if math.prod(extent or 1 for extent in spec.shape) * spec.dtype.bits > _MAX_COUNT:
        return "at most 2**63 bits", f"{spec.dtype} {shown(list(spec.shape))}"
    element_count = math.prod(spec.shape)
    if element_count * spec.dtype.bits % 8:
        return "a whole number of bytes", f"{element_count} elements of {spec.dtype.bits} bits ({spec.dtype})"
    return None


def _check_tiling(ranges: list[tuple[int, int, str]], data_start: int, object_nbytes: int, findings: Findings) -> None:
    """Check that ranges in ascending order leave no gap, do not overlap, and end where the object does."""
    reached, last = data_start, None
    for start, stop, name in ranges:
        if start != reached:
            after = _place(last) if last is not None else "the header"
            found = f"{'a gap' if start > reached else 'an overlap'}: byte {start}"
            findings.add(_place(name), f"a start at byte {reached}, right after {after}", found)
        if stop >= reached:
            reached, last = stop, name
    if reached != object_nbytes:
        findings.add("end of the object", f"byte {reached}, where the tensors end", f"byte {object_nbytes}")


def _check_plan(ordered: list[TensorSpec], metadata: Mapping[str, str]) -> None:
    findings = Findings()
    seen = {METADATA_KEY}
    for spec in ordered:
        if spec.name in seen:
            findings.add(_place(spec.name), "a unique name", "a name that is taken")
        seen.add(spec.name)
        if min(spec.shape, default=0) < 0:
            findings.add(_place(spec.name, "shape"), "extents >= 0", shown(list(spec.shape)))
        elif problem := _size_problem(spec):
            findings.add(_place(spec.name, "shape"), *problem)
    for text in (*seen, *metadata, *metadata.values()):
        if _SURROGATE.search(text):
            findings.add(shown(text), "text that UTF-8 can encode", "an unpaired surrogate")
    expected = "unique names, and shapes that readers support"
    findings.raise_any("tensors that safetensors cannot store", where="planned header", expected=expected)


def _encode(ordered: list[TensorSpec], stops: list[int], metadata: Mapping[str, str]) -> bytes:
    members = [_members({METADATA_KEY: metadata})] if metadata else []
    # In blocks: a document of all of them takes many times the memory of its text.
    for first in range(0, len(ordered), _BLOCK_COUNT):
        some = ordered[first : first + _BLOCK_COUNT]
        places = itertools.pairwise(stops[first : first + _BLOCK_COUNT + 1])
        members.append(
            _members(
                {
                    spec.name: {"dtype": spec.dtype.value, "shape": spec.shape, "data_offsets": place}
                    for spec, place in zip(some, places, strict=True)
                }
            )
        )
    nbytes = 2 + sum(map(len, members)) + max(0, len(members) - 1)
    padding = -nbytes % _ALIGNMENT_BYTES
    if nbytes + padding > MAX_HEADER_BYTES:
        raise FormatError(
            "header too long",
            where="planned header",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            found=f"{nbytes + padding} bytes for {len(ordered)} tensors",
            hint="Spread the tensors over more objects.",
        )
    start = (nbytes + padding).to_bytes(LENGTH_BYTES, "little") + b"{"
    return b"".join((start, b",".join(members), b"}", b" " * padding))


def _members(document: Mapping[str, object]) -> bytes:
    """Write the members of a JSON object, without its braces."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))[1:-1].encode()
