"""The ways without reshard: download, convert on local disk with MindSpore's tools or with torch, upload."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).with_name("tools.py")
TOOL_S = 100  # MindSpore's own processes now and then wait for each other for ever


def run_tool(kind: str, python: str, folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run one of ``tools.py`` under another interpreter; return what it tells of its times and versions."""
    output = subprocess.run(
        [python, "-P", str(TOOLS), kind],  # -P: it finds none of the modules beside it
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        input=json.dumps(asked),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TOOL_S,
    ).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def through_disk(client: Any, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Download, convert, upload; the seconds of each, and what lay on the disk in the end."""
    found: dict[str, Any] = {}
    with timed(found, "download_s"):
        for bucket, prefix, name in spec["fetched"]:
            download(client, bucket, prefix, folder / name)
    for name, text in spec.get("files", {}).items():
        (folder / name).write_text(text)
    with timed(found, "convert_s"):
        found |= run_tool(spec["kind"], spec["python"], folder, spec["asked"])
    found["disk_bytes"] = used_bytes(folder)
    with timed(found, "upload_s"):
        upload(client, folder / "out", spec["target"], spec["target_prefix"])
    return found


@contextlib.contextmanager
def timed(found: dict[str, Any], name: str) -> Iterator[None]:
    """Note how long something took."""
    begun_s = time.monotonic()
    yield
    found[name] = time.monotonic() - begun_s


def make_client(endpoint: str) -> Any:
    """boto3 with room for many requests at once."""
    import boto3
    from botocore.config import Config

    # DeleteObjects and the like want checksums that older servers do not know: only those that are required
    config = Config(
        s3={"addressing_style": "path"},
        max_pool_connections=40,
        proxies={},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def transfer_config() -> Any:
    """How boto3 moves one object: parts of 16 MiB, 8 at once."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=16 << 20, max_concurrency=8)


def keys_below(client: Any, bucket: str, prefix: str) -> list[str]:
    """Every key below a prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def download(client: Any, bucket: str, prefix: str, folder: Path) -> None:
    """Fetch every object below a prefix, each with 8 requests at once."""
    for key in keys_below(client, bucket, prefix):
        path = folder / key.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, key, str(path), Config=transfer_config())


def upload(client: Any, folder: Path, bucket: str, prefix: str) -> None:
    """Send everything in a folder, each file with 8 requests at once."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.upload_file(str(path), bucket, key, Config=transfer_config())


def remove(client: Any, bucket: str, prefix: str) -> None:
    """Delete every object below a prefix."""
    for key in keys_below(client, bucket, prefix):
        client.delete_object(Bucket=bucket, Key=key)


def used_bytes(folder: Path) -> int:
    """What lies in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone in between
            total += path.stat().st_size if path.is_file() else 0
    return total


def fingerprints(client: Any, bucket: str, prefix: str) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Every tensor below a prefix by rank and name: dtype, shape and hash, read tensor by tensor."""
    found = {}
    for key in keys_below(client, bucket, prefix):
        if not key.endswith(".safetensors"):
            continue
        rank = next((part for part in key.split("/") if part.startswith("rank_")), "")
        with contextlib.closing(client.get_object(Bucket=bucket, Key=key)["Body"]) as body:
            header = json.loads(body.read(int.from_bytes(body.read(8), "little")))
            header.pop("__metadata__", None)
            for name, item in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
                begin, end = item["data_offsets"]
                digest = hashlib.sha256(body.read(end - begin)).hexdigest()
                found[f"{rank}/{name}"] = (item["dtype"], tuple(item["shape"]), digest)
    return found


def equal_count(name: str, expected: Mapping[str, Any], made: Mapping[str, Any]) -> int:
    """How many tensors both have, all of them equal."""
    wrong = sorted(key for key in expected.keys() | made.keys() if expected.get(key) != made.get(key))
    if wrong or not made:
        raise SystemExit(f"{name}: {len(wrong)} of {len(expected)} tensors differ: {', '.join(wrong[:5])}")
    return len(made)
