"""A MindSpore ``.ckpt`` object laid out before any byte moves: what stands before each run of content."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import FormatError
from ...tensor import ByteRange, Shape, TensorSpec
from ..protobuf import Wire, bytes_field, encode_varint, int_field, text_field
from ..strict_json import shown
from .ckpt_values import (
    DTYPE_OF,
    MAX_AXIS_COUNT,
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    PIECE_BYTES,
    TEXT_TYPE,
    TYPE_NAME_OF,
    CkptField,
    CkptIndex,
    CkptTensor,
    CkptText,
    encode_text,
)

_LARGEST_EXTENT = 2**63 - 1
_LARGEST_ITEMSIZE = 8
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class CkptPiece:
    """Bytes that are known, and the tensor's elements that follow them.

    Parameters
    ----------
    tensor_index
        Which of the planned tensors.
    lead
        What stands before the content: the value's name, shape, type and lengths.
    first_element, element_count
        The content: elements ``[first_element, first_element + element_count)`` of the row-major tensor.
    """

    tensor_index: int
    lead: bytes
    first_element: int
    element_count: int


@dataclass(frozen=True, slots=True)
class PlannedCkpt:
    """A ``.ckpt`` object that does not exist yet.

    It is the lead and the content of each piece, in order, then ``tail``. ``crc_tail`` may follow,
    once all bytes are known.

    Parameters
    ----------
    pieces
        In the order of their bytes.
    tail
        The text values.
    index
        What ``scan_ckpt`` will find in the finished object. The ranges of a tensor are its pieces' contents.
    """

    pieces: tuple[CkptPiece, ...]
    tail: bytes
    index: CkptIndex

    @property
    def nbytes(self) -> int:
        """Length of the whole object in bytes, without a checksum."""
        return self.index.nbytes


def plan_ckpt(
    tensors: Sequence[tuple[TensorSpec, str | None]],
    texts: Mapping[str, str] | None = None,
    *,
    piece_bytes: int = PIECE_BYTES,
) -> PlannedCkpt:
    """Lay out an object of these values, in this order, texts last.

    Parameters
    ----------
    tensors
        Each with MindSpore's name of its type, or None for the usual one of its dtype.
    texts
        Texts by name.
    piece_bytes
        Tensors of more bytes become several values: of whole rows of the first axis longer than 1
        where a row fits, of just so many bytes otherwise. At least 8.

    Raises
    ------
    FormatError
        Some values cannot be written so that MindSpore loads them as they are; ``problems`` names all.
        An empty tensor of one axis is such: see the module ``ms_ckpt``.
    ValueError
        ``piece_bytes`` is less than 8.

    Examples
    --------
    >>> planned = plan_ckpt([(TensorSpec("w", DTYPE_OF["Int8"], (2,)), None)])
    >>> planned.pieces[0].lead.hex(" "), planned.nbytes
    ('0a 11 0a 01 77 12 0c 08 02 12 04 49 6e 74 38 1a 02', 19)

    Source: mindspore 2.10.0 ``serialization.py``, ``_write_parameter_bytes_data``; its reader joins
    neighbours of one name, however they were cut.
    """
    if piece_bytes < _LARGEST_ITEMSIZE:
        raise ValueError(f"piece_bytes: expected at least {_LARGEST_ITEMSIZE}, found {piece_bytes}")
    texts = texts or {}
    _check_plan(tensors, texts)
    pieces: list[CkptPiece] = []
    stored: list[CkptTensor] = []
    offset = 0
    for position, (spec, named) in enumerate(tensors):
        type_name = named or TYPE_NAME_OF[spec.dtype]
        cut = [_piece(position, spec, type_name, *span) for span in _spans(spec, piece_bytes)]
        ranges = tuple(_ranges(cut, spec, offset))
        stored.append(CkptTensor(spec, ranges, type_name))
        pieces += cut
        offset = ranges[-1].stop
    tail, found = _texts(texts, offset)
    return PlannedCkpt(tuple(pieces), tail, CkptIndex(tuple(stored), found, offset + len(tail)))


def _spans(spec: TensorSpec, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield first element and element count of each piece; an empty tensor has one, of nothing."""
    total = math.prod(spec.shape)
    step = total if spec.nbytes <= piece_bytes else _elements_a_piece(spec, piece_bytes)
    for first in range(0, total or 1, step or 1):
        yield first, min(step, total - first)


