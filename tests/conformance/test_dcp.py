"""Checkpoints that other trainers wrote, and damaged ones: the right tensors, or an error that names what is wrong."""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest
from support.stores import new_place, objects_at, put

import reshard
from reshard.errors import ReshardError

ARCHIVE = Path(__file__).with_name("dcp") / "cases.tar.xz"
# Right answers of the corpus that are not in what was written, or may be refused: what the error must say of them.
REFUSED = {
    "hyper_new_chunks_2": ("w [6, 9]: no piece has [0:6, 8:9]",),
    "hyper_new_own_metadata_2": ("w [6, 9]: no piece has [0:6, 8:9]",),
    "odd_hf_value_in_front": ("header length",),
    "odd_dcp_zstd_1": ("w [0:50, 0:4]", "stream.zstd/1"),
}


@cache
def cases():
    """Every case's description and objects, by its name."""
    found = {}
    with tarfile.open(fileobj=BytesIO(lzma.decompress(ARCHIVE.read_bytes()))) as archive:
        for member in archive:
            if member.isfile():
                case, _, path = member.name.partition("/")
                found.setdefault(case, {})[path] = archive.extractfile(member).read()
    return {
        case: (
            json.loads(files["case.json"]),
            {path.removeprefix("in/"): data for path, data in files.items() if path.startswith("in/")},
        )
        for case, files in found.items()
    }


def tensors_of(objects):
    """Dtype, shape and hash of every tensor, read without the package."""
    found = {}
    for name, data in objects.items():
        if name.endswith(".safetensors"):
            stop = 8 + int.from_bytes(data[:8], "little")
            for tensor, entry in json.loads(data[8:stop]).items():
                if tensor != "__metadata__":
                    first, last = entry.pop("data_offsets")
                    found[tensor] = {**entry, "sha256": hashlib.sha256(data[stop + first : stop + last]).hexdigest()}
    return found


def put_case(case):
    source = f"{new_place()}/{case}"
    for name, data in cases()[case][1].items():
        put(f"{source}/{name}", data)
    return source


@pytest.mark.parametrize("case", sorted(cases()))
def test_every_case_is_right_or_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a hostile pickle executes would leave a file there
    about, source, target = cases()[case][0], put_case(case), f"{new_place()}/out"
    if about["expect"] == "refuse" or case in REFUSED:
        with pytest.raises(ReshardError) as caught:
            reshard.convert(source, target)
        assert [word for word in REFUSED.get(case, about.get("names") or ()) if word not in str(caught.value)] == []
        assert not objects_at(target)
    else:
        reshard.convert(source, target)
        assert tensors_of(objects_at(target)) == about["tensors"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("case", "note"),
    [
        ("dcp_optim_nested_3", "tensors by their first key: optim 21, model 8, tokens 1"),
        ("dcp_small_2", "1 values that are no tensors are not read: step"),
        ("dcp_stale_files_2", "objects that the metadata does not name are ignored: __"),
        ("dcp_per_rank_metadata_2", "2 documents of ranks are joined"),
        (
            "hyper_oldms_own_metadata_2",
            "ranks disagree on the size of w: their pieces are joined in the order of the ranks",
        ),
        ("hf_tp_2", "sizes of tensors are stored nowhere and are inferred"),
    ],
)
def test_what_is_left_out_or_inferred_is_in_a_note(case, note):
    catalog = reshard.inspect(put_case(case))
    assert [text for text in catalog.notes if note in text]


def test_what_is_dropped_is_not_missed():
    target = f"{new_place()}/out"
    reshard.convert(put_case("bad_dcp_hole"), target, drop="a.f64")
    right = cases()["dcp_small_2"][0]["tensors"]
    assert tensors_of(objects_at(target)) == {name: tensor for name, tensor in right.items() if name != "a.f64"}


def without(case, *lost):
    source = f"{new_place()}/{case}"
    for name, data in cases()[case][1].items():
        if name not in lost:
            put(f"{source}/{name}", data)
    return source


def test_a_file_that_no_rank_has_is_missed():
    lost = [f"shard-0000{rank}-model-00002-of-00003.safetensors" for rank in (1, 2)]
    with pytest.raises(ReshardError, match="file 2 of 3"):
        reshard.inspect(without("hf_files_2", *lost))


@pytest.mark.parametrize("shape", [(6, 7), (7, 5)])
def test_flattened_blocks_that_do_not_make_the_tensor_are_refused(shape):
    case, kept = "mcore12_flat_optimizer_4", b"nd_reformulated_orig_global_shape\x94K%cK%c\x86"
    source, metadata = put_case(case), cases()[case][1][".metadata"]
    assert metadata.count(kept % (6, 5)) == 4  # in the plans of all ranks too
    put(f"{source}/.metadata", metadata.replace(kept % (6, 5), kept % shape))
    expected = rf"exp_avg\.w: expected flattened blocks of \[{shape[0]}, {shape[1]}\], found the shape \[2, 1, 15\]"
    with pytest.raises(ReshardError, match=expected):
        reshard.inspect(source)


def test_the_metadata_of_a_rank_is_missed():
    with pytest.raises(ReshardError, match=r"expected ranks from 0 on, found __1\.metadata"):
        reshard.inspect(without("dcp_per_rank_metadata_2", "__0.metadata"))
    with pytest.raises(ReshardError, match="no piece has"):
        reshard.inspect(without("dcp_per_rank_metadata_2", "__1.metadata"))
