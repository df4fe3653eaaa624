"""What is computed on the way: casts, block scales and low-rank updates, through the real engine."""

import math
from collections import Counter
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import (
    array_shape,
    decode,
    decode_ckpt,
    encode_ckpt,
    put_full,
    put_ranks,
    rank_key,
    shard,
    shards,
    stored,
)
from support.conversions import catalog_at, ranks_of
from support.faulty_store import Fault, FaultyStore
from support.planning import plan_for

from reshard.engine.execute import execute
from reshard.engine.verification import verify_manifest
from reshard.errors import OverBudget, ReshardError
from reshard.formats.containers import Container
from reshard.planning.change import Change
from reshard.planning.conversion import MANIFEST_KEY
from reshard.planning.limits import Limits
from reshard.planning.plan_json import decode_plan, encode_plan
from reshard.planning.sources.full_source import with_adapters
from reshard.planning.targets.full_target import FullTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import DType, Layout, Strategy

NUMPY = {
    DType.F64: np.dtype(np.float64),
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.F8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
}
FULL = FullTarget("m-{part}.safetensors", "m.safetensors", "m.index.json", "pt", 10**9)
CKPT = FullTarget("m.ckpt", "m.ckpt", "", "pt", 10**9, Container.CKPT)
ROOMY = Limits(memory_bytes=1 << 22, concurrency=2, read_bytes=1 << 16, client_bytes=1, min_part_bytes=100)


def tensor(dtype, values):
    """A tensor of a model from numbers."""
    values = np.ascontiguousarray(values.astype(NUMPY[dtype]) if dtype in NUMPY else values)
    return dtype, values.shape, values.view(np.uint8).reshape(array_shape(dtype, values.shape))


def numbers(value):
    """The numbers of a model's tensor."""
    dtype, shape, array = value
    return np.ascontiguousarray(array).reshape(-1).view(NUMPY[dtype]).reshape(shape)


def weights(seed, shape, scale=1.0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape) * scale


class Source:
    """A model in a store, full or cut, and perhaps adapters apart."""

    def __init__(self, model, strategy=None, *, is_ckpt=False, adapters=None):
        self.model, self.strategy = model, strategy
        self.place = Location(MemoryStore(), "from")
        self.others = ()
        held = {"m": model} if strategy is None else shards(model, strategy)
        if is_ckpt:
            for key, part in held.items():
                name = "m.ckpt" if strategy is None else rank_key(key, suffix=".ckpt")
                self.place.store.put(self.place.child(name).key, encode_ckpt(part, piece_elements=7))
        elif strategy is None:
            put_full(self.place, {"m.safetensors": model})
        else:
            put_ranks(self.place, held)
        self.catalog = catalog_at(self.place, strategy)
        if adapters:
            apart = Location(MemoryStore(), "lora")
            put_full(apart, {"adapter_model.safetensors": adapters})
            self.others = (apart,)
            self.catalog = with_adapters(self.catalog, catalog_at(apart))

    def run(self, wished, limits, change, store=None):
        target = Location(store or MemoryStore(limits=StoreLimits(min_part_bytes=limits.min_part_bytes)), "to")
        plan = affordable(self.catalog, wished, target.url, limits, change)
        manifest = execute(plan, self.place, target, others=self.others)
        return plan, manifest, target


def affordable(catalog, wished, url, limits, change):
    """A plan, with as much more memory as it takes."""
    for _ in range(24):
        try:
            return plan_for(catalog, wished, url, limits, change=change)
        except OverBudget as refused:
            limits = replace(limits, memory_bytes=max(2 * limits.memory_bytes, refused.needed_bytes))
    raise AssertionError("no memory would do")


def outputs(target):
    return {key: body for key, body in stored(target).items() if key != MANIFEST_KEY}


def held_in(body, key):
    return (decode_ckpt if key.endswith(".ckpt") else decode)(body)[0]


def check(target, expected, strategy=None):
    """Every output holds what numpy makes of the model."""
    for key, body in outputs(target).items():
        model = expected if strategy is None else shard(expected, strategy, int(key.split("/")[0][5:]))
        found = held_in(body, key)
        assert found.keys() == model.keys()
        for name, (dtype, shape, array) in model.items():
            assert found[name] == (dtype.value, tuple(shape), np.ascontiguousarray(array).tobytes()), name


