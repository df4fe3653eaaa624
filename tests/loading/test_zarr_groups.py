"""zarr stores as groups of zarr-python: ours and other writers', over any store, and no more bytes than needed."""

import json
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import encode, random_model
from support.recording_store import recording
from support.stores import new_place, objects_at, put

import reshard
from reshard.errors import CatalogError, FormatError, SourceChanged, StorageError, Unsupported, UsageError
from reshard.loading import zarr_groups
from reshard.storage import Location, open_location
from reshard.tensor import DType

DTYPES = ["F4", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "BF16", "F32", "C64"]
EVERY = random_model({name: (name, (5, 4, 6)) for name in DTYPES})
MODEL = {"wide": ("F32", (12, 20)), "cube": ("BF16", (5, 6, 7)), "one": ("F64", ()), "none": ("I32", (0, 4))}


def converted(base, model, part_size="1KB"):
    put(f"{base}/full/model.safetensors", encode(model))
    reshard.convert(f"{base}/full", f"{base}/full.zarr", part_size=part_size)
    return f"{base}/full.zarr", reshard.load(f"{base}/full").tensors()


@pytest.fixture
def base():
    return new_place()


@pytest.fixture(scope="module")
def opened():
    """A store in small chunks, its group and tensors, and a store that records what is read."""
    url, expected = converted(new_place(), random_model(MODEL), "200B")
    place = open_location(url)
    store = recording(place.store)
    return zarr_groups.open_group(Location(store, place.key)), expected, store


def same(found, expected):
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_arrays_have_the_dtypes_of_their_tensors(base):
    url, expected = converted(base, EVERY)
    group = reshard.open_zarr(url)
    assert isinstance(group, zarr.Group)
    assert dict(group.arrays()).keys() == expected.keys()
    for name, array in group.arrays():
        assert array[...].tobytes() == expected[name].tobytes()
        assert DType(name).is_sub_byte or same(array[1:3], expected[name][1:3])
    assert group["BF16"].attrs["reshard"]["dtype"] == "BF16"


@settings(max_examples=25)
@given(st.tuples(st.integers(0, 4) | st.slices(5), st.integers(0, 5) | st.slices(6), st.integers(0, 6) | st.slices(7)))
def test_any_index_gives_what_numpy_gives(opened, index):
    group, expected, _ = opened
    forward = tuple(
        slice(*each.indices(size)[:2], abs(each.step or 1)) if isinstance(each, slice) else each
        for each, size in zip(index, (5, 6, 7), strict=True)
    )
    assert np.array_equal(np.asarray(group["cube"][forward]), expected["cube"][forward])


def test_coordinates_masks_and_outer_products(opened):
    group, expected, _ = opened
    array, full = group["cube"], expected["cube"]
    rows, columns = [4, 0, 3], [5, 1, 1]
    assert same(array.oindex[rows, :, [6, 2]], full[rows][:, :, [6, 2]])
    assert same(array.vindex[rows, columns, 2], full[rows, columns, 2])
    mask = full.astype(np.float32) > 0
    assert same(array.get_mask_selection(mask), full[mask])
    assert same(group["one"][...], expected["one"])
    assert group["none"][...].shape == (0, 4)


@pytest.mark.parametrize(
    ("index", "nbytes"),
    [
        (np.s_[3:4], 80),  # a row within one chunk
        (np.s_[1:4], 240),  # of two chunks, one of them whole
        (np.s_[3, 5:7], 8),
        (np.s_[:, 0], 12 * 80),  # from the first row to the last
    ],
)
def test_rows_alone_are_read(opened, index, nbytes):
    group, expected, store = opened
    before = store.figures.read_bytes
    assert same(group["wide"][index], expected["wide"][index])
    assert store.figures.read_bytes - before == nbytes


