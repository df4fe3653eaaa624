"""All of the oracle's bad inputs, one row each: what MindSpore was called with, ours for it, and what comes of it.

Nothing passes in silence: either an error that names the tensor, rank or object, or the right answer,
which numpy computes here. What MindSpore did is in ``errors.json`` under the same label.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from oracle.cases import FOLDER, Case, memory_url, objects_below, read_content
from safetensors import deserialize
from safetensors.numpy import save
from support.checkpoints import crc_tail, header_in, owned

import reshard
from reshard.api.strategies import merge_strategies, read_strategy
from reshard.errors import (
    CatalogError,
    FormatError,
    NotFound,
    PlanError,
    ReshardError,
    SourceError,
    StrategyError,
    UsageError,
)
from reshard.formats.containers import Container
from reshard.formats.safetensors import plan_header
from reshard.planning.conversion import MANIFEST_KEY
from reshard.storage import MemoryStore
from reshard.tensor import DType, TensorSpec

ERRORS = FOLDER / "errors"
TOLD = {item["label"]: item for item in json.loads((ERRORS / "expected" / "errors.json").read_text())}
BASE, OUT = "memory://errors", "memory://errors-out"
NUMPY = {
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "I8": np.int8, "I32": np.int32, "I64": np.int64,
}  # fmt: skip

Tensors = dict[str, np.ndarray]
Ours = Callable[[], str]
"""Does what we do for a call of MindSpore; returns the URL of what it made."""


@dataclass(frozen=True)
class Refused:
    """The very class of the error, and what its message must contain."""

    error: type[ReshardError]
    says: Sequence[str]


@dataclass(frozen=True)
class Right:
    """The right answer in words, and a function that asserts it of the URL that was made."""

    answer: str
    check: Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One bad input."""

    function: str
    ours: Ours
    outcome: Refused | Right


def convert(src: str | None, dst: str | None = "x", **arguments: object) -> Ours:
    """``reshard.convert`` of one of the inputs; strategies are named by their files."""

    def ours() -> str:
        of_strategies = {"src_strategy", "dst_strategy"}
        asked = {k: f"{BASE}/strategy/{v}" if k in of_strategies else v for k, v in arguments.items()}
        made = dst and f"{OUT}/{dst}"
        reshard.convert(src and f"{BASE}/in/{src}", made, **asked)
        report = reshard.verify(made, source=BASE)
        assert report.is_ok, report.problems
        return made

    return ours


def inspect(src: str) -> Ours:
    """``reshard.inspect`` of one of the inputs, which makes nothing."""
    return lambda: reshard.inspect(f"{BASE}/in/{src}").url


def merge(strategy: str) -> Ours:
    """``reshard.api.strategies.merge_strategies``."""

    def ours() -> str:
        merge_strategies(f"{BASE}/strategy/{strategy}", f"{OUT}/merged.ckpt")
        return f"{OUT}/merged.ckpt"

    return ours


def outputs(url: str) -> dict[str, bytes]:
    """Every object that was made, but the manifest."""
    return {key: data for key, data in objects_below(url).items() if key != MANIFEST_KEY}


def load(data: bytes) -> Tensors:
    """The tensors of an object; the library's own function knows no BF16."""
    return {
        name: np.frombuffer(item["data"], NUMPY[item["dtype"]]).reshape(item["shape"])
        for name, item in deserialize(data)
    }


def one_object(url: str) -> bytes:
    """The bytes of the only object at a place."""
    (data,) = outputs(url).values()
    return data


def shares(url: str) -> list[Tensors]:
    """What each rank was given, in the order of ranks."""
    found = {int(key.split("/")[0].removeprefix("rank_")): load(data) for key, data in outputs(url).items()}
    assert sorted(found) == list(range(len(found)))
    return [found[rank] for rank in sorted(found)]


