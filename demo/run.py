"""What does reshard do, on a real model and a real S3 server?

1. Start an S3 server on this machine and put SmolLM2-135M into a bucket, as anybody's checkpoint.
2. Run the commands a user would type: inspect, plan, convert to 6 ranks, verify, merge back.
3. Compare every tensor of the merged checkpoint with the original, without any code of reshard.

Run it as ``make demo``. Nothing is left running and nothing is kept, even if it is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import boto3
from botocore.config import Config
from rich.console import Console
from rich.table import Table
from smollm2 import upload_checkpoint

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT / "tests"))

from support.s3_servers import NoRoom, NotInstalled, S3Server, weed_server  # noqa: E402

_BUCKET = "demo"
_ORIGINAL, _RANKS, _MERGED = "smollm2", "dp2mp3", "merged"
_TRAINING, _BACK = "mindspore-mp3pp2", "back"
_SHARD_COUNT = 3
_SERVER_BYTES = 2_000_000_000
_STOP_S = 20  # what a command gets to stop cleanly, once asked to

_console = Console(highlight=False, soft_wrap=True)
_Fingerprint = tuple[str, tuple[int, ...], int, str]  # dtype, shape, bytes, SHA-256 of the bytes


def main() -> None:
    """Run the demo; the exit code says whether everything held."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    timings: dict[str, float] = {}
    with ExitStack() as running:
        with _timed(timings, "start an S3 server on this machine (SeaweedFS)"):
            server = running.enter_context(weed_server(needed_bytes=_SERVER_BYTES))
        _show(server, timings)
    _summary(timings)


def _show(server: S3Server, timings: dict[str, float]) -> None:
    client = _client(server)
    with _timed(timings, "put SmolLM2-135M into a bucket"):
        client.create_bucket(Bucket=_BUCKET)
        _list_objects(upload_checkpoint(client, _BUCKET, _ORIGINAL, _SHARD_COUNT))
    original, ranks, merged = (f"s3://{_BUCKET}/{prefix}" for prefix in (_ORIGINAL, _RANKS, _MERGED))
    layout = "demo/layout.yaml"
    for title, command in {
        "look at it": ["inspect", original],
        "plan 6 ranks: 2 copies, each over 3 ranks": ["plan", original, ranks, "--dst-layout", layout],
        "convert": ["convert", original, ranks, "--dst-layout", layout],
        "verify what was written": ["verify", ranks],
        "merge the ranks back": ["convert", ranks, merged, "--src-layout", layout],
    }.items():
        with _timed(timings, title):
            _reshard(command, server)
    with _timed(timings, "compare merged and original, without reshard"):
        _compare(_fingerprints(client, _ORIGINAL), _fingerprints(client, _MERGED))
    training, back, strategy = f"s3://{_BUCKET}/{_TRAINING}", f"s3://{_BUCKET}/{_BACK}", f"s3://{_BUCKET}/strategy.ckpt"
    numbers = ["--to", "ms", "--parallel", "mp=3,pp=2", "--option", "qkv_concat=true"]
    for title, command in {
        "for MindSpore Transformers: 2 stages, each over 3 ranks": ["convert", original, training, *numbers],
        "the strategy of such a job, without the job": ["strategy", "make", strategy, "--for", original, *numbers],
        "and back to Hugging Face": [
            *("convert", training, back, "--src-strategy", strategy),
            *("--to", "hf", "--config", f"{original}/config.json"),
        ],
    }.items():
        with _timed(timings, title):
            _reshard(command, server)
    with _timed(timings, "compare what came back and the original, without reshard"):
        _compare(_fingerprints(client, _ORIGINAL), _fingerprints(client, _BACK))


