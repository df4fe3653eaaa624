"""Checksums of bodies that are sent: which one goes along, and what answers prove."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from reshard.errors import Denied, StorageError, Transient
from reshard.storage import Checksum, KeptChecksum, RetryPolicy, Upload, open_location
from reshard.storage.checksums import crc_of, joined_crc
from reshard.storage.s3_checksums import UploadCheck, encoded_crc, kept_checksum
from reshard.storage.s3_client import Connection
from reshard.storage.s3_settings import S3Settings, obs_settings, s3_settings
from reshard.storage.s3_store import S3Store

AWS = s3_settings("b", {})
OBS = obs_settings("b", {"OBS_REGION": "cn-east-3"})
SERVER = s3_settings("b", {}, "http://127.0.0.1:1")
UPLOAD = Upload("k", "u")
BODY = b"hello world"
SENT = Checksum(crc_of(BODY))
MD5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()


def failed(code: str, status: int = 400) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "UploadPart")


class Service:
    """Stands in for the boto3 client. ``checks`` are the headers that it checks, ``answers`` are added to its own."""

    def __init__(
        self, *checks: str, is_joined: bool = False, damages: int = 0, refuses: str = "", **answers: Any
    ) -> None:
        self.checks, self.is_joined, self.damages, self.answers = checks, is_joined, damages, answers
        self.refuses = refuses
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.kept: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(**arguments: Any) -> dict[str, Any]:
            self.calls.append((name, arguments))
            found = getattr(self, f"_{name}", lambda **_: {})(**arguments)
            return {"ResponseMetadata": {"HTTPStatusCode": 200}, **found}

        return call

    def _create_multipart_upload(self, **asked: Any) -> dict[str, Any]:
        kind = {"ChecksumType": asked["ChecksumType"]} if self.is_joined and "ChecksumType" in asked else {}
        return {"UploadId": "u", **kind}

    def _receive(self, Body: Any, **headers: Any) -> dict[str, Any]:  # noqa: N803
        data = bytes(Body if isinstance(Body, bytes) else Body.read())
        if self.damages:
            self.damages -= 1
            data = data[:-1] + b"!"
        crc, md5 = encoded_crc(crc_of(data)), hashlib.md5(data)
        if self.refuses in headers:
            raise failed("InvalidArgument")
        if "crc32c" in self.checks and headers.get("ChecksumCRC32C", crc) != crc:
            raise failed("BadDigest")
        told = headers.get("ContentMD5", base64.b64encode(md5.digest()).decode())
        if "md5" in self.checks and base64.b64decode(told) != md5.digest():
            raise failed("BadDigest")
        etag = f'"{md5.hexdigest() if "etag" in self.checks else "opaque"}"'
        return {"ETag": etag, **({"ChecksumCRC32C": crc} if "ChecksumCRC32C" in headers else {}), **self.answers}

    _upload_part = _put_object = _receive

    def _complete_multipart_upload(self, **_: Any) -> dict[str, Any]:
        return {"ETag": '"opaque"'}

    def _head_object(self, **_: Any) -> dict[str, Any]:
        return {"ContentLength": len(BODY), "ETag": '"opaque"', **self.kept}

    def of(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]


def opened(settings: S3Settings, client: Service) -> S3Store:
    settings = replace(settings, transfers="boto3")  # the client stands for all that is sent
    connection = Connection(settings)
    connection.client = client
    return S3Store(settings, policy=RetryPolicy(give_up_after_s=0.3, first_delay_s=0.1), connection=connection)


def asked(client: Service) -> UploadCheck:
    """What a store of which nothing is known finds out."""
    return opened(SERVER, client)._upload_check("k")


@pytest.mark.parametrize(
    ("settings", "checks", "header", "proof"),
    [
        (AWS, ("crc32c",), {"ChecksumCRC32C": encoded_crc(crc_of(BODY))}, "crc32c"),
        (OBS, ("md5",), {"ContentMD5": MD5}, "md5"),
        (SERVER, ("crc32c",), {"ChecksumCRC32C": encoded_crc(crc_of(BODY))}, "crc32c"),
        (SERVER, ("md5",), {"ContentMD5": MD5}, "md5"),
        (SERVER, ("etag",), {}, "md5"),
        (SERVER, (), {}, ""),
    ],
)
@pytest.mark.parametrize("damages", [0, 1])
def test_the_checksum_that_a_service_checks_goes_along(settings, checks, header, proof, damages: int) -> None:
    client = Service(*checks)
    store = opened(settings, client)
    store.create_upload("k", is_checked=True)
    client.damages, client.calls = damages, []
    part = store.upload_part(UPLOAD, 1, 0, BODY, SENT)
    assert part.proof == proof
    assert part.crc32c == (SENT.crc32c if proof == "crc32c" else None)
    sent = [
        {name: each[name] for name in ("ChecksumCRC32C", "ContentMD5") if name in each}
        for each in client.of("upload_part")
    ]
    assert sent == [header] * (1 + damages if proof else 1)


@pytest.mark.parametrize("settings", [AWS, OBS, SERVER])
def test_nothing_goes_along_unasked(settings) -> None:
    client = Service("crc32c", "md5", "etag")
    store = opened(settings, client)
    store.create_upload("k")
    assert store.upload_part(UPLOAD, 1, 0, BODY).proof == ""
    assert all("Checksum" not in name and "MD5" not in name for _, each in client.calls for name in each)


def test_no_md5_where_it_may_not_be_spent() -> None:
    client = Service("md5")
    part = opened(OBS, client).upload_part(UPLOAD, 1, 0, BODY, Checksum(SENT.crc32c, may_hash=False))
    assert part.proof == ""
    assert "ContentMD5" not in client.of("upload_part")[0]


def test_a_service_is_asked_once_and_nothing_of_it_stays() -> None:
    client = Service("md5")
    store = opened(SERVER, client)
    for number in (1, 2):
        store.upload_part(UPLOAD, number, 0, BODY, SENT)
    assert [name for name, _ in client.calls] == [
        *("create_multipart_upload", "upload_part", "upload_part", "upload_part", "abort_multipart_upload"),
        *("upload_part", "upload_part"),
    ]


@pytest.mark.parametrize(
    ("client", "found"),
    [
        (Service("crc32c", is_joined=True), UploadCheck("crc32c", is_joined=True)),
        (Service("crc32c", "md5", "etag"), UploadCheck("crc32c")),
        (Service("md5", "etag"), UploadCheck("md5")),
        (Service("etag"), UploadCheck("etag")),
        (Service(), UploadCheck("")),
        (Service("etag", refuses="ChecksumCRC32C"), UploadCheck("etag")),
        (Service(refuses="ContentMD5"), UploadCheck("")),
    ],
)
def test_only_a_refusal_of_a_wrong_checksum_counts(client, found) -> None:
    assert asked(client) == found


@pytest.mark.parametrize(
    ("error", "kind"), [(failed("SlowDown", 503), Transient), (failed("AccessDenied", 403), Denied)]
)
def test_a_failure_is_no_refusal(error, kind) -> None:
    client = Service()
    client._upload_part = lambda **_: (_ for _ in ()).throw(error)
    with pytest.raises(kind):
        asked(client)
    assert client.of("abort_multipart_upload")


def test_a_body_that_never_arrives_whole_is_given_up() -> None:
    client = Service("crc32c")
    client.damages = 1000
    with pytest.raises(Transient, match="BadDigest"):
        opened(AWS, client).put("k", BODY, SENT)
    assert len(client.of("put_object")) >= 2


def test_an_answer_with_another_checksum_is_no_proof() -> None:
    client = Service(ChecksumCRC32C=encoded_crc(1))
    with pytest.raises(Transient, match="received other bytes"):
        opened(AWS, client).upload_part(UPLOAD, 1, 0, BODY, SENT)


def test_a_put_that_nothing_proves_is_followed_by_a_look() -> None:
    client = Service()
    assert opened(OBS, client).put("k", BODY[:-3]).nbytes == len(BODY)
    assert client.of("head_object")
    client = Service("md5")
    assert opened(OBS, client).put("k", BODY, SENT).proof == "md5"
    assert not client.of("head_object")


PARTS = {1: (crc_of(b"hello "), 6), 2: (crc_of(b"world"), 5)}


def test_aws_joins_the_checksums_of_parts() -> None:
    client = Service("crc32c")
    client.kept = {"ChecksumCRC32C": encoded_crc(crc_of(BODY)), "ChecksumType": "FULL_OBJECT"}
    store = opened(AWS, client)
    store.create_upload("k", is_checked=True)
    info = store.complete_upload(UPLOAD, [(1, "a"), (2, "b")], PARTS)
    assert info.checksum == KeptChecksum("crc32c", crc_of(BODY)) == KeptChecksum("crc32c", joined_crc(PARTS.values()))
    [opening], [joining] = client.of("create_multipart_upload"), client.of("complete_multipart_upload")
    assert (opening["ChecksumAlgorithm"], opening["ChecksumType"]) == ("CRC32C", "FULL_OBJECT")
    assert (joining["ChecksumCRC32C"], joining["ChecksumType"]) == (encoded_crc(crc_of(BODY)), "FULL_OBJECT")
    assert [part["ChecksumCRC32C"] for part in joining["MultipartUpload"]["Parts"]] == [
        encoded_crc(crc) for crc, _ in PARTS.values()
    ]


def test_a_part_without_a_known_checksum_leaves_the_whole_unchecked() -> None:
    client = Service("crc32c")
    opened(AWS, client).complete_upload(UPLOAD, [(1, "a"), (2, "b")], {1: PARTS[1]})
    [joining] = client.of("complete_multipart_upload")
    assert "ChecksumCRC32C" not in joining
    assert ["ChecksumCRC32C" in part for part in joining["MultipartUpload"]["Parts"]] == [True, False]


def test_an_object_with_another_checksum_is_no_success() -> None:
    client = Service("crc32c")
    client.kept = {"ChecksumCRC32C": encoded_crc(1), "ChecksumType": "FULL_OBJECT"}
    with pytest.raises(StorageError, match="expected an object with crc32c c9"):
        opened(AWS, client).complete_upload(UPLOAD, [(1, "a"), (2, "b")], PARTS)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ({}, None),
        ({"ChecksumCRC64NVME": "AAAAAAAAAAE=", "ChecksumType": "FULL_OBJECT"}, KeptChecksum("crc64nvme", 1)),
        ({"ChecksumCRC32": "AAAAAg==", "ETag": '"0123"'}, KeptChecksum("crc32", 2)),
        ({"ChecksumCRC32": "AAAAAg==", "ETag": '"0123-4"'}, None),  # of parts, perhaps
        ({"ChecksumCRC32C": "1J3PmQ==-2", "ETag": '"0123"'}, None),
        ({"ChecksumCRC32C": "not base64!"}, None),
        ({"ChecksumSHA256": "AAAA"}, None),
    ],
)
def test_checksums_of_whole_objects(answer, kept) -> None:
    assert kept_checksum(answer) == kept


@pytest.mark.server
def test_servers_tell_what_they_check(weed_server, juicefs_server, moto_url, clean_environ) -> None:
    found = {}
    for server in (weed_server, juicefs_server, moto_url):
        for name, value in server.environ.items():
            clean_environ.setenv(name, value)
        store = open_location(f"s3://{server.make_bucket(f'asked-{server.name}')}").writable_store()
        store.put("k", BODY, SENT)
        found[server.name] = store._checks._found
        assert list(store.open_uploads("")) == []
    assert found == {
        "weed": UploadCheck("crc32c", is_joined=True),
        "juicefs": UploadCheck("md5"),
        "moto": UploadCheck("etag"),
    }
