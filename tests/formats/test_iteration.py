"""MindSpore Transformers' iteration folders: names, tracker and common.json."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.mindspore.iteration import (
    COMMON_KEYS,
    ObjectName,
    encode_common,
    encode_tracker,
    iteration_name,
    parse_common,
    parse_iteration_name,
    parse_object_name,
    parse_tracker,
)

CASES = Path(__file__).parent.parent / "conformance" / "mindformers"
NAMES = ["ckpt2_dp2tp2", "ckpt2_dp2tp2_noredund", "ckpt2_dp2tp2_opt"]


def case(name, item="metadata.json"):
    path = CASES / name / "mf" / "checkpoint" / "iteration_00000007" / item
    if not path.is_file():
        pytest.skip(f"no case {name}")
    return path.read_bytes()


# --- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model-0000000-0000004.safetensors", ObjectName("model", 0, 4)),
        ("opt-0000003-0000004.safetensors", ObjectName("opt", 3, 4)),
        ("CKP-opt-0000003-0000004.safetensors", ObjectName("opt", 3, 4, "CKP")),
        ("a-model-b-model-0000001-0000002.safetensors", ObjectName("model", 1, 2, "a-model-b")),
        ("model-10000000-10000001.safetensors", ObjectName("model", 10**7, 10**7 + 1)),
    ],
)
def test_object_names(text, name):
    assert parse_object_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model-0000004-0000004.safetensors",
        "model-0000000-0000000.safetensors",
        "model-000000-0000004.safetensors",
        "model-00000000-0000004.safetensors",
        "model-0000000-0000004.safetensors.tmp",
        "model-0000000-0000004.ckpt",
        "-model-0000000-0000004.safetensors",
        "a/model-0000000-0000004.safetensors",
        "a/-model-0000000-0000004.safetensors",
        "../b-model-0000000-0000004.safetensors",
        "s3:-model-0000000-0000004.safetensors",
        "a\n-model-0000000-0000004.safetensors",
        "xmodel-0000000-0000004.safetensors",
        "model-" + "\u0660" * 7 + "-0000004.safetensors",
        "model-00001-of-00002.safetensors",
    ],
)
def test_other_names_are_none(text):
    assert parse_object_name(text) is None


@pytest.mark.parametrize(
    "fields",
    [("model", 4, 4, ""), ("model", -1, 4, ""), ("other", 0, 1, ""), ("opt", 0, 1, "a/b"), ("opt", 0, 1, "\0")],
)
def test_names_that_are_not_made(fields):
    with pytest.raises(FormatError, match="not an object name"):
        ObjectName(*fields)


def test_iteration_names():
    assert [iteration_name(n) for n in (0, 7, 10**8)] == [
        "iteration_00000000",
        "iteration_00000007",
        "iteration_100000000",
    ]
    for name in [
        "iteration_7",
        "iteration_000000007",
        "iter_00000007",
        "iteration_00000007/",
        "iteration_0000000a",
        "",
    ]:
        assert parse_iteration_name(name) is None
    with pytest.raises(FormatError):
        iteration_name(-1)


@given(st.integers(0, 10**18 - 1))
def test_iterations_come_back(iteration):
    assert parse_iteration_name(iteration_name(iteration)) == iteration
    assert parse_tracker(encode_tracker(iteration), "t") == iteration


@pytest.mark.parametrize("data", [b"7", b"7\n", b"  7\r\n", b"\t7 "])
def test_trackers(data):
    assert parse_tracker(data, "t") == 7


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"release",
        b"-1",
        b"+7",
        b"07",
        b"7.0",
        b"7 8",
        b"1_0",
        b"\xef\xbb\xbf7",
        "\u0667".encode(),
        b"9" * 300,
    ],
)
def test_trackers_that_name_no_iteration(data):
    with pytest.raises(FormatError, match=r"^t: no iteration: expected one integer") as error:
        parse_tracker(data, "t")
    assert len(str(error.value)) < 400


def test_tracker_of_the_case():
    path = CASES / NAMES[0] / "mf" / "checkpoint" / "latest_checkpointed_iteration.txt"
    if not path.is_file():
        pytest.skip("no case")
    assert path.read_bytes() == encode_tracker(parse_tracker(path.read_bytes(), path.name))


# --- common.json


@pytest.mark.parametrize("name", NAMES)
def test_common_of_the_cases_is_written_to_the_byte(name):
    data = case(name, "common.json")
    values = parse_common(data, "common.json")
    assert tuple(values) == COMMON_KEYS
    assert (values["global_step"], values["loss_scale"]) == (7, None)
    assert encode_common(values) == data


def test_common_keeps_what_it_does_not_know():
    values = parse_common(b'{"loss_scale": 1.5, "run": "a", "healthy": true}', "c")
    assert values == dict.fromkeys(COMMON_KEYS) | {"loss_scale": 1.5, "run": "a", "healthy": True}
    assert parse_common(encode_common(values), "c") == values


def test_common_lists_every_problem():
    data = b'{"step_num": -1, "epoch_num": 1.5, "loss_scale": "x", "global_step": true, "a": [], "b": {}}'
    with pytest.raises(FormatError, match=r"^c: unusable values") as error:
        parse_common(data, "c")
    assert len(error.value.problems) == 6


@pytest.mark.parametrize("values", [{"loss_scale": float("nan")}, {"step_num": "7"}, {"a": "\ud800"}, {"\ud800": 1}])
def test_common_that_is_not_written(values):
    with pytest.raises(FormatError):
        encode_common(values)