def _reshard(arguments: list[str], server: S3Server) -> None:
    """Run one command line as a user would, and stop the demo if it fails."""
    _console.print(f"[bold green]$[/] [bold]reshard {' '.join(arguments)}[/]")
    command = [str(Path(sys.executable).with_name("reshard")), *arguments]
    with subprocess.Popen(command, cwd=_ROOT, env=_environment(server), stdin=subprocess.DEVNULL) as process:  # noqa: S603
        keeper = server.switch.kept.keeper
        keeper.keep(process.pid)  # or it would wait for a server that is gone
        try:
            code = process.wait()
            keeper.release(process.pid)
        except BaseException as error:
            _wait_for_end(process, ask=not isinstance(error, KeyboardInterrupt))  # Ctrl-C has reached it already
            raise
    if code:
        raise SystemExit(f"demo: `reshard {arguments[0]}` ended with exit code {code}")


def _wait_for_end(process: subprocess.Popen[bytes], *, ask: bool) -> None:
    if ask:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _environment(server: S3Server) -> dict[str, str]:
    """The user's environment, with this server and its keys in place of any other store's."""
    no_config = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    no_proxy = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "OBS_"))}
    return kept | no_config | no_proxy | server.environ


def _client(server: S3Server) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.environ["AWS_SECRET_ACCESS_KEY"],
        region_name=server.environ["AWS_DEFAULT_REGION"],
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )


def _fingerprints(client: Any, prefix: str) -> dict[str, _Fingerprint]:
    """Read every safetensors object under a prefix, tensor by tensor, and hash what is in it."""
    found: dict[str, _Fingerprint] = {}
    for key in _keys(client, prefix):
        header_nbytes = int.from_bytes(_get(client, key, 0, 8), "little")
        header = json.loads(_get(client, key, 8, 8 + header_nbytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = (8 + header_nbytes + offset for offset in entry["data_offsets"])
            if name in found:
                raise SystemExit(f"demo: {name} is in two objects under {prefix}")
            digest = hashlib.sha256(_get(client, key, start, stop)).hexdigest()
            found[name] = entry["dtype"], tuple(entry["shape"]), stop - start, digest
    return found


def _keys(client: Any, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return [key for key in keys if key.endswith(".safetensors")]


def _get(client: Any, key: str, start: int, stop: int) -> bytes:
    if start == stop:
        return b""
    answer = client.get_object(Bucket=_BUCKET, Key=key, Range=f"bytes={start}-{stop - 1}")
    body: bytes = answer["Body"].read()
    return body


def _compare(original: dict[str, _Fingerprint], merged: dict[str, _Fingerprint]) -> None:
    differing = sorted(name for name in original.keys() | merged.keys() if original.get(name) != merged.get(name))
    if differing or not original:
        raise SystemExit(f"demo: {len(differing)} tensors are not what they were: {', '.join(differing[:10])}")
    nbytes = sum(entry[2] for entry in original.values())
    _console.print(
        f"{len(original)} tensors, {nbytes:,} bytes: names, dtypes, shapes and SHA-256 are all [bold]equal[/]."
    )


def _list_objects(objects: dict[str, int]) -> None:
    for key, nbytes in objects.items():
        _console.print(f"  s3://{_BUCKET}/{key}  {nbytes:,} bytes")


@contextmanager
def _timed(timings: dict[str, float], title: str) -> Iterator[None]:
    _console.print(f"\n[bold cyan]{len(timings) + 1}. {title}[/]")
    start = time.monotonic()
    yield
    timings[title] = time.monotonic() - start
    _console.print(f"[dim]{timings[title]:.1f} s[/]")


def _summary(timings: dict[str, float]) -> None:
    table = Table(title="\nIt all held. Where the time went:", title_justify="left", box=None, show_header=False)
    table.add_column(), table.add_column(justify="right")
    for title, seconds in timings.items():
        table.add_row(title, f"{seconds:.1f} s")
    table.add_row("[bold]in all[/]", f"[bold]{sum(timings.values()):.1f} s[/]")
    _console.print(table)
    _console.print("The server is stopped and its data gone. Your own bucket next: docs/start.md.")


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        _console.print("\ndemo: stopped")
        raise SystemExit(130) from None
    except NoRoom as error:
        raise SystemExit(f"demo: {error}") from None
    except NotInstalled as error:
        raise SystemExit(f"demo: {error}; there is a wheel of it for Linux only") from None
