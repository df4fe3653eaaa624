"""Servers of tests and of the demo end with whoever started them, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import s3_servers
from support.s3_servers import NoRoom

TESTS = Path(__file__).resolve().parents[1]

STARTER = """
import sys, time
sys.path.insert(0, {tests!r})
from support.s3_servers import {server}
with {server}() as server:
    print(server.pid, server.switch.kept.folder, server.endpoint.rpartition(":")[2], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("server", ["weed_server", "juicefs_server"])
def test_servers_end_with_their_parent(server: str, number: signal.Signals) -> None:
    program = STARTER.format(tests=str(TESTS), server=server)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        told = parent.stdout.readline().split()
        if not told:
            pytest.skip(f"{server} does not start here")
        pid, folder, port = int(told[0]), Path(told[1]), told[2]
        assert is_alive(pid)
        assert folder.is_dir()
        parent.send_signal(number)
        assert parent.wait(10) == -number
        assert soon(lambda: not is_alive(pid)), "the server is still there"
        assert soon(lambda: not folder.exists()), list(folder.iterdir())
        if server == "weed_server":
            assert sockets(port) == []
    finally:
        parent.kill()
        parent.communicate()


def test_a_server_leaves_nothing_at_its_usual_end() -> None:
    try:
        with s3_servers.weed_server() as server:
            folder, pid = server.switch.kept.folder, server.pid
            assert folder.is_dir()
    except s3_servers.NotInstalled as error:
        pytest.skip(str(error))
    assert not is_alive(pid)
    assert not folder.exists()
    assert sockets(server.endpoint.rpartition(":")[2]) == []


def test_servers_keep_their_data_where_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir(), large.mkdir()
    room = {str(small): 64 << 20, str(large): 8 << 30}

    class Usage:
        def __init__(self, place: str) -> None:
            self.free = room[place]

    monkeypatch.setattr(s3_servers.shutil, "disk_usage", Usage)
    monkeypatch.setattr(s3_servers.tempfile, "gettempdir", lambda: str(large))
    places = (str(small), "")
    assert s3_servers._roomy(32 << 20, places) == str(small)
    assert s3_servers._roomy(1 << 30, places) == str(large)
    with pytest.raises(NoRoom, match=r"needs 9\.0 GB, but .*small has 0\.1 GB and .*large has 8\.6 GB: set TMPDIR"):
        s3_servers._roomy(9_000_000_000, places)


def sockets(port: str) -> list[Path]:
    return list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def soon(condition: Callable[[], bool], within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
