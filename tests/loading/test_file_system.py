"""A target as files: the objects that a conversion would write, byte for byte, read when they are read."""

import pickle
import tomllib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading.carried_out import conversions, objects_at
from safetensors.numpy import load as load_safetensors
from support.stores import new_place, put, put_model

import reshard
from reshard.api.file_system import ReshardFileSystem
from reshard.errors import NotFound, SourceChanged, Unsupported, UsageError
from reshard.loading import files
from reshard.loading.reading import BoxReader
from reshard.planning.plan_json import encode_plan
from reshard.storage import open_location

LAYOUT = b"""
axes: {mp: 2}
rules:
  - {match: wide, split: [null, mp]}
  - {match: "*", split: []}
"""
MODEL = {"wide": np.arange(2400, dtype=np.float32).reshape(12, 200), "norm": np.arange(12, dtype=np.float16)}


@pytest.fixture
def base():
    base = new_place()
    put_model(f"{base}/hf", MODEL, {"model_type": "unknown"})
    put(f"{base}/l.yaml", LAYOUT)
    return base


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)


def written(base, **options):
    reshard.convert(f"{base}/hf", f"{base}/out", **options)
    return objects_at(open_location(f"{base}/out"))


@settings(max_examples=8)
@given(conversions(), st.data())
def test_files_have_the_bytes_that_a_conversion_writes(carried_out, data):
    plan, expected = carried_out
    virtual = reshard.filesystem(plan=plan, concurrency=2)
    assert virtual.find("", detail=False) == sorted(expected)
    for key, body in expected.items():
        assert virtual.size(key) == len(body)
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(body))] * 2)))
        assert virtual.cat_file(key, first, last) == body[first:last]
        assert virtual.cat_file(key) == body


@pytest.mark.parametrize(
    "options",
    [
        {"dst_layout": "l.yaml"},
        {"dst_layout": "l.yaml", "format": "ckpt", "prefix": "net-", "ranks": "1"},
        {"part_size": "3KB", "dtype": "bf16"},
        {"form": "zarr", "part_size": "1KB"},
        {"form": "mindspore"},
        {"dst_layout": "l.yaml", "form": "iteration", "iteration": 5},
        {"dst_layout": "l.yaml", "form": "dcp"},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_kind_of_target_is_there(base, small_blocks, options):
    options = options | ({"dst_layout": f"{base}/l.yaml"} if "dst_layout" in options else {})
    expected = written(base, **options)
    virtual = reshard.filesystem(f"{base}/hf", cache=2000, **options)
    assert virtual.find("", detail=False) == sorted(expected)
    assert {key: virtual.cat_file(key) for key in expected} == expected


def test_files_are_opened_listed_and_copied(base, small_blocks, tmp_path):
    expected = written(base, dst_layout=f"{base}/l.yaml")
    virtual = reshard.filesystem(f"{base}/hf", dst_layout=f"{base}/l.yaml")
    assert virtual.ls("", detail=False) == ["rank_0", "rank_1"]
    key = "rank_1/checkpoint_1.safetensors"
    assert virtual.ls("rank_1") == [{"name": key, "size": len(expected[key]), "type": "file"}]
    with virtual.open(key) as file:
        assert np.array_equal(load_safetensors(file.read())["wide"], MODEL["wide"][:, 100:])
        file.seek(-10, 2)
        assert file.read() == expected[key][-10:]
    virtual.get(key, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == expected[key]
    assert pickle.loads(pickle.dumps(virtual)).cat_file(key) == expected[key]


def test_urls_open_by_the_entry_point(base, monkeypatch):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    place = project["entry-points"]["fsspec.specs"]["reshard"].replace(":", ".")
    fsspec.register_implementation("reshard", place, clobber=True)
    plan = reshard.plan(f"{base}/hf", f"{base}/out", dst_layout=f"{base}/l.yaml")
    put(f"{base}/plan.json", encode_plan(plan))
    expected = written(base, dst_layout=f"{base}/l.yaml")["rank_0/checkpoint_0.safetensors"]
    with fsspec.open("reshard://rank_0/checkpoint_0.safetensors", plan=f"{base}/plan.json") as file:
        assert file.read() == expected


def test_blocks_are_kept_within_a_bound(base, small_blocks, monkeypatch):
    asked = []
    read = BoxReader.read
    monkeypatch.setattr(
        BoxReader, "read", lambda self, boxes, allocate: asked.append(len(boxes)) or read(self, boxes, allocate)
    )
    key = "rank_0/checkpoint_0.safetensors"
    virtual = reshard.filesystem(f"{base}/hf", dst_layout=f"{base}/l.yaml", cache=2000)
    first = virtual.cat_file(key, 1000, 2000)
    assert virtual.cat_file(key, 1000, 2000) == first
    assert len(asked) == 1
    virtual.cat_file(key, 2000, 4000)  # takes the room
    virtual.cat_file(key, 1000, 2000)
    assert len(asked) == 3


def test_what_is_not_there_or_cannot_be_written(base):
    virtual = reshard.filesystem(f"{base}/hf", dst_layout=f"{base}/l.yaml")
    for read in (virtual.cat_file, virtual.info, virtual.open, virtual.ls):
        with pytest.raises(NotFound, match="rank_7/a: the target has no such object"):
            read("rank_7/a")
    with pytest.raises(FileNotFoundError):
        virtual.cat_file("rank_7/a")
    with pytest.raises(IsADirectoryError):
        virtual.open("rank_0")
    with pytest.raises(Unsupported, match="read-only"):
        virtual.open("rank_0/new", "wb")
    with pytest.raises(UsageError, match="either"):
        ReshardFileSystem()


def test_a_source_that_changes_is_an_error(base):
    virtual = reshard.filesystem(f"{base}/hf", dst_layout=f"{base}/l.yaml")
    put_model(f"{base}/hf", {**MODEL, "norm": MODEL["norm"] + 1})
    with pytest.raises(SourceChanged):
        virtual.cat_file("rank_0/checkpoint_0.safetensors")
