"""One of each kind against real servers: SeaweedFS as s3://, JuiceFS behind TLS as obs://."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracle.cases import Case, check, check_deduplicated, objects_below
from safetensors.numpy import load, save
from support.s3_servers import S3Server

import reshard
from reshard.storage import Store, open_target

pytestmark = pytest.mark.server

KINDS = {
    "split": "split_dp2mp4",
    "load": "lds_mp4",
    "full": "to_full_transform",
    "pipeline": "reshard_mp4_to_pp2",
    "nested": "split_layout222",
    "optimizer": "split_dp4mp2_opt",
    "ckpt": "reshard_ckpt_mp4_dp2mp2",
    "to_ckpt": "split_st_to_ckpt",
    "unified": "unify_pp2",
    "deduplicated": "unify_dedup_dp2mp4",
}
MIB = 1 << 20


@pytest.fixture(scope="module", params=["s3-weed", "obs-juicefs-tls"])
def bucket(request: pytest.FixtureRequest) -> str:
    """A new bucket of one of the servers, and an environment in which its URL leads there."""
    scheme, name = request.param.split("-", 1)
    server: S3Server = request.getfixturevalue(f"{name.replace('-', '_')}_server")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in (server.environ if scheme == "s3" else server.obs_environ).items():
            patch.setenv(variable, value)
        yield f"{scheme}://{server.make_bucket('oracle')}"


@pytest.mark.parametrize("kind", KINDS)
def test_as_mindspore_does_it(bucket, kind):
    check(Case.named(KINDS[kind]), f"{bucket}/{kind}")
    assert open_uploads(bucket) == []


def test_redundancy_is_removed(bucket):
    check_deduplicated(Case.named(KINDS["deduplicated"]), f"{bucket}/removed")
    assert open_uploads(bucket) == []


def test_uploads_of_several_parts(bucket):
    """Cut on the inner axis, read once for all ranks, sent in parts; and merged again."""
    weights = {
        "a.weight": np.arange(5 * MIB, dtype=np.float32).reshape(2048, 2560),
        "b.weight": np.arange(MIB, dtype=np.int16).reshape(1024, 1024),
        "norm": np.arange(7, dtype=np.float64),
    }
    put(f"{bucket}/big/in/model.safetensors", save(weights, {"format": "pt"}))
    put(f"{bucket}/big/layout.yaml", LAYOUT.encode())
    plan = reshard.plan(
        f"{bucket}/big/in", f"{bucket}/big/ranks", dst_layout=f"{bucket}/big/layout.yaml", memory="64MiB"
    )
    reshard.convert(plan=plan)
    assert plan.cost.upload_count == 2
    assert plan.cost.part_count >= 4
    assert plan.cost.needed_bytes == plan.cost.read_bytes == sum(w.nbytes for w in weights.values())
    assert reshard.verify(f"{bucket}/big/ranks").is_ok
    found = {key: load(data) for key, data in objects_below(f"{bucket}/big/ranks").items() if "rank" in key}
    assert sorted(found) == [f"rank_{rank}/checkpoint_{rank}.safetensors" for rank in range(2)]
    assert_cut(weights, list(found.values()))
    reshard.convert(f"{bucket}/big/ranks", f"{bucket}/big/whole.safetensors", src_layout=f"{bucket}/big/layout.yaml")
    whole = load(objects_below(f"{bucket}/big")["whole.safetensors"])
    assert all(np.array_equal(whole[name], weights[name]) for name in weights)
    assert open_uploads(bucket) == []


LAYOUT = """
axes: {mp: 2}
rules:
  - {match: "a.weight", split: [null, mp]}
  - {match: "b.weight", split: [mp, null]}
  - {match: "*", split: []}
"""


def assert_cut(weights, shards):
    for name, weight in weights.items():
        pieces = [shard[name] for shard in shards]
        if math.prod(pieces[0].shape) == weight.size:
            assert all(np.array_equal(piece, weight) for piece in pieces)
        else:
            axis = next(i for i, (a, b) in enumerate(zip(pieces[0].shape, weight.shape, strict=True)) if a != b)
            assert np.array_equal(np.concatenate(pieces, axis), weight)


def put(url: str, data: bytes) -> None:
    place = open_target(url)
    assert isinstance(place.store, Store)
    place.store.put(place.key, data)


def open_uploads(bucket: str) -> list[object]:
    store = open_target(bucket).store
    assert isinstance(store, Store)
    return list(store.open_uploads(""))
