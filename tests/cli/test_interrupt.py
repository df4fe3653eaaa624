"""Ctrl-C and SIGTERM in the middle of a transfer: stopped within seconds, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import Place
from cli.runner import PROGRAM, ok

import reshard
from reshard.engine.manifest import Manifest, ObjectReceipt, encode_manifest
from reshard.storage import LocalStore, Store, open_target

LIMIT_S = 15.0


def stopped(
    arguments: list[str], is_under_way: Callable[[], bool], *numbers: signal.Signals, told: str = "transfer\n"
) -> tuple[int, str, str]:
    """Start a command, send it signals once it is under way, and return its exit code, stderr and stdout."""
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
        return process.returncode, err, out
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_no_file(sparse: Path, tmp_path: Path):
    target = tmp_path / "out"
    store = LocalStore(target)
    code, err, out = stopped(
        ["convert", str(sparse), str(target), "--memory", "128MiB", "--on-failure", "undo"],
        lambda: any(store.open_uploads("")),
        signal.SIGINT,
    )
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: nothing of this run was left behind"
    assert not target.exists(), sorted(target.rglob("*"))
    assert [path.name for path in sparse.iterdir()] == ["model.safetensors"]


def test_sigterm_leaves_no_object_and_no_upload(sparse: Path, s3):
    target = open_target(s3.at("out"))
    store = target.store
    assert isinstance(store, Store)
    code, err, out = stopped(
        ["convert", str(sparse), s3.at("out"), "--memory", "128MiB", "--on-failure", "undo"],
        lambda: any(store.open_uploads(target.prefix)),
        signal.SIGTERM,
    )
    assert (code, out) == (130, "")
    assert "interrupted: nothing of this run was left behind" in err
    assert list(store.open_uploads(target.prefix)) == []
    assert list(target.objects()) == []


def test_impatience_leaves_nothing_either(sparse: Path, tmp_path: Path):
    """Signals that come while the first one is being obeyed do not break off the cleaning up."""
    target = tmp_path / "out"
    store = LocalStore(target)
    code, err, out = stopped(
        ["convert", str(sparse), str(target), "--memory", "128MiB", "--on-failure", "undo"],
        lambda: any(store.open_uploads("")),
        signal.SIGINT,
        signal.SIGTERM,
    )
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: nothing of this run was left behind"
    assert not target.exists(), sorted(target.rglob("*"))


def test_what_was_sent_is_kept_and_the_same_command_goes_on(sparse: Path, s3):
    target = open_target(s3.at("kept"))
    store = target.store
    assert isinstance(store, Store)
    command = ["convert", str(sparse), s3.at("kept"), "--memory", "128MiB"]

    def has_sent() -> bool:
        return any(store.list_parts(upload) for upload in store.open_uploads(target.prefix))

    code, err, out = stopped(command, has_sent, signal.SIGINT)
    assert (code, out) == (130, "")
    assert "run the same command again to go on, or `reshard abort" in err
    assert "ended" in ok("runs", s3.at("kept")).out
    assert ", of 1 run" in ok("abort", s3.at("kept")).out
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
    code, err, out = stopped(["verify", str(target)], lambda: True, signal.SIGINT, told="verify\n")
    assert (code, out) == (130, "")
    assert "interrupted" in err


BATCH = """
defaults: {{memory: 128MiB, on_failure: undo}}
jobs:
  small: {{src: {small}, dst: {target}/small}}
  big: {{src: {sparse}, dst: {target}/big, needs: small}}
  other: {{src: {sparse}, dst: {target}/other, dtype: bf16, needs: small}}
  after: {{src: {target}/big, dst: {target}/after, form: mindspore}}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_batch_is_stopped_and_says_what_became_of_every_job(
    sparse: Path, local: Place, tmp_path: Path, number: signal.Signals, form: str
):
    target, file = tmp_path / "out", tmp_path / "batch.yaml"
    file.write_text(BATCH.format(small=local.full, sparse=sparse, target=target))
    stores = [LocalStore(target / name) for name in ("big", "other")]
    code, err, out = stopped(
        ["run", str(file), "--jobs", "2", "--output", form],
        lambda: all(any(store.open_uploads("")) for store in stores),
        number,
        told="big: running\n",
    )
    assert code == 130
    assert err.splitlines()[-1] == "interrupted: 1 of 4 jobs is done and stays; nothing of the others was left behind"
    expected = {"small": "done", "big": "stopped", "other": "stopped", "after": "stopped"}
    if form == "json":
        body = json.loads(out)
        assert (body["is_ok"], {job["name"]: job["state"] for job in body["jobs"]}) == (False, expected)
    else:
        assert dict(line.split()[:2] for line in out.splitlines()[2:6]) == expected
    assert sorted(path.name for path in target.iterdir()) == ["small"]
    assert reshard.verify(str(target / "small")).is_ok


def test_what_the_jobs_of_a_stopped_batch_sent_is_kept_and_said(sparse: Path, local: Place, s3: Place, tmp_path: Path):
    file = tmp_path / "batch.yaml"
    text = BATCH.format(small=local.full, sparse=sparse, target=s3.at("batch")).replace(", on_failure: undo", "")
    file.write_text(text)
    store = open_target(s3.at("batch/big")).store
    assert isinstance(store, Store)

    def has_sent() -> bool:
        uploads = store.open_uploads(open_target(s3.at("batch/big")).prefix)
        return any(store.list_parts(upload) for upload in uploads if upload.key.endswith(".safetensors"))

    code, err, _ = stopped(["run", str(file), "--jobs", "2"], has_sent, signal.SIGTERM, told="big: running\n")
    assert code == 130
    assert "interrupted: 1 of 4 jobs is done and stays\n" in err
    assert "big: " in err.partition("interrupted: ")[2]
    assert "run the same command again to go on" in err
    for name in ("big", "other"):
        ok("abort", s3.at(f"batch/{name}"))
    assert list(store.open_uploads(open_target(s3.at("batch")).prefix)) == []