def source(name: str) -> Tensors:
    """The tensors of an input that is one object."""
    return load(one_object(f"{BASE}/in/{name}"))


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether dtype, shape and bytes are the same."""
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and found.tobytes() == expected.tobytes()


def whole(name: str) -> Right:
    """One full checkpoint of the tensors of another input."""

    def check(url: str) -> None:
        made, expected = load(one_object(url)), source(name)
        assert made.keys() == expected.keys()
        assert not [tensor for tensor in expected if not same(made[tensor], expected[tensor])]

    return Right(f"every tensor of in/{name}, whole", check)


def unchanged(name: str) -> Right:
    """The tensors of the source itself, and no checksum of somebody else."""

    def check(url: str) -> None:
        made, expected = read_content(one_object(url)), read_content(one_object(f"{BASE}/in/{name}"))
        assert made.tensors == expected.tensors
        assert "crc_num" not in made.metadata

    return Right(f"the tensors of in/{name}, to the bit", check)


def halves_of_full(url: str) -> None:
    """Two data-parallel copies of two pieces each: rank 0 and 2 hold the first, 1 and 3 the second."""
    expected, found = source("full"), shares(url)
    assert len(found) == 4
    for rank, share in enumerate(found):
        assert share.keys() == expected.keys()
        for name, piece in share.items():
            cut = [axis for axis, size in enumerate(piece.shape) if size != expected[name].shape[axis]]
            right = np.split(expected[name], 2, cut[0])[rank % 2] if cut else expected[name]
            assert same(piece, right), (rank, name)
    assert found[0]["lm_head.weight"].shape == (24, 32)


def rows_by_hand(url: str) -> None:
    """40 rows as 16, 8, 12 and 4, where the tool cuts four times 10."""
    expected = np.split(source("man")["params.0.weight"], [16, 24, 36])
    assert [len(rows) for rows in expected] == [16, 8, 12, 4]
    found = shares(url)
    assert len(found) == 4
    assert all(same(share["params.0.weight"], rows) for share, rows in zip(found, expected, strict=True))


def eighths(url: str) -> None:
    """One axis cut by two dimensions of the grid: an eighth each, in the order of ranks; and halves of another."""
    expected, found = source("one1d"), shares(url)
    pieces = np.split(expected["params.0.weight"], 8), np.repeat(np.split(expected["params.1.weight"], 2), 4, axis=0)
    assert len(found) == 8
    for rank, share in enumerate(found):
        assert same(share["params.0.weight"], pieces[0][rank])
        assert same(share["params.1.weight"], pieces[1][rank])


def nested_pieces(url: str) -> None:
    """The JSON form lost the nesting; the protobuf form still has it, and numpy cuts by that."""
    layouts = read_strategy(f"{BASE}/strategy/layout222.ckpt").stages[0]
    expected, found = source("lay"), shares(url)
    assert len(found) == 8
    for rank, share in enumerate(found):
        assert share.keys() == expected.keys()
        for name, piece in share.items():
            whole = expected[name]
            assert same(piece, owned(whole, layouts[name], rank) if name in layouts else whole), (rank, name)


def merged_with_itself(url: str) -> None:
    assert read_strategy(url) == read_strategy(f"{BASE}/strategy/mp4.ckpt")


TRANSFORM = "mindspore.transform_checkpoints"
UNIFY = "mindspore.unified_safetensors"
LOAD_DISTRIBUTED = "mindspore.load_distributed_checkpoint"
LOAD = "mindspore.load_checkpoint"
SAVE = "mindspore.save_checkpoint"
MP4 = {"src_strategy": "mp4.ckpt"}
TO_DP2MP2 = MP4 | {"dst_strategy": "dp2mp2.ckpt"}
TO_DP2MP4 = MP4 | {"dst_strategy": "dp2mp4_dst.ckpt"}

NO_RANK_2 = Refused(CatalogError, ["rank 2: 12 tensors", "no shard of rank 2"])
NO_LM_HEAD = Refused(CatalogError, ["in/lack_param", "rank 1: 1 tensors, lm_head.weight"])
WRONG_SHAPE = Refused(StrategyError, ["lm_head.weight", "[12, 31]"])
NOTHING = Refused(CatalogError, ["in/none", "found nothing"])
CUT_SHORT = Refused(FormatError, ["rank_1/net_rank_1.safetensors", "end of the object"])
HALVES = Right("the halves that numpy cuts of in/full", halves_of_full)

# Rows are read across, and are what this page is for.
ROWS = {
    # Shards that are not all there.
    "transform, rank directory missing": Row(TRANSFORM, convert("missing_rank2", **TO_DP2MP2), NO_RANK_2),
    "unify, rank directory missing": Row(UNIFY, convert("missing_rank2", **MP4), NO_RANK_2),
    "unify, rank 0 missing": Row(
        UNIFY, convert("missing_rank0", **MP4), Refused(CatalogError, ["rank 0: 12 tensors", "no shard of rank 0"])),
    "transform, one rank lacks a parameter": Row(TRANSFORM, convert("lack_param", **TO_DP2MP2), NO_LM_HEAD),
    "unify, one rank lacks a parameter": Row(UNIFY, convert("lack_param", **MP4), NO_LM_HEAD),
    "unify, rank 0 lacks a parameter": Row(
        UNIFY, convert("lack_param0", **MP4), Refused(CatalogError, ["rank 0: 1 tensors, lm_head.weight"])),
    "transform process_num=2, one rank lacks a parameter (child dies)": Row(
        TRANSFORM, convert("lack_param", **TO_DP2MP2), NO_LM_HEAD),
    "transform mp4 -> dp2mp4, rank 1 lacks a parameter": Row(
        TRANSFORM, convert("lack_param", **TO_DP2MP4), NO_LM_HEAD),
    "source directory empty": Row(UNIFY, convert("none", **MP4), NOTHING),
    "transform, source directory empty": Row(TRANSFORM, convert("none", **TO_DP2MP2), NOTHING),
    "transform pipeline 2 -> none, all present (always uses child processes)": Row(
        TRANSFORM, convert("pp_all", src_strategy="dp2mp2pp2_merged.ckpt"), whole("pp_full")),
    "transform pipeline 2 -> none, a rank of stage 1 missing": Row(  # rank 5; rank 7 holds the same slices
        TRANSFORM, convert("pp_shards", src_strategy="dp2mp2pp2_merged.ckpt"), whole("pp_full")),
    # Shards that contradict each other.
    "unify, one rank has a wrong shape": Row(UNIFY, convert("bad_shape", **MP4), WRONG_SHAPE),
    "transform, one rank has a wrong shape": Row(TRANSFORM, convert("bad_shape", **TO_DP2MP2), WRONG_SHAPE),
    "unify, one rank has fewer rows": Row(
        UNIFY, convert("bad_rows", **MP4), Refused(StrategyError, ["lm_head.weight", "[11, 32]"])),
    "unify, rank 0 has another number of dimensions": Row(
        UNIFY, convert("bad_ndim", **MP4),
        Refused(StrategyError, ["lm_head.weight", "for 2 axes, the tensor has 3: [12, 32, 1]"])),
    "unify, one rank has another dtype": Row(
        UNIFY, convert("bad_dtype", **MP4), Refused(CatalogError, ["lm_head.weight", "rank 1 has F16 [12, 32]"])),
    # Strategies.
    "strategy file missing": Row(
        UNIFY, convert("shards", src_strategy="nope.ckpt"), Refused(NotFound, ["strategy/nope.ckpt"])),
    "strategy file empty": Row(
        UNIFY, convert("shards", src_strategy="empty.ckpt"), Refused(SourceError, ["strategy/empty.ckpt", "empty"])),
    "strategy file not protobuf": Row(
        UNIFY, convert("shards", src_strategy="junk.ckpt"),
        Refused(FormatError, ["strategy/junk.ckpt", "Expected a MindSpore strategy file"])),
    "strategy file truncated": Row(
        UNIFY, convert("shards", src_strategy="half.ckpt"),
        Refused(FormatError, ["strategy/half.ckpt", "truncated", "Expected a MindSpore strategy file"])),
    "source strategy None for unify": Row(
        UNIFY, convert("shards"), Refused(UsageError, ["in/shards", "shards of 4 ranks", "`src_strategy`"])),
    "merged strategy lacks stage 0": Row(
        UNIFY, convert("pp_shards", src_strategy="stage1_merged.ckpt"),
        Refused(StrategyError, ["stage1_merged.ckpt", "expected stages 0..1: 1 are missing"])),
    "merge_pipeline_strategys, not a directory": Row(
        "mindspore.merge_pipeline_strategys", merge("mp4.ckpt"),
        Right("one file is the strategy of all its stages", merged_with_itself)),
    "parameter name with a dash in the strategy": Row(  # instead of wo.weight, which is left without a layout
        UNIFY, convert("shards", src_strategy="dash.ckpt"),
        Refused(StrategyError, ["only in the strategy: my-layer.weight",
                                "only in the shards: layers.0.attention.wo.weight"])),
    "device counts do not divide (4 -> 6 made up)": Row(  # the counts may; 32 columns over 6 devices may not
        TRANSFORM, convert("shards", **MP4, dst_strategy="made_up_six.ckpt"),
        Refused(StrategyError, ["layers.{0,1}.attention.wo.weight", "axis 1 of [32, 32]", "6 equal pieces"])),
    "axis not divisible (mp4 on 48 rows -> 5 devices made up)": Row(
        TRANSFORM, convert("shards", **MP4, dst_strategy="made_up_five.ckpt"),
        Refused(StrategyError, ["lm_head.weight", "[48, 32]", "5 equal pieces"])),
    "lds, 1-D parameter split over two axes": Row(
        LOAD_DISTRIBUTED, convert("one1d", dst_strategy="layout1d.ckpt"), Right("an eighth a rank", eighths)),
    "transform, JSON strategy with nested layout": Row(
        TRANSFORM, convert("lay", dst_strategy="layout222.json"),
        Right("the slices of the protobuf form", nested_pieces)),
    "transform with uneven param_split_shape (manual_split)": Row(
        TRANSFORM, convert("man", dst_strategy="manual.ckpt"), Right("16, 8, 12 and 4 rows", rows_by_hand)),
    "transform pipeline 2 -> none with a JSON strategy": Row(
        TRANSFORM, convert("pp_shards", src_strategy="ppjson_merged.json"), whole("pp_full")),
    "unify with a JSON strategy": Row(UNIFY, convert("shards", src_strategy="mp4json.json"), whole("full")),
    "unify with a JSON strategy, merge_with_redundancy=False": Row(
        UNIFY, convert("shards", src_strategy="mp4json.json"), whole("full")),
    # Objects that are no sound safetensors.
    "load_checkpoint of truncated safetensors": Row(
        LOAD, inspect("truncated.safetensors"), Refused(FormatError, ["truncated.safetensors", "end of the object"])),
    "transform mp4 -> dp2mp4, rank 1's file truncated, process_num=2 (child dies)": Row(
        TRANSFORM, convert("truncated_rank1", **TO_DP2MP4), CUT_SHORT),
    "transform mp4 -> dp2mp4, rank 1's file truncated, process_num=1": Row(
        TRANSFORM, convert("truncated_rank1", **TO_DP2MP4), CUT_SHORT),
    "unify, rank 1's file truncated": Row(UNIFY, convert("truncated_rank1", **MP4), CUT_SHORT),
    # Arguments.
    "unify, src_dir is a file": Row(
        UNIFY, convert("full/rank_0/full.safetensors", **MP4),
        Refused(UsageError, ["in/full", "this is a full checkpoint", "Omit `src_strategy`"])),
    "unify, file_suffix without match": Row(
        UNIFY, convert("shards", **MP4, file_suffix="9_9"), Refused(CatalogError, ["rank_3", "9_9"])),
    "output_format unknown": Row(
        TRANSFORM, convert("shards", **TO_DP2MP2, format="bin"), Refused(UsageError, ["bin", "ckpt"])),
    "lds, two files and no param_name_map.json": Row(
        LOAD_DISTRIBUTED, convert("two", dst_strategy="mp4.ckpt"),
        Refused(CatalogError, ["a.safetensors", "b.safetensors", "param_name_map.json"])),
    "lds, no directory given": Row(
        LOAD_DISTRIBUTED, convert(None, dst_strategy="mp4.ckpt"), Refused(UsageError, ["needs `src` and"])),
    "lds, no destination given": Row(
        LOAD_DISTRIBUTED, convert("full", None, dst_strategy="mp4.ckpt"), Refused(UsageError, ["needs `src` and"])),
    # Sources in .ckpt.
    "unify, ckpt and safetensors mixed": Row(
        UNIFY, convert("mixed", **MP4), Refused(CatalogError, ["rank_0", "a.ckpt", "net_rank_0.safetensors"])),
    "transform, ckpt input with safetensors output": Row(TRANSFORM, convert("ckpt_shards", **TO_DP2MP2), HALVES),
    "unify of ckpt shards": Row(UNIFY, convert("ckpt_shards", **MP4), whole("full")),
    "load_checkpoint of truncated ckpt": Row(
        LOAD, inspect("truncated.ckpt"), Refused(FormatError, ["truncated.ckpt", "byte 16978"])),
    "load_checkpoint crc_check of a flipped bit": Row(
        LOAD, convert("flipped_content.ckpt", check_crc=True),
        Refused(FormatError, ["flipped_content.ckpt", "checksum"])),
    "load_checkpoint no crc_check of a flipped bit": Row(
        LOAD, convert("flipped_length.ckpt"), Refused(FormatError, ["flipped_length.ckpt", "byte"])),
    # What MindSpore saves and loads.
    "load ckpt saved with a zero-size tensor": Row(LOAD, convert("empty_tensor"),
                                                   unchanged("empty_tensor")),
    "save_checkpoint safetensors with a str in append_dict": Row(
        SAVE, convert("texts.ckpt"), Refused(PlanError, ["note", "safetensors cannot hold"])),
    "save_checkpoint safetensors, nothing to save": Row(
        SAVE, convert("nothing"), unchanged("nothing")),
    "save_checkpoint safetensors crc of bfloat16": Row(
        SAVE, convert("bf16"), unchanged("bf16")),
    "save_checkpoint safetensors crc of int scalar -5": Row(
        SAVE, convert("scalar"), unchanged("scalar")),
    "load safetensors whose parameter is called 'format'": Row(
        LOAD, convert("format"), unchanged("format")),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _inputs() -> None:
    """Every input and strategy of the case in memory, and those of inputs that were made and thrown away."""
    store = MemoryStore(memory_url("errors").removeprefix("memory://"))
    case = Case.named("errors")
    for name in (*case.below("in"), *case.below("strategy")):
        store.put(name, case.read(name))
    for key, data in made_inputs().items():
        store.put(key, data)


def made_inputs() -> dict[str, bytes]:
    """Inputs that the oracle's folder does not hold: its calls made them in passing, or deleted them."""
    case = Case.named("errors")
    pp_shards = {name.split("/")[2]: case.read(name) for name in case.below("in/pp_shards")}
    pp_shards["rank_5"] = pp_shards["rank_7"]  # deleted for the call after this one; data parallel, so equal
    nested = FOLDER.parent / "strategies" / "layout222" / "ckpt" / "strategy_rank_0.ckpt"
    texts = FOLDER / "fmt_ckpt_all_types" / "expected" / "plain.ckpt"
    return {
        **{f"in/pp_all/{rank}/net.safetensors": data for rank, data in pp_shards.items()},
        "strategy/layout222.ckpt": nested.read_bytes(),
        "in/texts.ckpt": texts.read_bytes(),
        **flipped_ckpts(),
        "in/nothing/a.safetensors": plan_header([], {}).data,
        "in/empty_tensor/a.safetensors": save({"a": np.ones(1, np.float32), "b": np.ones((0, 3), np.float32)}),
        "in/format/a.safetensors": save({"format": np.arange(3, dtype=np.float32)}, {"format": "ms"}),
        "in/bf16/a.safetensors": with_crc(TensorSpec("w", DType.BF16, (2,)), b"\x80\x3f\x00\xc0"),
        "in/scalar/a.safetensors": with_crc(TensorSpec("n", DType.I64, ()), (-5).to_bytes(8, "little", signed=True)),
    }