def test_a_store_opens_with_its_listing_and_one_document(base):
    url, _ = converted(base, EVERY)
    place = open_location(url)
    store = recording(place.store)
    names = list(zarr_groups.open_group(Location(store, place.key)))
    assert names
    assert store.figures.request_count == 2


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_stores_of_other_writers(tmp_path, compressors):
    root = zarr.open_group(str(tmp_path / "theirs"), mode="w")
    below = root.create_group("below")
    numbers = np.arange(60, dtype=">i4").reshape(6, 10)
    for name, dtype in (("big", ">i4"), ("bf16", ml_dtypes.bfloat16), ("fp8", ml_dtypes.float8_e4m3fn)):
        array = below.create_array(name, shape=(6, 10), chunks=(2, 4), dtype=dtype, compressors=compressors)
        array[:4] = numbers[:4].astype(dtype)
    group = reshard.open_zarr(str(tmp_path / "theirs"))
    assert sorted(group["below"].array_keys()) == ["bf16", "big", "fp8"]
    for _, array in group["below"].arrays():
        expected = np.concatenate([numbers[:4].astype(array.dtype), np.zeros((2, 10), array.dtype)])
        assert np.array_equal(np.asarray(array[1:, 3:9]), expected[1:, 3:9])  # missing chunks are fill values


def test_what_zarr_copies_is_plain_zarr(base, tmp_path):
    url, expected = converted(base, {"w": EVERY["BF16"]})
    array = zarr.create_array(str(tmp_path / "copy"), data=reshard.open_zarr(url)["w"][...], compressors=None)
    document = json.loads((tmp_path / "copy" / "zarr.json").read_text())
    assert (document["data_type"], document["codecs"][0]["name"]) == ("bfloat16", "bytes")
    assert same(array[...], expected["w"])


def test_groups_can_be_pickled_and_tell_equal_stores(base):
    url, expected = converted(base, {"w": EVERY["BF16"]})
    group = reshard.open_zarr(url)
    again = pickle.loads(pickle.dumps(group))
    assert same(again["w"][1:2], expected["w"][1:2])
    assert again.store == group.store
    assert repr(group.store) == f"PinnedStore('{url}')"


def test_objects_that_change_are_errors(base):
    url, _ = converted(base, {"w": EVERY["BF16"]})
    array = reshard.open_zarr(url)["w"]
    put(f"{url}/w/c/0/0/0", bytes(240))
    with pytest.raises(SourceChanged):
        array[0]


@pytest.mark.parametrize("index", [np.s_[0, 0:1], np.s_[...]])
def test_chunks_that_are_lost_or_short_are_errors(base, index):
    url, _ = converted(base, {"w": EVERY["F32"], "x": EVERY["BF16"]})
    chunk = open_location(f"{url}/w/c/0/0/0")
    chunk.store.put(chunk.key, b"1234567")
    short = reshard.open_zarr(url)["w"]
    with pytest.raises((StorageError, ValueError), match=r"found 7 of 24|reshape|size"):
        short[index]
    chunk.store.delete(chunk.key)
    with pytest.raises(CatalogError, match="w/c/0/0/0: a chunk is missing"):
        reshard.open_zarr(url)["w"][index]


def test_the_store_is_read_only(base):
    url, _ = converted(base, {"w": EVERY["BF16"]})
    before = objects_at(url)
    group = reshard.open_zarr(url)
    for write in (lambda: group.create_group("new"), lambda: group["w"].__setitem__(..., 0)):
        with pytest.raises((ValueError, Unsupported), match=r"read.only|for reading only"):
            write()
    assert objects_at(url) == before


@pytest.mark.parametrize(
    ("document", "error", "problem"),
    [
        (None, CatalogError, "expected a zarr store of version 3"),
        (b"{", FormatError, "zarr.json"),
        (b'{"zarr_format": 2, "node_type": "group"}', FormatError, "zarr_format"),
        (b'{"zarr_format": 3, "node_type": "array"}', CatalogError, "a single array"),
    ],
)
def test_what_is_no_store_is_refused(base, document, error, problem):
    put(f"{base}/a/model.safetensors", b"")
    if document is not None:
        put(f"{base}/a/zarr.json", document)
    with pytest.raises(error, match=problem):
        reshard.open_zarr(f"{base}/a")


def test_documents_that_are_too_long_are_not_read(base, monkeypatch):
    put(f"{base}/zarr.json", bytes(200))
    monkeypatch.setattr(zarr_groups, "_MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(FormatError, match="expected at most 100 bytes, found 200"):
        reshard.open_zarr(base)


def test_zarr_that_is_not_installed_is_named(base, monkeypatch):
    monkeypatch.delitem(sys.modules, "reshard.loading.zarr_groups")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(UsageError, match=r"Install reshard\[zarr\]"):
        reshard.open_zarr(base)
