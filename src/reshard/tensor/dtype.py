"""Element types, by the names that safetensors headers use, without any array library."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property


class DType(StrEnum):
    """Element type of a tensor.

    Members are in the order of the safetensors library's own enumeration, by which writers sort the
    tensors of a file (descending).

    Source: safetensors 0.8.0, ``tensor.rs``, ``enum Dtype``.

    Examples
    --------
    >>> DType.BF16.bits, DType.F4.bits, DType("F8_E4M3")
    (16, 4, <DType.F8_E4M3: 'F8_E4M3'>)
    >>> DType.F32.nbytes(6)
    24
    """

    BOOL = "BOOL"
    F4 = "F4"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    U8 = "U8"
    I8 = "I8"
    F8_E5M2 = "F8_E5M2"
    F8_E4M3 = "F8_E4M3"
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    I16 = "I16"
    U16 = "U16"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    U32 = "U32"
    F32 = "F32"
    C64 = "C64"
    F64 = "F64"
    I64 = "I64"
    U64 = "U64"

    @cached_property
    def bits(self) -> int:
        """Bits of one element."""
        return _BITS[self]

    @cached_property
    def is_sub_byte(self) -> bool:
        """Whether several elements share a byte, so that a tensor can only be moved whole."""
        return self.bits < 8

    @cached_property
    def itemsize(self) -> int:
        """Bytes of one element; ValueError for a sub-byte dtype."""
        if self.is_sub_byte:
            raise ValueError(f"{self} has {self.bits} bits an element: no whole number of bytes")
        return self.bits // 8

    @cached_property
    def order(self) -> int:
        """Position in the enumeration; writers sort by it, largest first."""
        return _ORDER[self]

    def nbytes(self, element_count: int) -> int:
        """Return the bytes of ``element_count`` elements; raise ValueError if they do not fill whole bytes."""
        total_bits = self.bits * element_count
        if total_bits % 8:
            raise ValueError(f"{element_count} elements of {self} do not fill whole bytes")
        return total_bits // 8


_WIDE = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BF16": 16}
_BITS = {d: _WIDE.get(d.value) or int(d.value.split("_")[0][1:]) for d in DType}
_ORDER = {d: position for position, d in enumerate(DType)}
