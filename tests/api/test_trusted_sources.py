"""``verify`` reads a source that a manifest names only where the caller named the place."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

import reshard
from reshard.errors import UsageError
from reshard.storage import open_target


def put(url: str, data: bytes | None = None) -> None:
    place = open_target(url)
    place.writable_store().put(place.key, data or save({"w": np.arange(16, dtype=np.float32)}))


def test_source_in_another_bucket_is_refused_in_one_sentence():
    put("memory://trust-a/src/model.safetensors")
    reshard.convert("memory://trust-a/src", "memory://trust-b/out")
    with pytest.raises(UsageError) as caught:
        reshard.verify("memory://trust-b/out")
    [line] = str(caught.value).splitlines()
    assert "memory://trust-a/src" in line
    assert "source='memory://trust-a/src'" in line
    assert reshard.verify("memory://trust-b/out", source="memory://trust-a/src").is_ok
    assert reshard.verify("memory://trust-b/out", source=["memory://other/x", "memory://trust-a"]).is_ok


def test_source_in_the_same_bucket_is_read():
    put("memory://trust-c/src/model.safetensors")
    reshard.convert("memory://trust-c/src", "memory://trust-c/out")
    assert reshard.verify("memory://trust-c/out").is_ok


def test_local_source_of_a_local_target_is_read(tmp_path):
    put(str(tmp_path / "a/src/model.safetensors"))
    reshard.convert(str(tmp_path / "a/src"), str(tmp_path / "b/out"))
    assert reshard.verify(str(tmp_path / "b/out")).is_ok


def test_local_source_of_a_target_in_a_store_is_not(tmp_path):
    put(str(tmp_path / "src/model.safetensors"))
    reshard.convert(str(tmp_path / "src"), "memory://trust-d/out")
    with pytest.raises(UsageError, match="names the source"):
        reshard.verify("memory://trust-d/out")
    assert reshard.verify("memory://trust-d/out", source=str(tmp_path / "src")).is_ok


def test_nothing_is_opened_that_the_caller_did_not_name(monkeypatch):
    """Some packages connect when a URL is opened: a forged manifest could learn who reads it."""
    from dataclasses import replace

    from reshard.engine.manifest import decode_manifest, encode_manifest

    put("memory://trust-e/src/model.safetensors")
    made = reshard.convert("memory://trust-e/src", "memory://trust-e/out")
    catalog = replace(made.conversion.catalog, url="sftp://evil.example/x")
    forged = encode_manifest(replace(made, conversion=replace(made.conversion, catalog=catalog)))
    assert decode_manifest(forged, "forged").conversion.catalog.url == "sftp://evil.example/x"
    put("memory://trust-e/out/reshard-manifest.json", forged)
    monkeypatch.setattr("reshard.storage.fsspec_store.FsspecStore.__init__", None)
    with pytest.raises(UsageError, match=r"sftp://evil.example/x"):
        reshard.verify("memory://trust-e/out")