def flipped_ckpts() -> dict[str, bytes]:
    """A .ckpt with its checksum and one bit flipped: in an element, which parses, and in a length, which does not."""
    data = (FOLDER / "fmt_ckpt_to_safetensors" / "in" / "a.ckpt").read_bytes()
    _, content = header_in(data, Container.CKPT).tensors[-1].boxes[0]
    checked = data + crc_tail(data)
    return {
        "in/flipped_content.ckpt": flip(checked, content),
        "in/flipped_length.ckpt": flip(checked, 1),
    }


def flip(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :]


def with_crc(spec: TensorSpec, data: bytes) -> bytes:
    """An object of one tensor, with a checksum that MindSpore cannot compute."""
    return plan_header([spec], {"format": "ms", "crc_num": "12"}).data + data


def test_every_bad_input_has_its_row():
    assert len(TOLD) == 55
    assert {label: row.function for label, row in ROWS.items()} == {
        label: item["function"] for label, item in TOLD.items()
    }


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_bad_input(row: Row):
    MemoryStore("errors-out").clear()
    if isinstance(row.outcome, Right):
        row.outcome.check(row.ours())
        return
    with pytest.raises(ReshardError) as caught:
        row.ours()
    assert type(caught.value) is row.outcome.error
    assert not [text for text in row.outcome.says if text not in str(caught.value)], str(caught.value)
    assert list(MemoryStore("errors-out").list("")) == []


