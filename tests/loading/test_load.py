"""Loading: each rank gets what a conversion would write for it, and nothing is read that it does not need."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from loading.carried_out import conversions
from support.checkpoints import decode, encode, random_model
from support.recording_store import recording
from support.small_llama import small_llama
from support.stores import arrays_at, new_place, put, put_model

import reshard
from reshard.errors import SourceChanged, StrategyError, UsageError
from reshard.loading import reading
from reshard.planning.plan_json import encode_plan
from reshard.planning.targets.rank_target import RankTarget
from reshard.storage import Location, open_source
from reshard.tensor import DType

LAYOUT = b"""
axes: {dp: 2, mp: 2}
rules:
  - {match: wide, split: [null, mp]}
  - {match: tall, split: [mp]}
  - {match: "*", split: []}
"""
MODEL = {
    "wide": np.arange(240, dtype=np.float32).reshape(12, 20),
    "tall": np.arange(160, dtype=np.int64).reshape(16, 10),
    "norm": np.arange(12, dtype=np.float16),
    "none": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def base():
    base = new_place()
    put_model(f"{base}/hf", MODEL)
    put(f"{base}/l.yaml", LAYOUT)
    return base


@pytest.fixture
def loader(base):
    return reshard.load(f"{base}/hf", rank=3, dst_layout=f"{base}/l.yaml")


@pytest.fixture
def stores(monkeypatch):
    """Every store that tensors are read from."""
    opened = []

    def open_recorded(url):
        place = open_source(url)
        opened.append(recording(place.store))
        return Location(opened[-1], place.key)

    monkeypatch.setattr(reading, "open_source", open_recorded)
    return opened


def read_bytes(stores):
    return sum(store.figures.read_bytes for store in stores)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype
        and found[name].shape == expected[name].shape
        and found[name].tobytes() == expected[name].tobytes()
        for name in expected
    )


@settings(max_examples=12)
@given(conversions())
def test_what_is_loaded_is_what_a_conversion_writes(carried_out):
    plan, objects = carried_out
    wished = plan.conversion.target
    written = {key: decode(body)[0] for key, body in objects.items() if key.endswith(".safetensors")}
    if isinstance(wished, RankTarget):
        for rank in wished.ranks:
            assert loaded(plan, rank=rank) == written[wished.name.replace("{rank}", str(rank))]
    else:
        assert loaded(plan) == {name: value for held in written.values() for name, value in held.items()}


def loaded(plan, **options):
    with reshard.load(plan=plan, concurrency=2, **options) as shard:
        found = dict(iter(shard))
        specs = {name: shard.spec(name) for name in shard.keys()}  # noqa: SIM118 - it is no dictionary
    return {name: (spec.dtype.value, spec.shape, found[name].tobytes()) for name, spec in specs.items()}


@pytest.mark.parametrize(("split", "read"), [("wide", 480), ("tall", 640)])
def test_bytes_that_nobody_needs_are_not_read(base, stores, split, read):
    with reshard.load(f"{base}/hf", rank=1, dst_layout=f"{base}/l.yaml", keep=split) as shard:
        assert stores == []
        assert shard.nbytes == read
        shard.tensors()
    assert read_bytes(stores) == read


def test_gaps_are_read_where_requests_cost_more(base, stores):
    options = {"rank": 1, "dst_layout": f"{base}/l.yaml", "keep": "wide"}
    reshard.load(f"{base}/hf", max_gap="64KiB", **options).tensors()
    assert sum(store.figures.request_count for store in stores) == 1
    assert read_bytes(stores) == 960 - 40  # one gap fewer than there are rows


def test_slices_read_what_they_are_indexed_with(base, stores, loader):
    wide = MODEL["wide"][:, 10:]
    assert np.array_equal(loader.get_slice("wide")[8:10, 2:], wide[8:10, 2:])
    assert read_bytes(stores) == 2 * 8 * 4
    piece = loader.get_slice("wide")
    assert (piece.get_shape(), piece.get_dtype()) == ([12, 10], "F32")
    for index in [..., 3, -1, (slice(None), 4), (slice(2, 99), slice(0, 0)), (..., slice(-3, None)), (np.int64(1), 2)]:
        found = piece[index]
        assert found.shape == wide[index].shape
        assert np.array_equal(found, wide[index])
    assert np.array_equal(loader["tall"], MODEL["tall"][8:])


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ((0, 0, 0), "3 indices for shape"),
        (12, "index 12 is outside axis 0"),
        (slice(0, 8, 2), "step 2"),
        ((..., 0, ...), "3 indices"),
    ],
)
def test_indices_that_nothing_is_at_are_refused(loader, index, problem):
    with pytest.raises(UsageError, match=problem):
        loader.get_slice("wide")[index]


def test_tensors_that_exist_are_filled_or_all_refused(loader, stores):
    state = {name: np.empty_like(value) for name, value in loader.tensors().items()}
    stores.clear()
    wrong = {**state, "wide": np.empty((12, 20), np.float32), "tall": state["tall"].astype(np.int32), "more": 1}
    del wrong["norm"]
    with pytest.raises(UsageError) as refusal:
        loader.into(wrong)
    assert len(refusal.value.problems) == 4
    assert all(
        each in str(refusal.value) for each in ("norm", "more", "wide: expected shape [12, 10]", "tall: expected I64")
    )
    assert not stores
    loader.into(state)
    assert same(state, loader.tensors())


def test_each_tensor_owns_its_memory(loader):
    found = loader.tensors()
    assert all(array.flags.writeable for array in found.values())
    found["tall"][:] = 0
    assert loader["tall"].any()


def test_rules_dtypes_and_names_are_those_of_a_conversion(base, stores):
    tensors, config = small_llama(family="qwen3", heads=8, groups=4)
    put_model(f"{base}/qwen", tensors, config)
    options = {"to": "ms", "dtype": "bf16", "parallel": "mp=2", "rename": "prefix:decoder.=d."}
    reshard.convert(f"{base}/qwen", f"{base}/ranks", **options)
    for rank in (0, 1):
        written = arrays_at(f"{base}/ranks", [f"rank_{rank}/checkpoint_{rank}.safetensors"])
        assert same(reshard.load(f"{base}/qwen", rank=rank, **options).tensors(), written)


@pytest.mark.parametrize(
    ("form", "how"),
    [
        ({"form": "zarr"}, {}),
        ({"format": "ckpt"}, {}),
        ({"form": "mindspore"}, {}),
        ({"dst_layout": "l.yaml"}, {"src_layout": "l.yaml"}),
        ({"dst_layout": "l.yaml", "format": "ckpt"}, {"src_layout": "l.yaml"}),
        ({"dst_layout": "l.yaml", "form": "iteration", "iteration": 1}, {}),
    ],
    ids=str,
)
def test_every_kind_of_source_is_loaded(base, form, how):
    form, how = (
        {name: f"{base}/{value}" if value == "l.yaml" else value for name, value in each.items()}
        for each in (form, how)
    )
    reshard.convert(f"{base}/hf", f"{base}/source", drop="none", **form)
    options = {"rank": 1, "dst_layout": f"{base}/l.yaml"}
    found = reshard.load(f"{base}/source", **how, **options).tensors()
    assert same(found, reshard.load(f"{base}/hf", drop="none", **options).tensors())


@pytest.mark.parametrize("form", [None, "dcp", "iteration"])
def test_saved_plans_are_loaded(base, form):
    how = {"dst_layout": f"{base}/l.yaml", "drop": "none"}
    plan = reshard.plan(f"{base}/hf", f"{base}/ranks", form=form, iteration=3 if form == "iteration" else None, **how)
    put(f"{base}/plan.json", encode_plan(plan))
    found = reshard.load(plan=f"{base}/plan.json", rank=3).tensors()
    assert same(found, reshard.load(f"{base}/hf", rank=3, **how).tensors())


# Frameworks.


def test_any_framework_takes_dlpack(base):
    shard = reshard.load(f"{base}/hf", framework="dlpack")
    assert np.array_equal(np.from_dlpack(shard["wide"]), MODEL["wide"])
    held = np.from_dlpack(shard["tall"])  # when the tensor itself is gone
    shard["tall"].__dlpack__()  # a capsule that nobody takes
    assert np.array_equal(held, MODEL["tall"])
    state = {name: np.empty_like(value) for name, value in MODEL.items()}
    shard.into(state)
    assert same(state, MODEL)


@pytest.mark.torch
def test_torch_tensors_of_every_dtype(base):
    torch = pytest.importorskip("torch")
    every = {dtype.value: (dtype.value, (4, 8)) for dtype in DType if dtype is not DType.BOOL}
    url = put(f"{base}/every/model.safetensors", encode(random_model(every)))
    expected = reshard.load(url).tensors()
    for framework, take in (("torch", torch.clone), ("dlpack", torch.from_dlpack)):
        for name, tensor in reshard.load(url, framework=framework):
            taken = take(tensor)
            assert taken.view(torch.uint8).numpy().tobytes() == expected[name].tobytes()
            assert taken.shape == expected[name].shape


@pytest.mark.torch
def test_torch_tensors_that_exist_are_filled(base):
    torch = pytest.importorskip("torch")
    shard = reshard.load(f"{base}/hf", framework="torch", dtype="bf16", keep=["wide", "none"])
    state = {name: torch.ones_like(tensor) for name, tensor in shard}
    state["wide"].requires_grad_()
    shard.into(state)
    assert torch.equal(state["wide"], torch.from_numpy(MODEL["wide"]).to(torch.bfloat16))
    assert state["none"].shape == (0, 3)
    with pytest.raises(UsageError, match="wide: expected BF16"):
        shard.into(state | {"wide": torch.ones(12, 20)})


@pytest.mark.mindspore
def test_mindspore_parameters(base):
    mindspore = pytest.importorskip("mindspore")
    found = reshard.load(f"{base}/hf", framework="mindspore", keep="wide").tensors()
    net = mindspore.nn.Cell()
    net.wide = mindspore.Parameter(mindspore.Tensor(np.zeros((12, 20), np.float32)), name="wide")
    assert mindspore.load_param_into_net(net, found) == ([], [])
    assert np.array_equal(net.wide.asnumpy(), MODEL["wide"])


def test_frameworks_that_are_not_there_are_named(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="torch cannot be imported"):
        reshard.load(f"{base}/hf", framework="torch")
    with pytest.raises(UsageError, match="expected one of numpy, torch, mindspore, dlpack"):
        reshard.load(f"{base}/hf", framework="jax")


# Bad input.


def test_ranks_that_do_not_exist(base):
    for rank in (4, -1):
        with pytest.raises(UsageError, match=rf"{rank}.*0\.\.3"):
            reshard.load(f"{base}/hf", rank=rank, dst_layout=f"{base}/l.yaml")
    with pytest.raises(UsageError, match=r"`rank` is missing: expected one of 0\.\.3"):
        reshard.load(f"{base}/hf", dst_layout=f"{base}/l.yaml")
    with pytest.raises(UsageError, match="`rank` 1 needs a target strategy"):
        reshard.load(f"{base}/hf", rank=1)
    plan = reshard.plan(f"{base}/hf", f"{base}/copy")
    with pytest.raises(UsageError, match="has no ranks"):
        reshard.load(plan=plan, rank=1)


def test_names_that_no_rule_knows(base):
    put(f"{base}/few.yaml", b"axes: {mp: 2}\nrules:\n  - {match: wide, split: [null, mp]}\n")
    with pytest.raises(StrategyError, match="tall"):
        reshard.load(f"{base}/hf", rank=0, dst_layout=f"{base}/few.yaml")


def test_closed_loaders_refuse(loader):
    reading_on = iter(loader)
    next(reading_on)
    with loader:
        pass
    for read in (lambda: loader["wide"], loader.tensors, lambda: loader.into({}), lambda: next(reading_on)):
        with pytest.raises(UsageError, match="the loader is closed"):
            read()


def test_unknown_names_and_options(loader, base):
    with pytest.raises(UsageError, match="there is no such tensor"):
        loader["wid"]
    with pytest.raises(TypeError, match="overwrite"):
        reshard.load(f"{base}/hf", overwrite=True)
    with pytest.raises(UsageError, match="either"):
        reshard.load()


def test_a_source_that_changes_while_it_is_read(base, loader):
    loader["wide"]
    put_model(f"{base}/hf", MODEL | {"wide": MODEL["wide"] + 1})
    with pytest.raises(SourceChanged):
        loader["wide"]
    with pytest.raises(SourceChanged):
        loader.tensors()
