"""zarr stores through the real engine: ours, zarr-python's and tensorstore's."""

import json
import math
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from support.checkpoints import contents, decode, encode, put_full, put_ranks, random_model, shards, stored
from support.conversions import Known, catalog_at, ranks_of
from support.faulty_store import Fault, FaultyStore
from support.plan_checker import contents_of, is_fit_for_ckpt
from support.planning import plan_for
from support.random_plans import any_cases, any_sources, limits, new_names, under_new_names
from support.zarr_arrays import decode_zarr

from reshard import api
from reshard.engine.execute import execute
from reshard.engine.sources import SourceOptions, read_catalog
from reshard.engine.verification import verify_manifest
from reshard.engine.workers import working
from reshard.errors import CatalogError, FormatError, PlanError, SourceChanged, StorageError, TargetExists, UsageError
from reshard.formats.containers import Container
from reshard.formats.zarr import ZarrArray, encode_array, encode_group
from reshard.planning.catalog import SourceSharding
from reshard.planning.limits import Limits
from reshard.planning.plan_json import conversion_to_json, decode_plan, encode_plan, plan_to_json
from reshard.planning.sources import zarr_source
from reshard.planning.sources.selection import NameFilter
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets import zarr_target
from reshard.planning.targets.full_target import FullTarget, PartsTarget
from reshard.planning.targets.rank_target import RankTarget
from reshard.planning.targets.zarr_target import ZarrTarget
from reshard.storage import Location, MemoryStore, StoreLimits
from reshard.tensor import ByteRange, DType, Layout, Strategy, TensorSpec

slow = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
ONE = FullTarget("model.safetensors", "model.safetensors", "", "pt", 10**9)
PLAIN = Limits(min_part_bytes=64, part_bytes=256)
MODEL = random_model(
    {
        "model.embed.weight": ("BF16", (37, 8)),
        "model.layers.0.w": ("F32", (16, 24)),
        "model.layers.0.experts": ("F8_E4M3", (4, 6, 10)),
        "model.norm": ("F16", (24,)),
        "packed": ("F4", (3, 8)),
        "scale": ("F64", ()),
        "empty": ("I32", (0, 4)),
        "an odd/name": ("I64", (7,)),
    }
)


def place(min_part_bytes=64):
    accepted = StoreLimits(min_part_bytes=min_part_bytes, min_copy_source_bytes=1)
    return Location(MemoryStore(limits=accepted), "here")


def converted(catalog, source, target, wished=PLAIN, renamed=None, here=None, copy_bases=()):
    """Plan, save, load, carry out, verify; where it went, and what lies there but the manifest."""
    here = here or place(wished.min_part_bytes)
    plan = plan_for(catalog, target, here.url, wished, renamed=renamed, copy_bases=copy_bases)
    assert decode_plan(encode_plan(plan), "saved") == plan
    manifest = execute(plan, source, here)
    assert verify_manifest(manifest, source, here).is_ok
    written = stored(here)
    del written[plan.conversion.manifest_key]
    return here, written


def zarr_of(model, chunk_bytes=100, chunk_shapes=None):
    source = place()
    put_full(source, {"model.safetensors": model})
    return converted(catalog_at(source), source, ZarrTarget(chunk_bytes, chunk_shapes or {}))


# Any source, zarr between, any target.


@st.composite
def chunk_shapes(draw, tensors):
    """Chunks of some tensors, on any axes."""
    found = {}
    for name, (dtype, shape, _) in tensors.items():
        if dtype.bits < 8 or not draw(st.booleans()):
            continue
        chunk = []
        for n in shape:
            is_first = all(size == 1 for size in chunk)
            sizes = range(1, max(1, n) + 1)
            chunk.append(draw(st.sampled_from([size for size in sizes if is_first or not n or n % size == 0])))
        found[name] = tuple(chunk)
    return found