def test_four_ranks_become_six_where_the_axes_divide():
    """MindSpore refuses by the counts alone."""
    layout = 'axes: {mp: 6}\nrules:\n  - {match: ["lm_head.weight"], split: [mp]}\n  - {match: "*", split: []}\n'
    MemoryStore("errors").put("strategy/six.yaml", layout.encode())
    MemoryStore("errors-out").clear()
    found = shares(convert("shards", **MP4, dst_layout=f"{BASE}/strategy/six.yaml")())
    expected = source("full")
    assert len(found) == 6
    for rank, share in enumerate(found):
        assert same(share["lm_head.weight"], np.split(expected["lm_head.weight"], 6)[rank])
        assert all(same(piece, expected[name]) for name, piece in share.items() if name != "lm_head.weight")


def test_rows_cut_by_hand_and_put_together_again():
    MemoryStore("errors-out").clear()
    ranks = convert("man", "ranks", dst_strategy="manual.ckpt")()
    reshard.convert(ranks, f"{OUT}/back", src_strategy=f"{BASE}/strategy/manual.ckpt")
    assert same(load(one_object(f"{OUT}/back"))["params.0.weight"], source("man")["params.0.weight"])


def test_slices_that_no_rank_holds_any_more():
    """Without rank 5, rank 7 helps; without both, MindSpore writes half of the model."""
    store = MemoryStore("errors")
    for key, data in outputs(f"{BASE}/in/pp_shards").items():
        if not key.startswith("rank_7/"):
            store.put(f"in/pp_lost/{key}", data)
    with pytest.raises(CatalogError, match=r"rank 5, 7: 18 tensors, .*no shard of rank 5, 7"):
        convert("pp_lost", src_strategy="dp2mp2pp2_merged.ckpt")()


def test_tensors_of_the_target_strategy_that_are_not_there_are_told():
    """MindSpore leaves them out without a word."""
    made = reshard.plan(f"{BASE}/in/two/a.safetensors", f"{OUT}/x", dst_strategy=f"{BASE}/strategy/mp4.ckpt")
    (note,) = [note for note in made.notes if "not in the source" in note]
    assert "of the target strategy" in note


def test_messages_of_rows_name_what_is_wrong():
    """A row that asks for no words would accept any message."""
    refused: Mapping[str, Refused] = {k: row.outcome for k, row in ROWS.items() if isinstance(row.outcome, Refused)}
    assert not [label for label, outcome in refused.items() if not outcome.says]