def _elements_a_piece(spec: TensorSpec, piece_bytes: int) -> int:
    long_axis = next(axis for axis, extent in enumerate(spec.shape) if extent > 1)
    row = math.prod(spec.shape[long_axis + 1 :])
    fitting = piece_bytes // spec.dtype.itemsize
    return fitting // row * row or fitting


def _piece(position: int, spec: TensorSpec, type_name: str, first: int, count: int) -> CkptPiece:
    return CkptPiece(position, _lead(spec.name, spec.shape, type_name, spec.dtype.nbytes(count)), first, count)


def _ranges(cut: list[CkptPiece], spec: TensorSpec, offset: int) -> Iterator[ByteRange]:
    for piece in cut:
        start = offset + len(piece.lead)
        offset = start + spec.dtype.nbytes(piece.element_count)
        yield ByteRange(start, offset)


def _texts(texts: Mapping[str, str], offset: int) -> tuple[bytes, tuple[CkptText, ...]]:
    tail = bytearray()
    found = []
    for name, text in texts.items():
        content = encode_text(text)
        tail += _lead(name, (0,), TEXT_TYPE, len(content))
        start = offset + len(tail)
        tail += content
        found.append(CkptText(name, ByteRange(start, start + len(content))))
    return bytes(tail), tuple(found)


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


def _check_plan(tensors: Sequence[tuple[TensorSpec, str | None]], texts: Mapping[str, str]) -> None:
    names = [spec.name for spec, _ in tensors] + list(texts)
    problems = [f"tensor {shown(spec.name)}: {p}" for spec, named in tensors for p in _tensor_problems(spec, named)]
    problems += [f"text {shown(name)}: {p}" for name, text in texts.items() for p in _text_problems(text)]
    problems += _name_problems(names)
    if problems or not names:
        raise FormatError(
            "unfit values" if names else "nothing to write",
            where="planned .ckpt",
            expected="values that mindspore.load_checkpoint reads as they are",
            found=f"{len(problems)} problem{'s' * (len(problems) > 1)}" if names else "none",
            hint="Write safetensors, or leave these out." if names else "MindSpore refuses objects without values.",
            problems=problems,
        )


def _tensor_problems(spec: TensorSpec, type_name: str | None) -> Iterator[str]:
    if spec.dtype not in TYPE_NAME_OF:
        yield f"expected one of {', '.join(TYPE_NAME_OF)}, found {spec.dtype}"
    elif type_name is not None and DTYPE_OF.get(type_name) is not spec.dtype:
        yield f"expected a type name of {spec.dtype}, found {shown(type_name)}"
    if len(spec.shape) > MAX_AXIS_COUNT:
        yield f"expected at most {MAX_AXIS_COUNT} axes, found {len(spec.shape)}"
    elif any(not 0 <= extent <= _LARGEST_EXTENT for extent in spec.shape):
        yield f"expected extents of 0 to 2**63 - 1, found {shown(list(spec.shape))}"
    elif math.prod(spec.shape) > _LARGEST_EXTENT // _LARGEST_ITEMSIZE:
        yield f"expected less than 2**63 bytes, found {spec.dtype} {shown(list(spec.shape))}"
    if spec.shape == (0,):
        yield "expected any shape but [0], which MindSpore loads as a scalar of value 0, found [0]"


def _text_problems(text: str) -> Iterator[str]:
    if _SURROGATE.search(text):
        yield "expected whole characters, found half of a surrogate pair"
    elif len(encode_text(text)) > MAX_TEXT_BYTES:
        yield f"expected at most {MAX_TEXT_BYTES} bytes in UTF-32, found {len(encode_text(text))}"
    if text.endswith("\0"):
        yield "expected no NUL at the end, where MindSpore drops it, found one"


def _name_problems(names: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{shown(name)}: expected a name of its own, found one that is taken"
        seen.add(name)
        if _SURROGATE.search(name):
            yield f"{shown(name)}: expected a name that UTF-8 can hold, found half of a surrogate pair"
        elif len(name.encode()) > MAX_NAME_BYTES:
            yield f"{shown(name)}: expected a name of at most {MAX_NAME_BYTES} bytes, found {len(name.encode())}"
