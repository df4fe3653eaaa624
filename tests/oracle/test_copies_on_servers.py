"""What real servers copy by themselves passes through no client: counted, and compared."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import s3_servers
from support.checkpoints import put_ranks, rank_key, shards
from support.conversions import catalog_at, ranks_of
from support.faulty_store import Fault, FaultyStore
from support.planning import plan_for
from support.recording_store import Figures, RecordingStore
from support.s3_servers import S3Server

import reshard
from reshard.api.request import Request
from reshard.api.resolve import limits_of
from reshard.engine.execute import execute
from reshard.engine.manifest import Manifest
from reshard.engine.verification import Subset, verify_manifest
from reshard.errors import Unsupported
from reshard.formats.mindspore.strategy_merge import from_strategy
from reshard.formats.mindspore.strategy_protobuf import encode_protobuf
from reshard.planning.steps.copies import REPLICAS
from reshard.storage import Location, Store, open_target
from reshard.tensor import ByteRange, DType, Layout, Strategy

pytestmark = pytest.mark.server

MIB = 1 << 20


@pytest.fixture(scope="module", params=["s3-weed", "obs-juicefs-tls"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """A new bucket of one of the servers, and an environment in which its URL leads there."""
    scheme, name = request.param.split("-", 1)
    server: S3Server = request.getfixturevalue(f"{name.replace('-', '_')}_server")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in (server.environ if scheme == "s3" else server.obs_environ).items():
            patch.setenv(variable, value)
        yield f"{scheme}://{server.make_bucket('copies')}"


def model_of(layers: int, rows: int):
    """Layers of a matrix and a norm each; rows of 4 KiB."""
    numbers = np.random.default_rng(3)
    made = {}
    for layer in range(layers):
        made[f"{layer}.norm"] = (DType.BF16, (1024,), numbers.integers(0, 256, (1024, 2), np.uint8))
        made[f"{layer}.w"] = (DType.BF16, (rows, 2048), numbers.integers(0, 256, (rows, 2048, 2), np.uint8))
    return made


def strategy_of(model, dp: int, pp: int) -> Strategy:
    """Every rank of a stage has all of its layers."""
    layers = [
        [name for name in model if int(name.split(".")[0]) * pp // (len(model) // 2) == stage] for stage in range(pp)
    ]
    whole = {name: Layout((dp,), ((),) * len(shape)) for name, (_, shape, _) in model.items()}
    return Strategy(dp, tuple({name: whole[name] for name in names} for names in layers))


def recorded(url: str) -> Location:
    place = open_target(url)
    assert isinstance(place.store, Store)
    return Location(RecordingStore(place.store), place.key)


def convert(src: str, dst: str, before: Strategy, after: Strategy) -> tuple[Manifest, Figures, Figures]:
    """Convert, and count what passes through here on either side."""
    source, target = recorded(src), recorded(dst)
    limits = limits_of(target, Request())
    catalog = catalog_at(open_target(src), before)
    plan = plan_for(catalog, ranks_of(after), target.url, limits, copy_bases=(REPLICAS, 0))
    return execute(plan, source, target), source.store.figures, target.store.figures


def check_share(manifest: Manifest, read: Figures, written: Figures, share: float) -> None:
    """Less than a share of the bytes was read and sent."""
    total = sum(receipt.nbytes for receipt in manifest.receipts)
    assert read.read_bytes < share * total
    assert written.written_bytes < share * total
    assert written.copied_bytes > (1 - share) * total


def check_shards(url: str, model, strategy: Strategy) -> None:
    """Every object below a URL is what numpy cuts, digest by digest: it may be large."""
    place = open_target(url)
    expected = shards(model, strategy)
    for rank, held in expected.items():
        key = place.child(rank_key(rank)).key
        info = place.store.head(key)
        body = np.empty(info.nbytes, np.uint8)
        for first in range(0, info.nbytes, 64 * MIB):
            span = ByteRange(first, min(info.nbytes, first + 64 * MIB))
            place.store.read_into(key, span, memoryview(body)[span.start : span.stop])
        start = 8 + int.from_bytes(body[:8].tobytes(), "little")
        digest = hashlib.sha256()
        for name in sorted(held):
            digest.update(np.ascontiguousarray(held[name][2]).data)
        assert hashlib.sha256(body[start:].data).digest() == digest.digest()


def open_uploads(url: str) -> list[object]:
    store = open_target(url).store
    assert isinstance(store, Store)
    return list(store.open_uploads(""))


def test_stages_are_joined_in_the_store(bucket):
    """Two replicas of two stages of 40 MiB become two replicas of one stage."""
    model = model_of(layers=4, rows=5120)
    before, after = strategy_of(model, dp=2, pp=2), strategy_of(model, dp=2, pp=1)
    put_ranks(open_target(f"{bucket}/in"), shards(model, before))
    manifest, read, written = convert(f"{bucket}/in", f"{bucket}/out", before, after)
    assert len(manifest.receipts) == 2
    assert all(receipt.nbytes > 80 * MIB for receipt in manifest.receipts)
    check_share(manifest, read, written, 0.05)
    check_shards(f"{bucket}/out", model, after)
    assert verify_manifest(manifest, open_target(f"{bucket}/in"), open_target(f"{bucket}/out")).is_ok
    assert open_uploads(bucket) == []


@pytest.mark.parametrize("call", [3, 6])
def test_what_is_refused_late_is_sent_into_the_same_upload(bucket, call):
    """Parts of other numbers and lengths were there before: of the source's bytes (3), or of a replica's (6)."""
    model = model_of(layers=2, rows=5120)
    before, after = strategy_of(model, dp=2, pp=2), strategy_of(model, dp=2, pp=1)
    put_ranks(open_target(f"{bucket}/pair"), shards(model, before))
    source, target = open_target(f"{bucket}/pair"), open_target(f"{bucket}/refused-{call}")
    assert isinstance(target.store, Store)
    faulty = FaultyStore(target.store, Fault("copy_part", call, Unsupported("made up")))
    limits = replace(limits_of(target, Request()), copy_bytes=12 * MIB)
    plan = plan_for(catalog_at(source, before), ranks_of(after), target.url, limits, copy_bases=(REPLICAS, 0))
    assert plan.cost.copy_count == 4 + 4
    manifest = execute(plan, source, Location(faulty, target.key))
    assert faulty.calls["create_upload"] == faulty.calls["complete_upload"] == 2
    assert faulty.calls["upload_part"] > plan.cost.part_count
    check_shards(target.url, model, after)
    assert verify_manifest(manifest, source, target).is_ok
    assert open_uploads(bucket) == []


def test_by_statement(bucket):
    """As users do it: copies by default, none if told so; the same bytes."""
    model = model_of(layers=2, rows=5120)
    strategy = strategy_of(model, dp=1, pp=2)
    source = open_target(f"{bucket}/stated")
    put_ranks(source, shards(model, strategy))
    assert isinstance(source.store, Store)
    for rank in range(2):
        data = encode_protobuf(from_strategy(strategy, stage=rank))
        source.store.put(source.child(f"strategy/ckpt_strategy_rank_{rank}.ckpt").key, data)
    asked = {"src_strategy": f"{bucket}/stated/strategy"}
    copying = reshard.plan(f"{bucket}/stated", f"{bucket}/copied/m.safetensors", **asked)
    moving = reshard.plan(f"{bucket}/stated", f"{bucket}/moved/m.safetensors", copy="never", **asked)
    assert copying.cost.copied_bytes > 30 * MIB
    assert moving.cost.copied_bytes == 0
    copied, moved = reshard.convert(plan=copying), reshard.convert(plan=moving)
    assert None not in [receipt.crc32c for receipt in moved.receipts]
    # A store that keeps the checksums of parts tells that of a copied object, too.
    assert [receipt.crc32c for receipt in copied.receipts] in ([None], [receipt.crc32c for receipt in moved.receipts])
    assert reshard.verify(f"{bucket}/copied/m.safetensors").is_ok
    assert reshard.verify(f"{bucket}/moved/m.safetensors").is_ok
    bodies = [body_of(f"{bucket}/{name}/m.safetensors") for name in ("copied", "moved")]
    assert bodies[0] == bodies[1]
    assert open_uploads(bucket) == []


def body_of(url: str) -> bytes:
    place = open_target(url)
    info = place.store.head(place.key)
    return place.store.read(place.key, ByteRange(0, info.nbytes))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_gib_by_less_than_a_hundredth():
    """One stage's two replicas of 1 GiB from two stages, and two stages again."""
    if shutil.disk_usage("/dev/shm" if Path("/dev/shm").exists() else "/tmp").free < 6 << 30:
        pytest.skip("needs 6 GiB where the server keeps its objects")
    model = model_of(layers=16, rows=16384)
    stages, one = strategy_of(model, dp=1, pp=2), strategy_of(model, dp=2, pp=1)
    with s3_servers.weed_server() as server, pytest.MonkeyPatch.context() as patch:
        for variable, value in server.environ.items():
            patch.setenv(variable, value)
        bucket = f"s3://{server.make_bucket('large')}"
        put_ranks(open_target(f"{bucket}/in"), shards(model, stages))
        joined = convert(f"{bucket}/in", f"{bucket}/one", stages, one)
        assert [receipt.nbytes > 1 << 30 for receipt in joined[0].receipts] == [True, True]
        check_share(*joined, 0.01)
        check_shards(f"{bucket}/one", model, one)
        parted = convert(f"{bucket}/one", f"{bucket}/two", one, stages)
        assert [receipt.nbytes > 512 * MIB for receipt in parted[0].receipts] == [True, True]
        check_share(*parted, 0.01)
        check_shards(f"{bucket}/two", model, stages)
        report = verify_manifest(
            parted[0], open_target(f"{bucket}/one"), open_target(f"{bucket}/two"), subset=Subset(1, 3)
        )
        assert report.is_ok
        assert open_uploads(bucket) == []
