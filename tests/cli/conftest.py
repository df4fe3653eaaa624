"""A small checkpoint with its strategy in each kind of place that the command line takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.s3_servers import S3Server

from reshard.storage import MemoryStore, Store, open_target

CASES = Path(__file__).parents[1] / "conformance" / "mindspore"


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that runs the tests says about colours and widths, a pipe is a pipe."""
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@dataclass(frozen=True)
class Place:
    """``full`` is a full checkpoint of 20 tensors, ``strategy`` cuts 17 of them over 4 ranks; the rest is free."""

    url: str

    @property
    def full(self) -> str:
        return f"{self.url}/full"

    @property
    def strategy(self) -> str:
        return f"{self.url}/mp4.ckpt"

    def at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def put(self, name: str, data: bytes) -> str:
        """Write one object; return its URL."""
        place = open_target(self.at(name))
        assert isinstance(place.store, Store)
        place.store.put(place.key, data)
        return self.at(name)

    def delete(self, name: str) -> None:
        place = open_target(self.at(name))
        assert isinstance(place.store, Store)
        place.store.delete(place.key)

    def keys(self, name: str = "") -> list[str]:
        """Every object below a place."""
        return [key for key, _ in open_target(self.at(name) if name else self.url).named_objects()]

    def remove(self, name: str) -> None:
        """Remove one object."""
        place = open_target(self.at(name))
        assert isinstance(place.store, Store)
        place.store.delete(place.key)

    def read(self, name: str) -> bytes:
        place = open_target(self.at(name))
        from reshard.storage import read_object

        return read_object(place)


def filled(place: Place) -> Place:
    place.put("full/rank_0/full.safetensors", (CASES / "split_mp4/in/full/rank_0/full.safetensors").read_bytes())
    place.put("mp4.ckpt", (CASES / "split_mp4/strategy/mp4.ckpt").read_bytes())
    return place


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return filled(Place(str(tmp_path)))


@pytest.fixture
def memory() -> Place:
    MemoryStore("cli").clear()
    return filled(Place("memory://cli"))


@pytest.fixture(scope="session")
def moto_bucket(moto_url: S3Server) -> str:
    return moto_url.make_bucket("cli")


@pytest.fixture
def s3(
    moto_url: S3Server, moto_bucket: str, clean_environ: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Place:
    for name, value in moto_url.environ.items():
        clean_environ.setenv(name, value)
    return filled(Place(f"s3://{moto_bucket}/{abs(hash(request.node.name)):x}"))


@pytest.fixture(params=["local", "memory", "s3"])
def any_place(request: pytest.FixtureRequest) -> Place:
    """Each of them in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest) -> Place:
    """The quick ones in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A source of 4 GiB that takes no room: all zeros, and never read to its end."""
    import json

    count, nbytes = 4, 1 << 30
    header = {
        f"t{i}": {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [i * nbytes, (i + 1) * nbytes]}
        for i in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "sparse" / "model.safetensors"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + count * nbytes)
    return path.parent
