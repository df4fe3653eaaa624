"""Iterations of MindSpore Transformers 2.1, as it wrote them: as a source, as a target, and to other layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import decode

import reshard
from reshard.errors import CatalogError, UsageError
from reshard.formats.mindspore.iteration_metadata import parse_metadata
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf

CASE = Path(__file__).parents[1] / "conformance" / "mindformers" / "ckpt2_dp2tp2_noredund"
SAVED = CASE / "mf" / "checkpoint"
FOLDER = "iteration_00000007"


def tensors(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in folder.glob("*.safetensors"):
        found |= decode(path.read_bytes())[0]
    return found


@pytest.fixture
def strategy(tmp_path):
    """That of training, which the iteration itself tells."""
    made = parse_metadata((SAVED / FOLDER / "metadata.json").read_bytes(), "metadata.json").strategy()
    path = tmp_path / "strategy.ckpt"
    path.write_bytes(encode_protobuf(from_strategy(made)))
    return str(path)


@pytest.mark.parametrize("at", [SAVED, SAVED / FOLDER], ids=["tracker", "folder"])
def test_to_a_full_checkpoint(at, tmp_path):
    manifest = reshard.convert(str(at), str(tmp_path / "full"))
    assert tensors(tmp_path / "full") == tensors(CASE / "full")
    assert any("global_step 7" in note for note in manifest.conversion.notes)
    assert reshard.verify(str(tmp_path / "full")).is_ok


def test_to_other_ranks(tmp_path):
    """As its own loader gives them to a job of four tensor-parallel ranks."""
    numbers = {"family": "qwen3", "naming": "mcore", "parallel": "mp=4"}
    reshard.convert(str(SAVED), str(tmp_path / "ranks"), **numbers)
    for rank in range(4):
        expected = decode((CASE / "resharded" / "tp4" / f"rank_{rank}.safetensors").read_bytes())[0]
        assert tensors(tmp_path / "ranks" / f"rank_{rank}") == expected


@pytest.mark.parametrize("source", ["full", "iteration"])
def test_written_as_it_was(source, strategy, tmp_path):
    """From the full checkpoint, and from the iteration itself: the same objects, the same documents."""
    src = CASE / "full" if source == "full" else SAVED
    options = {"dst_strategy": strategy, "form": "iteration", "prefix": "CKP", "remove_redundancy": True}
    reshard.convert(str(src), str(tmp_path / "out"), **options, **({"iteration": 7} if source == "full" else {}))
    names = {path.name for path in (SAVED / FOLDER).iterdir()}
    assert {path.name for path in (tmp_path / "out" / FOLDER).iterdir()} == names
    for name in names:
        ours, theirs = ((place / FOLDER / name).read_bytes() for place in (tmp_path / "out", SAVED))
        if name.endswith(".safetensors"):
            assert decode(ours) == decode(theirs)
        elif name == "metadata.json" or source == "iteration":
            assert without_layouts(json.loads(ours)) == without_layouts(json.loads(theirs))
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "7"
    assert reshard.verify(str(tmp_path / "out")).is_ok


def without_layouts(document):
    """A strategy file leaves out dimensions of size 1 and has no names for the others: that is the same layout."""
    for described in document.get("state_dict_metadata", {}).values():
        if described["layout"]:
            described["layout"] = described["layout"]["rank_list"]
    return document


def test_what_is_missing_is_named(tmp_path):
    for path in (SAVED / FOLDER).iterdir():
        if "0000001-" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CatalogError, match=r"contradict metadata\.json") as caught:
        reshard.convert(str(tmp_path), str(tmp_path.parent / "full"))
    assert all("is in none of CKP-model-0000001-" in problem for problem in caught.value.problems)


def test_an_iteration_needs_no_strategy(strategy, tmp_path):
    with pytest.raises(UsageError, match="carries its own layouts"):
        reshard.convert(str(SAVED), str(tmp_path / "full"), src_strategy=strategy)


def test_iterations_without_a_tracker(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for path in (SAVED / FOLDER).iterdir():
        (tmp_path / FOLDER / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CatalogError, match=r"expected latest_checkpointed_iteration\.txt"):
        reshard.plan(str(tmp_path), str(tmp_path.parent / "full"))
