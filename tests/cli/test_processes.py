"""Commands whose bytes are moved by several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from cli.runner import PROGRAM, ok
from support.checkpoints import put_full, random_model

from reshard.storage import LocalStore, Location, Store, open_target

MODEL = random_model({f"{i}.w": ("F32", (2560, 1024)) for i in range(24)})
LAYOUT = "axes: {mp: 4}\nrules:\n  - {match: '*', split: [null, mp]}\n"
FLAGS = ("--memory", "64MiB", "--concurrency", "2", "--processes", "2", "--copy", "never", "--staging", "never")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    put_full(Location(LocalStore(folder), "hf"), {"model.safetensors": MODEL})
    (folder / "layout.yaml").write_text(LAYOUT)
    return folder


def started(model: Path, target: str) -> subprocess.Popen[str]:
    arguments = ["convert", str(model / "hf"), target, "--dst-layout", str(model / "layout.yaml"), *FLAGS]
    return subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until_sent(process: subprocess.Popen[str], target: str, count: int) -> list[psutil.Process]:
    """Wait until so many parts are in the store; return the processes that send them."""
    place, deadline = open_target(target), time.monotonic() + 60
    store = place.store
    assert isinstance(store, Store)
    while True:
        uploads = [upload for upload in store.open_uploads(place.prefix) if upload.key.endswith(".safetensors")]
        if sum(len(list(store.list_parts(upload))) for upload in uploads) >= count:
            return psutil.Process(process.pid).children()
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline


def same_bytes(model: Path, target: str) -> bool:
    made, expected = Path(model / "expected"), open_target(target)
    if not made.exists():
        ok("convert", str(model / "hf"), str(made), "--dst-layout", str(model / "layout.yaml"))
    names = sorted(str(path.relative_to(made)) for path in made.rglob("*.safetensors"))
    from reshard.storage import read_object

    return len(names) == 4 and all(read_object(expected.child(name)) == (made / name).read_bytes() for name in names)


def test_a_killed_process_costs_nothing_but_time(model: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "killed")
    with started(model, target) as process:
        victim, *_ = wait_until_sent(process, target, 4)
        victim.kill()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "was ended by signal 9" in err
    assert out.startswith("converted")
    assert same_bytes(model, target)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As a terminal does it: Ctrl-C reaches the processes too, SIGTERM the leader alone."""
    target = str(tmp_path / "stopped")
    with started(model, target) as process:
        children = wait_until_sent(process, target, 8)
        assert len(children) == 2
        for each in children if number == signal.SIGINT else ():
            os.kill(each.pid, number)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "bytes that were sent are kept" in err
    assert not any(child.is_running() for child in children)
    with started(model, target) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "were sent by an earlier run, and are not sent again" in err
    assert same_bytes(model, target)


def test_an_error_of_a_process_is_that_of_the_command(model: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "failed")
    source = tmp_path / "hf" / "model.safetensors"
    source.parent.mkdir()
    source.write_bytes((model / "hf" / "model.safetensors").read_bytes())
    arguments = ["convert", str(source.parent), target, "--dst-layout", str(model / "layout.yaml"), *FLAGS]
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until_sent(process, target, 2)
        source.write_bytes(source.read_bytes())
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "model.safetensors" in err
    assert "Traceback" not in err


def test_the_plan_says_how_many(model: Path, tmp_path: Path) -> None:
    arguments = [str(model / "hf"), str(tmp_path / "to"), "--dst-layout", str(model / "layout.yaml"), *FLAGS]
    assert "2 processes with 2 requests in flight each" in ok("plan", *arguments).out
