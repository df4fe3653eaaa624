"""Values that a dtype cannot hold, against numpy."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import arrays_at, new_place, put_model

import reshard
from reshard.engine.kernels.overflow import Overflows, can_overflow, in_whole, infinite, saturate
from reshard.errors import PlanError
from reshard.tensor import Box, DType

NUMPY = {DType.F16: np.float16, DType.BF16: ml_dtypes.bfloat16, DType.F32: np.float32, DType.F64: np.float64}


def bytes_of(array):
    return memoryview(bytearray(array.tobytes()))


@given(st.sampled_from(list(NUMPY)), st.binary(min_size=0, max_size=64).map(lambda data: data + bytes(-len(data) % 8)))
def test_infinities_are_found_among_all_bits(dtype, data):
    array = np.frombuffer(data, NUMPY[dtype])
    assert infinite(memoryview(data), dtype).tolist() == np.flatnonzero(np.isinf(array.astype(np.float64))).tolist()


@pytest.mark.parametrize("dtype", NUMPY)
def test_the_largest_value_keeps_its_sign(dtype):
    array = np.array([np.inf, 1, -np.inf, np.nan]).astype(NUMPY[dtype])
    data = bytes_of(array)
    saturate(data, dtype, infinite(data, dtype))
    largest = float(ml_dtypes.finfo(NUMPY[dtype]).max)
    assert np.frombuffer(data, NUMPY[dtype]).astype(np.float64).tolist()[:3] == [largest, 1, -largest]


@pytest.mark.parametrize("source", NUMPY)
@pytest.mark.parametrize("target", NUMPY)
def test_which_casts_can_overflow(source, target):
    largest = [float(ml_dtypes.finfo(NUMPY[dtype]).max) for dtype in (source, target)]
    assert can_overflow(source, target) is (largest[0] > largest[1])


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3), st.data())
def test_positions_in_a_box_are_those_in_its_tensor(axes, data):
    box = Box(tuple(a for _, a, _ in axes), tuple(a + n for n, a, _ in axes))
    shape = tuple(a + n + rest for n, a, rest in axes)
    position = data.draw(st.integers(0, box.element_count - 1))
    whole = np.arange(np.prod(shape)).reshape(shape)
    expected = whole[tuple(map(slice, box.start, box.stop))].flat[position]
    assert in_whole(np.array([position]), box, shape).tolist() == [expected]


def test_values_that_are_computed_twice_count_once():
    found = Overflows()
    found.add("b", DType.F16, [1, 2])
    found.add("b", DType.F16, [2, 3])
    found.add("a", DType.F16, [7])
    assert found.counts == {"a": 1, "b": 3}
    assert found.note("inf") == "4 values are larger than F16 holds (65504), and were made infinite: b (3), a (1)"
    assert Overflows().note("inf") == ""


def test_very_many_values_are_not_all_held(monkeypatch):
    monkeypatch.setattr("reshard.engine.kernels.overflow._MOST_POSITIONS", 3)
    found = Overflows()
    found.add("a", DType.F16, range(10))
    assert found.note("inf").startswith("at least 4 values")


@pytest.fixture
def base():
    return new_place()


@pytest.mark.parametrize(("how", "value"), [("inf", np.inf), ("saturate", 65504)])
def test_dequantised_values(base, how, value):
    weights = np.full((4, 4), 448, ml_dtypes.float8_e4m3fn)
    weights[0] = 1
    put_model(f"{base}/m", {"w": weights, "w_scale_inv": np.full((1, 1), 200, np.float32)})
    manifest = reshard.convert(f"{base}/m", f"{base}/o", dtype="fp16", on_overflow=how)
    assert manifest.overflows == {"w": 12}
    assert arrays_at(f"{base}/o")["w"].tolist() == [[200] * 4, *[[value] * 4] * 3]
    with pytest.raises(PlanError, match="w: 12 values of one step are larger"):
        reshard.convert(f"{base}/m", f"{base}/r", dtype="fp16", on_overflow="refuse")


@pytest.mark.parametrize(("how", "value"), [("inf", np.inf), ("saturate", 65504)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_merged_values(base, how, value, dtype):
    """The merge overwrites its weight: what was infinite before is no overflow, what the merge made so is."""
    weight = np.full((4, 4), 60_000, dtype)
    weight[0, 0] = np.inf
    halves = {"lora_A": np.full((1, 4), 100, dtype), "lora_B": np.array([[100], [0], [0], [0]], dtype)}
    pair = {f"base_model.model.w.{half}.weight": array for half, array in halves.items()}
    put_model(f"{base}/m", {"base_model.model.w.weight": weight} | pair)
    asked = {"merge_lora": True, "lora_scaling": 1.0, "on_overflow": how}
    asked |= {} if dtype is np.float16 else {"dtype": "fp16"}
    manifest = reshard.convert(f"{base}/m", f"{base}/o", **asked)
    [(name, made)] = arrays_at(f"{base}/o").items()
    assert [*manifest.overflows.values()] == [3]
    assert made[0].tolist() == [np.inf, value, value, value], name
    assert made[1:].tolist() == [[60_000] * 4] * 3
