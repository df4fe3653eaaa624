"""What MindSpore's tools answer to bad input, often silently wrong: here an error or the right answer, each time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from oracle.cases import FOLDER, objects_below, read_content
from safetensors.numpy import load

import reshard
from reshard.errors import CatalogError, FormatError, NotFound, ReshardError, SourceError, StrategyError, UsageError
from reshard.storage import MemoryStore

ERRORS = FOLDER / "errors"
MP4 = {"src_strategy": "mp4.ckpt"}


@dataclass(frozen=True)
class Call:
    """One or more of the bad calls, by their labels in errors.json: an error, or the right answer in ``equals``."""

    labels: Sequence[str]
    src: str
    asks: Mapping[str, str]
    error: type[ReshardError] | None = None
    says: Sequence[str] = ()
    equals: str = ""


REFUSED = [
    Call(["transform, rank directory missing", "unify, rank directory missing"], "missing_rank2", MP4, CatalogError,
         ["rank 2: 12 tensors", "no shard of rank 2"]),
    Call(["unify, rank 0 missing"], "missing_rank0", MP4, CatalogError, ["rank 0: 12 tensors", "no shard of rank 0"]),
    Call(["transform, one rank lacks a parameter", "unify, one rank lacks a parameter",
          "transform process_num=2, one rank lacks a parameter (child dies)"],
         "lack_param", MP4 | {"dst_strategy": "dp2mp2.ckpt"}, CatalogError, ["rank 1: 1 tensors, lm_head.weight"]),
    Call(["transform mp4 -> dp2mp4, rank 1 lacks a parameter"],
         "lack_param", MP4 | {"dst_strategy": "dp2mp4_dst.ckpt"}, CatalogError, ["rank 1: 1 tensors, lm_head.weight"]),
    Call(["unify, rank 0 lacks a parameter"], "lack_param0", MP4, CatalogError, ["rank 0: 1 tensors, lm_head.weight"]),
    Call(["unify, one rank has a wrong shape", "transform, one rank has a wrong shape"], "bad_shape", MP4,
         StrategyError, ["lm_head.weight", "[12, 31]"]),
    Call(["unify, one rank has fewer rows"], "bad_rows", MP4, StrategyError, ["lm_head.weight", "[11, 32]"]),
    Call(["unify, rank 0 has another number of dimensions"], "bad_ndim", MP4, StrategyError,
         ["lm_head.weight", "for 2 axes, the tensor has 3: [12, 32, 1]"]),
    Call(["unify, one rank has another dtype"], "bad_dtype", MP4, CatalogError,
         ["lm_head.weight", "rank 1 has F16 [12, 32]"]),
    Call(["strategy file missing"], "shards", {"src_strategy": "nope.ckpt"}, NotFound, ["nope.ckpt"]),
    Call(["strategy file empty"], "shards", {"src_strategy": "empty.ckpt"}, SourceError, ["empty.ckpt", "is empty"]),
    Call(["strategy file not protobuf"], "shards", {"src_strategy": "junk.ckpt"}, FormatError,
         ["junk.ckpt", "Expected a MindSpore strategy file"]),
    Call(["strategy file truncated"], "shards", {"src_strategy": "half.ckpt"}, FormatError,
         ["half.ckpt", "truncated", "Expected a MindSpore strategy file"]),
    Call(["source strategy None for unify"], "shards", {}, UsageError, ["shards of 4 ranks", "--src-strategy"]),
    Call(["source directory empty", "transform, source directory empty"], "none", MP4, CatalogError, ["found nothing"]),
    Call(["unify, src_dir is a file"], "full/rank_0/full.safetensors", MP4, UsageError, ["full checkpoint"]),
    Call(["device counts do not divide (4 -> 6 made up)"], "shards", MP4 | {"dst_strategy": "made_up_six.ckpt"},
         StrategyError, ["layers.0.attention.wo.weight", "axis 1 of [32, 32] cannot be cut into 6 equal pieces"]),
    Call(["axis not divisible (mp4 on 48 rows -> 5 devices made up)"], "shards",
         MP4 | {"dst_strategy": "made_up_five.ckpt"}, StrategyError, ["lm_head.weight", "[48, 32]", "5 equal pieces"]),
    Call(["merged strategy lacks stage 0"], "pp_shards", {"src_strategy": "stage1_merged.ckpt"}, StrategyError,
         ["stage1_merged.ckpt", "stages 0..1 are expected"]),
    Call(["load_checkpoint of truncated safetensors"], "truncated.safetensors", {}, FormatError, ["end of the object"]),
    Call(["lds, two files and no param_name_map.json"], "two", {"dst_strategy": "mp4.ckpt"}, CatalogError,
         ["a.safetensors", "b.safetensors", "param_name_map.json"]),
    Call(["transform mp4 -> dp2mp4, rank 1's file truncated, process_num=2 (child dies)",
          "transform mp4 -> dp2mp4, rank 1's file truncated, process_num=1"],
         "truncated_rank1", MP4 | {"dst_strategy": "dp2mp4_dst.ckpt"}, FormatError,
         ["rank_1/net_rank_1.safetensors", "end of the object"]),
    Call(["unify, rank 1's file truncated"], "truncated_rank1", MP4, FormatError, ["rank_1/net_rank_1.safetensors"]),
    Call(["parameter name with a dash in the strategy"], "shards", {"src_strategy": "dash.ckpt"}, CatalogError,
         ["layers.0.attention.wo.weight", "4 different contents", "add their layouts"]),
]  # fmt: skip

ANSWERED = [
    # Rank 5 is missing, and rank 7 holds the same slices.
    Call(["transform pipeline 2 -> none, all present (always uses child processes)",
          "transform pipeline 2 -> none, a rank of stage 1 missing"],
         "pp_shards", {"src_strategy": "dp2mp2pp2_merged.ckpt"}, equals="pp_full"),
    Call(["transform pipeline 2 -> none with a JSON strategy"], "pp_shards", {"src_strategy": "ppjson_merged.json"},
         equals="pp_full"),
    Call(["unify with a JSON strategy", "unify with a JSON strategy, merge_with_redundancy=False"], "shards",
         {"src_strategy": "mp4json.json"}, equals="full"),
]  # fmt: skip

RANKS = {
    "lds, 1-D parameter split over two axes": "test_one_axis_cut_by_two_dimensions",
    "transform, JSON strategy with nested layout": "test_nested_layouts_in_json",
    "transform with uneven param_split_shape (manual_split)": "test_rows_cut_by_hand",
}

NOT_HERE = {
    "unify, ckpt and safetensors mixed": "reads .ckpt",
    "transform, ckpt input with safetensors output": "reads .ckpt",
    "unify of ckpt shards": "reads .ckpt",
    "load_checkpoint of truncated ckpt": "reads .ckpt",
    "load_checkpoint crc_check of a flipped bit": "reads .ckpt",
    "load_checkpoint no crc_check of a flipped bit": "reads .ckpt",
    "load ckpt saved with a zero-size tensor": "reads .ckpt",
    "unify, file_suffix without match": "an argument of the tool",
    "output_format unknown": "an argument of the tool",
    "merge_pipeline_strategys, not a directory": "an argument of the tool; one file is merged with itself here",
    "lds, no directory given": "an argument of the tool",
    "lds, no destination given": "an argument of the tool",
    "save_checkpoint safetensors with a str in append_dict": "writing a network",
    "save_checkpoint safetensors, nothing to save": "writing a network",
    "save_checkpoint safetensors crc of bfloat16": "writing a network",
    "save_checkpoint safetensors crc of int scalar -5": "writing a network",
    "load safetensors whose parameter is called 'format'": "loading into a network",
}


def test_every_bad_input_of_the_oracle_is_accounted_for():
    listed = {item["label"] for item in json.loads((ERRORS / "expected" / "errors.json").read_text())}
    ours = [label for case in (*REFUSED, *ANSWERED) for label in case.labels]
    assert sorted([*ours, *RANKS, *NOT_HERE]) == sorted(listed)
    assert set(RANKS.values()) <= globals().keys()


@pytest.fixture(scope="module")
def oracle() -> str:
    """Inputs and strategies of the oracle's bad calls, in memory."""
    store = MemoryStore("bad-oracle")
    store.clear()
    for folder in ("in", "strategy"):
        for path in sorted((ERRORS / folder).rglob("*")):
            if path.is_file():
                store.put(path.relative_to(ERRORS).as_posix(), path.read_bytes())
    return "memory://bad-oracle"