def verified(source, plan, manifest, target):
    return verify_manifest(manifest, source.place, target, others=source.others)


# Models, layouts and limits at random.


@st.composite
def layouts(draw, shape, devices):
    """A layout over so many devices that divides a shape."""
    axes = [axis for axis, extent in enumerate(shape) if extent % devices == 0]
    axis = draw(st.sampled_from([None, *axes]))
    return Layout((devices,), tuple((0,) if axis == index else () for index in range(len(shape))))


@st.composite
def strategies(draw, model):
    devices = draw(st.sampled_from([1, 2, 3]))
    cut = {name: draw(layouts(shape, devices)) for name, (_, shape, _) in model.items()}
    if draw(st.booleans()):
        return Strategy(devices, (cut,))
    return Strategy(devices, (dict(list(cut.items())[::2]), dict(list(cut.items())[1::2])))


@st.composite
def any_limits(draw):
    return Limits(
        memory_bytes=draw(st.sampled_from([3000, 20_000, 1 << 22])),
        concurrency=draw(st.integers(1, 4)),
        read_bytes=draw(st.sampled_from([7, 64, 500, 1 << 16])),
        part_bytes=draw(st.sampled_from([1, 300, 4000, 1 << 20])),
        max_gap_bytes=draw(st.sampled_from([0, 16, 1 << 19])),
        client_bytes=1,
        row_bytes=draw(st.sampled_from([1, 8, 100, 1 << 18])),
        unit_bytes=draw(st.sampled_from([1, 100, 1 << 20])),
        min_part_bytes=draw(st.sampled_from([1, 64, 500])),
    )


SHAPES = {"a": (12, 6), "b": (6, 4, 3), "c": (6,), "d": (18, 12), "e": (1,)}
CASTS = [DType.F32, DType.BF16, DType.F16]


@st.composite
def float_models(draw, dtypes=(DType.F32, DType.BF16, DType.F16, DType.F64)):
    model = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        values = weights(number, shape, draw(st.sampled_from([1.0, 1e-7, 1e30])))
        with np.errstate(all="ignore"):
            model[name] = tensor(draw(st.sampled_from(dtypes)), values)
    return model | {"step": tensor(DType.I64, np.arange(12).reshape(6, 2))}


def cast(value, dtype):
    """What numpy and ml_dtypes make of it; F64 reaches BF16 through F32."""
    with np.errstate(all="ignore"):
        values = numbers(value)
        return tensor(dtype, values.astype(np.float32) if value[0] is DType.F64 and dtype is DType.BF16 else values)


def cast_model(model, dtype, kept=()):
    return {
        name: value if value[0] is DType.I64 or name in kept else cast(value, dtype) for name, value in model.items()
    }


few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@few
@given(st.data(), float_models(), st.sampled_from(CASTS), st.booleans(), st.booleans())
def test_casts_between_any_layouts(data, model, dtype, is_ckpt, to_ckpt):
    cut, wanted = data.draw(st.none() | strategies(model)), data.draw(st.none() | strategies(model))
    kept = frozenset(data.draw(st.sets(st.sampled_from(sorted(SHAPES)), max_size=2)))
    source = Source(model, cut, is_ckpt=is_ckpt)
    wished = (CKPT if to_ckpt else FULL) if wanted is None else ranks_of(wanted)
    if wanted is not None and to_ckpt:
        wished = replace(wished, name=rank_key("{rank}", suffix=".ckpt"), container=Container.CKPT)
    change = Change(dtype=dtype, kept=kept)
    made = [source.run(wished, data.draw(any_limits()), change) for _ in range(2)]
    check(made[0][2], cast_model(model, dtype, kept), wanted)
    assert outputs(made[0][2]) == outputs(made[1][2])
    assert verified(source, *made[0]).is_ok
    assert decode_plan(encode_plan(made[0][0]), "plan") == made[0][0]


def dequantised(weight, scale, block, dtype):
    values, spread = numbers(weight).astype(np.float32), numbers(scale).astype(np.float32)
    for axis, size in enumerate(block):
        spread = spread.repeat(size, axis)
    with np.errstate(all="ignore"):
        return tensor(dtype, values * spread[tuple(map(slice, values.shape))])


