"""Manifests that anyone could have written: they get nothing removed, and nothing attached, that is not reshard's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

import reshard
from reshard.engine.manifest import decode_manifest, encode_manifest
from reshard.errors import FormatError, PlanError, TargetExists
from reshard.planning.plan_json import conversion_from_json, conversion_to_json
from reshard.planning.targets.written_keys import is_written_key
from reshard.storage import open_target


def put(url: str, data: bytes) -> None:
    place = open_target(url)
    place.writable_store().put(place.key, data)


def exists(url: str) -> bool:
    return open_target(url).head_or_none() is not None


@pytest.fixture
def base(request) -> str:
    url = f"memory://forged-{request.node.name}"
    put(f"{url}/src/model.safetensors", save({"w": np.arange(16, dtype=np.float32)}))
    return url


@pytest.mark.parametrize("key", ["train.py", "data/a.bin", "rank_0/notes.txt", "README"])
def test_overwriting_removes_only_what_reshard_writes(base, key):
    made = reshard.convert(f"{base}/src", f"{base}/out")
    target = replace(made.conversion.target, name=key, single_name=key)
    conversion = replace(made.conversion, target=target)
    forged = replace(made, conversion=conversion, receipts=(replace(made.receipts[0], key=key),))
    assert decode_manifest(encode_manifest(forged), "forged").receipts[0].key == key
    put(f"{base}/out/{key}", b"precious")
    put(f"{base}/out/reshard-manifest.json", encode_manifest(forged))
    reshard.convert(f"{base}/src", f"{base}/out", overwrite=True)
    assert exists(f"{base}/out/{key}")


def test_overwriting_still_removes_what_an_earlier_conversion_wrote(base):
    put(f"{base}/src/model.safetensors", save({name: np.zeros(100, np.float32) for name in "abc"}))
    reshard.convert(f"{base}/src", f"{base}/out", part_size="500")
    assert exists(f"{base}/out/model-00001-of-00003.safetensors")
    reshard.convert(f"{base}/src", f"{base}/out", overwrite=True)
    assert not exists(f"{base}/out/model-00001-of-00003.safetensors")
    assert not exists(f"{base}/out/model.safetensors.index.json")


@pytest.mark.parametrize("form", ["hf", "mindspore", "zarr", "ranks", "iteration"])
def test_every_kind_of_target_writes_keys_that_are_known(base, form):
    put(f"{base}/src/config.json", b"{}")
    put(f"{base}/src/tokenizer.model", b"x")
    put(f"{base}/l.yaml", b"axes: {mp: 2}\nrules: [{match: '*', split: [mp]}]")
    layout = {"dst_layout": f"{base}/l.yaml"} if form in ("ranks", "iteration") else {}
    options = {"form": form} | layout | ({"iteration": 3} if form == "iteration" else {})
    if form == "ranks":
        options.pop("form")
    made = reshard.convert(f"{base}/src", f"{base}/out", **options)
    assert [key for key in made.conversion.keys if not is_written_key(key)] == []


@pytest.mark.parametrize("name", ["train.py", ".bashrc", "config.json/x", "authorized_keys"])
def test_attachments_are_of_known_names(base, name):
    put(f"{base}/src/config.json", b"{}")
    made = reshard.convert(f"{base}/src", f"{base}/out")
    body = conversion_to_json(made.conversion)
    assert conversion_from_json(body, 1000) == made.conversion
    body["attachments"][0][0] = name
    with pytest.raises((FormatError, PlanError), match="attachment"):
        conversion_from_json(body, 1000)


def test_outputs_of_a_plan_are_not_hidden(base):
    plan = reshard.plan(f"{base}/src", f"{base}/out")
    target = replace(plan.conversion.target, name=".x.safetensors", single_name=".x.safetensors")
    with pytest.raises(PlanError, match="begins with a dot"):
        conversion_from_json(conversion_to_json(replace(plan.conversion, target=target)), 1000)


def test_objects_of_another_checkpoint_are_still_refused(base):
    reshard.convert(f"{base}/src", f"{base}/out")
    put(f"{base}/out/other.safetensors", b"x")
    with pytest.raises(TargetExists, match="another checkpoint's objects"):
        reshard.convert(f"{base}/src", f"{base}/out", overwrite=True)
