"""S3Store against real servers: moto, SeaweedFS, and JuiceFS behind TLS as the stand-in for OBS."""

from __future__ import annotations

import socket
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from botocore.exceptions import ClientError, ReadTimeoutError
from storage.contract import Reopen, StoreContract, Write
from storage.copy_contract import CopyContract
from support.s3_servers import ACCESS_KEY, S3Server
from support.settings import clear_settings

from reshard.errors import Denied, NotFound, StorageError
from reshard.storage import RetryPolicy, open_target
from reshard.storage.s3_store import S3Store
from reshard.tensor import ByteRange


def opened(server: S3Server, environ: dict[str, str], scheme: str, bucket: str = "") -> S3Store:
    """Open a new bucket of a server as a user would, by environment variables."""
    with pytest.MonkeyPatch.context() as patch:
        clear_settings(patch)
        for name, value in environ.items():
            patch.setenv(name, value)
        store = open_target(f"{scheme}://{bucket or server.make_bucket(f'b-{uuid.uuid4().hex[:12]}')}").store
    assert isinstance(store, S3Store)
    store._policy = RetryPolicy(
        give_up_after_s=0.2, first_delay_s=0.05
    )  # moto answers 500 where others say NoSuchUpload
    return store


class S3Contract(StoreContract, CopyContract):
    """What else holds for a bucket."""

    makes_buckets = False

    @pytest.fixture(scope="class")
    @classmethod
    def neighbour(cls, server: S3Server) -> S3Store:
        return cls.open(server)

    @pytest.fixture
    def reopen(self, server: S3Server) -> Reopen:
        return lambda url: self.open(server, url.partition("://")[2])

    def test_missing_bucket_is_named(self, server: S3Server, clean_environ: pytest.MonkeyPatch) -> None:
        store = self.open(server, "no-such-bucket")
        actions = [lambda: store.head("a"), lambda: store.read("a", ByteRange(0, 1)), lambda: list(store.list(""))]
        if not self.makes_buckets:
            actions += [lambda: store.put("a", b"x"), lambda: store.create_upload("a")]
        for action in actions:
            with pytest.raises(NotFound, match=r"no-such-bucket.*no such bucket"):
                action()

    @pytest.mark.parametrize("version", [1, 2])
    def test_listing_is_paged(
        self, store: S3Store, write: Write, base: str, version: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = sorted(f"{base}/{name}" for name in ("0 +%", "1/a", "1.txt", "1/b/c", "权重", "2", "3"))
        for name in names:
            write(name, b"x")
        provider = replace(store.settings.provider, list_version=version)
        monkeypatch.setattr(store, "_settings", replace(store.settings, provider=provider))
        verb, pages = {1: "list_objects", 2: "list_objects_v2"}[version], []
        call = getattr(store._connection.client, verb)
        monkeypatch.setattr(store._connection.client, verb, lambda **rest: pages.append(1) or call(MaxKeys=3, **rest))
        assert [info.key for info in store.list(base)] == names
        assert len(pages) == 3

    def test_upload_listing_is_paged(self, store: S3Store, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
        uploads = {store.create_upload(f"{base}/{number}") for number in range(5)}
        call = store._connection.client.list_multipart_uploads
        monkeypatch.setattr(
            store._connection.client, "list_multipart_uploads", lambda **rest: call(MaxUploads=2, **rest)
        )
        assert set(store.open_uploads(base)) == uploads

    def test_part_listing_is_paged(self, store: S3Store, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
        upload = store.create_upload(f"{base}/a")
        sent = [(number, store.upload_part(upload, number, 0, bytes(number)).etag) for number in (5, 3, 2, 1, 4)]
        call, pages = store._connection.client.list_parts, []
        monkeypatch.setattr(
            store._connection.client, "list_parts", lambda **rest: pages.append(1) or call(MaxParts=2, **rest)
        )
        found = list(store.list_parts(upload))
        assert [(each.number, each.etag) for each in found] == sorted(sent)
        assert [each.nbytes for each in found] == [1, 2, 3, 4, 5]
        assert len(pages) == 3


class TestMoto(S3Contract):
    honours_copy_etag = False
    sees_copies_past_the_end = False

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, moto_url: S3Server) -> S3Server:
        return moto_url

    @staticmethod
    def open(server: S3Server, bucket: str = "") -> S3Store:
        return opened(server, server.environ, "s3", bucket)

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, server: S3Server) -> S3Store:
        return cls.open(server)

    def test_old_object_of_as_many_parts_is_no_proof(
        self, store: S3Store, base: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = f"{base}/a"
        old = store.create_upload(key)
        store.complete_upload(old, [(1, store.upload_part(old, 1, 0, b"old").etag)])
        upload = store.create_upload(key)
        sent = [(1, store.upload_part(upload, 1, 0, b"new").etag)]
        gone = ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")
        script = iter([ReadTimeoutError(endpoint_url="x"), gone])

        def complete(**_: object) -> None:
            raise next(script)

        monkeypatch.setattr(store._connection.client, "complete_multipart_upload", complete)
        with pytest.raises(StorageError, match="unknown whether"):
            store.complete_upload(upload, sent)
        assert store.read(key, ByteRange(0, 3)) == b"old"


@pytest.mark.server
class TestSeaweed(S3Contract):
    makes_buckets = True  # for whoever writes to one that is not there
    knows_last_part = False

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, weed_server: S3Server) -> S3Server:
        return weed_server

    @staticmethod
    def open(server: S3Server, bucket: str = "") -> S3Store:
        return opened(server, server.environ, "s3", bucket)

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, server: S3Server) -> S3Store:
        return cls.open(server)

    def test_small_part_in_the_middle_is_explained(self, store: S3Store, base: str) -> None:
        upload = store.create_upload(f"{base}/a")
        sent = [(number, store.upload_part(upload, number, 0, b"x").etag) for number in (1, 2)]
        with pytest.raises(StorageError, match="smallest part"):
            store.complete_upload(upload, sent)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
            ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
        ],
    )
    def test_wrong_keys_are_told_apart(
        self, store: S3Store, server: S3Server, changes: dict[str, str], text: str
    ) -> None:
        stranger = opened(server, server.environ | changes, "s3", store.settings.bucket)
        for action in (lambda: stranger.head("a"), lambda: list(stranger.list("")), lambda: stranger.put("a", b"x")):
            with pytest.raises(Denied, match=text) as caught:
                action()
            assert "Check AWS_ACCESS_KEY_ID" in str(caught.value)
            assert "wrong" not in str(caught.value)

    def test_virtual_host(self, store: S3Store, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve = socket.getaddrinfo
        asked = []

        def loopback(host, *rest, **named):
            asked.append(host)
            return resolve("127.0.0.1" if str(host).endswith("s3.localhost") else host, *rest, **named)

        monkeypatch.setattr(socket, "getaddrinfo", loopback)
        endpoint = server.endpoint.replace("127.0.0.1", "s3.localhost")
        environ = server.environ | {"AWS_ENDPOINT_URL": endpoint, "RESHARD_S3_ADDRESSING": "virtual"}
        virtual = opened(server, environ, "s3", store.settings.bucket)
        assert virtual.head(virtual.put("v/a b", b"hello").key).nbytes == 5
        assert f"{store.settings.bucket}.s3.localhost" in asked


class TestSeaweedThroughBoto3(TestSeaweed):
    @staticmethod
    def open(server: S3Server, bucket: str = "") -> S3Store:
        return opened(server, server.environ | {"RESHARD_S3_TRANSFERS": "boto3"}, "s3", bucket)


@pytest.mark.server
class TestObsStandIn(S3Contract):
    """An obs:// URL, TLS, no checksum trailers, no DeleteObjects without Content-MD5, no conditional writes."""

    looks_before_writing = False

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, juicefs_tls_server: S3Server) -> S3Server:
        return juicefs_tls_server

    @staticmethod
    def open(server: S3Server, bucket: str = "") -> S3Store:
        return opened(server, server.obs_environ, "obs", bucket)

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, server: S3Server) -> S3Store:
        return cls.open(server)

    def test_url_and_settings(self, store: S3Store, server: S3Server) -> None:
        assert store.url.startswith("obs://b-")
        assert store.settings.endpoint == server.endpoint
        assert ACCESS_KEY not in repr(store)

    def test_unknown_authority_is_explained(self, store: S3Store, server: S3Server, tmp_path: Path) -> None:
        trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
        environ = server.obs_environ | {"AWS_CA_BUNDLE": str(tmp_path / "other.pem")}
        stranger = opened(server, environ, "obs", store.settings.bucket)
        with pytest.raises(StorageError, match="certificate") as caught:
            stranger.head("a")
        assert "AWS_CA_BUNDLE" in str(caught.value)


@pytest.mark.slow
class TestObsStandInThroughBoto3(TestObsStandIn):
    @staticmethod
    def open(server: S3Server, bucket: str = "") -> S3Store:
        return opened(server, server.obs_environ | {"RESHARD_S3_TRANSFERS": "boto3"}, "obs", bucket)
