"""``reshard cat``: one tensor of a checkpoint, shown or saved."""

import io

import ml_dtypes
import numpy as np
import pytest
from cli.runner import ok, run
from support.stores import new_place, put_model

from reshard.storage import open_location, read_object

MODEL = {
    "weight": np.arange(12, dtype=np.float32).reshape(4, 3).astype(ml_dtypes.bfloat16),
    "ids": np.array([3, -7, 2**60], np.int64),
    "odd": np.array([1.5, np.nan, -np.inf], np.float32),
    "odd[0]": np.array(4, np.int32),
    "none": np.empty((0, 2), np.float32),
}


@pytest.fixture
def model():
    return put_model(f"{new_place()}/model.safetensors", MODEL)


def test_a_tensor_is_shown_with_what_its_values_are_like(model):
    assert ok("cat", model, "weight").out.splitlines() == [
        "tensor     weight",
        "dtype      BF16",
        "shape      [4, 3], 24 B",
        "min        0.0",
        "max        11.0",
        "mean       5.5",
        "nan        0",
        "[[ 0.  1.  2.]",
        " [ 3.  4.  5.]",
        " [ 6.  7.  8.]",
        " [ 9. 10. 11.]]",
    ]


@pytest.mark.parametrize(
    ("wanted", "shape", "values"),
    [
        ("weight[1:3, :]", [2, 3], [[3, 4, 5], [6, 7, 8]]),
        ("weight[-1]", [3], [9, 10, 11]),
        ("weight[..., 2]", [4], [2, 5, 8, 11]),
        ("ids", [3], [3, -7, 2**60]),
        ("odd", [3], [1.5, "nan", "-inf"]),
        ("odd[0]", [], 4),
        ("none", [0, 2], []),
    ],
)
def test_pieces_are_indexed_as_numpy_does(model, wanted, shape, values):
    found = ok("cat", model, wanted, "--output", "json").json
    assert (found["shape"], found["values"]) == (shape, values)


def test_numbers_are_told_apart_from_what_is_none(model):
    odd = ok("cat", model, "odd", "--output", "json").json
    assert (odd["min"], odd["max"], odd["mean"], odd["nan"]) == ("-inf", 1.5, "-inf", 1)
    ids = ok("cat", model, "ids", "--output", "json").json
    assert (ids["min"], ids["max"]) == (-7, 2**60)
    assert ok("cat", model, "none", "--output", "json").json["mean"] is None


def test_values_are_saved_as_numpy_does(model):
    out = f"{new_place()}/weight.npy"
    ok("cat", model, "weight[:2]", "-o", out)
    saved = np.load(io.BytesIO(read_object(open_location(out))))
    assert saved.dtype == np.float32
    assert np.array_equal(saved, MODEL["weight"][:2].astype(np.float32))
    assert run("cat", model, "weight", "--out", out).code == 4
    ok("cat", model, "ids", "--out", out, "--overwrite")


def test_shards_without_a_strategy_have_names_of_their_own(memory):
    ok("convert", memory.full, memory.at("ranks"), "--dst-strategy", memory.strategy)
    memory.delete("ranks/reshard-manifest.json")
    name = ok("inspect", memory.at("ranks"), "--output", "json").json["tensors"][0]["name"]
    assert name.startswith("rank_0/")
    assert name in ok("cat", memory.at("ranks"), name).out


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("wieght", "has no tensor 'wieght'"),
        ("wieght", "Did you mean weight?"),
        ("weight[4]", "index 4 is outside axis 0"),
        ("weight[0, 1, 2]", "3 indices"),
        ("weight[x]", "the index cannot be read"),
        ("weight[]", "the index cannot be read"),
    ],
)
def test_what_is_not_there_is_an_error(model, wanted, problem):
    done = run("cat", model, wanted)
    assert done.code == 2
    assert problem in done.err
