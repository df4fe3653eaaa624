"""``reshard family check``: what it says of a family file, with lines."""

import numpy as np
import pytest
from cli.runner import ok, run
from models.test_own_family import MINE, model
from support.model_cases import read_config, read_tensors
from support.stores import new_place, put, put_model

from reshard.api.families import check_family
from reshard.errors import UsageError
from reshard.models.family_coverage import FamilyFile
from reshard.models.family_file import family_names, load_family, read_text

SIZES = "num_hidden_layers=2,hidden_size=4,intermediate_size=6"


@pytest.fixture
def mine():
    return put(f"{new_place()}/mine.yaml", MINE.encode())


def test_what_the_rows_expect_of_a_model(mine):
    told = ok("family", "check", mine, SIZES).out
    assert "covered    7 of 7 tensors" in told
    assert "back       every tensor that is not dropped returns" in told
    assert "open       line 13: option joined: false, the default; no name reveals it here" in told
    assert [line.split()[:3] for line in told.splitlines()[-3:]] == [
        ["18", "4", "net.{i}.gate.weight,"],
        ["22", "2", "net.{i}.down.weight"],
        ["23", "1", "norm.weight"],
    ]


def test_a_checkpoint_with_other_tensors(mine):
    tensors = {**model(), "strange.weight": np.ones(3, np.float32), "net.0.down.weight": np.ones((4, 5), np.float32)}
    del tensors["norm.weight"]
    url = put_model(f"{new_place()}/model.safetensors", tensors)
    done = run("family", "check", mine, SIZES, url)
    assert done.code == 4
    assert "covered    6 of 7 tensors" in done.out
    assert "back       not tried: see the errors" in done.out
    assert "norm.weight: missing; needed for ln.weight (line 23)" in done.err
    assert "net.0.down.weight: shape 4x5, expected 4x6 = [h f] (line 22)" in done.err
    assert "strange.weight: unmapped, shape 3; no row has this name" in done.err


def test_what_does_not_come_back_is_an_error(mine):
    """A tensor that a drop leaves out is told; one in a dtype that the rules fix comes back in another."""
    text = MINE.replace("layouts:\n", '    drops:\n      - {hf: ["*.inv_freq"], why: "computed"}\nlayouts:\n')
    url = put(f"{new_place()}/mine.yaml", text.encode())
    tensors = {**model(), "rope.inv_freq": np.ones(2, np.float32), "norm.weight": np.ones(4, np.float16)}
    found = check_family(url, SIZES, put_model(f"{new_place()}/model.safetensors", tensors))
    assert found.dropped == (("rope.inv_freq", "computed"),)
    assert found.changed == ()
    mixed = tensors | {"net.0.gate.weight": np.ones((6, 4), np.float16)}
    url = put_model(f"{new_place()}/model.safetensors", mixed)
    found = check_family(mine, SIZES, url, options={"joined": True})
    assert found.problems == ("rope.inv_freq: unmapped, shape 2; no row has this name",)
    del mixed["rope.inv_freq"]
    url = put_model(f"{new_place()}/model.safetensors", mixed)
    done = run("family", "check", mine, SIZES, url, "--option", "joined=true")
    assert done.code == 4
    assert "net.0.gate.weight: F16 [6, 4] comes back as F32 [6, 4] (there and back)" in done.err


def test_parallel_rules_that_are_missing_are_told(mine):
    url = put(
        f"{new_place()}/mine.yaml", MINE.replace("      - {names: [ln.weight]", "      - {names: [xn.weight]").encode()
    )
    (told,) = [text for line, text in check_family(url, SIZES).open if "parallel" in text]
    assert told == "ln.weight: no parallel rule of the naming legacy has this name"


def test_a_file_that_is_wrong_and_a_naming_that_is_not_there(mine):
    wrong = put(f"{new_place()}/mine.yaml", MINE.replace("{to: layers,", "{to: layer,").encode())
    done = run("family", "check", wrong, SIZES)
    assert (done.code, "index i: layer is not declared" in done.err) == (3, True)
    with pytest.raises(UsageError, match="legacy"):
        check_family(mine, SIZES, naming="mcore")
    with pytest.raises(UsageError, match="hidden_size"):
        check_family(mine, "num_hidden_layers=2,intermediate_size=6", options={"joined": True})


def test_as_json(mine):
    found = ok("family", "check", mine, SIZES, "--output", "json").json
    assert (found["tensor_count"], found["rows"][0]["line"], found["problems"]) == (7, 18, [])


@pytest.mark.parametrize("name", family_names())
def test_every_row_of_the_package_has_a_line(name):
    """The line has the end of the row's name."""
    file = FamilyFile(name, load_family(name), read_text(name))
    lines = file.text.splitlines()
    for naming in file.family.namings:
        for row in naming.rows:
            pattern = str(row.hf[0].tensors[0].name)
            line = file.line_of(pattern, naming.name)
            assert line, pattern
            assert pattern.removesuffix(".bias").removesuffix(".weight")[-3:] in lines[line - 1]


def test_a_checkpoint_of_the_real_converter_goes_there_and_back():
    case = "f210_telechat3moe_mcore_bf16"
    url = put_model(f"{new_place()}/model.safetensors", read_tensors(case))
    found = check_family("telechat3_moe", read_config(case), url)
    assert (found.problems, found.changed, found.direction) == ((), (), "to_ms")
    assert found.covered_count == found.tensor_count - len(found.dropped) > 60
