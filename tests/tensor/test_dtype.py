"""Element types against the two libraries that define them."""

import math

import ml_dtypes
import numpy as np
import pytest

from reshard.tensor import DType, TensorSpec

NUMPY = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
SUB_BYTE = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def test_every_dtype_is_known_to_this_test():
    assert {dtype.value for dtype in DType} == NUMPY.keys() | SUB_BYTE.keys()


@pytest.mark.parametrize("name", NUMPY)
def test_items_are_as_long_as_numpys(name):
    dtype, itemsize = DType(name), np.dtype(NUMPY[name]).itemsize
    assert (dtype.itemsize, dtype.bits, dtype.is_sub_byte) == (itemsize, itemsize * 8, False)
    assert dtype.nbytes(7) == 7 * itemsize


@pytest.mark.parametrize("name", SUB_BYTE)
def test_sub_byte_elements_have_no_item(name):
    dtype = DType(name)
    assert (dtype.bits, dtype.is_sub_byte) == (SUB_BYTE[name], True)
    with pytest.raises(ValueError, match="no whole number of bytes"):
        _ = dtype.itemsize


@pytest.mark.parametrize(("name", "count", "nbytes"), [("F4", 2, 1), ("F4", 0, 0), ("F6_E2M3", 4, 3), ("F32", 0, 0)])
def test_elements_that_fill_bytes(name, count, nbytes):
    assert DType(name).nbytes(count) == nbytes


@pytest.mark.parametrize(("name", "count"), [("F4", 1), ("F4", 7), ("F6_E3M2", 1), ("F6_E3M2", 2), ("F6_E2M3", 6)])
def test_elements_that_leave_a_byte_part_full(name, count):
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        DType(name).nbytes(count)


def test_order_is_position_and_puts_wide_after_narrow():
    in_order = sorted(DType, key=lambda dtype: dtype.order)
    assert in_order == list(DType)
    widths = [dtype.bits for dtype in in_order if dtype is not DType.BOOL]  # the library puts BOOL first of all
    assert widths == sorted(widths)


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [("F32", (), 4), ("F32", (0, 5), 0), ("BF16", (2, 3), 12), ("F4", (2, 3), 3), ("F6_E2M3", (4, 1), 3)],
)
def test_bytes_of_a_tensor(dtype, shape, nbytes):
    assert TensorSpec("w", DType(dtype), shape).nbytes == nbytes
    assert math.prod(shape) * DType(dtype).bits == nbytes * 8
