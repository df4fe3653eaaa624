"""Fill values against numpy's and ml_dtypes' own rounding."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.zarr import FillValue
from reshard.tensor import DType

FLOATS = {
    DType.F64: np.float64,
    DType.F32: np.float32,
    DType.F16: np.float16,
    DType.BF16: ml_dtypes.bfloat16,
    DType.F8_E5M2: ml_dtypes.float8_e5m2,
    DType.F8_E4M3: ml_dtypes.float8_e4m3fn,
    DType.F8_E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    DType.F8_E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    DType.F8_E8M0: ml_dtypes.float8_e8m0fnu,
}
SPELLED = {math.inf: "Infinity", -math.inf: "-Infinity"}


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_value_of_a_type(dtype):
    size = dtype.itemsize
    body = bytes(range(256)) if size == 1 else np.random.default_rng(0).bytes(2000 * size)
    with np.errstate(invalid="ignore"):
        values = np.frombuffer(body, FLOATS[dtype]).astype(np.float64).tolist()
    assert FillValue(dtype, "NaN").element() == np.float64("NaN").astype(FLOATS[dtype]).tobytes()
    for at, value in enumerate(values):
        if not math.isnan(value):
            assert FillValue(dtype, SPELLED.get(value, value)).element() == body[at * size : (at + 1) * size]


@given(st.sampled_from(list(FLOATS)), st.floats(width=32, allow_nan=False) | st.sampled_from([-0.0, 65520.0]))
def test_values_between_are_rounded(dtype, value):
    with np.errstate(all="ignore"):
        expected = np.float64(value).astype(FLOATS[dtype])
    try:
        found = FillValue(dtype, SPELLED.get(value, value)).element()
    except FormatError:
        assert not np.isfinite(expected) or (dtype is DType.F8_E8M0 and value <= 0)
        return
    assert found == expected.tobytes()


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (DType.F32, "0x7fc00001", "0100c07f"),
        (DType.BF16, "0xFFC0", "c0ff"),
        (DType.F8_E4M3, "0x7f", "7f"),
        (DType.BF16, -0.0, "0080"),
        (DType.F32, 1, "0000803f"),
        (DType.C64, [-0.0, "NaN"], "000000800000c07f"),
        (DType.BOOL, True, "01"),
        (DType.I16, -2, "feff"),
        (DType.U64, 2**64 - 1, "ff" * 8),
    ],
)
def test_as_the_specification_writes_them(dtype, value, expected):
    assert FillValue(dtype, value).element().hex() == expected


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (DType.F32, None),
        (DType.F32, True),
        (DType.F32, "nan"),
        (DType.F32, "0x7fc0"),
        (DType.F32, "0x7fc0000g"),
        (DType.F32, 10**400),
        (DType.F32, 1e39),
        (DType.F8_E4M3, "Infinity"),
        (DType.F8_E4M3, 480),
        (DType.F8_E8M0, 0.0),
        (DType.F8_E8M0, -1.0),
        (DType.C64, 0.0),
        (DType.C64, [0.0]),
        (DType.C64, [0.0, "i"]),
        (DType.BOOL, 0),
        (DType.U8, 256),
        (DType.U8, -1),
        (DType.U8, 1.0),
        (DType.I8, False),
        (DType.I8, [0] * 10_000),
    ],
)
def test_refused(dtype, value):
    with pytest.raises(FormatError, match=f"fill_value: expected a value of {dtype.value}, found") as caught:
        FillValue(dtype, value).element()
    assert len(str(caught.value)) < 300
