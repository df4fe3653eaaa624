"""Kernels against numpy, ml_dtypes, and what MindSpore Transformers itself computed."""

import gc
import math
import threading
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from support.checkpoints import content_of, header_in
from support.model_cases import read_answer, summary_of

from reshard.engine.kernels import lora_product as compute_product
from reshard.engine.kernels.compute import Cast, DenseBox, Dequantise, MergeLora, can_cast, cast
from reshard.errors import PlanError
from reshard.formats.containers import Container
from reshard.models.lora import adapter_boxes, find_adapters
from reshard.planning.limits import KERNEL_BYTES
from reshard.tensor import Box, DType, TensorSpec

CASES = Path(__file__).parent.parent / "conformance" / "mindformers"
NUMPY = {
    DType.F64: np.dtype(np.float64),
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.F8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.F8_E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.F8_E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.F8_E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
}
DTYPES = {dtype: name for name, dtype in NUMPY.items()}
FLOATS = [dtype for dtype in NUMPY if dtype != DType.F8_E8M0]


def raw(array):
    return memoryview(np.ascontiguousarray(array).view(np.uint8)).cast("B") if array.size else memoryview(b"")


def tile(array, box=None):
    return DenseBox(box or Box.whole(array.shape), DTYPES[array.dtype], raw(array[slices(box)] if box else array))


def slices(box):
    return tuple(map(slice, box.start, box.stop))


def empty(box, dtype):
    return DenseBox(box, dtype, memoryview(bytearray(dtype.nbytes(box.element_count))))


def numbers(result):
    return np.frombuffer(result.data, NUMPY[result.dtype]).reshape(result.box.shape)


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)


def every_pattern(dtype):
    """All bit patterns of a short type; of a long one, random ones, and each short number with its neighbours."""
    bits = np.dtype(f"u{dtype.itemsize}")
    if dtype.itemsize <= 2:
        return np.arange(1 << dtype.itemsize * 8).astype(bits).view(NUMPY[dtype])
    drawn = np.random.default_rng(0).integers(0, np.iinfo(bits).max, 1 << 18, bits, endpoint=True).view(NUMPY[dtype])
    with np.errstate(all="ignore"):
        wide = np.concatenate([every_pattern(d).astype(np.float32) for d in FLOATS if d.itemsize <= 2])
        middles = (wide.astype(np.float64) + np.nextafter(wide, np.float32(np.inf))) / 2
        halves = np.concatenate([wide.astype(np.float64), wide * 1.0625, wide * (1 + 2.0**-9), wide * (1 + 2.0**-12)])
        exact = np.concatenate([halves, middles]).astype(NUMPY[dtype])
        near = [exact, np.nextafter(exact, NUMPY[dtype].type(np.inf)), np.nextafter(exact, NUMPY[dtype].type(-np.inf))]
    return np.concatenate([drawn, *near])


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", NUMPY)
def test_casts_round_as_numpy_and_ml_dtypes_do(source, target):
    given_numbers = every_pattern(source)
    with np.errstate(all="ignore"):
        through = source == DType.F64 and target not in (DType.F16, DType.F32, DType.F64)
        through = through or source == DType.F8_E8M0  # which ml_dtypes casts to few types itself
        expected = (given_numbers.astype(np.float32) if through else given_numbers).astype(NUMPY[target])
    out = bytearray(expected.nbytes)
    cast(raw(given_numbers), source, memoryview(out), target)
    assert same(np.frombuffer(out, NUMPY[target]), expected)


def test_ties_go_to_even_and_what_is_too_large_has_a_name():
    rows = [(1 + 2.0**-8, 1.0), (1 + 3 * 2.0**-8, 1 + 2.0**-6), (3.4e38, np.inf), (-3.4e38, -np.inf), (1e-45, 0)]
    source, expected = np.array(rows, np.float32).T.copy()
    out = bytearray(2 * len(rows))
    cast(raw(source), DType.F32, memoryview(out), DType.BF16)
    assert np.frombuffer(out, NUMPY[DType.BF16]).astype(np.float32).tolist() == expected.tolist()
    out = bytearray(2)
    cast(raw(np.array([448, 1e6], np.float32)), DType.F32, memoryview(out), DType.F8_E4M3)
    assert str(np.frombuffer(out, NUMPY[DType.F8_E4M3]).astype(np.float32)) == "[448.  nan]"


