"""Stores that go away in the middle of a conversion and come back: the same bytes, exit code 0, and words meanwhile."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.runner import PROGRAM, run
from support import s3_servers
from support.large_models import dense, write_model
from support.s3_servers import S3Server, Switch

import reshard
from reshard.storage import Store, open_target

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

LAYOUT = """
axes: {mp: 2}
rules:
  - {match: "*.o_proj.weight", split: [null, mp]}
  - {match: "*.down_proj.weight", split: [null, mp]}
  - {match: "*norm.weight", split: []}
  - {match: "*", split: [mp, null]}
"""
WEED, JUICEFS = "weed_server", "juicefs_server"
OUTAGES = [
    pytest.param(WEED, 20.0, marks=pytest.mark.slow),
    pytest.param(WEED, 60.0, marks=pytest.mark.outage),
    pytest.param(WEED, 300.0, marks=pytest.mark.outage),
    pytest.param(JUICEFS, 20.0, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """A server of its own: others are not to be stopped."""
    try:
        with getattr(s3_servers, request.param)() as started:
            started.make_bucket("outages")
            yield started
    except s3_servers.NotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("layout") / "layout.yaml"
    path.write_text(LAYOUT)
    return str(path)


@pytest.fixture
def source(server: S3Server, clean_environ: pytest.MonkeyPatch) -> str:
    for name, value in server.environ.items():
        clean_environ.setenv(name, value)
    place = open_target("s3://outages/source")
    assert isinstance(place.store, Store)
    if not any(place.objects()):
        write_model(place.store, "source", dense(), {})
    return place.url


@pytest.fixture
def expected(source: str, layout: str) -> dict[str, int]:
    """Checksums of the outputs of a run that nothing disturbs."""
    return checksums(reshard.convert(source, "s3://outages/undisturbed", dst_layout=layout, copy="never"))


def checksums(manifest: reshard.Manifest) -> dict[str, int]:
    return {receipt.key: receipt.crc32c for receipt in manifest.receipts}


def freeze(switch: Switch) -> Callable[[], None]:
    switch.freeze()
    return switch.thaw


def kill(switch: Switch) -> Callable[[], None]:
    switch.kill()
    return switch.start


def has_begun(target: str) -> bool:
    """Whether outputs are being sent; a store is asked what it checks with an upload of the first key, a record's."""
    return any(not upload.key.endswith("reshard-run.json") for upload in open_target(target).store.open_uploads(""))


@pytest.mark.parametrize(("server", "seconds"), OUTAGES, indirect=["server"])
@pytest.mark.parametrize("stop", [freeze, kill])
def test_a_conversion_waits_for_a_store_that_comes_back(
    stop: Callable[[Switch], Callable[[], None]],
    seconds: float,
    server: S3Server,
    source: str,
    layout: str,
    expected: dict[str, int],
    tmp_path: Path,
) -> None:
    target, log = f"s3://outages/{stop.__name__}-{seconds:.0f}", tmp_path / "log"
    command = [*PROGRAM, "convert", source, target, "--dst-layout", layout, "--copy", "never", "--output", "json"]
    with log.open("w") as err, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err) as process:
        try:
            wait_for(lambda: has_begun(target), process)
            began = time.monotonic()
            come_back = stop(server.switch)
            timer = threading.Timer(seconds, come_back)
            timer.start()
            out, _ = process.communicate(timeout=seconds + 200)
            took = time.monotonic() - began
            if took < seconds:  # it has failed; other tests need the server
                timer.cancel()
                come_back()
        finally:
            process.kill()
    told = log.read_text()
    print(f"{stop.__name__} {seconds:.0f} s: the run ended {took - seconds:.0f} s after the store came back\n{told}")
    assert process.returncode == 0, told
    assert out
    assert took > seconds
    waits = [int(each) for each in re.findall(r"waiting for the store, .*?(\d+) s", told)]
    assert waits or (stop is freeze and seconds < 30), "silence counts after 15 s without a byte sent"
    assert len(waits) <= seconds / 30 + 3
    assert "Traceback" not in told
    manifest = reshard.convert(source, target, dst_layout=layout, copy="never")
    assert manifest.was_done
    assert checksums(manifest) == expected
    assert run("verify", target, "--quiet").code == 0
    assert [upload.key for upload in open_target(target).store.open_uploads("")] == []


@pytest.mark.slow
@pytest.mark.parametrize("server", [WEED], indirect=True)
def test_a_store_that_stays_away_ends_the_run_in_words(server: S3Server, source: str, layout: str) -> None:
    command = [*PROGRAM, "convert", source, "s3://outages/gone", "--dst-layout", layout, "--copy", "never"]
    command += ["--give-up-after", "5s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: any(open_target("s3://outages/gone").store.open_uploads("")), process)
            server.switch.kill()
            began = time.monotonic()
            _, told = process.communicate(timeout=150)
            took = time.monotonic() - began
        finally:
            process.kill()
            server.switch.start()
    assert process.returncode == 5, told
    assert took < 90
    assert "gave up after" in told
    assert "--give-up-after 1h" in told
    assert "Traceback" not in told


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
