"""MindSpore ``.ckpt`` objects: the format, and new objects laid out before any byte moves.

An object is one protocol buffer after the other, each a ``Checkpoint`` of a single value, so that the
whole reads as one message; there is no list of contents anywhere::

    0A <length> 0A <length> name 12 <length> { 08 extent }* 12 <length> type 1A <length> bytes

A tensor of more than 512 MiB is several consecutive values, each with its name and its full shape. A
checksum may follow the last value. Tensors are found by :mod:`~reshard.formats.mindspore.ckpt_read`.

What MindSpore saves, what it loads, and what happens here:

- Shape (), saved as [0] before MindSpore 2.5, is a scalar to its reader and here. Shape (0,) is written the
  same way, and MindSpore loads it as a scalar of value 0: here it is read as the empty tensor that it was, and
  never written.
- MindSpore does not save other empty tensors. They are written here, and MindSpore loads them.
- Text (``append_dict``) is kept from ``.ckpt`` to ``.ckpt``; safetensors cannot hold it.
- Encrypted objects and map parameters (hash tables of embeddings) are refused by name.

Source: mindspore 2.10.0, ``checkpoint.proto`` and ``train/serialization.py``; its wheel was run on every
form named here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from ...errors import FormatError
from ...tensor import DType, Shape, TensorSpec
from ..findings import Findings
from ..frame import Frame, make_frame
from ..protobuf import Wire, bytes_field, encode_varint, int_field, text_field
from ..strict_json import shown

PIECE_BYTES = 512 * 2**20
"""Most content of one value; larger tensors are several. Source: mindspore 2.10.0, ``SLICE_SIZE``."""

CRC_MARK = b"crc_num"
CRC_TAIL_BYTES = len(CRC_MARK) + 10
"""The mark and a CRC-32 as ten big-endian bytes. Source: mindspore 2.10.0, ``_exec_save``."""

MAX_AXIS_COUNT = 32
"""Most axes that ``mindspore.load_checkpoint`` accepts. Source: measured with mindspore 2.10.0."""

MAX_NAME_BYTES = 2**15
"""Longest name in UTF-8; MindSpore sets no limit, but a reader that must not swallow tensors needs one."""

MAX_TEXT_BYTES = 2**20
"""Longest text value; texts are notes of the training script, and are read whole."""

LARGEST_EXTENT = 2**63 - 1
INT4 = "Int4"
TEXT_TYPE = "str"

_DTYPES = {
    "Bool": DType.BOOL,
    "Int8": DType.I8,
    "UInt8": DType.U8,
    "Int16": DType.I16,
    "UInt16": DType.U16,
    "Int32": DType.I32,
    "UInt32": DType.U32,
    "Int64": DType.I64,
    "UInt64": DType.U64,
    "Float16": DType.F16,
    "BFloat16": DType.BF16,
    "Float32": DType.F32,
    "Float64": DType.F64,
}

TYPE_NAME_OF: Mapping[DType, str] = MappingProxyType({dtype: name for name, dtype in _DTYPES.items()})
"""The type name of each dtype that a ``.ckpt`` can hold."""

DTYPE_OF: Mapping[str, DType] = MappingProxyType({**_DTYPES, INT4: DType.I8})
"""The dtype of each type name.

``Int4`` is two numbers a byte, and MindSpore counts the bytes: a shape of (2, 3) is 6 bytes. Its own
safetensors writer stores those bytes as I8 and adds ``{"<name>": "Int4"}`` to the metadata.

Source: mindspore 2.10.0 ``serialization.py``, ``tensor_to_ms_type`` and ``_exec_save``.
"""

_LARGEST_ITEMSIZE = 8
_SURROGATE = re.compile("[\ud800-\udfff]")


class CkptField:
    """Field numbers of the messages ``Checkpoint``, ``Value`` and ``TensorProto``.

    Source: mindspore 2.10.0, ``checkpoint.proto``.
    """

    VALUE = 1

    TAG = 1
    TENSOR = 2
    MAP = 3

    DIMS = 1
    TYPE = 2
    CONTENT = 3


def plan_ckpt(
    specs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
    texts: Mapping[str, str],
    *,
    piece_bytes: int = PIECE_BYTES,
) -> Frame:
    """Lay out an object of these tensors, in this order, and then these texts.

    Of the metadata, the format holds only ``{name: "Int4"}``: such a tensor is written with that type name. Tensors of
    more than ``piece_bytes`` (at least 8) become several values: of whole rows of the first axis longer than 1 where
    a row fits, of exactly so many bytes otherwise.

    Raises
    ------
    FormatError
        MindSpore would not load some values as they are; ``problems`` names all. An empty tensor of one
        axis is one of them: see this module's documentation.

    Examples
    --------
    >>> frame = plan_ckpt([TensorSpec("w", DType.I8, (2,))], {}, {})
    >>> frame.literals[0][1].hex(" "), frame.nbytes
    ('0a 11 0a 01 77 12 0c 08 02 12 04 49 6e 74 38 1a 02', 19)

    Source: mindspore 2.10.0 ``serialization.py``, ``_write_parameter_bytes_data``; its reader joins
    neighbours of one name, however they were cut.
    """
    if piece_bytes < _LARGEST_ITEMSIZE:
        raise ValueError(f"piece_bytes: expected at least {_LARGEST_ITEMSIZE}, found {piece_bytes}")
    _check_plan(specs, metadata, texts)

    def pieces() -> Iterator[tuple[int, bytes, int, int, int]]:
        for slot, spec in enumerate(specs):
            type_name = INT4 if metadata.get(spec.name) == INT4 else TYPE_NAME_OF[spec.dtype]
            for first, count in _spans(spec, piece_bytes):
                lead = _lead(spec.name, spec.shape, type_name, spec.dtype.nbytes(count))
                yield slot, lead, first, count, spec.dtype.itemsize

    contents = ((name, encode_text(text)) for name, text in texts.items())
    tail = (_lead(name, (0,), TEXT_TYPE, len(content)) + content for name, content in contents)
    return make_frame(pieces(), b"".join(tail))


def _spans(spec: TensorSpec, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield first element and element count of each value; an empty tensor has one, of nothing."""
    total = step = math.prod(spec.shape)
    if spec.nbytes > piece_bytes:
        long_axis = next(axis for axis, extent in enumerate(spec.shape) if extent > 1)
        row = math.prod(spec.shape[long_axis + 1 :])
        fitting = piece_bytes // spec.dtype.itemsize
        step = fitting // row * row or fitting
    for first in range(0, total or 1, step or 1):
        yield first, min(step, total - first)


