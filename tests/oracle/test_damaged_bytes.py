"""Bytes damaged on their way, by a proxy that may end TLS: a run ends right, or refuses in words."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from support.checkpoints import encode, random_model
from support.fault_proxy import Damages, Kind, faulty
from support.s3_servers import S3Server
from support.settings import clear_settings

import reshard
from reshard.engine.manifest import Manifest
from reshard.errors import ReshardError, StorageError, Unsupported
from reshard.storage import Checksum, LocalStore, open_location
from reshard.storage.checksums import crc_of
from reshard.storage.s3_checksums import UploadCheck
from reshard.tensor import ByteRange

MODEL = random_model({**{f"block.{n}.weight": ("F32", (384, 4096)) for n in range(3)}, "norm": ("BF16", (4096,))})
DATA = encode(MODEL)
HOW = {"memory": "64MiB", "concurrency": 2, "copy": "never", "staging": "never", "rename": ["block=layer"]}
WAYS: dict[Kind, dict[str, object]] = {"part": {}, "put": {"part_size": "7MB"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("source")
    LocalStore(folder).put("hf/model.safetensors", DATA)
    LocalStore(folder).put("hf/config.json", b'{"model_type": "made up", "text": "' + b"x" * 5000 + b'"}')
    return str(folder / "hf")


@pytest.fixture(scope="module")
def expected(source: str) -> dict[Kind, dict[str, bytes]]:
    """What a conversion writes, by the kind of body that it is sent as."""
    return {kind: objects_at(in_memory(source, how)) for kind, how in WAYS.items()}


def in_memory(source: str, how: dict[str, object]) -> str:
    url = f"memory://{uuid.uuid4().hex}/to"
    reshard.convert(source, url, **HOW, **how)
    return url


def objects_at(url: str) -> dict[str, bytes]:
    place = open_location(url)
    return {
        name: place.store.read(info.key, ByteRange(0, info.nbytes))
        for name, info in place.named_objects()
        if "manifest" not in name
    }


BUCKETS: dict[str, str] = {}


def bucket_of(server: S3Server) -> str:
    """One bucket for all: SeaweedFS makes volumes for each, and has few."""
    if server.endpoint not in BUCKETS:
        BUCKETS[server.endpoint] = server.make_bucket(f"b-{uuid.uuid4().hex[:12]}")
    return BUCKETS[server.endpoint]


@contextmanager
def reaching(server: S3Server) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        clear_settings(patch)
        for name, value in server.environ.items():
            patch.setenv(name, value)
        yield


@contextmanager
def damaged(server: S3Server, damages: Damages, folder: Path | None) -> Iterator[None]:
    with faulty(server, damages, folder) as proxy, reaching(proxy):
        yield


def written(
    server: S3Server, damages: Damages, source: str, folder: Path | None, **how: object
) -> tuple[str, Manifest]:
    """Convert to a server through the proxy, many small objects too."""
    url = f"s3://{bucket_of(server)}/{uuid.uuid4().hex}/to"
    with damaged(server, damages, folder):
        return url, reshard.convert(source, url, **HOW, **how)


SERVERS = ("weed_server", "juicefs_server", "moto_url")
QUICK = [
    ("weed_server", False, "part", "flip", 2),
    ("weed_server", True, "put", "flip", 3),
    ("weed_server", False, "put", "drop", 3),
    ("juicefs_server", True, "part", "flip", 2),
    ("juicefs_server", False, "put", "flip", 3),
    ("juicefs_server", True, "put", "drop", 3),
    ("moto_url", False, "part", "flip", 2),
    ("moto_url", False, "put", "drop", 3),
]
ALL = [
    (server, tls, kind, damage, every)
    for server in SERVERS
    for tls in (False, True)
    for kind in ("part", "put")
    for damage in ("flip", "drop")
    for every in ((2, 3) if kind == "part" else (2, 3, 5))
]


def check_writing(
    server: S3Server, damages: Damages, source: str, expected: dict[Kind, dict[str, bytes]], folder: Path | None
) -> str:
    """Whatever is damaged is sent again, or else the run is refused; return which."""
    try:
        url, manifest = written(server, damages, source, folder, **WAYS[damages.kind])
    except ReshardError:
        return "refused"
    assert damages.count
    with reaching(server):
        assert objects_at(url) == expected[damages.kind]
    assert all(receipt.proof for receipt in manifest.receipts)
    return "right"


@pytest.mark.server
@pytest.mark.parametrize(("server", "tls", "kind", "damage", "every"), QUICK)
def test_damaged_on_the_way_to_a_store(
    request, tmp_path, source, expected, server: str, tls: bool, kind: Kind, damage: Literal["flip", "drop"], every: int
) -> None:
    folder = tmp_path if tls else None
    outcome = check_writing(request.getfixturevalue(server), Damages(kind, damage, every), source, expected, folder)
    assert outcome == "right"


@pytest.mark.server
@pytest.mark.parametrize("kind", ["part", "put"])
def test_nothing_else_would_show_the_damage(weed_server, source, expected, kind: Kind) -> None:
    url, manifest = written(weed_server, Damages(kind, "flip", 2), source, None, integrity="off", **WAYS[kind])
    with reaching(weed_server):
        assert objects_at(url) != expected[kind]
    assert {receipt.proof for receipt in manifest.receipts} == {""}


@pytest.mark.server
@pytest.mark.parametrize("server", ["weed_server", "juicefs_server"])
def test_a_last_byte_that_is_lost_is_told_by_lengths_alone(request, source, server: str) -> None:
    with pytest.raises(StorageError, match=r"expected .* bytes in the store, found"):
        written(
            request.getfixturevalue(server), Damages("put", "drop", 4), source, None, integrity="off", **WAYS["put"]
        )


@pytest.mark.server
def test_a_store_that_checks_nothing_is_refused_if_it_must(moto_url, source, monkeypatch) -> None:
    monkeypatch.setattr("reshard.storage.s3_store.find_check", lambda *_: UploadCheck(""))
    with pytest.raises(Unsupported, match="checks neither"):
        written(moto_url, Damages("get", "flip", 1000), source, None, integrity="strict")


@pytest.mark.matrix
@pytest.mark.server
@pytest.mark.parametrize(("server", "tls", "kind", "damage", "every"), ALL)
def test_every_damage_on_the_way_to_a_store(
    request, tmp_path, source, expected, server: str, tls: bool, kind: Kind, damage: Literal["flip", "drop"], every: int
) -> None:
    damages = Damages(kind, damage, every)
    check_writing(request.getfixturevalue(server), damages, source, expected, tmp_path if tls else None)


@pytest.mark.server
@pytest.mark.parametrize(("server", "proof"), [("weed_server", "crc32c"), ("juicefs_server", "md5")])
def test_what_each_store_proves(request, source, server: str, proof: str) -> None:
    _, manifest = written(request.getfixturevalue(server), Damages("get", "flip", 1), source, None)
    assert {receipt.proof for receipt in manifest.receipts} == {proof}


def stored_with_checksum(server: S3Server, data: bytes) -> str:
    url = f"s3://{bucket_of(server)}/{uuid.uuid4().hex}"
    with reaching(server):
        place = open_location(f"{url}/model.safetensors")
        place.writable_store().put(place.key, data, Checksum(crc_of(data)))
    return url


def check_reading(server: S3Server, every: int, expected: dict[str, bytes], folder: Path | None, **how: object) -> str:
    """Read a source through the proxy; the outcome in a word."""
    source, damages = stored_with_checksum(server, DATA), Damages("get", "flip", every)
    url = f"memory://{uuid.uuid4().hex}/to"
    try:
        with damaged(server, damages, folder):
            reshard.convert(source, url, **HOW, **how)
    except ReshardError as error:
        assert all(name.startswith("reshard-run.") for name in objects_at(url))  # for the next run to go on
        return f"refused: {error}"
    assert damages.count
    assert objects_at(url) == expected
    return "right"


@pytest.fixture(scope="module")
def bare(expected: dict[Kind, dict[str, bytes]]) -> dict[str, bytes]:
    """The outputs without the companion, which these sources do not have."""
    return {name: data for name, data in expected["part"].items() if name != "config.json"}


@pytest.mark.server
@pytest.mark.parametrize(("server", "tls", "every"), [("weed_server", False, 7), ("juicefs_server", True, 7)])
def test_damaged_reads_are_read_again(request, tmp_path, bare, server: str, tls: bool, every: int) -> None:
    folder = tmp_path if tls else None
    assert check_reading(request.getfixturevalue(server), every, bare, folder, verify=True) == "right"


@pytest.mark.matrix
@pytest.mark.server
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("every", [2, 3, 4, 5, 6, 8, 9, 11])
def test_every_damaged_read(request, tmp_path, bare, server: str, tls: bool, every: int) -> None:
    check_reading(request.getfixturevalue(server), every, bare, tmp_path if tls else None, verify=True)


@pytest.mark.server
@pytest.mark.parametrize("every", [4, 5, 6])
def test_a_checksum_that_the_store_keeps_tells_damaged_reads(weed_server, bare, every: int) -> None:
    """Without reading twice: the bytes are no longer those that the store has."""
    source, url = stored_with_checksum(weed_server, DATA), f"memory://{uuid.uuid4().hex}/to"
    with damaged(weed_server, Damages("get", "flip", every), None), pytest.raises(ReshardError):
        reshard.convert(source, url, **HOW)
    assert not objects_at(url)


@pytest.mark.server
def test_whole_reads_are_proven_by_that_checksum(weed_server, bare) -> None:
    source, url = stored_with_checksum(weed_server, DATA), f"memory://{uuid.uuid4().hex}/to"
    with reaching(weed_server):
        manifest = reshard.convert(source, url, **HOW)
    assert (manifest.reads.object_count, manifest.reads.proven_count) == (1, 1)
    assert objects_at(url) == bare
