"""Which store a URL means, and how it is reached: providers, environment, profiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.s3_servers import ACCESS_KEY, S3Server

from reshard.api.access import describe_access
from reshard.errors import StorageError, Unsupported, UsageError
from reshard.storage import (
    LocalStore,
    Location,
    MemoryStore,
    Store,
    open_location,
    open_source,
    open_store,
    open_target,
    open_target_object,
)
from reshard.storage.open import STORES
from reshard.storage.providers import PROVIDERS, provider_of
from reshard.storage.s3_settings import Keys, obs_settings, s3_settings
from reshard.storage.s3_store import S3Store


@pytest.fixture(autouse=True)
def _clean(clean_environ: pytest.MonkeyPatch) -> None:
    clean_environ.setenv("AWS_ACCESS_KEY_ID", "AKAWS")
    clean_environ.setenv("AWS_SECRET_ACCESS_KEY", "SKAWS")


def bucket(url: str) -> S3Store:
    store = open_target(url).store
    assert isinstance(store, S3Store)
    return store


class _SentError(Exception):
    pass


def host_of(store: S3Store) -> str:
    """Where a request for the key ``k`` goes; it is not sent."""

    def caught(request, **_: object) -> None:
        raise _SentError(request.url)

    store._client.meta.events.register("before-send.s3", caught)
    with pytest.raises(_SentError) as sent:
        store._client.head_object(Bucket=store.settings.bucket, Key="k")
    return str(sent.value)


@pytest.mark.parametrize(
    ("endpoint", "name", "addressing", "region"),
    [
        (None, "AWS S3", "auto", ""),
        ("https://s3.eu-west-1.amazonaws.com", "AWS S3", "auto", ""),
        ("https://obs.cn-north-4.myhuaweicloud.com", "Huawei OBS", "virtual", "cn-north-4"),
        ("https://b.obs.cn-north-4.myhuaweicloud.com:443", "Huawei OBS", "virtual", "cn-north-4"),
        ("https://obs.eu-west-101.myhuaweicloud.eu", "Huawei OBS", "virtual", "eu-west-101"),
        ("https://obs.myhuaweicloud.com", "Huawei OBS", "virtual", ""),
        ("https://s3.oss-cn-hangzhou.aliyuncs.com", "Alibaba OSS", "virtual", "cn-hangzhou"),
        ("https://oss-cn-hangzhou-internal.aliyuncs.com", "Alibaba OSS", "virtual", "cn-hangzhou"),
        ("https://cos.ap-guangzhou.myqcloud.com", "Tencent COS", "virtual", "ap-guangzhou"),
        ("https://0123.r2.cloudflarestorage.com", "Cloudflare R2", "path", "auto"),
        ("http://127.0.0.1:9000", "S3-compatible store", "path", ""),
        ("http://[::1]:9000", "S3-compatible store", "path", ""),
        ("https://minio.lab.example", "S3-compatible store", "path", ""),
        ("https://obs.cn-north-4.myhuaweicloud.com.evil.example", "S3-compatible store", "path", ""),
    ],
)
def test_provider_is_told_by_the_host(endpoint: str | None, name: str, addressing: str, region: str) -> None:
    row = provider_of(endpoint, {})
    host = (endpoint or "").partition("://")[2].split(":")[0]
    assert (row.name, row.addressing, row.region_of(host)) == (name, addressing, region)


def test_addressing_can_be_insisted_on() -> None:
    assert provider_of("http://lab.example", {"RESHARD_S3_ADDRESSING": "virtual"}).addressing == "virtual"
    with pytest.raises(UsageError, match="must be 'path' or 'virtual', not 'both'"):
        provider_of(None, {"RESHARD_S3_ADDRESSING": "both"})


def test_every_service_but_obs_takes_the_same_parts() -> None:
    assert {row.limits.min_part_bytes for row in PROVIDERS if row.name != "Huawei OBS"} == {5 << 20}


def test_s3_without_endpoint_is_aws(clean_environ: pytest.MonkeyPatch) -> None:
    clean_environ.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert host_of(bucket("s3://models/a")) == "https://models.s3.eu-west-1.amazonaws.com/k"
    assert host_of(bucket("s3://models.v1/a")) == "https://s3.eu-west-1.amazonaws.com/models.v1/k"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_s3_endpoint_from_environment(clean_environ: pytest.MonkeyPatch, variable: str) -> None:
    clean_environ.setenv(variable, "http://127.0.0.1:9000")
    store = bucket("s3://models/a")
    assert host_of(store) == "http://127.0.0.1:9000/models/k"
    assert store.settings.region == "us-east-1"
    assert store.url == "s3://models"


def test_s3_endpoint_from_profile(clean_environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[profile lab]\nregion = lab-1\nservices = lab\n[services lab]\ns3 =\n  endpoint_url = http://127.0.0.1:9001\n"
    )
    clean_environ.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    clean_environ.setenv("AWS_PROFILE", "lab")
    store = bucket("s3://models/a")
    assert (store.settings.endpoint, store.settings.region) == ("http://127.0.0.1:9001", "lab-1")


def test_s3_url_to_obs_is_virtual_too(clean_environ: pytest.MonkeyPatch) -> None:
    clean_environ.setenv("AWS_ENDPOINT_URL", "https://obs.cn-north-4.myhuaweicloud.com")
    store = bucket("s3://models/a")
    assert host_of(store) == "https://models.obs.cn-north-4.myhuaweicloud.com/k"
    assert store.settings.region == "cn-north-4"


def test_unknown_profile_is_explained(clean_environ: pytest.MonkeyPatch) -> None:
    clean_environ.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match="nobody"):
        open_location("s3://models/a")


def test_endpoint_without_scheme_is_explained(clean_environ: pytest.MonkeyPatch) -> None:
    clean_environ.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(UsageError, match="not a URL"):
        open_location("s3://models/a")


@pytest.mark.parametrize(
    ("environ", "host"),
    [
        ({"OBS_ENDPOINT": "obs.cn-north-4.myhuaweicloud.com"}, "https://models.obs.cn-north-4.myhuaweicloud.com/k"),
        (
            {"S3_ENDPOINT": "https://obs.cn-east-3.myhuaweicloud.com"},
            "https://models.obs.cn-east-3.myhuaweicloud.com/k",
        ),
        ({"OBS_REGION": "cn-south-1"}, "https://models.obs.cn-south-1.myhuaweicloud.com/k"),
        ({"AWS_ENDPOINT_URL": "http://10.0.0.1:80/"}, "http://10.0.0.1:80/models/k"),
        ({"OBS_ENDPOINT": "http://10.0.0.1:8080", "S3_ENDPOINT": "x"}, "http://10.0.0.1:8080/models/k"),
        (
            {"OBS_ENDPOINT": "https://models.obs.cn-north-4.myhuaweicloud.com"},
            "https://models.obs.cn-north-4.myhuaweicloud.com/k",
        ),
    ],
)
def test_obs_endpoint(clean_environ: pytest.MonkeyPatch, environ: dict[str, str], host: str) -> None:
    for name, value in environ.items():
        clean_environ.setenv(name, value)
    assert host_of(bucket("obs://models/a")) == host


def test_obs_keys_come_first(clean_environ: pytest.MonkeyPatch) -> None:
    clean_environ.setenv("OBS_ENDPOINT", "https://obs.cn-north-4.myhuaweicloud.com")

    def key_used() -> str:
        return bucket("obs://models/a")._client._request_signer._credentials.access_key

    assert key_used() == "AKAWS"
    clean_environ.setenv("OBS_ACCESS_KEY_ID", "AKOBS")
    clean_environ.setenv("OBS_SECRET_ACCESS_KEY", "SKOBS")
    assert key_used() == "AKOBS"


JOB = {"ACCESS_KEY_ID": "AKJOB", "SECRET_ACCESS_KEY": "SKJOB", "SECURITY_TOKEN": "TKJOB"}
OBS = {"OBS_ACCESS_KEY_ID": "AKOBS", "OBS_SECRET_ACCESS_KEY": "SKOBS"}
AWS = {"AWS_ACCESS_KEY_ID": "AKAWS", "AWS_SECRET_ACCESS_KEY": "SKAWS"}
PROFILE = {"AWS_PROFILE": "lab"}


@pytest.mark.parametrize(
    ("url", "environ", "used", "source"),
    [
        ("s3://b", JOB, "AKJOB", "ACCESS_KEY_ID"),
        ("obs://b", JOB, "AKJOB", "ACCESS_KEY_ID"),
        ("s3://b", JOB | AWS, "AKAWS", "AWS_ACCESS_KEY_ID"),
        ("s3://b", JOB | OBS, "AKJOB", "ACCESS_KEY_ID"),
        ("obs://b", JOB | OBS | AWS, "AKOBS", "OBS_ACCESS_KEY_ID"),
        ("obs://b", JOB | AWS, "AKJOB", "ACCESS_KEY_ID"),
        ("obs://b", AWS, "AKAWS", "AWS_ACCESS_KEY_ID"),
        ("s3://b", JOB | PROFILE, "AKFILE", "the shared credentials file, profile lab"),
        ("obs://b", PROFILE, "AKFILE", "the shared credentials file, profile lab"),
    ],
)
def test_which_keys_are_used_and_said(
    clean_environ: pytest.MonkeyPatch, tmp_path: Path, url: str, environ: dict[str, str], used: str, source: str
) -> None:
    (tmp_path / "keys").write_text("[lab]\naws_access_key_id = AKFILE\naws_secret_access_key = SKFILE\n")
    for name in AWS:
        clean_environ.delenv(name)
    for name, value in (
        environ | {"S3_ENDPOINT": "10.0.0.1", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys")}
    ).items():
        clean_environ.setenv(name, value)
    store = bucket(url)
    signer = store._client._request_signer._credentials
    assert (signer.access_key, signer.token) == (used, "TKJOB" if used == "AKJOB" else None)
    assert describe_access(f"{url}/k") == f"S3-compatible store at https://10.0.0.1, credentials from {source}"


def test_no_credentials_are_said(clean_environ: pytest.MonkeyPatch) -> None:
    for name in AWS:
        clean_environ.delenv(name)
    assert describe_access("s3://b") == "AWS S3, credentials from nowhere: none were found"


def test_session_token_by_its_other_name(clean_environ: pytest.MonkeyPatch) -> None:
    token = {"SESSION_TOKEN": "TK", "S3_ENDPOINT": "h"}
    found = obs_settings("b", {"ACCESS_KEY_ID": "A", "SECRET_ACCESS_KEY": "S"} | token).keys
    assert found == Keys("A", "S", "TK")


def test_half_a_pair_of_a_job_is_refused() -> None:
    with pytest.raises(UsageError, match="Only one of ACCESS_KEY_ID and SECRET_ACCESS_KEY"):
        s3_settings("b", {"ACCESS_KEY_ID": "A"})
    assert s3_settings("b", {"ACCESS_KEY_ID": "A"} | AWS).keys is None  # not looked at


@pytest.mark.parametrize(
    ("environ", "endpoint", "is_checked"),
    [
        ({"S3_ENDPOINT": "obs.cn-north-4.myhuaweicloud.com"}, "https://obs.cn-north-4.myhuaweicloud.com", True),
        ({"S3_ENDPOINT": "10.0.0.1:80", "S3_USE_HTTPS": "0"}, "http://10.0.0.1:80", True),
        ({"S3_ENDPOINT": "10.0.0.1", "S3_USE_HTTPS": "1", "S3_VERIFY_SSL": "0"}, "https://10.0.0.1", False),
        ({"S3_ENDPOINT": "https://10.0.0.1", "S3_USE_HTTPS": "0"}, "https://10.0.0.1", True),
        ({"S3_ENDPOINT": "h", "S3_VERIFY_SSL": "False", "AWS_CA_BUNDLE": "ca.pem"}, "https://h", True),
    ],
)
def test_endpoint_of_a_job_service(environ: dict[str, str], endpoint: str, is_checked: bool) -> None:
    for settings in (s3_settings("b", environ, "https://s3.amazonaws.com"), obs_settings("b", environ)):
        assert (settings.endpoint, settings.checks_certificate) == (endpoint, is_checked)


def test_ones_own_endpoint_comes_first_and_is_always_checked() -> None:
    job = {"S3_ENDPOINT": "10.0.0.1", "S3_VERIFY_SSL": "0"}
    lab = "https://lab.example"
    own = obs_settings("b", job | {"OBS_ENDPOINT": lab}), s3_settings("b", job | {"AWS_ENDPOINT_URL": lab}, lab)
    assert {(each.endpoint, each.checks_certificate) for each in own} == {(lab, True)}
    aws = "https://s3.eu-west-1.amazonaws.com"
    assert s3_settings("b", job | {"AWS_ENDPOINT_URL": aws}, aws).endpoint is None


@pytest.mark.parametrize("name", ["S3_USE_HTTPS", "S3_VERIFY_SSL"])
def test_truth_of_a_job_service_that_is_none(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be 0 or 1, not 'no'"):
        obs_settings("b", {"S3_ENDPOINT": "h", name: "no"})


def test_unchecked_certificate_is_said_and_accepted(
    clean_environ: pytest.MonkeyPatch, juicefs_tls_server: S3Server
) -> None:
    """The server's own authority is unknown here: only a job service's endpoint is used without it."""
    host = juicefs_tls_server.endpoint.removeprefix("https://")
    job = {"ACCESS_KEY_ID": ACCESS_KEY, "SECRET_ACCESS_KEY": juicefs_tls_server.secret_key, "S3_ENDPOINT": host}
    for name, value in job.items():
        clean_environ.setenv(name, value)
    clean_environ.setenv("S3_VERIFY_SSL", "0")
    name = juicefs_tls_server.make_bucket("unchecked")
    assert "certificate not checked (S3_VERIFY_SSL)" in describe_access(f"obs://{name}")
    bucket(f"obs://{name}").put("k", b"x")
    clean_environ.setenv("S3_VERIFY_SSL", "1")
    with pytest.raises(StorageError, match="certificate of the endpoint is not accepted"):
        bucket(f"obs://{name}").put("k", b"x")


def test_obs_needs_an_endpoint() -> None:
    with pytest.raises(UsageError, match="No endpoint is known for obs://models") as caught:
        open_location("obs://models/a")
    assert "OBS_ENDPOINT" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["ftp://x", "https://", "https://a:b@x", "https://x?y=1", "https://x:99999"])
def test_bad_endpoint_is_refused_without_being_shown(endpoint: str) -> None:
    with pytest.raises(UsageError, match="OBS_ENDPOINT is not the address of a store") as caught:
        obs_settings("b", {"OBS_ENDPOINT": endpoint})
    assert "a:b" not in str(caught.value)


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(UsageError, match="Only one of"):
        obs_settings("b", {"OBS_REGION": "r", "OBS_ACCESS_KEY_ID": "A"})


def test_keys_are_never_shown() -> None:
    settings = obs_settings(
        "b",
        {"OBS_REGION": "r", "OBS_ACCESS_KEY_ID": "AKX", "OBS_SECRET_ACCESS_KEY": "SKX", "OBS_SECURITY_TOKEN": "TKX"},
    )
    assert settings.keys == Keys("AKX", "SKX", "TKX")
    assert not {"AKX", "SKX", "TKX"} & set(repr(settings).split("'"))
    assert repr(settings.keys) == "Keys(...)"


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "obs://", "memory://", "memory:///a"])
def test_url_without_a_name_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_location(url)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for url in ("a.bin", str(tmp_path / "a.bin"), f"file://{tmp_path}/a.bin", f"file://localhost{tmp_path}/a.bin"):
        place = open_source(url)
        assert (place.key, place.url) == ("a.bin", f"file://{tmp_path}/a.bin")
    place = open_target("new/folder/")
    assert (place.key, place.prefix, place.url) == ("folder", "folder/", f"file://{tmp_path}/new/folder")
    assert isinstance(place.store, LocalStore)
    assert place.child("rank_0/a").url == f"file://{tmp_path}/new/folder/rank_0/a"
    assert not (tmp_path / "new").exists()


def test_linked_paths(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0123").write_bytes(b"x")
    (tmp_path / "model.safetensors").symlink_to("blobs/0123")
    (tmp_path / "link").symlink_to("blobs")
    assert open_source(str(tmp_path / "model.safetensors")).key == "model.safetensors"
    place = open_target(str(tmp_path / "link"))
    store = place.store
    assert isinstance(store, LocalStore)
    store.put(place.child("new").key, b"x")
    assert (tmp_path / "blobs/new").exists()
    assert open_location(str(tmp_path / "blobs/..")).url == f"file://{tmp_path}"


def test_root_of_the_file_system() -> None:
    assert open_location("/").url == "file://"
    assert open_location("/").child("etc/hostname").url == "file:///etc/hostname"


@pytest.mark.parametrize("url", ["", "file://relative/path", "a\0b"])
def test_bad_paths(url: str) -> None:
    with pytest.raises(UsageError):
        open_location(url)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("s3://models/a/b/", "a/b"),
        ("S3://models//a/./b", "a/b"),
        ("s3://models/a b+c%20?d#e", "a b+c%20?d#e"),
        ("s3://models", ""),
        ("memory://lab/权重/x", "权重/x"),
    ],
)
def test_keys_are_normal(url: str, key: str) -> None:
    assert open_location(url).key == key


@pytest.mark.parametrize("url", ["s3://models/../other/a", "memory://lab/a/../../b", "memory://lab/.."])
def test_keys_cannot_climb(url: str) -> None:
    with pytest.raises(UsageError, match=r"\.\."):
        open_location(url)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/../x"])
def test_children_cannot_climb(name: str) -> None:
    with pytest.raises(UsageError, match=r"\.\."):
        open_location("memory://lab/models").child(name)


def test_children_and_parents() -> None:
    place = open_location("memory://family/models")
    store = place.store
    assert isinstance(store, MemoryStore)
    for key in ("models/a", "models/b/c", "models2"):
        store.put(key, b"x")
    assert [info.key for info in place.objects()] == ["models/a", "models/b/c"]
    assert [name for name, _ in place.child("b").named_objects()] == ["c"]
    assert place.parent.key == place.parent.parent.key == ""
    store.clear()


@pytest.mark.parametrize("url", ["https://host.example/a", "gs://bucket/a", "hf://org/repo", "simplecache::s3://b/k"])
def test_other_schemes_are_for_reading(url: str) -> None:
    with pytest.raises(Unsupported, match="read-only") as caught:
        open_target(url)
    assert "s3://" in str(caught.value)


def test_http_is_read() -> None:
    place = open_source("https://host.example/models/a.safetensors")
    assert (place.store.url, place.key) == ("https://host.example", "models/a.safetensors")
    assert not isinstance(place.store, Store)


def test_signed_urls_are_refused_without_being_shown() -> None:
    with pytest.raises(UsageError, match="signed URL") as caught:
        open_source("https://host.example/a?X-Amz-Signature=SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3:/bucket/out", "S3:/bucket", "obs:/b/k", "memory:/lab/a", "git+ssh:/a", "zz:/a:b"])
def test_one_slash_makes_no_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scheme = url.partition(":")[0]
    for open_it in (open_location, open_source, open_target, open_target_object):
        with pytest.raises(UsageError, match="two slashes after its scheme") as caught:
            open_it(url)
        assert f"Write {scheme}://..., or ./{scheme}:/..." in caught.value.hint
    assert open_target(f"./{url}/out").parent.url == f"file://{tmp_path}/{url}"


def test_one_slash_after_file_needs_three() -> None:
    with pytest.raises(UsageError, match="two slashes") as caught:
        open_location("file:/tmp/a")
    assert "Write file:///..." in caught.value.hint


def test_one_slash_does_not_show_a_signed_url() -> None:
    with pytest.raises(UsageError) as caught:
        open_location("https:/host.example/a?X-Amz-Signature=SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("path", ["C:/models", "a:b", "dir/s3:/x", "1s:/x", "s3:bucket"])
def test_colons_in_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_location(path).url == f"file://{tmp_path}/{path}"


@pytest.mark.parametrize(
    ("url", "above", "name"),
    [
        ("model.safetensors", "file://{here}", "model.safetensors"),
        ("./x/plan.json", "file://{here}/x", "plan.json"),
        ("../plan.json", "file://{up}", "plan.json"),
        ("/plan.json", "file://", "plan.json"),
        ("file:///tmp/a.json", "file:///tmp", "a.json"),
        ("memory://lab/a.json", "memory://lab", "a.json"),
        ("s3://bucket/a/b//c.json", "s3://bucket/a/b", "c.json"),
        ("s3://bucket/model.safetensors", "s3://bucket", "model.safetensors"),
    ],
)
def test_target_objects(url: str, above: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place, found = open_target_object(url)
    assert (place.url, found) == (above.format(here=tmp_path / "here", up=tmp_path), name)
    assert place.child(found) == type(place)(place.store, open_target(url).key)


def test_target_object_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place, name = open_target_object("x/plan.json")
    assert isinstance(place.store, LocalStore)
    place.store.put(place.child(name).key, b"{}")
    assert (tmp_path / "x/plan.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://model.safetensors", "s3://bucket/", "s3://b/.", "memory://lab", "/"]
)
def test_whole_store_is_no_target_object(url: str) -> None:
    with pytest.raises(UsageError, match="is a whole store"):
        open_target_object(url)


@pytest.mark.parametrize("url", ["s3://bucket/out/", "out/", "out/.", ".", "..", "../.."])
def test_folder_is_no_target_object(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b/c")
    with pytest.raises(UsageError, match="is a folder"):
        open_target_object(url)


def test_target_object_needs_a_store_that_writes() -> None:
    with pytest.raises(Unsupported, match="read-only"):
        open_target_object("https://host.example/a")


@pytest.mark.parametrize(
    ("obs", "aws"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/"),
        ("Store.example", "http://store.EXAMPLE:80"),
        ("https://b.obs.cn-north-4.myhuaweicloud.com", "https://obs.cn-north-4.myhuaweicloud.com"),
        ("https://s3.eu-west-1.amazonaws.com", ""),
    ],
)
def test_identity_does_not_know_schemes(clean_environ: pytest.MonkeyPatch, obs: str, aws: str) -> None:
    clean_environ.setenv("OBS_ENDPOINT", obs)
    if aws:
        clean_environ.setenv("AWS_ENDPOINT_URL", aws)
    assert open_location("obs://b/k").identity == open_location("s3://b//k/").identity
    assert open_location("obs://b").identity == open_location("s3://b").identity
    assert open_location("obs://b/k").identity != open_location("s3://c/k").identity


def test_identity_knows_endpoints(clean_environ: pytest.MonkeyPatch) -> None:
    seen = {open_location("s3://b/k").identity}
    for endpoint in ("http://h:1", "http://h:2", "http://g:1", "http://h:1/tenant"):
        clean_environ.setenv("AWS_ENDPOINT_URL", endpoint)
        seen.add(open_location("s3://b/k").identity)
    assert len(seen) == 5


def test_identity_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    urls = ["real/sub", "./link/sub/", f"file://{tmp_path}/link/sub", "real/../link/sub"]
    assert {open_location(url).identity for url in urls} == {f"file://{tmp_path}/real/sub"}
    assert open_location("real").child("sub").identity == f"file://{tmp_path}/real/sub"
    assert open_location("/").identity == "file://"
    assert open_location("https://host.example/a").identity == "https://host.example/a"


@pytest.mark.parametrize("scheme", STORES)
def test_every_row_of_the_table_opens_a_store(clean_environ: pytest.MonkeyPatch, scheme: str) -> None:
    clean_environ.setenv("OBS_ENDPOINT", "http://127.0.0.1:9000")
    store = open_store(f"{scheme}:///lab" if scheme == "file" else f"{scheme}://lab")
    assert store.url.startswith(f"{scheme}://")
    assert isinstance(store, Store) == STORES[scheme].is_writable
    assert store.provider in {"local", "memory", "AWS S3", "S3-compatible store"}
    assert open_location(store.url).identity == store.identity


@pytest.mark.parametrize(
    "url", ["a", "/", "a/b", "file:///tmp/a b/c", "memory://lab/x", "s3://bucket/a/b", "s3://bucket"]
)
def test_a_place_is_opened_again_by_its_stores_url_and_key(url: str) -> None:
    place = open_location(url)
    again = Location(open_store(place.store.url), place.key)
    assert (again.url, again.identity, again.store.url) == (place.url, place.identity, place.store.url)


def test_a_store_that_is_only_read_cannot_be_written_to() -> None:
    place = open_location("https://host.example/a")
    with pytest.raises(Unsupported, match=r"https://host\.example/a: this store is read-only"):
        place.writable_store()
