"""The element types of torch, by their names there."""

from __future__ import annotations

from ..tensor import DType

TORCH_DTYPES = {
    "bool": DType.BOOL,
    "uint8": DType.U8,
    "int8": DType.I8,
    "int16": DType.I16,
    "int32": DType.I32,
    "int64": DType.I64,
    "uint16": DType.U16,
    "uint32": DType.U32,
    "uint64": DType.U64,
    "float16": DType.F16,
    "bfloat16": DType.BF16,
    "float32": DType.F32,
    "float64": DType.F64,
    "complex64": DType.C64,
    "float8_e4m3fn": DType.F8_E4M3,
    "float8_e5m2": DType.F8_E5M2,
    "float8_e8m0fnu": DType.F8_E8M0,
    "float8_e4m3fnuz": DType.F8_E4M3FNUZ,
    "float8_e5m2fnuz": DType.F8_E5M2FNUZ,
}
"""Dtypes whose elements are whole bytes, by their names without ``torch.``, in lower case as MindSpore's are too."""

TORCH_STORAGES = {
    "Float": DType.F32,
    "Half": DType.F16,
    "BFloat16": DType.BF16,
    "Double": DType.F64,
    "Long": DType.I64,
    "Int": DType.I32,
    "Short": DType.I16,
    "Char": DType.I8,
    "Byte": DType.U8,
    "Bool": DType.BOOL,
    "ComplexFloat": DType.C64,
}
"""Dtypes of typed storages: ``torch.FloatStorage``."""
