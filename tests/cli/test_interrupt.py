"""Ctrl-C and SIGTERM in the middle of a transfer: stopped within seconds, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cli.runner import PROGRAM, ok

import reshard
from reshard.engine.manifest import Manifest, ObjectReceipt, encode_manifest
from reshard.storage import LocalStore, Store, open_target

LIMIT_S = 15.0


def stopped(
    arguments: list[str], is_under_way: Callable[[], bool], *numbers: signal.Signals, told: str = "transfer\n"
) -> tuple[int, str]:
    """Start a command, send it signals once it is under way, and return its exit code and stderr."""
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert told in iter(process.stderr.readline, "")
        deadline = time.monotonic() + 60
        while not is_under_way():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            os.sched_yield()
        for number in numbers:
            process.send_signal(number)
        sent_s = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - sent_s < LIMIT_S
        assert out == ""
        return process.returncode, err
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_no_file(sparse: Path, tmp_path: Path):
    target = tmp_path / "out"
    store = LocalStore(target)
    code, err = stopped(
        ["convert", str(sparse), str(target), "--memory", "128MiB", "--on-failure", "undo"],
        lambda: any(store.open_uploads("")),
        signal.SIGINT,
    )
    assert code == 130
    assert err.splitlines()[-1] == "interrupted: nothing of this run was left behind"
    assert not target.exists()
    assert [path.name for path in sparse.iterdir()] == ["model.safetensors"]


def test_sigterm_leaves_no_object_and_no_upload(sparse: Path, s3):
    target = open_target(s3.at("out"))
    store = target.store
    assert isinstance(store, Store)
    code, err = stopped(
        ["convert", str(sparse), s3.at("out"), "--memory", "128MiB", "--on-failure", "undo"],
        lambda: any(store.open_uploads(target.prefix)),
        signal.SIGTERM,
    )
    assert code == 130
    assert "interrupted: nothing of this run was left behind" in err
    assert list(store.open_uploads(target.prefix)) == []
    assert list(target.objects()) == []


def test_impatience_leaves_nothing_either(sparse: Path, tmp_path: Path):
    """Signals that come while the first one is being obeyed do not break off the cleaning up."""
    target = tmp_path / "out"
    store = LocalStore(target)
    code, err = stopped(
        ["convert", str(sparse), str(target), "--memory", "128MiB", "--on-failure", "undo"],
        lambda: any(store.open_uploads("")),
        signal.SIGINT,
        signal.SIGTERM,
    )
    assert code == 130
    assert err.splitlines()[-1] == "interrupted: nothing of this run was left behind"
    assert not target.exists()


def test_what_was_sent_is_kept_and_the_same_command_goes_on(sparse: Path, s3):
    target = open_target(s3.at("kept"))
    store = target.store
    assert isinstance(store, Store)
    command = ["convert", str(sparse), s3.at("kept"), "--memory", "128MiB"]

    def has_sent() -> bool:
        return any(store.list_parts(upload) for upload in store.open_uploads(target.prefix))

    code, err = stopped(command, has_sent, signal.SIGINT)
    assert code == 130
    assert "run the same command again to go on, or `reshard abort" in err
    assert "ended" in ok("runs", s3.at("kept")).out
    assert "open uploads, of 1 runs" in ok("abort", s3.at("kept")).out
    assert list(store.open_uploads(target.prefix)) == []
    assert list(target.objects()) == []
    assert "runs       0" in ok("runs", s3.at("kept")).out


def test_verify_stops_too(sparse: Path, tmp_path: Path):
    """Of 4 GiB it needs seconds to compare; the output is as sparse as the source."""
    target, (source,) = tmp_path / "out", list(sparse.iterdir())
    plan = reshard.plan(str(sparse), str(target))
    receipts = tuple(ObjectReceipt(key, source.stat().st_size, "", 0) for key in plan.conversion.keys)
    manifest = Manifest(plan.conversion, plan.limits, receipts)
    target.mkdir()
    (target / plan.conversion.manifest_key).write_bytes(encode_manifest(manifest))
    (output,) = plan.outputs
    with (target / plan.conversion.keys[0]).open("wb") as file:
        file.write(output.frame.literals[0][1])
        file.truncate(output.nbytes)
    code, err = stopped(["verify", str(target)], lambda: True, signal.SIGINT, told="verify\n")
    assert code == 130
    assert "interrupted" in err