def count_of(target, tensors):
    """Chunks of these shapes, at most."""
    return sum(
        math.prod(-(-n // size) for n, size in zip(tensors[name][1], shape, strict=True))
        for name, shape in target.chunk_shapes.items()
    )


def under(renamed, tensors):
    """Tensors by their names in the target."""
    return {renamed.get(name, name): value for name, value in tensors.items()}


@st.composite
def journeys(draw):
    case = draw(any_cases(2))
    first, second = case.strategies
    source = draw(any_sources(case, draw(st.sampled_from([None, first]))))
    renamed = draw(new_names(source.tensors))
    names = under(renamed, source.tensors)
    largest = max((math.prod(shape) * dtype.bits for dtype, shape, _ in names.values()), default=0)
    between = ZarrTarget(
        draw(st.sampled_from([max(1, largest // 200), 100, 10**9])),
        draw(chunk_shapes(names)),
    )
    if source.texts:
        last = FullTarget("model.ckpt", "model.ckpt", "", "pt", 10**9, Container.CKPT)
        assume(is_fit_for_ckpt(last, names, source.texts))
    else:
        cut = {key: value for stage in first.stages for key, value in stage.items() if key not in second.names}
        whole = {key: Layout((second.device_count,), ((),) * len(value.tensor_map)) for key, value in cut.items()}
        covering = replace(second, stages=({**second.stages[0], **whole}, *second.stages[1:]))
        ranks = ranks_of(under_new_names(covering, renamed))
        full = draw(st.sampled_from([ONE, PartsTarget(200)]))
        last = ranks if ranks.strategy.names & names.keys() and draw(st.booleans()) else full
    return source, renamed, between, last


@slow
@given(journeys(), limits(), st.sampled_from([(), (REPLICAS, 0)]))
def test_zarr_between_changes_nothing(journey, wished, copy_bases):
    source, renamed, between, last = journey
    names = under(renamed, source.tensors)
    if count_of(between, names) > 2000:
        between = replace(between, chunk_shapes={})
    there = place()
    for key, body in source.objects.items():
        there.store.put(there.child(key).key, body)
    if source.strategy is None and len(source.objects) > 1:
        put_index(there, source)
    wished = replace(wished, memory_bytes=1 << 25, max_part_count=10_000, read_bytes=max(wished.read_bytes, 64))
    wished = replace(wished, min_copy_source_bytes=1)
    with working(2, there.store) as workers:
        catalog = read_catalog(there, SourceOptions(source.strategy and Known(source.strategy), source.names), workers)
    here, written = converted(catalog, there, between, wished, renamed, copy_bases=copy_bases)
    assert decode_zarr(written) == contents(names)
    again = catalog_at(here)
    assert [entry.spec for entry in again.entries] == [
        replace(entry.spec, name=renamed.get(entry.spec.name, entry.spec.name)) for entry in catalog.entries
    ]
    assert again.texts == catalog.texts == source.texts
    _, straight = converted(catalog, there, last, wished, renamed)
    _, around = converted(again, here, last, wished, copy_bases=copy_bases)
    assert around == straight


def put_index(there, source):
    weight_map = {name: key for key, body in source.objects.items() for name in contents_of(key, body)[0]}
    body = json.dumps({"weight_map": weight_map}).encode()
    there.store.put(there.child("model.safetensors.index.json").key, body)


def test_the_store_copies_chunks_by_itself():
    here, _ = zarr_of({"w": MODEL["model.layers.0.w"]}, 768)
    wished = replace(PLAIN, min_copy_source_bytes=1)
    source = catalog_at(here)
    plan = plan_for(source, ONE, "memory://x", wished, copy_bases=(0,))
    assert (plan.cost.copied_bytes, plan.cost.read_bytes) == (1536, 0)
    _, body = converted(source, here, ONE, wished, copy_bases=(REPLICAS, 0))
    assert decode(body["model.safetensors"])[0] == contents({"w": MODEL["model.layers.0.w"]})


def test_zarr_to_zarr():
    here, written = zarr_of(MODEL)
    _, again = converted(catalog_at(here), here, ZarrTarget(333))
    assert decode_zarr(again) == decode_zarr(written) == contents(MODEL)
    _, same = converted(catalog_at(here), here, ZarrTarget(100))
    assert same == written


def test_outside_tensors_stay_outside():
    strategy = Strategy(2, ({"w": Layout((2,), ((0,), ()))},))
    model = random_model({"w": ("F32", (4, 2)), "epoch_num": ("I32", ())})
    there = place()
    put_ranks(there, shards(model, strategy))
    here, _ = converted(catalog_at(there, strategy), there, ZarrTarget(8))
    assert {entry.spec.name: entry.sharding for entry in catalog_at(here).entries} == {
        "w": SourceSharding.WHOLE,
        "epoch_num": SourceSharding.UNLISTED,
    }
    _, parts = converted(catalog_at(here), here, PartsTarget(100))
    assert set(decode(parts["hyper_param.safetensors"])[0]) == {"epoch_num"}


def test_metadata_and_notes_go_along():
    there = place()
    body = encode(random_model({"w": ("I8", (4,))}), {"author": "me", "format": "pt", "w": "Int4"})
    there.store.put(there.child("model.safetensors").key, body)
    here, _ = converted(catalog_at(there), there, ZarrTarget(8), renamed={"w": "v"})
    assert catalog_at(here).metadata == {"author": "me", "v": "Int4"}
    _, back = converted(catalog_at(here), here, ONE, renamed={"v": "w"})
    assert decode(back["model.safetensors"])[1] == {"author": "me", "format": "pt", "w": "Int4"}


def test_each_chunk_is_full_and_the_rest_is_zero():
    _, written = zarr_of({"w": MODEL["model.embed.weight"]}, chunk_shapes={"w": (10, 8)})
    bodies = [written[f"w/c/{i}/0"] for i in range(4)]
    assert [len(body) for body in bodies] == [160] * 4
    assert b"".join(bodies) == MODEL["model.embed.weight"][2].tobytes() + bytes(3 * 16)


def test_chunks_of_some_tensors_on_any_axis():
    shapes = {"model.layers.0.w": (5, 8), "model.layers.0.experts": (1, 4, 10)}
    _, written = zarr_of(MODEL, 10**9, shapes)
    assert sum(name.startswith("model.layers.0.w/c/") for name in written) == 4 * 3
    assert sum(name.startswith("model.layers.0.experts/c/") for name in written) == 4 * 2
    assert decode_zarr(written) == contents(MODEL)


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("model.layers.0.w", (5, 5), r"axes \[1\] of \[16, 24\] are not divided evenly"),
        ("model.layers.0.w", (5,), "the tensor has 2 axes"),
        ("model.layers.0.w", (0, 8), r"expected 1 up to \[16, 24\]"),
        ("model.layers.0.w", (17, 8), r"expected 1 up to \[16, 24\]"),
        ("packed", (4,), "elements of 4 bits are kept together"),
        ("absent", (4,), "there is no such tensor"),
    ],
)
def test_chunk_shapes_refused(name, shape, problem):
    with pytest.raises(PlanError, match="chunk shapes that do not fit") as caught:
        zarr_of(MODEL, chunk_shapes={name: shape})
    assert re.search(problem, str(caught.value))


def test_too_many_chunks_and_too_long_names():
    many = random_model({"w": ("U8", (1 << 21,))})
    with pytest.raises(PlanError, match="2097152 chunks: at most 1048576"):
        zarr_of(many, 1)
    for chunk_bytes in (0, -1):
        with pytest.raises(PlanError, match=f"chunks of {chunk_bytes} bytes: expected at least 1"):
            zarr_of(MODEL, chunk_bytes)
    with pytest.raises(PlanError, match="names of more than 255 characters"):
        zarr_of(random_model({"w" * 256: ("U8", (1,))}))


def test_chunks_are_counted_before_they_are_shaped(monkeypatch):
    """A search for the best rows, tensor by tensor, would take minutes to find that there are far too many."""
    source = place()
    put_full(source, {"model.safetensors": random_model({f"w{i}": ("U8", (1 << 18,)) for i in range(5)})})
    catalog, searched = catalog_at(source), []
    monkeypatch.setattr(zarr_target, "_rows_for", lambda *args: searched.append(args))
    with pytest.raises(PlanError, match="1310720 chunks: at most 1048576"):
        plan_for(catalog, ZarrTarget(1), "memory://x", PLAIN)
    assert not searched


# The statements.


@pytest.fixture
def url():
    source = Location(MemoryStore("zarr-source"), "model")
    put_full(source, {"model.safetensors": MODEL})
    source.store.put("model/config.json", b'{"model_type": "x"}')
    yield "memory://zarr-source/model"
    clear("zarr-source", "zarr-target")


def clear(*names):
    for store in map(MemoryStore, names):
        for info in list(store.list("")):
            store.delete(info.key)


TARGET = "memory://zarr-target"


def test_asked_for_by_name_or_by_form(url):
    for target, options in ((f"{TARGET}/a.zarr", {}), (f"{TARGET}/b", {"form": "zarr"})):
        manifest = api.convert(url, target, part_size="100", **options)
        assert isinstance(manifest.conversion.target, ZarrTarget)
        assert manifest.conversion.target.chunk_bytes == 100
        assert {"config.json", "zarr.json"} <= {receipt.key for receipt in manifest.receipts}
        assert api.verify(target, source=url).is_ok
        assert api.inspect(target).kind == "zarr store"
    with pytest.raises(UsageError, match="plain chunks"):
        api.plan(url, f"{TARGET}/c", form="zarr", format="safetensors")
    with pytest.raises(UsageError, match="form='zarr' writes a full checkpoint"):
        api.plan(url, f"{TARGET}/c", form="zarr", parallel="mp=2")
    for options in ({"parallel": "mp=2"}, {"prefix": "x"}):
        with pytest.raises(UsageError, match=r"c\.zarr: a zarr store holds a full checkpoint"):
            api.plan(url, f"{TARGET}/c.zarr", **options)
    assert not isinstance(api.plan(url, f"{TARGET}/c.zarr", form="hf").conversion.target, ZarrTarget)


def test_keep_drop_and_rename(url):
    api.convert(url, f"{TARGET}/a.zarr")
    with working(1) as workers:
        place = Location(MemoryStore("zarr-target"), "a.zarr")
        catalog = read_catalog(place, SourceOptions(names=NameFilter(keep=("model.*",), drop=("*.w",))), workers)
    assert {entry.spec.name for entry in catalog.entries} == {
        "model.norm",
        "model.embed.weight",
        "model.layers.0.experts",
    }
    assert len(catalog.objects) == 3
    assert "packed" in catalog.dropped
    with pytest.raises(UsageError, match="`keep` matches no tensor"):
        api.inspect(f"{TARGET}/a.zarr", keep=["nothing"])
    api.convert(f"{TARGET}/a.zarr", f"{TARGET}/b", keep=["model.norm"], rename=["model.norm=norm"])
    body = stored(Location(MemoryStore("zarr-target"), "b"))["model.safetensors"]
    assert decode(body)[0] == {"norm": contents(MODEL)["model.norm"]}


def test_what_was_there_before(url):
    api.convert(url, f"{TARGET}/a.zarr", part_size="100")
    with pytest.raises(TargetExists, match="outputs exist already"):
        api.convert(url, f"{TARGET}/a.zarr")
    api.convert(url, f"{TARGET}/a.zarr", drop=["model.layers.*"], overwrite=True)
    written = stored(Location(MemoryStore("zarr-target"), "a.zarr"))
    del written["reshard-manifest.json"], written["config.json"]
    kept = {name: value for name, value in contents(MODEL).items() if not name.startswith("model.layers.")}
    assert decode_zarr(written) == kept
    for name in ("reshard-manifest.json", "config.json"):
        MemoryStore("zarr-target").delete(f"a.zarr/{name}")
    with pytest.raises(TargetExists, match="another checkpoint's objects are there"):
        api.convert(url, f"{TARGET}/a.zarr", form="hf")


class _Failing(MemoryStore):
    """A store that refuses one key."""

    refused = ""

    def put(self, key, body, checksum=None, replaces=None):
        if key.endswith(self.refused):
            raise StorageError("refused")
        return super().put(key, body)


@pytest.mark.parametrize("key", ["model.norm/c/0", "scale/zarr.json", "here/zarr.json", "reshard-manifest.json"])
def test_all_or_nothing(key):
    source, here = place(), Location(_Failing(limits=StoreLimits(min_part_bytes=64)), "here")
    here.store.refused = key
    put_full(source, {"model.safetensors": MODEL})
    with pytest.raises(StorageError, match="refused"):
        converted(catalog_at(source), source, ZarrTarget(100), here=here)
    assert not stored(here)


def test_the_group_comes_last():
    keys = []

    class Recording(MemoryStore):
        def put(self, key, body, checksum=None, replaces=None):
            keys.append(key)
            return super().put(key, body)

    source, here = place(), Location(Recording(limits=StoreLimits(min_part_bytes=64)), "here")
    put_full(source, {"model.safetensors": MODEL})
    converted(catalog_at(source), source, ZarrTarget(100), here=here)
    assert keys[-2:] == ["here/zarr.json", "here/reshard-manifest.json"]
    documents = [i for i, key in enumerate(keys) if key.endswith("/zarr.json")]
    assert min(documents) > max(i for i, key in enumerate(keys) if "/c/" in key or key.endswith("/c"))


LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 48,
}  # fmt: skip


def llama():
    """A Llama of random values, as it is published."""
    each = {
        "input_layernorm": (16,), "post_attention_layernorm": (16,), "mlp.down_proj": (16, 32),
        "mlp.gate_proj": (32, 16), "mlp.up_proj": (32, 16), "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 16),
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in each.items()}
    shapes |= {"model.embed_tokens.weight": (48, 16), "model.norm.weight": (16,), "lm_head.weight": (48, 16)}
    numbers = np.random.default_rng(0)
    values = {name: numbers.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
    return {
        name: (DType.BF16, value.shape, value.view(np.uint8).reshape(*value.shape, 2)) for name, value in values.items()
    }


def test_rules_of_families_before_and_after():
    source = Location(MemoryStore("zarr-source"), "model")
    put_full(source, {"model.safetensors": llama()})
    put(source, "config.json", LLAMA)
    url, cut = "memory://zarr-source/model", {"to": "ms", "dtype": "fp32", "parallel": "dp=2,mp=2,pp=2"}
    api.convert(url, f"{TARGET}/plain.zarr", part_size="512")
    api.convert(url, f"{TARGET}/ms.zarr", to="ms", dtype="fp32", part_size="512")
    api.convert(url, f"{TARGET}/straight", **cut)
    api.convert(f"{TARGET}/plain.zarr", f"{TARGET}/around", **cut)
    api.convert(f"{TARGET}/ms.zarr", f"{TARGET}/back", to="hf", dtype="bf16")
    target = MemoryStore("zarr-target")
    assert shards_in(target, "around") == shards_in(target, "straight") != {}
    body = stored(Location(target, "back"))["model.safetensors"]
    assert decode(body)[0] == contents(llama())
    for name in ("plain.zarr", "ms.zarr", "around", "back"):
        assert api.verify(f"{TARGET}/{name}", source=url).is_ok
    clear("zarr-source", "zarr-target")


def shards_in(store, folder):
    return {name: body for name, body in stored(Location(store, folder)).items() if name.startswith("rank_")}


# Stores that are damaged or forged.


def put(here, name, body):
    here.store.put(here.child(name).key, body if isinstance(body, bytes) else json.dumps(body).encode())


def test_missing_chunks_are_told():
    here, _ = zarr_of(MODEL)
    here.store.delete("here/model.norm/c/0")
    with pytest.raises(CatalogError, match="chunks of zarr arrays are missing") as caught:
        catalog_at(here)
    assert "model.norm: of 1 chunks model.norm/c/0" in str(caught.value)
    assert "reshard stores every chunk, so these are lost or were removed" in str(caught.value)


def test_chunks_of_another_length_are_told():
    here, _ = zarr_of(MODEL)
    put(here, "scale/c", bytes(7))
    with pytest.raises(CatalogError, match="wrong length") as caught:
        catalog_at(here)
    assert "scale/c: expected 8 bytes, found 7" in str(caught.value)


def test_a_store_that_was_added_to():
    here, _ = zarr_of(MODEL)
    put(here, "new/zarr.json", encode_array(ZarrArray("new", TensorSpec("new", DType.U8, (0,)), (1,))))
    with pytest.raises(CatalogError, match="does not know arrays that are there") as caught:
        catalog_at(here)
    assert "consolidate_metadata" in str(caught.value)


def arrays_of(*pairs):
    return [ZarrArray(path, TensorSpec(name, DType.U8, (1,)), (1,)) for path, name in pairs]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (arrays_of(("a", "w"), ("b", "w")), "several zarr arrays of one name"),
        (arrays_of(("a", "a"), ("a/b", "b")), "zarr arrays inside others"),
        ([ZarrArray("a", TensorSpec("a", DType.U8, (1 << 59,)), (1,))], "chunks in 1 objects altogether"),
        ([], "a zarr group without arrays"),
    ],
)
def test_groups_that_contradict_themselves(arrays, message):
    here = place()
    put(here, "zarr.json", encode_group(arrays, {}, {}))
    with pytest.raises(CatalogError, match=message):
        catalog_at(here)


def test_every_array_that_cannot_be_read_is_told():
    here, root = place(), json.loads(encode_group(arrays_of(("a", "a"), ("b", "b")), {}, {}))
    for path, codec in (("a", "blosc"), ("b", "gzip")):
        root["consolidated_metadata"]["metadata"][path]["codecs"] += [{"name": codec}]
    put(here, "zarr.json", root)
    with pytest.raises(FormatError, match="2 zarr arrays cannot be read") as caught:
        catalog_at(here)
    assert "blosc" in str(caught.value)
    assert "gzip" in str(caught.value)
    del root["consolidated_metadata"]
    put(here, "zarr.json", root)
    put(here, "a/zarr.json", b"[]")
    with pytest.raises(FormatError, match=r"a/zarr\.json: wrong top level"):
        catalog_at(here)


def test_version_2():
    here = place()
    put(here, ".zgroup", {"zarr_format": 2})
    put(here, "w/.zarray", {"zarr_format": 2})
    with pytest.raises(CatalogError, match=r"found \.zgroup, which is of version 2"):
        catalog_at(here)


def test_another_checkpoint_beside():
    here, _ = zarr_of(MODEL)
    put_full(here, {"model.safetensors": MODEL})
    with pytest.raises(CatalogError, match="objects of another checkpoint beside it"):
        catalog_at(here)


def test_plans_that_were_forged():
    here, _ = zarr_of(MODEL)
    plan = plan_for(catalog_at(here), ZarrTarget(100), "memory://x", PLAIN)
    forge(plan)
    for target in (ZarrTarget(0), ZarrTarget(100, {"model.norm": (25,)}), ZarrTarget(100, {"w": (1,)})):
        with pytest.raises(FormatError, match=r"chunk shapes|chunks of 0 bytes"):
            forge(plan, target=target)
    entries = plan.catalog.entries
    at = next(i for i, entry in enumerate(entries) if entry.spec.name == "model.embed.weight")
    outside = replace(entries[at].placements[0], box=entries[at].placements[0].box.shifted((37, 0)))
    forged = replace(entries[at], placements=(*entries[at].placements, outside))
    catalog = replace(plan.catalog, entries=(*entries[:at], forged, *entries[at + 1 :]))
    with pytest.raises(FormatError, match="boxes inside"):
        forge(plan, catalog=catalog)


def forge(plan, **changes):
    """Read the plan of another conversion, as one who wrote it would have it."""
    conversion = conversion_to_json(replace(plan.conversion, **changes))
    return decode_plan(json.dumps(plan_to_json(plan) | {"conversion": conversion}).encode(), "forged")


# Other writers and readers.


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr")


ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


def values_of(array):
    """A tensor as its bytes, through the view that the documentation tells."""
    told, values = array.attrs["reshard"], array[...]
    if told["dtype"] in ML_DTYPES:
        values = values.view(getattr(ml_dtypes, ML_DTYPES[told["dtype"]]))
    return told["name"], np.asarray(values)


def test_zarr_python_opens_what_we_write(zarr, tmp_path):
    put_full(Location(MemoryStore("zarr-source"), "m"), {"model.safetensors": MODEL})
    api.convert("memory://zarr-source/m", f"{tmp_path}/m.zarr", part_size=100)
    group = zarr.open_group(f"{tmp_path}/m.zarr", mode="r")
    assert group.metadata.consolidated_metadata is not None
    found = dict(values_of(array) for _, array in group.arrays())
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: body for name, (_, _, body) in contents(MODEL).items()
    }
    assert found["model.embed.weight"].dtype.name == "bfloat16"
    alone = zarr.open_array(f"{tmp_path}/m.zarr/model.layers.0.w", mode="r")
    assert alone[3:5].tobytes() == MODEL["model.layers.0.w"][2][3:5].tobytes()
    api.verify(f"{tmp_path}/m.zarr", source="memory://zarr-source/m")


ARRAYS = {
    "plain": np.arange(35, dtype="<f4").reshape(5, 7),
    "deep/er": np.arange(1, 25, dtype="<i2").reshape(2, 3, 4),
    "scalar": np.float64(2.5),
    "flags": np.array([True, False, True]),
    "waves": np.array([1 + 2j, 3j, 4, 5], "<c8"),
}
CHUNKS = {"plain": (2, 3), "deep/er": (2, 2, 3), "scalar": (), "flags": (2,), "waves": (3,)}


def write_by_zarr_python(zarr, path, **settings):
    group = zarr.open_group(path, mode="w")
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, value in ARRAYS.items():
            value = np.asarray(value)
            array = group.create_array(
                name, shape=value.shape, dtype=value.dtype, chunks=CHUNKS[name], compressors=None, **settings
            )
            array[...] = value
    return group


@pytest.mark.parametrize("is_consolidated", [False, True])
@pytest.mark.parametrize("keys", [None, {"name": "v2", "separator": "."}, {"name": "default", "separator": "."}])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_we_read_what_zarr_python_writes(zarr, tmp_path, keys, is_consolidated):
    write_by_zarr_python(zarr, tmp_path / "a", chunk_key_encoding=keys)
    if is_consolidated:
        zarr.consolidate_metadata(tmp_path / "a")
    for target in ("one/model.safetensors", "b.zarr"):
        api.convert(str(tmp_path / "a"), str(tmp_path / target), part_size=20 if target == "b.zarr" else None)
        assert api.verify(str(tmp_path / target)).is_ok
    found = decode((tmp_path / "one/model.safetensors").read_bytes())[0]
    assert {name: body for name, (_, _, body) in found.items()} == {
        name: np.asarray(value).tobytes() for name, value in ARRAYS.items()
    }
    assert found["plain"][:2] == ("F32", (5, 7))
    group = zarr.open_group(tmp_path / "b.zarr", mode="r")
    assert np.array_equal(group["deep%2Fer"][...], ARRAYS["deep/er"])


def test_we_cut_what_zarr_python_writes(zarr, tmp_path):
    write_by_zarr_python(zarr, tmp_path / "a")
    layouts = {"deep/er": Layout((2, 3), ((1,), (0,), ())), "plain": Layout((6,), ((), ()))}
    source = api.statements.open_source(str(tmp_path / "a"))
    target = RankTarget(Strategy(6, (layouts,)), tuple(range(6)), "rank_{rank}/a{rank}.safetensors")
    _, written = converted(catalog_at(source), source, target)
    for rank in range(6):
        held = decode(written[f"rank_{rank}/a{rank}.safetensors"])[0]
        part = ARRAYS["deep/er"][rank // 3 : rank // 3 + 1, rank % 3 : rank % 3 + 1]
        assert held["deep/er"] == ("I16", (1, 1, 4), part.tobytes())
        assert held["plain"][2] == ARRAYS["plain"].tobytes()


def test_a_single_chunk_that_is_wider_than_its_array(zarr, tmp_path):
    """Rows of the chunk are longer than the tensor's: nothing of it stands together, though there is one chunk."""
    values = np.arange(6000 * 600, dtype=np.float32).reshape(6000, 600)
    root = zarr.create_group(tmp_path / "in")
    array = root.create_array("w", shape=(6000, 600), chunks=(6000, 602), dtype="float32", compressors=None)
    array[:] = values
    for copy in ("never", "auto"):
        api.convert(str(tmp_path / "in"), str(tmp_path / copy), copy=copy)
        assert api.verify(str(tmp_path / copy)).is_ok
        assert decode((tmp_path / copy / "model.safetensors").read_bytes())[0]["w"][2] == values.tobytes()


SPARSE = {
    "f2": ("float16", 0.0), "f4": ("float32", "NaN"), "f8": ("float64", -0.0), "inf": ("float32", "-Infinity"),
    "i1": ("int8", -7), "i8": ("int64", -(2**40)), "u2": ("uint16", 65535), "b": ("bool", True),
    "c8": ("complex64", 1 - 2j),
}  # fmt: skip


def write_sparse(zarr, path):
    """Arrays of which zarr-python leaves out some chunks by itself, what they hold, and how many are left out."""
    group, found, absent = zarr.open_group(path, mode="w"), {}, 0
    for number, (name, (dtype, fill)) in enumerate(SPARSE.items()):
        fill = np.dtype(dtype).type(float(fill) if isinstance(fill, str) else fill)
        array = group.create_array(name, shape=(6, 8), chunks=(4, 3), dtype=dtype, compressors=None, fill_value=fill)
        values = np.full((6, 8), fill)
        if number != 1:  # of that one, every chunk is left out
            values[1:3, 4:6] = 3
            array[...] = values
        assert array[...].tobytes() == values.tobytes()
        found[name], absent = values, absent + 6 - array.nchunks_initialized
    return found, absent


@pytest.mark.parametrize("read_bytes", [3, 1 << 20])
def test_chunks_that_zarr_python_leaves_out(zarr, tmp_path, read_bytes):
    values, absent = write_sparse(zarr, tmp_path / "a")
    source = api.statements.open_source(str(tmp_path / "a"))
    catalog = catalog_at(source)
    [note] = catalog.notes
    assert note.startswith(f"{absent} of 54 chunks are not stored and read as fill values: ")
    assert "b (6 of 6, True), c8 (5 of 6, [1.0, -2.0]), f2 (5 of 6, 0.0), ..." in note
    wished = replace(PLAIN, read_bytes=read_bytes, min_copy_source_bytes=1)
    for copy_bases in ((), (REPLICAS, 0)):
        _, written = converted(catalog, source, ONE, wished, copy_bases=copy_bases)
        held = decode(written["model.safetensors"])[0]
        assert {name: body for name, (_, _, body) in held.items()} == {k: v.tobytes() for k, v in values.items()}
    columns = ranks_of(Strategy(2, (dict.fromkeys(SPARSE, Layout((2,), ((), (0,)))),)))
    _, written = converted(catalog, source, columns, wished)
    for rank in range(2):
        held = decode(written[f"rank_{rank}/checkpoint_{rank}.safetensors"])[0]
        cut = {name: value[:, 4 * rank : 4 * rank + 4].tobytes() for name, value in values.items()}
        assert {name: body for name, (_, _, body) in held.items()} == cut
    _, written = converted(catalog, source, ZarrTarget(13), wished)
    held = decode_zarr(written)
    assert {name: body for name, (_, _, body) in held.items()} == {k: v.tobytes() for k, v in values.items()}


def test_every_statement_with_chunks_left_out(zarr, tmp_path):
    values, absent = write_sparse(zarr, tmp_path / "a")
    catalog = api.inspect(str(tmp_path / "a"))
    assert sum(bool(item.fill) for item in catalog.objects) == absent
    source, target = str(tmp_path / "a"), str(tmp_path / "out")
    plan = api.plan(source, target, dtype="fp32", copy="auto")
    manifest = api.convert(plan=plan)
    assert any("are not stored" in note for note in manifest.conversion.notes)
    assert api.verify(target).is_ok
    held = decode((tmp_path / "out/model.safetensors").read_bytes())[0]
    assert np.array_equal(np.frombuffer(held["f2"][2], "<f4").reshape(6, 8), values["f2"])
    # Another value in the target is found, and so is a chunk that was written since.
    body = (tmp_path / "out/model.safetensors").read_bytes()
    (tmp_path / "out/model.safetensors").write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    assert not api.verify(target).is_ok
    array = zarr.open_group(tmp_path / "a", mode="r+")["f4"]
    array[0, 0] = 1
    for again in (
        lambda: api.verify(target),
        lambda: execute(plan, api.statements.open_source(source), place()),
    ):
        with pytest.raises(SourceChanged, match="f4/c/0/0: expected a chunk that is not stored, found 48 bytes"):
            again()


def theirs(here, **arrays):
    """Arrays as other writers tell them: data type and fill value, of 4 chunks of 3 elements those that are given."""
    put(here, "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    for name, (data_type, fill_value, chunks) in arrays.items():
        document = json.loads(encode_array(ZarrArray(name, TensorSpec(name, DType.U8, (10,)), (3,))))
        told = {"attributes": {}, "data_type": data_type, "fill_value": fill_value}
        put(here, f"{name}/zarr.json", document | told)
        for index, chunk in chunks.items():
            put(here, f"{name}/c/{index}", chunk)


def test_a_chunk_that_is_written_while_it_is_made():
    """After the run has looked at every object of the source, and before it looks at this one again."""
    here = place()
    theirs(here, a=("uint8", 7, {1: b"abc"}))
    plan = plan_for(catalog_at(here), ONE, "memory://x", PLAIN)
    look = len(plan.catalog.objects) + 1
    overtaken = FaultyStore(here.store, Fault("head", look, lambda: put(here, "a/c/0", b"new")))
    there = place()
    with pytest.raises(SourceChanged, match="a/c/0: expected a chunk that is not stored"):
        execute(plan, Location(overtaken, here.key), there)
    assert not stored(there)


def test_fills_of_types_that_zarr_python_does_not_know():
    here = place()
    theirs(here, a=("bfloat16", "0x7fc1", {1: b"abcdef"}), b=("float8_e4m3fn", -0.0, {}), c=("bfloat16", 1.5, {}))
    _, written = converted(catalog_at(here), here, ONE)
    held = decode(written["model.safetensors"])[0]
    assert held["a"] == ("BF16", (10,), b"\xc1\x7f" * 3 + b"abcdef" + b"\xc1\x7f" * 4)
    assert held["b"] == ("F8_E4M3", (10,), b"\x80" * 10)
    assert held["c"] == ("BF16", (10,), b"\xc0\x3f" * 10)


def test_the_store_copies_no_chunk_that_is_left_out():
    here, written = zarr_of({"w": MODEL["model.layers.0.w"]}, 768)
    root = json.loads(written["zarr.json"])
    root["consolidated_metadata"]["metadata"]["w"]["attributes"] = {}  # as if another had written it
    put(here, "zarr.json", root)
    here.store.delete("here/w/c/1/0")
    source, wished = catalog_at(here), replace(PLAIN, min_copy_source_bytes=1)
    assert plan_for(source, ONE, "memory://x", wished, copy_bases=(0,)).cost.copied_bytes == 768
    _, body = converted(source, here, ONE, wished, copy_bases=(REPLICAS, 0))
    values = MODEL["model.layers.0.w"][2].tobytes()
    assert decode(body["model.safetensors"])[0]["w"][2] == values[:768] + bytes(768)


def test_fill_values_that_cannot_be_told_matter_only_where_chunks_lack():
    here = place()
    theirs(here, a=("uint8", None, dict.fromkeys(range(4), b"abc")))
    assert len(catalog_at(here).objects) == 4
    theirs(here, b=("int8", 300, {}))
    with pytest.raises(CatalogError, match="missing chunks of zarr arrays cannot be filled") as caught:
        catalog_at(here)
    assert "b: fill_value: expected a value of I8, found 300" in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "chunk", "problem"),
    [
        ([1 << 59], [1], f"w: {1 << 59} chunks in 2 objects altogether"),
        ([1 << 50], [1 << 40], f"w: at most {1 << 20} chunks and {1 << 44} bytes of all arrays can be"),
    ],
)
def test_small_documents_that_tell_of_endless_chunks(shape, chunk, problem):
    here = place()
    theirs(here, w=("uint8", 0, {}))
    document = json.loads(here.store.read("here/w/zarr.json", ByteRange(0, here.store.head("here/w/zarr.json").nbytes)))
    document |= {"shape": shape, "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}}}
    put(here, "w/zarr.json", document)
    with pytest.raises(CatalogError, match="cannot be filled") as caught:
        catalog_at(here)
    assert problem in str(caught.value)


def test_chunks_are_filled_up_to_a_number_of_all_arrays(monkeypatch):
    monkeypatch.setattr(zarr_source, "MAX_CHUNK_COUNT", 6)
    here, stored = place(), dict.fromkeys(range(4), b"abc")
    theirs(here, a=("uint8", 0, {}), b=("uint8", 0, {3: b"abc", 2: b"abc"}), c=("uint8", 0, stored))
    [note] = catalog_at(here).notes
    assert note.startswith("6 of 12 chunks are not stored")
    here.store.delete("here/b/c/2")
    with pytest.raises(CatalogError, match="cannot be filled") as caught:
        catalog_at(here)
    assert "b: at most 6 chunks and" in str(caught.value)


@pytest.mark.parametrize("fill", ["0", "xx", "00" * 9, 7])
def test_forged_fills(fill):
    here = place()
    theirs(here, w=("uint8", 0, {}))
    body = json.loads(encode_plan(plan_for(catalog_at(here), ONE, "memory://x", PLAIN)))
    objects = body["conversion"]["catalog"]["objects"]
    assert objects[0] == ["w/c/0", 3, "", 0, "00"]
    objects[0][4] = fill
    with pytest.raises(FormatError, match="fill"):
        decode_plan(json.dumps(body).encode(), "forged")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "'bytes', 'zstd'"),
        ({"compressors": None, "shards": (8,)}, "'sharding_indexed'"),
        ({"compressors": None, "filters": "transpose"}, "'transpose', 'bytes'"),
    ],
)
def test_arrays_that_are_not_plain(zarr, tmp_path, settings, found):
    if settings.get("filters"):
        settings = settings | {"filters": [zarr.codecs.TransposeCodec(order=(0,))]}
    group = zarr.open_group(tmp_path / "a", mode="w")
    group.create_array("w", shape=(8,), chunks=(4,), dtype="f4", **settings)[...] = 1
    with pytest.raises(FormatError, match=f"codecs: expected only bytes, found {found}") as caught:
        api.inspect(str(tmp_path / "a"))
    assert "compressors=None" in str(caught.value)