def test_what_can_be_cast():
    assert [(a, b) for a in DType for b in DType if can_cast(a, b) and a != b] == [
        (a, b)
        for a in DType
        for b in DType
        if a != b and ((a in NUMPY and b in FLOATS) or {a, b} == {DType.I32, DType.I64})
    ]
    assert all(can_cast(dtype, dtype) for dtype in DType)


def test_a_cast_that_is_none_moves_bytes_of_any_type():
    out = bytearray(8)
    cast(memoryview(b"abcdefgh"), DType.I32, memoryview(out), DType.I32)
    assert out == b"abcdefgh"
    with pytest.raises(ValueError, match="no cast from I32 to F32: both must be floating types"):
        cast(memoryview(b"abcdefgh"), DType.I32, memoryview(out), DType.F32)
    with pytest.raises(ValueError, match="expected a buffer of 2 elements, found 4"):
        cast(memoryview(b"abcdefgh"), DType.F32, memoryview(out), DType.BF16)


def test_tiles_must_be_what_they_say():
    with pytest.raises(ValueError, match=r"expected 8 bytes, found 7"):
        DenseBox(Box((0,), (2,)), DType.F32, memoryview(bytes(7)))
    source, out = empty(Box((0,), (2,)), DType.F32), empty(Box((1,), (3,)), DType.F32)
    with pytest.raises(ValueError, match=r"source: expected Box\(start=\(1,\)"):
        Cast().run([source], out)
    with pytest.raises(ValueError, match="weights: expected one of F8_E4M3"):
        Dequantise((2,)).run([out, empty(Box((0,), (2,)), DType.F32)], out)


# Block scales


def dequantised(weights, scales, block, target):
    """The definition, on whole tensors."""
    for axis, size in enumerate(block):
        scales = np.repeat(scales, size, axis)[(slice(None),) * axis + (slice(weights.shape[axis]),)]
    return (weights.astype(np.float32) * scales.astype(np.float32)).astype(target)


@st.composite
def scaled_tensors(draw):
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)))
    block = tuple(draw(st.integers(1, 8)) for _ in shape)
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    box = Box(start, tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))
    kinds = [DType.F8_E4M3, DType.F8_E5M2, DType.F8_E4M3FNUZ], [DType.F32, DType.F64, DType.BF16, DType.F8_E8M0]
    return box, shape, block, *(draw(st.sampled_from(kind)) for kind in kinds), draw(st.sampled_from(FLOATS))


