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
    "mcore12_flat_optimizer_4": ("optimizer.state.exp_avg.w", "flattened blocks"),
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