def convert(base: str, src: str, asks: Mapping[str, str], name: str) -> str:
    """Convert one of the oracle's inputs; return where to."""
    strategies = {key: f"{base}/strategy/{value}" for key, value in asks.items()}
    MemoryStore("bad-answers").clear()
    reshard.convert(f"{base}/in/{src}", f"memory://bad-answers/{name}", **strategies)
    assert reshard.verify(f"memory://bad-answers/{name}").is_ok
    return f"memory://bad-answers/{name}"


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.labels[0])
def test_refused_where_mindspore_is_wrong_or_unclear(oracle, case):
    with pytest.raises(ReshardError) as caught:
        convert(oracle, case.src, case.asks, "x")
    assert type(caught.value) is case.error
    assert not [text for text in case.says if text not in str(caught.value)], caught.value
    assert list(MemoryStore("bad-answers").list("")) == []


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: case.labels[0])
def test_answered_where_mindspore_is_wrong_or_refuses(oracle, case):
    made = objects_below(convert(oracle, case.src, case.asks, "full"))["model.safetensors"]
    (expected,) = objects_below(f"{oracle}/in/{case.equals}").values()
    assert read_content(made).tensors == read_content(expected).tensors


def shares(url: str) -> list[dict[str, np.ndarray]]:
    """What each rank holds, in the order of ranks."""
    found = {key: load(data) for key, data in objects_below(url).items() if key.startswith("rank_")}
    return [found[key] for key in sorted(found)]