def _lead(name: str, extents: Shape, type_name: str, content_nbytes: int) -> bytes:
    """Write all of one value but its content, from the inside out: every length counts what is inside."""
    dims = b"".join(int_field(CkptField.DIMS, extent) for extent in extents)
    content = _open(CkptField.CONTENT, content_nbytes)
    tensor = dims + text_field(CkptField.TYPE, type_name) + content
    tagged = bytes_field(CkptField.TAG, name.encode()) + _open(CkptField.TENSOR, len(tensor) + content_nbytes)
    value = tagged + tensor
    return _open(CkptField.VALUE, len(value) + content_nbytes) + value


def _open(number: int, nbytes: int) -> bytes:
    """Write the key and the length of a field whose payload follows."""
    return encode_varint(number << 3 | Wire.BYTES) + encode_varint(nbytes)


def _check_plan(specs: Sequence[TensorSpec], metadata: Mapping[str, str], texts: Mapping[str, str]) -> None:
    names = [*(spec.name for spec in specs), *texts]
    expected = "values that mindspore.load_checkpoint reads as they are"
    if not names:
        hint = "MindSpore refuses objects without values."
        raise FormatError("nothing to write", where="planned .ckpt", expected=expected, found="none", hint=hint)
    findings, seen = Findings(), set()
    for spec in specs:
        for problem in _tensor_problems(spec, is_int4=metadata.get(spec.name) == INT4):
            findings.add(f"tensor {shown(spec.name)}", *problem)
    for name, text in texts.items():
        for problem in _text_problems(text):
            findings.add(f"text {shown(name)}", *problem)
    for name in names:
        if name in seen:
            findings.add(shown(name), "a unique name", "a name that is taken")
        seen.add(name)
        if _SURROGATE.search(name):
            findings.add(shown(name), "a name that UTF-8 can encode", "an unpaired surrogate")
        elif len(name.encode()) > MAX_NAME_BYTES:
            findings.add(shown(name), f"a name of at most {MAX_NAME_BYTES} bytes", str(len(name.encode())))
    hint = "Write safetensors, or leave these out."
    findings.raise_any("values that .ckpt cannot hold", where="planned .ckpt", expected=expected, hint=hint)


def _tensor_problems(spec: TensorSpec, *, is_int4: bool) -> Iterator[tuple[str, str]]:
    """Yield what is expected of a tensor and what it is instead."""
    if spec.dtype not in TYPE_NAME_OF:
        yield f"one of {', '.join(TYPE_NAME_OF)}", spec.dtype
    elif is_int4 and spec.dtype is not DTYPE_OF[INT4]:
        yield f"{INT4} packed in {DTYPE_OF[INT4]}", spec.dtype
    if len(spec.shape) > MAX_AXIS_COUNT:
        yield f"at most {MAX_AXIS_COUNT} axes", str(len(spec.shape))
    elif any(not 0 <= extent <= LARGEST_EXTENT for extent in spec.shape):
        yield "extents of 0 to 2**63 - 1", shown(list(spec.shape))
    elif math.prod(spec.shape) > LARGEST_EXTENT // _LARGEST_ITEMSIZE:
        yield "less than 2**63 bytes", f"{spec.dtype} {shown(list(spec.shape))}"
    if spec.shape == (0,):
        yield "any shape but [0], which MindSpore loads as a scalar of value 0", "[0]"


def _text_problems(text: str) -> Iterator[tuple[str, str]]:
    if _SURROGATE.search(text):
        yield "whole characters", "an unpaired surrogate"
    elif len(encode_text(text)) > MAX_TEXT_BYTES:
        yield f"at most {MAX_TEXT_BYTES} bytes in UTF-32", str(len(encode_text(text)))
    if text.endswith("\0"):
        yield "no NUL at the end, where MindSpore drops it", "one"


def encode_text(text: str) -> bytes:
    """Write text as MindSpore does: four bytes a character, and one zero character for none.

    NUL characters at the end do not come back; writers must refuse them.

    Source: mindspore 2.10.0 saves ``numpy.array(text)``, whose shortest type has one character.
    """
    return (text or "\0").encode("utf-32-le")


def decode_text(content: bytes, name: str) -> str:
    """Read the bytes of the text value ``name``; raise FormatError if they are not characters."""
    try:
        return content.decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError as error:
        found = shown(content[error.start : error.start + 4])
        place = f"text {shown(name)}"
        raise FormatError("not text", where=place, expected="UTF-32, low byte first", found=found) from error
