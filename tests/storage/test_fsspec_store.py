from __future__ import annotations

import functools
import http.server
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
from storage.contract import ReadStoreContract, Reopen, Write
from support.s3_servers import ACCESS_KEY, S3Server

from reshard.errors import Denied, NotFound, StorageError, Transient, Unsupported, UsageError
from reshard.storage import RetryPolicy, Store, open_source
from reshard.storage.fsspec_store import FsspecStore
from reshard.tensor import ByteRange

ONCE = RetryPolicy(give_up_after_s=0)


class TestMemoryFileSystem(ReadStoreContract):
    @pytest.fixture
    def store(self) -> FsspecStore:
        return FsspecStore("memory://here")

    @pytest.fixture
    def write(self) -> Write:
        return lambda key, data: fsspec.filesystem("memory").pipe_file(f"/here/{key}", data)

    @pytest.fixture
    def reopen(self) -> Reopen:
        return FsspecStore  # memory:// has a store of its own


class TestLocalFileSystem(ReadStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FsspecStore:
        return FsspecStore(f"local://{tmp_path}")

    @pytest.fixture
    def write(self, tmp_path: Path) -> Write:
        def write(key: str, data: bytes) -> None:
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(data)

        return write


class TestS3fs(ReadStoreContract):
    @pytest.fixture
    def bucket(self, moto_url: S3Server) -> str:
        return moto_url.make_bucket(f"b-{uuid.uuid4().hex[:12]}")

    @pytest.fixture
    def reopen(self, moto_url: S3Server) -> Reopen:
        options = {"endpoint_url": moto_url.endpoint, "key": ACCESS_KEY, "secret": moto_url.secret_key}
        return lambda url: FsspecStore(url, options)

    @pytest.fixture
    def store(self, bucket: str, reopen: Reopen) -> FsspecStore:
        return reopen(f"s3://{bucket}")

    @pytest.fixture
    def write(self, bucket: str, store: FsspecStore) -> Write:
        return lambda key, data: store._fs.pipe_file(f"{bucket}/{key}", data)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, as any web server has them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        status = self.server.statuses.pop(0) if self.server.statuses else 0
        if status:
            self.send_error(status)
            return
        span, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if not span or not path.is_file():
            super().do_GET()
            return
        start, stop = (int(text) for text in span.removeprefix("bytes=").split("-"))
        data = path.read_bytes()[start : stop + 1]
        self.send_response(206 if data else 416)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{path.stat().st_size}")
        self.end_headers()
        self.wfile.write(data)

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}-{path.stat().st_size}"')
        super().end_headers()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = functools.partial(_Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.statuses = []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


class TestHttp(ReadStoreContract):
    odd_names = ("with space.bin", "权重.bin")

    @pytest.fixture
    def store(self, web: http.server.ThreadingHTTPServer) -> FsspecStore:
        return FsspecStore(f"http://127.0.0.1:{web.server_port}")

    @pytest.fixture
    def write(self, tmp_path: Path) -> Write:
        def write(key: str, data: bytes) -> None:
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(data)

        return write

    def test_prefix_is_no_object(self) -> None:
        """A web server answers with a page that lists it; nothing tells that from an object."""

    def test_odd_keys_are_read(self, store: FsspecStore, write: Write, base: str) -> None:
        for name in self.odd_names:  # a web server's listing is made of links, which are quoted
            write(f"{base}/{name}", name.encode())
            assert store.read(f"{base}/{quote(name)}", ByteRange(0, 4)) == name.encode()[:4]

    @pytest.mark.parametrize(("status", "error"), [(403, Denied), (404, NotFound), (503, Transient)])
    def test_status_decides(self, web, status: int, error: type, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        store = FsspecStore(f"http://127.0.0.1:{web.server_port}", policy=ONCE)
        web.statuses += [status]
        with pytest.raises(error, match=base):
            store.read(f"{base}/a", ByteRange(0, 5))

    def test_busy_server_is_asked_again(self, web, write: Write, base: str) -> None:
        write(f"{base}/a", b"hello")
        store = FsspecStore(f"http://127.0.0.1:{web.server_port}", policy=RetryPolicy(first_delay_s=0))
        web.statuses += [503, 500]
        assert store.read(f"{base}/a", ByteRange(0, 5)) == b"hello"


def test_large_reads_go_in_blocks() -> None:
    data = bytes(range(256)) * (9 << 12)
    fsspec.filesystem("memory").pipe_file("/large/a", data)
    assert FsspecStore("memory://large").read("a", ByteRange(1, len(data))) == data[1:]


def test_is_for_reading_only() -> None:
    assert not isinstance(FsspecStore("memory://x"), Store)


def test_chains_are_refused() -> None:
    with pytest.raises(Unsupported, match="local disk"):
        open_source("simplecache::https://host.example/a")


def test_unknown_scheme_is_explained() -> None:
    with pytest.raises(UsageError, match="s4:// is unknown"):
        open_source("s4://bucket/key")


def test_missing_package_is_named() -> None:
    with pytest.raises(UsageError, match=r"needs another package.*gcsfs"):
        open_source("gs://bucket/key")


def test_password_is_not_shown() -> None:
    store = FsspecStore("http://me:secret@host.example", policy=ONCE)
    assert store.url == "http://host.example"
    assert "secret" not in repr(store)


def test_user_who_may_be_a_token_is_not_shown() -> None:
    assert FsspecStore("https://ghp_token@host.example", policy=ONCE).url == "https://host.example"


def test_error_of_a_constructor_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr("fsspec.core.url_to_fs", broken)
    with pytest.raises(StorageError, match=r"Cannot open http://host\.example .*RuntimeError") as caught:
        FsspecStore("http://host.example")
    assert "hunter2" not in str(caught.value)
