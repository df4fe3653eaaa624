"""What a MindSpore ``.ckpt`` object holds, and the names, marks and limits that its reader and writer share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from ...errors import FormatError
from ...tensor import Box, ByteRange, DType, TensorSpec, row_major_boxes
from ..strict_json import shown

PIECE_BYTES = 512 * 2**20
"""Most content of one value; larger tensors are several. Source: mindspore 2.10.0, ``SLICE_SIZE``."""

CRC_MARK = b"crc_num"
CRC_TAIL_BYTES = len(CRC_MARK) + 10
"""The mark and a CRC-32 as ten big-endian bytes. Source: mindspore 2.10.0, ``_exec_save``."""

MAX_AXIS_COUNT = 32
"""Most axes that ``mindspore.load_checkpoint`` takes. Source: measured with mindspore 2.10.0."""

MAX_NAME_BYTES = 2**15
"""Longest name in UTF-8; MindSpore sets no limit, but a reader that must not swallow tensors needs one."""

MAX_TEXT_BYTES = 2**20
"""Longest text value; they are notes of the training script, and are read whole."""

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
"""The type name of each dtype that a .ckpt can hold."""

DTYPE_OF: Mapping[str, DType] = MappingProxyType({**_DTYPES, INT4: DType.I8})
"""The dtype of each type name.

``Int4`` is two numbers a byte, and MindSpore counts the bytes: a shape of (2, 3) is 6 bytes. Its own
safetensors writer stores those bytes as I8 and adds ``{"<name>": "Int4"}`` to the metadata.

Source: mindspore 2.10.0 ``serialization.py``, ``tensor_to_ms_type`` and ``_exec_save``.
"""


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


@dataclass(frozen=True, slots=True)
class CkptTensor:
    """A tensor and the bytes of the object that hold it.

    Parameters
    ----------
    spec
        Name, dtype and shape.
    ranges
        Where its bytes lie, counted from the object's first byte: one range, or several of a tensor
        of more than 512 MiB, to be read one after the other. Each holds whole elements.
    type_name
        MindSpore's name of the type, which says more than the dtype does: see ``DTYPE_OF``.
    """

    spec: TensorSpec
    ranges: tuple[ByteRange, ...]
    type_name: str

    def boxes(self) -> Iterator[tuple[Box, ByteRange]]:
        """Yield boxes that tile the tensor, in order, each with its bytes; none of an empty tensor.

        Examples
        --------
        >>> ranges = (ByteRange(30, 33), ByteRange(50, 53))
        >>> for box, where in CkptTensor(TensorSpec("w", DType.U8, (3, 2)), ranges, "UInt8").boxes():
        ...     print(box.start, box.stop, where)
        (0, 0) (1, 2) ByteRange(start=30, stop=32)
        (1, 0) (2, 1) ByteRange(start=32, stop=33)
        (1, 1) (2, 2) ByteRange(start=50, stop=51)
        (2, 0) (3, 2) ByteRange(start=51, stop=53)
        """
        itemsize, first = self.spec.dtype.itemsize, 0
        for where in self.ranges:
            stop, start = first + where.nbytes // itemsize, where.start
            for box in row_major_boxes(self.spec.shape, first, stop):
                nbytes = box.element_count * itemsize
                yield box, ByteRange(start, start + nbytes)
                start += nbytes
            first = stop


@dataclass(frozen=True, slots=True)
class CkptText:
    """A value that is text, and the bytes of the object that hold it; see ``decode_text``."""

    name: str
    range: ByteRange


@dataclass(frozen=True)
class CkptIndex:
    """What one ``.ckpt`` object holds.

    Not slotted, so that ``by_name`` is built once.

    Parameters
    ----------
    tensors, texts
        Each in the order of their bytes.
    nbytes
        Length of the whole object.
    crc32
        The checksum at the object's end, if it has one; nothing has compared it with the bytes.
    """

    tensors: tuple[CkptTensor, ...]
    texts: tuple[CkptText, ...]
    nbytes: int
    crc32: int | None = None

    @property
    def crc_range(self) -> ByteRange:
        """The bytes that the checksum is of: all but the checksum itself."""
        return ByteRange(0, self.nbytes - CRC_TAIL_BYTES * (self.crc32 is not None))

    @cached_property
    def by_name(self) -> Mapping[str, CkptTensor]:
        """The tensors by their names."""
        return {tensor.spec.name: tensor for tensor in self.tensors}


def crc_tail(crc32: int) -> bytes:
    """Make the bytes that end an object with a checksum.

    Parameters
    ----------
    crc32
        zlib's CRC-32 of all bytes before.

    Examples
    --------
    >>> crc_tail(0x01020304)
    b'crc_num\\x00\\x00\\x00\\x00\\x00\\x00\\x01\\x02\\x03\\x04'
    """
    return CRC_MARK + crc32.to_bytes(CRC_TAIL_BYTES - len(CRC_MARK), "big")


def encode_text(text: str) -> bytes:
    """Write text as MindSpore does: four bytes a character, and one zero character for none.

    NUL characters at the end do not come back; whoever writes must refuse them.

    Source: mindspore 2.10.0 saves ``numpy.array(text)``, whose shortest type has one character.

    Examples
    --------
    >>> encode_text("a"), encode_text("")
    (b'a\\x00\\x00\\x00', b'\\x00\\x00\\x00\\x00')
    """
    return (text or "\0").encode("utf-32-le")


def decode_text(content: bytes, name: str) -> str:
    """Read the bytes of a text value.

    Parameters
    ----------
    content
        What stands at ``CkptText.range``.
    name
        Of the value, for errors.

    Raises
    ------
    FormatError
        The bytes are not characters.

    Examples
    --------
    >>> decode_text(encode_text("hello"), "note")
    'hello'
    """
    try:
        return content.decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError as error:
        found = shown(content[error.start : error.start + 4])
        raise FormatError(
            "not text", where=f"text {shown(name)}", expected="UTF-32, low byte first", found=found
        ) from error
