"""Runs one way in a fresh process and measures it from outside: seconds, CPU, memory, local disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines import used_bytes

WORKER = Path(__file__).with_name("worker.py")
LEAST_FREE_BYTES = 3 << 30
_TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A way did not get through; says what it printed."""


class Watch:
    """Samples a process and all that it starts, for the length of a block: memory, and what is in a folder.

    Memory that no file stands behind, shared pages counted once; and that with the pages of mapped files. Ends
    the process group when the machine is about to run out of memory.

    Parameters
    ----------
    pid
        Of a process that leads its group.
    folder
        Whose content is looked at as well.
    interval_s
        Between two samples.
    is_deep
        Whether to sample at all, besides guarding the machine's memory: it costs the process some time.
    """

    def __init__(self, pid: int, folder: Path | None = None, *, interval_s: float = 0.05, is_deep: bool = True) -> None:
        self.peak_bytes = self.peak_with_files_bytes = self.peak_disk_bytes = 0
        self.is_short_of_memory = False
        self._pid, self._folder, self._interval_s, self._is_deep = pid, folder, interval_s, is_deep
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        import psutil

        while not self._done.wait(self._interval_s if self._is_deep else 0.5):
            if free_bytes() < LEAST_FREE_BYTES:
                self.is_short_of_memory = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
            if not self._is_deep:
                continue
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self._pid)
                found = [resident(process.pid) for process in (root, *root.children(recursive=True))]
                self.peak_bytes = max(self.peak_bytes, sum(own for own, _ in found))
                self.peak_with_files_bytes = max(self.peak_with_files_bytes, sum(everything for _, everything in found))
            if self._folder is not None:
                self.peak_disk_bytes = max(self.peak_disk_bytes, used_bytes(self._folder))


def resident(pid: int) -> tuple[int, int]:
    """Proportional memory of a process, without and with mapped files; in bytes.

    ``Shmem`` belongs to it: reshard's buffers are mappings that threads and kernel share.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # it has ended
        return 0, 0
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    return kib["Pss_Anon"] + kib["Pss_Shmem"] << 10, kib["Pss"] << 10


def free_bytes() -> int:
    """What the machine could still hand out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def free(command: Sequence[str]) -> None:
    """Run a command that frees a part of a server's deleted data, as long as that gives memory back."""
    before = -1
    while command and free_bytes() > before + (64 << 20):
        before = free_bytes()
        subprocess.run(command, capture_output=True, check=False)


def cpu_s(pid: int) -> float:
    """Seconds that a running process has computed, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def run(
    spec: Mapping[str, Any], environ: Mapping[str, str], server_pid: int | None, disk: Path | None, *, is_deep: bool
) -> dict[str, Any]:
    """Run one way in an empty folder, which is also where its temporary files go.

    Parameters
    ----------
    spec
        What :mod:`worker` is told.
    environ
        What makes it reach the store.
    server_pid
        Whose CPU is counted beside.
    disk
        Where the folder is made.
    is_deep
        Whether to watch memory and folder closely; not for a run whose seconds count.

    Raises
    ------
    Failed
        It ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="reshard-bench-", dir=disk) as name:
        base = Path(name)
        folder, told, log = base / "run", base / "told.json", base / "log"
        folder.mkdir()
        (base / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, str(WORKER), str(base / "spec.json"), str(told)]
        server_s = cpu_s(server_pid) if server_pid else 0.0
        begun_s = time.monotonic()
        status, usage, watch = _watched(command, environ, folder, log, begun_s, is_deep=is_deep)
        wall_s = time.monotonic() - begun_s
        if status or not told.exists():
            reason = "too little memory left on the machine" if watch.is_short_of_memory else f"status {status}"
            raise Failed(f"{spec['kind']}: {reason}\n{log.read_text(errors='replace')[-3000:]}")
        found: dict[str, Any] = json.loads(told.read_text())
        found |= {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime}
        found["server_cpu_s"] = cpu_s(server_pid) - server_s if server_pid else None
        found["peak_bytes"] = found["hwm_bytes"] - found["start_bytes"]
        found.setdefault("disk_bytes", used_bytes(folder))
        if is_deep:
            found["tree_peak_bytes"] = watch.peak_bytes
            found["tree_peak_with_files_bytes"] = watch.peak_with_files_bytes
            found["disk_bytes"] = max(found["disk_bytes"], watch.peak_disk_bytes)
        return found


def _watched(
    command: list[str], environ: Mapping[str, str], folder: Path, log: Path, begun_s: float, *, is_deep: bool
) -> tuple[int, Any, Watch]:
    """Start a process in a group of its own and wait for it; its usage holds that of those it waited for."""
    settings = {"TMPDIR": str(folder), "BENCH_SPAWNED_S": str(begun_s), "PYTHONPATH": _paths()}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with Watch(process.pid, folder, is_deep=is_deep) as watch:
            _, status, usage = os.wait4(process.pid, 0)
    finally:  # when this is interrupted, and for what a tool may have left behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage, watch


def _paths() -> str:
    """Where modules are found, from any folder."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(str(Path(path).absolute()) for path in given if path)
