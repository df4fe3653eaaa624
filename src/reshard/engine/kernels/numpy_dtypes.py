"""The dtypes of numpy and ml_dtypes that hold the elements of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ...tensor import DType

FLOATING: Mapping[DType, np.dtype[Any]] = {
    DType.F8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.F8_E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.F8_E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.F8_E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.F32: np.dtype(np.float32),
    DType.F64: np.dtype(np.float64),
}
"""Real floating-point dtypes."""

NUMPY: Mapping[DType, np.dtype[Any]] = {
    **FLOATING,
    DType.BOOL: np.dtype(np.bool_),
    DType.U8: np.dtype(np.uint8),
    DType.I8: np.dtype(np.int8),
    DType.U16: np.dtype(np.uint16),
    DType.I16: np.dtype(np.int16),
    DType.U32: np.dtype(np.uint32),
    DType.I32: np.dtype(np.int32),
    DType.U64: np.dtype(np.uint64),
    DType.I64: np.dtype(np.int64),
    DType.C64: np.dtype(np.complex64),
}
"""Every dtype whose elements fill whole bytes."""
