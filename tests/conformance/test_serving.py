"""Ranks of networks that serve a model, as vLLM wrote them and as MindSpore Transformers' networks loaded them."""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest
from support.stores import new_place, put, stored

import reshard
from reshard.errors import CatalogError, PlanError
from reshard.models.serving_rules import served_families
from reshard.storage import open_location

FOLDER = Path(__file__).with_name("serving")
FAMILIES = {"qwen2": "qwen2_5"}


@cache
def cases(archive):
    """Every case's description and objects, by its name."""
    found = {}
    with tarfile.open(fileobj=BytesIO(lzma.decompress((FOLDER / archive).read_bytes()))) as members:
        for member in members:
            case, _, path = member.name.partition("/")
            found.setdefault(case, {})[path] = members.extractfile(member).read()
    return {case: (json.loads(files.pop("case.json")), files) for case, files in found.items()}


def tensors_of(data):
    """Dtype, shape and hash of every tensor, read without the package."""
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    header.pop("__metadata__", None)
    found = {}
    for tensor, entry in header.items():
        first, last = (stop + at for at in entry["data_offsets"])
        found[tensor] = [entry["dtype"], entry["shape"], hashlib.sha256(data[first:last]).hexdigest()]
    return found


def put_case(files, side):
    source = f"{new_place()}/model"
    for name, data in files.items():
        if name.startswith(f"{side}/"):
            put(f"{source}/{name.removeprefix(f'{side}/')}", data)
    return source


def served(source, **options):
    target = f"{new_place()}/served"
    reshard.convert(source, target, **options)
    found = stored(open_location(target))
    return {name: tensors_of(data) for name, data in found.items() if name.endswith(".safetensors")}, found


@pytest.mark.parametrize("case", sorted(cases("vllm.tar.xz")))
def test_ranks_are_those_that_vllm_writes(case):
    about, files = cases("vllm.tar.xz")[case]
    source = put_case(files, "full")
    for tp, want in about["want"].items():
        serve = f"tp={tp},ep={tp}" if about["expert_parallel"] else f"tp={tp}"
        found, objects = served(source, serve=serve, form="vllm")
        assert found == want
        assert objects["config.json"] == files["full/config.json"]
        assert not any(b"__metadata__" in data for name, data in objects.items() if name in want)
    for tp in about["refuse_tp"]:
        with pytest.raises(PlanError, match=f"cannot be served on tp = {tp}"):
            reshard.convert(source, f"{new_place()}/served", serve=f"tp={tp}", form="vllm")


def mindspore_cases():
    known = set(served_families("mindspore"))
    return [name for name, (about, _) in cases("mindformers.tar.xz").items() if _family(about) in known]


def _family(about):
    return FAMILIES.get(about["family"], about["family"])


@pytest.mark.parametrize("side", ["hf", "mf"])
@pytest.mark.parametrize("case", sorted(mindspore_cases()))
def test_ranks_are_those_of_mindspores_serving_networks(case, side):
    about, files = cases("mindformers.tar.xz")[case]
    source, config = put_case(files, side), json.loads(files["hf/config.json"])
    for serve, want in about["want"].items():
        found, _ = served(source, serve=serve, config=config)
        assert found == want


def test_the_same_ranks_load_without_being_written():
    about, files = cases("vllm.tar.xz")["qwen3_norms"]
    source = put_case(files, "full")
    for rank in range(4):
        want = about["want"]["4"][f"model-rank-{rank}-part-0.safetensors"]
        with reshard.load(source, rank=rank, serve="tp=4", form="vllm") as shard:
            found = {name: hashlib.sha256(tensor.tobytes()).hexdigest() for name, tensor in shard}
        assert found == {name: sha for name, (_, _, sha) in want.items()}


def test_what_was_written_for_serving_is_no_source_of_other_ranks():
    _, files = cases("mindformers.tar.xz")["f210_qwen2_mcore_bf16"]
    source = put_case(files, "hf")
    target = f"{source.removesuffix('model')}served"
    reshard.convert(source, target, serve="tp=4")
    reshard.verify(target)
    assert len(reshard.inspect(target).entries) == 17
    with pytest.raises(CatalogError, match="written for networks that serve a model"):
        reshard.convert(target, f"{new_place()}/back")
