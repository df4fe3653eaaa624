"""The value of chunks that zarr's writers leave out, as bytes.

Source: Zarr core specification version 3.0, "Fill value list"; ``bfloat16`` and ``float8_*`` as in zarr-extensions.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import FormatError
from ..tensor import DType
from .strict_json import shown


class _Float(NamedTuple):
    """A type of floats: bits of the fraction, bias of the exponent, and patterns; None where it has no such value."""

    fraction: int
    bias: int
    largest: int
    nan: int
    infinity: int | None = None


_FLOATS = {
    DType.F64: _Float(52, 1023, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0000),
    DType.F32: _Float(23, 127, 0x7F7F_FFFF, 0x7FC0_0000, 0x7F80_0000),
    DType.F16: _Float(10, 15, 0x7BFF, 0x7E00, 0x7C00),
    DType.BF16: _Float(7, 127, 0x7F7F, 0x7FC0, 0x7F80),
    DType.F8_E5M2: _Float(2, 15, 0x7B, 0x7E, 0x7C),
    DType.F8_E4M3: _Float(3, 7, 0x7E, 0x7F),
    DType.F8_E5M2FNUZ: _Float(2, 16, 0x7F, 0x80),
    DType.F8_E4M3FNUZ: _Float(3, 8, 0x7F, 0x80),
    DType.F8_E8M0: _Float(0, 127, 0xFE, 0xFF),
}
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class Fill:
    """What an array holds where no chunk is stored.

    Parameters
    ----------
    dtype
        Of the array.
    value
        ``fill_value`` of its document, in JSON's types; looked at only when it is needed.

    Examples
    --------
    >>> Fill(DType.BF16, 1.0).element().hex(), Fill(DType.F32, "NaN").element().hex()
    ('803f', '0000c07f')
    """

    dtype: DType
    value: object

    def element(self) -> bytes:
        """One element, little-endian; numbers are rounded to the nearest that the type has, ties to even.

        Raises
        ------
        FormatError
            The type has no such value.
        """
        if self.dtype is DType.BOOL and isinstance(self.value, bool):
            return bytes([self.value])
        if self.dtype is DType.C64 and isinstance(self.value, list) and len(self.value) == 2:
            return b"".join(self._float(DType.F32, part) for part in self.value)
        if self.dtype in _FLOATS:
            return self._float(self.dtype, self.value)
        size, is_signed = self.dtype.bits // 8, self.dtype.value.startswith("I")
        if self.dtype.value[0] in "IU" and type(self.value) is int:
            try:
                return self.value.to_bytes(size, "little", signed=is_signed)
            except OverflowError:
                pass
        raise self._refused()

    def _float(self, dtype: DType, value: object) -> bytes:
        size = dtype.bits // 8
        if isinstance(value, str) and re.fullmatch(f"0x[0-9a-fA-F]{{{2 * size}}}", value):
            return int(value, 16).to_bytes(size, "little")
        if isinstance(value, str):
            value = _SPELLED.get(value)
        if type(value) not in (int, float):
            raise self._refused()
        try:
            pattern = _pattern(_FLOATS[dtype], float(value), 8 * size)  # type: ignore[arg-type]
        except OverflowError:
            pattern = None
        if pattern is None:
            raise self._refused()
        return pattern.to_bytes(size, "little")

    def _refused(self) -> FormatError:
        return FormatError("fill_value", expected=f"a value of {self.dtype.value}", found=shown(self.value))


def _pattern(kind: _Float, value: float, bits: int) -> int | None:
    """The bits of a number, None if there are none for it."""
    if math.isnan(value):
        return kind.nan
    is_negative, magnitude, pattern = math.copysign(1.0, value) < 0, abs(value), None
    if not kind.fraction and (is_negative or not magnitude):
        return None  # powers of two alone
    if math.isinf(magnitude):
        pattern = kind.infinity
    elif not magnitude:
        pattern = 0
    else:
        exponent = max(math.frexp(magnitude)[1] - 1, 1 - kind.bias)
        # The leading bit counts one up into the exponent, and so does a fraction that is rounded up beyond its end.
        count = round(math.ldexp(magnitude, kind.fraction - exponent))
        rounded = count + ((exponent + kind.bias - 1) << kind.fraction)
        pattern = rounded if rounded <= kind.largest else None
    if pattern is None or not is_negative or (not pattern and kind.nan >> (bits - 1)):
        return pattern  # there -0.0 would be NaN
    return pattern | 1 << (bits - 1)
