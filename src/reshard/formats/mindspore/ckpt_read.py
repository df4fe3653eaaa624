"""Finding every value of a ``.ckpt`` object by reading a few ranges of it; the I/O is the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

from ...errors import FormatError
from ...tensor import ByteRange, TensorSpec
from ..strict_json import shown
from .ckpt_head import LONGEST_HEAD_BYTES, Head, OutOfWindowError, Window, ckpt_error, read_crc, read_head
from .ckpt_values import (
    DTYPE_OF,
    MAX_AXIS_COUNT,
    MAX_TEXT_BYTES,
    TEXT_TYPE,
    CkptIndex,
    CkptTensor,
    CkptText,
)

READ_AHEAD_BYTES = 4096
"""Length of the first read; later ones adapt."""

_SMALLEST_READ_BYTES = 512  # a head of usual size and no more: after a large tensor comes a large tensor
_LARGEST_READ_BYTES = 2**20
_NEAR_BYTES = 2**16  # a hop this short costs less when read through than as a request of its own
_MAX_VALUE_COUNT = 1_000_000  # how much memory an index takes must not be a stranger's choice
_KEPT_PROBLEMS = 10_000
_LARGEST_EXTENT = 2**63 - 1


def read_index(object_nbytes: int, read: Callable[[ByteRange], bytes]) -> CkptIndex:
    """Scan an object with a function that reads one range of it.

    Parameters
    ----------
    object_nbytes
        Length of the whole object.
    read
        Returns the bytes of a range.

    Raises
    ------
    FormatError
        As ``scan_ckpt``.

    Examples
    --------
    >>> data = bytes.fromhex("0a 11 0a 01 77 12 0c 08 02 12 04 49 6e 74 38 1a 02 ff fe")
    >>> tensor, = read_index(len(data), lambda where: data[where.start : where.stop]).tensors
    >>> tensor.spec.name, tensor.spec.shape, tensor.type_name, tensor.ranges
    ('w', (2,), 'Int8', (ByteRange(start=17, stop=19),))
    """
    scan = scan_ckpt(object_nbytes)
    try:
        wanted = next(scan)
        while True:
            wanted = scan.send(read(wanted))
    except StopIteration as finished:
        index: CkptIndex = finished.value
        return index


def scan_ckpt(object_nbytes: int, read_ahead_bytes: int = READ_AHEAD_BYTES) -> Generator[ByteRange, bytes, CkptIndex]:
    """Ask for the ranges that tell what a ``.ckpt`` object holds, and return its index.

    Ranges come in ascending order, each from the start of a value. While values are small, every read
    is twice as long as the one before, up to 1 MiB, so that one read covers many; a content that
    reaches more than 64 KiB beyond a read is hopped over, and the next read has 512 bytes. That is
    one small read for each large value: only the value itself says where the next one begins.

    Parameters
    ----------
    object_nbytes
        Length of the whole object.
    read_ahead_bytes
        Length of the first read, at least 1.

    Yields
    ------
    ByteRange
        What to read next, within the object and not empty; send exactly its bytes.

    Returns
    -------
    CkptIndex
        Every value, with the place of its bytes.

    Raises
    ------
    FormatError
        The object is encrypted, cut short or no ``.ckpt``; or some of its values cannot be used, and
        ``problems`` names them (the first 10 000, should there be more): map parameters, unknown types,
        contents that do not fit their shapes, names that come again later.
    ValueError
        ``read_ahead_bytes`` is less than 1.

    Examples
    --------
    >>> scan = scan_ckpt(10**9)
    >>> next(scan)
    ByteRange(start=0, stop=4096)
    """
    if not object_nbytes:
        raise ckpt_error("empty object", 0, "at least one value", "0 bytes", "Did its upload finish?")
    window = Window(0, b"", object_nbytes)
    read_ahead = _ReadAhead(read_ahead_bytes)
    found = _Found()
    offset, crc32 = 0, None
    while offset < object_nbytes and crc32 is None:
        try:
            crc32 = read_crc(window, offset)
            if crc32 is None:
                offset = found.add(read_head(window, offset))
        except OutOfWindowError:
            wanted = read_ahead.range_at(offset, window)
            window = _moved(window, wanted, (yield wanted))
    return found.index(object_nbytes, crc32)


def _moved(window: Window, where: ByteRange, data: bytes) -> Window:
    if len(data) != where.nbytes:
        raise ckpt_error("short read", where.start, f"{where.nbytes} bytes", f"{len(data)}", "Did the object change?")
    return Window(where.start, data, window.object_nbytes)


class _ReadAhead:
    """How much to read at once, learnt from how far apart the values are."""

    def __init__(self, first_bytes: int) -> None:
        if first_bytes < 1:
            raise ValueError(f"read_ahead_bytes: expected at least 1, found {first_bytes}")
        self._nbytes = first_bytes
        self._smallest = min(first_bytes, _SMALLEST_READ_BYTES)
        self._largest = max(first_bytes, _LARGEST_READ_BYTES)

    def range_at(self, offset: int, window: Window) -> ByteRange:
        """The next range, for a value at ``offset`` whose head is not all in the window."""
        if window.data:
            if offset == window.start and len(window.data) >= LONGEST_HEAD_BYTES:
                expected = f"a content that starts within {LONGEST_HEAD_BYTES} bytes"
                raise ckpt_error("endless value", offset, expected, "none")
            is_near = offset - window.stop <= _NEAR_BYTES
            self._nbytes = min(2 * self._nbytes, self._largest) if is_near else self._smallest
        return ByteRange(offset, min(offset + self._nbytes, window.object_nbytes))


class _Found:
    """The values so far; neighbours of one name are one tensor, so the last of them is still open."""

    def __init__(self) -> None:
        self._tensors: list[CkptTensor] = []
        self._texts: list[CkptText] = []
        self._names: set[str] = set()
        self._open: list[Head] = []
        self._value_count = self._problem_count = 0
        self._problems: list[str] = []
        self._hints: dict[str, None] = {}  # a set in the order of its making

    def add(self, head: Head) -> int:
        """Take one value more; return where it ends."""
        self._value_count += 1
        if self._value_count > _MAX_VALUE_COUNT:
            raise ckpt_error("too many values", head.start, f"at most {_MAX_VALUE_COUNT}", "more")
        if self._open and self._open[0].name != head.name:
            self._close()
        self._open.append(head)
        return head.stop

    def index(self, object_nbytes: int, crc32: int | None) -> CkptIndex:
        """What was found, when there is no more.

        Raises
        ------
        FormatError
            Nothing was found, or some of it cannot be used.
        """
        if not self._open:
            raise ckpt_error("no values", 0, "at least one value", "a checksum only")
        self._close()
        if self._problem_count:
            raise FormatError(
                "values that cannot be used",
                expected="tensors and texts, each of a name of its own and bytes that fit",
                found=f"{self._problem_count} problem{'s' * (self._problem_count > 1)}",
                hint=" ".join(self._hints),
                problems=self._problems,
            )
        return CkptIndex(tuple(self._tensors), tuple(self._texts), object_nbytes, crc32)

    def _close(self) -> None:
        values, self._open = self._open, []
        first, contents = values[0], tuple(value.content for value in values)
        if first.name in self._names:
            self._problem(first, "a name of its own", "one that stands further up already")
        self._names.add(first.name)
        if any(value.is_map for value in values):
            hint = "Map parameters fit no other format: save the model without them."
            self._problem(first, "a tensor or a text", "a map parameter (an embedding's hash table)", hint)
        elif any((value.type_name, value.extents) != (first.type_name, first.extents) for value in values):
            self._problem(first, "one type and one shape", f"several, in {len(values)} neighbours of this name")
        elif first.type_name == TEXT_TYPE:
            self._add_text(first, contents)
        elif first.type_name not in DTYPE_OF:
            self._problem(first, f"a type of {', '.join(DTYPE_OF)}, {TEXT_TYPE}", shown(first.type_name))
        elif len(first.extents) > MAX_AXIS_COUNT or max(first.extents, default=0) > _LARGEST_EXTENT:
            expected = f"at most {MAX_AXIS_COUNT} extents from 0 to 2**63 - 1"
            self._problem(first, expected, f"{len(first.extents)}: {shown(first.extents)}")
        else:
            self._add_tensor(first, contents)

    def _add_text(self, value: Head, contents: tuple[ByteRange, ...]) -> None:
        nbytes = sum(where.nbytes for where in contents)
        if len(contents) > 1 or nbytes > MAX_TEXT_BYTES or nbytes % 4:
            found = f"{nbytes} bytes in {len(contents)} values"
            self._problem(value, f"a text of at most {MAX_TEXT_BYTES} bytes, 4 a character, in one value", found)
        else:
            self._texts.append(CkptText(value.name, contents[0]))

    def _add_tensor(self, value: Head, contents: tuple[ByteRange, ...]) -> None:
        dtype, nbytes = DTYPE_OF[value.type_name], sum(where.nbytes for where in contents)
        # MindSpore before 2.5 wrote scalars as [0]. So is an empty tensor of one axis, but without content.
        is_old_scalar = value.extents == [0] and nbytes == dtype.itemsize
        spec = TensorSpec(value.name, dtype, () if is_old_scalar else tuple(value.extents))
        if math.prod(spec.shape) * dtype.itemsize != nbytes:
            expected = f"{spec.nbytes} bytes for {value.type_name} {shown(value.extents)}"
            self._problem(value, expected, f"{nbytes}", "MindSpore would fill up or cut off these tensors.")
        elif any(where.nbytes % dtype.itemsize for where in contents):
            self._problem(value, "whole elements in every piece", f"pieces that cut a {value.type_name} in two")
        else:
            self._tensors.append(CkptTensor(spec, contents, value.type_name))

    def _problem(self, value: Head, expected: str, found: str, hint: str = "") -> None:
        self._problem_count += 1
        if self._problem_count <= _KEPT_PROBLEMS:
            self._problems.append(f"{shown(value.name)}, byte {value.start}: expected {expected}, found {found}")
        if hint:
            self._hints[hint] = None
