"""Situations in which tensors or numbers could vanish without a word: each is told, or right."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import reshard
from reshard.errors import CatalogError, FormatError, TargetExists
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.tensor import Layout, Strategy

TENSORS = {name: np.arange(8, dtype=np.float32) + i for i, name in enumerate(("a.w", "b.w", "c.w", "d.w"))}
WHOLE = Strategy(2, (dict.fromkeys(TENSORS, Layout((2,), ((),))),))


@pytest.fixture
def place(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "s.ckpt").write_bytes(encode_protobuf(from_strategy(WHOLE)))
    return tmp_path


@pytest.mark.parametrize("container", ["safetensors", "ckpt"])
def test_a_rank_that_was_the_only_holder(place, container):
    """Without redundancy a rank's object may be the only one that has a tensor: its loss is no note."""
    strategy, ranks = str(place / "s.ckpt"), place / "ranks"
    reshard.convert(
        str(place / "model.safetensors"), str(ranks), dst_strategy=strategy, remove_redundancy=True, format=container
    )
    (ranks / "rank_1" / f"checkpoint_1.{container}").unlink()
    with pytest.raises(CatalogError, match="no shard holds these parts") as caught:
        reshard.convert(str(ranks), str(place / "full"), src_strategy=strategy)
    assert "b.w" in caught.value.problems[0]
    assert "no shard of rank 1" in caught.value.problems[0]


def test_a_half_iteration_without_metadata(place):
    folder = place / "iteration_00000001"
    folder.mkdir()
    save_file(TENSORS, folder / "model-0000000-0000002.safetensors")
    with pytest.raises(CatalogError, match="objects are missing") as caught:
        reshard.convert(str(folder), str(place / "full"))
    assert caught.value.problems == ("model-0000001-0000002.safetensors",)


def written(place, name="it", **options):
    target = place / name
    chosen = {"dst_strategy": str(place / "s.ckpt"), "form": "iteration", "iteration": 5} | options
    reshard.convert(str(place / "model.safetensors"), str(target), **chosen)
    return target


def test_an_object_that_the_metadata_does_not_know(place):
    folder = written(place) / "iteration_00000005"
    save_file({"more": np.zeros(3)}, folder / "opt-0000000-0000001.safetensors")
    with pytest.raises(CatalogError, match=r"metadata\.json does not name") as caught:
        reshard.convert(str(folder), str(place / "full"))
    assert caught.value.problems == ("opt-0000000-0000001.safetensors",)


def test_two_shards_in_one_object(place):
    rows = Strategy(2, (dict.fromkeys(TENSORS, Layout((2,), ((0,),))),))
    (place / "s.ckpt").write_bytes(encode_protobuf(from_strategy(rows)))
    path = written(place) / "iteration_00000005" / "metadata.json"
    document = json.loads(path.read_text())
    document["storage_data"]["('a.w', (1,))"] = document["storage_data"]["('a.w', (0,))"]
    path.write_text(json.dumps(document))
    with pytest.raises((CatalogError, FormatError)):
        reshard.convert(str(path.parent), str(place / "full"))


def test_nothing_is_written_beside_an_iteration(place):
    """Readers look for the tracker first: they would find the old model."""
    target = written(place)
    (target / "reshard-manifest.json").unlink()
    with pytest.raises(TargetExists, match="another checkpoint's objects"):
        reshard.convert(str(place / "model.safetensors"), str(target), overwrite=True)


def test_iterations_stand_side_by_side(place):
    target = written(place)
    written(place, iteration=6, overwrite=True)
    folders = {path.name for path in target.iterdir() if path.is_dir()}
    assert folders == {"iteration_00000005", "iteration_00000006"}
    assert (target / "latest_checkpointed_iteration.txt").read_text() == "6"
    assert reshard.inspect(str(target / "iteration_00000005")).nbytes == reshard.inspect(str(target)).nbytes


def test_a_counter_under_another_name(place):
    (place / "ms").mkdir()
    save_file(TENSORS, place / "ms" / "part0.safetensors")
    save_file({"step": np.array(77)}, place / "ms" / "hyper_param.safetensors")
    (place / "ms" / "param_name_map.json").write_text(json.dumps(dict.fromkeys(TENSORS, "part0.safetensors")))
    options = {"dst_strategy": str(place / "s.ckpt"), "form": "iteration", "rename": ["step=global_step"]}
    reshard.convert(str(place / "ms"), str(place / "it"), **options)
    common = json.loads((place / "it" / "iteration_00000077" / "common.json").read_text())
    assert common["global_step"] == 77
    manifest = reshard.convert(str(place / "it"), str(place / "full"))
    assert any("global_step 77" in note and "not written" in note for note in manifest.conversion.notes)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, -1.0])
def test_a_training_state_that_does_not_count(place, value):
    (place / "ms").mkdir()
    save_file(TENSORS, place / "ms" / "part0.safetensors")
    save_file({"global_step": np.array(value, np.float32)}, place / "ms" / "hyper_param.safetensors")
    (place / "ms" / "param_name_map.json").write_text(json.dumps(dict.fromkeys(TENSORS, "part0.safetensors")))
    options = {"dst_strategy": str(place / "s.ckpt"), "form": "iteration", "iteration": 1}
    with pytest.raises(CatalogError, match="training state cannot be used") as caught:
        reshard.plan(str(place / "ms"), str(place / "it"), **options)
    assert "global_step" in caught.value.problems[0]


def test_an_adapter_in_the_target_is_not_removed(place):
    base, target = place / "model.safetensors", place / "t"
    save_file({"q.weight": np.ones((4, 4), np.float32)}, base)
    low = {"q.lora_A.weight": np.ones((2, 4), np.float32), "q.lora_B.weight": np.ones((4, 2), np.float32)}
    save_file(low, place / "low.safetensors")
    reshard.convert(str(place / "low.safetensors"), str(target), prefix="adapter")
    adapter = target / "rank_0" / "adapter0.safetensors"
    with pytest.raises(TargetExists, match="they are the source"):
        reshard.convert(str(base), str(target), lora=str(adapter), lora_scaling=1.0, overwrite=True, form="mindspore")
    assert adapter.exists()