@few
@given(st.data(), st.sampled_from([(12, 18), (13, 7), (5, 5), (1, 9)]), st.sampled_from([(4, 4), (3, 7), (128, 128)]))
def test_block_scales_for_any_layout(data, shape, block):
    fp8 = data.draw(st.sampled_from([DType.F8_E4M3, DType.F8_E5M2]))
    counts = tuple(-(-extent // size) for extent, size in zip(shape, block, strict=True))
    model = {
        "w": tensor(fp8, weights(1, shape, 10)),
        "w_scale_inv": tensor(DType.F32, np.exp2(weights(2, counts, 3))),
        "norm": tensor(DType.BF16, weights(3, (6,))),
    }
    dtype = data.draw(st.sampled_from(CASTS))
    expected = {
        "w": dequantised(model["w"], model["w_scale_inv"], block, dtype),
        "norm": cast(model["norm"], dtype),
    }
    wanted = data.draw(st.none() | strategies(expected))
    change = Change(dtype=dtype, config={"quantization_config": {"weight_block_size": list(block)}})
    source = Source(model)
    wished = FULL if wanted is None else ranks_of(wanted)
    made = [source.run(wished, data.draw(any_limits()), change) for _ in range(2)]
    check(made[0][2], expected, wanted)
    assert outputs(made[0][2]) == outputs(made[1][2])
    assert verified(source, *made[0]).is_ok


def merged(weight, a, b, scaling, dtype, *, transposed):
    """W + (B @ A) * scaling on integers, which no order of adding rounds."""
    product = numbers(b).astype(np.float64) @ numbers(a).astype(np.float64) * scaling
    return tensor(dtype, numbers(weight).astype(np.float64) + (product.T if transposed else product))


@few
@given(st.data(), st.booleans(), st.booleans(), st.sampled_from([None, DType.F32, DType.BF16]))
def test_low_rank_updates_inside_and_apart(data, is_apart, transposed, dtype):
    draw = np.random.default_rng(0)
    small = lambda *shape: draw.integers(-3, 4, shape).astype(np.float32)  # noqa: E731
    rank, outer, inner = data.draw(st.integers(1, 4)), 12, 6
    shape = (inner, outer) if transposed else (outer, inner)
    kind = data.draw(st.sampled_from([DType.F32, DType.BF16, DType.F16]))
    model = {"q.weight": tensor(kind, small(*shape)), "norm.weight": tensor(kind, small(6))}
    leaf = data.draw(st.sampled_from(["lora_{}.weight", "lora_{}.default.weight", "mindpet_delta_lora_{}"]))
    head = "base_model.model." if is_apart else ""
    letters = "ab" if "mindpet" in leaf else "AB"
    a, b = tensor(DType.F32, small(rank, inner)), tensor(DType.F32, small(outer, rank))
    adapters = {f"{head}q.{leaf.format(letter)}": half for letter, half in zip(letters, (a, b), strict=True)}
    whole = model if is_apart else model | adapters
    cut = data.draw(st.none() | strategies(whole))
    source = Source(whole, cut, adapters=adapters if is_apart else None)
    expected = {
        "q.weight": merged(model["q.weight"], a, b, 0.5, dtype or kind, transposed=transposed),
        "norm.weight": cast(model["norm.weight"], dtype or kind),
    }
    wanted = data.draw(st.none() | strategies(expected))
    change = Change(dtype=dtype, scalings={"q.weight": 0.5}, transposed=transposed)
    wished = FULL if wanted is None else ranks_of(wanted)
    made = [source.run(wished, data.draw(any_limits()), change) for _ in range(2)]
    check(made[0][2], expected, wanted)
    assert outputs(made[0][2]) == outputs(made[1][2])
    assert verified(source, *made[0]).is_ok
    assert decode_plan(encode_plan(made[0][0]), "plan") == made[0][0]


# A conversion that computes everything, spoilt.

BLOCKED = {"quantization_config": {"weight_block_size": [4, 4]}}
LIMITS = replace(ROOMY, read_bytes=200, part_bytes=300, row_bytes=1)
COLUMNS = Strategy(2, ({"w": Layout((2,), ((), (0,))), "x": Layout((2,), ((0,), ()))},))
MODEL = {
    "w": tensor(DType.F8_E4M3, weights(1, (30, 14), 10)),
    "w_scale_inv": tensor(DType.F32, np.exp2(weights(2, (8, 4), 3))),
    "x": tensor(DType.BF16, weights(3, (40, 6))),
}
CHANGE = Change(dtype=DType.F32, config=BLOCKED)


def test_flipped_bytes_are_found():
    source = Source(MODEL)
    plan, manifest, target = source.run(ranks_of(COLUMNS), LIMITS, CHANGE)
    assert Counter(tile.computation.kernel for step in plan.steps(0) for tile in step.tiles).keys() == {
        "cast",
        "dequantise",
    }
    for name, body in outputs(target).items():
        for byte in range(0, len(body), 41):
            target.store.put(target.child(name).key, body[:byte] + bytes([body[byte] ^ 1]) + body[byte + 1 :])
            assert not verified(source, plan, manifest, target).is_ok
        target.store.put(target.child(name).key, body)
    assert verified(source, plan, manifest, target).is_ok


@pytest.mark.parametrize("verb", ["read_into", "put", "create_upload", "upload_part", "complete_upload"])
@pytest.mark.parametrize("call", [1, 2])
def test_faults_leave_nothing_behind(verb, call):
    source = Source(MODEL)
    inner = MemoryStore(limits=StoreLimits(min_part_bytes=LIMITS.min_part_bytes))
    if verb == "read_into":
        source.place = Location(FaultyStore(source.place.store, Fault(verb, call, OSError("no"))), "from")
        store = inner
    else:
        store = FaultyStore(inner, Fault(verb, call, OSError("no")))
    if verb == "put" and call == 2:
        pytest.skip("the manifest is the one object that is PUT")
    with pytest.raises((ReshardError, OSError)):
        source.run(ranks_of(COLUMNS), LIMITS, CHANGE, store)
    place = Location(inner, "to")
    assert not stored(place)
    assert not list(inner.open_uploads("to"))


# Memory and reads of what is computed.


def plan_of(shapes, strategy, memory_mib, dtype=DType.F32):
    from reshard.formats.safetensors import plan_header
    from reshard.planning.catalog import ObjectHeader, SourceObject
    from reshard.planning.sources.full_source import full_catalog
    from reshard.planning.sources.source_headers import SourceHeaders
    from reshard.tensor import TensorSpec

    encoded = plan_header([TensorSpec(name, DType.BF16, shape) for name, shape in shapes.items()], {})
    headers = [ObjectHeader.of(SourceObject("m", encoded.nbytes, ""), encoded.header)]
    catalog = full_catalog(SourceHeaders("memory://s", "test", headers))
    limits = Limits(memory_bytes=memory_mib << 20)
    return plan_for(catalog, ranks_of(strategy), "memory://t", limits, change=Change(dtype=dtype))


@pytest.mark.parametrize("memory_mib", [256, 1024])
def test_row_slices_that_lie_apart_are_computed_apart(memory_mib):
    """Ranks that share columns of one tensor are written together; rows of another lie far from each other."""
    shapes = {f"l{layer}.{name}": (8192, 8192) for layer in range(2) for name in ("q", "o")}
    rows, columns = Layout((8,), ((0,), ())), Layout((8,), ((), (0,)))
    plan = plan_of(shapes, Strategy(8, ({n: rows if n.endswith("q") else columns for n in shapes},)), memory_mib)
    assert [len(group.outputs) for group in plan.groups] == [8]
    source_bytes = 2 * sum(math.prod(shape) for shape in shapes.values())
    assert plan.cost.read_bytes <= 1.01 * source_bytes
    assert plan.cost.peak_bytes <= memory_mib << 20


def test_what_several_ranks_take_is_computed_once():
    columns = Layout((8,), ((), (0,)))
    plan = plan_of({"w": (8192, 8192)}, Strategy(8, ({"w": columns},)), 512)
    for step in plan.steps(0):
        [tile] = step.tiles
        assert len({lay.buffer for lay in tile.scatters}) == 8
        assert tile.box.shape[1] == 8192
