"""Bytes in memory as a DLPack tensor, which any framework takes without a copy, bfloat16 and FP8 included.

numpy exports only its own dtypes, so that the structure is made here.

Source: DLPack 1.1, ``dlpack.h``; the protocol is that of the Python array API, ``__dlpack__``.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..tensor import DType, Shape

_CPU = (1, 0)
_INT, _UINT, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6
_CODES = {
    DType.BOOL: _BOOL, DType.BF16: _BFLOAT, DType.C64: _COMPLEX,
    DType.F8_E4M3: 10, DType.F8_E4M3FNUZ: 11, DType.F8_E5M2: 12, DType.F8_E5M2FNUZ: 13, DType.F8_E8M0: 14,
}  # fmt: skip
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_Managed._fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _Deleter))

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_is_named = ctypes.pythonapi.PyCapsule_IsValid
_is_named.restype, _is_named.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]

_alive: dict[int, tuple[_Managed, Any]] = {}
"""Structures that were handed out, by their address, with the memory that they point to."""


def _delete(address: int) -> None:
    """Let the memory of a tensor go: its taker is done with it."""
    _alive.pop(address, None)


def _destroy(capsule: int) -> None:
    """Let the memory of a capsule go that nobody took; a taker renames it."""
    if _is_named(capsule, _NAME):
        _alive.pop(_pointer(capsule, _NAME), None)


# What ctypes makes of a function lives as long as this module.
_DELETER, _DESTRUCTOR = _Deleter(_delete), _Destructor(_destroy)


class DlpackTensor:
    """A tensor on the CPU for ``from_dlpack`` of any framework; it owns its bytes, and so do all that it was given to.

    Examples
    --------
    >>> numbers = DlpackTensor(np.arange(6, dtype=np.int16).view(np.uint8), DType.I16, (2, 3))
    >>> np.from_dlpack(numbers).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """

    def __init__(self, data: npt.NDArray[np.uint8], dtype: DType, shape: Shape) -> None:
        self.data = data
        self.dtype = dtype
        self.shape = shape

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device: the CPU."""
        return _CPU

    def __dlpack__(self, *, stream: object = None, **_wishes: object) -> object:
        """Return a capsule; wishes of later versions (``max_version``, ``copy``) need not be fulfilled."""
        if stream is not None:
            raise UsageError("a DLPack tensor on the CPU has no stream")
        kind = {"I": _INT, "U": _UINT, "F": _FLOAT}.get(self.dtype.value[0], _UINT)
        shape = (ctypes.c_int64 * max(1, len(self.shape)))(*self.shape)
        code = _CODES.get(self.dtype, kind)
        fields = (self.data.ctypes.data, *_CPU, len(self.shape), code, self.dtype.bits, 1, shape, None, 0)
        managed = _Managed(_Tensor(*fields), None, _DELETER)
        address = ctypes.addressof(managed)
        _alive[address] = managed, (self.data, shape)
        capsule: object = _new(address, _NAME, _DESTRUCTOR)
        return capsule