@given(scaled_tensors())
def test_any_box_of_scaled_weights_is_that_box_of_all(case):
    box, shape, block, weight_dtype, scale_dtype, target = case
    draw = np.random.default_rng(math.prod(shape))
    weights = draw.integers(0, 256, shape, np.uint8).view(NUMPY[weight_dtype])
    scales = np.exp2(draw.uniform(-9, 9, Box.whole(shape).in_blocks(block).shape)).astype(np.float32)
    scales = scales.astype(NUMPY[scale_dtype])
    out = empty(box, target)
    Dequantise(block).run([tile(weights, box), tile(scales, box.in_blocks(block))], out)
    with np.errstate(all="ignore"):
        assert same(numbers(out), dequantised(weights, scales, block, NUMPY[target])[slices(box)].copy())


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@given(scaled_tensors())
def test_any_box_of_packed_weights_is_that_box_of_all(case):
    box, shape, block, _, scale_dtype, target = case
    draw = np.random.default_rng(math.prod(shape))
    codes = draw.integers(0, 256, (*shape[:-1], -(-shape[-1] // 2)), np.uint8)
    weights = np.array(E2M1 + [-value for value in E2M1], np.float32)[np.stack([codes % 16, codes // 16], -1)]
    weights = weights.reshape(*shape[:-1], -1)
    if scale_dtype == DType.F8_E8M0:
        scales = draw.integers(0, 256, Box.whole(weights.shape).in_blocks(block).shape, np.uint8)
        scales = scales.view(NUMPY[scale_dtype])
    else:
        scales = np.exp2(draw.uniform(-9, 9, Box.whole(weights.shape).in_blocks(block).shape))
        scales = scales.astype(np.float32).astype(NUMPY[scale_dtype])
    held = box.in_blocks((*(1,) * (len(shape) - 1), 2))
    packed = DenseBox(held, DType.I8, raw(codes[slices(held)]))
    out = empty(box, target)
    Dequantise(block, packed=2).run([packed, tile(scales, box.in_blocks(block))], out)
    with np.errstate(all="ignore"):
        assert same(numbers(out), dequantised(weights, scales, block, NUMPY[target])[slices(box)].copy())


def test_codes_that_are_no_number_stay_none():
    codes = np.array([[0x7F, 0xFF, 0x7E, 0x38, 0x80]], np.uint8).view(NUMPY[DType.F8_E4M3])
    scales = np.array([[127, 127, 254, 255, 0]], np.uint8).view(NUMPY[DType.F8_E8M0])
    out = empty(Box.whole((1, 5)), DType.F32)
    Dequantise((1, 1)).run([tile(codes), tile(scales)], out)
    assert str(numbers(out)) == "[[nan nan inf nan -0.]]"
    smallest = empty(Box.whole((1, 1)), DType.BF16)
    Dequantise((1, 1)).run([tile(codes[:, 3:4]), tile(scales[:, 4:])], smallest)
    assert numbers(smallest).astype(np.float64) == 2.0**-127  # by the format: this scale is no zero


def test_whole_numbers_are_cast_if_they_fit():
    wide = np.array([-(2**31), 0, 2**31 - 1], np.int64)
    out, back = bytearray(12), bytearray(24)
    cast(raw(wide), DType.I64, memoryview(out), DType.I32)
    cast(memoryview(out), DType.I32, memoryview(back), DType.I64)
    assert back == bytearray(raw(wide))
    with pytest.raises(PlanError, match="values from -2147483648 to 2147483648 do not fit int32"):
        cast(raw(wide + np.array([0, 0, 1])), DType.I64, memoryview(out), DType.I32)


@pytest.mark.parametrize(("prefix", "dtype"), [("", DType.BF16), ("f32.", DType.F32)])
@pytest.mark.parametrize("name", ["w128x256", "w129x128", "w256x257", "w300x200", "w64x64"])
def test_block_scales_as_the_original(prefix, dtype, name):
    source = read(CASES / "fp8_dequant_blocks" / "hf" / "model.safetensors")
    weights, scales = source[name], source[f"{name}_scale_inv"]
    made = np.empty(weights.shape, NUMPY[dtype])
    for box in tiles(weights.shape, 77, 131):
        out = empty(box, dtype)
        Dequantise((128, 128)).run([tile(weights, box), tile(scales, box.in_blocks((128, 128)))], out)
        made[slices(box)] = numbers(out)
    answer = read_answer("fp8_dequant_blocks", "mf")[prefix + name]
    assert summary_of({name: made})[name] == answer


# Low-rank updates


def read(path):
    """Every tensor of an object, by name."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        found = {name: (DType(item["dtype"]), item["shape"], item["data"]) for name, item in deserialize(data)}
    else:
        tensors = header_in(data, Container.CKPT).tensors
        found = {t.spec.name: (t.spec.dtype, t.spec.shape, content_of(t, data)) for t in tensors}
    return {
        name: np.frombuffer(content, NUMPY[dtype]).reshape(shape) for name, (dtype, shape, content) in found.items()
    }


def tiles(shape, height, width):
    for row in range(0, shape[0], height):
        for column in range(0, shape[1], width):
            yield Box((row, column), (min(row + height, shape[0]), min(column + width, shape[1])))


def merged(kernel, weight, a, b, height=1 << 20, width=1 << 20):
    made = np.empty_like(weight)
    for box in tiles(weight.shape, height, width):
        a_box, b_box = adapter_boxes(box, kernel.rank, transposed=kernel.transposed)
        out = empty(box, DTYPES[weight.dtype])
        kernel.run([tile(weight, box), tile(a, a_box), tile(b, b_box)], out)
        made[slices(box)] = numbers(out)
    return made


def defined(weight, a, b, scaling, working=np.float32):
    """The definition, one element of the inner axis after the other."""
    total = np.zeros(weight.shape, np.float32)
    with np.errstate(all="ignore"):
        for k in range(len(a)):
            total = (b[:, k : k + 1].astype(np.float64) * a[k].astype(np.float64) + total).astype(np.float32)
        delta = total.astype(working) * working(scaling)
        return (weight.astype(np.float32) + delta.astype(np.float32)).astype(weight.dtype)


# Where the files of a case are, and the scaling of its call.
ORIGINALS = {
    "lora_merge160_default_scaling": ("mf/lora_in.ckpt", "mf/out/merged_lora.ckpt", 1),
    "lora_merge160_dist_lora_dp2mp2": ("mf/out/rank_0/checkpoint_0.ckpt", "mf/out/merged_lora.ckpt", 4),
    "lora_merge160_loraA_float32_float32": ("mf/lora_in.ckpt", "mf/out/merged_lora.ckpt", 4),
    "lora_merge160_mindpet_bfloat16_float32": ("mf/lora_in.ckpt", "mf/out/merged_lora.ckpt", 4),
    "lora_merge160_mindpet_float32_float32": ("mf/lora_in.ckpt", "mf/out/merged_lora.ckpt", 4),
    "lora_merge160_save_safetensors": ("mf/lora_in.ckpt", "mf/out/merged_lora.ckpt.safetensors", 0.5),
    "lora_merge210_safetensors_mindpet": ("mf/src.safetensors", "mf/merged.safetensors", 4),
    "lora_merge210_safetensors_pynative": ("mf/src.safetensors", "mf/merged.safetensors", 4),
}
HERE = sorted(name for name, (_, after, _) in ORIGINALS.items() if (CASES / name / after).is_file())


def test_originals_are_here():
    assert "lora_merge160_loraA_float32_float32" in HERE


@pytest.mark.parametrize("size", [(1 << 20, 1 << 20), (5, 1 << 20), (1 << 20, 7), (13, 11), (1, 1)])
@pytest.mark.parametrize("name", HERE)
def test_merges_as_the_original(name, size):
    before, after, scaling = ORIGINALS[name]
    source, expected = read(CASES / name / before), read(CASES / name / after)
    found = find_adapters(TensorSpec(name, DTYPES[data.dtype], data.shape) for name, data in source.items())
    assert found.pairs
    assert source.keys() - set(found.removed) == expected.keys()
    for pair in found.pairs:
        made = merged(MergeLora(scaling, pair.rank), *(source[n] for n in (pair.weight, pair.a, pair.b)), *size)
        assert same(made, expected[pair.weight])
    for kept in expected.keys() - {pair.weight for pair in found.pairs}:
        assert same(source[kept], expected[kept])


@st.composite
def merges(draw):
    rows, columns, rank = (
        draw(st.integers(1, 70)),
        draw(st.integers(1, 600)),
        draw(st.sampled_from([1, 2, 7, 8, 16, 33, 64])),
    )
    dtypes = [draw(st.sampled_from([DType.F32, DType.BF16, DType.F16])) for _ in range(3)]
    scale = draw(st.sampled_from([0.01, 1.0, 2.0**-70, 2.0**60, 0.0]))
    special = draw(st.sampled_from([None, np.nan, np.inf, -0.0, 3e38, 1e-45]))
    size = draw(st.integers(1, 80)), draw(st.integers(1, 700))
    return (rows, columns, rank), dtypes, scale, special, size, draw(st.booleans()), draw(st.booleans())


@given(merges())
def test_every_tile_has_the_defined_bits(case):
    (rows, columns, rank), dtypes, scale, special, size, half, transposed = case
    draw = np.random.default_rng(rows * columns + rank)
    with np.errstate(all="ignore"):
        shapes = (rows, columns), (rank, columns), (rows, rank)
        weight, a, b = (draw.standard_normal(shape).astype(np.float32) for shape in shapes)
        if special is not None:
            for array in (weight, a, b):
                array.flat[draw.integers(0, array.size, 2)] = special
        weight, a, b = (x.astype(NUMPY[d]) for x, d in zip((weight, a * np.float32(scale), b), dtypes, strict=True))
    working = DType.F16 if half else DType.F32
    expected = defined(weight, a, b, 0.3, NUMPY[working].type)
    if transposed:
        made = merged(MergeLora(0.3, rank, working, transposed=True), weight.T.copy(), a, b, *size).T.copy()
    else:
        made = merged(MergeLora(0.3, rank, working), weight, a, b, *size)
    nan = np.isnan(expected)
    assert np.array_equal(nan, np.isnan(made))
    assert same(np.where(nan, expected.dtype.type(0), made), np.where(nan, expected.dtype.type(0), expected))
    assert len(np.unique(made[nan].view(f"u{made.itemsize}"))) < 2  # one NaN, whatever the processor prefers


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
def test_the_result_may_lie_where_the_weight_does(dtype):
    draw = np.random.default_rng(3)
    weight, a, b = (draw.standard_normal(shape).astype(np.float32) for shape in ((99, 1100), (8, 1100), (99, 8)))
    weight = weight.astype(NUMPY[dtype])
    box = Box.whole(weight.shape)
    out = DenseBox(box, dtype, memoryview(bytearray(raw(weight))))
    MergeLora(0.3, 8).run([out, tile(a), tile(b)], out)
    assert same(numbers(out), defined(weight, a, b, 0.3))


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_what_the_library_computes_does_not_show(dtype, monkeypatch):
    """Whatever a library of linear algebra may return for a product, within the errors that any has."""
    draw = np.random.default_rng(0)
    weight = (draw.standard_normal((64, 700)) * 0.02).astype(NUMPY[dtype])
    a, b = (draw.standard_normal(shape).astype(np.float32) * np.float32(0.05) for shape in ((64, 700), (64, 64)))
    expected = defined(weight, a, b, 2)
    asked = []

    def another_order(left, right):
        asked.append(left.shape)
        turned = np.zeros((len(left), right.shape[1]), np.float32)
        for k in reversed(range(len(right))):
            turned = turned + left[:, k : k + 1] * right[k]
        return turned

    monkeypatch.setattr(compute_product, "_library_product", another_order)
    assert same(merged(MergeLora(2, 64), weight, a, b), expected)
    assert asked


def test_the_library_is_asked_where_it_helps_only(monkeypatch):
    monkeypatch.setattr(compute_product, "_library_product", lambda left, right: pytest.fail("asked"))
    weight, a, b = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32), np.ones((3, 2), np.float32)
    assert same(merged(MergeLora(0.5, 2), weight, a, b), np.full((3, 4), 2, np.float32))


def test_bounds_hold_where_rounding_is_worst():
    """Sums that cancel: what is left is mostly rounding, and differs with the order."""
    draw = np.random.default_rng(1)
    a, b = (draw.standard_normal(shape).astype(np.float32) for shape in ((32, 600), (40, 32)))
    a, b = np.concatenate([a, -a]), np.concatenate([b, b], axis=1)
    weight = (draw.standard_normal((40, 600)) * 1e-7).astype(NUMPY[DType.BF16])
    assert same(merged(MergeLora(1, 64), weight, a, b), defined(weight, a, b, 1))


@pytest.mark.parametrize(
    ("rank", "height", "width"),
    [(4, 2048, 512), (256, 2048, 512), (2048, 512, 512), (256, 1, 1 << 16), (256, 1 << 16, 1), (4, 1, 1 << 20)],
)
def test_kernels_take_little_memory_of_their_own(rank, height, width):
    weight = np.zeros((height, width), NUMPY[DType.BF16])
    a, b = np.ones((rank, width), np.float32), np.ones((height, rank), NUMPY[DType.BF16])
    box = Box.whole(weight.shape)
    codes = tile(np.zeros(weight.shape, np.uint8).view(NUMPY[DType.F8_E4M3]))
    scales = tile(np.ones(box.in_blocks((128, 128)).shape, np.float32))
    work = [
        (MergeLora(1, rank), [tile(weight), tile(a), tile(b)], empty(box, DType.BF16)),
        (Cast(), [tile(weight)], empty(box, DType.F8_E4M3)),
        (Dequantise((128, 128)), [codes, scales], empty(box, DType.F64)),
    ]
    for kernel, inputs, out in work:
        assert peak_bytes(kernel, inputs, out) < KERNEL_BYTES


def peak_bytes(kernel, inputs, out):
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kernel.run(inputs, out)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_threads_do_not_disturb_each_other():
    draw = np.random.default_rng(2)
    weight = draw.standard_normal((300, 700)).astype(NUMPY[DType.BF16])
    a, b = draw.standard_normal((16, 700)).astype(np.float32), draw.standard_normal((300, 16)).astype(np.float32)
    expected, made = defined(weight, a, b, 0.25), []
    threads = [
        threading.Thread(target=lambda: made.append(merged(MergeLora(0.25, 16), weight, a, b))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(one, expected) for one in made)
    assert len(made) == 4
