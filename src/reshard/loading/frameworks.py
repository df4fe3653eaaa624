"""Tensors of the frameworks that people load into, made of bytes that each tensor then owns.

Each framework is imported when it is first asked for; none is a dependency.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..engine.kernels.numpy_dtypes import NUMPY
from ..errors import UsageError, option
from ..tensor import DType, Shape, TensorSpec
from .dlpack import DlpackTensor

Bytes = npt.NDArray[np.uint8]
"""Bytes of one tensor, in one dimension; whoever holds the array owns them."""


class Framework(ABC):
    """Makes tensors of bytes, and copies them into tensors that exist."""

    @abstractmethod
    def make(self, spec: TensorSpec, data: Bytes) -> Any:
        """Make a tensor that owns ``data``; elements smaller than a byte stay packed, as a row of bytes."""

    def shape_of(self, tensor: Any) -> Shape:
        """Return the shape of a tensor that exists."""
        return tuple(int(size) for size in tensor.shape)

    def has_dtype(self, tensor: Any, dtype: DType) -> bool:
        """Whether a tensor that exists has a dtype."""
        return bool(tensor.dtype == self.make(TensorSpec("", dtype, (0,)), np.empty(0, np.uint8)).dtype)

    @abstractmethod
    def fill(self, tensor: Any, made: Any) -> None:
        """Copy the values of a tensor that was made into one that exists."""


class NumpyFramework(Framework):
    """``numpy.ndarray``; bfloat16 and the dtypes of 8 bits are those of ml_dtypes."""

    def make(self, spec: TensorSpec, data: Bytes) -> Any:
        """View the bytes as an array."""
        return data if spec.dtype.is_sub_byte else data.view(NUMPY[spec.dtype]).reshape(spec.shape)

    def fill(self, tensor: Any, made: Any) -> None:
        """Copy into an array."""
        np.copyto(tensor, made, casting="no")


class DlpackFramework(NumpyFramework):
    """Anything that ``from_dlpack`` of a framework takes."""

    def make(self, spec: TensorSpec, data: Bytes) -> Any:
        """Offer the bytes as a DLPack tensor on the CPU."""
        shape = (data.nbytes,) if spec.dtype.is_sub_byte else spec.shape
        return DlpackTensor(data, DType.U8 if spec.dtype.is_sub_byte else spec.dtype, shape)

    def has_dtype(self, tensor: Any, dtype: DType) -> bool:
        """Whether an array that exists has a dtype."""
        return bool(tensor.dtype == np.dtype(np.uint8) if dtype.is_sub_byte else tensor.dtype == NUMPY[dtype])

    def fill(self, tensor: Any, made: Any) -> None:
        """Copy into an array of numpy."""
        np.copyto(tensor, made.data.view(NUMPY[made.dtype]).reshape(made.shape), casting="no")


class TorchFramework(Framework):
    """``torch.Tensor`` on the CPU."""

    names: ClassVar[dict[DType, str]] = {
        DType.BOOL: "bool", DType.U8: "uint8", DType.I8: "int8", DType.I16: "int16", DType.U16: "uint16",
        DType.I32: "int32", DType.U32: "uint32", DType.I64: "int64", DType.U64: "uint64", DType.F16: "float16",
        DType.BF16: "bfloat16", DType.F32: "float32", DType.F64: "float64", DType.C64: "complex64",
        DType.F8_E4M3: "float8_e4m3fn", DType.F8_E5M2: "float8_e5m2", DType.F8_E8M0: "float8_e8m0fnu",
        DType.F8_E4M3FNUZ: "float8_e4m3fnuz", DType.F8_E5M2FNUZ: "float8_e5m2fnuz",
    }  # fmt: skip

    def __init__(self) -> None:
        self._torch = _imported("torch")

    def make(self, spec: TensorSpec, data: Bytes) -> Any:
        """View the bytes as a tensor."""
        if spec.dtype.is_sub_byte:
            return self._torch.from_numpy(data)
        dtype = getattr(self._torch, self.names[spec.dtype], None)
        if dtype is None:
            raise UsageError(f"{spec.name}: this release of torch has no {self.names[spec.dtype]}")
        if not data.nbytes:  # torch views no empty array as another dtype
            return self._torch.empty(spec.shape, dtype=dtype)
        return self._torch.from_numpy(data).view(dtype).reshape(spec.shape)

    def fill(self, tensor: Any, made: Any) -> None:
        """Copy into a tensor, on whatever device it is."""
        with self._torch.no_grad():
            tensor.copy_(made)


class MindsporeFramework(Framework):
    """``mindspore.Parameter``, named as ``load_param_into_net`` expects."""

    def __init__(self) -> None:
        self._mindspore = _imported("mindspore")

    def make(self, spec: TensorSpec, data: Bytes) -> Any:
        """Make a parameter; bfloat16, which numpy has not, goes through MindSpore's own cast of equal values."""
        mindspore = self._mindspore
        if spec.dtype.is_sub_byte:
            made = mindspore.Tensor(data)
        elif spec.dtype is DType.BF16:
            exact = data.view(NUMPY[DType.BF16]).reshape(spec.shape).astype(np.float32)
            made = mindspore.Tensor(exact, mindspore.bfloat16)
        elif spec.dtype in NUMPY and NUMPY[spec.dtype].isbuiltin == 1:
            made = mindspore.Tensor(data.view(NUMPY[spec.dtype]).reshape(spec.shape))
        else:
            hint = f"Load it as bf16 with {option('dtype', 'bf16')}."
            raise UsageError(f"{spec.name}: MindSpore has no parameters of {spec.dtype}", hint=hint)
        return mindspore.Parameter(made, name=spec.name, requires_grad=False)

    def fill(self, tensor: Any, made: Any) -> None:
        """Set the data of a parameter."""
        tensor.set_data(made)


FRAMEWORKS: dict[str, type[Framework]] = {
    "numpy": NumpyFramework,
    "torch": TorchFramework,
    "mindspore": MindsporeFramework,
    "dlpack": DlpackFramework,
}
"""Every framework by its name."""


def open_framework(name: str) -> Framework:
    """Import a framework; UsageError if it is unknown or not installed."""
    if name not in FRAMEWORKS:
        raise UsageError(f"{option('framework', name)}: expected one of {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]()


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        hint = f"Install {name}, or load with {option('framework', 'numpy')}."
        raise UsageError(f"{option('framework', name)}: {name} cannot be imported: {error}", hint=hint) from error