def test_rows_cut_by_hand(oracle):
    """40 rows as 16, 8, 12 and 4, where the tool cuts four times 10; and back."""
    ((_, data),) = objects_below(f"{oracle}/in/man").items()
    source = load(data)["params.0.weight"]
    held = shares(convert(oracle, "man", {"dst_strategy": "manual.ckpt"}, "ranks"))
    assert [len(share["params.0.weight"]) for share in held] == [16, 8, 12, 4]
    assert np.array_equal(np.concatenate([share["params.0.weight"] for share in held]), source)
    reshard.convert(
        "memory://bad-answers/ranks", "memory://bad-answers/back", src_strategy=f"{oracle}/strategy/manual.ckpt"
    )
    assert np.array_equal(
        load(objects_below("memory://bad-answers/back")["model.safetensors"])["params.0.weight"], source
    )


def test_nested_layouts_in_json(oracle):
    """The JSON form has lost the nesting; with the tensors' shapes it is found again."""
    truth = FOLDER.parent / "strategies" / "layout222" / "ckpt" / "strategy_rank_0.ckpt"
    MemoryStore("bad-oracle").put("strategy/truth.ckpt", truth.read_bytes())
    from_json = objects_below(convert(oracle, "lay", {"dst_strategy": "layout222.json"}, "ranks"))
    from_protobuf = objects_below(convert(oracle, "lay", {"dst_strategy": "truth.ckpt"}, "ranks"))
    assert len(from_json) == 9
    assert {key: value for key, value in from_json.items() if "rank" in key} == {
        key: value for key, value in from_protobuf.items() if "rank" in key
    }


def test_one_axis_cut_by_two_dimensions(oracle):
    """The JSON form and the .ckpt tools cannot hold it; 8 ranks have an eighth each, in their order."""
    ((_, data),) = objects_below(f"{oracle}/in/one1d").items()
    source = load(data)
    held = shares(convert(oracle, "one1d", {"dst_strategy": "layout1d.ckpt"}, "ranks"))
    assert [share["params.0.weight"].shape for share in held] == [(3,)] * 8
    assert np.array_equal(np.concatenate([share["params.0.weight"] for share in held]), source["params.0.weight"])
    for rank, share in enumerate(held):
        half = slice(0, 4) if rank < 4 else slice(4, 8)
        assert np.array_equal(share["params.1.weight"], source["params.1.weight"][half])