@pytest.fixture
def tensorstore():
    return pytest.importorskip("tensorstore")


def test_tensorstore(tensorstore, tmp_path):
    put_full(Location(MemoryStore("zarr-source"), "m"), {"model.safetensors": MODEL})
    api.convert("memory://zarr-source/m", f"{tmp_path}/m.zarr", part_size=100)
    place = {"driver": "file", "path": f"{tmp_path}/m.zarr/model.layers.0.w"}
    ours = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
    assert ours.read().result().tobytes() == MODEL["model.layers.0.w"][2].tobytes()
    values = np.arange(1, 16).reshape(5, 3)
    for name in ("bfloat16", "float8_e5m2"):
        theirs = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/t/{name}"}},
            create=True,
            dtype=getattr(tensorstore, name),
            shape=(5, 3),
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=(2, 2)),
        ).result()
        theirs[...] = values.astype(getattr(ml_dtypes, name))
    (tmp_path / "t/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    api.convert(f"{tmp_path}/t", f"{tmp_path}/one/model.safetensors")
    found = decode((tmp_path / "one/model.safetensors").read_bytes())[0]
    assert {name: (dtype, shape) for name, (dtype, shape, _) in found.items()} == {
        "bfloat16": ("BF16", (5, 3)),
        "float8_e5m2": ("F8_E5M2", (5, 3)),
    }
    for name, (_, _, body) in found.items():
        assert body == values.astype(getattr(ml_dtypes, name)).tobytes()


@pytest.mark.parametrize("fill", [math.nan, -0.0, 0.1])
def test_chunks_that_tensorstore_leaves_out(tensorstore, tmp_path, fill):
    expected = {}
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e5m2fnuz", "float32"):
        array = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/t/{name}"}},
            create=True,
            dtype=getattr(tensorstore, name),
            shape=(5, 3),
            fill_value=fill,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=(2, 2)),
        ).result()
        array[0, 0] = 2
        assert not (tmp_path / f"t/{name}/c/2").exists()
        expected[name] = array.read().result().tobytes()
    (tmp_path / "t/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    api.convert(f"{tmp_path}/t", f"{tmp_path}/one/model.safetensors")
    found = decode((tmp_path / "one/model.safetensors").read_bytes())[0]
    assert {name: body for name, (_, _, body) in found.items()} == expected
